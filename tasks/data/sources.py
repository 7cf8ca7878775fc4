"""A source's address → its files, in the order of their delivery, unpacked, and in the form that DuckDB reads.

Addresses: a path or file://path (with * for many files), package://name/path for data inside an installed package.
A new scheme is a function here and an entry of SCHEMES.

`*` is the only mark of a pattern, and a name that exists is never a pattern. Files are in the order of their names,
numbers in them as numbers: part2 comes before part10. A relative path starts at the working directory or, where a run's
workspace lacks it, at the checkout that the workspace was made of.

DuckDB is fast and strict. A CSV that it cannot read, or would read wrongly (line ends of two kinds, empty lines,
another encoding), is rewritten by Python's csv module, which names each fault by its line. Only the delimiter is
guessed. No message shows a value of a row: it may be personal data.
"""

import csv
import glob
import gzip
import hashlib
import importlib.util
import itertools
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.data import periods
from tasks.params import home
from tasks.runtime import locks
from tasks.runtime.sql import literal, path_text

TORN = (  # the last two: locked, packed in an exotic way
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    NotImplementedError,
)
DELIMITERS = ",;\t|"
CHUNK = 1 << 20
LONGEST_LINE = 2_000_000  # characters that DuckDB takes
CODECS = {"utf-8": "utf-8-sig"}  # a mark at the beginning of the file is no part of it
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
QUOTED = re.compile(r'^ *"(.*)"$', re.DOTALL)
FAULTS = {  # what Python's csv module says, and what is wrong
    "unexpected end of data": ("a quote is opened and never closed. The file may be cut off: export the table again"),
    "field larger": f"a field is longer than {LONGEST_LINE:,} characters. Is a quote left open before it?",
}
OTHER_FAULT = "a quoted field goes on after its closing quote. A quote inside a quoted field is written twice"


@dataclass(frozen=True)
class Fetched:
    """Local files that hold a table, packed or not, and the SHA-256 of their bytes as they were fetched."""

    address: str
    files: tuple[Path, ...]
    fingerprint: str


def fetch_files(address: str) -> Fetched:
    """Bring a source here. Raises ValueError when it is missing or empty."""
    for root in {path.with_suffix("") for path in scratch_root().glob("*")}:  # of processes that were killed
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
        hashes.append(periods.hash_file(file))
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


def scratch_root() -> Path:
    """Where files are unpacked: in the home, not among the system's, for they may hold personal data, in clear."""
    return home() / "unpacked"


def unpack(file: Path, folder: Path) -> Path:
    """The file itself, or what a .zip or .gz holds, written to `folder`. Raises ValueError when it is torn."""
    if (suffix := file.suffix.lower()) not in PACKED:
        return file
    folder.mkdir(parents=True, exist_ok=True)
    try:
        name, source = PACKED[suffix](file)
        with source, (folder / name).open("wb") as copy:
            shutil.copyfileobj(source, copy)
    except TORN:
        raise ValueError(
            f"{file.name} is torn or locked: what it holds cannot be unpacked. Fetch it again, without a password"
        ) from None
    return folder / name


def _open_zip(file: Path) -> tuple[str, Any]:
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
    if len(names) != 1:
        raise ValueError(f"{file.name}: a zip must hold one file, but it holds {names or 'none'}")
    return Path(names[0]).name, archive.open(names[0])


def _open_gzip(file: Path) -> tuple[str, Any]:
    return file.stem, gzip.open(file)


PACKED = {".zip": _open_zip, ".gz": _open_gzip}


# --- CSV -------------------------------------------------------------------------------------------------------------


def read_layout(file: Path, encoding: str = "utf-8") -> tuple[str, tuple[str, ...]]:
    """A CSV's delimiter and the names of its columns, empty for a column without one.

    The delimiter is the one that the first line has most of, quotes left out. Raises ValueError for no CSV."""
    try:
        with file.open(encoding=CODECS.get(encoding, encoding), newline="") as stream:
            lines = (line for line in stream if line.strip())
            first = next(lines, "")
            delimiter = max(DELIMITERS, key=re.sub(r'"[^"]*"', "", first).count)
            names = next(csv.reader(itertools.chain([first], lines), delimiter=delimiter), [])
    except UnicodeError:
        raise ValueError(explain_bytes(file, encoding)) from None
    except csv.Error:
        raise ValueError("its first line cannot be read as the names of its columns") from None
    return delimiter, tuple(name.strip() for name in names)


def csv_sql(file: Path, delimiter: str, width: int) -> str:
    """The table function that reads it: text columns c0, c1, ... in the order of the header."""
    columns = ", ".join(f"c{i}: 'VARCHAR'" for i in range(width))
    return (
        f"read_csv({literal(path_text(file))}, columns = {{{columns}}}, auto_detect = FALSE, header = TRUE, "
        f"delim = {literal(delimiter)}, quote = '\"', escape = '\"', nullstr = [''], hive_partitioning = FALSE)"
    )


def is_plain(file: Path) -> bool:
    """Whether all lines end alike and none is empty: what DuckDB reads as it is written."""
    pairs = feeds = returns = 0
    with file.open("rb") as stream:
        tail = b"\n"  # an empty first line is an empty line
        while chunk := stream.read(CHUNK):
            text = tail + chunk
            if b"\n\n" in text or b"\n\r\n" in text or b"\r\r" in text:
                return False
            pairs += chunk.count(b"\r\n") + (tail[-1:] == b"\r" and chunk[:1] == b"\n")
            feeds += chunk.count(b"\n")
            returns += chunk.count(b"\r")
            tail = text[-2:]
    return pairs in (feeds, 0) and (returns == pairs or feeds == 0)


def rewrite(file: Path, delimiter: str, width: int, target: Path, encoding: str = "utf-8") -> Path:
    """Write the same rows to `target`, another file, in UTF-8 with one kind of line end. Returns it.

    An empty line becomes a row of empty fields: whoever reads it can count it, and the rows keep their places. Raises
    ValueError that names a faulty line.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    csv.field_size_limit(LONGEST_LINE)
    with (
        file.open(encoding=CODECS.get(encoding, encoding), newline="") as source,
        target.open("w", encoding="utf-8", newline="") as out,
    ):
        rows = csv.reader(source, delimiter=delimiter, strict=True)
        writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
        line, started = 1, False
        try:
            for row in rows:
                if any(field.strip() for field in row):
                    writer.writerow(_fitted(row, width, line) if started else row)
                    started = True
                elif started:
                    writer.writerow([""] * width)
                line = rows.line_num + 1
        except csv.Error as error:
            fault = next((sentence for text, sentence in FAULTS.items() if text in str(error)), OTHER_FAULT)
            raise ValueError(f"line {line}: {fault}") from None
        except UnicodeError:
            raise ValueError(explain_bytes(file, encoding)) from None
    return target


def _fitted(row: list[str], width: int, line: int) -> list[str]:
    """A row with as many fields as the header. Empty fields beyond them are dropped."""
    if len(row) > width and not any(field.strip() for field in row[width:]):
        row = row[:width]
    if len(row) != width:
        raise ValueError(
            f"line {line} has {len(row)} fields, but the header names {width} columns. Mend the line, put "
            "quotes around a field that holds the delimiter, or export the table again"
        )
    # Blanks before a quoted field are no part of it, as DuckDB reads it.
    quotes = [QUOTED.match(field) if field.startswith(" ") else None for field in row]
    return [quote[1].replace('""', '"') if quote else field for field, quote in zip(row, quotes, strict=True)]


def explain_bytes(file: Path, encoding: str) -> str:
    """What is wrong with bytes that are not in the encoding, with the first line that is not."""
    way_out = f"set the source's `encoding`, such as {'cp1252 or latin-1' if encoding == 'utf-8' else 'utf-8'}"
    with file.open("rb") as stream:
        mark = MARKS.get(stream.read(2))
        if mark and encoding == "utf-8":
            return f"it is written in {mark}, not in utf-8: set the source's `encoding: {mark}`"
        stream.seek(0)
        for number, line in enumerate(stream, 1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return f"line {number} is not {encoding}: {way_out}"
    return f"it is not {encoding}: {way_out}"
