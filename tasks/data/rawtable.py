"""The files of a source → one table of raw values in DuckDB, each row with its place, and what is to be said of them.

Each file is read by itself and cast to what the contract wants before the files are put together, so that a value
means the same whatever file stands beside it. A column stays as it is typed where all files have a type of it that the
contract's holds without loss; else it becomes text, and the contract's rules cast it. NaN is missing in every type, a
whole number of type DOUBLE becomes a text without .0. Columns that the contract does not name are not read.
"""

import contextlib
import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import csvfile, sources
from tasks.data.sources import Fetched
from tasks.params import Column, Source
from tasks.runtime.sql import literal, parquet

NAN = ("nan", "NaN", "NAN", "-nan", "-NaN", "NaT")  # spelled out in a CSV, of which only a text column holds them
SMALL = ("TINYINT", "SMALLINT", "UTINYINT", "USMALLINT")
LOSSLESS = {  # by the contract's type: the types of files whose every value it holds
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
    """What came: rows in all files, empty ones among them, and by file the columns that it lacks."""

    rows: int
    empty: int
    lacking: dict[int, list[str]]


@dataclass(frozen=True)
class Part:
    """One file: how to read it, with columns c0, c1, ..., and the names and types of these."""

    name: str
    sql: str
    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    layout: csvfile.Layout | None = None
    file: Path | None = None  # of a CSV

    def index(self, column: str) -> int | None:
        return self.columns.index(column) if column in self.columns else None

    def kind(self, column: str) -> str | None:
        index = self.index(column)
        return None if index is None else self.kinds[index]

    @property
    def blank(self) -> str:
        """Whether a line has nothing in any field, also in those that nobody reads."""
        if self.layout is None:
            return "FALSE"
        fields = " ".join(f"WHEN trim(c{i}) <> '' THEN FALSE" for i in range(len(self.columns)))
        return f"CASE {fields} ELSE TRUE END"  # the first field decides for most rows, and the others are not looked at


def load_table(
    con: duckdb.DuckDBPyConnection, fetched: Fetched, source: Source, columns: dict[str, Column], into: str
) -> Delivery:
    """Read a source into the temporary table `into`: v0, v1, ... for the columns asked, and file, row and blank.

    Raises ValueError, with the file's name and the line, when a file is torn or is no table, and when no file has a
    column. What is unpacked is gone again at the end: it may hold personal data.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(sources.open_scratch())
        names = name_files(fetched)
        parts = []
        for i, (file, name) in enumerate(zip(fetched.files, names, strict=True)):
            with _naming(fetched, name):
                parts.append(_open(con, file, folder / str(i), name, source.encoding))
        for part in parts:
            _check_names(part, columns, fetched)
        _check_lacking(parts, columns, fetched)
        _create(con, parts, columns, into)
        for i, part in enumerate(parts):
            with _naming(fetched, part.name):
                _append(con, part, i, source, columns, into, folder / str(i))
    rows, empty = con.execute(f"SELECT count(*), count(*) FILTER (blank) FROM {into}").fetchall()[0]
    lacking = {i: [name for name in columns if part.index(name) is None] for i, part in enumerate(parts)}
    return Delivery(rows, empty, {i: names for i, names in lacking.items() if names})


def name_files(fetched: Fetched) -> list[str]:
    """What each file is called in messages: its name, and its folder where a name comes twice."""
    for depth in (1, 2):
        names = ["/".join(file.parts[-depth:]) for file in fetched.files]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in fetched.files]


@contextlib.contextmanager
def _naming(fetched: Fetched, name: str) -> Iterator[None]:
    """What goes wrong with a file is said with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{fetched.address}: {name} cannot be read as a table: {error}") from None


def _open(con: duckdb.DuckDBPyConnection, file: Path, folder: Path, name: str, encoding: str) -> Part:
    plain = sources.unpack(file, folder)
    if plain.suffix.lower() == ".parquet":
        return _open_parquet(con, plain, name)
    layout = csvfile.read_layout(plain, encoding)
    if encoding != "utf-8" or not csvfile.is_plain(plain):
        plain = _rewritten(plain, layout, folder, encoding)
    return _part_of_csv(plain, layout, name)


def _rewritten(file: Path, layout: csvfile.Layout, folder: Path, encoding: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "rewritten.csv"
    csvfile.rewrite(file, layout, target, encoding)
    return target


def _part_of_csv(file: Path, layout: csvfile.Layout, name: str) -> Part:
    return Part(name, csvfile.csv_sql(file, layout), layout.names, ("VARCHAR",) * len(layout.names), layout, file)


def _open_parquet(con: duckdb.DuckDBPyConnection, file: Path, name: str) -> Part:

    rows = f"FROM {parquet([file])}"
    try:
        columns = pq.read_schema(file).names
        kinds = [str(row[1]) for row in con.execute(f"DESCRIBE {rows}").fetchall()]
    except (pa.ArrowException, OSError, duckdb.Error):
        raise ValueError("it is no Parquet file, or its end is missing. Fetch it again") from None
    return Part(name, parquet([file]), tuple(columns), tuple(kinds))


def _check_names(part: Part, columns: Iterable[str], fetched: Fetched) -> None:
    """Each column asked for is there once at most, and not all of them are missing: such a file has no header."""
    counts = Counter(part.columns)
    if twice := [name for name in columns if counts[name] > 1]:
        raise ValueError(f"{fetched.address}: {part.name} names the column {', '.join(twice)} more than once")
    if any(name in counts for name in columns) or not columns:
        return
    named = set(filter(None, part.columns))
    near = {name: difflib.get_close_matches(name.lower(), [other.lower() for other in named], n=1) for name in columns}
    hints = [f"`{name}` (did you mean `{_as_spelled(found[0], named)}`?)" for name, found in near.items() if found]
    raise ValueError(
        f"{fetched.address}: {part.name} names none of the columns {list(columns)}"
        + (f"; it lacks the column {', '.join(hints)}" if hints else ". Its first line must be the header")
        + f". Mend the file, or take it out of {fetched.address}."
    )


def _as_spelled(lower: str, names: Iterable[str]) -> str:
    return next(name for name in names if name.lower() == lower)


def _check_lacking(parts: list[Part], columns: Iterable[str], fetched: Fetched) -> None:
    """A column that no file has is refused; one that some files lack is for the caller to judge."""
    present = {name for part in parts for name in part.columns if name}
    missing = [name for name in columns if name not in present]
    if not missing:
        return
    hints = []
    for name in missing:
        near = difflib.get_close_matches(name.lower(), [other.lower() for other in present], n=1)
        hints.append(f"`{name}`" + (f" (did you mean `{_as_spelled(near[0], present)}`?)" if near else ""))
    raise ValueError(
        f"{fetched.address} lacks the column {', '.join(hints)}; it has {sorted(present)}. Mend the source or the "
        "contract's columns."
    )


def _create(con: duckdb.DuckDBPyConnection, parts: list[Part], columns: dict[str, Column], into: str) -> None:
    types = [f"v{i} {_form(parts, name, column)}" for i, (name, column) in enumerate(columns.items())]
    fields = ", ".join([*types, "blank BOOLEAN", "file INTEGER", "start BIGINT"])
    con.execute(f"CREATE OR REPLACE TEMP TABLE {into} ({fields})")


def _form(parts: list[Part], name: str, column: Column) -> str:
    """The type of the raw values: the contract's own where it holds those of every file, else text."""
    kinds = {part.kind(name) for part in parts} - {None}
    return column.type if kinds <= set(LOSSLESS[column.type]) else "VARCHAR"


def _append(
    con: duckdb.DuckDBPyConnection,
    part: Part,
    place: int,
    source: Source,
    columns: dict[str, Column],
    into: str,
    folder: Path,
) -> None:
    """Add a file's rows. What DuckDB cannot read is read by Python, which either can, or names the faulty line."""
    forms = dict(con.execute(f"SELECT column_name, column_type FROM (DESCRIBE {into})").fetchall())
    start = con.execute(f"SELECT count(*) FROM {into}").fetchall()[0][0]
    values = [_value(part, name, column, source, forms[f"v{i}"]) for i, (name, column) in enumerate(columns.items())]
    numbered = ", ".join(f"c{i}" for i in range(len(part.columns)))
    insert = f"INSERT INTO {into} SELECT {', '.join([*values, part.blank, str(place), str(start)])} FROM "
    try:
        con.execute(f"{insert}{part.sql} AS _({numbered})")
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise MemoryError("stage.memory is too small for this file. Raise it in params.yaml") from None
    except duckdb.Error:
        if part.layout is None or part.file is None:
            raise ValueError("its bytes are damaged. Fetch it again") from None
        again = _part_of_csv(_rewritten(part.file, part.layout, folder, "utf-8"), part.layout, part.name)
        try:
            con.execute(f"{insert}{again.sql} AS _({numbered})")
        except duckdb.Error:
            raise ValueError(
                f"a line may have {csvfile.LONGEST:,} characters at most. Is a quote left open before a longer one?"
            ) from None


def _value(part: Part, name: str, column: Column, source: Source, form: str) -> str:
    """A file's column as the raw values that the table holds; NULL where the file lacks it."""
    index = part.index(name)
    if index is None:
        return "NULL"
    kind = part.kinds[index]
    missing = [*source.nulls, *(NAN if kind == "VARCHAR" and column.type != "VARCHAR" else ())]
    return nulls_sql(raw_sql(f"c{index}", kind, column.type, form), missing, form)


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
