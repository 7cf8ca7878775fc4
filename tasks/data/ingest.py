"""ingest: the sources as they were known at `clock.as_of` → data/raw, Parquet by table and period.

    python -m tasks.data.ingest

Columns stay as the source has them (text for CSV), so that clean can say what was wrong with a value. Rows after as_of
are left out. An outcome that was not yet known at as_of is empty. Personal data gets pseudonyms before the first write.

Only periods that are new, or were still open at the last as_of, are worked on. A source with other bytes is read anew;
later stages do no work for its periods that come out as before.
"""

import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from tasks import log
from tasks.data import (
    contract,
    csvtext,
    expressions,
    feasibility,
    feeds,
    freshness,
    jsonlines,
    manifest,
    packing,
    periods,
    shrinkage,
    timeline,
)
from tasks.data.sources import fetch
from tasks.params import FAULT, PLACE, TIMES, Params, to_utc
from tasks.params.source import READING
from tasks.runtime import sql, stage
from tasks.runtime.sql import parquet, quote, time_sql

NO_TIME = datetime(1970, 1, 1)  # "now" of a source whose rows all go to quarantine: a constant, for the same bytes
CODE = periods.hash_code(
    __file__,
    contract.__file__,
    csvtext.__file__,
    expressions.__file__,
    feeds.__file__,
    jsonlines.__file__,
    packing.__file__,
    sql.__file__,
    timeline.__file__,
)
REACH = TypeAdapter[timeline.Reach | None](timeline.Reach | None)
# By period: when its first row is there, and the newest moment of which it has news.
Spans = dict[str, tuple[datetime, datetime]]


def ingest(p: Params, folder: Path = Path()) -> None:
    """Write <raw>/<table>/<period>.parquet and <raw>/manifest.json.

    Raises:
        ValueError: a source is missing, cannot be read, has lost rows, or does not fit params.yaml.
    """
    has_pii = any(column.pii for table in p.contract.values() for column in table.columns.values())
    key = contract.load_pii_key() if has_pii else b""
    key_id = contract.identify_key(key) if key else None
    if p.ingest.pii_key_id and key_id and p.ingest.pii_key_id != key_id:
        raise ValueError(
            f"ingest.pii_key_id is {p.ingest.pii_key_id}, but the key at hand has the id {key_id}: pseudonyms would "
            "change. Set EVERGREEN_PII_KEY to the key of that id, or write the new id into params.yaml."
        )
    reader = feeds.Reader(p, fetch_feeds(p, key_id), key)
    reach = _find_reach(reader, reader.feeds[p.spine.table])
    spans, deliveries = {}, {}
    for name, feed in reader.feeds.items():
        spans[name], deliveries[name] = _find_spans(reader, feed, p.ingest.period)
    filled = {name: delivery["rows"] - delivery["empty"] for name, delivery in deliveries.items()}
    for name, source in p.sources.items():
        shrinkage.check_rows(name, source, filled[name])
    if reach is None and deliveries[p.spine.table]["misfits"]:
        log.warning("no row of %s has an event time: all of them go to quarantine, with their reasons", p.spine.table)
        as_of = limit = to_utc(p.clock.as_of) if p.clock.as_of else NO_TIME
    else:
        as_of, limit = _choose_as_of(p, spans[p.spine.table], reach)
    raw = folder / p.paths.raw
    shutil.rmtree(raw, ignore_errors=True)  # DVC has done so already; by hand, nothing of an older run may stay
    tables = {
        name: _write_table(reader, feed, spans[name], as_of, raw / name, deliveries[name])
        for name, feed in reader.feeds.items()
    }
    made = manifest.RawManifest(as_of=as_of, limit=limit, pii_key_id=key_id, tables=tables)
    if reaches := freshness.describe_reach(made):
        log.info("what is known as of %s reaches: %s", as_of, reaches)
    made.write(raw)
    for name, source in p.sources.items():
        shrinkage.note_rows(name, source, filled[name])


def fetch_feeds(p: Params, key_id: str | None) -> dict[str, feeds.Feed]:
    """The sources, fetched. In the order of params.yaml: a table's expressions may use the tables above it."""
    fetched_feeds: dict[str, feeds.Feed] = {}
    for name, source in p.sources.items():
        fetched, table = fetch.fetch_files(source.address, source), p.contract[name]
        columns = [(column, *rule.reading) for column, rule in table.columns.items()]
        settings = (source.model_dump(include=READING), columns, table.key, p.ingest.period)
        identity = periods.hash_inputs(
            name, fetched.fingerprint, *settings, key_id, [feed.identity for feed in fetched_feeds.values()], CODE
        )
        fetched_feeds[name] = feeds.Feed(name, source, table, fetched, identity)
    return fetched_feeds


# --- what the sources hold -----------------------------------------------------------------------------------------


def _find_reach(reader: feeds.Reader, feed: feeds.Feed) -> timeline.Reach | None:
    """How far the spine's rows reach in time. From now on its outliers go to quarantine, and into no other period."""

    def measure() -> Any:
        with reader.open_table(feed) as con:
            return REACH.dump_python(timeline.measure_reach(con, feed.name, feed.outcomes), mode="json")

    reach = REACH.validate_python(periods.remember(periods.hash_inputs("reach", feed.identity), "reach.json", measure))
    reader.outlier[feed.name] = timeline.outlier_sql(reach, feed.outcomes)
    return reach


def _find_spans(reader: feeds.Reader, feed: feeds.Feed, unit: str) -> tuple[Spans, dict[str, Any]]:
    """The span of each period, and what the files held.

    Once the source is open, all its periods go to the cache, later ones too: the same bytes are never parsed again.
    """

    def measure() -> Any:
        with reader.open_table(feed) as con:
            spans = _measure_spans(con, feed, unit, reader.outlier.get(feed.name))
            for period in spans:
                _provide_period(reader, feed, period)
            misfits = feed.has_times and _has_misfits(con, feed)
            return {"spans": spans, "delivery": {**asdict(reader.deliveries[feed.name]), "misfits": misfits}}

    content = periods.remember(
        periods.hash_inputs("spans", feed.identity, feed.name in reader.outlier), "spans.json", measure
    )
    _check_lacking(feed, content["delivery"]["lacking"])
    if unread := content["delivery"]["unread"]:
        log.info("%s: not read, since the contract does not name them: %s", feed.name, ", ".join(unread))
    moments = {period: map(datetime.fromisoformat, span) for period, span in content["spans"].items()}
    return {period: (first, last) for period, (first, last) in moments.items()}, content["delivery"]


def _has_misfits(con: duckdb.DuckDBPyConnection, feed: feeds.Feed) -> bool:
    """Whether a row has no event time because one of its values is no time, or cannot be made one."""
    times = [name for name in feed.columns if feed.table.columns[name].type in ("DATE", "TIMESTAMP")]
    misfits = [f"({feeds.raw_name(name)} IS NOT NULL AND {quote(name)} IS NULL)" for name in times]
    where = " OR ".join([f"{FAULT} IS NOT NULL", *misfits])
    return _count(con, f"{quote(feed.name)} WHERE event_time IS NULL AND ({where})") > 0


def _count(con: duckdb.DuckDBPyConnection, rows: str) -> int:
    return int(con.execute(f"SELECT count(*) FROM {rows}").fetchall()[0][0])


def _check_lacking(feed: feeds.Feed, lacking: dict[str, list[str]]) -> None:
    """Raises ValueError when a file lacks a required column; warns of any other column that it lacks."""
    names = feeds.name_files(feed.fetched)
    for index, columns in lacking.items():
        file = names[int(index)]
        if required := [name for name in columns if feed.table.columns[name].required]:
            raise ValueError(
                f"{feed.name} ({feed.source.shown}): {file} lacks the column {', '.join(required)}, which "
                f"contract.{feed.name} requires. Mend the file, take it out, or set `required: false`."
            )
        log.warning("%s: %s lacks the column %s, which is missing in its rows", feed.name, file, ", ".join(columns))


def _measure_spans(
    con: duckdb.DuckDBPyConnection, feed: feeds.Feed, unit: str, outlier: str | None
) -> dict[str, tuple[str, str]]:
    arrival = "event_time" if feed.outcomes else "greatest(event_time, known_at)"
    span = f"min({arrival}), max(greatest(event_time, known_at))" if feed.has_times else "NULL, NULL"
    start = f"date_trunc('{unit}', event_time)" if feed.has_times else f"'{periods.WHOLE}'"
    where = f"({outlier}) IS NULL" if outlier else "TRUE"
    rows = con.execute(f"SELECT {start}, {span} FROM {quote(feed.name)} WHERE {where} GROUP BY 1").fetchall()
    if not rows:
        raise ValueError(f"{feed.name} ({feed.source.shown}) has no rows")
    never, spans = datetime.min.isoformat(), {}
    for start, first, last in rows:
        period = periods.period_at(start, unit).name if isinstance(start, datetime) else start or periods.UNKNOWN
        spans[period] = (str(first or never), str(last or never))
    if outlier and _count(con, f"{quote(feed.name)} WHERE NOT ({where})"):
        spans[periods.OUTLIERS] = (never, never)
    return dict(sorted(spans.items()))


def _choose_as_of(p: Params, spans: Spans, reach: timeline.Reach | None) -> tuple[datetime, datetime]:
    """as_of and the latest as_of that the spine's rows allow, to which the flows hold a person (runtime/clock.py).

    as_of is clock.as_of, else the newest moment of which the rows have news (data/timeline.py).

    Raises:
        ValueError: no row has an event time, or clock.as_of lies before every event.
    """
    table = p.spine.table
    starts = [first for name, (first, _) in spans.items() if name not in (periods.UNKNOWN, periods.OUTLIERS)]
    if not starts or reach is None:
        raise ValueError(f"no row of {table} has an event time: check sources.{table}.event_time")
    today = datetime.now(UTC).replace(tzinfo=None)
    now, limit = (find(deadline=p.label.deadline, today=today) for find in (reach.now, reach.limit))
    as_of = to_utc(p.clock.as_of) if p.clock.as_of else now
    if as_of < min(starts):
        raise ValueError(
            f"clock.as_of {as_of} lies before any data: {table} begins at {min(starts)}. Set a later clock.as_of."
        )
    if as_of <= limit:
        return as_of, limit
    log.warning(
        "clock.as_of is %s, but the rows of %s end at %s: bring newer data, or set clock.as_of", as_of, table, now
    )
    return now if p.clock.step else as_of, limit  # with a step, history is lived through up to its end


# --- what is written -----------------------------------------------------------------------------------------------


def _write_table(
    reader: feeds.Reader, feed: feeds.Feed, spans: Spans, as_of: datetime, folder: Path, delivery: dict[str, Any]
) -> manifest.RawTable:
    """Put one table's periods in place. Returns what was written, and what became of the rows that were delivered."""
    rows = {}
    for period, (first, newest) in spans.items():
        if first > as_of:
            continue
        target = folder / f"{period}.parquet"
        _provide_period(reader, feed, period, target)
        if newest > as_of:
            _cut_period(reader.con, feed, period, as_of, target)
        rows[period] = pq.read_metadata(target).num_rows
    names, total = feeds.name_files(feed.fetched), sum(rows.values())
    log.info("%s: %s rows in %s periods, as of %s", feed.name, f"{total:,}", len(rows), as_of)
    return manifest.RawTable(
        address=feed.source.shown,
        fingerprint=feed.fetched.fingerprint,
        rows=total,
        periods=rows,
        files=names,
        read=delivery["rows"],
        empty=delivery["empty"],
        later=delivery["rows"] - delivery["empty"] - total,
        lacking={names[int(index)]: columns for index, columns in delivery["lacking"].items()},
        unread=delivery["unread"],
        fallback=feed.fetched.fallback,
        newest=_find_newest(folder) if feed.has_times else None,
    )


def _find_newest(folder: Path) -> datetime | None:
    """The newest event of a table's usual periods, by what their files say of their columns."""
    for _, path in reversed(list(periods.list_files(folder))):
        groups = pq.read_metadata(path)
        place = pq.read_schema(path).names.index("event_time")
        ends = [groups.row_group(i).column(place).statistics.max for i in range(groups.num_row_groups)]
        if known := [end for end in ends if end is not None]:
            newest: datetime = max(known)
            return newest
    return None


def _provide_period(reader: feeds.Reader, feed: feeds.Feed, period: str, *targets: Path) -> None:
    """A period with all that the source has of it: every as_of is cut from it."""

    def make(into: Path) -> None:
        with reader.open_table(feed):
            pq.write_table(_select_period(reader, feed, period), into / "rows.parquet", compression="zstd")

    periods.provide(
        periods.hash_inputs("whole", feed.identity, period, feed.name in reader.outlier),
        dict.fromkeys(targets, "rows.parquet"),
        make,
    )


def _cut_period(con: duckdb.DuckDBPyConnection, feed: feeds.Feed, period: str, as_of: datetime, target: Path) -> None:
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
        pq.write_table(con.sql(query).to_arrow_table(), into / "rows.parquet", compression="zstd")

    periods.provide(periods.hash_inputs("cut", feed.identity, period, as_of), {target: "rows.parquet"}, make)


def _select_period(reader: feeds.Reader, feed: feeds.Feed, period: str) -> pa.Table:
    """One period's rows: raw columns in the contract's order, with pseudonyms, in a fixed order."""
    con, outlier = reader.con, reader.outlier.get(feed.name)
    where = _period_sql(period, outlier) if feed.has_times else "TRUE"
    con.execute(f"CREATE OR REPLACE TEMP TABLE _chosen AS SELECT * FROM {quote(feed.name)} WHERE {where}")
    columns, joins = [], ""
    for name in feed.columns:
        value = feeds.raw_name(name)
        if name in feed.outcomes:
            # An outcome without a known_at is dropped: nobody could say when to use it. One that does not fit its type
            # stays: known_at may be missing for that very reason, and clean must see it.
            is_misfit = "FALSE" if name in feed.source.derive else f"{quote(name)} IS NULL"
            value = f"CASE WHEN known_at IS NOT NULL OR {is_misfit} THEN {value} END"
        if feed.table.columns[name].pii:
            value = contract.mend_sql(value, feed.table.columns[name])  # of one person, one pseudonym
            joins += _join_pseudonyms(con, name, value, reader.key)
            value = f"{quote('pii ' + name)}.pseudonym"
        columns.append(f"{value} AS {quote(name)}")
    columns += [*_place_columns(con, feed), FAULT, *(TIMES if feed.has_times else ())]
    if period == periods.OUTLIERS:
        columns.append(f"{outlier} AS {timeline.OUTLIER}")
    return con.sql(f"SELECT {', '.join(columns)} FROM _chosen{joins} ORDER BY {feed.order}").to_arrow_table()


def _period_sql(period: str, outlier: str | None) -> str:
    if period == periods.OUTLIERS:
        return f"({outlier}) IS NOT NULL"
    usual = f" AND ({outlier}) IS NULL" if outlier else ""
    if period == periods.UNKNOWN:
        return f"event_time IS NULL{usual}"
    span = periods.parse_name(period)
    return f"event_time >= {time_sql(span.start)} AND event_time < {time_sql(span.end)}{usual}"


def _join_pseudonyms(con: duckdb.DuckDBPyConnection, name: str, value: str, key: bytes) -> str:
    """Make a table of this period's values and their pseudonyms. Returns the join that uses it."""
    values = con.execute(f"SELECT DISTINCT CAST({value} AS VARCHAR) FROM _chosen WHERE {value} IS NOT NULL").fetchall()
    clear = [row[0] for row in values]
    table = quote(f"pii {name}")
    # Lists as parameters, not con.register: that would import pandas, 1.4 s of it.
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE {table} AS "
        "SELECT unnest($1::VARCHAR[]) AS clear, unnest($2::VARCHAR[]) AS pseudonym",
        [clear, [contract.make_pseudonym(text, key) for text in clear]],
    )
    return f" LEFT JOIN {table} ON {table}.clear = CAST({value} AS VARCHAR)"


def _place_columns(con: duckdb.DuckDBPyConnection, feed: feeds.Feed) -> list[str]:
    """The place of the rows of `_chosen` whose key comes twice in their period: clean decides by it.

    Other rows have none, so that their bytes stay the same when a source grows or shrinks at its beginning.
    """
    if not feed.table.key:
        return []
    names = [quote(name) for name in feed.table.key]
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE _doubled AS "
        f"SELECT {', '.join(names)} FROM _chosen GROUP BY ALL HAVING count(*) > 1"
    )
    if not _count(con, "_doubled"):
        return [f"CAST(NULL AS INTEGER) AS {PLACE[0]}", f"CAST(NULL AS BIGINT) AS {PLACE[1]}"]
    same = " AND ".join(f"_doubled.{name} = _chosen.{name}" for name in names)  # a missing key equals none
    twice = f"EXISTS (FROM _doubled WHERE {same})"
    return [
        f"CASE WHEN {twice} THEN {column} END AS {name}"
        for column, name in zip((feeds.FILE, feeds.ROW), PLACE, strict=True)
    ]


if __name__ == "__main__":
    stage.main("ingest", ingest, feasibility.warn)
