"""journal_writer: the journal as a server writes it.

An answer is sent when no kill of this process can lose its predictions. On a machine of its own they are then the
operating system's, and on disk within serving.sync, which matters only for a loss of power or a crash of the whole
machine; with a sync of 0s an answer waits for the disk. With a team's store an answer waits until they are in the
store. Waiting answers share one sync. A log that has grown is closed, so that it can be compacted.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa

from tasks import log
from tasks.serving.journal import Journal, prepare_sync
from tasks.serving.plainrows import PlainRows
from tasks.serving.schema import Kind

LOG_BYTES = 32_000_000  # of a log before another is begun


@dataclass
class JournalWriter:
    """Of one process, for one event loop."""

    journal: Journal
    sync: timedelta

    def __post_init__(self) -> None:
        self._written = 0
        self._next: asyncio.Task[OSError | None] | None = None  # the sync that has not begun
        self._syncs = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "journal")
        if not self.journal.logs.outlive_process:
            self.sync = timedelta(0)
        self.error: OSError | None = None  # of the last write, if it failed

    async def write(self, kind: Kind, rows: pa.Table | PlainRows) -> None:
        """Returns when the rows are in the journal. Raises OSError when they cannot be."""
        try:
            await self._write(kind, rows)
        except OSError as error:
            self.error = error
            raise
        self.error = None

    async def _write(self, kind: Kind, rows: pa.Table | PlainRows) -> None:
        self._written += self.journal.append(kind, rows, sync=False)
        if self._next is None:
            self._next = asyncio.create_task(self._sync_later())
        if not self.sync and (error := await asyncio.shield(self._next)):
            raise error
        if self._written > LOG_BYTES and self.journal.logs.outlive_process:
            self._written = 0
            old = self.journal.detach()  # rows that are appended meanwhile go to a new log
            try:
                await self._in_thread(prepare_sync(old))
            finally:
                for log_file in old:
                    log_file.close()

    async def _sync_later(self) -> OSError | None:
        await asyncio.sleep(self.sync.total_seconds())
        async with self._syncs:  # what is written while one sync runs waits for the next, together
            self._next = None
            return await self._sync()

    async def _sync(self) -> OSError | None:
        """Everybody who waits hears of a failure: a second sync succeeds although the rows of the first are lost."""
        try:
            await self._in_thread(self.journal.prepare_sync())
        except OSError as error:
            if self.journal.logs.outlive_process:
                log.error("the journal is not on disk, and a loss of power would lose some of it: %s", error)
                self.journal.close()
            else:
                log.error("the store did not take rows, and their requests are refused: %s", error)
            return error
        return None

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        if self._next:
            self._next.cancel()
        await self._sync()
        self._thread.shutdown()
        self.journal.close()
