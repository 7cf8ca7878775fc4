"""promotion.ledger: what the entries say, without MLflow."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from tasks.promotion import ledger
from tasks.promotion.ledger import Entry

AS_OF = datetime(2013, 7, 1)


def verdict(decision: str, day: int, *, champion: int | None = None, outcome: str = "HOLD", look: bool = True) -> Entry:
    as_of = AS_OF + timedelta(days=day)
    return Entry("verdict", decision, as_of, champion=champion, outcome=outcome, counts_as_look=look)


def looks(entries: list[Entry], champion: int | None) -> tuple[int, datetime | None]:
    """How many, and when the last was."""
    return ledger.count_looks(entries, champion), ledger.find_last_look(entries, champion)


def test_looks_count_since_the_version_first_became_champion() -> None:
    entries: list[Entry] = []
    assert looks(entries, None) == (0, None)
    entries += [verdict("a", 1, champion=1), Entry("alias moved", "b", AS_OF, version=1)]
    assert looks(entries, 1) == (0, None)
    entries += [verdict("c", 2, champion=1, outcome="REJECT"), verdict("d", 3, champion=1)]
    entries.append(verdict("e", 4, champion=1, look=False))  # during a back-off nobody looked
    assert looks(entries, 1) == (2, AS_OF + timedelta(days=3))
    assert ledger.count_looks(entries, 2) == 0
    entries.append(Entry("rolled back", "f", AS_OF, version=1))
    assert ledger.count_looks(entries, 1) == 2


def test_looks_at_first_models_count_their_refusals_since_there_last_was_a_champion() -> None:
    entries = [verdict("a", 1), verdict("b", 2), verdict("c", 3, look=False)]
    assert looks(entries, None) == (2, AS_OF + timedelta(days=2))
    entries += [Entry("alias moved", "d", AS_OF, version=1), verdict("e", 4, champion=1)]
    assert looks(entries, None) == (0, None)
    entries.append(verdict("f", 5))  # somebody took the alias off
    assert looks(entries, None) == (1, AS_OF + timedelta(days=5))
    assert ledger.count_looks(entries, 1) == 1


def test_a_second_look_at_the_same_first_model_is_no_further_look() -> None:
    """With gate.backoff: 0d it is judged by the bound that it had the first time, and another by a wider one."""
    entries = [replace(verdict("a", 1), run="run of a"), replace(verdict("b", 1), run="run of a")]
    assert ledger.count_looks(entries, None, again="run of a") == 0
    assert ledger.count_looks(entries, None, again="run of b") == 2
    assert ledger.count_looks(entries, None) == 2


def made(decision: str, day: int, *, kind: str = "search", cpu: float = 0.0, run: str | None = None) -> Entry:
    figures = {"figures": {"kind": kind}}
    return Entry("verdict", decision, AS_OF + timedelta(days=day), run=run or decision, cpu=cpu, verdict=figures)


def test_what_retrains_cost_is_summed_over_event_time_and_failures_count() -> None:
    fault = Entry("verdict", "b", AS_OF + timedelta(days=2), counts_as_look=False, failed=True, cpu=7.0)
    intent = Entry("intent", "c", AS_OF + timedelta(days=3), run="c", cpu=30.0)
    entries = [made("a", 1, cpu=100.0), fault, intent, intent.next_mark("done", 1), made("d", 5, cpu=1000.0)]
    assert ledger.sum_cpu(entries, AS_OF, AS_OF + timedelta(days=4)) == 137.0
    assert ledger.sum_cpu(entries, AS_OF + timedelta(days=1), AS_OF + timedelta(days=5)) == 1037.0


def test_what_a_retrain_cost_is_shown_on_its_entry_in_mlflow() -> None:
    entry = Entry("verdict", "a", AS_OF, run="a", cpu=12.34, verdict={"figures": {"kind": "refresh", "cost": 0.00017}})
    shown = ledger.to_tags(entry)
    names = ("evergreen.kind", "evergreen.cpu_s", "evergreen.cost")
    assert [shown[name] for name in names] == ["refresh", "12.3", "0.00017"]
    assert not {*names} & ledger.to_tags(Entry("rollback", "b", AS_OF)).keys()


def test_the_last_cost_is_of_the_kind_and_not_of_a_candidate_that_is_judged_again() -> None:
    old = Entry("verdict", "old", AS_OF, run="old")  # of before costs were known: a search
    entries = [old, made("a", 1, cpu=100.0), made("b", 2, kind="refresh", cpu=9.0), made("c", 3, cpu=2.0, run="a")]
    assert ledger.find_last_cost(entries, "search") == 100.0
    assert ledger.find_last_cost(entries, "refresh") == 9.0
    assert ledger.find_last_cost([old], "search") is None


def test_retrains_are_listed_by_kind() -> None:
    old, refresh = Entry("verdict", "old", AS_OF, run="old"), made("b", 2, kind="refresh")
    challenger = Entry("intent", "c", AS_OF + timedelta(days=3), run="old", version=1)  # it was made before
    entries = [old, refresh, challenger]
    assert ledger.find_retrains(entries) == [old.as_of, refresh.as_of]
    assert ledger.find_retrains(entries, "search") == [old.as_of]
    assert ledger.find_retrains(entries, "refresh") == [refresh.as_of]


def test_an_entry_of_before_costs_were_known_reads_as_a_search_of_no_cost() -> None:
    entry = Entry("verdict", "old", AS_OF, run="old", made_at=AS_OF)
    tags = ledger.to_tags(entry)
    name = next(name for name in tags if name.startswith("evergreen.entry."))
    raw = json.loads(tags[name])
    del raw["cpu"]
    read = ledger.from_tags({**tags, name: json.dumps(raw)}, model="made")
    assert (read.cpu, read.kind) == (0.0, "search")


def race(decision: str, recipe: str, outcome: str = "HOLD", **changes: Any) -> Entry:
    figures = ledger.to_race_figures(recipe, "the champion's", AS_OF)
    entry = Entry("verdict", decision, AS_OF, run=f"run of {decision}", outcome=outcome, verdict={"figures": figures})
    return replace(entry, **changes)


def test_the_contender_is_the_recipe_that_the_newest_search_left_open() -> None:
    assert ledger.find_contender([]) is None
    entries = [race("a", "first"), verdict("b", 1)]
    assert ledger.find_contender(entries) == ledger.Contender("first", "the champion's", AS_OF, "run of a", AS_OF)
    refresh = Entry("intent", "c", AS_OF, run="another", verdict={"figures": {"kind": "refresh"}})
    entries += [refresh, refresh.next_mark("alias moved", 2), Entry("rolled back", "d", AS_OF, champion=2, version=1)]
    assert ledger.find_contender(entries) == ledger.Contender("first", "the champion's", AS_OF, "run of a", AS_OF)
    entries.append(race("e", "second"))
    assert ledger.find_contender(entries) == ledger.Contender("second", "the champion's", AS_OF, "run of e", AS_OF)


def test_a_recipe_that_won_or_lost_is_no_contender_and_the_one_before_it_does_not_come_back() -> None:
    for end in (race("b", "second", "REJECT"), race("b", "second", "PROMOTE", mark="intent")):
        assert ledger.find_contender([race("a", "first"), end]) is None


def test_a_look_at_a_contender_that_did_not_win_is_no_retrain_of_what_serves() -> None:
    look = replace(made("a", 1, kind="contender"), outcome="HOLD")
    won = replace(made("b", 2, kind="contender"), mark="intent")
    assert ledger.find_retrains([look, won]) == [won.as_of]
    assert ledger.find_retrains([look, won], "contender") == [look.as_of, won.as_of]
    assert ledger.find_retrains([look, won], "search") == []
