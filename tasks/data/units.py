"""units: has a column's unit changed from one period to the next? Miles become kilometres, dollars become cents.

A bound does not see that where it leaves room. Here the 10th, 50th and 90th percentiles of a period are those of the
period before, turned from one well-known unit into another, and further away than neighbouring periods have ever been.
A column that merely drifts fits no such factor at three places at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (10, 50, 90)
SAMPLE = 20_000  # values of a period, evenly taken, tell its percentiles
LEAST_VALUES = 50  # of a period
LEAST_PERIODS = 4  # before the one that is judged
# In distances from the 10th to the 90th percentile:
NEAR = 0.05  # a step between neighbouring periods that is small for any column
RESTLESS = 0.5  # a column with larger steps is not judged: such are seasons, by the month
FAR = 3.0  # times the largest step before: a change of unit is further
CONVERSIONS = {  # value → factor · value + offset
    "°C → °F": (1.8, 32.0),
    "K → °C": (1.0, -273.15),
    "miles → kilometres": (1.609344, 0.0),
    "feet → metres": (0.3048, 0.0),
    "inches → centimetres": (2.54, 0.0),
    "inches → millimetres": (25.4, 0.0),
    "pounds → kilograms": (0.45359237, 0.0),
    "gallons → litres": (3.785411784, 0.0),
    "metres a second → kilometres an hour": (3.6, 0.0),
    "metres a second → miles an hour": (2.2369363, 0.0),
    "inches of mercury → hectopascals": (33.863886, 0.0),
    "hours → minutes, or minutes → seconds": (60.0, 0.0),
    "hours → seconds": (3600.0, 0.0),
    "days → hours": (24.0, 0.0),
    "days → minutes": (1440.0, 0.0),
    "× 10": (10.0, 0.0),
    "× 100": (100.0, 0.0),
    "× 1,000": (1e3, 0.0),
    "× 1,000,000": (1e6, 0.0),
}

Spread = tuple[float, float, float]  # the values at PERCENTILES


@dataclass(frozen=True)
class Change:
    """From which period on a column has another unit, the percentiles before and since, and which units fit."""

    period: str
    before: Spread
    since: Spread
    conversion: str


def measure_spread(values: NDArray[np.float64]) -> Spread | None:
    """The percentiles of a period's values (n, NaN where missing). None where they are too few."""
    values = values[~np.isnan(values)]
    if len(values) < LEAST_VALUES:
        return None
    low, middle, high = np.percentile(values[:: -(-len(values) // SAMPLE)], PERCENTILES).tolist()
    return low, middle, high


def find_change(spreads: Sequence[tuple[str, Spread]]) -> Change | None:
    """The latest change in a column's periods, oldest first, each with its percentiles."""
    steps = [_measure_step(before, since) for (_, before), (_, since) in pairwise(spreads)]
    for place in range(len(spreads) - 1, LEAST_PERIODS - 1, -1):
        usual = max(NEAR, *steps[: place - 1])
        if usual > RESTLESS or steps[place - 1] <= FAR * usual:
            continue
        (_, before), (period, since) = spreads[place - 1 : place + 1]
        if conversion := _find_conversion(np.array(before), np.array(since), usual):
            return Change(period, before, since, conversion)
    return None


def _measure_step(before: Spread, since: Spread) -> float:
    """How far two periods are apart, in distances from the 10th to the 90th percentile."""
    width = before[2] - before[0]
    return max(abs(b - a) for a, b in zip(before, since, strict=True)) / width if width > 0 else math.inf


def _find_conversion(before: NDArray[np.float64], since: NDArray[np.float64], usual: float) -> str | None:
    width = before[2] - before[0]
    if width <= 0:
        return None
    for name, (factor, offset) in CONVERSIONS.items():
        for scale, shift, words in ((factor, offset, name), (1 / factor, -offset / factor, _turn(name))):
            expected = scale * before + shift
            tells = expected != before  # a percentile that is 0 in both units tells nothing
            steps = np.sort(np.abs(since - before))  # one percentile that moves alone is drift
            if tells.sum() < 2 or steps[1] <= FAR * usual * width:
                continue
            if (np.abs(since - expected) <= usual * scale * width).all():
                return words
    return None


def _turn(name: str) -> str:
    if name.startswith("×"):
        return name.replace("×", "÷")
    return ", or ".join(" → ".join(reversed(pair.split(" → "))) for pair in name.split(", or "))
