"""Slices of any size: a surely worse one is seen, and the luck of many small ones holds up no sound candidate."""

import math

import numpy as np
import pytest

from tasks.promotion.gate import judge_contest
from tasks.promotion.slices import measure_parts
from tests.tasks.promotion.holdouts import GATE, NOMINAL, at_most
from tests.tasks.promotion.sliced import (
    DAYS,
    ROWS,
    SKILL,
    SMALL,
    make_contest,
    make_gains,
    make_rows,
    promoted_with_a_worse_slice,
)


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
