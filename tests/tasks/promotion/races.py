"""Made years of races: each week is scored by both recipes' newest fits, at the sizes of years.py."""

import math

import numpy as np
from numpy.typing import NDArray

from tasks.promotion import ageing
from tasks.promotion.race import measure_race
from tests.tasks.promotion import years
from tests.tasks.promotion.years import EQUALS, LUCK, ROWS, SKILL, SPREAD, Floats, Shape

HELD = 4  # weeks of a holdout
LOOKS = 34


def make_lucky(rng: np.random.Generator, shape: Shape) -> Floats:
    """Days that go together, and a week's luck: other fits score each week, and share theirs over its days."""
    luck = np.repeat(rng.standard_normal((*shape[:2], shape[2] // 7)), 7, -1)
    return years.make_correlated(rng, shape, 0.3) + LUCK / SPREAD * luck


SHAPES = EQUALS | {"luck of a fit": make_lucky}


def make_losses(rng: np.random.Generator, name: str, count: int, recipes: int) -> Floats:
    """Mean losses a row of so many recipes, (years, recipes, days)."""
    return SPREAD * SHAPES[name](rng, (count, recipes, 7 * (HELD + LOOKS - 1)))


def sum_weeks(gains: Floats) -> tuple[Floats, Floats]:
    """Mean gains a row (years, days) as sums by week and day, and their rows."""
    sums = ROWS * gains.reshape(len(gains), -1, 7)
    return sums, np.full(sums.shape[1:], ROWS)


def judge(gains: Floats) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """In which years a contender with these gains (years, days) is promoted, and in which it leaves the race. Where the
    champion was fitted as lately, what it saves on its own holdout are its newest days."""
    race, newest = measure_race(*sum_weeks(gains)), gains[:, -7 * HELD :]
    assert race
    guard = ageing.guard_fit(ROWS * newest, np.full(7 * HELD, ROWS), skill=SKILL, past=np.empty((len(gains), 0)))
    return race.wins(0.0) & guard.holds, race.is_lost


def live(losses: Floats, every: int, worse: Floats | float = 0.0) -> tuple[NDArray[np.bool_], Floats]:
    """A champion and contenders, of which a new one comes after so many weeks. After a win the next races against it.

    Args:
        losses: Of the champion, then of each contender, (years, 1 + contenders, days).
        worse: What is added to each recipe's losses, (1 + contenders,).

    Returns:
        Whether anything was promoted (years,), and what is added to the losses of who serves at the end (years,).
    """
    losses = losses + np.broadcast_to(worse, losses.shape[1])[:, None]
    count, rows = len(losses), np.arange(len(losses))
    champion, is_open, promoted = np.zeros(count, int), np.zeros(count, bool), np.zeros(count, bool)
    for look in range(LOOKS):
        contender, begin = 1 + look // every, look // every * every
        if look % every == 0:
            is_open[:] = True
        days = slice(7 * begin, 7 * (HELD + look))
        wins, lost = judge(losses[rows, champion, days] - losses[:, contender, days])
        wins &= is_open
        champion[wins] = contender
        promoted |= wins
        is_open &= ~(wins | lost)
    return promoted, np.broadcast_to(worse, losses.shape[1])[champion]


def share_promoted(name: str, every: int, count: int) -> float:
    """The share of years in which an equal is promoted, where a new one comes after so many weeks."""
    rng = np.random.default_rng((8, list(SHAPES).index(name), every))
    losses = make_losses(rng, name, count, 1 + math.ceil(LOOKS / every))
    return float(live(losses, every)[0].mean())


def share_worse_promoted(share: float, count: int) -> float:
    """The share of contenders that pass the first look though they are worse by so much of skill."""
    losses = make_losses(np.random.default_rng(1), "luck of a fit", count, 2)[..., : 7 * HELD]
    return float(judge(losses[:, 0] - losses[:, 1] - share * SKILL)[0].mean())


def measure_creep(count: int) -> float:
    """By what share of skill the loss is higher after a year, where each week's recipe is worse by 0.1 % of skill than
    the one before."""
    losses = make_losses(np.random.default_rng(2), "luck of a fit", count, 1 + LOOKS)
    return float(live(losses, 1, years.CREEP * np.arange(1 + LOOKS))[1].mean() / SKILL)


def share_won(gain: float, count: int, weeks: tuple[int, ...]) -> tuple[list[float], float]:
    """Where a recipe gains so much of skill: the shares that were promoted by so many weeks after the first look, and
    the share that left the race in a year."""
    losses = make_losses(np.random.default_rng(3), "luck of a fit", count, 2)
    gains = losses[:, 0] - losses[:, 1] + gain * SKILL
    is_open, promoted, lost, shares = np.ones(count, bool), np.zeros(count, bool), np.zeros(count, bool), []
    for look in range(max(weeks) + 1):
        wins, leaves = judge(gains[:, : 7 * (HELD + look)])
        promoted |= wins & is_open
        lost |= leaves & is_open & ~wins
        is_open &= ~(wins | leaves)
        if look in weeks:
            shares.append(float(promoted.mean()))
    return shares, float(lost.mean())
