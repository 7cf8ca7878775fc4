"""refresh: may the champion's recipe, fitted to newer rows, take its place? Evidence, holdout → verdict.

Three questions, and PROMOTE when all are answered with yes. Does age cost this recipe anything, by all its past fits
(ageing)? Is the newest fit sound on its own holdout? Do the predictions of the fit that ships lie as near to its twin's
as those of past fits did? A refresh spends no look: the bound of the first question holds for every week.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.params import Params
from tasks.promotion import ageing, gate
from tasks.promotion.ageing import AgeCost, Guard, Leap, Shift
from tasks.promotion.contest import Contest
from tasks.promotion.evidence import Collected, Fits, measure_shift
from tasks.promotion.gate import Costs, Finding
from tasks.promotion.slices import Slices
from tasks.promotion.verdict import Outcome, Verdict
from tasks.promotion.weekgrid import WEEK, Grid
from tasks.training import split
from tasks.training.model import Model


@dataclass(frozen=True)
class Refit:
    """The fit that ships, its twin, and how old the champion is."""

    shipped: Model
    twin: Model
    age: timedelta

    @property
    def weeks(self) -> int:
        """The champion's age, at least one."""
        return max(1, round(self.age / WEEK))


@dataclass(frozen=True)
class HoldoutSums:
    """What a candidate saves over the champion on its own holdout, by day."""

    gains: NDArray[np.float64]
    rows: NDArray[np.float64]
    skill: float  # the best constant's mean loss less that of the better recipe

    @staticmethod
    def of(
        candidate: NDArray[Any], champion: NDArray[Any], constant: NDArray[Any], days: NDArray[np.int64]
    ) -> "HoldoutSums":
        """From row losses: (seeds, rows) of both recipes and (rows,) of the constant; days by number (rows,)."""
        place = days - days.min()
        saved = champion.mean(axis=0) - candidate.mean(axis=0)
        sums, rows = np.bincount(place, saved).astype(np.float64), np.bincount(place).astype(np.float64)
        return HoldoutSums(sums, rows, float(constant.mean() - min(champion.mean(), candidate.mean())))


def judge_refresh(
    contest: Contest,
    sums: HoldoutSums,
    refit: Refit,
    fits: Fits,
    *,
    as_of: datetime,
    costs: Costs,
    slices: Slices,
) -> Verdict:
    """The verdict; the evidence that it lacks is made."""
    p, collected = fits.p, fits.collect(as_of)
    held = count_held_weeks(p)
    cost = ageing.choose_cost(ageing.measure_ages(collected.evidence, refit.weeks)) if collected else None
    past = collected.evidence.list_past_gains(refit.weeks, held) if collected else np.empty(0)
    guard = ageing.guard_fit(sums.gains, sums.rows, skill=sums.skill, past=past)
    shift = measure_shipped(refit, fits, held, p, as_of)
    leap = ageing.measure_leap(sums.gains, sums.rows, past=past)
    age = _ask_age(cost) if cost and not leap.is_sure else _ask_leap(leap, refit)
    findings = [age, ask_guard(guard, p.gate.metric), ask_shift(shift, has_weeks=cost is not None)]
    asked = None if leap.is_sure else cost
    figures = _list_leap(leap) | _list_figures(collected, asked, guard, shift, refit, fits.grid)
    return gate.judge_findings(contest, findings, figures, gate=p.gate, costs=costs, slices=slices)


def count_held_weeks(p: Params) -> int:
    """How much older a twin is than the fit that ships."""
    return max(1, round((p.split.holdout + p.label.deadline) / WEEK))


def measure_shipped(refit: Refit, fits: Fits, held: int, p: Params, as_of: datetime) -> Shift | None:
    """None where the twin itself ships."""
    if not p.train.refit:
        return None
    unseen = split.select_between(fits.rows.event_time, as_of - p.split.holdout - p.label.deadline, as_of)
    rows = fits.rows.take(unseen).load()
    return Shift(measure_shift(refit.shipped, refit.twin, rows), fits.measure_shifts(held, as_of))


def _ask_leap(leap: Leap, refit: Refit) -> Finding:
    """Where too few weeks tell what age costs, or something has just changed."""
    gain, low, least = (float(value) for value in (leap.bound.gain, leap.bound.low, leap.least))
    measured = f"on its own holdout the newest fit saves {gain:+.4g} a row, surely more than {low:+.4g}"
    if leap.is_sure:
        beyond = f", beyond {ageing.LEAP} times what is usual of past fits ({least:.4g})" if least else ""
        return Finding("PROMOTE", f"Much better than the champion: {measured}{beyond}.")
    few = f"fewer than {ageing.MIN_WEEKS} weeks show what being {refit.weeks} weeks old costs this recipe"
    return Finding(
        "HOLD", f"Not sure that age costs this recipe anything: {few}, and {measured}. More weeks will tell."
    )


def _ask_age(cost: AgeCost) -> Finding:
    young, old = cost.band
    gain, low, recent = (float(value) for value in (cost.bound.gain, cost.bound.low, cost.recent))
    measured = (
        f"fits that were {young} to {old} weeks old lost {gain:+.4g} a row more than fresh ones in {cost.weeks} past "
        f"weeks, surely more than {low:+.4g} (a bound for looks in every week)"
    )
    if cost.is_lasting:
        return Finding("PROMOTE", f"Age costs this recipe: {measured}.")
    if cost.is_shock:
        fits = f"in the newest {ageing.SHOCK_WEEKS} weeks alone fits that were {young} to {old} weeks old lost"
        sure = f"surely more than {float(cost.newest.low):+.4g}"
        newest = f"{fits} {float(cost.newest.gain):+.4g} a row more than fresh ones, {sure}"
        return Finding("PROMOTE", f"Age costs this recipe since something changed: {newest}.")
    if low > 0:
        return Finding("HOLD", f"Age cost this recipe, but no longer: {measured}, yet {recent:+.4g} in the newest.")
    wide = "luck that the days of a week share" if cost.bound.is_by_weeks else "how the days differ"
    narrower = f"More weeks narrow it; {wide} makes it wide."
    return Finding("HOLD", f"Not sure that age costs this recipe anything: {measured}. {narrower}")


def ask_guard(guard: Guard, metric: str) -> Finding:
    gain, low = float(guard.bound.gain), float(guard.bound.low)
    unit = "squared error" if metric == "rmse" else "log loss"
    measured = f"on its own holdout the newest fit saves {gain:+.4g} of {unit} a row, surely more than {low:+.4g}"
    limit = f"{guard.floor:.4g}, {ageing.GUARD_SHARE:.0%} of the skill"
    if low > guard.floor:
        return Finding("PROMOTE", f"Sound: {measured}; the limit is {limit}.")
    if guard.yardstick is None:
        return Finding("HOLD", f"Not surely sound: {measured}; the limit is {limit}, and too few past fits stand in.")
    past = f"of past fits all but {ageing.YARDSTICK_QUANTILE:.0%} saved more than {float(guard.yardstick):+.4g}"
    if guard.holds:
        return Finding("PROMOTE", f"Sound, as past fits go: {measured}, and {past}.")
    return Finding("HOLD", f"Not surely sound: {measured}; the limit is {limit}, and {past}.")


def ask_shift(shift: Shift | None, *, has_weeks: bool) -> Finding:
    if shift is None:
        return Finding(None, "The very model that was judged ships.")
    measured = f"the predictions of the fit that ships differ by {shift.change:.4g} on average from its twin's"
    if shift.most is None:
        outcome: Outcome | None = "HOLD" if has_weeks else None  # a short history has no past fits for long
        return Finding(outcome, f"Not comparable: {measured}, and no past fits tell what is usual.")
    usual = f"up to {shift.most:.4g} is usual, by {len(shift.past)} past fits"
    if shift.holds:
        return Finding("PROMOTE", f"As usual, {measured}; {usual}.")
    return Finding(
        "HOLD",
        f"Unusual: {measured}; {usual}. Check the labels of the newest weeks, which only the fit that ships saw.",
    )


def _list_leap(leap: Leap) -> dict[str, Any]:
    """Of one that decides: the age's evidence is then not what was asked."""
    if not leap.is_sure:
        return {}
    gain, low, least = (float(value) for value in (leap.bound.gain, leap.bound.low, leap.least))
    return {"leap_gain": gain, "leap_bound": low, "leap_least": least}


def _list_figures(
    collected: Collected | None, cost: AgeCost | None, guard: Guard, shift: Shift | None, refit: Refit, grid: Grid
) -> dict[str, Any]:
    begin = grid.begin_of(collected.first_week) if collected else None
    age = (
        {
            "age_band": f"{cost.band[0]} to {cost.band[1]} weeks",
            "age_gain": float(cost.bound.gain),
            "age_bound": float(cost.bound.low),
            "age_recent": float(cost.recent),
            "age_weeks": cost.weeks,
            "course": ageing.course_of_age(collected.evidence, cost.band, begin).to_dict(),
        }
        if cost and collected and begin
        else {}
    )
    return {
        "kind": "refresh",
        "looked": False,
        "champion_age": refit.weeks,
        **age,
        "guard_bound": float(guard.bound.low),
        "guard_floor": guard.floor,
        "shift": shift.change if shift else None,
        "shift_usual": shift.most if shift else None,
        "evidence_fits": collected.fits if collected else 0,
        "evidence_cpu": collected.cpu if collected else 0.0,
    }
