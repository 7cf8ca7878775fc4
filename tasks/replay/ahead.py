"""ahead: candidates and past fits that are known to be needed, made side by side in processes of their own.

Each process fits with one thread, so the cores are shared evenly and a candidate's seconds of CPU are its own. Nothing
is handed back: what is made lies on the shelf, where a killed replay finds it again.
"""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from multiprocessing import connection

from tasks.replay.history import History, Training

_WORKER: list[History] = []  # of a process of the pool: one


@dataclass(frozen=True)
class Workers:
    """Processes that fill the shelf of one history."""

    pool: ProcessPoolExecutor

    def train(self, training: Training) -> "Future[None]":
        """A job that puts a candidate on the shelf."""
        return self.pool.submit(_train, training)

    def fit(self, search: datetime, weeks: Sequence[int]) -> "Future[None]":
        """A job that makes past fits of a recipe. One alone, since a fit is calibrated by older ones."""
        return self.pool.submit(_fit, search, weeks)


@contextlib.contextmanager
def open_workers(history: History) -> Iterator[Workers]:
    """As many as stage.threads, each begun when it is needed. They end with the block, and what none has begun is
    dropped."""
    one = history.p.model_copy(update={"stage": history.p.stage.model_copy(update={"threads": 1})})
    alone = replace(history, p=one)
    context = multiprocessing.get_context("spawn")  # a forked XGBoost may wait for threads that it does not have
    pool = ProcessPoolExecutor(history.p.stage.threads, context, initializer=_remember, initargs=(alone,))
    try:
        yield Workers(pool)
    finally:
        pool.shutdown(cancel_futures=True)


def _remember(history: History) -> None:
    _WORKER.append(history)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A replay that is killed leaves no process that goes on training."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _train(training: Training) -> None:
    """What cannot be trained is left out: the walk meets it again."""
    with contextlib.suppress(ValueError):
        _WORKER[0].candidate(training.as_of, training.search)


def _fit(search: datetime, weeks: Sequence[int]) -> None:
    _WORKER[0].open_fits(search).fit(weeks)
