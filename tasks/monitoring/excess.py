"""excess: how far a model's loss lies above the loss that the model itself expected of the same rows. Pure.

A week of hard rows has a high loss, and the model knows it: its scores say so. What it did not expect is left, which
varies less than the loss by half or more (a control variate; README.md has the figures). Whether a window's excess is
surely higher than that of the holdout tells whether something has changed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.params import Gate
from tasks.promotion import sequence
from tasks.promotion.contest import CLIP, Metric
from tasks.promotion.interval import assign_blocks, student_quantile
from tasks.training.model import Floats

LEAST_BLOCKS = 4  # that an interval needs
GROUPS = 10  # of scores, each with an expected squared error of its own
LEAST_GROUP_ROWS = 50
LEAST_FREEDOM = 2.0  # of Student's t
OWN_SHARE = 0.9  # of the error rate is for the interval of both
AS_BEFORE_SHARE = 0.04  # is for that of days as they were on the holdout; skewness takes the rest


@dataclass(frozen=True)
class Expectation:
    """The loss that a model expects of a row, by its score.

    A probability tells it: its entropy. A number tells no spread, so the rows of the holdout with such scores do: the
    mean squared error of each group, of as many rows each.

    Args:
        edges: of the groups; nothing for classes.
        errors: the mean squared error of each group.
    """

    edges: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()

    @staticmethod
    def fit(scores: Floats, losses: Floats, *, metric: Metric) -> "Expectation":
        """From the scores and row losses (n) of rows that the model has not seen."""
        if metric == "log_loss":
            return Expectation()
        groups = min(GROUPS, max(len(scores) // LEAST_GROUP_ROWS, 1))
        edges = np.unique(np.quantile(scores, np.linspace(0, 1, groups + 1)[1:-1]))
        place = np.searchsorted(edges, scores, side="right")
        rows = np.bincount(place, minlength=len(edges) + 1)
        filled = np.flatnonzero(rows)  # equal scores may leave a group empty
        errors = np.bincount(place, weights=losses, minlength=len(rows))[filled] / rows[filled]
        return Expectation(tuple(edges[filled[1:] - 1].tolist()), tuple(errors.tolist()))

    def expect(self, scores: Floats) -> Floats:
        """The loss to expect of each row (n)."""
        if not self.errors:
            return expect_log_loss(scores)
        return np.asarray(np.array(self.errors)[np.searchsorted(self.edges, scores, side="right")], np.float64)


def expect_log_loss(scores: Floats) -> Floats:
    """The entropy of each calibrated score, (n,) or (n, classes), in nats: its log loss on average."""
    shares = np.stack([scores, 1 - scores], axis=1) if scores.ndim == 1 else scores
    shares = np.clip(shares.astype(np.float64), CLIP, 1)
    return np.asarray(-(shares * np.log(shares)).sum(axis=1))


@dataclass(frozen=True, eq=False)
class Excess:
    """The metric of some rows, and what the model expected it to be.

    Args:
        parts: what each block adds to the excess beyond the mean (blocks); they sum to 0.
    """

    loss: float
    expected: float
    parts: Floats

    @property
    def value(self) -> float:
        return self.loss - self.expected

    @property
    def blocks(self) -> int:
        return len(self.parts)


@dataclass(frozen=True)
class AtPromotion:
    """The twin on its holdout: what a window of the champion is held against.

    Args:
        skill: the best constant's loss less its own; 0 where it is no better.
    """

    expectation: Expectation
    excess: Excess
    skill: float


@dataclass(frozen=True)
class Change:
    """A loss against what is usual for such rows: what the model expects, and what it was off by at promotion."""

    loss: float
    usual: float
    low: float  # the interval of the loss, of which the error of `usual` is a part
    high: float

    @property
    def surely_higher_by(self) -> float:
        """Below 0 where the loss is not surely higher."""
        return self.low - self.usual


def measure_holdout(
    codes: Floats, scores: Floats, losses: Floats, times: NDArray[np.datetime64], gate: Gate
) -> AtPromotion:
    """What holds of a model on its holdout, of rows' labels as numbers (n), scores (n, ...) and losses (n)."""
    expectation = Expectation.fit(scores, losses, metric=gate.metric)
    excess = measure_excess(losses, expectation.expect(scores), times, gate)
    return AtPromotion(expectation, excess, max(_measure_constant(codes, gate.metric) - excess.loss, 0.0))


def _measure_constant(codes: Floats, metric: Metric) -> float:
    """The metric of the constant that is best on these labels."""
    if metric == "rmse":
        return float(codes.std())
    shares = np.bincount(codes.astype(np.intp)) / len(codes)
    return float(expect_log_loss(shares[None])[0])


def measure_excess(losses: Floats, expected: Floats, times: NDArray[np.datetime64], gate: Gate) -> Excess:
    """The excess of rows (n), by blocks of gate.block. The root of a mean is linearized (the delta method)."""
    block = assign_blocks(times, gate.block)
    rows = np.bincount(block).astype(np.float64)
    sums = np.stack([np.bincount(block, weights=values) for values in (losses, expected)])
    means = sums.sum(axis=1) / rows.sum()
    root = gate.metric == "rmse"
    metrics = np.sqrt(means) if root else means
    slopes = 0.5 / np.maximum(metrics, 1e-150) if root else np.ones(2)
    own, other = slopes[:, None] * (sums - means[:, None] * rows) / rows.sum()
    return Excess(float(metrics[0]), float(metrics[1]), own - other)


def compare_excess(now: Excess, before: Excess, *, level: float) -> Change | None:
    """A window's excess against that of the holdout; None where either has too few blocks for an interval.

    Blocks are taken as AR(1), with one correlation for both, since a window alone hardly tells one. The small-sample
    bias of a correlation is taken off (Kendall, Biometrika 1954). The interval of the difference is made of those of
    both (Zou and Donner 2008). A change that makes a few days differ much would hide behind them: so what lies far
    beyond all that days like the holdout's could do is surely higher too, and gets a small part of the error rate.

    Args:
        level: of the interval. Each end is passed with half of what is left.
    """
    if min(now.blocks, before.blocks) < LEAST_BLOCKS:
        return None
    correlation, tail = _correlate_neighbours((now.parts, before.parts)), (1 - level) / 2
    errors = [_estimate_error(excess.parts, correlation) for excess in (now, before)]
    by_both = math.hypot(*(student_quantile(OWN_SHARE * tail, freedom) * error for error, freedom in errors))
    error, freedom = errors[1]
    as_before = student_quantile(AS_BEFORE_SHARE * tail, freedom) * error * math.sqrt(1 + before.blocks / now.blocks)
    reach = min(by_both, as_before)
    return Change(now.loss, now.expected + before.value, now.loss - reach, now.loss + reach)


def _correlate_neighbours(series: Sequence[Floats]) -> float:
    """The correlation of neighbouring parts of several series."""
    scaled = [parts / max(math.sqrt(float((parts**2).mean())), 1e-150) for parts in series]
    count = sum(map(len, scaled))
    correlation = sum(float(parts[1:] @ parts[:-1]) for parts in scaled) / count
    correlation += (1 + 4 * correlation) / (count - len(scaled) + 1)
    return min(max(correlation, 0.0), sequence.MOST_CORRELATION)


def _estimate_error(parts: Floats, correlation: float) -> tuple[float, float]:
    """The standard error of the sum of such parts, and its degrees of freedom."""
    count, stretch = len(parts), (1 + correlation) / (1 - correlation)
    variance = float((parts**2).sum()) * count / (count - 1) * stretch
    return math.sqrt(variance), max(count / stretch - 1, LEAST_FREEDOM)
