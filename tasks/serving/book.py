"""book: the journal as a server writes it. One thread writes; what comes while it does goes with the next write.

An answer is sent when its predictions are on disk. A log is closed when it has grown, so that it can be compacted.
"""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tasks.journal import Journal, Kind

if TYPE_CHECKING:
    import pyarrow as pa

ROLL = 32_000_000  # bytes of a log


@dataclass
class Book:
    """Of one process, for one event loop."""

    journal: Journal
    _waiting: list["tuple[Kind, pa.Table, asyncio.Future[None]]"] = field(default_factory=list)
    _busy: bool = False
    _written: int = 0
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "journal"))

    async def write(self, kind: Kind, rows: "pa.Table") -> None:
        """Return when the rows are on disk; raise OSError when they cannot be put there."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((kind, rows, done))
        if not self._busy:
            self._busy = True
            self._task = loop.create_task(self._write_all())
        await asyncio.shield(done)  # who has gone meanwhile does not undo the others' write

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                error = await loop.run_in_executor(self._thread, self._append, batch)
                for _, _, done in batch:
                    if not done.done():
                        done.set_exception(error) if error else done.set_result(None)
        finally:
            self._busy = False

    def _append(self, batch: "list[tuple[Kind, pa.Table, asyncio.Future[None]]]") -> Exception | None:
        import pyarrow as pa

        try:
            for kind in {each[0] for each in batch}:
                rows = pa.concat_tables([table for of, table, _ in batch if of == kind], promote_options="permissive")
                self.journal.append(kind, rows)
                self._written += rows.nbytes
            if self._written > ROLL:
                self._written = 0
                self.journal.close()  # the next append begins another
        except Exception as error:
            return error
        return None

    async def close(self) -> None:
        while self._busy:
            await asyncio.sleep(0.01)
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().run_in_executor(self._thread, self.journal.close)
        self._thread.shutdown()
