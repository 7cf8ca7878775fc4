"""First models that are no better than a baseline, week after week, and one that is surely better."""

import math

import numpy as np

from tests.tasks.promotion import years
from tests.tasks.promotion.holdouts import BEGIN, DAY, GATE, first, judged

NOISE = {
    "normal": lambda rng: rng.standard_normal(28),
    "t3": lambda rng: rng.standard_t(3, 28),
    "exponential": lambda rng: 1 - rng.exponential(size=28),
}  # gains of 28 days


def share_promoted_at_once(kind: str, count: int) -> float:
    """Of candidates that are better by 3.5 standard errors of a plain bootstrap over 28 days, which are the spread of
    the days over the root of 28."""
    rng, times, gate = np.random.default_rng(11), BEGIN + np.arange(28) * DAY, GATE.model_copy(update={"min_rows": 1})
    promoted = 0
    for _ in range(count):
        noise = NOISE[kind](rng)
        gains = noise - noise.mean() + 3.5 * noise.std() / math.sqrt(28)
        promoted += first(judged(100 - gains), {"linear": judged(np.full(28, 100.0))}, times=times, gate=gate).promotes
    return promoted / count


def share_of_years_with_a_first_model(kind: str, count: int) -> float:
    """A recipe a week that is no better than the baseline, each on 28 days; the share of years that promote any."""
    rng, times, gate = np.random.default_rng(12), BEGIN + np.arange(28) * DAY, GATE.model_copy(update={"min_rows": 1})
    losses = 100 + years.EQUALS[kind](rng, (count, 35, years.DAYS))
    promoted = 0
    for year in losses:
        looks = (
            first(judged(year[k + 1, 7 * k : 7 * k + 28]), {"b": judged(year[0, 7 * k : 7 * k + 28])}, times=times,
                  gate=gate, looks=k).promotes
            for k in range(34)
        )  # fmt: skip
        promoted += any(looks)
    return promoted / count
