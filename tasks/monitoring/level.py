"""level: a model's loss on some rows, with its interval, and whether another one is surely higher. Pure."""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.params import Gate
from tasks.promotion import interval
from tasks.promotion.interval import assign_blocks, student_quantile
from tasks.training.model import Floats

LEAST_BLOCKS = 4  # that an interval needs


class Level(NamedTuple):
    """A loss and its interval; None where there are too few blocks for one."""

    value: float
    low: float | None = None
    high: float | None = None


def measure_level(losses: Floats, times: NDArray[np.datetime64], settings: Gate) -> Level:
    """The metric of row losses (n,), and its interval by a bootstrap over blocks of gate.block.

    Percentiles, drawn out as far as Student's t lies beyond the normal for so few blocks (Hesterberg 2015). The gate's
    interval is wider: it must hold for gains of any shape, and an alarm that came once in a storm must not need a week
    of storms to be heard.
    """
    _, block = np.unique(assign_blocks(times, settings.block), return_inverse=True)
    sizes, sums = np.bincount(block), np.bincount(block, weights=losses)
    root = np.sqrt if settings.metric == "rmse" else np.asarray
    value, count = float(root(sums.sum() / sizes.sum())), len(sizes)
    if count < LEAST_BLOCKS:
        return Level(value)
    draws = np.random.default_rng(interval.SEED).multinomial(count, np.full(count, 1 / count), size=interval.REPLICATES)
    reach = student_quantile((1 - settings.level) / 2, count - 1) * math.sqrt(count / (count - 1))
    tail = NormalDist().cdf(-reach)
    low, high = np.quantile(root((draws @ sums) / (draws @ sizes)), [tail, 1 - tail])
    return Level(value, float(low), float(high))


def surely_worse_by(before: Level, now: Level) -> float | None:
    """The lower end of the interval of now - before, made of the intervals of each (Zou and Donner 2008)."""
    if now.low is None:
        return None
    above = (before.high - before.value) if before.high is not None else 0.0
    return now.value - before.value - float(np.hypot(now.value - now.low, above))
