"""What ingest, clean and features make is the same in threads, in one process and in two, and with workers killed."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from tasks.runtime import engine
from tests.conftest import Made, tree

STAGES = ("ingest", "clean", "features")
WORKER = "multiprocessing.spawn"


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    engine.close()


@contextmanager
def killing(every: float) -> Iterator[list[int]]:
    """SIGKILLs one of this process's workers now and then, twice in all. Gives the ids of those killed."""
    killed, ended = list[int](), threading.Event()

    def kill() -> None:
        while not ended.wait(every) and len(killed) < engine.TRIES - 1:
            workers = [one for one in psutil.Process().children() if any(WORKER in part for part in one.cmdline())]
            if workers:
                killed.append(workers[len(killed) % len(workers)].pid)
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()


def made_by(make_world: Callable[..., Made], cluster: str | None) -> dict[str, bytes]:
    made = make_world(days=60, per_day=20, folder=f"on {cluster}")
    made.monkeypatch.setenv("EVERGREEN_PERIODS", str(made.folder / "periods"))  # nothing is taken from another's
    made.run(*STAGES, p=made.params(**{"stage.cluster": cluster, "ingest.period": "week"}))
    return tree(made.folder / "data")


def test_periods_are_the_same_in_processes(make_world: Callable[..., Made]) -> None:
    here = made_by(make_world, None)
    assert len(here) > 20
    for cluster in ("local:1", "local:2"):
        assert made_by(make_world, cluster) == here


@pytest.mark.faults
def test_periods_are_the_same_when_workers_are_killed(make_world: Callable[..., Made]) -> None:
    here = made_by(make_world, None)
    with killing(every=1.5) as killed:
        assert made_by(make_world, "local:2") == here
    assert killed
