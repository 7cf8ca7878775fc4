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
from typing import IO, Any

import pyarrow as pa
from filelock import FileLock

from tasks import log
from tasks.runtime import files
from tasks.runtime.locks import owner_lock
from tasks.serving.schema import FORMAT

HEADER = struct.Struct(">3sBBQI")  # of a frame: MAGIC, FORMAT's version, its content, its length and its CRC-32
MAGIC, OLD_MAGIC = b"EVL", b"EVJ"  # OLD_MAGIC: of logs from before FORMAT
STREAM, BATCH = 0, 1  # content: an Arrow stream, or a batch with the schema of the last stream, which is half as long
TORN = ".torn"  # the suffix of a log that is kept because its end cannot be read


@dataclass
class Log:
    """One process's log. The process holds its lock while it lives, so compaction knows which logs have ended."""

    path: Path
    lock: FileLock
    file: IO[bytes]
    schema: Any = None  # of the last stream; Any, because Prefect inspects this class and pyarrow is imported late

    @staticmethod
    def begin(folder: Path) -> "Log":
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}-{secrets.token_hex(3)}.log"
        lock = owner_lock(path)
        lock.acquire(timeout=0)
        file = path.open("xb")
        files.sync(folder)
        return Log(path, lock, file)

    def append(self, rows: pa.Table, *, sync: bool = True) -> int:
        content, data = self._pack(rows)
        end = self.file.tell()
        try:
            self.file.write(HEADER.pack(MAGIC, FORMAT.version, content, len(data), zlib.crc32(data)) + data)
            self.file.flush()
            if sync:
                os.fsync(self.file.fileno())
        except OSError:  # a full disk: the next frame must not follow half a frame
            self._cut(end)
            raise
        self.schema = rows.schema
        return HEADER.size + len(data)

    def _pack(self, rows: pa.Table) -> tuple[int, bytes]:
        batches = rows.to_batches()
        if len(batches) == 1 and self.schema is not None and rows.schema.equals(self.schema):
            return BATCH, batches[0].serialize().to_pybytes()
        buffer = io.BytesIO()
        with pa.ipc.new_stream(buffer, rows.schema) as writer:
            writer.write_table(rows)
        return STREAM, buffer.getvalue()

    def _cut(self, end: int) -> None:
        """Python's buffer still holds what could not be written, so the file is opened again behind the last frame."""
        with contextlib.suppress(OSError):
            self.file.close()
        os.truncate(self.path, end)
        self.file, self.schema = self.path.open("ab"), None

    def close(self) -> None:
        self.file.close()
        self.lock.release()


def prepare_sync(logs: "Iterable[Log]") -> Callable[[], None]:
    """A function that puts these logs on disk, from any thread, also after they were closed."""
    return partial(_sync_files, [os.dup(log.file.fileno()) for log in logs])


def _sync_files(numbers: Sequence[int]) -> None:
    with contextlib.ExitStack() as closing:
        for number in numbers:
            closing.callback(os.close, number)
        for number in numbers:
            os.fsync(number)


def read_frames(path: Path) -> Iterator[pa.Table]:
    """The whole frames of a log. Another process may be writing it, or compaction may just have removed it.

    Raises:
        ValueError: the log is of another format.
    """
    schema: Any = None
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        while frame := _read_frame(file):
            content, data = frame
            if content == STREAM:
                rows = pa.ipc.open_stream(data).read_all()
                schema = rows.schema
            else:
                rows = pa.Table.from_batches([pa.ipc.read_record_batch(pa.py_buffer(data), schema)])
            yield rows


def _read_frame(file: IO[bytes]) -> tuple[int, bytes] | None:
    """The content and the bytes of the next whole frame; None at the end, or where the rest is torn."""
    header = file.read(HEADER.size)
    if header[:3] == OLD_MAGIC:
        FORMAT.check(None, file.name)
    if len(header) < HEADER.size or header[:3] != MAGIC:
        return None
    _, version, content, length, crc = HEADER.unpack(header)
    FORMAT.check(f"{FORMAT.name}/{version}", file.name)
    data = file.read(length)
    return (content, data) if data and len(data) == length and zlib.crc32(data) == crc else None


def remove_log(path: Path) -> None:
    """Remove a log whose frames are in Parquet. One with a torn end is kept under another name, for a person to see."""
    whole, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while _read_frame(file):
            whole = file.tell()
    if whole < size:
        log.warning("%s: the last %s bytes are torn; the log is kept as %s", path, size - whole, path.name + TORN)
        path.replace(path.with_name(path.name + TORN))
    path.unlink(missing_ok=True)
