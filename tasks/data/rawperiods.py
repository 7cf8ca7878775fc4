"""rawperiods: a source's typed files → its rows by period, in a fixed order, as clean reads them.

A period is made of the files that have rows in it. So a file with late rows makes just their periods anew.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
from pydantic import TypeAdapter

from tasks.data import periods, rowfiles, timeline, typedfiles
from tasks.data.contract import HIDDEN
from tasks.data.feeds import FILE, ROW, Feed
from tasks.data.typedfiles import KNOWN, TypedTable
from tasks.params import FAULT, PLACE, TIMES
from tasks.runtime.sql import parquet, quote, time_sql

CODE = periods.hash_inputs(typedfiles.CODE, periods.hash_code(__file__))
USUAL = quote(f"{HIDDEN}usual")  # whether a row is no outlier in time
NEVER = datetime.min  # the moment of a period whose rows are there from the beginning
REACH = TypeAdapter[timeline.Reach | None](timeline.Reach | None)


@dataclass(frozen=True)
class Span:
    """What a table has of a period.

    Attributes:
        first: when its first row is there.
        newest: the newest moment of which it has news.
        places: of the typed files that have rows in it.
        is_mixed: whether rows of its time are outliers, which it does not hold.
    """

    first: datetime
    newest: datetime
    places: tuple[int, ...]
    is_mixed: bool


Spans = dict[str, Span]
SPANS = TypeAdapter[Spans](Spans)


def find_reach(con: duckdb.DuckDBPyConnection, table: TypedTable) -> timeline.Reach | None:
    """How far a table's rows reach in time. None where none has an event time."""
    entry = periods.hash_inputs("reach", [file.entry for file in table.files], CODE)
    measure = lambda: REACH.dump_python(timeline.measure_reach(con, table.rows_sql(), KNOWN), mode="json")  # noqa: E731
    return REACH.validate_python(periods.remember(entry, "reach.json", measure))


def find_spans(con: duckdb.DuckDBPyConnection, table: TypedTable, unit: str, outlier: str | None) -> Spans:
    """A table's periods in order. `outlier`, SQL, says why a row is one (`timeline.outlier_sql`).

    Raises:
        ValueError: the source has no rows.
    """
    entry = periods.hash_inputs("spans", [file.entry for file in table.files], unit, outlier, CODE)
    measure = lambda: SPANS.dump_python(_measure_spans(con, table, unit, outlier), mode="json")  # noqa: E731
    return SPANS.validate_python(periods.remember(entry, "spans.json", measure))


def _measure_spans(con: duckdb.DuckDBPyConnection, table: TypedTable, unit: str, outlier: str | None) -> Spans:
    feed = table.feed
    arrival = "event_time" if feed.outcomes else "greatest(event_time, known_at)"
    ends = (f"min({arrival}) FILTER ({USUAL})", f"max(greatest(event_time, known_at)) FILTER ({USUAL})")
    first, newest = ends if feed.has_times else ("NULL", "NULL")
    start = f"date_trunc('{unit}', event_time)" if feed.has_times else f"'{periods.WHOLE}'"
    usual = f"({outlier}) IS NULL" if outlier else "TRUE"
    rows = con.execute(
        f"SELECT {start}, file_index, count(*) FILTER ({USUAL}), count(*), {first}, {newest} "
        f"FROM (SELECT *, file_index, {usual} AS {USUAL} FROM {table.rows_sql()}) "
        "GROUP BY 1, 2 ORDER BY 2"
    ).fetchall()
    if not rows:
        raise ValueError(f"{feed.name} ({feed.source.shown}) has no rows")
    spans, apart = dict[str, Span](), list[int]()
    for start, place, rest, count, first, newest in rows:
        if rest < count:
            apart.append(place)
        name = periods.period_at(start, unit).name if isinstance(start, datetime) else start or periods.UNKNOWN
        spans[name] = _add_file(spans.get(name), place, bool(rest), rest < count, first or NEVER, newest or NEVER)
    if apart:
        spans[periods.OUTLIERS] = Span(NEVER, NEVER, tuple(sorted(set(apart))), True)
    return {name: spans[name] for name in sorted(spans) if spans[name].places}


def _add_file(span: Span | None, place: int, has_rows: bool, is_mixed: bool, first: datetime, newest: datetime) -> Span:
    places = (place,) if has_rows else ()
    if span is None or not span.places:
        return Span(first, newest, places, is_mixed or bool(span and span.is_mixed))
    if not has_rows:
        first, newest = span.first, span.newest
    return Span(min(span.first, first), max(span.newest, newest), (*span.places, *places), span.is_mixed or is_mixed)


def provide_period(
    con: duckdb.DuckDBPyConnection, table: TypedTable, period: str, span: Span, outlier: str | None, target: Path
) -> str:
    """Put a period in place with all that the source has of it: every as_of is cut from it. Returns its entry."""
    where = _period_sql(table.feed, period, outlier if span.is_mixed else None)
    files = [table.files[place] for place in span.places]
    entry = periods.hash_inputs("period", [file.entry for file in files], period, where, CODE)

    def make(into: Path) -> None:
        has_doubles = _find_doubles(con, table, span.places, where)
        (into / "doubles.json").write_text(json.dumps(has_doubles))
        if has_doubles:
            (into / "rows.parquet").touch()  # whose place depends on more than this entry
        else:
            _write_period(con, table, period, span, where, outlier, into)

    def make_with_places(into: Path) -> None:
        _find_doubles(con, table, span.places, where)
        _write_period(con, table, period, span, where, outlier, into, firsts=[file.first for file in files])

    periods.provide(entry, {target: "rows.parquet"}, make)
    if periods.read_json(entry, "doubles.json", make):
        entry = periods.hash_inputs(entry, [file.first for file in files])
        periods.provide(entry, {target: "rows.parquet"}, make_with_places)
    return entry


def cut_period(con: duckdb.DuckDBPyConnection, feed: Feed, entry: str, as_of: datetime, target: Path) -> None:
    """Replace a period that as_of falls into, or that had outcomes to come, by what was known at as_of.

    A row is there from its event on, its outcomes from known_at on; a table without outcomes is there from known_at.
    A row without an event time stays: nobody could say when it came, and clean puts it aside.
    """
    moment = time_sql(as_of)
    later = [quote(name) for name in [*feed.outcomes, "known_at"]]
    masked = ", ".join(f"CASE WHEN known_at <= {moment} THEN {name} END AS {name}" for name in later)
    where = f"coalesce(event_time <= {moment}, TRUE)"
    if not feed.outcomes:
        where += f" AND coalesce(known_at <= {moment}, TRUE)"
    query = f"SELECT * REPLACE ({masked}) FROM {parquet([target])} WHERE {where} ORDER BY {feed.order}"

    def make(into: Path) -> None:
        rowfiles.write_rows(con, query, into / "rows.parquet")

    periods.provide(periods.hash_inputs("cut", entry, as_of), {target: "rows.parquet"}, make)


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


def _write_period(
    con: duckdb.DuckDBPyConnection,
    table: TypedTable,
    period: str,
    span: Span,
    where: str,
    outlier: str | None,
    into: Path,
    *,
    firsts: Sequence[int] = (),
) -> None:
    """The raw columns in the contract's order, with pseudonyms, in a fixed order."""
    feed = table.feed
    columns = [*map(quote, feed.columns), *_place_columns(table, firsts), FAULT, *(TIMES if feed.has_times else ())]
    if period == periods.OUTLIERS:
        columns.append(f"{outlier} AS {timeline.OUTLIER}")
    query = (
        f"SELECT {', '.join(columns)} FROM {table.rows_sql(span.places)} AS _rows WHERE {where} ORDER BY {feed.order}"
    )
    rowfiles.write_rows(con, query, into / "rows.parquet")


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
