"""relocate: a registry's database that was moved or copied names the artifacts that stand beside it, not those it left.

MLflow stores each artifact's address as an absolute path. In a copied home those paths lead into the original, so a
retrain in the copy would write there, and in a moved one they lead nowhere. So whoever opens a database on this machine
first compares the folder that its experiments name with the folder that it stands in, and rewrites the addresses where
they differ: in one transaction, before anything else is written. Everything else in a home is found by relative paths.
Neither mlflow nor its schema's versions are needed: only columns that are there are touched.
"""

import contextlib
import os
import sqlite3
import sysconfig
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from tasks import log

ARTIFACTS = "mlartifacts"  # the folder beside the database
PREFIX = "sqlite:///"
ADDRESSES = {  # tables of MLflow's, and their columns that hold an artifact's address
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
DATABASE, LOCK = "mlflow.db", "registry.lock"
LOCK_WAIT_S = 300.0  # for another process of this machine that writes to the registry
WAIT_S = 60.0  # for another process that writes to the database


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


def database_of(uri: str) -> Path | None:
    """The file of a database on this machine; None for a server, or a database of another kind."""
    return Path(uri.removeprefix(PREFIX)).absolute() if uri.startswith(PREFIX) else None


def relocate_home(home: Path) -> int:
    """The same for the registry of a home, before a program that is not ours opens it, such as MLflow's server."""
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / LOCK, timeout=LOCK_WAIT_S):
        return relocate_artifacts(home / DATABASE)


def relocate_artifacts(database: Path) -> int:
    """Rewrite the addresses of artifacts in a database that has been moved or copied; how many were rewritten.

    Raises ValueError where artifacts were left behind. The caller holds the registry's lock.
    """
    if not database.exists():
        return 0
    with closing(sqlite3.connect(database, timeout=WAIT_S, isolation_level=None)) as connection:
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
    roots = {root for number, name, location in rows if (root := _root(str(location), (str(number), str(name))))}
    return sorted(root for root in roots if _is_left(_path(root), database))


def _root(location: str, names: tuple[str, ...]) -> str | None:
    """The address of the folder whose mlartifacts an experiment has its place in; None for another kind of place.

    A run without a server names the place for the experiment, MLflow's server for the experiment's number.
    """
    folder, _, name = location.rpartition("/")
    if unquote(name) not in names or not folder.endswith(f"/{ARTIFACTS}"):
        return None
    root = folder.removesuffix(f"/{ARTIFACTS}")
    return root if root.startswith(("file:///", "/")) else None


def _path(root: str) -> Path:
    return Path(unquote(urlsplit(root).path) if root.startswith("file:") else root)


def _is_left(old: Path, database: Path) -> bool:
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
        _path(old),
        new,
        count,
    )
    return count


def _refuse_left_behind(connection: sqlite3.Connection, old: str, new: Path) -> None:
    """What is at the old place and not at the new was not copied along: rewriting its address would lose it."""
    place = _path(f"{old}/{ARTIFACTS}")
    for address in sorted(set(_read_addresses(connection, f"{old}/{ARTIFACTS}/"))):
        part = _path(address).relative_to(place)
        if os.path.exists(place / part) and not os.path.exists(new / ARTIFACTS / part):
            raise ValueError(
                f"the registry was made in {place.parent} and stands in {new}, but artifacts that it names were not "
                f"brought along, such as {part}. Copy {place} to {new / ARTIFACTS}, or set EVERGREEN_HOME to "
                f"{place.parent} if that is the home you mean. Nothing was changed."
            )


def _read_addresses(connection: sqlite3.Connection, begin: str) -> Iterator[str]:
    for table, column in _address_columns(connection):
        sql = f'SELECT "{column}" FROM "{table}" WHERE substr("{column}", 1, ?) = ?'
        yield from (str(address) for (address,) in connection.execute(sql, (len(begin), begin)))


def _address_columns(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Those of this version of MLflow's schema."""
    columns = {table: connection.execute(f'PRAGMA table_info("{table}")').fetchall() for table in ADDRESSES}
    return [(table, row[1]) for table, rows in columns.items() for row in rows if row[1] in ADDRESSES[table]]
