"""The journal: every prediction that was made and every outcome that came, appended and never rewritten.

A writing process has a log of its own, of frames that are on disk before `append` returns: what was acknowledged
survives a kill, and a torn last frame was never acknowledged. `compact` puts the logs of processes that have ended into
Parquet by day of event time, at journal.address. It writes before it removes, and a row's `entry` tells it from every
other, so a reader sees each row once at any moment. serving/score.py and monitoring/monitor.py know what rows mean.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks import params
from tasks.runtime import locks
from tasks.serving.journal_log import Log, _frames, _retire, syncing

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["predictions", "outcomes", "signals", "decisions", "alerts"]
KINDS: tuple[Kind, ...] = ("predictions", "outcomes", "signals", "decisions", "alerts")
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
        return sum(locks.act_if_ownerless(path, partial(self._move, kind, path)) for kind, path in ended)

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

        if not path.exists():  # another process was faster
            return
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


def subject(entry: str) -> str:
    """What a prediction is about: of one row there may be several, named <subject>.<what tells them apart>."""
    return entry.partition(".")[0]


def entry_of(*parts: Any) -> str:
    """The name of a row of the journal: a hash of what makes it this row and no other."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).hexdigest()
