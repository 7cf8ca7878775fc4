"""A table of unknown make as text: what its files are written in, and the connection that holds its values.

Nothing of the table is changed or copied. No table is recognised by its name.
"""

import codecs
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import csvtext, jsonlines, loading, packing
from tasks.data.sources import fetch
from tasks.params import TAKEN, Column, Params, Source
from tasks.runtime import locks, stage
from tasks.runtime.sql import quote

CHUNK = 1 << 20
MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
WINDOWS = re.compile(rb"[\x80-\x9f]")  # control characters in latin-1, quotes and dashes in cp1252
VALUE = re.compile(r"[-+]?[\d.,:/ -]*\d[\d.,:/ -]*")  # what no column is called: a number, a date


@dataclass(frozen=True)
class Sheet:
    """A table's values as text, in the table `raw` of the connection.

    Attributes:
        columns: those that a contract can name, in the order of the file.
        unusable: the others, each with the reason.
        fractions: columns whose type in a Parquet file is one of fractions, whatever their values are.
    """

    con: duckdb.DuckDBPyConnection
    address: str
    encoding: str
    delimiter: str
    columns: tuple[str, ...]
    unusable: dict[str, str]
    fractions: frozenset[str]
    rows: int


@contextmanager
def open_sheet(p: Params, source: Source) -> Iterator[Sheet]:
    """Raises ValueError where the source's address leads to no table, or its first line is no header."""
    address = source.shown
    fetched = fetch.fetch_files(source.address, source)
    encoding, delimiter, names, fractions = _read_head(fetched)
    _check_header(address, names)
    columns, unusable = choose_columns(names)
    if not columns:
        raise ValueError(
            f"{address} has no column with a name that can be used: it is no CSV with a header, and no Parquet. Of a "
            "spreadsheet, save the sheet as CSV."
        )
    with stage.connect(p) as con:
        read_as = source.model_copy(update={"encoding": encoding})
        delivery = loading.load_table(
            con, fetched, read_as, {name: Column(type="VARCHAR") for name in columns}, "_came"
        )
        values = ", ".join(f"nullif(trim(v{i}), '') AS {quote(name)}" for i, name in enumerate(columns))
        con.execute(f"CREATE TEMP TABLE raw AS SELECT {values} FROM _came WHERE NOT blank")
        con.execute("DROP TABLE _came")
        rows = delivery.rows - delivery.empty
        if not rows:
            raise ValueError(f"{address} has a header and no rows")
        yield Sheet(con, address, encoding, delimiter, columns, unusable, fractions, rows)


def _read_head(fetched: fetch.Fetched) -> tuple[str, str, list[str], frozenset[str]]:
    """The encoding of all files, the delimiter of the last one, the names of all columns in order, and those that are
    fractions by their type."""
    names: dict[str, None] = {}
    fractions: set[str] = set()
    encoding = delimiter = ""
    with locks.open_folder(packing.scratch_root()) as folder:
        for i, file in enumerate(fetched.files):
            plain = packing.unpack(file, folder / str(i))
            if plain.suffix.lower() == ".parquet":
                schema = pq.read_schema(plain)
                names |= dict.fromkeys(schema.names)
                fractions |= {field.name for field in schema if pa.types.is_floating(field.type)}
                continue
            if plain.suffix.lower() in jsonlines.SUFFIXES:
                names |= dict.fromkeys(jsonlines.convert(plain, folder / f"{i}.converted")[0])
                continue
            one = guess_encoding(plain)
            if encoding not in ("", "utf-8", one):
                one = encoding if one == "utf-8" else "cp1252"
            encoding = one
            delimiter, own = csvtext.read_layout(plain, encoding)
            names |= dict.fromkeys(own)
            if twice := sorted({name for name in own if name and own.count(name) > 1}):
                raise ValueError(f"{fetched.address} names the column {', '.join(twice)} more than once")
    return encoding or "utf-8", delimiter, list(names), frozenset(fractions)


def guess_encoding(file: Path) -> str:
    """utf-8 where all bytes are; else utf-16 by its mark, cp1252 by what latin-1 does not print, or latin-1."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_utf8, is_windows = True, False
    with file.open("rb") as stream:
        if mark := MARKS.get(stream.read(2)):
            return mark
        stream.seek(0)
        while chunk := stream.read(CHUNK):
            if is_utf8:
                try:
                    decoder.decode(chunk)
                except UnicodeDecodeError:
                    is_utf8 = False
            is_windows = is_windows or bool(WINDOWS.search(chunk))
    return "utf-8" if is_utf8 else "cp1252" if is_windows else "latin-1"


def _check_header(address: str, names: list[str]) -> None:
    values = [name for name in names if VALUE.fullmatch(name)]
    if len(values) * 2 > len([name for name in names if name]):
        raise ValueError(
            f"{address}: the first line must name the columns, but it begins {names[:3]}. Add a line with their names."
        )


def choose_columns(names: list[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The columns that a contract can name, and the others with their reasons."""
    columns: list[str] = []
    unusable: dict[str, str] = {}
    for name in names:
        if not name:
            unusable["(no name)"] = "it has no name"
        elif not name.isprintable():
            unusable[name] = "its name cannot be printed"
        elif name.lower() in TAKEN:
            unusable[name] = "evergreen adds a column of that name: rename it in the file"
        elif name.lower() in map(str.lower, columns):
            unusable[name] = "another column differs from it in capital letters alone"
        else:
            columns.append(name)
    return tuple(columns), unusable
