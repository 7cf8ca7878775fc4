"""tasks.canary on a real registry and journal: both arms on the same unseen rows; who is surely better stays."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks import canary, gate, monitor, params, predecessor, registry, score
from tasks.journal import Journal, entry_of
from tasks.model import Model
from tasks.policy import Signal
from tasks.registry import Entry, Version
from tests.tasks import small
from tests.tasks.test_predecessor import FIRST, GOOD, GOOD_MODEL, LAST, POOR_MODEL, ROWS, Shop, fitted

DAY = timedelta(days=1)
P = small.settings()
TWIN, WIDE = fitted(GOOD, rounds=31), fitted((*GOOD, "noise_1"))
HALF = FIRST + 15 * DAY


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


@pytest.fixture
def shop(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> Shop:
    name = request.node.name
    known = registry.open_registry(params.Registry(model=name, experiment=name, top_trials=0), uri=store)
    return Shop(known, Journal(tmp_path / "logs", str(tmp_path / "parquet")), tmp_path)


def inside(since: datetime, until: datetime) -> Any:
    return (ROWS.event_time >= np.datetime64(since)) & (ROWS.event_time < np.datetime64(until))


def says(
    shop: Shop,
    version: int,
    model: Model,
    arm: str | None,
    *,
    since: datetime = FIRST,
    until: datetime = LAST,
    outcomes: bool = True,
) -> None:
    """What a version said of the rows between two moments, as the API journals it, and what came of its answers."""
    which = inside(since, until)
    mine, places = ROWS.take(which), np.flatnonzero(which)
    table = mine.table.select(model.spec.names)
    entries = [f"{entry_of('row', place)}.{version}" for place in places]
    told = {
        "entry": entries,
        "version": pa.array([version] * len(mine), pa.int64()),
        "event_time": pa.array(mine.event_time, pa.timestamp("us")),
        "made_at": pa.array([LAST] * len(mine), pa.timestamp("us")),
        "score": model.predict(table).astype(np.float64),
        **({"arm": pa.array([arm] * len(mine), pa.string())} if arm else {}),
    }
    shop.kept.append("predictions", pa.table(told | {f"x_{name}": table[name] for name in model.spec.names}))
    if outcomes:
        shop.outcomes(entries, mine.label, mine.event_time)


def put_up(shop: Shop, champion: Model, challenger: Model, *, as_of: datetime = FIRST) -> Entry:
    shop.crown("champion", champion)
    shop.known.put_up(shop.logged("challenger", challenger), decision="begin", as_of=as_of, reasons=["To try it."])
    return begun(shop)


def begun(shop: Shop) -> Entry:
    found = shop.known.canary()
    assert found
    return found


def serving(shop: Shop) -> Version:
    found = shop.known.champion()
    assert found
    return found


def look(shop: Shop, *, looks: int = 0, as_of: datetime = LAST, **overrides: Any) -> Signal:
    p = small.settings(**overrides)
    told: dict[str, Any] = {"champion": serving(shop), "begun": begun(shop), "as_of": as_of, "looks": looks}
    found = canary.compare(p, journal=shop.kept, registry=shop.known, **told)
    assert found
    return found


def losses(*models: Model, since: datetime = FIRST) -> list[float]:
    mature = ROWS.take(inside(since, LAST - DAY))
    return [gate.row_losses(mature.label, each.predict(mature.table), metric="log_loss").mean() for each in models]


# --- the same rows


def test_a_better_challenger_in_the_shadow_wins_on_the_rows_that_both_scored(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL)
    says(shop, 1, POOR_MODEL, None)
    says(shop, 2, GOOD_MODEL, "shadow", outcomes=False)  # an outcome is told of the answer that was sent
    found, (old, new) = look(shop), losses(POOR_MODEL, GOOD_MODEL)
    assert (found.kind, found.alarm, found.version, found.detail["outcome"]) == ("challenger", True, 1, "PROMOTE")
    assert found.rows == found.detail["both"] == inside(FIRST, LAST - DAY).sum()
    assert (found.detail["champion"], found.detail["candidate"]) == pytest.approx((old, new), rel=1e-6)
    assert found.low
    assert found.low > 0
    assert "version 2, the challenger, is better than version 1: log loss 0." in found.said
    assert [line[:3] for line in canary.table(found)] == [
        ("champion", "1", f"{found.rows:,}"),
        ("challenger", "2", f"{found.rows:,}"),
    ]


def test_of_a_share_each_arm_is_asked_again_what_the_other_answered(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL)
    says(shop, 1, POOR_MODEL, "champion", until=HALF)
    says(shop, 2, GOOD_MODEL, "challenger", since=HALF)
    found, (old, new) = look(shop), losses(POOR_MODEL, GOOD_MODEL)
    assert (found.rows, found.detail["both"]) == (inside(FIRST, LAST - DAY).sum(), 0)
    assert (found.detail["champion"], found.detail["candidate"]) == pytest.approx((old, new), rel=1e-6)
    assert found.detail["answers"] == [inside(FIRST, HALF).sum(), inside(HALF, LAST - DAY).sum()]


def test_a_challenger_with_a_feature_of_its_own_counts_where_it_was_asked(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, WIDE)
    says(shop, 1, POOR_MODEL, None)
    says(shop, 2, WIDE, "shadow", since=HALF, outcomes=False)
    assert look(shop).rows == inside(HALF, LAST - DAY).sum()


def test_no_row_counts_that_either_was_trained_on_or_that_came_before_it_was_put_up(shop: Shop) -> None:
    of = put_up(shop, POOR_MODEL, GOOD_MODEL.with_spec(until=HALF.isoformat()))  # it has seen half of what comes
    says(shop, 1, POOR_MODEL, None)
    one = serving(shop)
    told: dict[str, Any] = {"journal": shop.kept, "registry": shop.known, "as_of": LAST, "looks": 0}
    cases = [
        (one, of, HALF),
        (replace(one, as_of=HALF + DAY), of, HALF + DAY),
        (one, replace(of, as_of=HALF + 2 * DAY), HALF + 2 * DAY),
    ]
    for champion, began, since in cases:
        found = canary.compare(P, champion=champion, begun=began, **told)
        assert found
        assert (found.window_begin, found.rows) == (since, inside(since, LAST - DAY).sum())


# --- the verdict


def test_a_worse_challenger_loses_and_an_equal_one_goes_on(shop: Shop) -> None:
    put_up(shop, GOOD_MODEL, POOR_MODEL)
    says(shop, 1, GOOD_MODEL, None)  # no API knows of the challenger
    found = look(shop)
    assert (found.alarm, found.detail["outcome"]) == (True, "REJECT")
    assert "is worse than version 1" in found.said
    shop.known.take_away(decision="end", as_of=LAST, reasons=["Another."])
    shop.known.put_up(shop.logged("twin", TWIN), decision="begin again", as_of=FIRST, reasons=["To try it."])
    equal = look(shop)
    assert (equal.alarm, equal.detail["outcome"], equal.detail["looked"]) == (False, "HOLD", True)
    assert "is not surely better or worse than version 1" in equal.said


def test_what_the_gate_refuses_for_its_cost_goes_on(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL)
    says(shop, 1, POOR_MODEL, None)
    found = look(shop, **{"gate.max_megabytes": 1e-9})
    assert (found.alarm, found.detail["looked"]) == (False, True)
    assert "Over budget" in found.said


def test_each_look_makes_the_next_one_harder_on_both_sides(shop: Shop) -> None:
    put_up(shop, GOOD_MODEL, TWIN)
    says(shop, 1, GOOD_MODEL, None)
    found = [look(shop, looks=looks) for looks in (0, 1, 7)]
    bounds = [each.detail["bound"] for each in found]
    assert bounds == sorted(bounds, reverse=True)
    assert len(set(bounds)) == 3


def test_too_few_mature_rows_say_nothing_and_spend_nothing(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL)
    for _ in range(2):
        found = look(shop, as_of=FIRST + 4 * DAY)
        assert (found.alarm, found.detail["looked"]) == (False, False)
        assert "Nothing can be said of version 2" in found.said
        assert canary.looks([found], 1) == 0
        says(shop, 1, POOR_MODEL, None)


# --- what is done


def act(shop: Shop, found: Signal) -> Entry | None:
    return canary.act(shop.known, found, as_of=LAST)


def test_a_winner_is_promoted_once_and_a_loser_never_comes_back(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL)
    says(shop, 1, POOR_MODEL, None)
    won = look(shop)
    assert canary.wanted([won], 1, begun(shop)) == won
    over = act(shop, won)
    assert over
    assert (over.version, over.outcome, over.reasons, serving(shop).number) == (2, "PROMOTE", (won.said,), 2)
    assert act(shop, won) is None
    shop.known.put_up(shop.logged("worse", fitted(GOOD, rounds=2)), decision="2", as_of=FIRST, reasons=["Again."])
    says(shop, 2, GOOD_MODEL, "champion")
    assert act(shop, won) is None  # of another canary, and of another champion
    lost = act(shop, look(shop))
    assert lost
    assert (lost.version, lost.outcome, serving(shop).number, shop.known.challenger()) == (3, "REJECT", 2, None)
    assert [(line.version, line.outcome) for line in canary.ended(shop.known.ledger())] == [
        (2, "PROMOTE"),
        (3, "REJECT"),
    ]
    with pytest.raises(ValueError, match="version 3 lost as a challenger"):
        shop.known.put_up(3, decision="3", as_of=LAST, reasons=["And again."])


@pytest.mark.parametrize("marked", [False, True])
def test_a_promotion_that_was_cut_off_ends_the_canary_all_the_same(shop: Shop, marked: bool) -> None:
    of = put_up(shop, POOR_MODEL, GOOD_MODEL)
    assert canary.settled(shop.known, as_of=LAST) == of
    shop.known.append(Entry("intent", "canary-2-1-x", LAST, run=of.run, version=2, champion=1, reasons=("Better.",)))
    shop.known.client.set_registered_model_alias(shop.known.model, registry.CHAMPION, "2")
    if marked:
        shop.known.finish_open()
    assert canary.settled(shop.known, as_of=LAST) is None
    (over,) = canary.ended(shop.known.ledger())
    assert (over.decision, over.outcome, over.reasons) == ("canary-2-1-x", "PROMOTE", ("Better.",))
    assert (shop.known.challenger(), shop.known.answered()) == (None, {"champion", "canary-2-1-x"})


def test_a_challenger_that_serves_by_hand_is_no_challenger_and_did_not_win(shop: Shop) -> None:
    for name, model in (("first", GOOD_MODEL), ("second", POOR_MODEL)):
        shop.crown(name, model)
    shop.known.put_up(1, decision="begin", as_of=FIRST, reasons=["To try it."])
    shop.known.rollback(decision="back", as_of=LAST, reasons=["By hand."])
    assert canary.settled(shop.known, as_of=LAST) is None
    assert (shop.known.challenger(), canary.ended(shop.known.ledger())) == (None, [])


# --- what was said in the shadow counts for nothing else


def test_the_shadow_is_nobodys_performance_and_nobodys_score(shop: Shop) -> None:
    put_up(shop, POOR_MODEL, GOOD_MODEL)
    says(shop, 1, POOR_MODEL, "champion", until=HALF)
    says(shop, 2, GOOD_MODEL, "shadow")
    both = (serving(shop), shop.known.version(2))
    seen = [len(monitor.read(shop.kept, each, until=HALF, p=P).times) for each in both]
    assert seen == [inside(HALF - P.monitor.window, HALF).sum(), 0]
    told = [len(predecessor.matured(shop.kept, each, POOR_MODEL.spec, until=LAST).codes) for each in both]
    assert told == [inside(FIRST, HALF).sum(), 0]
    made = shop.kept.read("predictions", columns=["entry", "event_time"])
    assert len(score.once(shop.kept.read("predictions"))) == made.num_rows == inside(FIRST, HALF).sum()
    assert monitor.newest(shop.kept) == made["event_time"][-1].as_py() < HALF
