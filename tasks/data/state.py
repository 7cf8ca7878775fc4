"""The clean tables as they were at the newest as_of, for the features of single rows.

A tick of the loop publishes them, cut to what features.sql may look back to. A server loads them into memory. They are
published whole, in a folder of their own, and a pointer is moved last: a reader sees the old ones or the new ones. A
team's store has them too, from which each machine that serves fetches them into its home.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa

from tasks import log, params
from tasks.data import features, featuresql, manifest, periods
from tasks.runtime import files, locks, store
from tasks.runtime.sql import literal, parquet, quote, time_sql

FOLDER, POINTER = "state", "current.json"
KEPT_FOLDERS = 2  # a reader may still be loading the one before


@dataclass(frozen=True)
class State:
    """What was published: tables as of `as_of`, with which rows of event_time >= `since` can be answered.

    `kind` is a hash of what the tables are: another contract makes another.
    """

    folder: Path
    as_of: datetime
    since: datetime
    published_at: datetime  # by the clock on the wall, in UTC
    kind: str

    def age(self) -> timedelta:
        return datetime.now(UTC).replace(tzinfo=None) - self.published_at

    def event_now(self) -> datetime:
        """Event time "now": as_of, and what has passed on the wall since."""
        return self.as_of + self.age()


def publish(p: params.Params, folder: Path, *, home: Path | None = None) -> State | None:
    """Publish the clean tables of `folder`. None where newer ones of the same kind are there.

    Time never goes back, but for a state from beyond the data: only a clock that was set wrong can have made that.
    """
    home = home or params.home()
    with locks.take_turn(home, name=FOLDER, say=log.debug):
        return _publish(p, folder, home)


def _publish(p: params.Params, folder: Path, home: Path) -> State | None:
    root, raw = home / FOLDER, manifest.RawManifest.read(folder / p.paths.raw)
    as_of, before, kind = raw.as_of, None, identify_tables(p)
    try:
        before = read_published(home)
    except ValueError as error:
        log.warning("the state is published anew: %s", error)
    if before and before.as_of > max(raw.limit, as_of):
        log.warning("the state of %s is replaced: it lies beyond the data, which allow %s", before.as_of, raw.limit)
    elif before and before.kind == kind and before.as_of > as_of:
        log.info("the state of %s stays: it is newer than %s", before.as_of, as_of)
        return None
    now = datetime.now(UTC).replace(tzinfo=None)
    state = State(root / f"{as_of:%Y%m%dT%H%M%S}-{now:%Y%m%dT%H%M%S%f}", as_of, as_of - p.serving.behind, now, kind)
    _write_tables(p, folder, state)
    if shared := store.find_store():  # first: a home is never ahead of its team
        _share(state, before, shared)
    _point_to(state)
    return state


def _point_to(state: State) -> None:
    """Let the home's pointer name a state, and remove older ones."""
    root = state.folder.parent
    files.publish_text(root / POINTER, _pointer(state))
    folders = sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    remove_folders(folders[:-KEPT_FOLDERS])


def _pointer(state: State) -> str:
    return files.to_json(asdict(state) | {"folder": state.folder.name})


def identify_tables(p: params.Params) -> str:
    """The kind of the tables that these params describe: a state of another kind does not fit them."""
    return periods.hash_inputs(
        p.registry.model,
        {name: table.model_dump() for name, table in p.contract.items()},
        p.spine.model_dump(),
        str(p.features.lookback),
    )[:16]


def _write_tables(p: params.Params, folder: Path, state: State) -> None:
    """One file a table, in a folder that gets its name when all are there."""
    con, tables = featuresql.connect(p), features.open_tables(p, folder / p.paths.clean)
    since = state.since - p.features.lookback
    with files.publish_folder(state.folder, temporary=_temporary(state)) as new:
        for name, paths in tables.files_between(since).items():
            where = f"event_time >= {time_sql(since)}" if name in tables.timed else "TRUE"
            featuresql.create_table(con, p, name, paths, where=where)
            con.execute(f"COPY {quote(name)} TO {literal(str(new / f'{name}.parquet'))} (FORMAT parquet)")
        periods.seal_folder(new)


def read_current(home: Path | None = None) -> State | None:
    """What lies in the home; None before the first time. Raises ValueError for a pointer that names no state."""
    path = (home or params.home()) / FOLDER / POINTER
    try:
        return _parse_pointer(path.read_text(encoding="utf-8"), path, path.parent)
    except FileNotFoundError:
        return None


def read_published(home: Path | None = None) -> State | None:
    """What any machine of a team published last: its tables may not be in this home. Raises as `read_current`."""
    if (shared := store.find_store()) is None:
        return read_current(home)
    try:
        content = shared.read(f"{FOLDER}/{POINTER}").decode()
    except FileNotFoundError:
        return None
    return _parse_pointer(content, f"{shared.address}/{FOLDER}/{POINTER}", (home or params.home()) / FOLDER)


def _parse_pointer(text: str, where: object, root: Path) -> State:
    try:
        content = json.loads(text)
        times = {name: datetime.fromisoformat(content[name]) for name in ("as_of", "since", "published_at")}
        if any(time.tzinfo for time in times.values()):
            raise ValueError("its times must be without a zone")
        return State(root / content["folder"], kind=str(content["kind"]), **times)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{where} must tell a state's folder, as_of, since, published_at and kind, but it does not "
            f"({type(error).__name__}: {error}). Remove it: the next tick of the loop publishes the state anew."
        ) from None


def read_event_now() -> datetime | None:
    """Event time "now", by what was published last; None where nothing was, or nothing that can be read."""
    try:
        state = read_published()
    except (ValueError, store.StoreError) as error:
        log.warning("event time is not known: %s", error)
        return None
    return state.event_now() if state else None


# --- between the machines of a team ----------------------------------------------------------------------------------


def _share(state: State, before: State | None, shared: store.Store) -> None:
    """Bring a state to the store: its files, then the pointer; and remove all others but the one before."""
    root = f"{FOLDER}/{state.folder.name}"
    for path in sorted(state.folder.iterdir()):
        shared.add(f"{root}/{path.name}", path)
    shared.replace(f"{FOLDER}/{POINTER}", _pointer(state).encode())
    stay = {POINTER, state.folder.name, *([before.folder.name] if before else [])}
    for name in shared.list_names(FOLDER):
        if name.split("/")[1] not in stay:
            shared.remove(name)


def fetch(home: Path) -> State | None:
    """Bring the newest state of a team's store into the home.

    Returns:
        The state, where it is new to this home.

    Raises:
        StoreError: the store does not answer.
        ValueError: its pointer names no state, or the files are not those that were published.
    """
    shared = store.find_store()
    state = read_published(home) if shared else None
    if shared is None or state is None or _is_current(state, home):
        return None
    with locks.take_turn(home, name=f"{FOLDER}-fetch", say=log.debug, local=True):
        return _fetch(state, shared)


def _fetch(state: State, shared: store.Store) -> State | None:
    if not state.folder.exists():
        try:
            with files.publish_folder(state.folder, temporary=_temporary(state)) as new:
                for name in shared.list_names(f"{FOLDER}/{state.folder.name}"):
                    path = new / name.rpartition("/")[2]
                    path.write_bytes(shared.read(name))
                    files.sync(path)
                _refuse_damage(new)
        except FileNotFoundError:  # it has been replaced meanwhile: the next look finds the newer one
            return None
    _point_to(state)
    return state


def _is_current(state: State, home: Path) -> bool:
    with contextlib.suppress(ValueError):
        return read_current(home) == state
    return False


def _temporary(state: State) -> Path:
    """Where a state lies until it is whole. What a process that was killed has left there is removed."""
    path = state.folder.with_name(f"{state.folder.name}.new")
    shutil.rmtree(path, ignore_errors=True)
    return path


def remove_folders(folders: Iterable[Path]) -> None:
    """Remove what was published before. A reader that is still loading it notices, and takes what is newer."""
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)


def load_tables(p: params.Params, state: State) -> dict[str, pa.Table]:
    """The tables in memory, by their names.

    Raises:
        FileNotFoundError: they have been replaced since.
        ValueError: they are not those that were published.
    """
    if state.folder.exists():
        _refuse_damage(state.folder)
    con, paths = featuresql.connect(p), {name: state.folder / f"{name}.parquet" for name in p.sources}
    try:
        return {
            name: con.sql(f"FROM {parquet([path])}").to_arrow_table().combine_chunks() for name, path in paths.items()
        }
    except duckdb.IOException:
        raise FileNotFoundError(f"{state.folder}: newer state has been published") from None


def _refuse_damage(folder: Path) -> None:
    if damaged := periods.find_damage(folder):
        raise ValueError(
            f"the state must hold the bytes that were published, but these files are gone or hold others: "
            f"{', '.join(str(folder / name) for name in damaged)}. The next tick of the loop publishes it anew."
        )
