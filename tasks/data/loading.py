"""loading: the files of a source → one table of raw values in DuckDB, each row with its place.

Each file is read and cast by itself, so that a value means the same whatever other files there are. A column keeps its
type where the contract's type holds the values of all files without loss; else it becomes text, and the contract's
rules cast it. NaN is missing in every type. A whole number of type DOUBLE becomes a text without .0. Columns that the
contract does not name are not read.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import csvtext, jsonlines, packing, periods, sqlcheck
from tasks.data.sources.fetch import Fetched
from tasks.params import Column, Source
from tasks.runtime import locks, sql
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
CODE = periods.hash_code(__file__, csvtext.__file__, jsonlines.__file__, packing.__file__, sql.__file__)


@dataclass(frozen=True)
class Delivery:
    """What came: the rows of all files, the empty ones among them, and columns.

    Attributes:
        lacking: by file, the columns that it lacks.
        unread: the columns of the files that the contract does not name.
    """

    rows: int
    empty: int
    lacking: dict[int, list[str]]
    unread: list[str]


@dataclass(frozen=True)
class Layout:
    """The names of a file's columns, and their types. Only a CSV has a delimiter."""

    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    delimiter: str = ""

    def kind(self, column: str) -> str | None:
        return self.kinds[self.columns.index(column)] if column in self.columns else None

    @property
    def blank_sql(self) -> str:
        """Whether a line has nothing in any field, read or not. The first field decides for most lines."""
        fields = " ".join(f"WHEN trim(c{i}) <> '' THEN FALSE" for i in range(len(self.columns)))
        return f"CASE {fields} ELSE TRUE END" if self.delimiter else "FALSE"

    def rename(self, columns: Mapping[str, Column]) -> "Layout":
        """With the contract's names for the columns that a file calls by an alias. An alias beside the name itself is
        another column."""
        names = {alias: name for name, column in columns.items() for alias in column.alias if name not in self.columns}
        return Layout(tuple(names.get(name, name) for name in self.columns), self.kinds, self.delimiter)


@dataclass(frozen=True)
class Part:
    """One file, and how to read it, as columns c0, c1, ..."""

    file: Path
    sql: str
    layout: Layout
    is_plain: bool = False  # a Parquet file as it was delivered

    @property
    def names(self) -> str:
        return f" AS _({', '.join(f'c{i}' for i in range(len(self.layout.columns)))})"


class SourceFiles:
    """The files of a source. Each is opened when it is first asked for; its layout is known from then on.

    Attributes:
        layouts: of each file, with the contract's names.
        forms: of each column asked, the type of its raw values.
    """

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        fetched: Fetched,
        source: Source,
        columns: Mapping[str, Column],
        folder: Path,
    ) -> None:
        self.fetched, self.names = fetched, name_files(fetched)
        self._con, self._source, self._columns, self._folder = con, source, columns, folder
        self._parts: dict[int, Part] = {}
        self.layouts = [self._read_layout(place).rename(columns) for place in range(len(self.names))]
        _check_names(self.layouts, columns, fetched, self.names)
        self.forms = [
            choose_form({one.kind(name) for one in self.layouts}, rule.type) for name, rule in columns.items()
        ]

    @property
    def lacking(self) -> dict[int, list[str]]:
        """By file, the columns that it lacks."""
        lacking = {i: [name for name in self._columns if name not in one.columns] for i, one in enumerate(self.layouts)}
        return {i: names for i, names in lacking.items() if names}

    @property
    def unread(self) -> list[str]:
        """The columns of the files that were not asked for."""
        return sorted({name for one in self.layouts for name in one.columns if name} - self._columns.keys())

    def identify(self, place: int) -> tuple[str, ...]:
        """What a file's rows are made of: its bytes, and how it is packed and written."""
        return self.fetched.hashes[place], *packing.list_suffixes(self.fetched.files[place])

    def load(self, con: duckdb.DuckDBPyConnection, places: Sequence[int], into: str) -> None:
        """Read these files into the temporary table `into`: v0, v1, ... for the columns asked, and blank, file (its
        place among these) and start."""
        fields = [f"v{i} {form}" for i, form in enumerate(self.forms)]
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE {into} ({', '.join([*fields, 'blank BOOLEAN, file INTEGER, start BIGINT'])})"
        )
        for i, place in enumerate(places):
            layout = self.layouts[place]
            pairs = zip(self._columns.items(), self.forms, strict=True)
            values = [_value_sql(layout, *pair, self._source, form) for pair, form in pairs]
            with _naming_file(self.fetched, self.names[place]):
                part = self._open(place, con)
                _append(con, part, [*values, layout.blank_sql, str(i)], into, self._folder / f"{place}.again.csv")

    def view(self, con: duckdb.DuckDBPyConnection, place: int, into: str) -> bool:
        """Make the temporary view `into` of a Parquet file, as `load` makes a table: its rows need not be copied.

        Returns:
            Whether the file is one. What is wrong with its bytes shows when the view is read.
        """
        with _naming_file(self.fetched, self.names[place]):
            part = self._open(place, con)
        if not part.is_plain:
            return False
        columns = zip(self._columns.items(), self.forms, strict=True)
        values = [
            f"CAST({_value_sql(self.layouts[place], name, rule, self._source, form)} AS {form}) AS v{i}"
            for i, ((name, rule), form) in enumerate(columns)
        ]
        values += ["FALSE AS blank", "0 AS file", "0 AS start", "file_row_number AS rowid"]
        rows = f"{parquet([part.file], file_row_number='TRUE')}{part.names}"
        con.execute(f"CREATE OR REPLACE TEMP VIEW {into} AS SELECT {', '.join(values)} FROM {rows}")
        return True

    def _read_layout(self, place: int) -> Layout:
        def read() -> Any:
            with _naming_file(self.fetched, self.names[place]):
                return asdict(self._open(place, self._con).layout)

        entry = periods.hash_inputs("layout", self.identify(place), self._source.encoding, CODE)
        content = periods.remember(entry, "layout.json", read)
        return Layout(tuple(content["columns"]), tuple(content["kinds"]), content["delimiter"])

    def _open(self, place: int, con: duckdb.DuckDBPyConnection) -> Part:
        if place not in self._parts:
            file, folder = self.fetched.files[place], self._folder / str(place)
            self._parts[place] = _open_part(con, file, folder, self._source.encoding)
        return self._parts[place]


def load_table(
    con: duckdb.DuckDBPyConnection, fetched: Fetched, source: Source, columns: dict[str, Column], into: str
) -> Delivery:
    """Read all of a source into the temporary table `into`, as `SourceFiles.load` does."""
    with locks.open_folder(packing.scratch_root()) as folder:
        files = SourceFiles(con, fetched, source, columns, folder)
        files.load(con, range(len(files.names)), into)
    rows, empty = count_rows(con, into)
    return Delivery(rows, empty, files.lacking, files.unread)


def count_rows(con: duckdb.DuckDBPyConnection, table: str) -> tuple[int, int]:
    """The rows of a loaded table, and the empty ones among them."""
    rows, empty = con.execute(f"SELECT count(*), count(*) FILTER (blank) FROM {table}").fetchall()[0]
    return int(rows), int(empty)


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


def _open_part(con: duckdb.DuckDBPyConnection, file: Path, folder: Path, encoding: str) -> Part:
    plain = packing.unpack(file, folder)
    if plain.suffix.lower() == ".parquet":
        try:
            columns = tuple(pq.read_schema(plain).names)
            kinds = tuple(str(row[1]) for row in con.execute(f"DESCRIBE FROM {parquet([plain])}").fetchall())
        except (pa.ArrowException, OSError, duckdb.Error):
            raise ValueError("it is no Parquet file, or its end is missing. Fetch it again") from None
        return Part(plain, parquet([plain]), Layout(columns, kinds), is_plain=True)
    if plain.suffix.lower() in jsonlines.SUFFIXES:
        columns, converted = jsonlines.convert(plain, folder / "converted", encoding)
        return Part(plain, parquet(converted, union_by_name="TRUE"), Layout(columns, ("VARCHAR",) * len(columns)))
    delimiter, columns = csvtext.read_layout(plain, encoding)
    width = len(columns)
    if encoding != "utf-8" or not csvtext.is_plain(plain):
        plain = csvtext.rewrite(plain, delimiter, width, folder / "rewritten.csv", encoding)
    return Part(plain, csvtext.csv_sql(plain, delimiter, width), Layout(columns, ("VARCHAR",) * width, delimiter))


def _check_names(
    layouts: Sequence[Layout], columns: Mapping[str, Column], fetched: Fetched, files: Sequence[str]
) -> None:
    """Raises ValueError for a file that names a column twice, or none of them: it has no header. Also for a column that
    no file has and that may not be absent; one that some files lack is for the caller to judge."""
    for layout, file in zip(layouts, files, strict=True):
        if twice := [name for name in columns if layout.columns.count(name) > 1]:
            raise ValueError(f"{fetched.address}: {file} names the column {', '.join(twice)} more than once")
        if columns and not any(name in layout.columns for name in columns):
            raise ValueError(
                f"{fetched.address}: {file} names none of the columns {list(columns)}; it lacks the column "
                f"{_hint_names(columns, layout.columns)}. Its first line must be the header. Mend the file, or take it "
                f"out of {fetched.address}."
            )
    present = {name for layout in layouts for name in layout.columns if name}
    if missing := [name for name, column in columns.items() if name not in present and column.absent == "refuse"]:
        raise ValueError(
            f"{fetched.address} lacks the column {_hint_names(missing, present)}; it has {sorted(present)}. Mend the "
            "source or the contract's columns: `alias` says what else a column is called, and `absent: empty` that a "
            "source may be without it."
        )


def _hint_names(missing: Iterable[str], present: Iterable[str]) -> str:
    """Each missing name, with the present one that it most likely means."""
    near = {name: sqlcheck.find_closest(name, filter(None, present)) for name in missing}
    return ", ".join(f"`{name}`" + (f" (did you mean `{other}`?)" if other else "") for name, other in near.items())


def choose_form(kinds: set[str | None], wanted: str) -> str:
    """The type of the raw values: the contract's own where it holds those of these types without loss, else text."""
    return wanted if kinds - {None} <= set(LOSSLESS[wanted]) else "VARCHAR"


def _append(con: duckdb.DuckDBPyConnection, part: Part, values: list[str], into: str, again: Path) -> None:
    """Add a file's rows. What DuckDB cannot read is read by Python, which either can, or names the faulty line."""
    start = con.execute(f"SELECT count(*) FROM {into}").fetchall()[0][0]
    width = len(part.layout.columns)
    insert = f"INSERT INTO {into} SELECT {', '.join([*values, str(start)])} FROM "
    try:
        con.execute(insert + part.sql + part.names)
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise MemoryError("stage.memory is too small for this file. Raise it in params.yaml") from None
    except duckdb.Error:
        if not part.layout.delimiter:
            raise ValueError("its bytes are damaged. Fetch it again") from None
        csvtext.rewrite(part.file, part.layout.delimiter, width, again)
        try:
            con.execute(insert + csvtext.csv_sql(again, part.layout.delimiter, width) + part.names)
        except duckdb.Error:
            raise ValueError(
                f"a line may have {csvtext.LONGEST_LINE:,} characters at most. "
                "Is a quote left open before a longer one?"
            ) from None


def _value_sql(layout: Layout, name: str, column: Column, source: Source, form: str) -> str:
    """A file's column as the raw values that the table holds. NULL where the file lacks it, or its text is empty or
    stands for a missing value."""
    kind = layout.kind(name)
    if kind is None:
        return "NULL"
    value = raw_sql(f"c{layout.columns.index(name)}", kind, column.type, form)
    nulls = [*source.nulls, *(NAN if kind == "VARCHAR" and column.type != "VARCHAR" else ())]
    nulls += [""] if form == "VARCHAR" else []
    if not nulls:
        return value
    # Not IN: DuckDB makes a join of a long list, which mixes up the rows, and of those with one key the later wins.
    text = text_sql(value, form)
    return f"CASE {' '.join(f'WHEN {text} = {literal(null)} THEN NULL' for null in nulls)} ELSE {value} END"


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
