"""A source's address → a table in DuckDB, and a fingerprint of its bytes.

Addresses: a path or file://path (with * for many files), package://name/path for data inside an installed package.
CSV (also .gz, .zip) arrives as text, Parquet as it is typed; the contract casts later, so nothing is lost on the way.
Nothing is guessed of a CSV but its delimiter: a guessing reader takes a torn file for a table with other columns.
Another scheme is another entry of SCHEMES. A relative path is seen from the working directory and, for what a run's
workspace does not hold, from the checkout that the workspace was made of.
"""

import contextlib
import csv
import glob
import gzip
import hashlib
import importlib.util
import os
import secrets
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from filelock import FileLock, Timeout

from tasks.params import home

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

DELIMITERS = ",;\t|"
TORN = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)  # the last two: locked, exotic


@dataclass(frozen=True)
class Fetched:
    """Local files that hold a table, packed or not, and the SHA-256 of their bytes as they were fetched."""

    address: str
    files: tuple[Path, ...]
    fingerprint: str


def fetch(address: str) -> Fetched:
    """Bring a source here. Raises ValueError when it is missing or empty."""
    sweep()
    scheme, _, rest = address.rpartition("://")
    if scheme not in SCHEMES:
        raise ValueError(f"{address}: the scheme must be one of {sorted(filter(None, SCHEMES))}, but got {scheme!r}")
    files = SCHEMES[scheme](rest)
    for file in files:
        if not file.is_file():
            raise ValueError(f"{address}: {file} is no file; name the files in a folder with *, such as {rest}/*.csv")
        if file.stat().st_size == 0:
            raise ValueError(f"{address}: {file.name} is empty")
    digest = hashlib.sha256("".join(_sha256(file) for file in files).encode()).hexdigest()
    return Fetched(address, tuple(files), digest)


def load(con: "DuckDBPyConnection", fetched: Fetched, into: str, *, nulls: list[str]) -> list[str]:
    """Read a fetched source into the temporary table `into`; returns its columns.

    Raises ValueError when a file is torn or is no table. `nulls` are the texts that stand for a missing value, beside
    the empty one. What is unpacked is gone again at the end: it may hold personal data.
    """
    import duckdb

    try:
        with contextlib.ExitStack() as held:
            scratch = held.enter_context(_scratch()) if any(map(_is_zip, fetched.files)) else Path()
            plain = [_unpack(file, scratch / str(i), fetched.address) for i, file in enumerate(fetched.files)]
            rows = _readers(con, plain, nulls, fetched.address)
            rows.create_view("_rows")
            con.execute(f"CREATE OR REPLACE TEMP TABLE {into} AS FROM _rows")
            return list(rows.columns)
    except (duckdb.Error, UnicodeDecodeError, *TORN) as error:
        raise ValueError(f"{fetched.address} cannot be read as a table: {_brief(error)}") from None


def _brief(error: Exception) -> str:
    """What is wrong and in which line. Not the line itself: it may hold what nobody should find in a log."""
    lines = str(error).split("Possible fixes")[0].split("Possible Solution")[0].splitlines()
    return " ".join(line.strip() for line in lines if line.strip() and not line.startswith("Original Line"))


def _readers(con: "DuckDBPyConnection", files: list[Path], nulls: list[str], address: str) -> "DuckDBPyRelation":
    """All the files as one relation, their columns matched by name."""
    if _is_parquet(files[0]):
        return _with_nulls(con.from_parquet([str(file) for file in files], union_by_name=True), nulls)
    for i, file in enumerate(files):
        _csv(con, file, nulls, address).create_view(f"_part{i}")
    return con.sql(" UNION ALL BY NAME ".join(f"FROM _part{i}" for i in range(len(files))))


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


def _csv(con: "DuckDBPyConnection", file: Path, nulls: list[str], address: str) -> "DuckDBPyRelation":
    delimiter, names = _header(file)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{address}: {file.name} names the column {', '.join(twice)} more than once")
    return con.read_csv(
        str(file),
        columns=dict.fromkeys(names, "VARCHAR"),
        auto_detect=False,
        header=True,
        delimiter=delimiter,
        quotechar='"',
        escapechar='"',
        na_values=["", *nulls],
    )


def _header(file: Path) -> tuple[str, list[str]]:
    """A CSV's delimiter, the one that its first line has most of, and its columns."""
    with _text(file) as stream:
        line = stream.readline()
        delimiter = max(DELIMITERS, key=line.count)
        stream.seek(0)
        return delimiter, [name.strip() for name in next(csv.reader(stream, delimiter=delimiter), [])]


def _text(file: Path) -> TextIO:
    if file.suffix.lower() == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _with_nulls(rows: "DuckDBPyRelation", nulls: list[str]) -> "DuckDBPyRelation":
    """What stands for a missing value in Parquet: `nulls` among text, and NaN, which pandas writes for it."""
    from duckdb import CaseExpression, ColumnExpression, ConstantExpression, FunctionExpression

    missing, shown = ConstantExpression(None), []
    for name, kind in zip(rows.columns, map(str, rows.types), strict=True):
        value = ColumnExpression(name)
        if kind in ("FLOAT", "DOUBLE"):
            value = CaseExpression(FunctionExpression("isnan", value), missing).otherwise(value)
        elif kind == "VARCHAR":
            listed = [ConstantExpression(text) for text in ["", *nulls]]
            value = CaseExpression(value.isin(*listed), missing).otherwise(value)
        shown.append(value.alias(name))
    return rows.select(*shown)


def _file(path: str) -> list[Path]:
    """A workspace holds what git tracks, as it was at the run's commit; what it lacks is looked for in its checkout."""
    places = [Path(), *map(Path, filter(None, [os.environ.get("EVERGREEN_CHECKOUT")]))]
    found = {name: place / name for place in reversed(places) for name in _matches(path, place)}
    if not found:
        raise ValueError(
            f"{path} does not exist (seen from {' and from '.join(str(place.resolve()) for place in places)})"
        )
    return [found[name] for name in sorted(found, key=Path)]  # by the name, so that its place tells nothing


def _matches(path: str, place: Path) -> list[str]:
    return [path] if (place / path).exists() else glob.glob(path, root_dir=place)


def _package(path: str) -> list[Path]:
    name, _, inside = path.partition("/")
    spec = importlib.util.find_spec(name)  # not imported: some data packages load everything when they are
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package {name} is not installed; add it to pyproject.toml and run `make setup`")
    return _file(str(Path(spec.submodule_search_locations[0]) / inside))


SCHEMES: dict[str, Callable[[str], list[Path]]] = {"": _file, "file": _file, "package": _package}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder in the home, not among the system's: what is unpacked may hold personal data, in clear.

    Its lock lives as long as this process, so that the next one can tell what a killed one left.
    """
    shared = _unpacked()
    shared.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = shared / secrets.token_hex(6)
    with FileLock(root.with_suffix(".lock")) as lock:
        root.mkdir(mode=0o700)
        try:
            yield root
        finally:
            shutil.rmtree(root, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)


def sweep() -> None:
    """Remove what processes that were killed had unpacked."""
    for root in {path.with_suffix("") for path in _unpacked().glob("*")}:
        lock = FileLock(root.with_suffix(".lock"))
        with contextlib.suppress(Timeout), lock.acquire(timeout=0):
            shutil.rmtree(root, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)


def _unpacked() -> Path:
    return home() / "unpacked"


def _is_zip(file: Path) -> bool:
    return file.suffix.lower() == ".zip"


def _unpack(file: Path, scratch: Path, address: str) -> Path:
    if not _is_zip(file):
        return file
    try:
        with zipfile.ZipFile(file) as archive:
            name = _only_file(archive, address)
            scratch.mkdir(parents=True, exist_ok=True)
            target = scratch / Path(name).name
            with archive.open(name) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
            return target
    except TORN as error:
        raise ValueError(f"{address} is a torn zip file: {error}") from None


def _only_file(archive: zipfile.ZipFile, address: str) -> str:
    names = [each for each in archive.namelist() if not each.endswith("/") and not each.startswith("__MACOSX")]
    if len(names) != 1:
        raise ValueError(f"{address}: a zip must hold one file, but it holds {names or 'none'}")
    return names[0]
