"""promotion.changes on a real MLflow database: what was begun is finished once, whatever cut it off."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from tasks.promotion import changes, ledger
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import CHALLENGER, CHAMPION, Registry, Version
from tests.tasks.promotion.conftest import AS_OF, BETTER

# --- promotion


def test_a_promotion_moves_the_alias_and_leaves_three_marks(registry: Registry, made: dict[str, Any]) -> None:
    tags = {"evergreen.flow_run": "f1"}
    version = changes.promote(
        registry, registry.runs.log("r1", **made), decision="d1", verdict=BETTER, as_of=AS_OF, tags=tags
    )
    assert registry.find_champion() == version
    assert (version.number, version.record, version.as_of, version.commit) == (1, "r1", AS_OF, "3f2a91c")
    assert version.tags["evergreen.flow_run"] == "f1"
    assert json.loads(version.tags["evergreen.verdict.figures"]) == BETTER
    assert [(line.mark, line.version) for line in registry.read_ledger()] == [
        ("intent", None),
        ("alias moved", 1),
        ("done", 1),
    ]


def test_a_decision_that_is_done_never_moves_the_alias_back(registry: Registry, made: dict[str, Any]) -> None:
    run_id = registry.runs.log("r1", **made)
    first = changes.promote(registry, run_id, decision="d1", verdict=BETTER, as_of=AS_OF, tags={})
    second = changes.promote(registry, run_id, decision="d2", verdict=BETTER, as_of=AS_OF, tags={})
    lines = registry.read_ledger()
    assert changes.promote(registry, run_id, decision="d1", verdict=BETTER, as_of=AS_OF, tags={}) == first
    assert registry.find_champion() == second
    assert registry.read_ledger() == lines
    assert changes.finish_open(registry) == []


def test_an_open_intent_is_finished_once(registry: Registry, made: dict[str, Any]) -> None:
    registry.append(intent("d1", registry.runs.log("r1", **made)))
    finished = changes.finish_open(registry)
    assert [version.number for version in finished] == [1]
    assert registry.find_champion() == finished[0]
    assert changes.finish_open(registry) == []
    assert [line.mark for line in registry.read_ledger()] == ["intent", "alias moved", "done"]


def test_of_several_open_intents_the_newest_is_finished(registry: Registry, made: dict[str, Any]) -> None:
    run_id = registry.runs.log("r1", **made)
    for decision in ("d1", "d2", "d3"):
        registry.append(intent(decision, run_id))
    assert [version.decision for version in changes.finish_open(registry)] == ["d3"]
    marks = [(line.mark, line.decision) for line in registry.read_ledger() if line.mark != "intent"]
    assert marks == [("superseded", "d1"), ("superseded", "d2"), ("alias moved", "d3"), ("done", "d3")]
    with pytest.raises(ValueError, match="d1 was overtaken by a later one"):
        changes.promote(registry, run_id, decision="d1", verdict=BETTER, as_of=AS_OF, tags={})


def test_an_intent_that_a_rollback_overtook_is_not_finished(registry: Registry, made: dict[str, Any]) -> None:
    registry.append(intent("d1", registry.runs.log("r1", **made)))
    registry.append(Entry("rolled back", "by-hand", AS_OF, version=1))
    assert changes.finish_open(registry) == []
    assert registry.find_champion() is None


# --- rollback


def crown(registry: Registry, made: dict[str, Any], count: int) -> list[Version]:
    """So many champions, one after another, each of a run of its own."""
    runs = [registry.runs.log(f"r{i}", **{**made, "trials": []}) for i in range(1, count + 1)]
    told: dict[str, Any] = {"verdict": BETTER, "as_of": AS_OF, "tags": {}}
    return [changes.promote(registry, run_id, decision=f"p{i}", **told) for i, run_id in enumerate(runs, 1)]


def back(registry: Registry, decision: str, **asked: Any) -> int:
    return changes.rollback(registry, decision=decision, as_of=AS_OF, reasons=["It was worse."], **asked).number


def serving(registry: Registry) -> int | None:
    champion = registry.find_champion()
    return champion and champion.number


def marks_of(registry: Registry, decision: str) -> list[tuple[str, int | None, int | None]]:
    return [(line.mark, line.version, line.champion) for line in registry.read_ledger() if line.decision == decision]


def test_a_rollback_gives_the_alias_back_and_leaves_two_marks(registry: Registry, made: dict[str, Any]) -> None:
    crown(registry, made, 2)
    assert back(registry, "b1") == 1 == serving(registry)
    assert marks_of(registry, "b1") == [("rollback", 1, 2), ("rolled back", 1, 2)]
    assert registry.read_ledger()[-1].reasons == ("It was worse.",)
    assert ledger.find_rolled_back(registry.read_ledger()) == {2}
    assert changes.finish_open(registry) == []


def test_a_rollback_asked_twice_acts_once(registry: Registry, made: dict[str, Any]) -> None:
    crown(registry, made, 3)
    assert [back(registry, "b1") for _ in range(2)] == [2, 2]
    assert (serving(registry), ledger.find_rolled_back(registry.read_ledger())) == (2, {3})


def test_a_second_rollback_goes_one_further_back_and_never_to_what_was_taken_down(
    registry: Registry, made: dict[str, Any]
) -> None:
    crown(registry, made, 3)
    assert [back(registry, "b1"), back(registry, "b2")] == [2, 1]
    assert ledger.find_rolled_back(registry.read_ledger()) == {2, 3}
    with pytest.raises(ValueError, match="no version that may serve was champion before version 1"):
        back(registry, "b3")
    assert serving(registry) == 1


def test_a_rollback_may_name_any_champion_that_was_not_taken_down(registry: Registry, made: dict[str, Any]) -> None:
    crown(registry, made, 3)
    assert back(registry, "b1", to=1) == 1
    with pytest.raises(ValueError, match="before version 1"):
        back(registry, "b2")  # version 2 came later: nobody is sent there without being told
    with pytest.raises(ValueError, match="version 3 was rolled back, and what was rolled back never serves again"):
        back(registry, "b2", to=3)
    assert back(registry, "b2", to=2) == 2
    assert ledger.find_rolled_back(registry.read_ledger()) == {1, 3}


def test_what_cannot_be_rolled_back_says_why_and_changes_nothing(registry: Registry, made: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="serves: there is nothing to roll back"):
        back(registry, "b1")
    (first,) = crown(registry, made, 1)
    registry.register(first.run_id, decision="never promoted", description="", tags={})
    for to, why in ((7, "has no version 7"), (1, "serves already"), (2, "never champion, .* choose one of")):
        with pytest.raises(ValueError, match=why):
            back(registry, "b1", to=to)
    with pytest.raises(ValueError, match="version 2 was to be taken down, but version 1 serves"):
        back(registry, "b1", champion=2)
    assert (serving(registry), ledger.find_rolled_back(registry.read_ledger()), marks_of(registry, "b1")) == (
        1,
        set(),
        [],
    )


def test_what_was_rolled_back_is_never_promoted_again(registry: Registry, made: dict[str, Any]) -> None:
    _, second = crown(registry, made, 2)
    back(registry, "b1")
    for decision in ("again", "and again"):
        with pytest.raises(ValueError, match="version 2 was rolled back, and what was rolled back never serves again"):
            changes.promote(registry, second.run_id, decision=decision, verdict=BETTER, as_of=AS_OF, tags={})
    assert (
        changes.promote(registry, second.run_id, decision="p2", verdict=BETTER, as_of=AS_OF, tags={}) == second
    )  # that is done
    assert (serving(registry), len(registry.list_versions())) == (1, 2)
    assert registry.find_barred("r2", registry.read_ledger()) == 2
    assert registry.find_barred("r1", registry.read_ledger()) is None


def test_an_open_promotion_of_what_was_rolled_back_is_never_finished(
    registry: Registry, made: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    _, second = crown(registry, made, 2)
    back(registry, "b1")
    registry.append(intent("another machine's", second.run_id))
    assert changes.finish_open(registry) == []
    assert "would promote run" in caplog.text
    assert registry.read_ledger()[-1].mark == "superseded"
    assert serving(registry) == 1


def test_an_open_rollback_is_finished_once(registry: Registry, made: dict[str, Any]) -> None:
    crown(registry, made, 2)
    registry.append(Entry("rollback", "b1", AS_OF, version=1, champion=2))
    assert [version.number for version in changes.finish_open(registry)] == [1]
    assert changes.finish_open(registry) == []
    assert marks_of(registry, "b1") == [("rollback", 1, 2), ("rolled back", 1, 2)]
    assert (serving(registry), ledger.find_rolled_back(registry.read_ledger())) == (1, {2})


def test_who_asks_again_after_a_rollback_was_cut_off_does_not_go_two_back(
    registry: Registry, made: dict[str, Any]
) -> None:
    crown(registry, made, 3)
    registry.append(Entry("rollback", "b1", AS_OF, version=2, champion=3))
    registry.tracking.client.set_registered_model_alias(registry.model, CHAMPION, "2")
    with pytest.raises(ValueError, match="version 2 had been cut off and is finished now: that version serves"):
        back(registry, "b2")
    assert (serving(registry), ledger.find_rolled_back(registry.read_ledger())) == (2, {3})
    assert back(registry, "b2") == 1


def test_a_rollback_that_a_promotion_overtook_is_not_finished(registry: Registry, made: dict[str, Any]) -> None:
    crown(registry, made, 2)
    registry.append(Entry("rollback", "b1", AS_OF, version=1, champion=2))
    third = changes.promote(
        registry, registry.runs.log("r3", **made), decision="p3", verdict=BETTER, as_of=AS_OF, tags={}
    )
    assert changes.finish_open(registry) == []
    assert registry.find_champion() == third
    with pytest.raises(ValueError, match="b1 was overtaken by a later one: see what serves now"):
        back(registry, "b1")


def test_a_rollback_overtakes_a_promotion_that_had_not_moved_the_alias(
    registry: Registry, made: dict[str, Any]
) -> None:
    crown(registry, made, 2)
    registry.append(intent("p3", registry.runs.log("r3", **made)))
    assert back(registry, "b1") == 1
    assert changes.finish_open(registry) == []
    assert [line.mark for line in registry.read_ledger() if line.decision == "p3"] == ["intent", "superseded"]
    assert serving(registry) == 1


def test_a_rollback_finishes_a_promotion_that_had_moved_the_alias_and_takes_it_down(
    registry: Registry, made: dict[str, Any]
) -> None:
    crown(registry, made, 1)
    run_id = registry.runs.log("r2", **made)
    registry.append(intent("p2", run_id))
    second = registry.register(run_id, decision="p2", description="", tags={})
    registry.tracking.client.set_registered_model_alias(registry.model, CHAMPION, str(second.number))
    assert back(registry, "b1") == 1
    assert [line.mark for line in registry.read_ledger() if line.decision == "p2"] == ["intent", "alias moved", "done"]
    assert ledger.find_rolled_back(registry.read_ledger()) == {2}


def test_a_promotion_finishes_a_rollback_that_had_moved_the_alias(registry: Registry, made: dict[str, Any]) -> None:
    crown(registry, made, 2)
    registry.append(Entry("rollback", "b1", AS_OF, version=1, champion=2))
    registry.tracking.client.set_registered_model_alias(registry.model, CHAMPION, "1")
    changes.promote(registry, registry.runs.log("r3", **made), decision="p3", verdict=BETTER, as_of=AS_OF, tags={})
    assert marks_of(registry, "b1")[-1] == ("rolled back", 1, 2)
    assert (serving(registry), ledger.find_rolled_back(registry.read_ledger())) == (3, {2})


def test_the_predecessor_is_who_served_before_it_did_first(registry: Registry, made: dict[str, Any]) -> None:
    first, second, third = crown(registry, made, 3)
    assert [registry.find_predecessor(each) for each in (first, second, third)] == [None, first, second]
    back(registry, "b1")
    assert registry.find_predecessor(second) == first
    back(registry, "b2")
    assert registry.find_predecessor(third) == first


def test_after_a_rollback_the_looks_at_the_version_that_serves_again_go_on(
    registry: Registry, made: dict[str, Any]
) -> None:
    def judged(decision: str, champion: int, day: int) -> None:
        registry.append(Entry("verdict", decision, AS_OF + timedelta(days=day), champion=champion, outcome="HOLD"))

    _, second = crown(registry, made, 2)
    judged("a", 2, 1)
    assert looks(registry, 2) == (
        1,
        AS_OF + timedelta(days=1),
    )
    assert back(registry, "b1") == 1
    assert looks(registry, 1) == (
        1,
        None,
    )  # the look that took the alias from it
    judged("b", 1, 2)
    assert looks(registry, 1) == (
        2,
        AS_OF + timedelta(days=2),
    )
    assert ledger.count_looks(registry.read_ledger(), second.number) == 1
    assert ledger.count_looks(registry.read_ledger(), None) == 0


def looks(registry: Registry, champion: int | None) -> tuple[int, datetime | None]:
    """How many, and when the last was."""
    return ledger.count_looks(registry.read_ledger(), champion), ledger.find_last_look(registry.read_ledger(), champion)


def intent(decision: str, run_id: str) -> Entry:
    return Entry("intent", decision, AS_OF, run=run_id, outcome="PROMOTE", verdict=BETTER)


# --- canary


def up(registry: Registry, wanted: int | str, decision: str = "c1") -> int:
    return changes.put_up(registry, wanted, decision=decision, as_of=AS_OF, reasons=["To try it."]).number


def away(registry: Registry, decision: str = "e1", outcome: str | None = None) -> Entry | None:
    return changes.take_away(registry, decision=decision, as_of=AS_OF, reasons=["Enough."], outcome=outcome)


def challenging(registry: Registry) -> int | None:
    version = registry.find_challenger()
    return version and version.number


def held(registry: Registry, made: dict[str, Any], record: str = "held") -> Version:
    """A version that nobody promoted."""
    run_id = registry.runs.log(record, **{**made, "trials": []})
    return registry.register(run_id, decision=f"register-{record}", description="", tags={})


def test_a_canary_begins_and_ends_with_a_line_each(registry: Registry, made: dict[str, Any]) -> None:
    assert (registry.find_challenger(), changes.settle_challenger(registry), away(registry)) == (None, None, None)
    crown(registry, made, 1)
    second = held(registry, made)
    assert [up(registry, second.number), up(registry, second.number, "asked again")] == [2, 2]
    assert (serving(registry), challenging(registry)) == (1, 2)
    begun = changes.settle_challenger(registry)
    assert begun
    assert (begun.decision, begun.version, begun.champion) == ("c1", 2, 1)
    assert [away(registry), away(registry, "e2")] == [registry.read_ledger()[-1], None]
    assert (challenging(registry), changes.settle_challenger(registry)) == (None, None)
    marks = [(line.mark, line.decision, line.version, line.outcome) for line in registry.read_ledger()[-2:]]
    assert marks == [("canary", "c1", 2, None), ("canary over", "e1", 2, None)]
    assert up(registry, 2, "c2") == 2  # nobody judged it: it may be tried again


def test_a_canary_that_was_cut_off_goes_by_the_ledger(registry: Registry, made: dict[str, Any]) -> None:
    crown(registry, made, 1)
    second = held(registry, made)
    registry.append(Entry("canary", "c1", AS_OF, run=second.run_id, version=2, champion=1))
    assert challenging(registry) is None  # killed before the alias came
    assert [changes.settle_challenger(registry), challenging(registry)] == [registry.read_ledger()[-1], 2]
    assert up(registry, 2, "again") == challenging(registry) == 2
    registry.append(Entry("canary over", "e1", AS_OF, version=2, outcome="REJECT"))
    assert challenging(registry) == 2  # killed before the alias went
    assert (changes.settle_challenger(registry), challenging(registry)) == (None, None)
    assert [line.mark for line in registry.read_ledger()].count("canary") == 1


def test_an_alias_that_somebody_set_by_hand_is_no_canary(registry: Registry, made: dict[str, Any]) -> None:
    crown(registry, made, 1)
    held(registry, made)
    registry.tracking.client.set_registered_model_alias(registry.model, CHALLENGER, "2")
    assert (changes.settle_challenger(registry), challenging(registry)) == (None, None)


@pytest.mark.parametrize("moved", [False, True])
def test_an_alias_that_somebody_took_or_moved_goes_back_where_the_ledger_says(
    registry: Registry, made: dict[str, Any], moved: bool
) -> None:
    crown(registry, made, 1)
    held(registry, made)
    held(registry, made, "another")
    up(registry, 2)
    registry.tracking.client.delete_registered_model_alias(registry.model, CHALLENGER)
    if moved:
        registry.tracking.client.set_registered_model_alias(registry.model, CHALLENGER, "3")
    found = changes.settle_challenger(registry)
    assert found
    assert (found.version, challenging(registry)) == (2, 2)


def test_a_challenger_that_somebody_deleted_is_no_challenger(registry: Registry, made: dict[str, Any]) -> None:
    crown(registry, made, 1)
    held(registry, made)
    up(registry, 2)
    registry.tracking.client.delete_model_version(registry.model, "2")
    assert changes.settle_challenger(registry) is None
    ended = away(registry)
    assert ended
    assert ended.version == 2


def test_the_champions_own_model_may_not_challenge_it_under_another_number(
    registry: Registry, made: dict[str, Any]
) -> None:
    (first,) = crown(registry, made, 1)
    twin = registry.register(first.run_id, decision="under another number", description="", tags={})
    for wanted, named in ((twin.number, "version 2"), (first.run_id, f"run {first.run_id}")):
        with pytest.raises(ValueError, match=f"{named} holds the model of version 1, the champion: put another up"):
            up(registry, wanted)
    assert len(registry.list_versions()) == 2


def test_who_may_not_challenge_is_told_why(registry: Registry, made: dict[str, Any]) -> None:
    held(registry, made)
    with pytest.raises(ValueError, match="serves: there is nothing to challenge"):
        up(registry, 1)
    *_, third = crown(registry, made, 2)
    for wanted, why in ((7, "has no version 7"), ("7f", "there is no run '7f': name a version"), ("", "no run ''")):
        with pytest.raises(ValueError, match=why):
            up(registry, wanted)
    with pytest.raises(ValueError, match="version 3 is the champion"):
        up(registry, third.number)
    up(registry, 1)
    with pytest.raises(ValueError, match="version 1 is up already: take it away first"):
        up(registry, 2)
    away(registry)
    back(registry, "b1")
    with pytest.raises(ValueError, match=r"version 3 was rolled back, .* choose another"):
        up(registry, 3)
    assert challenging(registry) is None


def test_a_run_that_nobody_promoted_may_challenge_as_a_version_of_its_own(
    registry: Registry, made: dict[str, Any]
) -> None:
    crown(registry, made, 1)
    run_id = registry.runs.log("held", **{**made, "trials": []})
    assert [up(registry, run_id), up(registry, run_id)] == [2, 2] == [challenging(registry)] * 2
    away(registry, outcome="REJECT")
    with pytest.raises(ValueError, match="version 2 lost as a challenger"):
        up(registry, run_id, "c2")
    assert len(registry.list_versions()) == 2


def test_what_lost_as_a_challenger_is_never_put_up_or_promoted_again(registry: Registry, made: dict[str, Any]) -> None:
    crown(registry, made, 1)
    second = held(registry, made)
    up(registry, 2)
    away(registry, outcome="REJECT")
    why = "version 2 lost as a challenger, and what lost is never put up or promoted again"
    with pytest.raises(ValueError, match=why):
        up(registry, 2, "c2")
    for version in (None, 2):
        with pytest.raises(ValueError, match=why):
            changes.promote(
                registry, second.run_id, decision="p", verdict=BETTER, as_of=AS_OF, tags={}, version=version
            )
    twice = registry.register(second.run_id, decision="under another number", description="", tags={})
    with pytest.raises(ValueError, match=why):
        up(registry, twice.number, "c3")
    assert (
        serving(registry),
        ledger.find_rejected(registry.read_ledger()),
        ledger.find_barred(registry.read_ledger()),
        registry.find_barred("held", registry.read_ledger()),
    ) == (1, {2}, {2}, 2)


def test_a_challenger_that_won_is_promoted_as_the_version_that_it_is(registry: Registry, made: dict[str, Any]) -> None:
    crown(registry, made, 1)
    second = held(registry, made)
    up(registry, 2)
    told: dict[str, Any] = {"verdict": BETTER, "as_of": AS_OF + timedelta(days=9), "tags": {}, "version": 2}
    won = changes.promote(registry, second.run_id, decision="won", **told)
    assert [changes.promote(registry, second.run_id, decision="won", **told), registry.find_champion()] == [won, won]
    assert (won.number, won.as_of, won.decision) == (2, second.as_of, "register-held")  # made of what it was made of
    assert marks_of(registry, "won") == [("intent", 2, 1), ("alias moved", 2, 1), ("done", 2, 1)]
    assert ledger.count_looks(registry.read_ledger(), 1) == 1  # the one that took the alias
    assert ledger.find_answered(registry.read_ledger()) >= {"won"}
    assert back(registry, "b1") == 1


def test_an_open_promotion_of_a_challenger_is_finished_once(registry: Registry, made: dict[str, Any]) -> None:
    crown(registry, made, 1)
    second = held(registry, made)
    registry.append(replace(intent("won", second.run_id), version=2, champion=1))
    assert "won" not in ledger.find_answered(registry.read_ledger())
    registry.tracking.client.set_registered_model_alias(registry.model, CHAMPION, "2")
    assert [version.number for version in changes.finish_open(registry)] == [2]
    assert (changes.finish_open(registry), len(registry.list_versions())) == ([], 2)
