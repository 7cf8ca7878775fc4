"""state: the clean tables as they were at the newest as_of, for whoever makes the features of a few rows at once.

A tick of the loop publishes them, cut to what features.sql may look back to; a server loads them into memory. They are
published whole, under a name of their own, and a pointer is moved last: a reader sees the old ones or the new. Nothing
here knows who asks: tasks/serving does.
"""

import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import contract, features, params, periods
from tasks.contract import literal, quoted
from tasks.params import Params

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

POINTER = "current.json"
KEPT = 2  # a reader may still be loading the one before
log = logging.getLogger("evergreen")


@dataclass(frozen=True)
class State:
    """What was published: tables as of `as_of`, with which rows of event_time >= `since` can be answered."""

    folder: Path
    as_of: datetime
    since: datetime
    published_at: datetime  # by the clock on the wall, in UTC
    kind: str  # a hash of what the tables are: another contract makes another

    def age(self) -> timedelta:
        return datetime.now(UTC).replace(tzinfo=None) - self.published_at

    def event_now(self) -> datetime:
        """Event time "now": as_of, and what has passed on the wall since."""
        return self.as_of + self.age()


def publish(p: Params, folder: Path, *, home: Path | None = None) -> State | None:
    """Publish the clean tables of `folder`. None where newer ones of the same kind are there: time never goes back."""
    root = (home or params.home()) / "state"
    as_of = datetime.fromisoformat(json.loads((folder / p.paths.raw / "manifest.json").read_text())["as_of"])
    before, kind = current(home), _kind(p)
    if before and before.kind == kind and before.as_of > as_of:
        log.info("the state of %s stays: it is newer than %s", before.as_of, as_of)
        return None
    now = datetime.now(UTC).replace(tzinfo=None)
    made = State(root / f"{as_of:%Y%m%dT%H%M%S}-{now:%Y%m%dT%H%M%S%f}", as_of, as_of - p.serving.behind, now, kind)
    _write(p, folder, made)
    told = {"folder": made.folder.name, "as_of": as_of, "since": made.since, "published_at": now, "kind": kind}
    periods.publish_json(root / POINTER, {name: str(value) for name, value in told.items()})
    folders = sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    forget(folders[:-KEPT])
    return made


def _kind(p: Params) -> str:
    tables = {name: table.model_dump() for name, table in p.contract.items()}
    return periods.key(p.registry.model, tables, p.spine.model_dump(), str(p.features.lookback))[:16]


def _write(p: Params, folder: Path, made: State) -> None:
    """One file a table, in a folder that gets its name when all are there."""
    new = made.folder.with_name(f"{made.folder.name}.new")
    new.mkdir(parents=True)
    con, tables = features.connect(p), features.open_tables(p, folder / p.paths.clean)
    since = made.since - p.features.lookback
    near = {name: [path for each, path in files if each.end > since] for name, files in tables.timed.items()}
    for name, paths in {**tables.static, **near}.items():
        cut = f"event_time >= TIMESTAMP {literal(str(since))}" if name in near else "TRUE"
        _read(con, p, name, paths, cut)
        con.execute(f"COPY {quoted(name)} TO {literal(str(new / f'{name}.parquet'))} (FORMAT parquet)")
    new.rename(made.folder)


def _read(con: "DuckDBPyConnection", p: Params, name: str, paths: list[Path], cut: str) -> None:
    listed = ", ".join(literal(str(path)) for path in paths)
    sql = f" AS FROM read_parquet([{listed}]) WHERE {cut}" if paths else f" ({contract.columns_sql(p.contract[name])})"
    con.execute(f"CREATE TABLE {quoted(name)}{sql}")


def current(home: Path | None = None) -> State | None:
    """What was published last; None before the first time."""
    root = (home or params.home()) / "state"
    try:
        told = json.loads((root / POINTER).read_text())
    except FileNotFoundError:
        return None
    times = {name: datetime.fromisoformat(told[name]) for name in ("as_of", "since", "published_at")}
    return State(root / told["folder"], kind=told["kind"], **times)


def forget(folders: Iterable[Path]) -> None:
    """Remove what was published before. A reader that is still at it notices, and takes what is newer."""
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)


def load(p: Params, state: State) -> dict[str, "pa.Table"]:
    """The tables in memory, by their names. Raises FileNotFoundError when they have been replaced since."""
    found, con = {}, features.connect(p)
    for name in p.sources:
        path = state.folder / f"{name}.parquet"
        if not path.exists():
            raise FileNotFoundError(f"{path}: newer state has been published")
        found[name] = con.sql(f"FROM read_parquet({literal(str(path))})").to_arrow_table().combine_chunks()
    return found
