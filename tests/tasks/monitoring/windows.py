"""Made weeks of a champion whose rows stay the same, or whose labels turn, and what the signal of performance says."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.monitoring.excess import measure_holdout
from tasks.monitoring.signal import Signal
from tasks.monitoring.signals.performance import measure_performance
from tasks.monitoring.window import Predictions, Watched, Window
from tasks.params import Params, Task
from tasks.promotion.contest import row_losses
from tasks.promotion.registry import Version
from tasks.training.model import Model, Spec
from tests.tasks import small

BEGIN = datetime(2024, 1, 1)
DAY = timedelta(days=1)
HELD, WEEK = 28, 7  # days
PER_DAY = 150
STATED = 0.025  # (1 - gate.level) / 2: how often a window alarms where nothing changed
TURNED = 0.1

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Days of scores, and of labels that follow them but for what days have in common. The shape is the flights'.

    Args:
        correlation: of a day's part in the log odds with the next day's.
        deviation: of it. With what follows each world's is about 0.3: days' excess then varies as the flights' does.
        season: the height of a sine over the week.
        bad: the share of days on which it is 4 deviations more.
    """

    correlation: float = 0.0
    deviation: float = 0.3
    season: float = 0.0
    bad: float = 0.0

    def draw(self, rng: np.random.Generator, days: int) -> tuple[Floats, Floats, Floats]:
        """The day of each row, its score and its label (days * PER_DAY)."""
        shocks, fresh = np.zeros(days), math.sqrt(1 - self.correlation**2)
        for day, shock in enumerate(rng.normal(size=days)):
            shocks[day] = self.correlation * shocks[day - 1] + fresh * shock if day else shock
        shocks += 4 * (rng.random(days) < self.bad) - 4 * self.bad
        shocks = self.deviation * shocks + self.season * np.sin(2 * np.pi * np.arange(days) / 7)
        day = np.repeat(np.arange(days), PER_DAY)
        odds = rng.normal(-1.5, 1.0, len(day)) + 0.3 * rng.normal(size=days)[day]
        late = rng.random(len(day)) < 1 / (1 + np.exp(-odds - shocks[day]))
        return day.astype(float), 1 / (1 + np.exp(-odds)), late.astype(float)


WORLDS = {
    "independent": World(),
    "AR 0.2": World(0.2),
    "AR 0.4": World(0.4),
    "weekly": World(0.2, deviation=0.27, season=0.2),
    "bad days": World(0.2, deviation=0.25, bad=0.03),
}


def settings(task: Task = "binary", **overrides: Any) -> Params:
    return small.settings(task, **{"monitor.window": "7d", **overrides})


def to_times(day: Floats) -> NDArray[np.datetime64]:
    """A day's rows a few minutes apart."""
    minutes = np.arange(len(day)) % 1000 + 1440 * day.astype(np.int64)
    return np.datetime64(BEGIN, "us") + minutes.astype("timedelta64[m]")


def watch(p: Params, day: Floats, scores: Floats, label: Floats) -> Watched:
    """A champion with such a holdout."""
    unknown: Any = None
    losses = row_losses(label, scores, metric=p.gate.metric)
    at_promotion = measure_holdout(label, scores, losses, to_times(day), p.gate)
    classes = () if p.label.task == "regression" else (0.0, 1.0)
    version, model = Version(1, "run", "d", "r", BEGIN, "c", {}), Model(unknown, Spec(p.label.task, (), {}, classes))
    return Watched(version, model, unknown, p, unknown, unknown, losses, at_promotion, unknown)


def look(champion: Watched, day: Floats, scores: Floats, label: Floats) -> Signal:
    """The signal of a window, all outcomes of which are mature."""
    times, labels = to_times(day), np.empty(len(label), dtype=object)
    labels[:] = label
    since = BEGIN + float(day.min()) * DAY
    rows = Predictions(since, since + 7 * DAY, times, scores, labels)
    return measure_performance(Window(since, since + 7 * DAY, mature=rows), champion)


def live(world: World, p: Params, seed: int, *, turned: float = 0.0, windows: int = 1) -> Iterator[Signal]:
    """The signals of windows after a holdout; of these windows so many labels are turned."""
    rng = np.random.default_rng(seed)
    day, scores, label = world.draw(rng, HELD + WEEK * windows)
    label = np.where((rng.random(len(label)) < turned) & (day >= HELD), 1 - label, label)
    held = day < HELD
    champion = watch(p, day[held], scores[held], label[held])
    for window in range(windows):
        inside = (day >= HELD + WEEK * window) & (day < HELD + WEEK * (window + 1))
        yield look(champion, day[inside], scores[inside], label[inside])


def count_alarms(world: World, runs: int) -> int:
    p = settings()
    return sum(next(live(world, p, seed)).alarm for seed in range(runs))


def share_heard(world: World, runs: int) -> float:
    """Of the runs, those in which one of two windows alarms once labels are turned."""
    p = settings()
    return sum(any(one.alarm for one in live(world, p, seed, turned=TURNED, windows=2)) for seed in range(runs)) / runs
