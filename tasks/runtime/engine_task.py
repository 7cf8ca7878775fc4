"""What an engine's worker does: one item at a time, with the function by its name and what is shared from its file.

Functions and classes travel as the names of this project's modules, so a worker needs the same code: one elsewhere is
asked for the hash of its own. The function's error travels with its traceback, as a result: Dask would log it, with
values of rows in it.
"""

import contextlib
import functools
import hashlib
import importlib
import io
import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tasks
from tasks import log
from tasks.runtime import stage

PLACES = ("EVERGREEN_HOME", "EVERGREEN_CHECKOUT", "EVERGREEN_PERIODS")  # where things lie: they travel with an item
MOST_SHARED = 2  # values that a worker holds: tables are large
_SHARED: dict[str, Any] = {}
IN_WORKER = False  # whether this process works for an engine elsewhere
_TURN = threading.Lock()  # a worker with several threads would mix up the folders that items are worked on in


@dataclass(frozen=True)
class Outcome:
    """What became of an item: its result or its error, what was logged, and the seconds of CPU that it took."""

    result: Any = None
    error: BaseException | None = None
    trace: dict[str, Any] | None = None  # the error's traceback, as tblib has it
    logged: tuple[tuple[int, str], ...] = ()
    cpu: float = 0.0

    def take(self) -> Any:
        """The result. Raises the error, with the traceback that it had."""
        if self.error is None:
            return self.result
        from tblib import Traceback

        raise self.error.with_traceback(Traceback.from_dict(self.trace).as_traceback() if self.trace else None)


@dataclass(frozen=True)
class Message:
    """An item on its way to a worker."""

    function: Callable[[Any, Any], Any]
    shared: Path
    item: Any
    folder: Path
    places: dict[str, str]

    @staticmethod
    def pack(function: Callable[[Any, Any], Any], shared: Path, item: Any) -> bytes:
        places = {name: os.environ[name] for name in PLACES if name in os.environ}
        return dump(Message(function, shared, item, Path.cwd(), places))


def run(code: str, message: bytes) -> bytes:
    """Work on an item. `code` is the sender's hash_code(): other code is refused. Gives an Outcome, pickled."""
    global IN_WORKER
    with _TURN:
        IN_WORKER = True
        if code != hash_code():
            error = ValueError(
                f"the worker {os.uname().nodename} must have the code of this run, but holds other code: start its "
                "workers in a checkout of this commit"
            )
            return pickle.dumps(Outcome(error=error))
        return pickle.dumps(run_here(message))


def run_here(message: bytes) -> Outcome:
    """Work on an item in this process."""
    began, lines = time.process_time(), _Lines()
    log.addHandler(lines)
    try:
        sent = pickle.loads(message)
        _enter(sent)
        result = sent.function(read_shared(sent.shared), sent.item)
        return Outcome(result, logged=tuple(lines.lines), cpu=time.process_time() - began)
    except Exception as error:
        return _describe(error, tuple(lines.lines), time.process_time() - began)
    finally:
        log.removeHandler(lines)


def _enter(sent: Message) -> None:
    """Be where the sender is. Raises FileNotFoundError on a machine that does not have its folder."""
    os.environ.update(sent.places)
    for folder in (sent.folder, sent.shared.parent):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} must be there on every worker of stage.cluster, but {os.uname().nodename} does not have it: "
                "mount the project and the home of all machines at one path, or use local:<processes>"
            )
    if Path.cwd() != sent.folder:
        os.chdir(sent.folder)


def _describe(error: Exception, logged: tuple[tuple[int, str], ...], cpu: float) -> Outcome:
    """An error that can travel, and its traceback. One that cannot is told by its type, as text may hold a row."""
    from tblib import Traceback

    trace = Traceback(error.__traceback__).to_dict()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__module__}.{type(error).__name__}, whose text cannot be sent")
    error.__traceback__, error.__context__ = None, None
    return Outcome(error=error, trace=trace, logged=logged, cpu=cpu)


class _Lines(logging.Handler):
    """Keeps what a function logs: the process that asked logs it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))


@functools.cache
def hash_code() -> str:
    """The hash of this project's modules."""
    root = Path(str(tasks.__file__)).parent
    parts = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        parts.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return parts.hexdigest()


def dask_setup(_worker: Any) -> None:
    """Dask calls this in each process of `local:<processes>`: it ends with its parent, and Ctrl-C is the parent's."""
    stage.die_with_parent()
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    log.setLevel(logging.INFO)
    log.propagate = False
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    hash_code()  # now, before somebody edits


def list_modules() -> list[str]:
    """This project's modules that this process has imported."""
    return sorted(name for name in sys.modules if name.startswith(f"{tasks.__name__}."))


def import_modules(names: Sequence[str]) -> None:
    """Import what items will need, in a worker that has nothing to do yet."""
    for name in names:
        importlib.import_module(name)


# --- pickles ---------------------------------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    """What a program's own module defines goes by the name under which a worker imports it."""

    def reducer_override(self, value: Any) -> Any:
        if getattr(value, "__module__", None) == "__main__" and hasattr(value, "__qualname__"):
            spec = getattr(sys.modules["__main__"], "__spec__", None)
            if spec is None:
                raise TypeError(f"{value.__qualname__} must be of a module that a worker can import, not of a script")
            return _find, (spec.name, value.__qualname__)
        return NotImplemented


def _find(module: str, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def dump(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


def write_shared(folder: Path, value: Any) -> Path:
    """What all items share, in a file that only this user reads. It is named for its bytes."""
    data = dump(value)
    path = folder / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    return path


def read_shared(path: Path) -> Any:
    """What write_shared wrote. The same value again is the same object, with all that it has computed since."""
    if path.name not in _SHARED:
        while len(_SHARED) >= MOST_SHARED:
            _SHARED.pop(next(iter(_SHARED)))
        _SHARED[path.name] = pickle.loads(path.read_bytes())
    return _SHARED[path.name]
