"""marker: what a registry held, so that one that is gone is an error and not an empty registry.

MLflow makes a database that is missing, and the loop would begin again without a champion. So registry.json lies beside
the database, or in the home for a registry elsewhere, and names the experiments and when each was made. It holds no
path: a home may be moved. Neither mlflow nor a registry is opened here.
"""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from tasks.runtime import files

NAME = "registry.json"
LOSSES = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)  # other errors pass, as a lock does
Experiments = Mapping[str, int]  # when each was made, in ms since 1970: one that is made anew has another time
_whole: dict[Path, tuple[int, int, int]] = {}  # of each database that was found whole, how its file looked then
_opened: dict[Path, tuple[int, int]] = {}  # of each database that this process uses, which file it is


@dataclass(frozen=True)
class Contents:
    """What one registry held, since a day."""

    experiments: Experiments
    models: tuple[str, ...]
    since: str


def read(folder: Path, key: str) -> Contents | None:
    """What the marker in a folder says of a registry; None for one that was never used from here."""
    return _read_all(folder).get(key)


def write(folder: Path, key: str, experiments: Experiments, model: str) -> None:
    """Say that a registry holds these experiments and this model, beside what is said already."""
    registries = _read_all(folder)
    before = registries.get(key, Contents({}, (), f"{datetime.now(UTC):%Y-%m-%d}"))
    models = dict.fromkeys((*before.models, model))
    after = replace(before, experiments={**before.experiments, **experiments}, models=tuple(models))
    if after != registries.get(key):
        files.publish_json(
            folder / NAME, {name: asdict(contents) for name, contents in {**registries, key: after}.items()}
        )


def check(database: Path) -> None:
    """Raises ValueError for a SQLite database that lacks what the marker beside it says that it held."""
    status = database.stat() if database.exists() else None
    look = (status.st_ino, status.st_mtime_ns, status.st_size) if status else None
    if look and _whole.get(database) == look:
        return
    contents = read(database.parent, database.name)
    if contents and (fault := _find_fault(database, contents.experiments)):
        raise ValueError(explain_loss(str(database), fault, database.parent, contents))
    if look:
        _whole[database] = look


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


def holds(database: Path, experiments: Experiments) -> bool:
    """Whether these very experiments are in a SQLite database."""
    return database.is_file() and _find_fault(database, experiments) is None


def explain_loss(registry: str, fault: str, folder: Path, contents: Contents) -> str:
    """Why a registry is refused, and the ways out."""
    return (
        f"{registry} {fault}, but by {folder / NAME} it held the experiments {', '.join(contents.experiments)}: the "
        f"runs, the versions and the ledger of {', '.join(contents.models)}, since {contents.since}. Restore it from a "
        f"backup; or, to begin anew without them, remove {folder / NAME}."
    )


def compare_times(expected: int | None, made: int | None) -> str | None:
    """What is wrong with an experiment that was made at `expected`, where the one of its name was made at `made`."""
    if expected is None or expected == made:
        return None
    return "holds them no more" if made is None else "is another one, made since"


def _find_fault(database: Path, experiments: Experiments) -> str | None:
    if not database.exists():
        return "is gone"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=30)) as connection:
            made = dict(connection.execute("SELECT name, creation_time FROM experiments").fetchall())
    except sqlite3.Error as error:
        return "holds no registry" if error.sqlite_errorcode & 0xFF in LOSSES else None
    faults = (compare_times(expected, made.get(name)) for name, expected in experiments.items())
    return next((fault for fault in faults if fault), None)


def _read_all(folder: Path) -> dict[str, Contents]:
    path = folder / NAME
    try:
        registries = json.loads(path.read_text(encoding="utf-8"))
        return {
            key: Contents(dict(contents["experiments"]), tuple(contents["models"]), str(contents["since"]))
            for key, contents in registries.items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"{path} must say which experiments the registry held, but it cannot be read. If the registry is whole, "
            "remove the file: it is written anew."
        ) from None
