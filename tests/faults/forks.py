"""Processes that a test kills, forked off one that has imported what they need: many kills pay for the imports once.

Each child is a process of its own with the environment of the test, and what ends it is a real SIGKILL.
"""

import functools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHANGES = {"os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PATIENCE_S = 120.0  # ends a run that hangs; nothing else depends on it


@dataclass(frozen=True)
class Child:
    process: ForkServerProcess
    pipe: Connection

    def receive(self) -> Any:
        """What the child sends next. Raises EOFError when it has ended without."""
        assert self.pipe.poll(PATIENCE_S), f"the child said nothing for {PATIENCE_S:.0f} s"
        return self.pipe.recv()

    def wait(self) -> int:
        """The exit status; a signal's number, negative, where one ended it."""
        self.process.join(PATIENCE_S)
        assert self.process.exitcode is not None, f"the child did not end within {PATIENCE_S:.0f} s"
        return self.process.exitcode


@contextmanager
def forked(work: Callable[..., None], *arguments: Any) -> Iterator[Child]:
    """`work(pipe, *arguments)`, a module's function, in a child process, which is gone when this block ends."""
    here, there = multiprocessing.Pipe()
    process = _context().Process(target=_work, args=(dict(os.environ), work, there, *arguments))
    process.start()
    there.close()
    try:
        yield Child(process, here)
    finally:
        process.kill()
        process.join()
        here.close()


@functools.cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        forkserver.ensure_running()
    return context


def _work(environment: Mapping[str, str], work: Callable[..., None], pipe: Connection, *arguments: Any) -> None:
    from tests.faults import preloaded

    assert os.getpid() != preloaded.PID, "the imports were to be made before the fork"
    os.environ.clear()
    os.environ.update(environment)
    work(pipe, *arguments)


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(changes: int, kill: Callable[[], None] = kill_this_process) -> Callable[[], int]:
    """From now on `kill` is called when this process is about to change the file system once more than so often.

    Returns what tells how often it has changed it so far. Before a rename the newest file is cut in half, as if the
    kill had come in the middle of the write before it.
    """
    left = changes

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in CHANGES or (event == "open" and arguments[2] & WRITING):
            left -= 1
            if left == -1:
                if event == "os.rename":
                    _cut(Path(os.fsdecode(arguments[0])))
                kill()

    sys.addaudithook(count)
    return lambda: changes - left


def _cut(path: Path) -> None:
    files = [one for one in (path, *path.rglob("*")) if one.is_file()]
    if files:
        newest = max(files, key=lambda file: file.stat().st_mtime_ns)
        newest.chmod(0o600)
        os.truncate(newest, newest.stat().st_size // 2)
