"""monitoring.signals.performance: it alarms no oftener than stated, hears labels that turn, and names its setting."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from tasks.monitoring.excess import Excess, Expectation, compare_excess, measure_excess
from tasks.params import Params
from tasks.promotion.contest import row_losses
from tests.tasks.monitoring.windows import (
    HELD,
    PER_DAY,
    STATED,
    WEEK,
    WORLDS,
    Floats,
    count_alarms,
    live,
    look,
    settings,
    share_heard,
    to_times,
    watch,
)

# --- its rates


def test_nothing_changed_alarms_no_oftener_than_stated_where_days_go_together() -> None:
    assert count_alarms(WORLDS["AR 0.4"], 300) <= stats.binom.ppf(0.999, 300, STATED)


def test_a_tenth_of_the_labels_turned_is_heard_within_two_windows() -> None:
    assert share_heard(WORLDS["AR 0.2"], 60) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_the_rates_of_made_worlds_are_as_the_page_tells(name: str) -> None:
    runs = 2000
    false, heard = count_alarms(WORLDS[name], runs) / runs, share_heard(WORLDS[name], 400)
    print(f"{name}: alarms of {false:.2%} of the windows where nothing changed, hears {heard:.1%}")
    assert false <= STATED + 3 * math.sqrt(STATED * (1 - STATED) / runs)
    assert heard >= 0.8


# --- what it is held against


def test_a_week_of_hard_rows_is_no_alarm_and_the_message_tells_why() -> None:
    """The loss is far above that at promotion, and the scores said so."""
    p, rng = settings(), np.random.default_rng(0)
    day, scores, label = WORLDS["independent"].draw(rng, HELD)
    champion = watch(p, day, scores, label)
    hard = rng.uniform(0.35, 0.65, WEEK * PER_DAY)
    week = HELD + np.repeat(np.arange(WEEK), PER_DAY).astype(float)
    signal = look(champion, week, hard, (rng.random(len(hard)) < hard).astype(float))
    assert signal.value is not None
    assert signal.value > signal.detail["at_promotion"] + 0.1
    assert not signal.alarm
    assert signal.reference == pytest.approx(signal.detail["expected"] + signal.detail["excess_at_promotion"])
    assert f"the model expected {signal.detail['expected']:.4f}" in signal.message
    assert f"{signal.reference:.4f} is usual for such rows" in signal.message
    assert "monitor.tolerance (0% of its skill" in signal.message


def test_the_tolerance_is_a_share_of_the_skill_and_quiets_what_it_covers() -> None:
    loud = next(live(WORLDS["independent"], settings(), 1, turned=0.3))
    assert loud.alarm
    assert loud.low is not None
    assert loud.reference is not None
    skill, above = loud.detail["skill"], loud.low - loud.reference
    assert f"surely higher by {above:.4f} ({above / skill:.0%} of its skill)" in loud.message
    for share, alarm in ((above / skill * 0.99, True), (above / skill * 1.01, False)):
        signal = next(live(WORLDS["independent"], settings(**{"monitor.tolerance": share}), 1, turned=0.3))
        assert (signal.alarm, signal.low) == (alarm, loud.low)
        assert f"monitor.tolerance ({share:.0%}" in signal.message


def test_the_skill_is_the_best_constants_loss_less_the_models() -> None:
    p, rng = settings(), np.random.default_rng(0)
    day, scores, label = WORLDS["independent"].draw(rng, HELD)
    of = watch(p, day, scores, label).at_promotion
    constant = row_losses(label, np.full(len(label), label.mean()), metric="log_loss").mean()
    assert of.skill == pytest.approx(constant - row_losses(label, scores, metric="log_loss").mean())
    assert watch(p, day, 1 - scores, label).at_promotion.skill == 0


@pytest.mark.parametrize(("days", "told"), [(3, "monitor.window has 3: lengthen it, or shorten gate.block"), (7, "")])
def test_too_few_days_have_no_interval_and_the_message_names_the_way_out(days: int, told: str) -> None:
    p = settings()
    day, scores, label = WORLDS["independent"].draw(np.random.default_rng(0), HELD + WEEK)
    held, inside = day < HELD, (day >= HELD) & (day < HELD + days)
    signal = look(watch(p, day[held], scores[held], label[held]), day[inside], scores[inside], label[inside])
    assert signal.is_measured is (days == 7)
    assert told in signal.message
    short = look(watch(p, day[day < 3], scores[day < 3], label[day < 3]), day[inside], scores[inside], label[inside])
    assert not short.is_measured
    assert ("split.holdout has 3" in short.message) is (days == 7)


# --- numbers


def draw_numbers(rng: np.random.Generator, days: int, *, near: float) -> tuple[Floats, Floats, Floats]:
    """Days of scores and labels: far ones (score 10, deviation 3) and near ones (score 1, deviation 0.5)."""
    day = np.repeat(np.arange(days), PER_DAY).astype(float)
    is_near = rng.random(len(day)) < near
    scores = np.where(is_near, 1.0, 10.0) + rng.normal(0, 0.3, len(day))
    return day, scores, scores + rng.normal(size=len(day)) * np.where(is_near, 0.5, 3.0)


def test_a_number_is_expected_to_miss_by_what_such_scores_missed_on_the_holdout() -> None:
    """More far rows are a harder week, not a worse model; a bias of one deviation is worse."""
    p, rng = settings("regression", **{"gate.metric": "rmse"}), np.random.default_rng(0)
    champion = watch(p, *draw_numbers(rng, HELD, near=0.7))
    assert champion.at_promotion.excess.value == pytest.approx(0, abs=1e-9)
    day, scores, label = draw_numbers(rng, WEEK, near=0.2)
    harder, worse = look(champion, day + HELD, scores, label), look(champion, day + HELD, scores, label + 2)
    assert harder.value is not None
    assert harder.reference is not None
    assert harder.value > 1.4 * champion.at_promotion.excess.loss
    assert harder.reference == pytest.approx(harder.value, rel=0.05)
    assert (harder.alarm, worse.alarm) == (False, True)
    assert "RMSE" in worse.message.upper()


@pytest.mark.parametrize("scores", [np.ones(200), np.array([1.0, 2.0] * 100), np.repeat([1.0, 2.0, 9.0], [150, 49, 1])])
def test_equal_scores_share_a_group_of_their_own_error(scores: Floats) -> None:
    losses = scores**2
    expected = Expectation.fit(scores, losses, metric="rmse").expect(scores)
    assert expected.mean() == pytest.approx(losses.mean())


# --- the interval


def test_the_low_end_lies_above_the_truth_no_oftener_than_stated() -> None:
    """Excess of so many days each, drawn around two known levels."""
    p, rng, runs, missed = settings(), np.random.default_rng(0), 1500, 0
    for _ in range(runs):
        ends = [draw_excess(p, rng, days, level) for days, level in ((HELD, 0.0), (WEEK, 0.1))]
        change = compare_excess(ends[1], ends[0], level=p.gate.level)
        assert change is not None
        assert change.low < change.loss < change.high
        missed += change.surely_higher_by > 0.1
    assert 0 < missed <= stats.binom.ppf(0.999, runs, STATED)


def draw_excess(p: Params, rng: np.random.Generator, days: int, level: float) -> Excess:
    day = np.arange(days).astype(float)
    expected = rng.normal(0.5, 0.1, days)
    return measure_excess(expected + level + rng.normal(0, 0.08, days), expected, to_times(day), p.gate)


def test_a_large_change_is_heard_though_it_makes_four_days_differ_much() -> None:
    p, rng = settings(), np.random.default_rng(0)
    before = draw_excess(p, rng, 14, 0.0)
    uneven = np.array([0.2, 0.4, 1.6, 0.6])
    now = measure_excess(0.5 + uneven, np.full(4, 0.5), to_times(np.arange(4.0)), p.gate)
    change = compare_excess(now, before, level=0.95)
    assert change
    assert change.surely_higher_by > 0.3


def test_without_an_interval_nothing_is_compared() -> None:
    whole, part = Excess(0.5, 0.4, np.tile([0.01, -0.01], 14)), Excess(0.5, 0.4, np.array([0.01, 0.0, -0.01]))
    assert compare_excess(whole, whole, level=0.95)
    assert compare_excess(whole, part, level=0.95) is None
    assert compare_excess(part, whole, level=0.95) is None


def test_for_rmse_the_interval_is_of_the_root() -> None:
    """In other units all figures are in those units."""
    p, rng = settings("regression", **{"gate.metric": "rmse"}), np.random.default_rng(0)
    times, losses, expected = to_times(np.repeat(np.arange(7.0), 20)), rng.exponential(4, 140), np.full(140, 4.0)
    one, hundred = (measure_excess(losses * by, expected * by, times, p.gate) for by in (1.0, 1e4))
    ends = [compare_excess(excess, excess, level=0.95) for excess in (one, hundred)]
    assert (hundred.loss, hundred.expected) == (pytest.approx(100 * one.loss), pytest.approx(200))
    assert ends[0]
    assert ends[1]
    assert (ends[1].low, ends[1].high) == (pytest.approx(100 * ends[0].low), pytest.approx(100 * ends[0].high))


def test_days_that_do_not_differ_are_compared_too() -> None:
    """Without losses at all, say."""
    still = Excess(0.0, 0.0, np.zeros(7))
    change = compare_excess(still, still, level=0.95)
    assert change
    assert (change.low, change.high) == (0, 0)


def test_a_signal_of_performance_is_journalled_with_plain_numbers() -> None:
    signal = next(live(WORLDS["independent"], settings(), 0))
    assert all(isinstance(value, float) for value in signal.detail.values())
    assert isinstance(replace(signal).alarm, bool)
    assert pa.array([signal.value, signal.low, signal.high, signal.reference]).null_count == 0
