"""The sources of a run as typed tables in DuckDB: each file's raw values, each row with its place, then typed.

Each file is read and cast by itself, so that a value means the same whatever other files there are. A column keeps its
type where the contract's type holds the values of all files without loss; else it becomes text, and the contract's
rules cast it. NaN is missing in every type. A whole number of type DOUBLE becomes a text without .0. Columns that the
contract does not name are not read.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import contract, csvtext, expressions, jsonlines, packing, sqlcheck
from tasks.data.sources.fetch import Fetched
from tasks.params import PLACE, TIMES, Column, Params, Source, Table
from tasks.runtime import locks, stage
from tasks.runtime.sql import literal, parquet, quote

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
FILE, ROW = quote(f"{expressions.HIDDEN}file"), quote(f"{expressions.HIDDEN}row")  # where a row stood


@dataclass(frozen=True)
class Feed:
    """One table's source, fetched, and `identity`: the hash of everything that its rows are made of."""

    name: str
    source: Source
    table: Table
    fetched: Fetched
    identity: str

    @property
    def has_times(self) -> bool:
        return self.source.event_time is not None

    @property
    def columns(self) -> list[str]:
        """The contract's columns, without the two times: those come last, from expressions of their own."""
        return [name for name in self.table.columns if name not in TIMES]

    @property
    def outcomes(self) -> list[str]:
        return [name for name in self.columns if self.table.columns[name].outcome]

    @property
    def order(self) -> str:
        """A fixed order of the rows. Outcomes come last, so that a row's place does not give them away."""
        early_first = sorted(self.columns, key=lambda name: self.table.columns[name].outcome)
        return ", ".join(map(quote, [*TIMES[: self.has_times], *early_first, *(PLACE if self.table.key else ())]))


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


class Reader:
    """The sources as typed tables in DuckDB. Each is read once, and only when it is first asked for."""

    def __init__(self, p: Params, feeds: dict[str, Feed], key: bytes) -> None:
        self.con, self.feeds, self.key = stage.connect(p), feeds, key
        self.outlier: dict[str, str] = {}  # by table: why a row is an outlier in time, as SQL
        self.deliveries: dict[str, Delivery] = {}  # of the tables that have been read

    @contextlib.contextmanager
    def open_table(self, feed: Feed) -> Iterator[duckdb.DuckDBPyConnection]:
        """The connection, with the feed's table and those above it. DuckDB's errors name the table."""
        try:
            for name, needed in self.feeds.items():
                if name not in self.deliveries:
                    self._load(needed)
                if name == feed.name:
                    break
            yield self.con
        except duckdb.Error as error:
            sqlcheck.raise_machine_error(error)
            raise ValueError(
                f"{feed.name} ({feed.source.shown}) does not fit its params: DuckDB cannot compute its rows "
                f"({type(error).__name__}). Check sources.{feed.name} and contract.{feed.name}."
            ) from None

    def _load(self, feed: Feed) -> None:
        name, source, columns = feed.name, feed.source, feed.table.columns
        delivered = {column: rule for column, rule in columns.items() if column not in source.derive}
        try:
            delivery = load_table(self.con, feed.fetched, source, delivered, "_arrived")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        forms = dict(self.con.execute("SELECT column_name, column_type FROM (DESCRIBE _arrived)").fetchall())
        is_text = {column: forms[f"v{i}"] == "VARCHAR" for i, column in enumerate(delivered)}
        plan = expressions.plan_expressions(self.con, name, source, _typed_sql(feed, is_text), list(delivered))
        raw = []
        for column in (column for column in feed.columns if column in source.derive):
            kind, wanted = plan.kinds[column], columns[column].type
            raw.append(f"{raw_sql(quote(column), kind, wanted, choose_form({kind}, wanted))} AS {raw_name(column)}")
        expressions.create_table(self.con, name, source, plan, raw)
        self.con.execute("DROP TABLE _arrived")
        self.deliveries[name] = delivery


def _typed_sql(feed: Feed, is_text: dict[str, bool]) -> str:
    """The delivered columns typed, each with its raw value beside it, and each row's place."""
    columns = ", ".join(
        [
            *[f"v{i} AS {quote(name)}" for i, name in enumerate(is_text)],
            f"file AS {FILE}",
            f"rowid - start + 1 AS {ROW}",
        ]
    )
    pairs = [
        f"{contract.clean_sql(name, feed.table.columns[name], text=text, decimal=feed.source.decimal)} "
        f"AS {quote(name)}, {quote(name)} AS {raw_name(name)}"
        for name, text in is_text.items()
    ]
    return f"SELECT {', '.join([*pairs, FILE, ROW])} FROM (SELECT {columns} FROM _arrived WHERE NOT blank)"


def raw_name(name: str) -> str:
    """The column beside a typed one that holds its value as it came."""
    return quote(f"{expressions.HIDDEN}raw {name}")


# --- files → one table -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One file: how to read it, as columns c0, c1, ..., with these names and types. Only a CSV has a delimiter."""

    name: str
    file: Path
    sql: str
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


def load_table(
    con: duckdb.DuckDBPyConnection, fetched: Fetched, source: Source, columns: dict[str, Column], into: str
) -> Delivery:
    """Read a source into the temporary table `into`: v0, v1, ... for the columns asked, and blank, file and start.

    What is unpacked is gone again at the end: it may hold personal data.

    Raises:
        ValueError: a file is torn or no table (with its name and the line), or no file has a column.
    """
    with locks.open_folder(packing.scratch_root()) as folder:
        parts = []
        for i, (file, name) in enumerate(zip(fetched.files, name_files(fetched), strict=True)):
            with _naming_file(fetched, name):
                parts.append(rename_columns(_open_part(con, file, folder / str(i), name, source.encoding), columns))
        _check_names(parts, columns, fetched)
        forms = [choose_form({part.kind(name) for part in parts}, rule.type) for name, rule in columns.items()]
        fields = [f"v{i} {form}" for i, form in enumerate(forms)]
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE {into} ({', '.join([*fields, 'blank BOOLEAN, file INTEGER, start BIGINT'])})"
        )
        for i, part in enumerate(parts):
            values = [_value_sql(part, *pair, source, form) for pair, form in zip(columns.items(), forms, strict=True)]
            with _naming_file(fetched, part.name):
                _append(con, part, [*values, part.blank_sql, str(i)], into, folder / f"{i}.again.csv")
    rows, empty = con.execute(f"SELECT count(*), count(*) FILTER (blank) FROM {into}").fetchall()[0]
    lacking = {i: [name for name in columns if name not in part.columns] for i, part in enumerate(parts)}
    unread = sorted({name for part in parts for name in part.columns if name} - columns.keys())
    return Delivery(rows, empty, {i: names for i, names in lacking.items() if names}, unread)


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
    plain = packing.unpack(file, folder)
    if plain.suffix.lower() == ".parquet":
        try:
            columns = tuple(pq.read_schema(plain).names)
            kinds = tuple(str(row[1]) for row in con.execute(f"DESCRIBE FROM {parquet([plain])}").fetchall())
        except (pa.ArrowException, OSError, duckdb.Error):
            raise ValueError("it is no Parquet file, or its end is missing. Fetch it again") from None
        return Part(name, plain, parquet([plain]), columns, kinds)
    if plain.suffix.lower() in jsonlines.SUFFIXES:
        columns, converted = jsonlines.convert(plain, folder / "converted", encoding)
        return Part(name, plain, parquet(converted, union_by_name="TRUE"), columns, ("VARCHAR",) * len(columns))
    delimiter, columns = csvtext.read_layout(plain, encoding)
    width = len(columns)
    if encoding != "utf-8" or not csvtext.is_plain(plain):
        plain = csvtext.rewrite(plain, delimiter, width, folder / "rewritten.csv", encoding)
    return Part(name, plain, csvtext.csv_sql(plain, delimiter, width), columns, ("VARCHAR",) * width, delimiter)


def rename_columns(part: Part, columns: Mapping[str, Column]) -> Part:
    """A file with the contract's names for those of its columns that it calls by an alias. An alias beside the name
    itself is another column."""
    names = {alias: name for name, column in columns.items() for alias in column.alias if name not in part.columns}
    return replace(part, columns=tuple(names.get(name, name) for name in part.columns))


def _check_names(parts: list[Part], columns: Mapping[str, Column], fetched: Fetched) -> None:
    """Raises ValueError for a file that names a column twice, or none of them: it has no header. Also for a column that
    no file has and that may not be absent; one that some files lack is for the caller to judge."""
    for part in parts:
        if twice := [name for name in columns if part.columns.count(name) > 1]:
            raise ValueError(f"{fetched.address}: {part.name} names the column {', '.join(twice)} more than once")
        if columns and not any(name in part.columns for name in columns):
            raise ValueError(
                f"{fetched.address}: {part.name} names none of the columns {list(columns)}; it lacks the column "
                f"{_hint_names(columns, part.columns)}. Its first line must be the header. Mend the file, or take it "
                f"out of {fetched.address}."
            )
    present = {name for part in parts for name in part.columns if name}
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
    width = len(part.columns)
    named = f" AS _({', '.join(f'c{i}' for i in range(width))})"
    insert = f"INSERT INTO {into} SELECT {', '.join([*values, str(start)])} FROM "
    try:
        con.execute(insert + part.sql + named)
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise MemoryError("stage.memory is too small for this file. Raise it in params.yaml") from None
    except duckdb.Error:
        if not part.delimiter:
            raise ValueError("its bytes are damaged. Fetch it again") from None
        csvtext.rewrite(part.file, part.delimiter, width, again)
        try:
            con.execute(insert + csvtext.csv_sql(again, part.delimiter, width) + named)
        except duckdb.Error:
            raise ValueError(
                f"a line may have {csvtext.LONGEST_LINE:,} characters at most. "
                "Is a quote left open before a longer one?"
            ) from None


def _value_sql(part: Part, name: str, column: Column, source: Source, form: str) -> str:
    """A file's column as the raw values that the table holds. NULL where the file lacks it, or its text is empty or
    stands for a missing value."""
    kind = part.kind(name)
    if kind is None:
        return "NULL"
    value = raw_sql(f"c{part.columns.index(name)}", kind, column.type, form)
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
