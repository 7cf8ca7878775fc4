"""Made holdouts, days that differ in size and in how often the outcome comes, and what the gate says of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.params import Gate
from tasks.promotion.contest import compare_losses, row_losses
from tasks.promotion.gate import Costs, judge_contest, judge_first_model
from tasks.promotion.verdict import Verdict

Floats = NDArray[np.float64]
GATE = Gate(metric="log_loss", min_rows=1000, margin=0.005)
SKILL = 0.2  # of the champion; so that the margin is 0.001 and the tolerance of slices 0.02
NOMINAL = (1 - GATE.level) / 2
BEGIN = np.datetime64("2024-03-01T00:00:00", "s")
DAY = np.timedelta64(86400, "s")
COSTS: dict[str, float] = {"calibration_error": 0.01, "megabytes": 1.0, "milliseconds": 0.1}


@dataclass(frozen=True)
class Judged:
    """One recipe on the holdout."""

    losses: Any
    costs: Costs


def judged(losses: Any, **costs: float) -> Judged:
    return Judged(np.asarray(losses), Costs(**(COSTS | costs)))


def judge(
    candidate: Judged, champion: Judged, *, times: Any, slices: Any, gate: Gate, looks: int = 0, skill: float = SKILL
) -> Verdict:
    constant = one_above(champion, gate, skill)
    contest = compare_losses(candidate.losses, champion.losses, times=times, gate=gate, constant=constant)
    return judge_contest(contest, gate=gate, costs=candidate.costs, slices=slices, looks=looks)


def first(
    candidate: Judged, baselines: Mapping[str, Judged], *, times: Any, gate: Gate, slices: Any = None, looks: int = 0
) -> Verdict:
    contests = {
        name: compare_losses(
            candidate.losses, baseline.losses, times=times, gate=gate, constant=one_above(candidate, gate)
        )
        for name, baseline in baselines.items()
    }
    return judge_first_model(contests, gate=gate, costs=candidate.costs, slices=slices, looks=looks)


def one_above(judged: Judged, gate: Gate, skill: float = SKILL) -> Floats:
    """The losses of a constant beside which this one has such a skill."""
    models = judged.losses.reshape(-1, judged.losses.shape[-1] or 1)
    means = np.array([math.fsum(model) / len(model) for model in models] or [0.0])  # in any order of the rows
    return np.full(1, means.mean() + skill if gate.metric == "log_loss" else (np.sqrt(means).mean() + skill) ** 2)


def at_most(trials: int, rate: float = NOMINAL) -> float:
    return trials * rate + 3 * math.sqrt(trials * rate * (1 - rate))


def sigmoid(logit: Floats) -> Floats:
    return 1 / (1 + np.exp(-logit))


class Days:
    """Rows of made days: days differ in size and in how often the outcome comes, and the model is not quite right."""

    def __init__(self, rng: np.random.Generator, days: int = 28, mean: int = 100) -> None:
        sizes = np.maximum(20, rng.poisson(mean * np.exp(rng.normal(0, 0.35, days))))
        self.day = np.repeat(np.arange(days), sizes)
        rows = len(self.day)
        self.x, self.weather = rng.normal(size=(rows, 3)), rng.normal(size=days)[self.day]
        logit = -1.6 + 0.8 * self.x[:, 0] - 0.5 * self.x[:, 1] + 0.4 * self.weather + rng.normal(0, 0.6, days)[self.day]
        self.label = (rng.random(rows) < sigmoid(logit)).astype(float)
        self.base = -1.5 + 0.7 * self.x[:, 0] - 0.4 * self.x[:, 1] + 0.2 * self.weather + 0.3 * np.sin(2 * self.x[:, 2])
        self.times = BEGIN + self.day * DAY + rng.integers(6 * 3600, 23 * 3600, rows).astype("timedelta64[s]")
        self.origin = rng.choice(["east", "north", "west"], rows)

    def loss(self, change: Any = 0.0) -> Floats:
        return row_losses(self.label, sigmoid(self.base + change), metric="log_loss")

    def noisy(self, rng: np.random.Generator, size: float = 0.2) -> Floats:
        """Another seed whose predictions differ a little, each row for itself: no seed is better than another."""
        return self.loss(size * rng.normal(size=len(self.day)))

    def lucky(self, rng: np.random.Generator, seeds: int = 3) -> Floats:
        """Other seeds that differ by smooth functions, as real ones do: some of them are truly better by luck."""
        x = self.x
        shapes = [np.sin(2 * x[:, 0]), np.cos(2 * x[:, 1]), np.sin(2 * x[:, 2]), self.weather / 2, x[:, 0] * x[:, 1]]
        return np.stack([self.loss(0.05 * rng.normal(size=5) @ np.stack(shapes)) for _ in range(seeds)])

    def judge(self, candidate: Any, champion: Any, *, gate: Gate = GATE, looks: int = 0, **costs: float) -> Verdict:
        slices = {"origin": self.origin}
        one, other = judged(candidate, **costs), judged(champion)
        return judge(one, other, times=self.times, slices=slices, gate=gate, looks=looks)
