"""Locks between processes. A process that has died holds none.

A run takes turns with others of its name. What belongs to one process, such as a workspace, has a lock beside it that
the process holds as long as it lives, so that others can tell what a killed process has left.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from tasks import log


@contextlib.contextmanager
def take_turn(
    home: Path, *, name: str = "run", say: Callable[[str], None] = log.info, timeout: float = 6 * 3600
) -> Iterator[None]:
    """Hold the lock of a name for the block: one run of a name at a time for a home.

    Args:
        say: told for whom this run waits.
        timeout: in seconds.

    Raises:
        TimeoutError: another process has held the lock all that time; names it.
    """
    home.mkdir(parents=True, exist_ok=True)
    lock, holder = _run_lock(home, name), home / f"{name}.holder"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another run is under way ({_read_holder(holder)}); waiting for it, at most {timeout:.0f} s")
        try:
            lock.acquire(timeout=timeout, poll_interval=0.2)
        except Timeout:
            rule = f"another run ({_read_holder(holder)}) did not end within {timeout:.0f} s"
            raise TimeoutError(f"{rule}. Wait for it, or end that process.") from None
    try:
        holder.write_text(f"process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        yield
    finally:
        lock.release()


def is_run_under_way(home: Path, *, name: str = "run") -> bool:
    """Whether a process holds the lock of this name now."""
    try:
        with _run_lock(home, name).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except FileNotFoundError:  # no home yet
        return False


def _run_lock(home: Path, name: str) -> FileLock:
    return FileLock(home / f"{name}.lock", thread_local=False)


def _read_holder(path: Path) -> str:
    return path.read_text() if path.exists() else "which has not said its process yet"


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
