"""tasks.monitoring.policy: what makes a retrain, case by case, and that one cause asks once."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.monitoring import policy as work
from tasks.monitoring.obstacles import FIRST_REST, LONGEST_REST, Costs, Retrains, allot_trials, explain_rest
from tasks.monitoring.policy import Decision
from tasks.monitoring.signal import Signal
from tasks.params import Policy, RetrainKind

DAY = timedelta(days=1)
NOW = datetime(2013, 9, 1)
POLICY = Policy(signals=["performance"], windows=2, min_rows=100, cool_down=14 * DAY, budget=2)


def decide(
    signals: Sequence[Signal], *, as_of: datetime, policy: Policy, departure: str | None = None, **retrains: Any
) -> Decision:
    """By the champion, version 1."""
    return work.decide(signals, Retrains(**retrains), as_of=as_of, version=1, policy=policy, departure=departure)


def decide_first(*, as_of: datetime, policy: Policy, **retrains: Any) -> Decision:
    return work.decide_first(Retrains(**retrains), as_of=as_of, policy=policy)


def signals(*alarms: bool, rows: int = 1000, version: int = 1) -> list[Signal]:
    """One a week, the last one now."""
    ends = [NOW - 7 * DAY * back for back in reversed(range(len(alarms)))]
    return [
        Signal("performance", end - 7 * DAY, end, version, rows, alarm, "Loss.", value=0.5, low=0.4, high=0.6)
        for end, alarm in zip(ends, alarms, strict=True)
    ]


def moved(signal: Signal, by: timedelta) -> Signal:
    return replace(signal, window_begin=signal.window_begin + by, window_end=signal.window_end + by)


@pytest.mark.parametrize(
    ("found", "action", "said"),
    [
        ([], "wait", "nothing measured yet"),
        (signals(False, False), "wait", "no alarm"),
        (signals(False, True), "wait", "1 of the 2 windows"),
        (signals(True, False), "wait", "no alarm"),
        (signals(True, True), "retrain", "Loss."),
        (signals(False, True, True), "retrain", "Loss."),
        (signals(True, True, rows=99), "wait", "policy.min_rows is 100"),
        (signals(True, True, version=2), "wait", "nothing measured yet"),
    ],
)
def test_an_alarm_counts_when_it_lasts_and_has_the_rows(found: list[Signal], action: str, said: str) -> None:
    decision = decide(found, as_of=NOW, policy=POLICY)
    assert decision.action == action
    assert said in " ".join(decision.reasons)


@pytest.mark.parametrize(
    ("retrains", "action", "said"),
    [
        ([], "retrain", "Loss."),
        ([NOW - 13 * DAY], "wait", "cool_down"),
        ([NOW - 14 * DAY], "retrain", "Loss."),
        ([NOW - 20 * DAY, NOW - 25 * DAY], "wait", "policy.budget is 2"),
        ([NOW - 20 * DAY, NOW - 31 * DAY], "retrain", "Loss."),
        ([NOW + DAY], "retrain", "Loss."),
    ],
)
def test_a_search_waits_for_the_cool_down_and_the_budget(retrains: list[datetime], action: str, said: str) -> None:
    made = [*retrains, NOW - 8 * DAY]  # a refresh that did not help, so that a search is wanted
    decision = decide(signals(True, True), as_of=NOW, policy=POLICY, made=made, searched=retrains)
    assert (decision.kind, decision.action) == ("search", action)
    assert said in " ".join(decision.reasons)


def test_one_cause_asks_once() -> None:
    first = decide(signals(True, True), as_of=NOW, policy=POLICY)
    longer = [*signals(True, True), moved(signals(True)[0], 7 * DAY)]
    again = decide(longer, as_of=NOW + 7 * DAY, policy=POLICY, asked=[first.id])
    assert again.id == first.id
    assert again.action == "wait"
    assert "asked for already" in again.reasons[0]


def test_what_alarms_while_a_retrain_is_not_answered_joins_it() -> None:
    first = decide(signals(True, True), as_of=NOW, policy=POLICY)
    flickered = [*signals(True, True), moved(replace(signals(False)[0]), DAY), moved(signals(True)[0], 7 * DAY)]
    asked = {"asked": [first.id], "pending": [first.id]}
    once = POLICY.model_copy(update={"windows": 1})
    again = decide(flickered, as_of=NOW + 7 * DAY, policy=once, **asked)
    assert again.id != first.id
    assert again.action == "wait"
    assert f"The retrain of decision {first.id} is not answered yet" in again.reasons[0]
    assert decide(flickered, as_of=NOW + 7 * DAY, policy=once, asked=[first.id]).retrains


def test_what_a_version_did_that_was_just_taken_down_starts_nothing() -> None:
    found = decide(signals(True, True), as_of=NOW, policy=POLICY, departure="was taken down")
    assert found.action == "wait"
    assert "Version 1 was taken down just now" in found.reasons[0]


def test_an_alarm_that_outlasts_a_retrain_is_a_new_cause() -> None:
    first = decide(signals(True, True), as_of=NOW, policy=POLICY)
    later = NOW + 15 * DAY
    found = [*signals(True, True), *(moved(signals(True)[0], (15 - each) * DAY) for each in (7, 0))]
    again = decide(found, as_of=later, policy=POLICY, made=[NOW], asked=[first.id])
    assert again.action == "retrain"
    assert again.id != first.id


def test_windows_that_overlap_are_one() -> None:
    hourly = [moved(signals(True)[0], -timedelta(hours=hour)) for hour in range(24)]
    assert "1 of the 2 windows" in " ".join(decide(hourly, as_of=NOW, policy=POLICY).reasons)
    assert decide([*hourly, moved(hourly[0], -7 * DAY)], as_of=NOW, policy=POLICY).retrains


def test_any_kind_that_the_policy_names_may_ask() -> None:
    quality = [replace(each, kind="quality") for each in signals(True, True)]
    both = POLICY.model_copy(update={"signals": ["performance", "quality"]})
    assert not decide(quality, as_of=NOW, policy=POLICY).retrains
    assert decide(quality, as_of=NOW, policy=both).retrains


@settings(deadline=None, derandomize=True)
@given(st.permutations(range(6)), st.lists(st.booleans(), min_size=6, max_size=6))
def test_the_order_of_the_signals_does_not_matter(order: Sequence[int], alarms: list[bool]) -> None:
    found = signals(*alarms)
    mixed = [found[place] for place in order]
    one, other = (decide(each, as_of=NOW, policy=POLICY) for each in (found, mixed))
    assert one == other


@settings(deadline=None, derandomize=True)
@given(st.lists(st.booleans(), max_size=8))
def test_signals_after_now_are_not_known(alarms: list[bool]) -> None:
    found = signals(*alarms)
    later = [replace(moved(each, 400 * DAY), alarm=not each.alarm) for each in found]
    one, other = (decide(each, as_of=NOW, policy=POLICY) for each in (found, found + later))
    assert one == other


def test_windows_without_rows_are_no_quiet_windows() -> None:
    alarm, empty, again = signals(True, False, True)
    found = [alarm, replace(empty, rows=0), again]
    assert decide(found, as_of=NOW, policy=POLICY).action == "retrain"
    assert decide([alarm, empty, again], as_of=NOW, policy=POLICY).action == "wait"


UNMEASURED: dict[str, dict[str, Any]] = {
    "too few rows for the drift signal": {"kind": "drift", "value": None},
    "a history too short for a threshold": {"kind": "drift", "value": None, "rows": 5000},
    "a loss without an interval": {"kind": "performance", "low": None, "high": None},
    "rows without an outcome": {"kind": "performance", "value": None, "low": None, "high": None},
    "rows below policy.min_rows": {"kind": "performance", "rows": 99},
}


@pytest.mark.parametrize("name", UNMEASURED)
def test_a_window_that_has_rows_and_was_not_measured_is_no_quiet_window(name: str) -> None:
    changes = UNMEASURED[name]
    first, gap, second = (replace(signal, kind=changes["kind"]) for signal in signals(True, False, True))
    policy = POLICY.model_copy(update={"signals": [changes["kind"]]})
    missed = replace(gap, **changes)
    assert decide([first, gap, second], as_of=NOW, policy=policy).action == "wait"
    assert decide([first, missed, second], as_of=NOW, policy=policy).action == "retrain"
    before = decide([first, second], as_of=NOW, policy=policy)
    assert decide([first, missed, second], as_of=NOW, policy=policy).id == before.id


def test_a_newest_window_that_was_not_measured_says_why() -> None:
    newest = replace(signals(False)[0], kind="drift", value=None, message="Drift: 3 rows are too few.")
    policy = POLICY.model_copy(update={"signals": ["drift"]})
    (reason,) = decide([newest], as_of=NOW, policy=policy).reasons
    assert reason == "drift: the newest window is no evidence. Drift: 3 rows are too few."


# --- retrains that failed


def test_after_a_retrain_that_failed_the_same_alarms_ask_anew_without_cool_down_and_budget() -> None:
    first = decide(signals(True, True), as_of=NOW, policy=POLICY)
    unmade = [first.id, "another", "a third"]
    again = decide(signals(True, True), as_of=NOW, policy=POLICY, asked=[first.id], unmade=unmade)
    assert again.retrains
    assert again.id != first.id


def test_what_the_gate_would_refuse_or_has_just_failed_waits_and_is_asked_for_later_under_its_id() -> None:
    waits = decide(signals(True, True), as_of=NOW, policy=POLICY, refusal="Not before Monday.")
    assert (waits.action, waits.reasons[0]) == ("wait", "Not before Monday.")
    later = decide(signals(True, True), as_of=NOW, policy=POLICY)
    assert (later.action, later.id) == ("retrain", waits.id)


def test_the_rest_after_faults_doubles_up_to_a_week_and_then_ends() -> None:
    hour, rests = timedelta(hours=1), []
    assert explain_rest([], NOW) is None
    for count in range(1, 9):
        faults = [NOW - place * DAY for place in range(count)]
        rest = next(length * hour for length in range(1000) if explain_rest(faults, NOW + length * hour) is None)
        rests.append(rest)
    assert rests[0] == FIRST_REST
    assert rests == [min(FIRST_REST * 2**place, LONGEST_REST) for place in range(8)]
    assert explain_rest([NOW] * 1000, NOW + LONGEST_REST) is None
    assert "from 2013-09-01 06:00 UTC on" in str(explain_rest([NOW], NOW))


def test_retrains_that_always_fail_are_asked_for_a_bounded_number_of_times() -> None:
    """A year of hourly looks at an alarm that lasts, each retrain answered with a fault at once."""
    faults: list[tuple[str, datetime]] = []
    for hour in range(365 * 24):
        now = NOW + timedelta(hours=hour)
        refusal = explain_rest([moment for _, moment in faults], now)
        unmade = [decision for decision, _ in faults]
        found = decide(signals(True, True), as_of=NOW, policy=POLICY, unmade=unmade, refusal=refusal)
        if found.retrains:
            faults.append((found.id, now))
    assert len(faults) == len(set(faults))
    assert 52 <= len(faults) <= 5 + 365 / 7 + 1


# --- a first model


@pytest.mark.parametrize(
    ("given", "action", "reason"),
    [
        ({}, "retrain", "a first model is wanted"),
        ({"made": [NOW - DAY]}, "retrain", "a first model is wanted"),  # its back-off comes as a refusal
        ({"refusal": "The gate backs off."}, "wait", "The gate backs off."),
        ({"pending": ["x"]}, "wait", "The retrain of decision x is not answered yet"),
        ({"searched": [NOW - 20 * DAY, NOW - 25 * DAY]}, "wait", "policy.budget is 2"),
    ],
)
def test_where_no_version_serves_a_first_model_is_asked_for(given: dict[str, Any], action: str, reason: str) -> None:
    decision = decide_first(as_of=NOW, policy=POLICY, **given)
    assert decision.action == action
    assert reason in decision.reasons[0]


def test_a_first_model_is_asked_for_once_for_each_candidate_and_fault() -> None:
    first = decide_first(as_of=NOW, policy=POLICY)
    assert decide_first(as_of=NOW + DAY, policy=POLICY, asked=[first.id]).action == "wait"
    made = decide_first(as_of=NOW + DAY, policy=POLICY, asked=[first.id], made=[NOW])
    failed = decide_first(as_of=NOW + DAY, policy=POLICY, asked=[first.id], unmade=[first.id])
    assert made.retrains
    assert failed.retrains
    assert len({first.id, made.id, failed.id}) == 3


# --- which kind, for freshness and for money -------------------------------------------------------------------------

FRESH = POLICY.model_copy(update={"signals": ["freshness", "performance"]})
RESTED = [NOW - 20 * DAY]  # the search that made the champion


def freshness(*, alarm: bool, until: datetime | None = NOW - 4 * DAY) -> list[Signal]:
    """Age costs 0.01 a row of 7,000 in a week."""
    detail = {"evidence_until": until and until.isoformat(), "rows_a_week": 7000.0}
    return [Signal("freshness", NOW - 7 * DAY, NOW, 1, 9000, alarm, "Fresh.", 0.01, 0.0, detail=detail)]


def test_a_lasting_alarm_asks_for_a_refresh_and_for_a_search_when_that_did_not_help() -> None:
    alarms, searched = signals(True, True), [NOW - 30 * DAY]
    first = decide(alarms, as_of=NOW, policy=POLICY, made=searched, searched=searched)
    assert (first.name, first.asked_by) == ("refresh", ("performance",))
    later = [moved(signal, 14 * DAY) for signal in alarms]
    made = [*searched, NOW]
    again = decide([*alarms, *later], as_of=NOW + 14 * DAY, policy=POLICY, made=made, searched=searched)
    assert again.name == "search"


def test_weekly_refreshes_hold_no_search_back_that_alarms_ask_for() -> None:
    refreshes, searched = [NOW - 7 * DAY * week for week in range(1, 6)], [NOW - 40 * DAY]
    policy = POLICY.model_copy(update={"search_every": None})
    decision = decide(signals(True, True), as_of=NOW, policy=policy, made=[*searched, *refreshes], searched=searched)
    assert decision.name == "search"


def test_drift_alone_asks_for_no_search() -> None:
    drift = [replace(signal, kind="drift") for signal in signals(True, True)]
    policy = POLICY.model_copy(update={"signals": ["drift"], "budget": 9})
    assert decide(drift, as_of=NOW, policy=policy, made=[NOW - 15 * DAY]).name == "refresh"


def test_a_search_comes_when_the_last_is_long_ago() -> None:
    policy = FRESH.model_copy(update={"search_every": 90 * DAY})
    for days, name in ((89, "wait"), (90, "search")):
        searched = [NOW - days * DAY]
        made = [*searched, NOW - 8 * DAY]
        assert decide(freshness(alarm=False), as_of=NOW, policy=policy, made=made, searched=searched).name == name
    never, searched = policy.model_copy(update={"search_every": None}), [NOW - 900 * DAY]
    assert decide(freshness(alarm=False), as_of=NOW, policy=never, made=searched, searched=searched).name == "wait"


def test_a_search_that_is_due_lets_one_refresh_go_first() -> None:
    policy = FRESH.model_copy(update={"search_every": 90 * DAY})
    searched, seen = [NOW - 97 * DAY], freshness(alarm=True)
    due = searched[0] + 90 * DAY
    for refreshed, name in ((due - DAY, "refresh"), (due, "search")):
        made = [*searched, refreshed]
        assert decide(seen, as_of=NOW, policy=policy, made=made, searched=searched).name == name
    held_back = policy.model_copy(update={"refresh_every": 30 * DAY})
    assert decide(seen, as_of=NOW, policy=held_back, made=[*searched, due - DAY], searched=searched).name == "search"


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        ([], "wait"),  # nothing measured
        (freshness(alarm=False), "wait"),
        (freshness(alarm=True), "refresh"),
        (freshness(alarm=False, until=NOW - 15 * DAY), "refresh"),  # nobody has looked for two weeks
        (freshness(alarm=False, until=None), "refresh"),  # nobody has ever looked
    ],
)
def test_a_refresh_is_asked_for_where_age_costs_or_where_that_is_not_known(seen: list[Signal], name: str) -> None:
    decision = decide(seen, as_of=NOW, policy=FRESH, made=RESTED, searched=RESTED)
    assert decision.name == name
    assert decision.asked_by == (("freshness",) if name == "refresh" else ())


def test_refreshes_are_policy_refresh_every_apart_and_have_no_cool_down() -> None:
    for days, name in ((6, "wait"), (7, "refresh")):
        decision = decide(freshness(alarm=True), as_of=NOW, policy=FRESH, made=[NOW - days * DAY])
        assert decision.name == name
    assert "policy.refresh_every (7d)" in decide(freshness(alarm=True), as_of=NOW, policy=FRESH, made=[NOW]).reasons[0]


def test_a_contender_is_looked_at_as_often_as_a_refresh_may_be_asked_for() -> None:
    for days, name in ((6, "wait"), (7, "contender")):
        decision = decide([], as_of=NOW, policy=FRESH, made=RESTED, searched=RESTED, raced=NOW - days * DAY)
        assert decision.name == name
    both = decide(freshness(alarm=True), as_of=NOW, policy=FRESH, made=RESTED, searched=RESTED, raced=NOW - 7 * DAY)
    assert both.name == "refresh"  # the contender's turn is next


def test_an_alarm_that_must_wait_does_not_keep_a_refresh_for_age_back() -> None:
    seen, made = [*signals(True, True), *freshness(alarm=True)], [NOW - 8 * DAY]
    decision = decide(seen, as_of=NOW, policy=FRESH, made=made, searched=made)
    assert (decision.name, decision.asked_by) == ("refresh", ("freshness",))


def test_a_price_asks_whether_the_loss_saved_is_worth_the_cpu() -> None:
    """A week saves 0.07 units of loss in 1,000 predictions; an hour of CPU costs 0.05."""
    for price, name in ((0.71, "wait"), (0.72, "refresh")):
        policy = FRESH.model_copy(update={"price": price, "cpu_price": 0.05})
        costs = Costs({"refresh": 3600.0})
        decision = decide(freshness(alarm=True), as_of=NOW, policy=policy, made=RESTED, searched=RESTED, costs=costs)
        assert decision.name == name
        assert ("policy.price" in decision.reasons[0]) == (name == "wait")


@pytest.mark.parametrize("kind", ["refresh", "search"])
def test_what_would_exceed_the_months_money_is_not_started_and_says_so(kind: str) -> None:
    """Money for 7,200 s of CPU, of which one retrain takes 3,600."""
    policy = FRESH.model_copy(update={"money": 1.0, "cpu_price": 0.5, "search_every": 90 * DAY})
    made = [NOW - (90 if kind == "search" else 20) * DAY]
    last: dict[RetrainKind, float] = {"refresh": 3600.0, "search": 3600.0}
    for spent, name in ((3600.0, kind), (3601.0, "wait")):
        seen = freshness(alarm=kind == "refresh")
        costs = Costs(last, spent)
        decision = decide(seen, as_of=NOW, policy=policy, made=made, searched=made, costs=costs)
        assert decision.name == name
    assert "policy.money (1 in 30 days)" in decision.reasons[0]
    assert decide_first(as_of=NOW, policy=policy, costs=Costs(spent=7300.0)).action == "wait"


@pytest.mark.parametrize(
    ("costs", "seconds"),
    [
        (Costs(), 3600),  # nobody knows what a search takes
        (Costs(spent=7000.0), 100),
        (Costs({"search": 3600.0}, 200.0), 3500),
        (Costs({"search": 3400.0}, 200.0), None),  # two more fit
    ],
)
def test_trials_get_half_of_the_cpu_that_the_months_money_leaves(costs: Costs, seconds: int | None) -> None:
    policy = FRESH.model_copy(update={"money": 1.0, "cpu_price": 0.5})
    assert allot_trials(policy, costs) == (seconds and timedelta(seconds=seconds))
    assert allot_trials(FRESH, costs) is None
