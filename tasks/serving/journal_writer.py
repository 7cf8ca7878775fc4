"""book: the journal as a server writes it.

An answer is sent when its predictions are the operating system's: then no kill of this process can lose them. They are
on disk within serving.sync, which only a loss of power or a crash of the whole machine need ask. With a sync of 0s an
answer waits for the disk, and those that wait do so together. A log is closed when it has grown, so that it can be
compacted.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from tasks import log
from tasks.serving.journal import Journal, Kind
from tasks.serving.journal_log import Log, syncing
from tasks.serving.microbatch import MicroBatches

if TYPE_CHECKING:
    import pyarrow as pa

ROLL = 32_000_000  # bytes of a log


@dataclass
class JournalWriter:
    """Of one process, for one event loop."""

    journal: Journal
    sync: timedelta

    def __post_init__(self) -> None:
        self._written = 0
        self._later: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "journal")
        self._waiting: MicroBatches[None, OSError | None] = MicroBatches(self._sync_all, most=10_000)
        self.error: OSError | None = None  # of the last write, if it failed

    async def write(self, kind: Kind, rows: "pa.Table") -> None:
        """Return when the rows are kept; raise OSError when they cannot be."""
        try:
            await self._write(kind, rows)
        except OSError as error:
            self.error = error
            raise
        self.error = None

    async def _write(self, kind: Kind, rows: "pa.Table") -> None:
        self._written += self.journal.append(kind, rows, sync=False)
        if not self.sync:
            if error := await asyncio.shield(self._waiting.ask(None)):
                raise error
        elif self._later is None:
            self._later = asyncio.create_task(self._sync_later())
        if self._written > ROLL:
            self._written = 0
            await self._roll()

    async def _sync_later(self) -> None:
        await asyncio.sleep(self.sync.total_seconds())
        self._later = None  # what is written from now on waits for the next
        await self._sync_all([None])

    async def _sync_all(self, waiting: list[None]) -> Sequence[OSError | None]:
        """All that wait hear of a failure: tried again, a sync succeeds although what it failed for is lost."""
        try:
            await self._in_thread(self.journal.syncing())
        except OSError as error:
            log.error("the journal is not on disk, and a loss of power would lose some of it: %s", error)
            _close(self.journal.detach())
            return [error] * len(waiting)
        return [None] * len(waiting)

    async def _roll(self) -> None:
        """What is appended while the old log goes to disk is in another already."""
        old = self.journal.detach()
        try:
            await self._in_thread(syncing(old))
        finally:
            _close(old)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        if self._later:
            self._later.cancel()
        await self._sync_all([None])
        self._thread.shutdown()
        self.journal.close()


def _close(logs: Iterable[Log]) -> None:
    for each in logs:
        each.close()
