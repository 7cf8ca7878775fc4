"""Locks between processes: one run of a name at a time for a home. A dead process holds no lock."""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from tasks import log


@contextlib.contextmanager
def take_turn(
    shared: Path, *, name: str = "run", say: Callable[[str], None] = log.info, timeout: float = 6 * 3600
) -> Iterator[None]:
    """One run of a name at a time for a home; a second waits and says for whom. A dead process holds nobody."""
    shared.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(shared / f"{name}.lock", thread_local=False), shared / f"{name}.holder"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another run is under way ({_holder(holder)}); waiting for it, at most {timeout:.0f} s")
        _wait_for(lock, holder, timeout)
    try:
        holder.write_text(f"process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        yield
    finally:
        lock.release()


def is_run_under_way(shared: Path, *, name: str = "run") -> bool:
    """Whether a process holds the lock of this name now."""
    lock = FileLock(shared / f"{name}.lock", thread_local=False)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except FileNotFoundError:  # no home yet
        return False


def _wait_for(lock: FileLock, holder: Path, timeout: float) -> None:
    try:
        lock.acquire(timeout=timeout, poll_interval=0.2)
    except Timeout:
        raise TimeoutError(
            f"another run ({_holder(holder)}) did not end within {timeout:.0f} s. Wait for it, or end that process."
        ) from None


def _holder(path: Path) -> str:
    return path.read_text() if path.exists() else "which has not said its process yet"
