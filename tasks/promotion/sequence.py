"""sequence: a lower bound of a mean gain that may be looked at every week. Pure; README.md tells what was measured.

The gain is a sum of loss saved for each day. The bound is the normal mixture's confidence sequence (Robbins 1970; as an
asymptotic one: Waudby-Smith et al., Ann. Stat. 2024): it holds at all looks together, so a look costs nothing.

Days go together, so the error is the larger of two. One takes the days as AR(1), with the small-sample bias of the
correlation taken off (Kendall, Biometrika 1954). The other takes whole weeks, since one pair of models scores the days
of a week and shares its luck.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tasks.promotion.interval import add_skewness, student_quantile

Floats = NDArray[np.float64]

TUNED_DAYS = 100  # the number of days at which the sequence is narrowest
MOST_CORRELATION = 0.9
# Of Hall's correction for skewness (JRSS B 1992). Gains on real days have rare large values, which widen a symmetric
# bound more than they weaken it. The whole correction lets too much pass where the bad days are the candidate's.
SKEWNESS_SHARE = 0.5
MOST_SKEWNESS = 2.0
FREEDOMS = np.geomspace(1, 2000, 48)


@dataclass(frozen=True, eq=False)
class Bound:
    """A mean gain a row, and what it surely exceeds. Each field has the shape of the series' leading axes."""

    gain: Floats
    error: Floats
    freedom: Floats
    low: Floats
    is_by_weeks: NDArray[np.bool_]  # luck that a week's days share makes the bound wide, not the days themselves


def bound_gain(gains: Floats, rows: Floats, *, weights: Floats, tail: float, prior_weeks: float = 0) -> Bound:
    """The lower bound of the mean gain a row.

    Args:
        gains: Sums of loss saved, (..., weeks, days), oldest first. A leading axis is a series of its own.
        rows: How many rows each sum is over, (weeks, days).
        weights: Of the weeks, (weeks,): old evidence may count less.
        tail: The probability that the bound is ever above the true mean.
        prior_weeks: So many weeks' worth do the days count in what the weeks differ by, where there are few weeks
            (a moderated variance: Smyth, Stat. Appl. Genet. Mol. Biol. 2004).

    Raises:
        ValueError: There are fewer than two weeks, and no prior.
    """
    if len(weights) < 2 and not (prior_weeks and len(weights)):
        raise ValueError(f"a bound needs at least 2 weeks of evidence, but got {len(weights)}")
    weight = np.broadcast_to(weights[:, None], rows.shape)
    total = float((weight * rows).sum())
    gain = (gains * weight).sum((-2, -1)) / total
    parts = (gains - gain[..., None, None] * rows) * weight / total
    days = parts.reshape(*parts.shape[:-2], -1)
    by_days = _estimate_variance(days, _count_effective(weight[rows > 0]), lag=True)
    spare = _count_effective(weights) - 1
    by_weeks = _estimate_variance(parts.sum(-1), spare + 1, lag=False) if spare else by_days
    if prior_weeks:
        pooled = (prior_weeks * by_days[0] + spare * by_weeks[0]) / (prior_weeks + spare)
        by_weeks = pooled, np.minimum(by_days[1], prior_weeks + spare)
    is_by_weeks = by_weeks[0] > by_days[0]
    variance, freedom = (np.where(is_by_weeks, *pair) for pair in zip(by_weeks, by_days, strict=True))
    error = np.sqrt(variance)
    reach = _stretch(_mixture_quantile(_count_effective(weight[rows > 0]), tail), freedom)
    low = gain - error * add_skewness(reach, SKEWNESS_SHARE * _skewness(days) / 3)
    return Bound(gain, error, freedom, low, is_by_weeks)


def bound_once(gains: Floats, rows: Floats, *, tail: float, lag: bool = True) -> Bound:
    """The lower bound of the mean gain a row for a single look, from sums of days (..., days).

    Args:
        lag: The days are taken as AR(1), not as independent.
    """
    total = float(rows.sum())
    gain = gains.sum(-1) / total
    parts = (gains - gain[..., None] * rows) / total
    variance, freedom = _estimate_variance(parts, float((rows > 0).sum()), lag=lag)
    error = np.sqrt(variance)
    low = gain - error * _interpolate_quantiles(tail, freedom)
    return Bound(gain, error, freedom, low, np.zeros(gain.shape, np.bool_))


def allot_look(days: int, tail: float) -> float:
    """The one-sided tail of a single look after so many days, with which looks at any times keep `tail` together."""
    return 0.5 * math.erfc(_mixture_quantile(days, tail) / math.sqrt(2))


def stretch_variance(correlation: Floats, count: float) -> Floats:
    """How much larger the variance of a mean of AR(1) days is than that of independent ones.

    Args:
        correlation: Between neighbours, as measured; its small-sample bias is taken off here.
        count: How many days it was measured on.
    """
    rho = np.clip(correlation + (1 + 4 * correlation) / count, 0, MOST_CORRELATION)
    return np.asarray((1 + rho) / (1 - rho), np.float64)


def _count_effective(weights: Floats) -> float:
    """So many equal weights would give the same variance (Kish 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _estimate_variance(parts: Floats, count: float, *, lag: bool) -> tuple[Floats, Floats]:
    """The variance of the sum of parts (..., n) that sum to zero, and its degrees of freedom.

    Args:
        lag: The parts may go together with their neighbours, as AR(1) has it.
    """
    squares = np.maximum((parts**2).sum(-1), 1e-300)
    stretch = np.ones_like(squares)
    if lag:
        stretch = stretch_variance((parts[..., 1:] * parts[..., :-1]).sum(-1) / squares, count)
    return squares * count / (count - 1) * stretch, np.maximum(count / stretch - 1, 2)


def _skewness(days: Floats) -> Floats:
    """Of the sum."""
    squares = np.maximum((days**2).sum(-1), 1e-200)  # its power must not become 0
    return np.asarray(np.clip((days**3).sum(-1) / squares**1.5, -MOST_SKEWNESS, MOST_SKEWNESS), np.float64)


def _mixture_quantile(days: float, tail: float) -> float:
    """How many standard errors the one-sided sequence reaches after so many days."""
    level = 2 * tail
    rate = (-2 * math.log(level) + math.log(-2 * math.log(level) + 1)) / TUNED_DAYS
    spread = days * rate + 1
    return math.sqrt(spread / (days * rate) * 2 * math.log(1 + math.sqrt(spread) / level))


def _stretch(quantile: float, freedom: Floats) -> Floats:
    """Student's quantile of the tail that a normal one has beyond `quantile`."""
    return _interpolate_quantiles(0.5 * math.erfc(quantile / math.sqrt(2)), freedom)


def _interpolate_quantiles(tail: float, freedom: Floats) -> Floats:
    return np.asarray(np.interp(1 / freedom, 1 / FREEDOMS[::-1], _list_quantiles(tail)[::-1]), np.float64)


@lru_cache(maxsize=1024)
def _list_quantiles(tail: float) -> Floats:
    return np.array([student_quantile(tail, float(freedom)) for freedom in FREEDOMS])
