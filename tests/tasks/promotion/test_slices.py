"""Slices of any size: a surely worse one is seen, and the luck of many small ones holds up no sound candidate.

Rows have the spread of real ones: two fits of one recipe differ by 0.25 in the loss of a row, with a heavy tail, and
by a little more on some days.
"""

import math

import numpy as np
import pytest

from tasks.promotion.contest import Contest, compare_losses
from tasks.promotion.gate import judge_contest
from tasks.promotion.slices import Slices, measure_parts
from tests.tasks.promotion.holdouts import BEGIN, DAY, GATE, NOMINAL, Floats, at_most

SKILL = 0.07
DAYS, ROWS = 28, 400
SPREAD = 0.25  # of a row's gain
SMALL = 300  # rows


def make_gains(rng: np.random.Generator, day: Floats) -> Floats:
    """Of equals, a row."""
    days = 0.02 * rng.standard_normal(DAYS)
    return np.asarray(SPREAD * rng.standard_t(3, len(day)) / math.sqrt(3) + days[day.astype(int)], np.float64)


def make_contest(gains: Floats, day: Floats) -> Contest:
    least = np.maximum(0, -gains)
    times = BEGIN + day.astype(int) * DAY
    constant = np.full(len(day), (gains + least).mean() + SKILL)
    return compare_losses(least, gains + least, times=times, gate=GATE, constant=constant)


def make_rows(rng: np.random.Generator, small: int) -> tuple[Floats, Slices]:
    """The day of each row, and a slice of so many small values beside the rest."""
    day = np.repeat(np.arange(DAYS), ROWS).astype(np.float64)
    value = np.full(len(day), small)
    value[rng.choice(len(day), small * SMALL, replace=False)] = np.repeat(np.arange(small), SMALL)
    return day, {"store": value}


def share_held_up(trials: int, small: int) -> float:
    rng, held = np.random.default_rng(1), 0
    for _ in range(trials):
        day, slices = make_rows(rng, small)
        contest = make_contest(make_gains(rng, day) + 0.5 * SKILL, day)
        held += not judge_contest(contest, gate=GATE, slices=slices).promotes
    return held / trials


@pytest.mark.parametrize("trials", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_thirty_small_slices_seldom_hold_up_a_candidate_that_is_better_everywhere(trials: int) -> None:
    assert share_held_up(trials, 30) <= 0.01


@pytest.mark.parametrize("trials", [300, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("small", [1, 30])
def test_equals_are_found_surely_worse_in_any_slice_at_most_at_the_nominal_rate(small: int, trials: int) -> None:
    rng, worse = np.random.default_rng(2), 0
    for _ in range(trials):
        day, slices = make_rows(rng, small)
        parts = measure_parts(make_contest(make_gains(rng, day), day), slices, tail=NOMINAL)
        worse += any(part.high < 0 for part in parts)
    assert worse <= at_most(trials)


def promoted_with_a_worse_slice(trials: int, *, gain: float, rows: int, loss: float) -> float:
    """A candidate that gains so much in the other rows, and loses so much of skill in a slice of so many rows."""
    rng, promoted = np.random.default_rng(3), 0
    for _ in range(trials):
        day, _ = make_rows(rng, 1)
        inside = np.zeros(len(day), bool)
        inside[rng.choice(len(day), rows, replace=False)] = True
        gains = make_gains(rng, day) + np.where(inside, -loss, gain) * SKILL
        promoted += judge_contest(make_contest(gains, day), gate=GATE, slices={"store": inside}).promotes
    return promoted / trials


def test_a_candidate_that_is_worse_in_one_slice_of_300_rows_and_elsewhere_equal_is_not_promoted() -> None:
    assert promoted_with_a_worse_slice(400, gain=0.0, rows=SMALL, loss=0.25) <= 0.025 + 3 * math.sqrt(0.025 / 400)


def test_a_worse_slice_of_rows_enough_stops_a_candidate_that_is_better_elsewhere() -> None:
    assert promoted_with_a_worse_slice(100, gain=0.2, rows=SMALL, loss=1.0) <= 0.05
    assert promoted_with_a_worse_slice(100, gain=0.2, rows=4000, loss=0.25) <= 0.05


def test_a_slice_of_rows_of_one_day_is_not_judged_and_one_of_two_days_is() -> None:
    day = np.repeat(np.arange(DAYS), ROWS).astype(np.float64)
    contest = make_contest(make_gains(np.random.default_rng(4), day), day)
    parts = measure_parts(contest, {"when": np.where(day == 3, "one", np.where(day < 2, "two", "rest"))}, tail=NOMINAL)
    assert {part.value: part.blocks for part in parts} == {"rest": DAYS - 3, "two": 2}
    assert next(part for part in parts if part.value == "two").high > 0


def test_more_slices_make_each_interval_wider() -> None:
    rng = np.random.default_rng(5)
    day, slices = make_rows(rng, 10)
    contest = make_contest(make_gains(rng, day), day)
    first, *_ = measure_parts(contest, slices, tail=NOMINAL)
    again, *_ = measure_parts(contest, {**slices, "half": day % 2}, tail=NOMINAL)
    assert again.gain == first.gain
    assert again.high > first.high
