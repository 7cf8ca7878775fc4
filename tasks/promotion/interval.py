"""interval: blocks of event time, draws of them, and Student's quantiles. Pure."""

import math
from datetime import timedelta
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DAY = timedelta(days=1)


def assign_blocks(times: NDArray[Any], length: timedelta) -> NDArray[np.intp]:
    """0, 1, 2 ... in time. Blocks of whole days begin at the hour of fewest rows: UTC's midnight is New York's evening
    and would cut its storms in two (measured there: it understates the gain's error by a tenth)."""
    if not np.issubdtype(times.dtype, np.datetime64) or np.isnat(times).any():
        raise ValueError(f"times must be datetime64 without NaT, but got {times.dtype}")
    hour = times.astype("datetime64[h]").astype(np.int64)
    quiet = int(np.bincount(hour % 24, minlength=24).argmin()) if length % DAY == timedelta(0) else 0
    since = times.astype("datetime64[us]").astype(np.int64) - quiet * 3_600_000_000
    return np.unique(since // (length // timedelta(microseconds=1)), return_inverse=True)[1]


@lru_cache(maxsize=8)
def draw_blocks(seed: int, blocks: int, replicates: int) -> NDArray[np.uint16]:
    """How often each replicate drew each block. Kept: slices and several baselines ask for the same."""
    drawn = np.random.default_rng((seed, blocks)).multinomial(blocks, np.full(blocks, 1 / blocks), size=replicates)
    return drawn.astype(np.uint16)


@lru_cache(maxsize=64)
def student_quantile(tail: float, freedom: float) -> float:
    """The upper quantile of Student's t, for any degrees of freedom >= 1; scipy takes a second to import.

    With t = sqrt(freedom) / tan(angle), the density over the angle is sin(angle)^(freedom - 1), up to pi / 2."""
    logs = np.linspace(math.log(1e-12), math.log(math.pi / 2), 8192)
    angle = np.exp(logs)
    density = np.sin(angle) ** (freedom - 1)
    mass = np.cumsum(np.diff(angle, prepend=0) * (density + np.append(0, density[:-1])) / 2)
    told = mass > 0  # with many degrees of freedom the smallest angles underflow
    place = np.interp(math.log(2 * tail), np.log(mass[told] / mass[-1]), logs[told])
    return math.sqrt(freedom) / math.tan(math.exp(float(place)))
