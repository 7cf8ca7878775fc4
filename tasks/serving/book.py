"""book: the journal as a server writes it.

An answer is sent when its predictions are the operating system's: then no kill of this process can lose them. They are
on disk within serving.sync, which only a loss of power or a crash of the whole machine need ask. With a sync of 0s an
answer waits for the disk, and those that wait do so together. A log is closed when it has grown, so that it can be
compacted.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from tasks.journal import Journal, Kind
from tasks.serving.batch import Batches

if TYPE_CHECKING:
    import pyarrow as pa

ROLL = 32_000_000  # bytes of a log
log = logging.getLogger("evergreen")


@dataclass
class Book:
    """Of one process, for one event loop."""

    journal: Journal
    sync: timedelta

    def __post_init__(self) -> None:
        self._written = 0
        self._later: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "journal")
        self._waiting: Batches[None, None] = Batches(self._sync_all, most=10_000)

    async def write(self, kind: Kind, rows: "pa.Table") -> None:
        """Return when the rows are kept; raise OSError when they cannot be."""
        self.journal.append(kind, rows, sync=False)
        self._written += rows.nbytes
        if not self.sync:
            await self._waiting.ask(None)
        elif self._later is None:
            self._later = asyncio.create_task(self._sync_later())
        if self._written > ROLL:
            self._written = 0
            await self._sync_all([])
            self.journal.close()  # the next append begins another

    async def _sync_later(self) -> None:
        await asyncio.sleep(self.sync.total_seconds())
        self._later = None  # what is written from now on waits for the next
        try:
            await self._sync_all([])
        except OSError as error:
            log.error("the journal is not on disk, and a loss of power would lose some of it: %s", error)

    async def _sync_all(self, waiting: list[None]) -> Sequence[None]:
        await asyncio.get_running_loop().run_in_executor(self._thread, self.journal.syncing())
        return waiting

    async def close(self) -> None:
        if self._later:
            self._later.cancel()
        try:
            await self._sync_all([])
        except OSError as error:
            log.error("the journal is not on disk, and a loss of power would lose some of it: %s", error)
        self._thread.shutdown()
        self.journal.close()
