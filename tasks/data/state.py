"""state: the clean tables as they were at the newest as_of, for whoever makes the features of a few rows at once.

A tick of the loop publishes them, cut to what features.sql may look back to; a server loads them into memory. They are
published whole, under a name of their own, and a pointer is moved last: a reader sees the old ones or the new. Nothing
here knows who asks: tasks/serving does.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa

from tasks import log, params
from tasks.data import cache, contract, features, featuresql
from tasks.data.manifest import RawManifest
from tasks.params import Params
from tasks.runtime import files
from tasks.runtime.sql import literal, parquet, quote

POINTER = "current.json"
KEPT = 2  # a reader may still be loading the one before


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
    """Publish the clean tables of `folder`. None where newer ones of the same kind are there: time never goes back,
    except from beyond the data, where only a bent clock can have been."""
    root = (home or params.home()) / "state"
    raw = RawManifest.read(folder / p.paths.raw)
    as_of = raw.as_of
    before, own = _before(home), identify_tables(p)
    if before and before.as_of > max(raw.limit, as_of):
        log.warning("the state of %s is replaced: it lies beyond the data, which allow %s", before.as_of, raw.limit)
    elif before and before.kind == own and before.as_of > as_of:
        log.info("the state of %s stays: it is newer than %s", before.as_of, as_of)
        return None
    now = datetime.now(UTC).replace(tzinfo=None)
    made = State(root / f"{as_of:%Y%m%dT%H%M%S}-{now:%Y%m%dT%H%M%S%f}", as_of, as_of - p.serving.behind, now, own)
    _write(p, folder, made)
    told = {"folder": made.folder.name, "as_of": as_of, "since": made.since, "published_at": now, "kind": own}
    files.publish_json(root / POINTER, {name: str(value) for name, value in told.items()})
    folders = sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    remove_folders(folders[:-KEPT])
    return made


def _before(home: Path | None) -> State | None:
    """What cannot be read is published anew."""
    try:
        return read_current(home)
    except ValueError as error:
        log.warning("the state is published anew: %s", error)
        return None


def identify_tables(p: Params) -> str:
    """What the tables of these params are; a state of another kind does not fit them."""
    tables = {name: table.model_dump() for name, table in p.contract.items()}
    return cache.hash_inputs(p.registry.model, tables, p.spine.model_dump(), str(p.features.lookback))[:16]


def _write(p: Params, folder: Path, made: State) -> None:
    """One file a table, in a folder that gets its name when all are there."""
    new = made.folder.with_name(f"{made.folder.name}.new")
    new.mkdir(parents=True)
    con, tables = featuresql.connect(p), features.open_tables(p, folder / p.paths.clean)
    since = made.since - p.features.lookback
    near = {name: [path for each, path in files if each.end > since] for name, files in tables.timed.items()}
    for name, paths in {**tables.static, **near}.items():
        cut = f"event_time >= TIMESTAMP {literal(str(since))}" if name in near else "TRUE"
        _read(con, p, name, paths, cut)
        con.execute(f"COPY {quote(name)} TO {literal(str(new / f'{name}.parquet'))} (FORMAT parquet)")
    cache.seal_folder(new)
    new.rename(made.folder)


def _read(con: duckdb.DuckDBPyConnection, p: Params, name: str, paths: list[Path], cut: str) -> None:
    sql = f" AS FROM {parquet(paths)} WHERE {cut}" if paths else f" ({contract.columns_sql(p.contract[name])})"
    con.execute(f"CREATE TABLE {quote(name)}{sql}")


def read_current(home: Path | None = None) -> State | None:
    """What was published last; None before the first time. Raises ValueError for a pointer that tells of no state."""
    path = (home or params.home()) / "state" / POINTER
    try:
        return _told(path)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} must tell a state's folder, as_of, since, published_at and kind, but it does not "
            f"({type(error).__name__}: {error}). Remove it: the next tick of the loop publishes the state anew."
        ) from None


def read_event_now() -> datetime | None:
    """Event time "now", by what was published last; None where nothing was, or nothing that can be read."""
    with contextlib.suppress(ValueError):
        found = read_current()
        return found.event_now() if found else None
    return None


def _told(path: Path) -> State:
    told = json.loads(path.read_text(encoding="utf-8"))
    times = {name: datetime.fromisoformat(told[name]) for name in ("as_of", "since", "published_at")}
    if any(each.tzinfo for each in times.values()):
        raise ValueError("its times must be without a zone")
    return State(path.parent / told["folder"], kind=str(told["kind"]), **times)


def remove_folders(folders: Iterable[Path]) -> None:
    """Remove what was published before. A reader that is still at it notices, and takes what is newer."""
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)


def load_tables(p: Params, state: State) -> dict[str, pa.Table]:
    """The tables in memory, by their names. Raises FileNotFoundError when they have been replaced since, ValueError
    when they are not those that were published."""
    con = featuresql.connect(p)
    damaged = cache.find_damage(state.folder)
    if not state.folder.exists():
        raise FileNotFoundError(f"{state.folder}: newer state has been published")
    if damaged:
        raise ValueError(
            f"the state must hold the bytes that were published, but these files are gone or hold others: "
            f"{', '.join(str(state.folder / name) for name in damaged)}. The next tick of the loop publishes it anew."
        )
    return {name: _table(con, state.folder / f"{name}.parquet") for name in p.sources}


def _table(con: duckdb.DuckDBPyConnection, path: Path) -> pa.Table:

    try:
        return con.sql(f"FROM {parquet([path])}").to_arrow_table().combine_chunks()
    except duckdb.IOException:
        raise FileNotFoundError(f"{path}: newer state has been published") from None
