"""interval: how much better one model is than another, with the interval of a bootstrap over blocks of event time.

Pure: arrays in, numbers out. README.md tells how the interval is made, what was measured of it, and what it cannot see.
"""

import math
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

REPLICATES = 4000  # of the bootstrap
SEED = 1  # of the bootstrap's draws
MIN_BEYOND = 20  # replicates that lie beyond the deepest quantile which is read off them
MAX_CELLS = 2**22  # replicates times blocks; it bounds the memory where blocks are short
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; None where there are too few blocks for one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, eq=False)
class Interval:
    """The interval around a gain. Its two ends may lie at different distances, and may be asked for at several tails.

    The deviations are the studentized errors of the replicates in three forms, each ascending: both signs together
    (symmetric), as they are (equal-tailed), and after Hall's transformation.
    """

    gain: float
    block_variance: float  # of the gain, from block to block
    seed_variance: float  # what the seeds add to it
    freedom: float
    blocks: int
    deviations: tuple[Floats, ...]

    def low(self, tail: float) -> float:
        """The end that the true gain lies below with the one-sided probability `tail`."""
        return self.gain - self._reach(tail, self.deviations)

    def high(self, tail: float) -> float:
        return self.gain + self._reach(tail, tuple(-form[::-1] for form in self.deviations))

    def _reach(self, tail: float, forms: tuple[Floats, ...]) -> float:
        """Student's quantile times the error, stretched where a form of the bootstrap reaches further, never less.

        A tail deeper than the replicates can show is stretched as much as the deepest that they show.
        """
        shown, stretch = max(tail, MIN_BEYOND / max(len(forms[-1]), 1)), 1.0
        if shown < 0.25:
            furthest = max(float(form[math.ceil((1 - shown) * (len(form) + 1)) - 1]) for form in forms)
            stretch = max(1.0, furthest / student_quantile(shown, self.blocks - 1))
        return stretch * student_quantile(tail, self.freedom) * math.sqrt(self.block_variance + self.seed_variance)


class _Gains(NamedTuple):
    """For each draw of the blocks, (draws,)."""

    gain: Floats
    variance: Floats  # of the gain, from block to block
    bend: Floats  # a third of the skewness of the gain's error


@dataclass(frozen=True, eq=False)
class BlockSums:
    """The losses of two recipes' models, summed over each block. The candidate's models come first.

    The gain is the champion's metric less the candidate's, each the mean over its seeds.
    """

    sums: Floats  # (models, blocks)
    sizes: Floats  # (blocks,), in rows
    seeds: tuple[int, int]  # models of the candidate and of the champion
    is_root: bool  # the metric is the root of the mean loss

    @property
    def metrics(self) -> tuple[float, float]:
        """The candidate's and the champion's."""
        candidate, champion = np.split(self._metrics(self._once)[0], [self.seeds[0]])
        return float(candidate.mean()), float(champion.mean())

    @property
    def correlation(self) -> float:
        """Between neighbouring blocks' parts of the gain. The bootstrap assumes that there is none."""
        parts = self._signs @ self._influences
        return float(parts[1:] @ parts[:-1] / (parts @ parts)) if parts.any() else 0.0

    @cached_property
    def interval(self) -> Interval | None:
        """None for a single block."""
        if (blocks := len(self.sizes)) < 2:
            return None
        here = self._gains(self._once)
        variance = float(here.variance[0])
        seed_variance, freedom = self._seed_variance(variance)
        return Interval(float(here.gain[0]), variance, seed_variance, freedom, blocks, self._deviations(here))

    @property
    def _once(self) -> Floats:
        """The draw that has each block once."""
        return np.ones((1, len(self.sizes)))

    @property
    def _signs(self) -> Floats:
        """The gain is the models' metrics times these."""
        return np.repeat((-1 / self.seeds[0], 1 / self.seeds[1]), self.seeds)

    def _metrics(self, draws: Floats) -> Floats:
        """The models' metrics, (draws, models), where each block counts as often as it was drawn."""
        means = draws @ self.sums.T / (draws @ self.sizes)[:, None]
        return np.asarray(np.sqrt(means) if self.is_root else means)

    def _slopes(self, metrics: Floats) -> Floats:
        """How the metric changes with the mean loss. A root is linearized where it is (the delta method)."""
        return 0.5 / np.maximum(metrics, 1e-150) if self.is_root else np.ones_like(metrics)

    def _gains(self, draws: Floats) -> _Gains:
        """The variance is that of a ratio: the blocks' sizes are drawn too."""
        metrics, rows, blocks = self._metrics(draws), draws @ self.sizes, len(self.sizes)
        slopes = self._signs * self._slopes(metrics)
        means = draws @ self.sums.T / rows[:, None]
        parts = slopes @ self.sums - np.outer((slopes * means).sum(axis=1), self.sizes)
        squares = draws * parts**2
        spread = squares.sum(axis=1)
        bend = np.einsum("ij,ij->i", squares, parts) / np.maximum(spread, 1e-200) ** 1.5 / 3
        return _Gains(metrics @ self._signs, spread / rows**2 * blocks / (blocks - 1), bend)

    def _deviations(self, here: _Gains) -> tuple[Floats, ...]:
        blocks = len(self.sizes)
        replicates = max(100, min(REPLICATES, MAX_CELLS // blocks))
        drawn = self._gains(draw_blocks(blocks, replicates, seed=SEED).astype(np.float64))
        varied = drawn.variance > 1e-12 * here.variance  # a draw of one block alone has nothing but rounding
        errors = (drawn.gain[varied] - here.gain) / np.sqrt(drawn.variance[varied])
        bent = add_skewness(remove_skewness(errors, drawn.bend[varied]), here.bend)
        return tuple(np.sort(form) for form in (np.concatenate([errors, -errors]), errors, bent))

    @cached_property
    def _influences(self) -> Floats:
        """What each block adds to each model's metric, (models, blocks). They sum to zero."""
        rows = self.sizes.sum()
        parts = self.sums - np.outer(self.sums.sum(axis=1) / rows, self.sizes)
        return np.asarray(self._slopes(self._metrics(self._once)[0])[:, None] * parts / rows)

    def _seed_variance(self, block_variance: float) -> tuple[float, float]:
        """What the seeds add to the gain's variance, and the degrees of freedom of the whole.

        Part of what the seeds differ by is in the variance from block to block already, and is not counted twice.
        """
        spare, most = sum(self.seeds) - 2, len(self.sizes) - 1.0
        if not spare:
            return 0.0, most
        share = (1 / self.seeds[0] + 1 / self.seeds[1]) / spare
        between = share * float((self._less_recipe_mean(self._metrics(self._once).T) ** 2).sum())
        inside = share * float((self._less_recipe_mean(self._influences) ** 2).sum()) * len(self.sizes) / most
        added = max(0.0, between - inside)
        doubt = block_variance**2 / most + between**2 / spare
        return added, min(most, max(1.0, (block_variance + added) ** 2 / doubt)) if doubt > 0 else most

    def _less_recipe_mean(self, values: Floats) -> Floats:
        """(models, any) less the mean over the seeds of the same recipe."""
        recipes = np.split(values, [self.seeds[0]])
        return np.concatenate([models - models.mean(axis=0) for models in recipes])


def assign_blocks(times: NDArray[Any], length: timedelta) -> NDArray[np.intp]:
    """The block of each row: 0, 1, 2 ... in time, without gaps.

    Blocks of whole days begin at the hour of fewest rows. UTC's midnight is New York's evening and would cut its storms
    in two, which understates the gain's error by a tenth (measured there).
    """
    if not np.issubdtype(times.dtype, np.datetime64) or np.isnat(times).any():
        raise ValueError(f"times must be datetime64 without NaT, but got {times.dtype}")
    hour = times.astype("datetime64[h]").astype(np.int64)
    quiet = int(np.bincount(hour % 24, minlength=24).argmin()) if length % DAY == timedelta(0) else 0
    since = times.astype("datetime64[us]").astype(np.int64) - quiet * 3_600_000_000
    return np.unique(since // (length // timedelta(microseconds=1)), return_inverse=True)[1]


@lru_cache(maxsize=8)
def draw_blocks(blocks: int, replicates: int, *, seed: int) -> NDArray[np.uint16]:
    """How often each replicate drew each block, (replicates, blocks). Cached, since slices ask for the same draws."""
    drawn = np.random.default_rng((seed, blocks)).multinomial(blocks, np.full(blocks, 1 / blocks), size=replicates)
    return drawn.astype(np.uint16)


def remove_skewness(error: Floats, bend: Floats) -> Floats:
    """Hall's transformation (JRSS B 1992): it leaves a studentized mean next to no skewness. It rises with the error,
    so that it can be undone."""
    return error + bend * error**2 + bend**2 * error**3 / 3 + bend / 2


def add_skewness(straight: Floats, bend: Floats) -> Floats:
    """The inverse of `remove_skewness`: ((1 + 3 bend x) ^ (1/3) - 1) / bend, in a form that holds for bend 0 too."""
    shifted = straight - bend / 2
    root = np.cbrt(1 + 3 * bend * shifted)
    return np.asarray(3 * shifted / (root**2 + root + 1), np.float64)


@lru_cache(maxsize=64)
def student_quantile(tail: float, freedom: float) -> float:
    """The upper quantile of Student's t, for any degrees of freedom >= 1. scipy takes a second to import.

    With t = sqrt(freedom) / tan(angle), the density over the angle is sin(angle)^(freedom - 1), up to pi / 2.
    """
    logs = np.linspace(math.log(1e-12), math.log(math.pi / 2), 8192)
    angle = np.exp(logs)
    density = np.sin(angle) ** (freedom - 1)
    mass = np.cumsum(np.diff(angle, prepend=0) * (density + np.append(0, density[:-1])) / 2)
    positive = mass > 0  # with many degrees of freedom the smallest angles underflow
    place = np.interp(math.log(2 * tail), np.log(mass[positive] / mass[-1]), logs[positive])
    return math.sqrt(freedom) / math.tan(math.exp(float(place)))
