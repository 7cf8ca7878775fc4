"""slices: is any part of the rows surely worse off with the candidate? All parts are judged together; pure.

A part may have any size: its interval knows its rows and days. Rows of one day go together, so a part's error is that
of its sums by block, with as many degrees of freedom as equal blocks would have (Kish 1965; Carter, Schnepel &
Steigerwald, REStat 2017), and what the seeds differ by. Each part has the same share of the error (Bonferroni), so that
the luck of many small ones holds up no sound candidate.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.promotion.contest import Contest
from tasks.promotion.interval import student_quantile

Slices = Mapping[str, NDArray[Any]]
MIN_BLOCKS = 2  # rows of a single day may all be worse by the same luck


@dataclass(frozen=True)
class Part:
    """One value of a slice: the gain a row of log loss or squared error, and its interval beside all other parts."""

    name: str
    value: str
    rows: int
    blocks: int
    gain: float
    low: float
    high: float


def measure_parts(contest: Contest, slices: Slices, *, tail: float) -> list[Part]:
    """Each value of each slice that has rows of at least two blocks.

    Args:
        slices: For each slice's column, the value of each row that was compared, in the caller's order.
        tail: The one-sided probability that any of all these intervals lies beside its true gain.

    Raises:
        ValueError: A slice has not a value for each row.
    """
    measured = [one for name, column in slices.items() for one in _measure_values(contest, name, column)]
    share = tail / max(len(measured), 1)
    return [one.to_part(share) for one in measured]


@dataclass(frozen=True)
class _Measured:
    name: str
    value: str
    rows: int
    blocks: int
    gain: float
    error: float
    freedom: float

    def to_part(self, tail: float) -> Part:
        reach = student_quantile(tail, self.freedom) * self.error
        ends = self.gain - reach, self.gain + reach
        return Part(self.name, self.value, self.rows, self.blocks, self.gain, *ends)


def _measure_values(contest: Contest, name: str, column: NDArray[Any]) -> Iterator[_Measured]:
    if len(column) != contest.rows:
        raise ValueError(f"slice {name} must have a value for each of {contest.rows} rows, but has {len(column)}")
    values, place = np.unique(np.asarray(column)[contest.order].astype(str), return_inverse=True)
    shape = len(values), contest.blocks
    cell = place * contest.blocks + contest.block
    sizes = np.bincount(cell, minlength=math.prod(shape)).reshape(shape)
    sums = np.stack([np.bincount(cell, model, math.prod(shape)) for model in contest.losses]).astype(np.float64)
    sums = sums.reshape(-1, *shape)
    for index, value in enumerate(values):
        held = sizes[index] > 0
        if held.sum() >= MIN_BLOCKS:
            yield _measure(name, str(value), sums[:, index, held], sizes[index, held], contest.seeds)


def _measure(
    name: str, value: str, sums: NDArray[np.float64], sizes: NDArray[np.intp], seeds: tuple[int, int]
) -> _Measured:
    """From sums of losses (models, blocks) of one part and its rows in each block."""
    rows, count = float(sizes.sum()), float(sizes.sum() ** 2 / (sizes.astype(np.float64) ** 2).sum())
    means = sums.sum(axis=1) / rows
    parts = (sums - np.outer(means, sizes)) / rows
    signs = np.repeat((-1 / seeds[0], 1 / seeds[1]), seeds)
    spread = float(((signs @ parts) ** 2).sum()) * count / (count - 1) if count > 1 else math.inf
    added, freedom = _add_seeds(means, parts, seeds, spread, count - 1)
    return _Measured(name, value, int(rows), len(sizes), float(signs @ means), math.sqrt(spread + added), freedom)


def _add_seeds(
    means: NDArray[np.float64], parts: NDArray[np.float64], seeds: tuple[int, int], spread: float, freedom: float
) -> tuple[float, float]:
    """What the seeds add to the variance, and the degrees of freedom of the whole; as for the contest's interval."""
    spare, freedom = sum(seeds) - 2, max(1.0, freedom)
    if not spare:
        return 0.0, freedom
    share = (1 / seeds[0] + 1 / seeds[1]) / spare
    between = share * sum(float(((one - one.mean()) ** 2).sum()) for one in np.split(means, [seeds[0]]))
    inside = share * sum(float(((one - one.mean(axis=0)) ** 2).sum()) for one in np.split(parts, [seeds[0]]))
    added = max(0.0, between - inside)
    doubt = spread**2 / freedom + between**2 / spare
    return added, min(freedom, max(1.0, (spread + added) ** 2 / doubt)) if doubt > 0 else freedom
