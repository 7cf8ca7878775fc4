"""engine: a function over items, side by side: in threads, in processes of this machine, or on a Dask cluster.

`stage.cluster` says which: null, `local:<processes>`, or the address of a scheduler. What is made is the same, byte for
byte, and so are the order of the results and the error that is raised.

Paths and parameters travel, never frames. What all items share is written to a file once, and each worker reads it
once. A function writes what is large to files that are whole or absent (tasks/runtime/files.py), since an item whose
worker dies is begun again by another. The function's own error is raised as it is, and nothing is tried again for it.

Dask unpickles what it is sent. So it listens on this machine alone, or speaks TLS: even `local:<processes>`, which
makes a certificate for each run, since other users of this machine reach its ports too. This module alone imports dask.
"""

import atexit
import contextlib
import itertools
import logging
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, TypeVar

from tasks import log
from tasks.params import Params
from tasks.runtime import cost, engine_task, stage
from tasks.runtime.threads import Stopped, run_threads

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")
LOCAL = "local:"
TRIES = 3  # of an item whose worker dies, and of a scheduler that is lost, where it is this process's own
CONNECT_S = 10.0  # for one try to reach a scheduler
LOST_S = 120.0  # without a scheduler or without a worker, before the map is given up
ASK_S = 1.0  # between two looks at the cluster
MOST_BYTES = 1_000_000  # of an item, pickled
DASK = {  # of the processes that this machine starts
    "distributed.scheduler.allowed-failures": TRIES - 1,
    "distributed.comm.timeouts.connect": "30s",
    "distributed.comm.timeouts.tcp": "60s",
    "distributed.nanny.pre-spawn-environ": {},  # Dask would set the threads of OpenMP and BLAS: other last digits
    "distributed.worker.daemon": True,
    # Else a killed worker that a busy machine takes 15 s to start again is given up, and at last there is none.
    "distributed.deploy.lost-worker-timeout": "1h",
    "distributed.logging": {"distributed": "critical"},
}


class ClusterLost(ConnectionError):  # noqa: N818 (it says what happened)
    """The scheduler does not answer, or has no workers."""


class Unreachable(ClusterLost):
    """It has been waited for."""


def is_spread(p: Params) -> bool:
    """Whether `map_ordered` starts or asks other processes here. Inside of such a process it never does."""
    return p.stage.cluster is not None and not engine_task.IN_WORKER


def divide(p: Params) -> Params:
    """The settings of one of the processes of `local:<processes>`: a share of the threads and of the memory."""
    if not is_spread(p) or not str(p.stage.cluster).startswith(LOCAL):
        return p
    count = count_processes(str(p.stage.cluster))
    amount, unit = p.stage.split_memory()
    shares = {"threads": max(1, p.stage.threads // count), "memory": f"{amount / count:.3f}{unit}"}
    return p.model_copy(update={"stage": p.stage.model_copy(update=shares)})


def start(p: Params) -> None:
    """Have the processes of `local:<processes>` start now, where what follows is timed."""
    if is_spread(p):
        with contextlib.suppress(ClusterLost):  # a map says so
            find_cluster(str(p.stage.cluster))


def map_ordered(
    function: Callable[[Shared, Item], Result],
    shared: Shared,
    items: Sequence[Item],
    p: Params,
    *,
    names: Sequence[str] = (),
    costs: Sequence[float] = (),
    threads: int | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> list[Result]:
    """`[function(shared, item) for item in items]`, side by side.

    Args:
        function: of a module, so that a worker finds it by name.
        names: of the items, for errors; their places where not given.
        costs: what each item is expected to take, in any unit. Other processes begin with the dearest, so that none
            works alone at the end; in threads, and where not given, items begin in their order.
        threads: in this process, at most; stage.threads where not given.
        report: gets an item's place when it has ended, here.

    Raises:
        Exception: what the function raised: of several items, of the first.
        RuntimeError: an item ended the process that worked on it, each time.
        ConnectionError: the cluster is gone, and did not come back.
    """
    names = names or [f"item {place + 1} of {len(items)}" for place in range(len(items))]
    if not is_spread(p) or not items:
        works = [lambda item=item: function(shared, item) for item in items]
        return run_threads(works, threads or p.stage.threads, report=report)
    with open_scratch() as folder:
        place = engine_task.write_shared(folder, shared)
        messages = [engine_task.Message.pack(function, place, item) for item in items]
        for message, name in zip(messages, names, strict=True):
            if len(message) > MOST_BYTES:
                raise ValueError(
                    f"an item to spread must be paths and parameters, at most {MOST_BYTES:,} bytes, but {name} has "
                    f"{len(message):,}: write what is large to a file, or share it between all items"
                )
        spread = _Map(messages, names, report, order_by_cost(costs, len(items)))
        spread.run(str(p.stage.cluster))
        return spread.take()


def order_by_cost(costs: Sequence[float], count: int) -> list[int]:
    """The places of `count` items, the dearest first; of equals, and where no costs are given, the first."""
    return sorted(range(count), key=lambda place: -costs[place] if costs else 0.0)


# --- processes --------------------------------------------------------------------------------------------------------


class Cluster:
    """A client of a scheduler: of one in this process, with `local:<processes>`, or of one elsewhere."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.ended = False  # by this process itself
        self.client: Any = None
        self._own: Any = None

    @property
    def is_local(self) -> bool:
        return self.address.startswith(LOCAL)

    def open(self) -> Any:
        """The client. Raises ClusterLost where none can be had."""
        if self.client is not None and self.client.status == "running":
            return self.client
        self.close()
        import dask
        from distributed import Client

        began = time.monotonic()
        dask.config.set(DASK)  # for good: some are read when a worker dies
        while True:
            try:
                target = self._start() if self.is_local else self.address
                self.client = Client(target, timeout=CONNECT_S, set_as_default=False, name="evergreen")
                if self.is_local:
                    self.client.run(engine_task.import_modules, engine_task.list_modules())
                return self.client
            except (OSError, RuntimeError) as error:  # TimeoutError is an OSError
                self.close()
                if self.is_local:
                    raise ClusterLost(f"stage.cluster {self.address} does not start: {error}") from error
                if time.monotonic() - began > LOST_S:
                    raise Unreachable(f"stage.cluster {self.address} cannot be reached: {error}") from error
                time.sleep(ASK_S)

    def _start(self) -> Any:
        from distributed import LocalCluster, Security

        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        count = count_processes(self.address)
        self._own = LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            protocol="tls://",
            security=Security.temporary(),
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            local_directory=str(stage.spill_folder(Path.cwd()).absolute() / "dask"),
            silence_logs=logging.CRITICAL,
            scheduler_kwargs={"dashboard": False},
            preload=[engine_task.__name__],
        )
        return self._own

    def list_workers(self) -> dict[str, int]:
        """The threads of each worker that the scheduler has, by address."""
        with self._losing():
            threads: dict[str, int] = self.client.sync(self.client.scheduler.ncores, callback_timeout=CONNECT_S)
        return threads

    @contextlib.contextmanager
    def take_turn(self, name: str, wait: Callable[[], None]) -> Iterator[None]:
        """One at a time of all who ask this scheduler for this name. `wait` is called each second without a turn."""
        from distributed import Lock

        lock = Lock(name, scheduler_rpc=self.client.scheduler, loop=self.client.loop)
        while not self._acquire(lock):
            wait()
        try:
            yield
        finally:
            with contextlib.suppress(Exception):  # the scheduler is gone, and its locks with it
                lock.release()

    def _acquire(self, lock: Any) -> bool:
        with self._losing():
            return bool(lock.acquire(timeout=ASK_S))

    def submit(self, message: bytes, name: str, *, worker: str | None = None) -> Any:
        """Dask's future of an item. Its key is new each time, so that nothing is taken for something older.

        Args:
            worker: the only one that may work on it.
        """
        place = {"workers": [worker], "allow_other_workers": False} if worker else {}
        with self._losing():
            key = f"{name}-{os.urandom(8).hex()}"
            code = engine_task.hash_code()
            return self.client.submit(engine_task.run, code, message, key=key, pure=False, **place)

    def wait(self, futures: Sequence[Any]) -> None:
        """Until one has ended, or for a second."""
        import distributed

        if futures:
            with contextlib.suppress(TimeoutError, CancelledError), self.client.as_current():
                distributed.wait(futures, timeout=ASK_S, return_when="FIRST_COMPLETED")
        else:
            time.sleep(ASK_S)

    def read(self, future: Any, name: str) -> engine_task.Outcome:
        """What became of an item. Raises RuntimeError where it ended its worker each time."""
        from distributed import KilledWorker

        if future.status != "finished" and isinstance(error := self._find_error(future), KilledWorker):
            raise RuntimeError(
                f"{name} ended the process that worked on it, {TRIES} times in a row: the kernel ends one that takes "
                "too much memory. Lower stage.memory, or set stage.cluster to null."
            ) from error
        with self._losing():
            outcome: engine_task.Outcome = pickle.loads(future.result(timeout=LOST_S))
        return outcome

    def _find_error(self, future: Any) -> BaseException | None:
        with self._losing():
            error: BaseException | None = future.exception(timeout=CONNECT_S)
        return error

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        """What Dask raises when its scheduler is gone, as ClusterLost."""
        try:
            yield
        except (OSError, CancelledError, RuntimeError) as error:
            raise ClusterLost(
                f"stage.cluster {self.address} was lost ({type(error).__name__}: {str(error)[:200]})."
            ) from error

    def close(self) -> None:
        for one in (self.client, self._own):
            if one is not None:
                with contextlib.suppress(Exception):  # it is gone already
                    one.close(timeout=CONNECT_S)
        self.client = self._own = None


_CLUSTERS: dict[str, Cluster] = {}
_LOCK = threading.Lock()
_NUMBERS = itertools.count()


def count_processes(address: str) -> int:
    return int(address.removeprefix(LOCAL))


def find_cluster(address: str) -> Cluster:
    """The one of this process: made when it is first asked for, closed when the process ends."""
    with _LOCK:
        atexit.unregister(close)
        atexit.register(close)  # once
        cluster = _CLUSTERS.setdefault(address, Cluster(address))
        cluster.open()
        return cluster


def forget_cluster(address: str) -> None:
    with _LOCK:
        if cluster := _CLUSTERS.pop(address, None):
            cluster.close()


def close() -> None:
    """End the processes that this one has started, and leave the schedulers elsewhere."""
    with _LOCK:
        while _CLUSTERS:
            _, cluster = _CLUSTERS.popitem()
            cluster.ended = True
            cluster.close()


@contextlib.contextmanager
def open_scratch() -> Iterator[Path]:
    """A private folder for a map, on the disk of the data."""
    folder = stage.spill_folder(Path.cwd()).absolute() / f"engine-{next(_NUMBERS)}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- a map ------------------------------------------------------------------------------------------------------------


class _Map:
    """One map_ordered on a cluster: what each item came to. Nothing behind the first error is wanted any more."""

    def __init__(
        self, messages: Sequence[bytes], names: Sequence[str], report: Callable[[int], None], order: Sequence[int]
    ) -> None:
        self.messages, self.names, self.report, self.order = messages, names, report, order
        self.outcomes: dict[int, engine_task.Outcome] = {}
        self.end = len(messages)

    @property
    def missing(self) -> list[int]:
        """The places of the items that are still wanted, in the order in which they begin."""
        return [place for place in self.order if place < self.end and place not in self.outcomes]

    def accept(self, place: int, outcome: engine_task.Outcome) -> None:
        self.outcomes[place] = outcome
        cost.add_elsewhere(outcome.cpu)
        for level, line in outcome.logged:
            log.log(level, "%s", line)
        if outcome.error is not None:
            self.end = min(self.end, place + 1)
        else:
            self.report(place)

    def take(self) -> list[Any]:
        return [self.outcomes[place].take() for place in range(self.end)]

    def run(self, address: str) -> None:
        """Work on what is missing, until nothing is. A cluster that is lost is made, or waited for, again."""
        lost = 0
        while before := self.missing:
            cluster = None
            try:
                cluster = find_cluster(address)
                return self._run_on(cluster)
            except ClusterLost as error:
                if cluster and cluster.ended:
                    raise Stopped from error
                forget_cluster(address)
                lost = lost + 1 if self.missing == before else 1
                if isinstance(error, Unreachable) or (lost == TRIES and not address.startswith(LOCAL)):
                    raise
                log.warning("%s %s of %s items are left: going on.", error, len(self.missing), len(self.messages))
                if lost == TRIES:
                    return self._run_here()
        return None

    def _run_here(self) -> None:
        for place in self.missing:
            self.accept(place, engine_task.run_here(self.messages[place]))

    def _run_on(self, cluster: Cluster) -> None:
        """One item a thread of the cluster at a time: when a worker dies, Dask counts it against all that it held."""
        running: dict[Any, int] = {}
        seen = time.monotonic()
        try:
            while missing := self.missing:
                room = sum(cluster.list_workers().values())
                seen = time.monotonic() if room else seen
                if time.monotonic() - seen > LOST_S:
                    lost = ClusterLost if cluster.is_local else Unreachable  # its own ones are made anew
                    raise lost(f"stage.cluster {cluster.address} has had no worker for {LOST_S:.0f} s.")
                idle = [place for place in missing if place not in running.values()]
                for place in idle[: max(0, room - len(running))]:
                    running[cluster.submit(self.messages[place], self.names[place])] = place
                cluster.wait(list(running))
                for future in [future for future in running if future.done()]:
                    place = running.pop(future)
                    self.accept(place, cluster.read(future, self.names[place]))
                    future.release()  # else the item is done again when the worker that did it dies, even after the map
                running = {future: place for future, place in running.items() if place < self.end}
        finally:
            for future in running:
                with contextlib.suppress(Exception):
                    future.cancel()
