"""Made years of weekly fits, in the shape of real ones, and how a champion lives through them by the rule of ageing.

A fit of each of 44 weeks, scored on all later days. The sizes are those of one recipe on the flights: 900 rows a day,
a standard deviation of 0.006 in a day's loss from fit to fit, and 0.0007 in what a fit's luck adds to all its days.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.promotion import ageing
from tasks.promotion.ageing import Evidence

Floats = NDArray[np.float64]
WEEKS = 44
DAYS = 7 * WEEKS
FIRST = 9  # the week whose beginning the first champion was fitted at; 34 looks follow
HOLDOUT = 4  # weeks
ROWS = 900.0  # a day
SPREAD = 0.006  # of a day's loss, from fit to fit
LUCK = 0.0007  # of a fit, over all its days
# What a week costs every fit, a row: around 0.47, with a standard deviation of 17 % from week to week.
LEVELS = np.repeat(0.47 * np.exp(0.17 * np.random.default_rng(11).standard_normal(WEEKS)), 7)
SKILL = 0.07  # the constant baseline's loss less the model's
CREEP = 0.001 * SKILL  # a week
BATCH = 400  # years that are made at a time

Shape = tuple[int, int, int]  # years, fits, days


def make_correlated(rng: np.random.Generator, shape: Shape, rho: float) -> Floats:
    """AR(1) days of variance 1."""
    drawn = rng.standard_normal(shape)
    for day in range(1, shape[-1]):
        drawn[..., day] = rho * drawn[..., day - 1] + np.sqrt(1 - rho**2) * drawn[..., day]
    return drawn


def make_season(rng: np.random.Generator, shape: Shape) -> Floats:
    """Each fit has weekdays of its own that it does better and worse on."""
    phase, height = rng.uniform(0, 2 * np.pi, (*shape[:2], 1)), 1.4 * rng.standard_normal((*shape[:2], 1))
    return rng.standard_normal(shape) + height * np.cos(2 * np.pi * np.arange(shape[-1]) / 7 + phase)


def make_bad_days(rng: np.random.Generator, shape: Shape) -> Floats:
    """On three days of a hundred some fits lose a lot, any of them."""
    is_bad = rng.random((shape[0], 1, shape[2])) < 0.03
    return rng.standard_normal(shape) + np.where(is_bad, 8 * (rng.exponential(size=shape) - 1), 0)


def make_lucky(rng: np.random.Generator, shape: Shape) -> Floats:
    """Real luck, and days that go together."""
    return make_correlated(rng, shape, 0.3) + LUCK / SPREAD * rng.standard_normal((*shape[:2], 1))


def make_shared(rng: np.random.Generator, shape: Shape) -> Floats:
    """Fits drift apart, and a day's weather strikes them by how far."""
    places = np.cumsum(rng.standard_normal((*shape[:2], 1)), axis=1) / 3
    return 0.7 * rng.standard_normal(shape) + places * make_correlated(rng, (shape[0], 1, shape[2]), 0.4)


EQUALS: dict[str, Callable[[np.random.Generator, Shape], Floats]] = {
    "days are independent": lambda rng, shape: rng.standard_normal(shape),
    "days go together, 0.2": lambda rng, shape: make_correlated(rng, shape, 0.2),
    "days go together, 0.4": lambda rng, shape: make_correlated(rng, shape, 0.4),
    "weekly season": make_season,
    "heavy tails": lambda rng, shape: rng.standard_t(3, shape) / np.sqrt(3),
    "3 % bad days": make_bad_days,
    "luck of a fit": make_lucky,
    "weather that strikes fits alike": make_shared,
}


def to_evidence(losses: Floats, rows: float = ROWS, *, levels: Floats = LEVELS) -> Evidence:
    """Mean losses a row beyond what the day costs every fit, (years, fits, days), as evidence.

    Args:
        levels: What it costs, (days,).
    """
    fits, days = np.arange(WEEKS)[:, None], np.arange(DAYS)
    sums = np.where(days >= 7 * fits, (levels + losses) * rows, np.nan)
    return Evidence(sums.reshape(-1, WEEKS, WEEKS, 7), np.full((WEEKS, 7), rows))


def make_noise(rng: np.random.Generator, years: int, rows: float = ROWS) -> Floats:
    """Real luck and days, at the size that a table of so many rows a day has."""
    return SPREAD * np.sqrt(ROWS / rows) * make_lucky(rng, (years, WEEKS, DAYS))


def cost_of_age(weeks: Floats) -> Floats:
    """What the flights lose by it: 0.007 after 6 weeks, 0.012 after 12."""
    return np.asarray(0.0016 * weeks / (1 + weeks / 20), np.float64)


def list_ages() -> Floats:
    """In weeks, (fits, days); 0 before the fit."""
    return np.maximum(np.arange(DAYS) / 7 - np.arange(WEEKS)[:, None], 0)


def may_refresh(evidence: Evidence, now: int, champion: int) -> NDArray[np.bool_]:
    """For each year: is the fit of this week promoted over that of the champion's week? By the gate's own code."""
    past, age = evidence.until(now), now - champion
    begin = now - HOLDOUT
    gains = past.losses[:, max(champion - HOLDOUT, 0), begin:] - past.losses[:, begin, begin:]
    gains, rows = gains.reshape(len(gains), -1), past.rows[begin:].ravel()
    usual = past.list_past_gains(age, HOLDOUT)
    allowed = ageing.measure_leap(gains, rows, past=usual).is_sure
    for cost in ageing.measure_ages(past, age):
        allowed = allowed | cost.is_sure
    return allowed & ageing.guard_fit(gains, rows, skill=SKILL, past=usual).holds


@dataclass(frozen=True)
class Lives:
    """How each year went by weekly looks: the champion's last fit, its promotions and mean losses (years, weeks)."""

    champion: NDArray[np.intp]
    promotions: NDArray[np.intp]
    losses: Floats


def live(evidence: Evidence, first: int = FIRST) -> Lives:
    years = len(evidence.losses)
    champion, promotions = np.full(years, first), np.zeros(years, int)
    losses = np.full((years, WEEKS), np.nan)
    for now in range(first, WEEKS):
        for fit in np.unique(champion) if now > first else ():
            chosen = np.flatnonzero(champion == fit)
            promoted = chosen[may_refresh(Evidence(evidence.losses[chosen], evidence.rows), now, int(fit))]
            champion[promoted] = now
            promotions[promoted] += 1
        losses[:, now] = evidence.losses[np.arange(years), champion, now].sum(-1) / evidence.rows[now].sum()
    return Lives(champion, promotions, losses)


def list_losses(evidence: Evidence, fit: int) -> Floats:
    """The mean losses of one fit, (years, weeks)."""
    return np.asarray(evidence.losses[:, fit].sum(-1) / evidence.rows.sum(-1))


def share_promoted(name: str, count: int) -> float:
    """The share of years in which equals are promoted at any of 34 looks at one champion."""
    rng, promoted = np.random.default_rng((7, list(EQUALS).index(name))), 0
    for begin in range(0, count, BATCH):
        evidence = to_evidence(SPREAD * EQUALS[name](rng, (min(BATCH, count - begin), WEEKS, DAYS)))
        looks = [may_refresh(evidence, now, FIRST) for now in range(FIRST + 1, WEEKS + 1)]
        promoted += np.any(looks, axis=0).sum()
    return float(promoted / count)


def measure_ageing(count: int) -> tuple[float, float]:
    """Where age costs what it costs on the flights: the share of years with a promotion, and the share that is kept of
    what the newest fit of each week saves."""
    evidence = to_evidence(make_noise(np.random.default_rng(1), count) + cost_of_age(list_ages()))
    lives, never = live(evidence), list_losses(evidence, FIRST)
    always = np.stack([list_losses(evidence, week)[:, week] for week in range(WEEKS)], 1)
    kept = (never - lives.losses)[:, FIRST:].mean() / (never - always)[:, FIRST:].mean()
    return float((lives.promotions > 0).mean()), float(kept)


def measure_creep(count: int) -> float:
    """By what share of skill the loss is higher after a year, where each week's fit is worse than the one before."""
    rise = CREEP * np.arange(WEEKS)[:, None]
    evidence = to_evidence(make_noise(np.random.default_rng(2), count) + rise)
    return float((live(evidence).losses - list_losses(evidence, FIRST))[:, -1].mean() / SKILL)


def measure_regime(count: int) -> float:
    """By what share of skill the loss is higher than never retraining has it, where age costs in the first half of a
    year, and in the second it does not and the newest fits are 5 % of skill worse."""
    turn, ages = WEEKS // 2, list_ages()
    at_turn = ages[:, 7 * turn][:, None]
    cost = cost_of_age(np.where(np.arange(DAYS) < 7 * turn, ages, at_turn))
    worse = np.where(np.arange(WEEKS) >= turn, 0.05 * SKILL, 0)[:, None]
    evidence = to_evidence(make_noise(np.random.default_rng(3), count) + cost + worse)
    return float((live(evidence).losses - list_losses(evidence, FIRST))[:, FIRST:].mean() / SKILL)


def share_worse_promoted(share: float, count: int) -> float:
    """The share of fits that pass one look, where age costs something and this very fit is worse by so much of skill
    than the champion is."""
    now, champion = 30, 22
    losses = make_noise(np.random.default_rng(4), count) + cost_of_age(list_ages())
    losses[:, now - HOLDOUT] += share * SKILL + cost_of_age(np.array(float(now - champion + 1)))
    return float(may_refresh(to_evidence(losses), now, champion).mean())


def share_opened(rows_a_week: float, count: int) -> float:
    """The share of years with a promotion where age costs something, at so many rows."""
    rows = rows_a_week / 7
    noise = make_noise(np.random.default_rng(5), count, rows)
    return float((live(to_evidence(noise + cost_of_age(list_ages()), rows)).promotions > 0).mean())
