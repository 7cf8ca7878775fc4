"""journal_log: the log of one process, in frames that are on disk before `append` returns.

A killed process loses no frame that was acknowledged; a torn last frame was never acknowledged.
"""

import contextlib
import io
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock

from tasks import log
from tasks.runtime import files
from tasks.runtime.locks import owner_lock

if TYPE_CHECKING:
    import pyarrow as pa


HEAD = struct.Struct(">4sQI")  # a frame: a mark, its length in bytes, their CRC-32; then an Arrow stream,

MARK, SAME = b"EVJ1", b"EVJ2"  # or but a batch, of the schema of the last stream: half of the bytes and of the time

TORN = ".torn"  # what could not be read of a log is kept under this name


@dataclass
class Log:
    """The log of one process. It holds a lock as long as the process lives: so compaction knows what has ended."""

    path: Path
    lock: FileLock
    stream: IO[bytes]
    schema: Any = None  # of the last frame that told one; not named as Arrow, for Prefect looks through this class

    @staticmethod
    def begin(folder: Path) -> "Log":
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}-{secrets.token_hex(3)}.log"
        lock = owner_lock(path)
        lock.acquire(timeout=0)
        stream = path.open("xb")
        files.sync(folder)
        return Log(path, lock, stream)

    def append(self, rows: "pa.Table", *, sync: bool = True) -> int:
        mark, data = self._packed(rows)
        before = self.stream.tell()
        try:
            self.stream.write(HEAD.pack(mark, len(data), zlib.crc32(data)) + data)
            self.stream.flush()
            if sync:
                os.fsync(self.stream.fileno())
        except OSError:  # a full disk: the next frame must not stand behind half a one
            self._back_to(before)
            raise
        self.schema = rows.schema
        return HEAD.size + len(data)

    def _packed(self, rows: "pa.Table") -> tuple[bytes, bytes]:
        import pyarrow as pa

        batches = rows.to_batches()
        if len(batches) == 1 and self.schema is not None and rows.schema.equals(self.schema):
            return SAME, batches[0].serialize().to_pybytes()
        held = io.BytesIO()
        with pa.ipc.new_stream(held, rows.schema) as writer:
            writer.write_table(rows)
        return MARK, held.getvalue()

    def _back_to(self, place: int) -> None:
        """Python's buffer still holds what could not be written: a stream without it goes on from `place`."""
        with contextlib.suppress(OSError):
            self.stream.close()
        os.truncate(self.path, place)
        self.stream, self.schema = self.path.open("ab"), None

    def close(self) -> None:
        self.stream.close()
        self.lock.release()


def syncing(logs: "Iterable[Log]") -> Callable[[], None]:
    """What puts them on disk, from any thread."""
    return partial(_sync, [os.dup(each.stream.fileno()) for each in logs])


def _sync(files: Sequence[int]) -> None:
    """Of descriptors that are nobody else's: what they are of may be closed meanwhile."""
    with contextlib.ExitStack() as closing:
        for each in files:
            closing.callback(os.close, each)
        for each in files:
            os.fsync(each)


def _frames(path: Path) -> "Iterator[pa.Table]":
    """The whole frames of a log that another process may be writing, or compaction may just have taken away."""
    import pyarrow as pa

    schema: Any = None
    with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
        while found := _frame(stream):
            mark, data = found
            if mark == MARK:
                rows = pa.ipc.open_stream(data).read_all()
                schema = rows.schema
            else:
                rows = pa.Table.from_batches([pa.ipc.read_record_batch(pa.py_buffer(data), schema)])
            yield rows


def _frame(stream: IO[bytes]) -> tuple[bytes, bytes] | None:
    """The mark and the bytes of the next whole frame; nothing at the end, or where the rest is torn."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    mark, length, crc = HEAD.unpack(head)
    data = stream.read(length) if mark in (MARK, SAME) else b""
    return (mark, data) if data and len(data) == length and zlib.crc32(data) == crc else None


def _whole_length(path: Path) -> int:
    with path.open("rb") as stream:
        whole = 0
        while _frame(stream):
            whole = stream.tell()
        return whole


def _retire(path: Path) -> None:
    """Remove a log whose frames are in Parquet. What could not be read of it is kept, for somebody to look at."""
    whole, size = _whole_length(path), path.stat().st_size
    if whole < size:
        log.warning("%s: the last %s bytes are torn; the log is kept as %s", path, size - whole, path.name + TORN)
        path.replace(path.with_name(path.name + TORN))
    path.unlink(missing_ok=True)
