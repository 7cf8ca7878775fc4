"""Kills that surely strike while the engine has items under way, and whole runs that they strike.

A run is `dvc repro evaluate`, then past fits of the recipe and the replay's candidates: all that the engine spreads.
Record is left out: it spreads nothing, and its output names a run of MLflow, another one each time.

A kill has its place, which is a function of the engine's items. The first item of a place is let go, and after a part
of its usual time its worker is stopped. If the item is under way then, the victim is killed. If it has ended, the next
item of the place is struck at its beginning. The marks of items are those of tests/faults/marks.py.
"""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import psutil

from tasks.data import periods
from tasks.runtime import overrides
from tests.faults import marks
from tests.tasks.runtime import spread

ROOT = Path(__file__).parents[2]
PLACES = (  # in the order of a run
    "clean_period",
    "build_period",
    "fit_trial",
    "fit_final",
    "fit_slower",
    "Table.fit_seed",
    "Table.fit_fold",
    "Maker.fit_plain",
    "Maker.calibrate",
    "make",
)
FOREIGN = ("EVERGREEN_", "MLFLOW_", "DVC_", "DASK_", "PYTHON")
REST = "made"
COSTS = {"cost.json", periods.HASHES}  # seconds of CPU, and the hashes of files of which that is one
DEPTH = 0.8  # of an item's usual time, at most, before it is struck
GUESS_S = 0.1  # the usual time of an item, where no run has told it
NANNY_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # as Dask's own sets
Victim = Literal["worker", "scheduler", "stage"]


@dataclass(frozen=True)
class Strike:
    """When a kill struck: seconds after its item was let go, and the seconds that such an item takes as a rule."""

    place: str
    after: float
    usual: float

    def __str__(self) -> str:
        return f"{self.place} after {self.after:.2f} of {self.usual:.2f} s"


@dataclass(frozen=True)
class Result:
    """What a run has made: dvc.lock, and the hashes of the files that it does not name.

    Attributes:
        usual: the median seconds of an item, by place.
    """

    lock: str
    rest: Mapping[str, str]
    usual: Mapping[str, float]
    seconds: float
    strikes: Sequence[Strike] = ()

    def list_differences(self, other: "Result") -> list[str]:
        """The files that one lacks, or that hold other bytes."""
        lock = {"dvc.lock"} if self.lock != other.lock else set()
        return sorted(lock | {name for name, _ in {*self.rest.items()} ^ {*other.rest.items()}})


def run(
    checkout: Path,
    cluster: str | None,
    *,
    victim: Victim | None = None,
    places: Sequence[str] = PLACES,
    usual: Mapping[str, float] = {},
    seed: int = 0,
) -> Result:
    """A run in a checkout in which nothing has run yet; with a victim, that is killed in each place once.

    Args:
        cluster: stage.cluster; "tcp" for a scheduler and two workers of this run's own, which are kept alive.
        usual: the seconds of an item, by place, of a run that nobody disturbed.
        seed: of the draw of when an item is struck.
    """
    folder, began = checkout / ".marks", time.monotonic()
    folder.mkdir()
    env = make_environment(checkout, folder)
    striker = Striker(folder, places, usual, random.Random(seed)) if victim else None
    with contextlib.ExitStack() as stack:
        address = cluster
        if cluster == "tcp":
            site = stack.enter_context(keep_site(checkout, env))
            address = site.address
        overrides.override_params(checkout / "params.yaml", {"stage.cluster": address})
        if striker:
            find = {
                "worker": lambda pid: pid,
                "stage": lambda pid: psutil.Process(pid).ppid(),
                "scheduler": lambda _pid: site.scheduler.pid,
            }
            stack.enter_context(striker.striking(find[victim or "worker"]))
        for command in (("dvc", "repro", "-q", "evaluate"), ("tests.faults.spread_rest", REST)):
            run_program(command, checkout, env, striker if victim == "stage" else None)
    strikes = striker.strikes if striker else []
    lock = (checkout / "dvc.lock").read_text()
    return Result(lock, hash_rest(checkout / REST), read_usual(folder), time.monotonic() - began, strikes)


def make_environment(checkout: Path, folder: Path) -> dict[str, str]:
    """That of each process of a run: a home of its own, and the marks."""
    hook = folder / "hook"
    hook.mkdir()
    shutil.copy(marks.__file__, hook / "sitecustomize.py")
    mine = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return mine | {
        "EVERGREEN_HOME": str(checkout / ".evergreen"),
        "EVERGREEN_PII_KEY": "a key for the tests",
        "DVC_NO_ANALYTICS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{hook}:{ROOT}",  # behind the working folder, whose code it is that runs
        marks.MARKS: str(folder),
    }


def run_program(command: Sequence[str], checkout: Path, env: Mapping[str, str], striker: "Striker | None") -> None:
    """To its good end; where a striker kills it, again. Raises RuntimeError when it fails by itself."""
    while True:
        before = len(striker.strikes) if striker else 0
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=checkout, env=dict(env), capture_output=True, text=True
        )
        if done.returncode == 0:
            return
        if not striker or len(striker.strikes) == before:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr[-3000:]}")


def hash_rest(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in COSTS]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def read_usual(folder: Path) -> dict[str, float]:
    seconds: dict[str, list[float]] = defaultdict(list)
    ended = folder / "ended.txt"
    for line in ended.read_text().splitlines() if ended.exists() else []:
        place, took = line.split()
        seconds[place].append(float(took))
    return {place: median(took) for place, took in seconds.items()}


# --- kills ------------------------------------------------------------------------------------------------------------


class Striker:
    """Kills once in each place."""

    def __init__(self, folder: Path, places: Sequence[str], usual: Mapping[str, float], rng: random.Random) -> None:
        self.folder, self.strikes = folder, list[Strike]()
        self.usual = {place: usual.get(place, GUESS_S) for place in places}
        self._after = {place: rng.uniform(0, DEPTH) * self.usual[place] for place in places}
        self._left, self._tried = set(places), set[str]()
        for place in places:
            self._hold(place).touch()

    def _hold(self, place: str) -> Path:
        return self.folder / f"hold-{place}"

    @contextmanager
    def striking(self, find_victim: Callable[[int], int]) -> Iterator[None]:
        """Args: find_victim: the process to kill, by the worker's."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.005):
                for name in os.listdir(self.folder):
                    if name.partition("@")[0] in self._left and "@" in name:
                        self._strike(self.folder / name, find_victim)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _strike(self, mark: Path, find_victim: Callable[[int], int]) -> None:
        place, pid, _ = mark.name.split("@")
        after = 0.0
        if place not in self._tried:
            self._tried.add(place)
            (self.folder / f"go-{mark.name}").touch()
            time.sleep(after := self._after[place])
        with stop(int(pid)) as is_stopped:
            if is_stopped and mark.exists():
                os.kill(find_victim(int(pid)), signal.SIGKILL)
                self._left.remove(place)
                self.strikes.append(Strike(place, after, self.usual[place]))
                self._hold(place).unlink()
            elif not is_stopped:
                mark.unlink(missing_ok=True)


@contextmanager
def stop(pid: int) -> Iterator[bool]:
    """A process stands still meanwhile; false where there is none any more."""
    is_stopped = False
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        os.kill(pid, signal.SIGSTOP)
        while (status := psutil.Process(pid).status()) not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0.001)
        is_stopped = status == psutil.STATUS_STOPPED
    try:
        yield is_stopped
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


# --- a scheduler elsewhere --------------------------------------------------------------------------------------------


class Site:
    """A scheduler and two workers, each started again when it has ended, as by systemd."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.env, self.port = folder, {**env, **NANNY_THREADS}, spread.find_free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        worker = (*spread.worker(self.port), "--no-nanny")  # this is what starts it again
        self._commands = {"scheduler": spread.scheduler(self.port), "worker 1": worker, "worker 2": worker}
        self._programs = {name: self._start(command) for name, command in self._commands.items()}

    @property
    def scheduler(self) -> "subprocess.Popen[bytes]":
        return self._programs["scheduler"]

    def _start(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        quiet = subprocess.DEVNULL
        command = [sys.executable, "-m", *command]
        return subprocess.Popen(command, cwd=self.folder, env=dict(self.env), stdout=quiet, stderr=quiet)

    def keep(self) -> None:
        """Start again what has ended."""
        for name, program in self._programs.items():
            if program.poll() is not None:
                self._programs[name] = self._start(self._commands[name])

    def end(self) -> None:
        for program in self._programs.values():
            program.kill()
            program.wait()


@contextmanager
def keep_site(folder: Path, env: Mapping[str, str]) -> Iterator[Site]:
    site, ended = Site(folder, env), threading.Event()

    def keep() -> None:
        while not ended.wait(0.1):
            site.keep()

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        yield site
    finally:
        ended.set()
        keeper.join()
        site.end()
