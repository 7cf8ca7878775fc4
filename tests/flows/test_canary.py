"""The canary flow and the monitor with a real Prefect server and registry: a better challenger is promoted, a worse one
never comes back, one that is no better waits."""

from dataclasses import dataclass

import pytest

from flows.canary import Tried, canary
from flows.monitor import Monitored, monitor
from tasks import params
from tasks.promotion import changes, ledger, registry
from tasks.serving import journal
from tests.conftest import write_params
from tests.flows.conftest import Project, shown
from tests.tasks.monitoring.test_canary import DAY, TWIN, says
from tests.tasks.monitoring.test_predecessor import FIRST, GOOD, GOOD_MODEL, LAST, POOR_MODEL, Shop, fitted

WORSE = fitted(GOOD, rounds=2)


@dataclass(frozen=True)
class Story:
    """Three canaries, one after another: the better, the worse, and one that waits."""

    shop: Shop
    up: Tried
    won: Monitored
    lost: Monitored
    waits: Monitored
    away: Tried


@pytest.fixture(scope="module")
def story(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Story:
    write_params({**project.raw, "monitor": {"window": "4d"}}, project.folder)
    p = params.load()
    known = registry.open_registry(p.registry)
    shop = Shop(known, journal.open_journal(p.journal), tmp_path_factory.mktemp("runs"))
    more = [project.folder / "params.yaml", project.folder / "tasks" / "features.sql"]
    shop.crown("poor", POOR_MODEL, more=more)
    up = canary(begin=shop.logged("good", GOOD_MODEL, more=more), reason="to try it", as_of=FIRST)
    says(shop, 1, POOR_MODEL, "champion")
    says(shop, 2, GOOD_MODEL, "shadow", outcomes=False)
    won = monitor(as_of=LAST, report="never")
    canary(begin=shop.logged("worse", WORSE, more=more), as_of=FIRST)
    lost = monitor(as_of=LAST + DAY, report="never", force=True)
    canary(begin=shop.logged("twin", TWIN, more=more), as_of=FIRST)
    waits = monitor(as_of=LAST + 5 * DAY, report="never", force=True)
    return Story(shop, up, won, lost, waits, canary(end=True, reason="enough"))


def outcome(done: Monitored) -> tuple[int | None, str | None] | None:
    return done.canary and (done.canary.version, done.canary.outcome)


def test_a_challenger_that_is_better_is_promoted_by_the_promotions_own_marks(story: Story) -> None:
    assert (story.up.serves, story.up.challenger) == (1, 2)
    assert outcome(story.won) == (2, "PROMOTE")
    lines = [line for line in story.shop.known.read_ledger() if line.champion == 1 and line.version == 2]
    assert [line.mark for line in lines] == ["canary", "intent", "alias moved", "done", "canary over"]
    assert lines[1].decision in ledger.find_answered(story.shop.known.read_ledger())
    champion = story.shop.known.find_champion()
    assert champion
    assert (champion.number, champion.as_of) == (2, FIRST)


def test_a_challenger_that_is_worse_is_taken_away_and_never_comes_back(story: Story) -> None:
    assert outcome(story.lost) == (3, "REJECT")
    with pytest.raises(ValueError, match="version 3 lost as a challenger, and what lost is never put up"):
        canary(begin="3")
    assert ledger.find_rejected(story.shop.known.read_ledger()) == {3}


def test_a_challenger_that_is_no_better_waits(story: Story) -> None:
    assert story.waits.canary is None
    assert story.won.decision
    assert not any("was taken down" in reason for reason in story.won.decision.reasons)
    (signal,) = (signal for signal in story.waits.signals if signal.kind == "challenger")
    assert (signal.alarm, signal.detail["outcome"], signal.detail["looks"]) == (False, "HOLD", 1)
    assert (story.away.serves, story.away.challenger) == (2, None)
    assert story.shop.known.read_ledger()[-1].outcome is None  # it may be put up again


def test_what_became_of_each_is_told_once(story: Story) -> None:
    subjects = story.shop.kept.read("alerts")["subject"].to_pylist()
    about_challengers = [subject for subject in subjects if "challenger" in subject]
    assert about_challengers == [
        "evergreen: the challenger of made, version 2, was promoted",
        "evergreen: the challenger of made, version 3, was taken away: it is never put up or promoted again",
    ]


@pytest.mark.usefixtures("story")
def test_the_prefect_ui_shows_the_arms_and_who_is_tried() -> None:
    assert any("## Champion and challenger\n\n| arm | version |" in page for page in shown("decision"))
    assert any("The canary is over: version 2 was promoted." in page for page in shown("decision"))
    heads = [page.partition("(")[0] for page in shown("canary")]
    assert "# Version 1 serves, version 2 is tried beside it " in heads
    assert "# Version 2 serves, no challenger is up " in heads


def test_a_promotion_that_a_person_must_approve_waits_for_one(story: Story, project: Project) -> None:
    raw = {**project.raw, "monitor": {"window": "4d"}, "gate": {**project.raw["gate"], "approval": "required"}}
    write_params(raw, project.folder)
    shop = story.shop
    changes.rollback(shop.known, decision="back", as_of=LAST, reasons=["By hand."])
    canary(begin="4", as_of=FIRST)
    with pytest.raises(ValueError, match="the monitor has found no challenger that may be promoted"):
        canary(accept=True)
    assert outcome(monitor(as_of=LAST + 9 * DAY, report="never", force=True)) is None
    assert any("waits for approval" in row for row in shop.kept.read("alerts")["subject"].to_pylist())
    done = canary(accept=True)
    assert (done.serves, done.challenger) == (4, None)
    again = canary(accept=True)  # as after a cut: it is told, and nothing is done twice
    assert (again.serves, again.message.partition(".")[0]) == (4, "The canary is over: version 4 was promoted")
    assert any("The challenger waits for approval" in page for page in shown("decision"))
    with pytest.raises(ValueError, match="ask for one"):
        canary(end=True, accept=True)
