"""journal: every prediction that was made and every outcome that came, appended and never rewritten.

A writing process has a log of its own, in frames that are on disk before `append` returns: a killed process loses no
frame that was acknowledged, and a torn last frame was never acknowledged. `compact` moves the logs of processes that
have ended into Parquet by day of event time, at journal.address, and merges the many small files of a day into one. It
writes before it removes, and a row's `entry` tells it from every other, so a reader sees each row once at any moment.
schema.py says what the rows are.
"""

import contextlib
import io
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import fsspec.core
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from tasks import log, params
from tasks.runtime import files, locks
from tasks.serving import schema

HEADER = struct.Struct(">3sBBQI")  # of a frame: MAGIC, schema.FORMAT's version, its content, its length and its CRC-32
MAGIC, OLD_MAGIC = b"EVL", b"EVJ"  # OLD_MAGIC: of logs from before schema.FORMAT
STREAM, BATCH = 0, 1  # content: an Arrow stream, or a batch with the schema of the last stream, which is half as long
TORN = ".torn"  # the suffix of a log that is kept because its end cannot be read
MERGE_FILES = 8  # a day with so many Parquet files gets one instead
READ_ATTEMPTS = 5  # of a reader whose files are merged by another process meanwhile


@dataclass
class Log:
    """One process's log. The process holds its lock while it lives, so compaction knows which logs have ended."""

    path: Path
    lock: FileLock
    file: IO[bytes]
    schema: pa.Schema | None = None  # of the last stream

    @staticmethod
    def begin(folder: Path) -> "Log":
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}-{secrets.token_hex(3)}.log"
        lock = locks.owner_lock(path)
        lock.acquire(timeout=0)
        file = path.open("xb")
        files.sync(folder)
        return Log(path, lock, file)

    def append(self, rows: pa.Table, *, sync: bool = True) -> int:
        content, data = self._pack(rows)
        end = self.file.tell()
        try:
            self.file.write(HEADER.pack(MAGIC, schema.FORMAT.version, content, len(data), zlib.crc32(data)) + data)
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


def prepare_sync(logs: Iterable[Log]) -> Callable[[], None]:
    """A function that puts these logs on disk, from any thread, also after they were closed."""
    descriptors = [os.dup(writer.file.fileno()) for writer in logs]

    def sync() -> None:
        with contextlib.ExitStack() as closing:
            for descriptor in descriptors:
                closing.callback(os.close, descriptor)
            for descriptor in descriptors:
                os.fsync(descriptor)

    return sync


def read_frames(path: Path) -> Iterator[pa.Table]:
    """The whole frames of a log. Another process may be writing it, or compaction may just have removed it.

    Raises:
        ValueError: the log is of another format.
    """
    last: Any = None  # the schema of the last stream
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        while frame := _read_frame(file):
            content, data = frame
            if content == STREAM:
                rows = pa.ipc.open_stream(data).read_all()
                last = rows.schema
            else:
                rows = pa.Table.from_batches([pa.ipc.read_record_batch(pa.py_buffer(data), last)])
            yield rows


def _read_frame(file: IO[bytes]) -> tuple[int, bytes] | None:
    """The content and the bytes of the next whole frame; None at the end, or where the rest is torn."""
    header = file.read(HEADER.size)
    if header[:3] == OLD_MAGIC:
        schema.FORMAT.check(None, file.name)
    if len(header) < HEADER.size or header[:3] != MAGIC:
        return None
    _, version, content, length, crc = HEADER.unpack(header)
    schema.FORMAT.check(f"{schema.FORMAT.name}/{version}", file.name)
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


def open_journal(settings: params.Journal, *, home: Path | None = None) -> "Journal":
    """The journal of a home; its Parquet is at journal.address, else beside its logs."""
    root = (home or params.home()) / "journal"
    return Journal(root / "logs", settings.address or str(root))


@dataclass
class Journal:
    """One process's access to the journal. Not for two threads at once: each opens its own."""

    logs: Path
    address: str
    _open: dict[schema.Kind, Log] = field(default_factory=dict)

    def append(self, kind: schema.Kind, rows: pa.Table, *, sync: bool = True) -> int:
        """Write rows with the columns of their kind (schema.py). They are on disk when this returns, or it raises.

        Args:
            sync: without it the rows are the operating system's when this returns. They outlive this process, and with
                the next sync a loss of power.

        Returns:
            The number of bytes that the log grows by.
        """
        writer = self._open.get(kind)
        if writer is None or writer.schema is None or not rows.schema.equals(writer.schema):
            schema.check_rows(kind, rows.schema)
        if not rows.num_rows:
            return 0
        if writer is None:
            writer = self._open[kind] = Log.begin(self.logs / kind)
        return writer.append(rows, sync=sync)

    def detach(self) -> list[Log]:
        """The open logs, for the caller to sync and close. Later rows go to new logs."""
        logs, self._open = [*self._open.values()], {}
        return logs

    def prepare_sync(self) -> Callable[[], None]:
        """A function that puts all rows appended so far on disk, from any thread."""
        return prepare_sync(self._open.values())

    def read(
        self,
        kind: schema.Kind,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        columns: Sequence[str] | None = None,
        shadows: bool = False,
    ) -> pa.Table:
        """Every row with since <= event_time < until, once, in the order of event time and entry.

        Args:
            columns: must hold those two. An empty journal gives the columns that every row of the kind has.
            shadows: also the predictions of a challenger in the shadow, which were sent to nobody.

        Raises:
            ValueError: the journal is of another format.
        """
        drops_shadows = kind == "predictions" and not shadows
        wanted = [*dict.fromkeys([*columns, *(["arm"] if drops_shadows else [])])] if columns else None
        logged = [table for path in self._logs(kind) for table in read_frames(path)]  # before the Parquet: see compact
        parts = [*self._read_days(kind, since, until, wanted), *logged] or [schema.make_empty(kind)]
        if drops_shadows:
            parts = [part.filter(pc.not_equal(part["arm"], schema.SHADOW)) for part in parts]
        return _unite([part.select(columns) if columns else part for part in parts], since, until)

    def compact(self) -> int:
        """Move ended logs into Parquet and merge the files of a day. Killed anywhere, it can be run again.

        Returns:
            The number of logs.
        """
        ended = [(kind, path) for kind in schema.KINDS for path in self._logs(kind)]
        count = sum(locks.act_if_ownerless(path, partial(self._move, kind, path)) for kind, path in ended)
        for kind in schema.KINDS:
            self._merge_days(kind)
        return count

    def close(self) -> None:
        for writer in self.detach():
            writer.close()

    def _logs(self, kind: schema.Kind) -> list[Path]:
        return sorted((self.logs / kind).glob("*.log"))

    def _read_days(
        self, kind: schema.Kind, since: datetime | None, until: datetime | None, columns: Sequence[str] | None
    ) -> list[pa.Table]:
        """A file that a merge removes after it was listed is in a file that a new listing shows."""
        store, root = fsspec.core.url_to_fs(f"{self.address}/{kind}")
        for _ in range(READ_ATTEMPTS):
            paths = [
                path
                for path in sorted(store.glob(f"{root}/day=*/*.parquet"))
                if (since is None or _day_of(path) >= since.date()) and (until is None or _day_of(path) <= until.date())
            ]
            try:
                return [_read_parquet(store, path, columns) for path in paths]
            except FileNotFoundError:
                store.invalidate_cache()
        raise FileNotFoundError(f"the files of {root} vanished in each of {READ_ATTEMPTS} readings: read again")

    def _move(self, kind: schema.Kind, path: Path) -> None:
        """A day's file is named for the log: written twice, it is the same file."""
        if not path.exists():  # another process was faster
            return
        store, root = fsspec.core.url_to_fs(f"{self.address}/{kind}")
        rows = _unite([*read_frames(path)], None, None)
        days = pc.cast(rows["event_time"], pa.date32()) if rows.num_rows else pa.array([], pa.date32())
        for day in pc.unique(days):
            _write_parquet(store, f"{root}/day={day}/{path.stem}.parquet", rows.filter(pc.equal(days, day)))
        remove_log(path)

    def _merge_days(self, kind: schema.Kind) -> None:
        """The new file is whole before the old ones go; a reader in between sees rows twice and counts them once."""
        store, root = fsspec.core.url_to_fs(f"{self.address}/{kind}")
        days: dict[str, list[str]] = {}
        for path in sorted(store.glob(f"{root}/day=*/*.parquet")):
            days.setdefault(path.rpartition("/")[0], []).append(path)
        for folder, paths in days.items():
            if len(paths) < MERGE_FILES:
                continue
            try:
                rows = _unite([_read_parquet(store, path, None) for path in paths], None, None)
            except FileNotFoundError:  # another process merges this day
                continue
            _write_parquet(store, f"{folder}/merged-{schema.make_entry(*paths)}.parquet", rows)
            for path in paths:
                if store.exists(path):
                    store.rm_file(path)


def _day_of(path: str) -> date:
    return date.fromisoformat(path.rsplit("/", 2)[-2].removeprefix("day="))


def _read_parquet(store: Any, path: str, columns: Sequence[str] | None) -> pa.Table:
    with store.open(path, "rb") as stream:
        file = pq.ParquetFile(stream)
        mark = (file.schema_arrow.metadata or {}).get(files.FORMAT_KEY.encode())
        schema.FORMAT.check(mark and mark.decode(), path)
        return file.read(columns)


def _write_parquet(store: Any, path: str, rows: pa.Table) -> None:
    store.makedirs(path.rpartition("/")[0], exist_ok=True)
    buffer = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(schema.METADATA), buffer, compression="zstd")
    store.pipe_file(f"{path}.new", buffer.getvalue())
    store.mv(f"{path}.new", path)


def _unite(parts: Sequence[pa.Table], since: datetime | None, until: datetime | None) -> pa.Table:
    """The rows of all parts with since <= event_time < until; of each entry the first."""
    if not parts:
        return pa.table({})
    rows = pa.concat_tables(_align_types(parts), promote_options="permissive").replace_schema_metadata()
    for moment, compare in ((since, pc.greater_equal), (until, pc.less)):
        if moment is not None:
            rows = rows.filter(compare(rows["event_time"], pa.scalar(moment, pa.timestamp("us"))))
    _, first = np.unique(rows["entry"].to_numpy(), return_index=True)
    return rows.take(first).sort_by([("event_time", "ascending"), ("entry", "ascending")])


def _align_types(parts: Sequence[pa.Table]) -> Iterator[pa.Table]:
    """A feature may be a number in one version and text in the next: together it is text."""
    texts = {column.name for part in parts for column in part.schema if pa.types.is_string(column.type)}
    for part in parts:
        columns = [column.with_type(pa.string()) if column.name in texts else column for column in part.schema]
        yield part.cast(pa.schema(columns))
