"""journal: every prediction that was made and every outcome that came, appended and never rewritten.

Rows are appended to logs: of this machine (journal_log.py), or of a team in its store (journal_segments.py). `compact`
moves what logs hold into Parquet by day of event time, at journal.address, and merges the many small files of a day
into one. It writes before it removes, and a row's `entry` tells it from every other, so a reader sees each row once at
any moment. schema.py says what the rows are.
"""

import io
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import fsspec.core
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks import log, params
from tasks.runtime import files, store
from tasks.serving import schema
from tasks.serving.journal_log import LocalLogs, Log, Logs, have_equal_columns
from tasks.serving.journal_segments import StoreLogs
from tasks.serving.plainrows import PlainRows

MERGE_FILES = 8  # a day with so many Parquet files gets one instead
READ_ATTEMPTS = 5  # of a reader whose files are merged by another process meanwhile


def prepare_sync(logs: Iterable[Log]) -> Callable[[], None]:
    """A function that makes durable what these logs hold, from any thread, also after they were closed.

    It tries all, and raises the first OSError at the end.
    """
    syncs = [writer.prepare_sync() for writer in logs]

    def sync() -> None:
        errors = []
        for run in syncs:
            try:
                run()
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    return sync


def open_journal(settings: params.Journal, *, home: Path | None = None) -> "Journal":
    """The journal of a team's fs, else of a home; its Parquet is at journal.address, else beside its logs."""
    home = home or params.home()
    if shared := store.find_store():
        warn_of_own(home, shared.address)
        return Journal(StoreLogs(shared), settings.address or f"{shared.address}/journal")
    return open_local(settings, home)


def open_local(settings: params.Journal, home: Path) -> "Journal":
    """The journal of a home, whether or not there is a store."""
    root = home / "journal"
    return Journal(LocalLogs(root / "logs"), settings.address or str(root))


@lru_cache  # once in a process
def warn_of_own(home: Path, address: str) -> None:
    """Say that a home's own journal is not read where a team's is."""
    root = home / "journal"
    if home != Path(address) and any(path.suffix in (".log", ".parquet") for path in root.rglob("*")):
        log.warning(
            "%s has predictions or decisions that the team's journal at %s does not have, and they are not read. Bring "
            "them there: python -m tasks.serving.adopt. Or, if they are another model's, rename that folder.",
            root,
            address,
        )


@dataclass
class Journal:
    """One process's access to the journal. Not for two threads at once: each opens its own."""

    logs: Logs
    address: str
    _open: dict[schema.Kind, Log] = field(default_factory=dict)

    def append(self, kind: schema.Kind, rows: pa.Table | PlainRows, *, sync: bool = True) -> int:
        """Write rows with the columns of their kind (schema.py). They are durable when this returns, or it raises.

        Args:
            sync: without it they are durable after the next sync. If `logs.outlive_process`, no kill of this process
                loses them before.

        Returns:
            The number of bytes that the log grows by.
        """
        writer = self._open.get(kind)
        if writer is None or writer.schema is None or not have_equal_columns(rows.schema, writer.schema):
            schema.check_rows(kind, rows.schema)
        if not rows.num_rows:
            return 0
        if writer is None:
            writer = self._open[kind] = self.logs.begin(kind)
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
        logged = self.logs.read(kind)  # before the Parquet: see compact
        parts = [*self._read_days(kind, since, until, wanted), *logged] or [schema.make_empty(kind)]
        if drops_shadows:
            parts = [part.filter(pc.not_equal(part["arm"], schema.SHADOW)) for part in parts]
        return _unite([part.select(columns) if columns else part for part in parts], since, until)

    def compact(self) -> int:
        """Move what logs hold into Parquet and merge the files of a day. Killed anywhere, it can be run again.

        Returns:
            The number of logs.
        """
        count = sum(self.logs.move(kind, partial(self._write_days, kind)) for kind in schema.KINDS)
        for kind in schema.KINDS:
            self._merge_days(kind)
        return count

    def close(self) -> None:
        for writer in self.detach():
            writer.close()

    def _read_days(
        self, kind: schema.Kind, since: datetime | None, until: datetime | None, columns: Sequence[str] | None
    ) -> list[pa.Table]:
        """A file that a merge removes after it was listed is in a file that a new listing shows."""
        fs, root = fsspec.core.url_to_fs(f"{self.address}/{kind}")
        for _ in range(READ_ATTEMPTS):
            paths = [
                path
                for path in _list_parquet(fs, root)
                if (since is None or _day_of(path) >= since.date()) and (until is None or _day_of(path) <= until.date())
            ]
            try:
                return [_read_parquet(fs, path, columns) for path in paths]
            except FileNotFoundError:
                continue
        raise FileNotFoundError(f"the files of {root} vanished in each of {READ_ATTEMPTS} readings: read again")

    def _write_days(self, kind: schema.Kind, name: str, tables: list[pa.Table]) -> None:
        """A day's file is named for the log: written twice, it is the same file."""
        fs, root = fsspec.core.url_to_fs(f"{self.address}/{kind}")
        rows = _unite(tables, None, None)
        days = pc.cast(rows["event_time"], pa.date32()) if rows.num_rows else pa.array([], pa.date32())
        for day in pc.unique(days):
            _write_parquet(fs, f"{root}/day={day}/{name}.parquet", rows.filter(pc.equal(days, day)))

    def _merge_days(self, kind: schema.Kind) -> None:
        """The new file is whole before the old ones go; a reader in between sees rows twice and counts them once."""
        fs, root = fsspec.core.url_to_fs(f"{self.address}/{kind}")
        fs.invalidate_cache()
        days: dict[str, list[str]] = {}
        for path in sorted(fs.glob(f"{root}/day=*/*.parquet")):
            days.setdefault(path.rpartition("/")[0], []).append(path)
        for folder, paths in days.items():
            if len(paths) < MERGE_FILES:
                continue
            try:
                rows = _unite([_read_parquet(fs, path, None) for path in paths], None, None)
            except FileNotFoundError:  # another process merges this day
                continue
            _write_parquet(fs, f"{folder}/merged-{schema.make_entry(*paths)}.parquet", rows)
            for path in paths:
                if fs.exists(path):
                    fs.rm_file(path)


def _list_parquet(fs: Any, root: str) -> list[str]:
    """The files of all days, as two listings in a row show them: a folder that is listed while two files become one may
    show neither."""
    paths: list[str] | None = None
    while True:
        fs.invalidate_cache()  # an older listing lacks what has been moved since
        before, paths = paths, sorted(fs.glob(f"{root}/day=*/*.parquet"))
        if paths == before or (before is None and "file" not in fs.protocol):
            return paths


def _day_of(path: str) -> date:
    return date.fromisoformat(path.rsplit("/", 2)[-2].removeprefix("day="))


def _read_parquet(fs: Any, path: str, columns: Sequence[str] | None) -> pa.Table:
    with fs.open(path, "rb") as stream:
        file = pq.ParquetFile(stream)
        mark = (file.schema_arrow.metadata or {}).get(files.FORMAT_KEY.encode())
        schema.FORMAT.check(mark and mark.decode(), path)
        return file.read(columns)


def _write_parquet(fs: Any, path: str, rows: pa.Table) -> None:
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    buffer = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(schema.METADATA), buffer, compression="zstd")
    new = f"{path}.{secrets.token_hex(4)}.new"  # two processes may write one file, which holds the same then
    fs.pipe_file(new, buffer.getvalue())
    fs.mv(new, path)


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
