"""journal: every prediction that was made and every outcome that came, appended and never rewritten.

A writing process has a log of its own (journal_log.py). `compact` moves the logs of processes that have ended into
Parquet by day of event time, at journal.address, and merges the many small files of a day into one. It writes before it
removes, and a row's `entry` tells it from every other, so a reader sees each row once at any moment. schema.py says
what the rows are.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import fsspec.core
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks import params
from tasks.runtime import formats, locks
from tasks.serving import schema
from tasks.serving.journal_log import Log, prepare_sync, read_frames, remove_log
from tasks.serving.schema import FORMAT, KINDS, SHADOW, Kind

MERGE_FILES = 8  # a day with so many Parquet files gets one instead
READ_ATTEMPTS = 5  # of a reader whose files are merged by another process meanwhile


def open_journal(settings: params.Journal, *, home: Path | None = None) -> "Journal":
    """The journal of a home; its Parquet is at journal.address, else beside its logs."""
    root = (home or params.home()) / "journal"
    return Journal(root / "logs", settings.address or str(root))


@dataclass
class Journal:
    """One process's access to the journal. Not for two threads at once: each opens its own."""

    logs: Path
    address: str
    _open: dict[Kind, Log] = field(default_factory=dict)

    def append(self, kind: Kind, rows: pa.Table, *, sync: bool = True) -> int:
        """Write rows with the columns of their kind (schema.py). They are on disk when this returns, or it raises.

        Args:
            sync: without it the rows are the operating system's when this returns. They outlive this process, and with
                the next sync a loss of power.

        Returns:
            The number of bytes that the log grows by.
        """
        log = self._open.get(kind)
        if log is None or log.schema is None or not rows.schema.equals(log.schema):
            schema.check_rows(kind, rows.schema)
        if not rows.num_rows:
            return 0
        if log is None:
            log = self._open[kind] = Log.begin(self.logs / kind)
        return log.append(rows, sync=sync)

    def detach(self) -> list[Log]:
        """The open logs, for the caller to sync and close. Later rows go to new logs."""
        logs, self._open = [*self._open.values()], {}
        return logs

    def prepare_sync(self) -> Callable[[], None]:
        """A function that puts all rows appended so far on disk, from any thread."""
        return prepare_sync(self._open.values())

    def read(
        self,
        kind: Kind,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        columns: Sequence[str] | None = None,
        shadows: bool = False,
    ) -> pa.Table:
        """Every row with since <= event_time < until, once, in the order of event time and entry.

        Args:
            columns: must hold those two. An empty journal gives a table without columns.
            shadows: also the predictions of a challenger in the shadow, which were sent to nobody.

        Raises:
            ValueError: the journal is of another format.
        """
        drops_shadows = kind == "predictions" and not shadows
        wanted = [*dict.fromkeys([*columns, *(["arm"] if drops_shadows else [])])] if columns else None
        logged = [table for path in self._logs(kind) for table in read_frames(path)]  # before the Parquet: see compact
        parts = [*self._read_days(kind, since, until, wanted), *logged]
        if drops_shadows:
            parts = [part.filter(pc.not_equal(part["arm"], SHADOW)) for part in parts]
        return _unite([part.select(columns) if columns else part for part in parts], since, until)

    def compact(self) -> int:
        """Move ended logs into Parquet and merge the files of a day. Killed anywhere, it can be run again.

        Returns:
            The number of logs.
        """
        ended = [(kind, path) for kind in KINDS for path in self._logs(kind)]
        count = sum(locks.act_if_ownerless(path, partial(self._move, kind, path)) for kind, path in ended)
        for kind in KINDS:
            self._merge_days(kind)
        return count

    def close(self) -> None:
        for log in self.detach():
            log.close()

    def _logs(self, kind: Kind) -> list[Path]:
        return sorted((self.logs / kind).glob("*.log"))

    def _read_days(
        self, kind: Kind, since: datetime | None, until: datetime | None, columns: Sequence[str] | None
    ) -> list[pa.Table]:
        """A file that a merge removes after it was listed is in a file that a new listing shows."""
        files, root = _open_address(f"{self.address}/{kind}")
        for attempt in range(1, READ_ATTEMPTS + 1):
            paths = [
                path
                for path in sorted(files.glob(f"{root}/day=*/*.parquet"))
                if (since is None or _day_of(path) >= since.date()) and (until is None or _day_of(path) <= until.date())
            ]
            try:
                return [_read_parquet(files, path, columns) for path in paths]
            except FileNotFoundError:
                if attempt == READ_ATTEMPTS:
                    raise
                files.invalidate_cache()
        return []

    def _move(self, kind: Kind, path: Path) -> None:
        """A day's file is named for the log: written twice, it is the same file."""
        if not path.exists():  # another process was faster
            return
        files, root = _open_address(f"{self.address}/{kind}")
        rows = _unite([*read_frames(path)], None, None)
        days = pc.cast(rows["event_time"], pa.date32()) if rows.num_rows else pa.array([], pa.date32())
        for day in pc.unique(days):
            _write_parquet(files, f"{root}/day={day}/{path.stem}.parquet", rows.filter(pc.equal(days, day)))
        remove_log(path)

    def _merge_days(self, kind: Kind) -> None:
        """The new file is whole before the old ones go; a reader in between sees rows twice and counts them once."""
        files, root = _open_address(f"{self.address}/{kind}")
        days: dict[str, list[str]] = {}
        for path in sorted(files.glob(f"{root}/day=*/*.parquet")):
            days.setdefault(path.rpartition("/")[0], []).append(path)
        for folder, paths in days.items():
            if len(paths) < MERGE_FILES:
                continue
            try:
                rows = _unite([_read_parquet(files, path, None) for path in paths], None, None)
            except FileNotFoundError:  # another process merges this day
                continue
            _write_parquet(files, f"{folder}/merged-{schema.make_entry(*paths)}.parquet", rows)
            for path in paths:
                if files.exists(path):
                    files.rm_file(path)


def _open_address(address: str) -> tuple[Any, str]:
    """An fsspec file system, and the path in it."""
    files, root = fsspec.core.url_to_fs(address)
    return files, str(root)


def _day_of(path: str) -> date:
    return date.fromisoformat(path.rsplit("/", 2)[-2].removeprefix("day="))


def _read_parquet(files: Any, path: str, columns: Sequence[str] | None) -> pa.Table:
    with files.open(path, "rb") as stream:
        file = pq.ParquetFile(stream)
        mark = (file.schema_arrow.metadata or {}).get(formats.KEY.encode())
        FORMAT.check(mark and mark.decode(), path)
        return file.read(columns)


def _write_parquet(files: Any, path: str, rows: pa.Table) -> None:
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    buffer = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(schema.METADATA), buffer, compression="zstd")
    files.pipe_file(f"{path}.new", buffer.getvalue())
    files.mv(f"{path}.new", path)


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
