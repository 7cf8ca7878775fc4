"""marker: what a registry held, so that one that is gone is an error and not an empty registry.

MLflow makes a database that is missing, and the loop would begin again without a champion. So registry.json lies beside
the database, or in the home for a registry elsewhere, and names the experiments and when each was made. It holds no
path: a home may be moved. Neither mlflow nor a registry is opened here.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from tasks.runtime import files

NAME = "registry.json"
TELLS_OF_LOSS = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)  # others pass, as a lock does
Experiments = Mapping[str, int]  # when each was made, in ms since 1970: one that is made anew has another time
_whole: dict[Path, tuple[int, int, int]] = {}  # of each database that was found whole, how its file looked then
_opened: dict[Path, tuple[int, int]] = {}  # of each database that this process uses, which file it is


@dataclass(frozen=True)
class Entry:
    """What one registry held."""

    experiments: Experiments
    models: tuple[str, ...]
    since: str


def read(folder: Path, key: str) -> Entry | None:
    """What the marker in a folder says of a registry; None for one that was never used from here."""
    return _read(folder).get(key)


def write(folder: Path, key: str, experiments: Experiments, model: str) -> None:
    """Say that a registry holds these experiments, beside what is said already."""
    entries = _read(folder)
    before = entries.get(key, Entry({}, (), f"{datetime.now(UTC):%Y-%m-%d}"))
    models = before.models if model in before.models else (*before.models, model)
    after = replace(before, experiments={**before.experiments, **experiments}, models=models)
    if after != entries.get(key):
        listed = {name: asdict(entry) for name, entry in {**entries, key: after}.items()}
        files.publish_json(folder / NAME, listed)


def check(database: Path) -> None:
    """Raises ValueError for a SQLite database that lacks what the marker beside it says that it held."""
    try:
        status = database.stat()
    except FileNotFoundError:
        status = None
    look = (status.st_ino, status.st_mtime_ns, status.st_size) if status else None
    if look and _whole.get(database) == look:
        return
    entry = read(database.parent, database.name)
    if entry and (fault := _fault(database, entry.experiments)):
        raise ValueError(lost(str(database), fault, database.parent, entry))
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
    return database.is_file() and _fault(database, experiments) is None


def lost(registry: str, fault: str, folder: Path, entry: Entry) -> str:
    """The sentence that refuses a registry."""
    return (
        f"{registry} {fault}, but by {folder / NAME} it held the experiments {', '.join(entry.experiments)}: the runs, "
        f"the versions and the ledger of {', '.join(entry.models)}, since {entry.since}. Restore it from a backup; or, "
        f"to begin anew without them, remove {folder / NAME}."
    )


def fault_of(wanted: int | None, made: int | None) -> str | None:
    """What is wrong with an experiment that was made at `wanted`, where the one of its name was made at `made`."""
    if wanted is None or wanted == made:
        return None
    return "holds them no more" if made is None else "is another one, made since"


def _fault(database: Path, experiments: Experiments) -> str | None:
    if not database.exists():
        return "is gone"
    try:
        con = sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=30)
        try:
            made = dict(con.execute("SELECT name, creation_time FROM experiments").fetchall())
        finally:
            con.close()
    except sqlite3.Error as error:
        return "holds no registry" if error.sqlite_errorcode & 0xFF in TELLS_OF_LOSS else None
    faults = (fault_of(time, made.get(name)) for name, time in experiments.items())
    return next((fault for fault in faults if fault), None)


def _read(folder: Path) -> dict[str, Entry]:
    path = folder / NAME
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return {
            key: Entry(dict(entry["experiments"]), tuple(entry["models"]), str(entry["since"]))
            for key, entry in listed.items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"{path} must say which experiments the registry held, but it cannot be read. If the registry is whole, "
            "remove the file: it is written anew."
        ) from None
