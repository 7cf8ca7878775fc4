"""What surrounds the work of every stage's program: its log, its limits, its death with the parent, its errors.

DVC does not stop a stage's program when DVC itself is killed, so the program watches its parent. Linux has a call for
that (prctl PR_SET_PDEATHSIG); elsewhere a thread asks once a second.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import functools
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from tasks import log, params
from tasks.params import Params, yamltext
from tasks.runtime import cost, locks
from tasks.runtime.overrides import list_keys

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PR_SET_PDEATHSIG = 1
TOO_LONG = 124  # the exit status of timeout(1)
WAITS_S = (2.0, 10.0, 30.0, 60.0, 120.0)  # before a service that did not answer is asked again: nearly four minutes
T = TypeVar("T")


def main(name: str, *acts: Callable[[Params], None]) -> None:
    """Run one stage as a program, its acts in order: exit 0, or 1 with the error in one line, or 124 past its limit."""
    die_with_parent()
    began, imported = time.monotonic(), cost.read_usage()  # the CPU time of the imports stands for how long they took
    logging.basicConfig(level=logging.INFO, format=f"{name}: %(message)s")
    if name == cost.FIRST:
        cost.begin(Path())
    try:
        p = params.load()
        check_settings(p)
        limit_time(name, p.stage.limits.get(name))
        made_before = len(cost.read_made(Path()))
        for act in acts:
            act(p)
        if size := find_size(name, p):
            made = cost.read_made(Path())[made_before:]
            cost.keep(params.home(), name, time.monotonic() - began + imported, made, size=size)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        _log_error(error)
        sys.exit(1)
    finally:
        cost.note(Path(), name, cost.read_usage())


def find_size(name: str, p: Params) -> float:
    """What a stage's time grows with, to reckon the next run's by; 0 for a run that tells nothing of the next one."""
    if name != "tune":
        return 1.0
    return 0.0 if p.tune.recipe else float(p.tune.trials)


def check_settings(p: Params, folder: Path = Path()) -> None:
    """Raises ValueError where params.yaml leaves out a setting that dvc.yaml names, though this project has a default
    for it: DVC would refuse to keep what the stage made, after all of it was made."""
    graph, settings = folder / "dvc.yaml", folder / "params.yaml"
    if not graph.exists():
        return
    stages = yamltext.read(graph)[0]["stages"].values()
    names = {name for one in stages for name in one.get("params", []) if isinstance(name, str)}
    if missing := sorted(names.difference(list_keys(yamltext.read(settings)[0]))):
        lines = ", ".join(f"`{name}: {_spell_default(name, p)}`" for name in missing)
        raise ValueError(
            f"params.yaml must hold every setting that dvc.yaml names, but lacks {', '.join(missing)}. Write {lines} "
            "(each point is a level of params.yaml), or the value that you want."
        )


def _spell_default(name: str, p: Params) -> str:
    value: Any = functools.reduce(getattr, name.split("."), p)
    if isinstance(value, timedelta):
        return params.spell(value)
    return "{}" if isinstance(value, params.Section) else json.dumps(value, default=str)


def retry_while_away(ask: Callable[[], T], *, waits: Sequence[float] = WAITS_S) -> T:
    """What a service answers, which may be away for some minutes: asked again after each wait, and only where it did
    not answer. Raises the last ConnectionError."""
    for wait in waits:
        try:
            return ask()
        except ConnectionError as error:
            log.warning("%s Asking again in %.0f s.", error, wait)
            time.sleep(wait)
    return ask()


def _log_error(error: Exception) -> None:
    """One line for what a person can mend: the world's errors, and a ValueError that this project raised itself."""
    if isinstance(error, OSError | MemoryError) or (isinstance(error, ValueError) and _is_ours(error.__traceback__)):
        log.error("%s: %s", type(error).__name__, error)
    elif type(error).__module__.lstrip("_").startswith("duckdb"):  # its sentence may show a value of a row
        trace = "".join(traceback.format_tb(error.__traceback__))
        log.error(
            "unexpected error: DuckDB's %s, whose text is not shown, since it may hold a value of a row\n%s",
            type(error).__name__,
            trace,
        )
    else:
        log.error("unexpected error", exc_info=error)


def _is_ours(trace: TracebackType | None) -> bool:
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].split(".")[0] in ("tasks", "__main__")


def die_with_parent() -> None:
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def limit_time(name: str, length: timedelta | None) -> None:
    """End this process when the stage takes longer than stage.limits.<name>; with its tracebacks if it cannot speak."""
    if length is None:
        return
    seconds = length.total_seconds()
    timer = threading.Timer(seconds, _end_late_stage, (name, length))
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds + 5, exit=True)


def _end_late_stage(name: str, length: timedelta) -> None:
    log.error("TimeoutError: %s did not end within its limit of %s. Raise stage.limits.%s.", name, length, name)
    os._exit(TOO_LONG)


def connect(p: Params) -> "DuckDBPyConnection":
    """A DuckDB in memory, in UTC, within stage.threads and stage.memory. What it spills to disk is encrypted.

    Ingest spills personal data before it has pseudonyms. DuckDB's own cipher takes its random numbers from a generator
    that is not made for secrets, hence its name for the setting; the one that is comes with an extension that DuckDB
    would download. So the folder is also private, and what a killed process left there goes.
    """
    import duckdb

    con = duckdb.connect(
        config={
            "threads": p.stage.threads,
            "memory_limit": p.stage.memory,
            # Of its own: what lies in it may be read even where files may not (tasks/data/sqlcheck.py).
            "temp_directory": str(spill_folder(Path.cwd()) / secrets.token_hex(8)),
            "temp_file_encryption": True,
            "force_mbedtls_unsafe": "true",
            "errors_as_json": True,  # with their place, for tasks/data/sqlcheck.py
        }
    )
    for scope in ("GLOBAL", "SESSION"):  # the first for its cursors
        con.execute(f"SET {scope} TimeZone = 'UTC'")
    return con


@functools.cache
def spill_folder(project: Path) -> Path:
    """A private folder of this process: in the project's .dvc/tmp, so on the disk of its data, else in the system's."""
    with contextlib.suppress(OSError):
        if (project / ".dvc").is_dir():
            return _own_folder(project / ".dvc" / "tmp" / "spill")
    folder = Path(tempfile.mkdtemp(prefix="evergreen-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _own_folder(root: Path) -> Path:
    """A new folder that this process owns while it lives; the folders of dead processes are removed."""
    for lock in root.glob("*.lock"):
        locks.remove_ownerless(lock.with_suffix(""))
    owning = contextlib.ExitStack()
    atexit.register(owning.close)
    return owning.enter_context(locks.open_folder(root))
