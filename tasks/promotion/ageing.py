"""ageing: what does age cost a recipe, and is its newest fit sound? Pure: daily sums of loss in, decisions out.

A refresh fits the champion's recipe to newer rows. Whether that pays is a question about the recipe, so all its past
fits answer it: in each past week, the model that was as old then as the champion is now against the one that was fresh.
README.md tells the rule and what was measured of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from tasks.promotion.gains import Course
from tasks.promotion.sequence import Bound, Floats, bound_gain, bound_once

BANDS = ((1, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64))  # ages in weeks; each is a series of its own
MIN_WEEKS = 8
RECENT_WEEKS = 8  # that must show the cost by themselves: what age cost in another regime does not vote for ever
HALF_LIFE = 26  # weeks after which evidence counts half
# Of each band's sequence. Not the rate of a year: README.md has those rates, by simulation.
AGE_TAIL = 0.024
# Something may have changed of late, and then the weeks before make the bound wide: the newest may tell alone.
SHOCK_WEEKS = 4
SHOCK_TAIL = 0.0005
# After a large change it takes weeks until the past shows it. What the newest fit saves on its own holdout may tell
# alone where it is far beyond the usual: days that one pair of fits scores share its luck, which a bound cannot see.
LEAP_TAIL = 0.0005
LEAP = 16  # times the median of what past fits saved or lost
GUARD_TAIL = 0.025
GUARD_SHARE = 0.05  # of the skill: a fit that may be worse by more is held
YARDSTICK_SHARE = 0.25  # of that margin: with a larger error, past fits are the yardstick
YARDSTICK_QUANTILE = 0.05
MIN_YARDSTICK = 8  # past fits
# Weeks that save far more than is usual make the bound wide: what was learnt of the first few rows, or of a change.
# They count as if they had saved so many times the median of what a week saves or loses. That only lowers the gain.
MOST_GAIN = 3.0
LOWEST_LEVEL = 0.1  # of the mean level: a week that is easier still counts as if it were so easy
FEW_SHIFTS = 1.25  # times the largest of fewer is usual: one of three sound fits lies beyond the two before it


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the fits of one recipe lost. Cut k is the beginning of week k. Leading axes are worlds of their own.

    Args:
        losses: Sums of row losses, (..., cuts, weeks, days); NaN before the cut.
        rows: How many rows each sum is over, (weeks, days).
    """

    losses: Floats
    rows: Floats

    @property
    def weeks(self) -> int:
        return len(self.rows)

    def until(self, week: int) -> "Evidence":
        """What was known at the end of that many weeks."""
        return Evidence(self.losses[..., :week, :week, :], self.rows[:week])

    def since(self, week: int) -> "Evidence":
        """Of the fits from that week on."""
        return Evidence(self.losses[..., week:, week:, :], self.rows[week:])

    def pool_gains(self, youngest: int, oldest: int) -> tuple[Floats, NDArray[np.intp]]:
        """What the fresh model of a week saves over those of the ages from `youngest` to `oldest`, on average.

        The gain is scaled to a week of the mean level. Where prices double, squared errors are four times as large, and
        those weeks alone would decide how wide the bound is.

        Returns:
            Sums of loss saved, (..., weeks, days), and the weeks that have a fresh and an old model.
        """
        listed, weeks = [], []
        for week in range(youngest, self.weeks):
            old = self.losses[..., max(week - oldest, 0) : week - youngest + 1, week, :]
            gain = np.nanmean(old, axis=-2) - self.losses[..., week, week, :] if old.shape[-2] else old.sum(-2)
            if np.isfinite(gain).all():
                listed.append(gain)
                weeks.append(week)
        if not listed:
            return np.empty((*self.losses.shape[:-3], 0, 7)), np.array(weeks, int)
        return np.stack(listed, -2) * self._scale_weeks(np.array(weeks))[..., None], np.array(weeks)

    def _scale_weeks(self, weeks: NDArray[np.intp]) -> Floats:
        """The mean level of these weeks by that of each, (..., weeks). A level is the mean row loss of all fits."""
        rows = self.rows[weeks].sum(-1)
        levels = np.nanmean(self.losses[..., weeks, :].sum(-1), axis=-2) / np.maximum(rows, 1)
        mean = (levels * rows).sum(-1, keepdims=True) / max(float(rows.sum()), 1.0)
        return np.where(mean > 0, mean / np.maximum(np.maximum(levels, LOWEST_LEVEL * mean), 1e-300), 1.0)

    def list_past_gains(self, age: int, holdout: int, *, older: "Evidence | None" = None) -> Floats:
        """The mean gain a row of each past fit over the one that was `age` weeks older, on a holdout of so many weeks.

        Where fewer than MIN_YARDSTICK fits have one so old, a younger one stands in.

        Args:
            older: Of another recipe, on the same weeks, whose fits are the older ones. None: of this recipe.

        Returns:
            (..., past fits), oldest first. Those whose holdout was over by the last week count.
        """
        age = max(1, min(age, self.weeks - holdout - MIN_YARDSTICK))
        listed = []
        for cut in range(age, self.weeks - holdout):
            fresh = self.losses[..., cut, cut : cut + holdout, :]
            old = (older or self).losses[..., cut - age, cut : cut + holdout, :]
            gain = (old - fresh).sum((-2, -1)) / max(float(self.rows[cut : cut + holdout].sum()), 1.0)
            if np.isfinite(gain).all():
                listed.append(gain)
        return np.stack(listed, -1) if listed else np.empty((*self.losses.shape[:-3], 0))


@dataclass(frozen=True, eq=False)
class AgeCost:
    """What age costs a recipe, by the fits of one band of ages."""

    band: tuple[int, int]  # weeks
    bound: Bound
    recent: Floats  # the mean gain a row of the newest weeks alone
    weeks: int
    newest: Bound  # of SHOCK_WEEKS alone

    @property
    def is_sure(self) -> NDArray[np.bool_]:
        return self.is_lasting | self.is_shock

    @property
    def is_lasting(self) -> NDArray[np.bool_]:
        """Whether all weeks together are sure, and the newest do not gainsay it."""
        return (self.bound.low > 0) & (self.recent > 0) & (self.weeks >= MIN_WEEKS)

    @property
    def is_shock(self) -> NDArray[np.bool_]:
        """Whether the newest weeks alone are sure."""
        return self.newest.low > 0


def measure_ages(evidence: Evidence, age: int, *, tail: float = AGE_TAIL) -> list[AgeCost]:
    """What it costs to be as old as the champion is, and what the ages before cost, the youngest first.

    A champion is at least as stale as it was: where a younger age surely costs something, so does its own. Older ages
    have fewer weeks that tell. Bands with less than SHOCK_WEEKS are left out.
    """
    costs = (_measure_band(evidence, band, tail) for band in BANDS if band[0] <= age)
    return [cost for cost in costs if cost]


def choose_cost(costs: Sequence[AgeCost]) -> AgeCost | None:
    """The one that decides, of a single world: the surest, of those that have weeks enough or are sure all the same."""
    telling = [cost for cost in costs if cost.weeks >= MIN_WEEKS or cost.is_sure]
    return max(
        telling, key=lambda cost: (bool(cost.is_sure), bool(cost.is_lasting), float(cost.bound.low)), default=None
    )


def _measure_band(evidence: Evidence, band: tuple[int, int], tail: float) -> AgeCost | None:
    gains, weeks = evidence.pool_gains(*band)
    if len(weeks) < SHOCK_WEEKS:
        return None
    rows = evidence.rows[weeks]
    weights = 0.5 ** ((evidence.weeks - 1 - weeks) / HALF_LIFE)
    recent = gains[..., -RECENT_WEEKS:, :].sum((-2, -1)) / rows[-RECENT_WEEKS:].sum()
    newest = bound_gain(
        gains[..., -SHOCK_WEEKS:, :], rows[-SHOCK_WEEKS:], weights=np.ones(SHOCK_WEEKS), tail=SHOCK_TAIL
    )
    bound = bound_gain(_limit_weeks(gains, rows), rows, weights=weights, tail=tail)
    return AgeCost(band, bound, recent, len(weeks), newest)


def _limit_weeks(gains: Floats, rows: Floats) -> Floats:
    """Sums of loss saved, (..., weeks, days), where no week counts as more than MOST_GAIN has it."""
    means = gains.sum(-1) / np.maximum(rows.sum(-1), 1)
    most = MOST_GAIN * np.median(np.abs(means), axis=-1, keepdims=True)
    return gains * np.where(means > most, most / np.maximum(means, 1e-300), 1.0)[..., None]


def course_of_age(evidence: Evidence, band: tuple[int, int], begin: datetime) -> Course:
    """What the fresh fit of each week saved over those of a band of ages, and the sequence's bound at each look.

    Args:
        band: Of ages, in weeks.
        begin: When the evidence's first week begins.
    """
    young, old = band
    gains, weeks = evidence.pool_gains(young, old)
    means = gains.sum(-1) / np.maximum(evidence.rows[weeks].sum(-1), 1)
    costs = [_measure_band(evidence.until(int(week) + 1), band, AGE_TAIL) for week in weeks]
    bounds = [float(cost.bound.low) if cost and cost.weeks >= MIN_WEEKS else None for cost in costs]
    what = f"saved by fresh fits over those {young} to {old} weeks old"
    return Course("week", what, [begin + int(week) * timedelta(weeks=1) for week in weeks], means.tolist(), bounds)


@dataclass(frozen=True, eq=False)
class Leap:
    """What the newest fit saves over the champion's twin on its own holdout."""

    bound: Bound
    least: Floats  # that it must save

    @property
    def is_sure(self) -> NDArray[np.bool_]:
        return (self.bound.low > 0) & (self.bound.gain > self.least)


def measure_leap(gains: Floats, rows: Floats, *, past: Floats) -> Leap:
    """The arguments are those of `guard_fit`."""
    usual = np.median(np.abs(past), axis=-1) if past.shape[-1] else np.zeros(past.shape[:-1])
    return Leap(bound_once(gains, rows, tail=LEAP_TAIL, lag=False), LEAP * usual)


@dataclass(frozen=True, eq=False)
class Guard:
    """Whether the newest fit is sound on its own holdout."""

    bound: Bound
    floor: float  # the bound must lie above
    yardstick: Floats | None  # or, where the holdout is too short to tell, the gain itself above what past fits had

    @property
    def holds(self) -> NDArray[np.bool_]:
        is_above = self.bound.low > self.floor
        return is_above if self.yardstick is None else is_above | (self._is_blunt & (self.bound.gain >= self.yardstick))

    @property
    def _is_blunt(self) -> NDArray[np.bool_]:
        return self.bound.error > -YARDSTICK_SHARE * self.floor


def guard_fit(gains: Floats, rows: Floats, *, skill: float, past: Floats) -> Guard:
    """The newest fit on its own holdout.

    Args:
        gains: Sums of loss saved over the champion's twin, (..., days).
        rows: How many rows each sum is over, (days,).
        skill: The best constant's loss less that of the better of the two.
        past: The same mean gain a row of past fits, (..., past fits).
    """
    bound = bound_once(gains, rows, tail=GUARD_TAIL)
    enough = past.shape[-1] >= MIN_YARDSTICK
    yardstick = np.quantile(past, YARDSTICK_QUANTILE, axis=-1) if enough else None
    return Guard(bound, 0.0 - GUARD_SHARE * max(skill, 0.0), yardstick)


@dataclass(frozen=True)
class Shift:
    """How far the predictions of the fit that ships lie from its twin's, on the rows that the twin has not seen.

    Labels that are broken in the newest weeks enter the fit that ships alone.
    """

    change: float  # the mean absolute difference of the predictions
    past: tuple[float, ...]  # the same of past fits, each and the one a holdout older

    @property
    def most(self) -> float | None:
        """That is still usual; None where no past fits tell."""
        if not self.past:
            return None
        return max(self.past) * (1.0 if len(self.past) >= MIN_YARDSTICK else FEW_SHIFTS)

    @property
    def holds(self) -> bool:
        return self.most is not None and self.change <= self.most
