"""The calendar periods that the data's stages work by, and a content-addressed cache of the files made of one period.

DVC empties a stage's outputs before it runs, so a stage links the periods it has made before from
`EVERGREEN_PERIODS` (default <home>/periods) and works on the new ones only. A period's key is a hash of everything
that its files are made of, the code included: deleting the cache changes time, never bytes.

An entry's files are read-only, and their hashes stand beside them. Each file is hashed when it is put in place, at
1 GB/s, whatever its size and time say: a program that wrote into it and a disk that lost bits are noticed alike. An
entry with other bytes is made again, and the log says so.

In a team, its store has the entries of all machines: what one has made, another fetches instead of making it.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from tasks import log, params
from tasks.runtime import cost, files, stage, store

FORMATS = {"day": "%Y-%m-%d", "week": "%G-W%V", "month": "%Y-%m"}
WHOLE = "all"  # the one period of a table without event times
UNKNOWN = "unknown"  # the period of rows whose event time cannot be told
OUTLIERS = "outliers"  # of rows that lie far from all others in time
WRITERS = ("duckdb", "pyarrow")
HASHES = "hashes.json"  # in a sealed folder: the hash of each of its other files
T = TypeVar("T")
TRIES = 3  # an entry that is damaged again and again is the disk's fault


@dataclass(frozen=True)
class Period:
    """A stretch of event time, start <= t < end."""

    name: str
    start: datetime
    end: datetime


def period_at(moment: datetime, unit: str) -> Period:
    """The calendar day, ISO week or month that holds a moment."""
    start = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if unit == "month":
        start = start.replace(day=1)
        return Period(start.strftime(FORMATS[unit]), start, (start + timedelta(days=32)).replace(day=1))
    start -= timedelta(days=start.weekday() if unit == "week" else 0)
    return Period(start.strftime(FORMATS[unit]), start, start + timedelta(days=7 if unit == "week" else 1))


def parse_name(name: str) -> Period:
    """The period of a file's name: '2013-01' → January 2013."""
    if "W" in name:
        return period_at(datetime.strptime(f"{name}-1", "%G-W%V-%u"), "week")
    unit = "month" if name.count("-") == 1 else "day"
    return period_at(datetime.strptime(name, FORMATS[unit]), unit)


def list_files(folder: Path) -> Iterator[tuple[Period, Path]]:
    """The period files of a table, oldest first; a static table's file, rows without a time and outliers are not among
    them."""
    for path in sorted(folder.glob("*.parquet")):
        if path.stem not in (WHOLE, UNKNOWN, OUTLIERS):
            yield parse_name(path.stem), path


# --- the files made of a period, in the cache ------------------------------------------------------------------------


def hash_inputs(*inputs: Any) -> str:
    """One hash of everything that an entry's files are made of."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_code(*modules: str) -> str:
    """The hash of modules' source text (`__file__`s), of what all stages share, and of the libraries that compute.

    An edited stage, or another release of theirs, never gives what its older self made.
    """
    return hash_inputs(
        [Path(path).read_text() for path in [*modules, __file__, stage.__file__]],
        [importlib.metadata.version(name) for name in WRITERS],
    )


def provide(entry: str, targets: dict[Path, str], make: Callable[[Path], None]) -> bool:
    """Put a period's files in place, made now or linked from the cache. True when they were made.

    `make(folder)` writes the files that `targets` asks for by name. An entry appears whole, by a rename, or not at all.
    One that no longer holds the bytes that were made is made again.
    """
    is_new = False

    def make_and_note(into: Path) -> None:
        nonlocal is_new
        began, is_new = time.monotonic(), True
        make(into)
        cost.note_made(targets, time.monotonic() - began)

    def place(folder: Path) -> None:
        for target, name in targets.items():
            _place(folder, name, target)

    _use(entry, make_and_note, place)
    return is_new


def find_file(entry: str, name: str, make: Callable[[Path], None]) -> Path:
    """An entry's file in the cache, to be read alone. It holds the bytes that were made."""
    return _use(entry, make, lambda folder: _check(folder, name))


def _use(entry: str, make: Callable[[Path], None], use: Callable[[Path], T]) -> T:
    """What `use` makes of an entry's folder, which is made now, or again where it raises DamagedError."""
    folder = _folder_of(entry)
    for _ in range(TRIES):
        if not folder.is_dir() and not _fetch(folder):
            _make(folder, make)
            _share(folder)
        try:
            result = use(folder)
            os.utime(folder)  # so that gc knows when it was last used, where nothing is linked
            return result
        except DamagedError as error:
            log.warning("the cache of periods no longer holds what was made, and it is made again: %s", error)
            files.discard_folder(folder)
    raise OSError(f"{folder} was damaged {TRIES} times in a row, each time after it was made. Check the disk.")


def is_made(entry: str) -> bool:
    """Whether this machine's cache has an entry."""
    return _folder_of(entry).is_dir()


def _folder_of(entry: str) -> Path:
    return find_cache() / entry[:2] / entry


def find_cache(checkout: Path | None = None) -> Path:
    """The folder of the cache: EVERGREEN_PERIODS, else in the home."""
    return Path(os.environ.get("EVERGREEN_PERIODS") or params.home(checkout) / "periods")


def remember(entry: str, name: str, compute: Callable[[], Any]) -> Any:
    """A JSON value, computed now or read from the cache, which holds it in a file of this name."""
    return read_json(entry, name, lambda into: files.publish_json(into / name, compute()))


def read_json(entry: str, name: str, make: Callable[[Path], None]) -> Any:
    """What an entry's JSON file of this name holds."""
    return json.loads(find_file(entry, name, make).read_text())


class DamagedError(Exception):
    """A file in a sealed folder that is gone, or holds other bytes than when the folder was sealed."""


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    try:
        with files.publish_folder(folder) as scratch:
            make(scratch)
            seal_folder(scratch)
    except OSError:
        if not folder.is_dir():  # another process was faster: its files hold the same bytes
            raise


def _fetch(folder: Path) -> bool:
    """Bring an entry from the store of a team. False where the store has none that is whole."""
    if store.find_store() is None:
        return False
    name = _name_in_store(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as scratch:
        count = store.fetch_folder(Path(scratch), name)
        if not count or not (Path(scratch) / HASHES).exists():  # which comes last
            return False
        if damaged := find_damage(Path(scratch)):
            log.warning("%s in the store holds other bytes in %s: it is made again", name, ", ".join(damaged))
            store.remove_folder(name)
            return False
        _make(folder, lambda new: _copy_entry(Path(scratch), new))
    return True


def _copy_entry(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file() and path.name != HASHES:
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            path.rename(target / path.relative_to(source))


def _share(folder: Path) -> None:
    """Bring an entry to the store of a team."""
    if folder.is_dir():
        store.share_folder(folder, _name_in_store(folder), last=HASHES)


def _name_in_store(folder: Path) -> str:
    return f"periods/{folder.parent.name}/{folder.name}"


def seal_folder(folder: Path) -> None:
    """Put the files of a folder on disk, read-only, with their hashes beside them, which `find_damage` compares."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files.publish_json(folder / HASHES, {str(path.relative_to(folder)): hash_file(path) for path in paths})
    for path in [*paths, folder / HASHES]:
        path.chmod(files.READ_ONLY)
        files.sync(path)


def find_damage(folder: Path) -> list[str]:
    """The files of a sealed folder that are gone or hold other bytes. A folder that is not sealed is damaged too."""
    try:
        hashes = _read_hashes(folder)
        return [name for name in hashes if not (folder / name).is_file() or hash_file(folder / name) != hashes[name]]
    except DamagedError:
        return [HASHES]


def _read_hashes(folder: Path) -> Mapping[str, str]:
    with contextlib.suppress(OSError, ValueError):
        if isinstance(hashes := json.loads((folder / HASHES).read_text(encoding="utf-8")), dict):
            return hashes
    raise DamagedError(f"{folder / HASHES} cannot be read")


def _place(folder: Path, name: str, target: Path) -> None:
    """Put an entry's file under another name. Raises DamagedError, with nothing in place, for other bytes."""
    expected = _find_hash(folder, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.new")
    new.unlink(missing_ok=True)
    try:
        if not (folder / name).exists():
            raise DamagedError(f"{folder / name} is gone")
        files.link_or_copy(folder / name, new)
        if hash_file(new) != expected:  # of the new name: its bytes are put in place
            raise DamagedError(f"{folder / name} holds other bytes")
        new.replace(target)
    finally:  # also after success: renaming one link of a file over another link of it does nothing, says POSIX
        new.unlink(missing_ok=True)


def _check(folder: Path, name: str) -> Path:
    """An entry's file. Raises DamagedError for other bytes."""
    expected = _find_hash(folder, name)
    if not (folder / name).exists():
        raise DamagedError(f"{folder / name} is gone")
    if hash_file(folder / name) != expected:
        raise DamagedError(f"{folder / name} holds other bytes")
    return folder / name


def _find_hash(folder: Path, name: str) -> str:
    hashes = _read_hashes(folder)
    if name not in hashes:
        raise FileNotFoundError(f"{folder} must hold {name}, but what made it wrote only {sorted(hashes)}")
    return hashes[name]
