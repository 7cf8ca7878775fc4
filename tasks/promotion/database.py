"""database: the file of a registry on this machine: one that is gone is an error, one that was moved is put right.

MLflow makes a database that is missing, and the loop would begin again without a champion. So a marker, registry.json,
lies beside the database, or in the home for a registry elsewhere, and names the experiments and when each was made.

MLflow stores each artifact's address as an absolute path. In a copied home those paths lead into the original, so a
retrain in the copy would write there, and in a moved one they lead nowhere. So whoever opens a database on this machine
first compares the folder that its experiments name with the folder that it stands in, and rewrites the addresses where
they differ: in one transaction, before anything else is written. Everything else in a home is found by relative paths.

No mlflow here, and nothing depends on the versions of its schema: only columns that are there are touched.
"""

import contextlib
import os
import sqlite3
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock
from pydantic import TypeAdapter

from tasks import log
from tasks.runtime import files

ARTIFACTS = "mlartifacts"  # the folder beside the database
DATABASE, LOCK, MARKER = "mlflow.db", "registry.lock", "registry.json"
PREFIX = "sqlite:///"
ADDRESSES = {  # tables of MLflow's, and their columns that hold an artifact's address
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
LOCK_WAIT_S = 300.0  # for another process of this machine that writes to the registry
WAIT_S = 60.0  # for another process that writes to the database
LOSSES = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)  # other errors pass, as a lock does
Experiments = Mapping[str, int]  # when each was made, in ms since 1970: one that is made anew has another time
_whole: dict[Path, tuple[int, int, int]] = {}  # of each database that was found whole, how its file looked then
_opened: dict[Path, tuple[int, int]] = {}  # of each database that this process uses, which file it is


def sqlite_uri(database: Path) -> str:
    """The address of a database for SQLAlchemy and MLflow. Raises ValueError for a path that no such address holds."""
    if "?" in str(database):
        raise ValueError(
            f"the path of MLflow's database must hold no question mark, but it is {database}. Rename that folder, or "
            "set EVERGREEN_HOME to another."
        )
    if "%" in (library := sysconfig.get_path("purelib")):
        raise ValueError(
            f"the path of the Python environment must hold no %, since MLflow cannot make its tables then, but it is "
            f"{library}. Move or rename that folder, or set MLFLOW_TRACKING_URI to a server."
        )
    return f"{PREFIX}{database}"


def find_file(uri: str) -> Path | None:
    """The file of a database on this machine; None for a server, or a database of another kind."""
    return Path(uri.removeprefix(PREFIX)).absolute() if uri.startswith(PREFIX) else None


# --- a registry that is gone -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Marker:
    """What one registry held, since a day."""

    experiments: Experiments
    models: tuple[str, ...]
    since: str


MARKERS = TypeAdapter(dict[str, Marker])  # the content of registry.json, by the registries' names


def read_marker(folder: Path, key: str) -> Marker | None:
    """What the marker in a folder says of a registry; None for one that was never used from here."""
    return _read_markers(folder).get(key)


def write_marker(folder: Path, key: str, experiments: Experiments, model: str) -> None:
    """Say that a registry holds these experiments and this model, beside what is said already."""
    markers = _read_markers(folder)
    before = markers.get(key, Marker({}, (), f"{datetime.now(UTC):%Y-%m-%d}"))
    models = tuple(dict.fromkeys((*before.models, model)))
    after = replace(before, experiments={**before.experiments, **experiments}, models=models)
    if after != markers.get(key):
        files.publish_json(folder / MARKER, MARKERS.dump_python({**markers, key: after}))


def _read_markers(folder: Path) -> dict[str, Marker]:
    path = folder / MARKER
    try:
        return MARKERS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise ValueError(
            f"{path} must say which experiments the registry held, but it cannot be read. If the registry is whole, "
            "remove the file: it is written anew."
        ) from None


def check_whole(database: Path) -> None:
    """Raises ValueError for a SQLite database that lacks what the marker beside it says that it held."""
    status = database.stat() if database.exists() else None
    look = (status.st_ino, status.st_mtime_ns, status.st_size) if status else None
    if look and _whole.get(database) == look:
        return
    marker = read_marker(database.parent, database.name)
    if marker and (fault := find_fault(database, marker.experiments)):
        raise ValueError(explain_loss(str(database), fault, database.parent, marker))
    if look:
        _whole[database] = look


def find_fault(database: Path, experiments: Experiments) -> str | None:
    """What is wrong with a SQLite database that should hold these very experiments; None where it holds them."""
    if not database.exists():
        return "is gone"
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=30)
        ) as connection:
            made = dict(connection.execute("SELECT name, creation_time FROM experiments").fetchall())
    except sqlite3.Error as error:
        return "holds no registry" if error.sqlite_errorcode & 0xFF in LOSSES else None
    faults = (compare_times(expected, made.get(name)) for name, expected in experiments.items())
    return next((fault for fault in faults if fault), None)


def compare_times(expected: int | None, made: int | None) -> str | None:
    """What is wrong with an experiment that was made at `expected`, where the one of its name was made at `made`."""
    if expected is None or expected == made:
        return None
    return "holds them no more" if made is None else "is another one, made since"


def explain_loss(registry: str, fault: str, folder: Path, marker: Marker) -> str:
    """Why a registry is refused, and the ways out."""
    return (
        f"{registry} {fault}, but by {folder / MARKER} it held the experiments {', '.join(marker.experiments)}: the "
        f"runs, the versions and the ledger of {', '.join(marker.models)}, since {marker.since}. Restore it from a "
        f"backup; or, to begin anew without them, remove {folder / MARKER}."
    )


def is_replaced(database: Path) -> bool:
    """Whether another file has taken the name since the last look of this process, as when a backup is restored.

    Raises ValueError where this process had a file and there is none: what it has opened would make an empty one.
    """
    before = _opened.get(database)
    if not database.exists():
        if before:
            raise ValueError(
                f"{database} is gone since this process opened it. Restore it, or start this process anew."
            )
        return False
    status = database.stat()
    _opened[database] = now = (status.st_dev, status.st_ino)
    return before not in (None, now)


# --- a registry that was moved ---------------------------------------------------------------------------------------


def relocate_home(home: Path) -> int:
    """Put the registry of a home right before a program that is not ours opens it, such as MLflow's server."""
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / LOCK, timeout=LOCK_WAIT_S):
        return relocate_artifacts(home / DATABASE)


def relocate_artifacts(database: Path) -> int:
    """Rewrite the addresses of artifacts in a database that has been moved or copied; how many were rewritten.

    Raises ValueError where artifacts were left behind. The caller holds the registry's lock.
    """
    if not database.exists():
        return 0
    with contextlib.closing(sqlite3.connect(database, timeout=WAIT_S, isolation_level=None)) as connection:
        if not _read_roots(connection, database):
            return 0
        connection.execute("BEGIN IMMEDIATE")  # closed without COMMIT, the database is as it was
        count = sum(_move_addresses(connection, old, database.parent) for old in _read_roots(connection, database))
        connection.execute("COMMIT")
    return count


def _read_roots(connection: sqlite3.Connection, database: Path) -> list[str]:
    """The addresses of the homes that this database was moved or copied from, as its experiments name them."""
    if ("experiments", "artifact_location") not in _address_columns(connection):
        return []
    rows = connection.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
    roots = {root for number, name, location in rows if (root := _find_root(str(location), (str(number), str(name))))}
    return sorted(root for root in roots if _was_left(_to_path(root), database))


def _find_root(location: str, names: tuple[str, ...]) -> str | None:
    """The address of the folder whose mlartifacts an experiment has its place in; None for another kind of place.

    A run without a server names the place for the experiment, MLflow's server for the experiment's number.
    """
    folder, _, name = location.rpartition("/")
    if unquote(name) not in names or not folder.endswith(f"/{ARTIFACTS}"):
        return None
    root = folder.removesuffix(f"/{ARTIFACTS}")
    return root if root.startswith(("file:///", "/")) else None


def _to_path(root: str) -> Path:
    return Path(unquote(urlsplit(root).path) if root.startswith("file:") else root)


def _was_left(old: Path, database: Path) -> bool:
    """Whether the database came from there: artifacts came with it, or it left its like there, or nothing is there.

    Else somebody keeps the artifacts there on purpose, by a server's --default-artifact-root.
    """
    with contextlib.suppress(OSError):
        if os.path.samefile(old, database.parent):
            return False  # under another name: a link, a mount
    came_along = os.path.isdir(database.parent / ARTIFACTS)
    return came_along or os.path.exists(old / database.name) or not os.path.isdir(old)


def _move_addresses(connection: sqlite3.Connection, old: str, new: Path) -> int:
    """Rewrite the addresses below one folder; how many."""
    _refuse_left_behind(connection, old, new)
    target = new.as_uri() if old.startswith("file:") else str(new)
    count = 0
    for table, column in _address_columns(connection):
        begin = f"{old}/{ARTIFACTS}/"
        sql = f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) WHERE substr("{column}", 1, ?) = ?'
        values = (f"{target}/{ARTIFACTS}/", len(begin) + 1, len(begin), begin)
        count += connection.execute(sql, values).rowcount
    log.warning(
        "the registry was made in %s and stands in %s: %d addresses of its artifacts were rewritten, and nothing is "
        "written to the old place",
        _to_path(old),
        new,
        count,
    )
    return count


def _refuse_left_behind(connection: sqlite3.Connection, old: str, new: Path) -> None:
    """What is at the old place and not at the new was not copied along: rewriting its address would lose it."""
    begin, addresses = f"{old}/{ARTIFACTS}/", set[str]()
    for table, column in _address_columns(connection):
        sql = f'SELECT "{column}" FROM "{table}" WHERE substr("{column}", 1, ?) = ?'
        addresses.update(str(address) for (address,) in connection.execute(sql, (len(begin), begin)))
    place = _to_path(f"{old}/{ARTIFACTS}")
    for part in (_to_path(address).relative_to(place) for address in sorted(addresses)):
        if os.path.exists(place / part) and not os.path.exists(new / ARTIFACTS / part):
            raise ValueError(
                f"the registry was made in {place.parent} and stands in {new}, but artifacts that it names were not "
                f"brought along, such as {part}. Copy {place} to {new / ARTIFACTS}, or set EVERGREEN_HOME to "
                f"{place.parent} if that is the home you mean. Nothing was changed."
            )


def _address_columns(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Those of this version of MLflow's schema."""
    columns = {table: connection.execute(f'PRAGMA table_info("{table}")').fetchall() for table in ADDRESSES}
    return [(table, row[1]) for table, rows in columns.items() for row in rows if row[1] in ADDRESSES[table]]
