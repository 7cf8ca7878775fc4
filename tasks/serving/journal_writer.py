"""journal_writer: the journal as a server writes it.

An answer is sent when its predictions are the operating system's: then no kill of this process can lose them. They are
on disk within serving.sync, which matters only for a loss of power or a crash of the whole machine. With a sync of 0s
an answer waits for the disk, and waiting answers share one sync. A log that has grown is closed, so that it can be
compacted.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa

from tasks import log
from tasks.serving.journal import Journal, prepare_sync
from tasks.serving.microbatch import MicroBatches
from tasks.serving.schema import Kind

LOG_BYTES = 32_000_000  # of a log before another is begun


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

    async def write(self, kind: Kind, rows: pa.Table) -> None:
        """Returns when the rows are kept. Raises OSError when they cannot be."""
        try:
            await self._write(kind, rows)
        except OSError as error:
            self.error = error
            raise
        self.error = None

    async def _write(self, kind: Kind, rows: pa.Table) -> None:
        self._written += self.journal.append(kind, rows, sync=False)
        if not self.sync:
            if error := await asyncio.shield(self._waiting.ask(None)):
                raise error
        elif self._later is None:
            self._later = asyncio.create_task(self._sync_later())
        if self._written > LOG_BYTES:
            self._written = 0
            old = self.journal.detach()  # rows that are appended meanwhile go to a new log
            try:
                await self._in_thread(prepare_sync(old))
            finally:
                for log_file in old:
                    log_file.close()

    async def _sync_later(self) -> None:
        await asyncio.sleep(self.sync.total_seconds())
        self._later = None  # later rows wait for the next sync
        await self._sync_all([None])

    async def _sync_all(self, waiting: list[None]) -> Sequence[OSError | None]:
        """Everybody who waits hears of a failure: a second sync succeeds although the rows of the first are lost."""
        try:
            await self._in_thread(self.journal.prepare_sync())
        except OSError as error:
            log.error("the journal is not on disk, and a loss of power would lose some of it: %s", error)
            self.journal.close()
            return [error] * len(waiting)
        return [None] * len(waiting)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        if self._later:
            self._later.cancel()
        await self._sync_all([None])
        self._thread.shutdown()
        self.journal.close()
