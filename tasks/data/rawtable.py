"""The files of a source → one table of raw values in DuckDB, each row with its place.

Each file is read and cast by itself, so that a value means the same whatever other files there are. A column keeps its
type where the contract's type holds the values of all files without loss; else it becomes text, and the contract's
rules cast it. NaN is missing in every type. A whole number of type DOUBLE becomes a text without .0. Columns that the
contract does not name are not read.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import csvfile, sources
from tasks.data.sources import Fetched
from tasks.data.sqlcheck import find_closest
from tasks.params import Column, Source
from tasks.runtime.sql import literal, parquet

NAN = ("nan", "NaN", "NAN", "-nan", "-NaN", "NaT")  # spelled out in a CSV, of which only a text column holds them
SMALL = ("TINYINT", "SMALLINT", "UTINYINT", "USMALLINT")
LOSSLESS = {  # by the contract's type: the types of files that it holds without loss
    "VARCHAR": ("VARCHAR",),
    "INTEGER": (*SMALL, "INTEGER"),
    "BIGINT": (*SMALL, "INTEGER", "UINTEGER", "BIGINT"),
    "DOUBLE": (*SMALL, "INTEGER", "UINTEGER", "FLOAT", "DOUBLE"),
    "BOOLEAN": ("BOOLEAN",),
    "DATE": ("DATE",),
    "TIMESTAMP": ("DATE", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP"),
}
NUMBERS = ("INTEGER", "BIGINT", "DOUBLE")


@dataclass(frozen=True)
class Delivery:
    """What came: the rows of all files, the empty ones among them, and by file the columns that it lacks."""

    rows: int
    empty: int
    lacking: dict[int, list[str]]


@dataclass(frozen=True)
class Part:
    """One file: how to read it, as columns c0, c1, ..., and the names and types of these. Only a CSV has a layout."""

    name: str
    file: Path
    sql: str
    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    layout: csvfile.Layout | None = None

    def kind(self, column: str) -> str | None:
        return self.kinds[self.columns.index(column)] if column in self.columns else None

    @property
    def blank_sql(self) -> str:
        """Whether a line has nothing in any field, also in those that nobody reads."""
        if self.layout is None:
            return "FALSE"
        fields = " ".join(f"WHEN trim(c{i}) <> '' THEN FALSE" for i in range(len(self.columns)))
        return f"CASE {fields} ELSE TRUE END"  # the first field decides for most rows; the others are not looked at


def load_table(
    con: duckdb.DuckDBPyConnection, fetched: Fetched, source: Source, columns: dict[str, Column], into: str
) -> Delivery:
    """Read a source into the temporary table `into`: v0, v1, ... for the columns asked, and blank, file and start.

    What is unpacked is gone again at the end: it may hold personal data.

    Raises:
        ValueError: a file is torn or no table (with its name and the line), or no file has a column.
    """
    with sources.open_scratch() as folder:
        parts = []
        for i, (file, name) in enumerate(zip(fetched.files, name_files(fetched), strict=True)):
            with _naming_file(fetched, name):
                parts.append(_open_part(con, file, folder / str(i), name, source.encoding))
        for part in parts:
            _check_names(part, columns, fetched)
        _check_lacking(parts, columns, fetched)
        forms = [_choose_form(parts, name, column) for name, column in columns.items()]
        fields = ", ".join(
            [*(f"v{i} {form}" for i, form in enumerate(forms)), "blank BOOLEAN, file INTEGER, start BIGINT"]
        )
        con.execute(f"CREATE OR REPLACE TEMP TABLE {into} ({fields})")
        for i, part in enumerate(parts):
            values = [_value_sql(part, *pair, source, form) for pair, form in zip(columns.items(), forms, strict=True)]
            with _naming_file(fetched, part.name):
                _append(con, part, [*values, part.blank_sql, str(i)], into, folder / str(i))
    rows, empty = con.execute(f"SELECT count(*), count(*) FILTER (blank) FROM {into}").fetchall()[0]
    lacking = {i: [name for name in columns if name not in part.columns] for i, part in enumerate(parts)}
    return Delivery(rows, empty, {i: names for i, names in lacking.items() if names})


def name_files(fetched: Fetched) -> list[str]:
    """What each file is called in messages: its name, and its folder where a name comes twice."""
    for depth in (1, 2):
        names = ["/".join(file.parts[-depth:]) for file in fetched.files]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in fetched.files]


@contextlib.contextmanager
def _naming_file(fetched: Fetched, name: str) -> Iterator[None]:
    """An error names the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{fetched.address}: {name} cannot be read as a table: {error}") from None


def _open_part(con: duckdb.DuckDBPyConnection, file: Path, folder: Path, name: str, encoding: str) -> Part:
    plain = sources.unpack(file, folder)
    if plain.suffix.lower() == ".parquet":
        try:
            columns = tuple(pq.read_schema(plain).names)
            kinds = tuple(str(row[1]) for row in con.execute(f"DESCRIBE FROM {parquet([plain])}").fetchall())
        except (pa.ArrowException, OSError, duckdb.Error):
            raise ValueError("it is no Parquet file, or its end is missing. Fetch it again") from None
        return Part(name, plain, parquet([plain]), columns, kinds)
    layout = csvfile.read_layout(plain, encoding)
    part = Part(name, plain, csvfile.csv_sql(plain, layout), layout.names, ("VARCHAR",) * len(layout.names), layout)
    return part if encoding == "utf-8" and csvfile.is_plain(plain) else _rewrite(part, layout, folder, encoding)


def _rewrite(part: Part, layout: csvfile.Layout, folder: Path, encoding: str) -> Part:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "rewritten.csv"
    csvfile.rewrite(part.file, layout, target, encoding)
    return replace(part, file=target, sql=csvfile.csv_sql(target, layout))


def _check_names(part: Part, columns: Iterable[str], fetched: Fetched) -> None:
    """Each column asked for is there once at most, and not all of them are missing: such a file has no header."""
    if twice := [name for name in columns if part.columns.count(name) > 1]:
        raise ValueError(f"{fetched.address}: {part.name} names the column {', '.join(twice)} more than once")
    if any(name in part.columns for name in columns) or not columns:
        return
    near = {name: find_closest(name, filter(None, part.columns)) for name in columns}
    hints = [f"`{name}` (did you mean `{other}`?)" for name, other in near.items() if other]
    raise ValueError(
        f"{fetched.address}: {part.name} names none of the columns {list(columns)}"
        + (f"; it lacks the column {', '.join(hints)}" if hints else ". Its first line must be the header")
        + f". Mend the file, or take it out of {fetched.address}."
    )


def _check_lacking(parts: list[Part], columns: Iterable[str], fetched: Fetched) -> None:
    """A column that no file has is refused. One that some files lack is for the caller to judge."""
    present = {name for part in parts for name in part.columns if name}
    missing = {name: find_closest(name, present) for name in columns if name not in present}
    hints = [f"`{name}`" + (f" (did you mean `{other}`?)" if other else "") for name, other in missing.items()]
    if hints:
        raise ValueError(
            f"{fetched.address} lacks the column {', '.join(hints)}; it has {sorted(present)}. Mend the source or the "
            "contract's columns."
        )


def _choose_form(parts: list[Part], name: str, column: Column) -> str:
    """The type of the raw values: the contract's own where it holds those of every file, else text."""
    kinds = {part.kind(name) for part in parts} - {None}
    return column.type if kinds <= set(LOSSLESS[column.type]) else "VARCHAR"


def _append(con: duckdb.DuckDBPyConnection, part: Part, values: list[str], into: str, folder: Path) -> None:
    """Add a file's rows. What DuckDB cannot read is read by Python, which either can, or names the faulty line."""
    start = con.execute(f"SELECT count(*) FROM {into}").fetchall()[0][0]
    numbered = ", ".join(f"c{i}" for i in range(len(part.columns)))

    def insert(rows: str) -> None:
        con.execute(f"INSERT INTO {into} SELECT {', '.join([*values, str(start)])} FROM {rows} AS _({numbered})")

    try:
        insert(part.sql)
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise MemoryError("stage.memory is too small for this file. Raise it in params.yaml") from None
    except duckdb.Error:
        if part.layout is None:
            raise ValueError("its bytes are damaged. Fetch it again") from None
        again = _rewrite(part, part.layout, folder, "utf-8")
        try:
            insert(again.sql)
        except duckdb.Error:
            raise ValueError(
                f"a line may have {csvfile.LONGEST_LINE:,} characters at most. "
                "Is a quote left open before a longer one?"
            ) from None


def _value_sql(part: Part, name: str, column: Column, source: Source, form: str) -> str:
    """A file's column as the raw values that the table holds; NULL where the file lacks it."""
    kind = part.kind(name)
    if kind is None:
        return "NULL"
    missing = [*source.nulls, *(NAN if kind == "VARCHAR" and column.type != "VARCHAR" else ())]
    return nulls_sql(raw_sql(f"c{part.columns.index(name)}", kind, column.type, form), missing, form)


def nulls_sql(value: str, nulls: Iterable[str], form: str) -> str:
    """The value, NULL where its text stands for a missing one; so does an empty text."""
    texts = [*nulls, *([""] if form == "VARCHAR" else [])]
    if not texts:
        return value
    text = value if form == "VARCHAR" else text_sql(value, form)
    return f"CASE WHEN {text} IN ({', '.join(map(literal, texts))}) THEN NULL ELSE {value} END"


def raw_sql(value: str, kind: str, wanted: str, form: str) -> str:
    """A value of type `kind` in the form in which it is kept: as the contract's type, or as text."""
    if form != "VARCHAR":
        number = f"CASE WHEN isnan({value}) THEN NULL ELSE {value} END" if kind in ("FLOAT", "DOUBLE") else value
        return f"CAST({number} AS {form})"
    if kind == "BOOLEAN" and wanted in NUMBERS:
        return f"CAST(CAST({value} AS INTEGER) AS VARCHAR)"
    if kind == "FLOAT" and wanted == "DOUBLE":
        return text_sql(f"CAST({value} AS DOUBLE)", "DOUBLE")
    return text_sql(value, kind)


def text_sql(value: str, kind: str) -> str:
    """The same text for the same value, whatever its type: no .0 for a whole number, no zeros at a fraction's end."""
    if kind == "VARCHAR":
        return value
    if kind in ("FLOAT", "DOUBLE"):
        whole = f"CAST(CAST({value} AS HUGEINT) AS VARCHAR)"
        is_whole = f"abs({value}) < 1e38 AND {value} = trunc({value})"
        return f"CASE WHEN isnan({value}) THEN NULL WHEN {is_whole} THEN {whole} ELSE CAST({value} AS VARCHAR) END"
    if kind.startswith("DECIMAL") and not kind.endswith(",0)"):
        return f"rtrim(rtrim(CAST({value} AS VARCHAR), '0'), '.')"
    if kind == "TIMESTAMP WITH TIME ZONE":
        return f"CAST(timezone('UTC', {value}) AS VARCHAR) || '+00'"
    if kind == "BLOB":  # bytes that are no text are spelled out: they are not missing
        return f"coalesce(TRY(decode({value})), CAST({value} AS VARCHAR))"
    return f"CAST({value} AS VARCHAR)"
