"""Made holdouts with slices, and how often the gate promotes a candidate that is worse in one of them.

Rows have the spread of real ones: two fits of one recipe differ by 0.25 in the loss of a row, with a heavy tail, and
by a little more on some days.
"""

import math

import numpy as np

from tasks.promotion.contest import Contest, compare_losses
from tasks.promotion.gate import judge_contest
from tasks.promotion.slices import Slices
from tests.tasks.promotion.holdouts import BEGIN, DAY, GATE, Floats

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
