"""The fits of a search as plain data in and out, so that a thread, a process or another machine may do each.

The parameters and the place of the rows travel; whoever fits has the folds of them, made once and kept. What decides a
trial is drawn before: its parameters, and the score by fold above which it is behind its elders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tasks.data import storedrows
from tasks.params import Params
from tasks.runtime.threads import stop_event
from tasks.training import fitting
from tasks.training.fitting import Progress


class Behind(Exception):  # noqa: N818 (it says what happened)
    """A trial that is pruned."""


@dataclass(frozen=True)
class Task:
    """A search: its settings, and the folder of its rows as of then."""

    p: Params
    source: Path
    as_of: datetime

    @cached_property
    def folds(self) -> fitting.Folds:
        rows = storedrows.open_rows(self.source, memory=self.p.stage.memory_bytes)
        return fitting.Folds(self.p, rows, self.as_of)

    @property
    def threads(self) -> int:
        """Of each fit beside another: more than there are cores cost more than they give."""
        return max(1, self.p.stage.threads // self.p.tune.parallel)

    def __reduce__(self) -> Any:
        """Without the folds: their rows are read where they are needed."""
        return Task, (self.p, self.source, self.as_of)


@dataclass(frozen=True)
class Draw:
    """A trial to fit.

    Attributes:
        limits: after the first fold, the second, and so on: a mean score above this is behind.
        side: whose matrices it takes: those that run side by side in one process have their own.
    """

    number: int
    params: dict[str, Any]
    limits: tuple[float, ...] = ()
    side: int = 0


@dataclass(frozen=True)
class Fitted:
    """What a trial came to. `score` is None when it was pruned, `steps` its mean score after each fold but the last."""

    score: float | None
    rounds: int
    steps: tuple[float, ...] = ()
    size: float | None = None


@dataclass(frozen=True)
class SlowDraw:
    """A fold of the winner with a smaller step size, by other settings."""

    params: dict[str, Any]
    p: Params
    fold: int


def fit_trial(task: Task, draw: Draw) -> Fitted:
    """The mean of the folds' best validation scores, weighted by their rows."""
    steps, stop = list[float](), stop_event()

    def report(_epoch: int, scores: Sequence[float]) -> None:
        if not np.isfinite(scores[-1]):
            raise Behind  # labels beyond what float32 holds

    def watch(progress: Progress, _rows: int) -> Any:
        if progress.folds:
            steps.append(progress.mean)
            if progress.mean > draw.limits[progress.folds - 1]:
                raise Behind
        return fitting.make_watcher(stop, report)

    parts = task.folds.bin_thinned(draw.params, draw.side)
    try:
        progress, rounds = fitting.fit_folds(draw.params, parts, task.folds.spec, task.p, watch, threads=task.threads)
    except Behind:
        return Fitted(None, 0, tuple(steps))
    size = progress.size / progress.folds if task.p.tune.small else None
    return Fitted(progress.mean, rounds, tuple(steps), size)


def fit_final(task: Task, draw: Draw) -> Fitted:
    """A trial's parameters on all rows."""
    parts, watcher = task.folds.bin_whole(draw.params), fitting.make_watcher(stop_event())
    progress, rounds = fitting.fit_folds(
        draw.params, parts, task.folds.spec, task.p, lambda *_: watcher, threads=task.threads
    )
    return Fitted(progress.mean, rounds)


def fit_slower(task: Task, draw: SlowDraw) -> tuple[Progress, int]:
    """One fold on all its rows."""
    part, watcher = task.folds.bin_one(draw.params, draw.fold), fitting.make_watcher(stop_event())
    threads = max(1, draw.p.stage.threads // task.folds.count)
    return fitting.fit_folds(draw.params, [part], task.folds.spec, draw.p, lambda *_: watcher, threads=threads)
