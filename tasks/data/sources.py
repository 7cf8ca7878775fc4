"""A source's address → its files, in the order of their delivery, and a fingerprint of their bytes.

Addresses: a path or file://path (with * for many files), package://name/path for data inside an installed package.
A new scheme is a function here and an entry of SCHEMES.

`*` is the only mark of a pattern, and a name that exists is never a pattern. Files are in the order of their names,
numbers in them as numbers: part2 comes before part10. A relative path starts at the working directory or, where a run's
workspace lacks it, at the checkout that the workspace was made of.
"""

import contextlib
import glob
import gzip
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from tasks.data import cache
from tasks.params import home
from tasks.runtime import locks

TORN = (  # the last two: locked, packed in an exotic way
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Fetched:
    """Local files that hold a table, packed or not, and the SHA-256 of their bytes as they were fetched."""

    address: str
    files: tuple[Path, ...]
    fingerprint: str


def fetch_files(address: str) -> Fetched:
    """Bring a source here. Raises ValueError when it is missing or empty."""
    for root in {path.with_suffix("") for path in _scratch_root().glob("*")}:  # of processes that were killed
        locks.remove_ownerless(root)
    scheme, _, rest = address.rpartition("://")
    if scheme not in SCHEMES:
        raise ValueError(f"{address}: the scheme must be one of {sorted(filter(None, SCHEMES))}, but got {scheme!r}")
    files, hashes = SCHEMES[scheme](rest), []
    for file in files:
        if not file.is_file():
            raise ValueError(f"{address}: {file} is no file; name the files in a folder with *, such as {rest}/*.csv")
        if file.stat().st_size == 0:
            raise ValueError(f"{address}: {file.name} is empty")
        hashes.append(cache.hash_file(file))
    return Fetched(address, tuple(files), hashlib.sha256("".join(hashes).encode()).hexdigest())


def find_files(path: str) -> list[Path]:
    """The files of `path://` and of a plain path.

    A workspace holds what git tracks, at the run's commit. What it lacks is looked for in its checkout.
    """
    places = [Path(), *map(Path, filter(None, [os.environ.get("EVERGREEN_CHECKOUT")]))]
    files = {name: place / name for place in reversed(places) for name in _match(path, place)}
    if not files:
        raise ValueError(
            f"{path} does not exist (seen from {' and from '.join(str(place.resolve()) for place in places)})"
        )
    return [files[name] for name in sorted(files, key=_delivery_order)]  # by the name, whatever its place


def _delivery_order(name: str) -> list[list[tuple[str, int, str]]]:
    """Folder by folder, digits by their number. 07 and 7 differ, too."""
    pieces = [re.findall(r"(\D*)(\d*)", part) for part in Path(name).parts]
    return [[(text, int(digits or 0), digits) for text, digits in piece] for piece in pieces]


def _match(path: str, place: Path) -> list[str]:
    """The path itself where it exists; else what fits its `*`. The name of a folder that exists is no pattern."""
    if (place / path).exists():
        return [path]
    if "*" not in path:
        return []
    pieces, base = [], place
    for piece in Path(path).parts:
        base /= piece
        pieces.append(glob.escape(piece) if base.exists() else re.sub(r"[\[?]", r"[\g<0>]", piece))
    return glob.glob(str(Path(*pieces)), root_dir=place)


def find_package_files(path: str) -> list[Path]:
    name, _, inside = path.partition("/")
    spec = importlib.util.find_spec(name)  # not imported: some data packages load everything when they are
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package {name} is not installed; add it to pyproject.toml and run `make setup`")
    return find_files(str(Path(spec.submodule_search_locations[0]) / inside))


SCHEMES: dict[str, Callable[[str], list[Path]]] = {"": find_files, "file": find_files, "package": find_package_files}


@contextlib.contextmanager
def open_scratch() -> Iterator[Path]:
    """A folder in the home, not among the system's: what is unpacked may hold personal data, in clear.

    Its lock lives as long as this process, so that the next process sees what a killed one left.
    """
    _scratch_root().mkdir(mode=0o700, parents=True, exist_ok=True)
    root = _scratch_root() / secrets.token_hex(6)
    with locks.own(root):
        root.mkdir(mode=0o700)
        try:
            yield root
        finally:
            shutil.rmtree(root, ignore_errors=True)


def _scratch_root() -> Path:
    return home() / "unpacked"


def unpack(file: Path, folder: Path) -> Path:
    """The file itself, or what a .zip or .gz holds, written to `folder`. Raises ValueError when it is torn."""
    packed = PACKED.get(file.suffix.lower())
    if packed is None:
        return file
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with packed(file) as (name, source):
            target = folder / name
            with target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
            return target
    except TORN:
        raise ValueError(
            f"{file.name} is torn or locked: what it holds cannot be unpacked. Fetch it again, without a password"
        ) from None


@contextlib.contextmanager
def _unzip(file: Path) -> Iterator[tuple[str, BinaryIO]]:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
        if len(names) != 1:
            raise ValueError(f"{file.name}: a zip must hold one file, but it holds {names or 'none'}")
        with archive.open(names[0]) as source:
            yield Path(names[0]).name, cast(BinaryIO, source)


@contextlib.contextmanager
def _gunzip(file: Path) -> Iterator[tuple[str, BinaryIO]]:
    with gzip.open(file) as source:
        yield file.stem, cast(BinaryIO, source)


PACKED = {".zip": _unzip, ".gz": _gunzip}
