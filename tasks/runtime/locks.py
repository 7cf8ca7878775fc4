"""Locks between processes. A process that has died holds none.

A run takes turns with others of its name: by a file in the home, or by PostgreSQL where EVERGREEN_LOCKS names one, so
that the machines of a team take turns too. What belongs to one process, such as a workspace, has a lock beside it that
the process holds as long as it lives, so that others can tell what a killed process has left.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from tasks import log
from tasks.runtime import store

VARIABLE = "EVERGREEN_LOCKS"
GRACE_S = 3.0  # longer than a holder takes to notice that its connection is lost


class Lock(Protocol):
    """A lock between processes. Its holder may take it again, and releases it as often."""

    def acquire(self, *, timeout: float | None = None) -> object:
        """Raises TimeoutError when another process has held it for so many seconds; None: the lock's own wait."""

    def release(self) -> None: ...

    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> None: ...

    def is_held(self) -> bool:
        """Whether a process holds it now."""

    def read_holder(self) -> str:
        """Which process holds it, as a message says it."""


def open_lock(
    home: Path, name: str, *, timeout: float = -1, local: bool = False, grace: float = 0.0, by_thread: bool = False
) -> Lock:
    """The lock of a name.

    Args:
        home: the folder of the lock's file, where it is a file.
        timeout: the longest wait in seconds; -1: without an end.
        local: of this machine alone, whatever the variables say.
        grace: seconds that whoever waits leaves a holder that has lost the database, so that it takes its lock again.
        by_thread: of the thread that takes it: another thread of this process waits like any other.

    Raises:
        ValueError: the store is a bucket, and no database is named that could hold the locks of several machines.
    """
    shared = None if local else store.find_store()
    if not local and (database := os.environ.get(VARIABLE)):
        from tasks.runtime import advisory

        scope = store.read_identity(shared) if shared else ""
        return advisory.AdvisoryLock(database, name, scope=scope, timeout=timeout, grace=grace)
    if isinstance(shared, store.S3Store):
        raise ValueError(
            f"{VARIABLE} must name a PostgreSQL database where {store.VARIABLE} is a bucket ({shared.address}): "
            f"machines that share a store must wait for each other. Set {VARIABLE}=postgresql://user:password@host/database."
        )
    folder = shared.root / "locks" if isinstance(shared, store.FolderStore) else home
    return _FileLock(folder, name, timeout, by_thread=by_thread)


class _FileLock:
    """A lock by a file, and a file beside it that says who holds it."""

    def __init__(self, folder: Path, name: str, timeout: float, *, by_thread: bool) -> None:
        self._lock = FileLock(folder / f"{name}.lock", timeout=timeout, thread_local=by_thread)
        self._holder = folder / f"{name}.holder"

    def acquire(self, *, timeout: float | None = None) -> object:
        self._holder.parent.mkdir(parents=True, exist_ok=True)
        is_first = not self._lock.is_locked
        self._lock.acquire(timeout=timeout, poll_interval=0.05 if timeout is None else 0.2)
        if is_first:
            with contextlib.suppress(OSError):  # it is for messages alone
                self._holder.write_text(f"process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        return self

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> object:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def is_held(self) -> bool:
        if not Path(self._lock.lock_file).exists():
            return False
        try:
            self._lock.acquire(timeout=0)
        except TimeoutError:
            return True
        self._lock.release()
        return False

    def read_holder(self) -> str:
        return self._holder.read_text() if self._holder.exists() else "which has not said its process yet"


@contextlib.contextmanager
def take_turn(
    home: Path,
    *,
    name: str = "run",
    say: Callable[[str], None] = log.info,
    timeout: float = 6 * 3600,
    local: bool = False,
) -> Iterator[None]:
    """Hold the lock of a name for the block: one run of a name at a time.

    Args:
        say: told for whom this run waits.
        timeout: in seconds.
        local: one of this machine, whatever others do.

    Raises:
        TimeoutError: another process has held the lock all that time; names it.
    """
    home.mkdir(parents=True, exist_ok=True)
    lock = open_lock(home, name, local=local, grace=GRACE_S)
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        say(f"another run is under way ({lock.read_holder()}); waiting for it, at most {timeout:.0f} s")
        try:
            lock.acquire(timeout=timeout)
        except TimeoutError:
            rule = f"another run ({lock.read_holder()}) did not end within {timeout:.0f} s"
            raise TimeoutError(f"{rule}. Wait for it, or end that process.") from None
    try:
        yield
    finally:
        lock.release()


def is_run_under_way(home: Path, *, name: str = "run") -> bool:
    """Whether a process holds the lock of this name now."""
    return open_lock(home, name).is_held()


def owner_lock(path: Path) -> FileLock:
    """The lock of a file's or folder's owner, beside it. A hidden name's lock is that of the name without its dot."""
    return FileLock(path.with_name(path.name.removeprefix(".")).with_suffix(".lock"), thread_local=False)


@contextlib.contextmanager
def own(path: Path) -> Iterator[None]:
    """Hold the lock of a path's owner for the block."""
    lock = owner_lock(path)
    with lock:
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)


def has_owner(path: Path) -> bool:
    """Whether a living process holds the lock of a path's owner."""
    return not act_if_ownerless(path, lambda: None)


def act_if_ownerless(path: Path, act: Callable[[], None]) -> bool:
    """Act while no process can own a path, and remove the lock's file. Returns whether that was so."""
    lock = owner_lock(path)
    with contextlib.suppress(Timeout), lock.acquire(timeout=0):
        act()
        Path(lock.lock_file).unlink(missing_ok=True)
        return True
    return False


@contextlib.contextmanager
def open_folder(root: Path) -> Iterator[Path]:
    """A new private folder in `root` for the block. This process owns it: what a killed process leaves has no owner."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = root / secrets.token_hex(8)
    with own(folder):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_ownerless(path: Path) -> bool:
    """Remove a folder that no living process owns. Returns whether that was so."""
    return act_if_ownerless(path, lambda: shutil.rmtree(path, ignore_errors=True))
