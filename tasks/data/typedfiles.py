"""typedfiles: each file of a source as typed rows with pseudonyms, in the cache: the same bytes are read once.

A file's rows are computed by themselves, so that a new file costs what it brings, and files are read side by side. Only
where an expression looks at other rows of its table are all files computed as one.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from tasks.data import contract, expressions, feeds, loading, periods, rowfiles, timeline
from tasks.data.feeds import FILE, ROW, Feed, Reader
from tasks.params import FAULT, TIMES, Column
from tasks.runtime.sql import literal, parquet, quote
from tasks.runtime.threads import run_threads

KNOWN = quote(f"{contract.HIDDEN}known")  # whether the row holds an outcome
MISFIT = quote(f"{contract.HIDDEN}misfit")  # whether it has no event time because a value of it does not fit
HELPERS = quote(f"{contract.HIDDEN}helpers")  # how many of the columns that only help to compute others are missing
UNREADABLE = "(unreadable)"  # stands for a text that does not fit the type of a column that is coarsened
PLAIN = ("VARCHAR", "INTEGER", "BIGINT", "BOOLEAN", "DATE", "TIMESTAMP")  # equal where their raw values are
LARGE_BYTES = 8_000_000  # of text, in about as many rows as a row group has
CODE = periods.hash_inputs(feeds.CODE, periods.hash_code(__file__, rowfiles.__file__, timeline.__file__))


@dataclass(frozen=True)
class Day:
    """Rows with events of one day; of a table without event times, all rows of a file.

    Attributes:
        start: of the day; None where the event time cannot be told.
        first: when the first of them is there. None: from the beginning.
        newest: the newest moment of which they have news.
    """

    start: datetime | None
    rows: int
    first: datetime | None
    newest: datetime | None


@dataclass(frozen=True)
class Contents:
    """What the rows of one file or of several are.

    Attributes:
        read, empty: rows of the file, and the empty ones among them.
        misfits: whether a row has no event time because one of its values is no time, or cannot be made one.
        events, known: the first and the last time of an event, and of an outcome that is known.
    """

    read: int
    empty: int
    misfits: bool
    days: tuple[Day, ...]
    events: timeline.Ends | None
    known: timeline.Ends | None


CONTENTS = TypeAdapter(Contents)


@dataclass(frozen=True)
class TypedFile:
    """The rows of one file or of several, in the cache.

    Attributes:
        entry: the hash of all that they are made of.
        first: the place of its first file among those of the source.
    """

    entry: str
    first: int
    contents: Contents


@dataclass(frozen=True)
class TypedTable:
    """A source's files, typed, and their rows as a table function of DuckDB.

    Attributes:
        keys: the columns that hold the typed values of the table's key.
        paths: by entry, the files that were asked for.
    """

    feed: Feed
    files: tuple[TypedFile, ...]
    delivery: loading.Delivery
    keys: tuple[str, ...]
    paths: dict[str, Path] = field(default_factory=dict)

    @property
    def misfits(self) -> bool:
        return any(file.contents.misfits for file in self.files)

    def rows_sql(self, places: Sequence[int] | None = None) -> str:
        """The rows of these of the typed files, in their order; `file_index` counts them."""
        entries = [self.files[place].entry for place in (range(len(self.files)) if places is None else places)]
        for entry in entries:
            if entry not in self.paths:
                self.paths[entry] = periods.find_file(entry, "rows.parquet", _refuse)
        return parquet([self.paths[entry] for entry in entries])


def _refuse(_: Path) -> None:
    raise OSError("the rows of a source that this run has read are gone from the cache of periods: run it again")


def type_files(reader: Reader, feed: Feed, *, threads: int) -> TypedTable:
    """Have the rows of a source's files in the cache. New files are read in threads.

    Raises:
        ValueError: a file cannot be read, or does not fit params.yaml.
    """
    with feeds.naming_table(feed), feeds.open_files(reader.con, feed) as files:
        count = len(files.names)
        is_one = count > 1 and expressions.has_window(reader.con, feed.source)
        groups = [range(count)] if is_one else [[i] for i in range(count)]
        turn = threading.Semaphore(max(threads // 2, 1))
        works = [lambda places=places: _provide_file(reader, feed, files, places, turn) for places in groups]
        typed = run_threads(works, threads)
        delivery = loading.Delivery(
            rows=sum(file.contents.read for file in typed),
            empty=sum(file.contents.empty for file in typed),
            lacking=files.lacking,
            unread=files.unread,
        )
        keys = tuple(_key_column(feed, name, files.forms) for name in feed.table.key)
    return TypedTable(feed, tuple(typed), delivery, keys)


def _provide_file(
    reader: Reader, feed: Feed, files: loading.SourceFiles, places: Sequence[int], turn: threading.Semaphore
) -> TypedFile:
    entry = periods.hash_inputs("typed", feed.identity, files.forms, [files.identify(place) for place in places], CODE)

    def make(into: Path) -> None:
        # Of a large file DuckDB types parts side by side: one for each thread would only take more memory.
        is_large = any(_is_large(files.fetched.files[place]) for place in places)
        with turn if is_large else contextlib.nullcontext(), feeds.naming_table(feed), reader.con.cursor() as con:
            plan = reader.plan(feed, files)
            write = functools.partial(_write_rows, con, reader.key, feed, files.forms, plan, into / "rows.parquet")
            if len(places) > 1 or not _write_in_place(con, files, places[0], write):
                con.execute("DROP VIEW IF EXISTS _arrived")
                files.load(con, places, "_arrived")
                write()
            read, empty = loading.count_rows(con, "_arrived")
            contents = _describe_rows(con, feed, into / "rows.parquet", read, empty)
            (into / "contents.json").write_bytes(CONTENTS.dump_json(contents))

    return TypedFile(entry, places[0], CONTENTS.validate_python(periods.read_json(entry, "contents.json", make)))


def _write_in_place(
    con: duckdb.DuckDBPyConnection, files: loading.SourceFiles, place: int, write: Callable[[], None]
) -> bool:
    """Write a file's rows as they are read, without a copy of them. False where that cannot be done: what is wrong with
    a file is found out, and named, when it is loaded."""
    with contextlib.suppress(duckdb.Error, ValueError):
        if files.view(con, place, "_arrived"):
            write()
            return True
    return False


def _is_large(file: Path) -> bool:
    if file.suffix.lower() == ".parquet":
        return bool(pq.read_metadata(file).num_rows > rowfiles.GROUP_ROWS)
    return file.stat().st_size > LARGE_BYTES


def _describe_rows(con: duckdb.DuckDBPyConnection, feed: Feed, file: Path, read: int, empty: int) -> Contents:
    rows = parquet([file])
    if not feed.has_times:
        count = con.execute(f"SELECT count(*) FROM {rows}").fetchall()[0][0]
        return Contents(read, empty, False, (Day(None, count, None, None),) if count else (), None, None)
    arrival = "event_time" if feed.outcomes else "greatest(event_time, known_at)"
    known = f"CASE WHEN {KNOWN} THEN known_at END"
    days = con.execute(
        f"SELECT date_trunc('day', event_time) AS start, count(*), min({arrival}), "
        "max(greatest(event_time, known_at)), bool_or("
        f"{MISFIT}), min(event_time), max(event_time), min({known}), max({known}) FROM {rows} GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return Contents(
        read,
        empty,
        any(day[4] for day in days),
        tuple(Day(*day[:4]) for day in days),
        _find_ends(day[5:7] for day in days),
        _find_ends(day[7:] for day in days),
    )


def _find_ends(pairs: Iterable[Sequence[datetime | None]]) -> timeline.Ends | None:
    moments = [moment for pair in pairs for moment in pair if moment is not None]
    return (min(moments), max(moments)) if moments else None


def _write_rows(
    con: duckdb.DuckDBPyConnection,
    key: bytes,
    feed: Feed,
    forms: Sequence[str],
    plan: feeds.RowPlan,
    path: Path,
) -> None:
    """The raw columns in the contract's order, with pseudonyms, and what later steps ask of the typed ones."""
    form_of = dict(zip(feed.delivered, forms, strict=True))
    values = {name: _value_sql(feed, name, form_of.get(name, "")) for name in feed.columns}
    personal = [name for name in feed.columns if feed.table.columns[name].pii]
    hidden = [
        *(f"{quote(name)} AS {column}" for name, column in _hidden_keys(feed, forms)),
        f"{timeline.known_sql(feed.outcomes)} AS {KNOWN}",
        *([f"{_misfit_sql(feed)} AS {MISFIT}"] if feed.has_times else []),
        *([f"{helpers} AS {HELPERS}"] if (helpers := _helpers_sql(feed)) else []),
    ]

    def write(rows: str) -> None:
        delivered = f"(SELECT {', '.join(['*', *plan.twins])} FROM ({plan.typed}))"
        rows, joins = f"(SELECT {', '.join(['*', *plan.beside])} FROM ({rows}))", ""
        for i, name in enumerate(personal):
            clear = contract.mend_sql(values[name], feed.table.columns[name])  # of one person, one pseudonym
            is_plain = name in feed.delivered and name not in feed.outcomes  # it needs nothing of what is derived
            _name_persons(con, delivered if is_plain else rows, clear, f"_persons{i}", key)
            joins += f" LEFT JOIN _persons{i} ON _persons{i}.clear = {clear}"
        shown = {**values, **{name: f"_persons{i}.pseudonym" for i, name in enumerate(personal)}}
        columns = [
            *(f"{value} AS {quote(name)}" for name, value in shown.items()),
            *(FILE, ROW, FAULT),
            *(TIMES if feed.has_times else ()),
            *hidden,
        ]
        rowfiles.write_rows(con, f"SELECT {', '.join(columns)} FROM {rows}{joins}", path)

    expressions.run_plan(plan.plan, feed.name, feed.source, write)


def _value_sql(feed: Feed, name: str, form: str) -> str:
    """A raw value. An outcome without a known_at is dropped: nobody could say when to use it. One that does not fit its
    type stays: known_at may be missing for that very reason, and clean must see it."""
    value = _coarse_sql(feed, name, form) if feed.table.columns[name].coarsen else contract.raw_name(name)
    if name not in feed.outcomes:
        return value
    is_misfit = "FALSE" if name in feed.source.derive else f"{quote(name)} IS NULL"
    return f"CASE WHEN known_at IS NOT NULL OR {is_misfit} THEN {value} END"


def _coarse_sql(feed: Feed, name: str, form: str) -> str:
    """A raw value of which nothing finer is left than the contract lets through. Of one that fits no type, nothing."""
    rule, raw, typed = feed.table.columns[name], contract.raw_name(name), quote(name)
    if form != "VARCHAR" or rule.type == "VARCHAR":
        return typed
    text = loading.text_sql(typed, rule.type)
    if rule.format:
        text = f"strftime({typed}, {literal(rule.format)})"
    return f"CASE WHEN {typed} IS NOT NULL THEN {text} WHEN {raw} IS NOT NULL THEN {literal(UNREADABLE)} END"


def _misfit_sql(feed: Feed) -> str:
    times = [name for name in feed.columns if feed.table.columns[name].type in ("DATE", "TIMESTAMP")]
    misfits = [f"({contract.raw_name(name)} IS NOT NULL AND {quote(name)} IS NULL)" for name in times]
    return f"(event_time IS NULL AND ({' OR '.join([f'{FAULT} IS NOT NULL', *misfits])}))"


def _helpers_sql(feed: Feed) -> str:
    """Has the expressions computed that make no column: what fails for a row must not depend on the other rows."""
    names = [name for name in feed.source.derive if name not in feed.table.columns]
    return " + ".join(f"CAST({quote(name)} IS NULL AS INTEGER)" for name in names)


def _name_persons(con: duckdb.DuckDBPyConnection, rows: str, clear: str, table: str, key: bytes) -> None:
    """Make a table of personal values and their pseudonyms."""
    persons = con.execute(f"SELECT DISTINCT {clear} FROM {rows} WHERE {clear} IS NOT NULL").fetchall()
    texts = [row[0] for row in persons]
    # Lists as parameters, not con.register: that would import pandas, 1.4 s of it.
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE {table} AS "
        "SELECT unnest($1::VARCHAR[]) AS clear, unnest($2::VARCHAR[]) AS pseudonym",
        [texts, [contract.make_pseudonym(text, key) for text in texts]],
    )


def _hidden_keys(feed: Feed, forms: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The key's columns of which two raw values may be one typed value: they are stored typed, too."""
    for name in feed.table.key:
        if (column := _key_column(feed, name, forms)) != quote(name):
            yield name, column


def _key_column(feed: Feed, name: str, forms: Sequence[str]) -> str:
    raw = dict(zip(feed.delivered, forms, strict=True))
    rule: Column | None = feed.table.columns.get(name)
    if name in TIMES or rule is None or rule.pii:
        return quote(name)
    is_plain = rule.type in PLAIN and not rule.text and rule.outside == "quarantine" and raw.get(name) == rule.type
    return quote(name) if is_plain else quote(f"{contract.HIDDEN}key {name}")
