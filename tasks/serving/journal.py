"""The journal: every prediction that was made and every outcome that came, appended and never rewritten.

A writing process has a log of its own, of frames that are on disk before `append` returns: what was acknowledged
survives a kill, and a torn last frame was never acknowledged. `compact` puts the logs of processes that have ended into
Parquet by day of event time, at journal.address. It writes before it removes, and a row's `entry` tells it from every
other, so a reader sees each row once at any moment. serving/score.py and monitoring/monitor.py know what rows mean.
"""

import contextlib
import hashlib
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
from typing import IO, TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from tasks import log, params

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["predictions", "outcomes", "signals", "decisions", "alerts"]
KINDS: tuple[Kind, ...] = ("predictions", "outcomes", "signals", "decisions", "alerts")
HEAD = struct.Struct(">4sQI")  # a frame: a mark, its length in bytes, their CRC-32; then an Arrow stream,
MARK, SAME = b"EVJ1", b"EVJ2"  # or but a batch, of the schema of the last stream: half of the bytes and of the time
TORN = ".torn"  # what could not be read of a log is kept under this name
STALE = "stale"  # the column that marks answers of a state that was too old for them; score predicts those rows anew
ARM, SHADOW = "arm", "shadow"  # the column that tells who answered; a row without it is the champion's


def open_journal(settings: params.Journal, *, home: Path | None = None) -> "Journal":
    """The journal of a home; its Parquet is at journal.address, else beside its logs."""
    root = (home or params.home()) / "journal"
    return Journal(root / "logs", settings.address or str(root))


@dataclass
class Journal:
    """One process's hold on the journal. Not for two threads at once: each opens its own."""

    logs: Path
    address: str
    _open: dict[Kind, "Log"] = field(default_factory=dict)

    def append(self, kind: Kind, rows: "pa.Table", *, sync: bool = True) -> int:
        """Rows with the columns `entry` (text) and `event_time`. They are on disk when this returns, or it raises.

        Without `sync` they are the system's when this returns: they outlive this process, whatever kills it, and with
        the next `sync` a loss of power. Returns the number of bytes that the log grows by.
        """
        if missing := {"entry", "event_time"} - set(rows.column_names):
            raise ValueError(f"a row of the journal needs {sorted(missing)}, but there are {rows.column_names}")
        if not rows.num_rows:
            return 0
        if kind not in self._open:
            self._open[kind] = Log.begin(self.logs / kind)
        return self._open[kind].append(rows, sync=sync)

    def detach(self) -> "list[Log]":
        """The logs that are open, for the caller to put on disk and close; what comes next goes to others."""
        found, self._open = [*self._open.values()], {}
        return found

    def syncing(self) -> Callable[[], None]:
        """What puts all that was appended until now on disk, from any thread."""
        return syncing(self._open.values())

    def read(
        self,
        kind: Kind,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        columns: Sequence[str] | None = None,
        shadows: bool = False,
    ) -> "pa.Table":
        """Every row with since <= event_time < until, once, in the order of event time and entry.

        `columns` must hold those two. An empty journal gives a table without columns. Of predictions only those that
        were somebody's answer, unless `shadows`: a challenger in the shadow is nobody's answer, and counts for nothing.
        """
        wanted = [*dict.fromkeys([*columns, ARM])] if columns else None
        logged = [table for path in self._logs(kind) for table in _frames(path)]  # before the Parquet: see compact
        parts = [*self._parquet(kind, since, until, wanted), *logged]
        listed = parts if shadows else map(_answers, parts)
        return _once([_select(part, columns) if columns else part for part in listed], since, until)

    def compact(self) -> int:
        """Put the logs of processes that have ended into Parquet; how many. Killed anywhere, it can be run again."""
        ended = [(kind, path) for kind in KINDS for path in self._logs(kind)]
        return sum(_if_ended(path, partial(self._move, kind, path)) for kind, path in ended)

    def close(self) -> None:
        for each in self._open.values():
            each.close()
        self._open.clear()

    def _logs(self, kind: Kind) -> list[Path]:
        return sorted((self.logs / kind).glob("*.log"))

    def _parquet(
        self, kind: Kind, since: datetime | None, until: datetime | None, columns: Sequence[str] | None
    ) -> "Iterator[pa.Table]":
        import pyarrow.parquet as pq

        files, root = _at(f"{self.address}/{kind}")
        for path in sorted(files.glob(f"{root}/day=*/*.parquet")):
            day = date.fromisoformat(path.rsplit("/", 2)[-2].removeprefix("day="))
            if (since is None or day >= since.date()) and (until is None or day <= until.date()):
                with files.open(path, "rb") as stream:
                    held = pq.ParquetFile(stream)
                    yield held.read(columns and _present(columns, held.schema_arrow.names))

    def _move(self, kind: Kind, path: Path) -> None:
        """A day's file is named for the log: written twice, it is the same file."""
        import pyarrow.parquet as pq

        files, root = _at(f"{self.address}/{kind}")
        for day, rows in _by_day(_once(list(_frames(path)), None, None)):
            target = f"{root}/day={day}/{path.stem}.parquet"
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
            held = io.BytesIO()
            pq.write_table(rows, held, compression="zstd")
            files.pipe_file(f"{target}.new", held.getvalue())
            files.mv(f"{target}.new", target)
        _retire(path)


def _at(address: str) -> tuple[Any, str]:
    """An fsspec file system, and the path in it."""
    import fsspec.core

    files, root = fsspec.core.url_to_fs(address)
    return files, str(root)


def _present(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Whatever is asked for must be there, but for the marks that most rows do without."""
    return [name for name in columns if name not in (ARM, STALE) or name in names]


def _select(part: "pa.Table", columns: Sequence[str]) -> "pa.Table":
    return part.select(_present(columns, part.column_names))


def _answers(part: "pa.Table") -> "pa.Table":
    import pyarrow.compute as pc

    if ARM not in part.column_names:
        return part
    return part.filter(pc.not_equal(pc.fill_null(part[ARM], ""), SHADOW))


def _by_day(rows: "pa.Table") -> "Iterator[tuple[date, pa.Table]]":
    import pyarrow as pa
    import pyarrow.compute as pc

    if rows.num_rows:
        days = pc.cast(rows["event_time"], pa.date32())
        for day in pc.unique(days):
            yield day.as_py(), rows.filter(pc.equal(days, day))


def _once(parts: "Sequence[pa.Table]", since: datetime | None, until: datetime | None) -> "pa.Table":
    """Together, each entry's first, within since <= event_time < until."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not parts:
        return pa.table({})
    rows = pa.concat_tables(_alike(parts), promote_options="permissive")
    for moment, inside in ((since, pc.greater_equal), (until, pc.less)):
        if moment is not None:
            rows = rows.filter(inside(rows["event_time"], pa.scalar(moment, pa.timestamp("us"))))
    _, first = np.unique(rows["entry"].to_numpy(), return_index=True)
    return rows.take(first).sort_by([("event_time", "ascending"), ("entry", "ascending")])


def _alike(parts: "Sequence[pa.Table]") -> "Iterator[pa.Table]":
    """A feature may be a number in one version and text in the next: together it is text."""
    import pyarrow as pa

    texts = {each.name for part in parts for each in part.schema if pa.types.is_string(each.type)}
    for part in parts:
        fields = [each.with_type(pa.string()) if each.name in texts else each for each in part.schema]
        yield part.cast(pa.schema(fields))


# --- a log ---------------------------------------------------------------------------------------------------------


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
        lock = _lock_of(path)
        lock.acquire(timeout=0)
        stream = path.open("xb")
        _flush_folder(folder)
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


def _lock_of(path: Path) -> FileLock:
    return FileLock(path.with_suffix(".lock"), thread_local=False)


def _if_ended(path: Path, act: Callable[[], None]) -> bool:
    lock = _lock_of(path)
    with contextlib.suppress(Timeout), lock.acquire(timeout=0):
        if path.exists():  # somebody else may have been faster
            act()
            Path(lock.lock_file).unlink(missing_ok=True)
            return True
    return False


def _flush_folder(folder: Path) -> None:
    """A new file's name is on disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def subject(entry: str) -> str:
    """What a prediction is about: of one row there may be several, named <subject>.<what tells them apart>."""
    return entry.partition(".")[0]


def entry_of(*parts: Any) -> str:
    """The name of a row of the journal: a hash of what makes it this row and no other."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).hexdigest()
