"""journal_log: the logs of the processes of one machine, where rows stand until they are in Parquet.

A process has a log of its own for each kind of row, in frames that are on disk before `append` returns: a killed
process loses no frame that was acknowledged, and a torn last frame was never acknowledged. What has no owner any more
has ended and can be moved. journal_segments.py is the same for a team, in a store.
"""

import contextlib
import io
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import pyarrow as pa
from filelock import FileLock

from tasks import log
from tasks.runtime import files, locks
from tasks.serving import schema
from tasks.serving.plainrows import PlainRows

HEADER = struct.Struct(">3sBBQI")  # of a frame: MAGIC, schema.FORMAT's version, its content, its length and its CRC-32
MAGIC, OLD_MAGIC = b"EVL", b"EVJ"  # OLD_MAGIC: of logs from before schema.FORMAT
# Content: an Arrow stream; a batch with the schema of the last stream, which is half as long; or its columns as JSON.
STREAM, BATCH, PLAIN = 0, 1, 2
PLAIN_FORMAT = files.Format(schema.FORMAT.name, 2)  # of a frame of the third kind: readers of journal/1 refuse it
TORN = ".torn"  # the suffix of a log that is kept because its end cannot be read


@runtime_checkable
class Log(Protocol):
    """One process's log of one kind of row."""

    schema: pa.Schema | None  # of the last rows

    def append(self, rows: pa.Table | PlainRows, *, sync: bool = True) -> int:
        """Write rows. They are durable when this returns, or without `sync` after the next; the bytes that it took."""

    def prepare_sync(self) -> Callable[[], None]:
        """A function that makes durable what was appended so far: from any thread, also after the log was closed."""

    def close(self) -> None: ...


@runtime_checkable  # who validates a Journal asks
class Logs(Protocol):
    """Where the logs of all processes are."""

    @property
    def outlive_process(self) -> bool:
        """Whether what is appended without `sync` outlives a kill of its process."""

    def begin(self, kind: schema.Kind) -> Log:
        """A new log of this process."""

    def read(self, kind: schema.Kind) -> list[pa.Table]:
        """The rows of all logs. What is moved meanwhile may be missing, and is where it was moved to."""

    def move(self, kind: schema.Kind, write: Callable[[str, list[pa.Table]], None]) -> int:
        """Have the rows of logs that have ended written elsewhere, then remove those logs.

        Args:
            write: called with a name and rows; killed and called again, it gets the same rows or more of them.

        Returns:
            How many logs were moved.
        """


def pack_rows(rows: pa.Table | PlainRows, last: pa.Schema | None) -> bytes:
    """A frame, or two. Their schema is left out where it is that of the last frame."""
    is_new = last is None or not have_equal_columns(rows.schema, last)
    if isinstance(rows, PlainRows):
        frame = _pack(PLAIN, rows.to_bytes())
        return _pack_stream(pa.Table.from_batches([], rows.schema)) + frame if is_new else frame
    batches = rows.to_batches()
    return _pack_stream(rows) if is_new or len(batches) != 1 else _pack(BATCH, batches[0].serialize().to_pybytes())


def have_equal_columns(one: pa.Schema, other: pa.Schema) -> bool:
    """Whether two schemas have the same columns: mostly they are one."""
    return one is other or bool(one.equals(other))


def _pack_stream(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, rows.schema) as writer:
        writer.write_table(rows)
    return _pack(STREAM, buffer.getvalue())


def _pack(content: int, data: bytes) -> bytes:
    version = PLAIN_FORMAT.version if content == PLAIN else schema.FORMAT.version
    return HEADER.pack(MAGIC, version, content, len(data), zlib.crc32(data)) + data


def unpack_frames(file: IO[bytes], name: object) -> Iterator[pa.Table]:
    """The whole frames of a log.

    Raises:
        ValueError: the log is of another format.
    """
    last: Any = None  # the schema of the last stream
    while frame := _read_frame(file, name):
        content, data = frame
        if content == STREAM:
            rows = pa.ipc.open_stream(data).read_all()
            last = rows.schema
        elif content == PLAIN:
            rows = PlainRows.from_bytes(last, data).table
        else:
            rows = pa.Table.from_batches([pa.ipc.read_record_batch(pa.py_buffer(data), last)])
        yield rows


def split_frames(content: bytes) -> Iterator[bytes]:
    """The bytes of each whole frame, up to the first that is not."""
    file, begin = io.BytesIO(content), 0
    while _read_frame(file, "a segment"):
        yield content[begin : file.tell()]
        begin = file.tell()


def _read_frame(file: IO[bytes], name: object) -> tuple[int, bytes] | None:
    """The content and the bytes of the next whole frame; None at the end, or where the rest is torn."""
    header = file.read(HEADER.size)
    if header[:3] == OLD_MAGIC:
        schema.FORMAT.check(None, name)
    if len(header) < HEADER.size or header[:3] != MAGIC:
        return None
    _, version, content, length, crc = HEADER.unpack(header)
    format_of_frame = PLAIN_FORMAT if content == PLAIN else schema.FORMAT
    format_of_frame.check(f"{schema.FORMAT.name}/{version}", name)
    data = file.read(length)
    return (content, data) if data and len(data) == length and zlib.crc32(data) == crc else None


# --- on this machine -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalLogs:
    """Logs in a folder of this machine."""

    folder: Path
    outlive_process: bool = True  # the operating system has them

    def begin(self, kind: schema.Kind) -> Log:
        return LocalLog.begin(self.folder / kind)

    def read(self, kind: schema.Kind) -> list[pa.Table]:
        return [table for path in self.list_logs(kind) for table in read_frames(path)]

    def move(self, kind: schema.Kind, write: Callable[[str, list[pa.Table]], None]) -> int:
        return sum(locks.act_if_ownerless(path, partial(_move, path, write)) for path in self.list_logs(kind))

    def list_logs(self, kind: schema.Kind) -> list[Path]:
        return sorted((self.folder / kind).glob("*.log"))


def _move(path: Path, write: Callable[[str, list[pa.Table]], None]) -> None:
    if path.exists():  # no other process was faster
        write(path.stem, [*read_frames(path)])
        remove_log(path)


@dataclass
class LocalLog:
    """One process's log. The process holds its lock while it lives, so compaction knows which logs have ended."""

    path: Path
    lock: FileLock
    file: IO[bytes]
    schema: pa.Schema | None = None  # of the last stream

    @staticmethod
    def begin(folder: Path) -> "LocalLog":
        files.make_folder(folder)
        path = folder / f"{make_log_name()}.log"
        lock = locks.owner_lock(path)
        lock.acquire(timeout=0)
        file = path.open("xb")
        files.sync(folder)
        return LocalLog(path, lock, file)

    def append(self, rows: pa.Table | PlainRows, *, sync: bool = True) -> int:
        frame, end = pack_rows(rows, self.schema), self.file.tell()
        try:
            self.file.write(frame)
            self.file.flush()
            if sync:
                os.fsync(self.file.fileno())
        except OSError:  # a full disk: the next frame must not follow half a frame
            self._cut(end)
            raise
        self.schema = rows.schema
        return len(frame)

    def prepare_sync(self) -> Callable[[], None]:
        descriptor = os.dup(self.file.fileno())

        def sync() -> None:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

        return sync

    def _cut(self, end: int) -> None:
        """Python's buffer still holds what could not be written, so the file is opened again behind the last frame."""
        with contextlib.suppress(OSError):
            self.file.close()
        os.truncate(self.path, end)
        self.file, self.schema = self.path.open("ab"), None

    def close(self) -> None:
        self.file.close()
        self.lock.release()


def make_log_name() -> str:
    """A name that no other log has, in the order of time."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}-{secrets.token_hex(3)}"


def read_frames(path: Path) -> Iterator[pa.Table]:
    """The whole frames of a log. Another process may be writing it, or compaction may just have removed it.

    Raises:
        ValueError: the log is of another format.
    """
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        yield from unpack_frames(file, path)


def remove_log(path: Path) -> None:
    """Remove a log whose frames are in Parquet. One with a torn end is kept under another name, for a person to see."""
    whole, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while _read_frame(file, path):
            whole = file.tell()
    if whole < size:
        log.warning("%s: the last %s bytes are torn; the log is kept as %s", path, size - whole, path.name + TORN)
        path.replace(path.with_name(path.name + TORN))
    path.unlink(missing_ok=True)
