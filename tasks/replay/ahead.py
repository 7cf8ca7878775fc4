"""ahead: candidates and past fits that are known to be needed, made side by side in processes of their own.

Each process fits with one thread, so the cores are shared evenly and a candidate's seconds of CPU are its own. Nothing
is handed back: what is made lies on the shelf, where a killed replay finds it again. With train.distributed they are
made in this process, one after the other, since each fit wants the workers for itself.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime

from tasks.params import Params
from tasks.replay.history import History, Training
from tasks.runtime import engine


@dataclass(frozen=True)
class Work:
    """A candidate to train, or past fits of a recipe to make: one alone, since a fit is calibrated by older ones."""

    training: Training | None
    search: datetime
    weeks: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return f"the candidate of {self.training.as_of}" if self.training else f"the past fits of {self.search}"


@dataclass(frozen=True)
class Workers:
    """Processes that fill the shelf of one history: as many as stage.threads, or a cluster that stage.cluster names."""

    history: History
    p: Params

    def start(
        self, trainings: Sequence[Training], fits: Mapping[datetime, Sequence[int]]
    ) -> tuple[list["Future[None]"], list["Future[None]"]]:
        """Begin to put candidates and past fits on the shelf; a future each, in their order."""
        works = [Work(training, training.search) for training in trainings]
        works += [Work(None, search, tuple(weeks)) for search, weeks in fits.items()]
        futures: list[Future[None]] = [Future() for _ in works]
        threading.Thread(target=self._make, args=(works, futures), daemon=True).start()
        return futures[: len(trainings)], futures[len(trainings) :]

    def _make(self, works: Sequence[Work], futures: Sequence["Future[None]"]) -> None:
        names = [work.name for work in works]
        try:
            engine.map_ordered(
                make, self.history, works, self.p, names=names, report=lambda place: futures[place].set_result(None)
            )
        except BaseException as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)


@contextlib.contextmanager
def open_workers(history: History) -> Iterator[Workers]:
    """They start when they are needed, and end with the block."""
    stage = history.p.stage
    alone = history.p.model_copy(update={"stage": stage.model_copy(update={"threads": 1, "cluster": None})})
    cluster = stage.cluster or f"{engine.LOCAL}{stage.threads}"
    spread = history.p.model_copy(update={"stage": stage.model_copy(update={"cluster": cluster})})
    if history.p.train.distributed:
        alone, spread = history.p, alone
    try:
        yield Workers(replace(history, p=alone), spread)
    finally:
        engine.close()


def make(history: History, work: Work) -> None:
    """Put something on the shelf. What cannot be trained is left out: the walk meets it again."""
    if work.training is None:
        return history.open_fits(work.search).fit(work.weeks)
    with contextlib.suppress(ValueError):
        history.candidate(work.training.as_of, work.search)
    return None
