"""rawperiods: a source's typed files → its rows by period, in a fixed order, as clean reads them.

A period is made of the files that have rows in it. So a file with late rows makes just their periods anew.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from pydantic import TypeAdapter

from tasks.data import periods, rowfiles, timeline, typedfiles
from tasks.data.contract import HIDDEN
from tasks.data.feeds import FILE, ROW, Feed, Reader
from tasks.data.typedfiles import KNOWN, Day, TypedFile, TypedTable
from tasks.params import FAULT, PLACE, TIMES
from tasks.runtime.sql import quote, time_sql
from tasks.runtime.threads import run_threads

CODE = periods.hash_inputs(typedfiles.CODE, periods.hash_code(__file__))
USUAL = quote(f"{HIDDEN}usual")  # whether a row is no outlier in time
NEVER = datetime.min  # the moment of a period whose rows are there from the beginning


@dataclass(frozen=True)
class Span:
    """What a table has of a period.

    Attributes:
        first: when its first row is there.
        newest: the newest moment of which it has news.
        rows: how many.
        places: of the typed files that have rows in it.
        is_mixed: whether rows of its time are outliers, which it does not hold.
    """

    first: datetime
    newest: datetime
    rows: int
    places: tuple[int, ...]
    is_mixed: bool


Spans = dict[str, Span]


@dataclass(frozen=True)
class Part:
    """What a file has of a period. `usual`: its rows that are no outliers in time, of which the moments are."""

    period: str
    usual: int
    rows: int
    first: datetime
    newest: datetime


PARTS = TypeAdapter(list[Part])


def find_reach(reader: Reader, table: TypedTable, *, threads: int) -> timeline.Reach | None:
    """How far a table's rows reach in time. None where none has an event time."""

    def provide(place: int) -> timeline.Seen:
        def make(into: Path) -> None:
            with reader.con.cursor() as con:
                seen = timeline.measure_moments(con, table.rows_sql([place]), KNOWN)
            np.save(into / "moments.npy", seen.pack())

        entry = periods.hash_inputs("moments", table.files[place].entry, CODE)
        return timeline.Seen.unpack(np.load(periods.find_file(entry, "moments.npy", make)))

    works = [lambda place=place: provide(place) for place in range(len(table.files))]
    return timeline.join_reach(run_threads(works, threads))


def find_spans(
    con: duckdb.DuckDBPyConnection, table: TypedTable, unit: str, reach: timeline.Reach | None = None
) -> Spans:
    """A table's periods in order. Rows that lie far beyond `reach` are outliers.

    Raises:
        ValueError: the source has no rows.
    """
    feed, spans, apart, outliers = table.feed, dict[str, Span](), list[int](), 0
    for place, file in enumerate(table.files):
        is_mixed = timeline.has_outliers(reach, file.contents.events, file.contents.known)
        for part in _split_parts(con, table, place, unit, reach) if is_mixed else _join_days(feed, file, unit):
            if part.usual < part.rows:
                apart.append(place)
                outliers += part.rows - part.usual
            spans[part.period] = _add_file(spans.get(part.period), place, part)
    if not spans:
        raise ValueError(f"{feed.name} ({feed.source.shown}) has no rows")
    if apart:
        spans[periods.OUTLIERS] = Span(NEVER, NEVER, outliers, tuple(sorted(set(apart))), True)
    return {name: spans[name] for name in sorted(spans) if spans[name].places}


def _join_days(feed: Feed, file: TypedFile, unit: str) -> Iterator[Part]:
    """Of a file without outliers."""
    days = dict[str, list[Day]]()
    for day in file.contents.days:
        days.setdefault(_name_period(feed, day.start, unit), []).append(day)
    for name, of_period in days.items():
        rows = sum(day.rows for day in of_period)
        first, newest = min(day.first or NEVER for day in of_period), max(day.newest or NEVER for day in of_period)
        yield Part(name, rows, rows, first, newest)


def _split_parts(
    con: duckdb.DuckDBPyConnection, table: TypedTable, place: int, unit: str, reach: timeline.Reach | None
) -> list[Part]:
    outlier = timeline.outlier_sql(reach, KNOWN)

    def measure() -> Any:
        arrival = "event_time" if table.feed.outcomes else "greatest(event_time, known_at)"
        rows = con.execute(
            f"SELECT date_trunc('{unit}', event_time), count(*) FILTER ({USUAL}), count(*), "
            f"min({arrival}) FILTER ({USUAL}), max(greatest(event_time, known_at)) FILTER ({USUAL}) "
            f"FROM (SELECT *, ({outlier}) IS NULL AS {USUAL} FROM {table.rows_sql([place])}) GROUP BY 1 ORDER BY 1"
        ).fetchall()
        parts = [
            Part(_name_period(table.feed, start, unit), usual, count, first or NEVER, newest or NEVER)
            for start, usual, count, first, newest in rows
        ]
        return PARTS.dump_python(parts, mode="json")

    entry = periods.hash_inputs("parts", table.files[place].entry, unit, outlier, CODE)
    return PARTS.validate_python(periods.remember(entry, "parts.json", measure))


def _name_period(feed: Feed, start: datetime | None, unit: str) -> str:
    if not feed.has_times:
        return periods.WHOLE
    return periods.period_at(start, unit).name if start else periods.UNKNOWN


def _add_file(span: Span | None, place: int, part: Part) -> Span:
    is_mixed = part.usual < part.rows or bool(span and span.is_mixed)
    if not part.usual:
        return replace(span, is_mixed=True) if span else Span(part.first, part.newest, 0, (), True)
    if span is None or not span.places:
        return Span(part.first, part.newest, part.usual, (place,), is_mixed)
    first, newest = min(span.first, part.first), max(span.newest, part.newest)
    return Span(first, newest, span.rows + part.usual, (*span.places, place), is_mixed)


def provide_period(
    con: duckdb.DuckDBPyConnection,
    table: TypedTable,
    period: str,
    span: Span,
    outlier: str | None,
    as_of: datetime,
    target: Path,
) -> None:
    """Put a period in place: all that the source has of it or, where it has news after as_of, what was known then."""
    where = _period_sql(table.feed, period, outlier if span.is_mixed else None)
    cut = as_of if span.newest > as_of else None
    files = [table.files[place] for place in span.places]
    entry = periods.hash_inputs("period", [file.entry for file in files], period, where, cut, CODE)

    def write(into: Path, firsts: Sequence[int] = ()) -> None:
        query = _period_query(table, period, span, where, outlier, firsts)
        query = query if cut is None else _known_query(table.feed, query, cut)
        rowfiles.write_rows(con, f"SELECT * FROM ({query}) ORDER BY {table.feed.order}", into / "rows.parquet")

    def make(into: Path) -> None:
        has_doubles = _find_doubles(con, table, span.places, where)
        (into / "doubles.json").write_text(json.dumps(has_doubles))
        if has_doubles:
            (into / "rows.parquet").touch()  # whose place depends on more than this entry
        else:
            write(into)

    def make_with_places(into: Path) -> None:
        _find_doubles(con, table, span.places, where)
        write(into, [file.first for file in files])

    periods.provide(entry, {target: "rows.parquet"}, make)
    if periods.read_json(entry, "doubles.json", make):
        entry = periods.hash_inputs(entry, [file.first for file in files])
        periods.provide(entry, {target: "rows.parquet"}, make_with_places)


def select_period(table: TypedTable, period: str, span: Span, outlier: str | None) -> tuple[str, str]:
    """All that the source has of a period, without the rows' places, as SQL, and the hash of all that it is made of."""
    where = _period_sql(table.feed, period, outlier if span.is_mixed else None)
    query = _period_query(table, period, span, where, outlier, ())
    return periods.hash_inputs("whole", [table.files[place].entry for place in span.places], period, where, CODE), query


def _known_query(feed: Feed, rows: str, as_of: datetime) -> str:
    """What was known at as_of of a query's rows.

    A row is there from its event on, its outcomes from known_at on; a table without outcomes is there from known_at.
    A row without an event time stays: nobody could say when it came, and clean puts it aside.
    """
    moment = time_sql(as_of)
    later = [quote(name) for name in [*feed.outcomes, "known_at"]]
    masked = ", ".join(f"CASE WHEN known_at <= {moment} THEN {name} END AS {name}" for name in later)
    where = f"coalesce(event_time <= {moment}, TRUE)"
    if not feed.outcomes:
        where += f" AND coalesce(known_at <= {moment}, TRUE)"
    return f"SELECT * REPLACE ({masked}) FROM ({rows}) WHERE {where}"


def _period_sql(feed: Feed, period: str, outlier: str | None) -> str:
    if not feed.has_times:
        return "TRUE"
    if period == periods.OUTLIERS:
        return f"({outlier}) IS NOT NULL"
    usual = f" AND ({outlier}) IS NULL" if outlier else ""
    if period == periods.UNKNOWN:
        return f"event_time IS NULL{usual}"
    span = periods.parse_name(period)
    return f"event_time >= {time_sql(span.start)} AND event_time < {time_sql(span.end)}{usual}"


def _find_doubles(con: duckdb.DuckDBPyConnection, table: TypedTable, places: Sequence[int], where: str) -> bool:
    """Make a table of the keys that come twice in a period. Returns whether there are any."""
    if not table.keys:
        return False
    keys = ", ".join(f"{column} AS k{i}" for i, column in enumerate(table.keys))
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE _doubled AS SELECT {keys} FROM {table.rows_sql(places)} WHERE {where} "
        "GROUP BY ALL HAVING count(*) > 1"
    )
    return bool(con.execute("SELECT count(*) FROM _doubled").fetchall()[0][0])


def _period_query(
    table: TypedTable, period: str, span: Span, where: str, outlier: str | None, firsts: Sequence[int]
) -> str:
    """The raw columns in the contract's order, with pseudonyms."""
    feed = table.feed
    columns = [*map(quote, feed.columns), *_place_columns(table, firsts), FAULT, *(TIMES if feed.has_times else ())]
    if period == periods.OUTLIERS:
        columns.append(f"{outlier} AS {timeline.OUTLIER}")
    return f"SELECT {', '.join(columns)} FROM {table.rows_sql(span.places)} AS _rows WHERE {where}"


def _place_columns(table: TypedTable, firsts: Sequence[int]) -> list[str]:
    """The place of the rows whose key comes twice in their period: clean decides by it.

    Other rows have none, so that their bytes stay the same when a source grows or shrinks at its beginning.
    """
    if not table.keys:
        return []
    if not firsts:
        return [f"CAST(NULL AS INTEGER) AS {PLACE[0]}", f"CAST(NULL AS BIGINT) AS {PLACE[1]}"]
    same = " AND ".join(f"k{i} = _rows.{column}" for i, column in enumerate(table.keys))  # a missing key equals none
    twice = f"EXISTS (FROM _doubled WHERE {same})"
    file = f"CAST(list_extract([{', '.join(map(str, firsts))}], CAST(file_index + 1 AS BIGINT)) + {FILE} AS INTEGER)"
    return [f"CASE WHEN {twice} THEN {value} END AS {name}" for value, name in zip((file, ROW), PLACE, strict=True)]
