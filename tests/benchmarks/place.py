"""Temporary checkouts of the code as it is now, and processes in them. The user's own checkout and home stay out."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.runtime import overrides
from tests.programs import PROGRAMS

ROOT = Path(__file__).parents[2]
FOREIGN = ("EVERGREEN_", "PREFECT_", "MLFLOW_", "DVC_", "GIT_", "PYTHON", "OMP_", "VIRTUAL_ENV")
QUIET = {  # what the Makefile exports; and one wait policy for every process that trains
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MPLBACKEND": "Agg",
    "OMP_WAIT_POLICY": "PASSIVE",
    "EVERGREEN_PII_KEY": "a key for benchmarks",
}
YEAR = "2014-01-01"  # an as_of that lets all of the default case's year in


@dataclass(frozen=True)
class Ran:
    """How long a process took from its start to its end, and the JSON that was the last line it printed, if any.

    Attributes:
        cpu: seconds, of it and its children.
    """

    seconds: float
    output: Any
    cpu: float


@dataclass(frozen=True)
class Checkout:
    """The code, committed, and a home of its own, with nothing made in either."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / ".evergreen"

    @property
    def env(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return {**mine, **QUIET, "EVERGREEN_HOME": str(self.home), "PREFECT_HOME": str(self.home / "prefect")}

    def set(self, **values: Any) -> None:
        """Change params.yaml: set(clock={"as_of": "2013-11-01"})."""
        self.set_flat({f"{section}.{key}": value for section, inner in values.items() for key, value in inner.items()})

    def set_flat(self, values: Mapping[str, Any]) -> None:
        """The same by whole names: set_flat({"clock.as_of": "2013-11-01"})."""
        overrides.override_params(self.root / "params.yaml", values)
        _git(self.root, "commit", "-qam", "other params", "--allow-empty")

    def empty_periods(self) -> None:
        shutil.rmtree(self.home / "periods", ignore_errors=True)

    def run(self, module: str, *args: str, **env: str) -> Ran:
        """`python -m module args` to its end. Raises RuntimeError, with the last it said, when it fails."""
        command = [sys.executable, "-m", module, *args]
        began, spent = time.perf_counter(), _read_children_cpu()
        done = subprocess.run(command, cwd=self.root, env={**self.env, **env}, capture_output=True, text=True)
        took = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(
                f"{' '.join(command[1:])} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
            )
        return Ran(took, _read_last_line(done.stdout), _read_children_cpu() - spent)


def _read_children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _read_last_line(text: str) -> Any:
    last = text.strip().rpartition("\n")[2]
    return json.loads(last) if last.startswith(("{", "[")) else None


class Bench:
    """Where one run of the benchmarks works. `quick` means little data and few trials: to try the benchmarks out."""

    def __init__(self, scratch: Path, *, quick: bool) -> None:
        self.quick = quick
        self._scratch = scratch
        self._made = 0

    def times(self, full: int) -> int:
        return 1 if self.quick else full

    def checkout(self, **values: Any) -> Checkout:
        """A new one, with these params."""
        self._made += 1
        made = Checkout(self._scratch / str(self._made))
        shutil.copytree(self._base, made.root)
        made.set(**values)
        return made

    def copy(self, of: Checkout) -> Checkout:
        """The same code, data and caches once more."""
        self._made += 1
        shutil.copytree(of.root, self._scratch / str(self._made), symlinks=True)
        return Checkout(self._scratch / str(self._made))

    def folder(self, name: str) -> Path:
        """An empty one, for what needs no checkout of this project."""
        made = self._scratch / name
        made.mkdir()
        return made

    @cached_property
    def _base(self) -> Path:
        base = self._scratch / "base"
        copy_code(base)
        subprocess.run([sys.executable, "-m", "compileall", "-q", "tasks", "flows", "tests"], cwd=base, check=True)
        return base

    @cached_property
    def cleaned(self) -> Checkout:
        """A checkout whose ingest and clean have run, over the year."""
        made = self.checkout(clock={"as_of": "2013-03-01" if self.quick else YEAR})
        for stage in ("ingest", "clean"):
            made.run(PROGRAMS[stage])
        return made

    @cached_property
    def featured(self) -> Checkout:
        """A checkout whose features have been made, at the as_of of params.yaml."""
        made = self.checkout(**({"clock": {"as_of": "2013-05-01"}} if self.quick else {}))
        for stage in ("ingest", "clean", "features"):
            made.run(PROGRAMS[stage])
        return made


def copy_code(folder: Path) -> None:
    """The code as it is now, edits and new files included, as the one commit of a new repository."""
    listed = _git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    _git(folder, "init", "-q")
    commit(folder, "as it is now")


def commit(folder: Path, subject: str) -> None:
    _git(folder, "add", "-A")
    _git(folder, "commit", "-qm", subject, "--allow-empty")


def _git(where: Path, *args: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    mine = ("-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "commit.gpgsign=false")
    command = ["git", *mine, "-c", f"core.hooksPath={os.devnull}", *args]
    return subprocess.run(command, cwd=where, env=env, check=True, capture_output=True, text=True).stdout


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """This process's environment as these values say, for a while."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
