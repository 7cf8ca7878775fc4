"""gang: work whose parts need each other: all at once on the workers of stage.cluster, one a worker.

An item of the engine is alone: when its worker dies, another begins it again. Here a part's death is the end of all:
the others would wait for it for ever. So what is left of them is ended, and all begin anew.

    meet    on the first worker: opens what the parts find each other by
    work    on each worker: its own part, with what `meet` gave

Gangs of one scheduler take turns: two at once would each hold workers that the other waits for.
"""

import contextlib
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tasks import log
from tasks.params import Params
from tasks.runtime import cost, engine, engine_task
from tasks.runtime.engine import Cluster, ClusterLost, Unreachable
from tasks.runtime.threads import Stopped

Shared = TypeVar("Shared")
Result = TypeVar("Result")
TURN = "evergreen-gang"  # the lock of a scheduler
SETTLE_S = 2.0  # for parts to end by themselves when one has failed
FETCH_S = 10.0  # for a result
MEET_S = 120.0  # for `meet`, which comes first in a worker's queue


class LinkLost(ConnectionError):  # noqa: N818 (it says what happened)
    """A part lost the others. What is raised where a part's worker dies, and what `work` raises where its link does."""


@dataclass(frozen=True)
class Part:
    """What a worker's turn is: its place among all of them, and what `meet` gave."""

    place: int
    meeting: Any


def run_together(
    meet: Callable[[Shared, str], Any],
    work: Callable[[Shared, Part], Result],
    shared: Shared,
    count: int,
    p: Params,
    *,
    name: str,
    stop: threading.Event,
) -> list[Result]:
    """`work` on so many workers at once; their results by place.

    Args:
        meet: gets the host of its worker.
        count: of the workers, of which the cluster may have more.
        name: of the whole, for errors.
        stop: ends it when it is set.

    Raises:
        Exception: what a part raised: of several, the first by place.
        RuntimeError: a worker died, or parts lost each other, each time.
        ConnectionError: the cluster is gone and did not come back, or has too few workers.
        Stopped: `stop` was set.
    """
    address = str(p.stage.cluster)
    with engine.open_scratch() as folder:
        place = engine_task.write_shared(folder, shared)
        for left in reversed(range(engine.TRIES)):
            cluster = None
            try:
                cluster = engine.find_cluster(address)
                return _Gang(cluster, place, count, name, stop).run(meet, work)
            except (LinkLost, ClusterLost) as error:
                if cluster and cluster.ended:
                    raise Stopped from error
                if isinstance(error, Unreachable):
                    raise
                if isinstance(error, ClusterLost):
                    engine.forget_cluster(address)
                if not left:
                    raise RuntimeError(
                        f"{name} failed {engine.TRIES} times in a row. The last time: {error}"
                    ) from error
                log.warning("%s It begins anew.", error)
    raise AssertionError  # the last try has returned or raised


class _Gang:
    """One try."""

    def __init__(self, cluster: Cluster, shared: Path, count: int, name: str, stop: threading.Event) -> None:
        self.cluster, self.shared, self.count, self.name, self.stop = cluster, shared, count, name, stop

    def run(self, meet: Callable[[Any, str], Any], work: Callable[[Any, Part], Result]) -> list[Result]:
        with self.cluster.take_turn(TURN, self._check_stop):
            workers = self._wait_for_workers()
            self._run_on(workers, _arrive, range(self.count))  # behind what else they work on
            host = str(urlsplit(workers[0]).hostname)
            (meeting,) = self._run_on(workers[:1], meet, [host], limit=MEET_S)
            return self._run_on(workers, work, [Part(place, meeting) for place in range(self.count)])

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def _wait_for_workers(self) -> Sequence[str]:
        """The addresses of as many as are wanted."""
        began = time.monotonic()
        while len(there := self.cluster.list_workers()) < self.count:
            self._check_stop()
            if time.monotonic() - began > engine.LOST_S:
                lost = ClusterLost if self.cluster.is_local else Unreachable
                raise lost(
                    f"{self.name} needs {self.count} workers (train.workers), but stage.cluster {self.cluster.address} "
                    f"has had {len(there)} for {engine.LOST_S:.0f} s: start more. Another number makes another model."
                )
            time.sleep(engine.ASK_S / 4)
        return sorted(there)[: self.count]

    def _run_on(
        self, workers: Sequence[str], work: Callable[[Any, Any], Any], items: Sequence[Any], limit: float | None = None
    ) -> list[Any]:
        """An item on each of these workers. When this ends, none of them works on it any more."""
        messages = [engine_task.Message.pack(work, self.shared, item) for item in items]
        running, outcomes = dict[str, Any](), dict[str, engine_task.Outcome]()
        ends = time.monotonic() + limit if limit else None
        try:
            for worker, message in zip(workers, messages, strict=True):
                running[worker] = self.cluster.submit(message, self.name, worker=worker)
            while running and (ends is None or time.monotonic() < ends):
                self._check_stop()
                self.cluster.wait(list(running.values()))
                outcomes |= self._take_ended(running)
                if ends is None and self._has_failed(len(workers) - len(running), outcomes):
                    ends = time.monotonic() + SETTLE_S
        except BaseException:
            self._end(running, wait=False)
            raise
        self._end(running, wait=True)  # the next try must not find them
        return self._read(workers, outcomes)

    def _take_ended(self, running: dict[str, Any]) -> dict[str, engine_task.Outcome]:
        """What has ended is no longer running, nor is what has no worker any more, of which nothing comes."""
        for worker in running.keys() - self.cluster.list_workers().keys():
            _cancel(running.pop(worker))
        outcomes = dict[str, engine_task.Outcome]()
        for worker in [worker for worker, future in running.items() if future.done()]:
            if running[worker].status == "finished":
                try:
                    outcomes[worker] = pickle.loads(running[worker].result(timeout=FETCH_S))
                except (OSError, CancelledError, RuntimeError):
                    continue  # its worker has died since, or the scheduler has: the next look tells
            del running[worker]
        return outcomes

    def _has_failed(self, ended: int, outcomes: dict[str, engine_task.Outcome]) -> bool:
        return len(outcomes) < ended or any(outcome.error is not None for outcome in outcomes.values())

    def _read(self, workers: Sequence[str], outcomes: dict[str, engine_task.Outcome]) -> list[Any]:
        """The results. A part's own error comes before a lost worker, and both before a lost link, which is what they
        leave to the others."""
        for outcome in outcomes.values():
            cost.add_elsewhere(outcome.cpu)
            for level, line in outcome.logged:
                log.log(level, "%s", line)
        errors = [outcomes[worker] for worker in workers if worker in outcomes and outcomes[worker].error is not None]
        for outcome in errors:
            if not isinstance(outcome.error, LinkLost):
                outcome.take()
        if lost := [worker for worker in workers if worker not in outcomes]:
            raise LinkLost(f"{self.name} lost its worker {lost[0]}.")
        return [outcomes[worker].take() for worker in workers]

    def _end(self, running: dict[str, Any], *, wait: bool) -> None:
        """A part that waits for a dead one hears nothing: its process is ended. Its nanny starts another.

        Dask takes a worker away for good that does not end in time, so it has long.

        Args:
            wait: until new ones have started, two minutes at most; else that goes on beside what follows.
        """
        for future in running.values():
            _cancel(future)

        def restart() -> None:
            with contextlib.suppress(Exception):  # they have no nanny, or the scheduler is gone
                client = self.cluster.client
                client.restart_workers(list(running), timeout=engine.LOST_S, raise_for_error=False)

        if running:
            restarting = threading.Thread(target=restart, daemon=True)
            restarting.start()
            restarting.join(engine.LOST_S if wait else engine.ASK_S)


def _arrive(_shared: Any, _place: int) -> None:
    """What a worker does when it is free."""


def _cancel(future: Any) -> None:
    with contextlib.suppress(Exception):  # the scheduler is gone, and its tasks with it
        future.cancel()
