"""race: is a new recipe better than the champion's at the same age? Days that neither's search has seen → verdict.

A search begins with the days of its own holdout, and every later week adds its days. Each week is scored by both
recipes' fits up to its beginning, so that neither is older, and each week has the luck of other fits. The bound is a
confidence sequence, so a look costs nothing. A recipe that is not decided stays the contender: `retrain --kind
contender` fits it to newer rows, and its race goes on from its first clean day. What ships is judged as a refresh is.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.promotion import ageing, gate, refresh
from tasks.promotion.ageing import Evidence, Guard
from tasks.promotion.contest import Contest
from tasks.promotion.evidence import Collected, Fits
from tasks.promotion.gains import Course
from tasks.promotion.gate import Costs, Finding, Share
from tasks.promotion.interval import DAY
from tasks.promotion.refresh import HoldoutSums, Refit
from tasks.promotion.sequence import Bound, Floats, bound_gain
from tasks.promotion.slices import Slices
from tasks.promotion.verdict import Verdict
from tasks.promotion.weekgrid import WEEK
from tasks.runtime import cost

# Of the sequence of one contender. README.md has the rates of a year, in which contenders take each other's place.
RACE_TAIL = 0.0125
# So many weeks' worth do the days count in what the weeks differ by: a race begins with four weeks.
PRIOR_WEEKS = 8
MIN_DAYS = 4


@dataclass(frozen=True, eq=False)
class Race:
    """How far a contender is. Each number has the shape of the series' leading axes."""

    bound: Bound
    high: Floats  # the gain is surely less
    weeks: int

    def wins(self, least: float) -> NDArray[np.bool_]:
        return np.asarray(self.bound.low > least)

    @property
    def is_lost(self) -> NDArray[np.bool_]:
        return np.asarray(self.high < 0)


def measure_race(gains: Floats, rows: Floats) -> Race | None:
    """How much the contender saves at the same age; None with fewer than four days.

    Args:
        gains: Sums of loss saved, (..., weeks, days), oldest first.
        rows: How many rows each sum is over, (weeks, days).
    """
    weeks = len(rows)
    if (rows > 0).sum() < MIN_DAYS:
        return None
    weights = np.ones(weeks)
    low, high = (
        bound_gain(sign * gains, rows, weights=weights, tail=RACE_TAIL, prior_weeks=PRIOR_WEEKS) for sign in (1, -1)
    )
    return Race(low, -high.low, weeks)


@dataclass(frozen=True)
class Pair:
    """The past fits of both recipes.

    Args:
        since: The first moment that neither recipe's search has seen.

    Raises:
        ValueError: Their weeks begin at different hours.
    """

    contender: Fits
    champion: Fits
    since: datetime

    def __post_init__(self) -> None:
        if self.contender.grid != self.champion.grid:
            hours = (
                f"{self.contender.grid.hour} h in {self.contender.folder}, {self.champion.grid.hour} h for the other"
            )
            raise ValueError(f"both recipes' weeks must begin at one hour, but got {hours}: remove that folder")

    @property
    def first(self) -> int:
        """The week that the race begins in."""
        return self.champion.grid.week_of(self.since)

    def make_fits(self, as_of: datetime) -> int:
        """Make the fits that the race lacks, of the newest weeks; how many."""
        made = 0
        for fits in (self.contender, self.champion):
            weeks = [week for week in fits.list_missing(as_of) if week >= self.first]
            fits.fit(weeks)
            made += len(weeks)
        return made

    def read(self, as_of: datetime) -> "Both | None":
        """What both lost, from the first week that both have a fit of; None where there is none.

        Raises:
            ValueError: Their features give different rows.
        """
        contender, champion = (fits.read(as_of) for fits in (self.contender, self.champion))
        if contender is None or champion is None:
            return None
        firsts = [fits.list_fits(as_of)[0] for fits in (self.contender, self.champion)]
        start = max(firsts)
        contender, champion = (
            evidence.since(start - first) for evidence, first in zip((contender, champion), firsts, strict=True)
        )
        if not np.array_equal(contender.rows, champion.rows):
            raise ValueError("the features of the champion's recipe give other rows than the candidate's")
        before = np.array([self.since - timedelta(microseconds=1)], "datetime64[us]")
        first_day = int(self.champion.grid.days_of(before)[0]) + 1  # the first whole one
        return Both(contender, champion, self.champion.grid.begin_of(start), first_day - 7 * start)


@dataclass(frozen=True, eq=False)
class Both:
    """The evidence of both recipes, of the same weeks, when the first begins, and the first clean day among theirs."""

    contender: Evidence
    champion: Evidence
    begin: datetime
    first_day: int

    @property
    def course(self) -> Course:
        """The gain of each week, and what a look at its end was sure of."""
        gains, rows = self.sum_gains()
        begins = [self.begin + int(week) * WEEK for week in np.flatnonzero(self._sum_clean()[1].any(axis=1))]
        looks = [measure_race(gains[: week + 1], rows[: week + 1]) for week in range(len(rows))]
        bounds = [None if look is None else float(look.bound.low) for look in looks]
        return Course("week", "saved at the same age", begins, (gains.sum(axis=1) / rows.sum(axis=1)).tolist(), bounds)

    def sum_gains(self) -> tuple[Floats, Floats]:
        """Sums of loss saved on clean days by the contender's fit of each week, and their rows, (weeks, 7)."""
        gains, rows = self._sum_clean()
        held = rows.any(axis=1)
        return gains[held], rows[held]

    def _sum_clean(self) -> tuple[Floats, Floats]:
        """The same of all weeks, without a clean day too."""
        weeks = np.arange(self.contender.weeks)
        gains = self.champion.losses[weeks, weeks] - self.contender.losses[weeks, weeks]
        clean = (7 * weeks[:, None] + np.arange(7) >= self.first_day) & np.isfinite(gains)
        return np.where(clean, gains, 0.0), np.where(clean, self.contender.rows, 0.0)


def judge_race(
    contest: Contest,
    sums: HoldoutSums,
    refit: Refit,
    pair: Pair,
    *,
    as_of: datetime,
    costs: Costs,
    slices: Slices,
) -> Verdict:
    """The verdict on a recipe that is not the champion's; the evidence that it lacks is made.

    Args:
        contest: With the champion as it serves, on the candidate's holdout, for slices and figures.
        sums: The same by day, for the guard.
    """
    p, began = pair.contender.p, cost.read_own_usage()
    made, both = pair.make_fits(as_of), pair.read(as_of)
    gains, rows = both.sum_gains() if both else (np.empty((0, 7)), np.empty((0, 7)))
    race = measure_race(gains, rows)
    least = gate.choose_least(p.gate, contest.skill("champion").loss)
    held = refresh.count_held_weeks(p)
    past = both.contender.list_past_gains(refit.weeks, held, older=both.champion) if both else np.empty(0)
    guard = ageing.guard_fit(sums.gains, sums.rows, skill=sums.skill, past=past)
    findings = [_ask_race(race, least, pair), refresh.ask_guard(guard, p.gate.metric)]
    if race and race.wins(least.value):  # the fits that show what is usual are made where they may decide
        collected = pair.contender.collect(as_of)
        made += collected.fits if collected else 0
        shift, has_weeks = refresh.measure_shipped(refit, pair.contender, held, p, as_of), _has_weeks(collected)
        findings.append(refresh.ask_shift(shift, has_weeks=has_weeks))
    spent = {"evidence_fits": made, "evidence_cpu": cost.read_own_usage() - began}
    course = {"course": both.course.to_dict()} if both and race else {}
    figures = {**_list_figures(race, guard, least), **course, **spent}
    too_few = gate.find_too_few(int(rows.sum()), (rows > 0).sum() * DAY // p.gate.block, p.gate)
    return gate.judge_findings(
        contest, findings, figures, gate=p.gate, costs=costs, slices=slices, too_few=list(too_few)
    )


def _has_weeks(collected: Collected | None) -> bool:
    return collected is not None and collected.evidence.weeks >= ageing.MIN_WEEKS


def _ask_race(race: Race | None, least: Share, pair: Pair) -> Finding:
    since = f"{pair.since:%Y-%m-%d}, which neither recipe's search has seen"
    goes_on = "It stays the contender: its race goes on with `retrain --kind contender`."
    if race is None:
        return Finding("HOLD", f"No whole week has fits of both recipes since {since}. {goes_on}")
    gain, low, high = (float(value) for value in (race.bound.gain, race.bound.low, race.high))
    measured = (
        f"at the same age it saved {gain:+.4g} a row in {race.weeks} week{'' if race.weeks == 1 else 's'} since {since}"
    )
    if race.wins(least.value):
        bound = f"surely more than {low:+.4g} (a bound for looks in every week), and more than {least} is asked"
        return Finding("PROMOTE", f"Better than the champion's recipe: {measured}, {bound}.")
    if race.is_lost:
        return Finding("REJECT", f"Worse than the champion's recipe: {measured}, surely less than {high:+.4g}.")
    wide = "luck that a week's days share" if race.bound.is_by_weeks else "how the days differ"
    bound = f"surely more than {low:+.4g} and less than {high:+.4g} (for looks in every week); {least} is asked"
    narrower = f"More weeks narrow it; {wide} makes it wide."
    return Finding("HOLD", f"Not surely better than the champion's recipe: {measured}, {bound}. {narrower} {goes_on}")


def _list_figures(race: Race | None, guard: Guard, least: Share) -> dict[str, Any]:
    measured = (
        {
            "race_gain": float(race.bound.gain),
            "race_bound": float(race.bound.low),
            "race_high": float(race.high),
            "race_weeks": race.weeks,
        }
        if race
        else {}
    )
    return {**measured, "least": least.value, "guard_bound": float(guard.bound.low), "guard_floor": guard.floor}
