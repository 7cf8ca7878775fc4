"""Functions that the engine's tests spread: a worker imports them by name. And schedulers and workers, as programs."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tasks import log
from tasks.params import Params
from tasks.runtime import engine, gang
from tests.tasks import small

ROOT = Path(__file__).parents[3]


def settings(cluster: str | None, threads: int = 2) -> Params:
    return small.settings(**{"stage.cluster": cluster, "stage.threads": threads})


def square(factor: int, item: int) -> int:
    log.info("the square of %s", item)
    return factor * item * item


def note(file: Path, item: int) -> int:
    with file.open("a") as stream:
        stream.write(f"{item}\n")
    return item


def fail_at_2_and_4(folder: Path, item: int) -> int:
    """4 fails at once, 2 a little later; what was begun leaves a mark each time."""
    with (folder / f"{item}").open("a") as stream:
        stream.write("begun\n")
    time.sleep(0.3 if item == 2 else 0.0)
    if item in (2, 4):
        raise ValueError(f"item {item} is wrong")
    return item


def die_once(folder: Path, item: int) -> int:
    """The first to work on item 3 is killed as by the kernel."""
    mark = folder / "killed"
    if item == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def die_at_3(_shared: None, item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def mark_and_wait(folder: Path, item: int) -> int:
    """Until the file `go` is there."""
    (folder / f"begun-{item}").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)
    return item * item


def mark_slowly(folder: Path, item: int) -> int:
    """Longer than the engine waits at a time. Each begin leaves a mark, and so does the process."""
    with (folder / f"begun-{item}").open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    time.sleep(engine.ASK_S * 1.5)
    return os.getpid()


def spin(folder: Path, item: int) -> int:
    (folder / f"{item}-{os.getpid()}").touch()
    while True:
        item += 1


def map_inside(p: Params, item: int) -> tuple[int, list[int]]:
    """A map inside of a worker: it starts no processes."""
    return len(psutil.Process().children()), engine.map_ordered(square, 1, [item, item + 1], p)


def see(_shared: None, _item: int) -> tuple[int, str, str | None, list[str]]:
    """The process, its folder, its OMP_NUM_THREADS and the addresses that it listens on."""
    return os.getpid(), str(Path.cwd()), os.environ.get("OMP_NUM_THREADS"), listening(os.getpid())


def listening(pid: int) -> list[str]:
    connections = psutil.Process(pid).net_connections(kind="inet")
    return [str(one.laddr.ip) for one in connections if one.status == psutil.CONN_LISTEN]


# --- gangs


def meet(folder: Path, host: str) -> str:
    """Each try of a gang leaves a mark."""
    with (folder / "tries").open("a") as stream:
        stream.write("x")
    return host


def tell(_folder: Path, part: gang.Part) -> tuple[int, str, int]:
    return part.place, part.meeting, os.getpid()


def fail_at_1(folder: Path, part: gang.Part) -> None:
    """The other part would wait for ever."""
    (folder / f"pid-{part.place}").write_text(f"{os.getpid()}")
    if part.place == 1:
        raise ValueError("part 1 is wrong")
    time.sleep(1000)


def wait_for_ever(folder: Path, part: gang.Part) -> None:
    (folder / f"pid-{part.place}").write_text(f"{os.getpid()}")
    time.sleep(1000)


def lose_link(_folder: Path, part: gang.Part) -> None:
    raise gang.LinkLost(f"part {part.place} hears nothing")


def die_once_at_1(folder: Path, part: gang.Part) -> int:
    """The second part dies in the first try; the first one waits for it for ever."""
    if (folder / "tries").read_text() == "x":
        if part.place == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)
    return part.place


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_program(*args: str, env: Mapping[str, str] = {}) -> Iterator["subprocess.Popen[bytes]"]:
    program = subprocess.Popen(
        [sys.executable, "-m", *args],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield program
    finally:
        program.kill()
        program.wait()


def scheduler(port: int, scheme: str = "tcp") -> Sequence[str]:
    loopback = ("--host", f"{scheme}://127.0.0.1", "--port", f"{port}", "--no-dashboard", "--dashboard-address", ":0")
    return ("distributed.cli.dask_scheduler", *loopback)


def worker(port: int, scheme: str = "tcp") -> Sequence[str]:
    address = f"{scheme}://127.0.0.1:{port}"
    return ("distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1")
