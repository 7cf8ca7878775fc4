"""Marks of the engine's items that are under way, made by the processes that work on them.

This file lies as sitecustomize.py in a folder of PYTHONPATH, so each Python process that a test starts runs it. It uses
the standard library alone. In the folder that MARKS names there are:

    <function>@<pid>@<number>    an item is under way in this process; gone when it has ended, but not after a kill
    hold-<function>              an item of this function waits at its beginning
    go-<mark>                    the item of this mark goes on
    ended.txt                    a line for each item that has ended: its function and the seconds that it took
"""

import functools
import itertools
import os
import pickle
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

MARKS = "ENGINE_MARKS"
TASK = "tasks.runtime.engine_task"
HELD_S = 300.0  # an item that is held longer fails: the test is broken


def mark_items(run_here: Any) -> Any:
    """engine_task.run_here that leaves its mark."""
    folder, numbers = Path(os.environ[MARKS]), itertools.count()

    @functools.wraps(run_here)
    def run_marked(message: bytes) -> Any:
        name = pickle.loads(message).function.__qualname__
        mark = folder / f"{name}@{os.getpid()}@{next(numbers)}"
        mark.touch()
        _wait(folder / f"hold-{name}", folder / f"go-{mark.name}")
        began = time.monotonic()
        try:
            return run_here(message)
        finally:
            with (folder / "ended.txt").open("a") as stream:
                stream.write(f"{name} {time.monotonic() - began:.4f}\n")
            mark.unlink()

    return run_marked


def _wait(hold: Path, go: Path) -> None:
    end = time.monotonic() + HELD_S
    while hold.exists() and not go.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"nobody lets the item of {go.name} go")
        time.sleep(0.005)


class _Finder:
    """Finds engine_task as Python does, and changes it once it is imported."""

    def find_spec(self, name: str, path: Any = None, _target: Any = None) -> Any:
        if name != TASK or not (spec := PathFinder.find_spec(name, path)) or not spec.loader:
            return None
        execute = spec.loader.exec_module

        def execute_and_mark(module: ModuleType) -> None:
            execute(module)
            module.__dict__["run_here"] = mark_items(module.__dict__["run_here"])

        spec.loader.exec_module = execute_and_mark  # type: ignore[method-assign]
        return spec


if __name__ == "sitecustomize" and MARKS in os.environ:
    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
