"""ingest: the sources as they were known at `clock.as_of` → data/raw, Parquet by table and period.

    python -m tasks.data.ingest

Columns stay as the source has them (text for CSV), so that clean can say what was wrong with a value. Rows after as_of
are left out; an outcome that was not yet known at as_of is empty; personal data is pseudonymised before the first
write. Only periods that are new, or were still open at the last as_of, are worked on; a source with other bytes is
read anew, and its periods that came out as they were cost the later stages nothing.
"""

import json
import shutil
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import log
from tasks.data import (
    cache,
    contract,
    csvfile,
    expressions,
    feasibility,
    feeds,
    periods,
    rawtable,
    sources,
    timeline,
    timezones,
)
from tasks.data.feeds import FILE, ROW, Feed, Reader, _raw
from tasks.data.manifest import RawManifest, RawTable
from tasks.data.timeline import Reach
from tasks.params import FAULT, PLACE, TIMES, Params, to_utc
from tasks.runtime import files, sql, stage
from tasks.runtime.sql import literal, parquet, quote

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

NO_TIME = datetime(1970, 1, 1)  # "now" of a source whose rows all go to quarantine, and in the same bytes each time
MODULES = (contract, csvfile, expressions, feeds, rawtable, sources, sql, timeline, timezones)
CODE = cache.hash_code(*map(str, (__file__, *(module.__file__ for module in MODULES))))
Spans = dict[
    str, tuple[datetime, datetime]
]  # by period: when its first row is there, and the newest moment that it tells of


def ingest(p: Params, folder: Path = Path()) -> None:
    """Write <raw>/<table>/<period>.parquet and <raw>/manifest.json. Raises ValueError for a source that will not do."""
    key = contract.load_pii_key() if _has_pii(p) else b""
    key_id = contract.identify_key(key) if key else None
    _check_key(p, key_id)
    feeds = _fetch(p, key_id)
    reader = Reader(p, feeds)
    reach = _survey(reader, feeds[p.spine.table])
    spans, arrived = {}, {}
    for name, feed in feeds.items():
        spans[name], arrived[name] = _spans(reader, feed, p.ingest.period, key)
    if reach is None and arrived[p.spine.table]["misfits"]:
        log.warning("no row of %s has an event time: all of them go to quarantine, with their reasons", p.spine.table)
        as_of = limit = to_utc(p.clock.as_of) if p.clock.as_of else NO_TIME
    else:
        as_of, limit = _as_of(p, spans[p.spine.table], reach)
    raw = folder / p.paths.raw
    shutil.rmtree(raw, ignore_errors=True)  # DVC has done so already; by hand, nothing of an older run may stay
    tables = {}
    for name, feed in feeds.items():
        rows = _write(reader, feed, spans[name], as_of, raw / name, key)
        log.info("%s: %s rows in %s periods, as of %s", name, f"{sum(rows.values()):,}", len(rows), as_of)
        tables[name] = _describe_table(feed, rows, arrived[name])
    RawManifest(as_of=as_of, limit=limit, pii_key_id=key_id, tables=tables).write(raw)


def _has_pii(p: Params) -> bool:
    return any(column.pii for table in p.contract.values() for column in table.columns.values())


def _check_key(p: Params, key_id: str | None) -> None:
    wanted = p.ingest.pii_key_id
    if wanted and key_id and wanted != key_id:
        raise ValueError(
            f"ingest.pii_key_id is {wanted}, but the key at hand has the id {key_id}: pseudonyms would change. "
            "Set EVERGREEN_PII_KEY to the key of that id, or write the new id into params.yaml."
        )


def _fetch(p: Params, key_id: str | None) -> dict[str, Feed]:
    """In the order of params.yaml: a table's expressions may use the tables above it."""
    feeds: dict[str, Feed] = {}
    for name, source in p.sources.items():
        fetched, table = sources.fetch_files(source.address), p.contract[name]
        columns = [(each, column.type, column.pii, column.outcome) for each, column in table.columns.items()]
        above = [feed.identity for feed in feeds.values()]
        said = source.model_dump(exclude={"address"})
        parts = (name, fetched.fingerprint, said, columns, table.key, p.ingest.period, key_id, above, CODE)
        feeds[name] = Feed(name, source, table, fetched, cache.hash_inputs(*parts))
    return feeds


def _places(con: "DuckDBPyConnection", feed: Feed) -> list[str]:
    """Rows of `_chosen` keep their place where their key comes twice in their period: clean decides by it.

    Other rows' bytes do not tell where in a file they stood, so that a source may grow or shrink at its beginning.
    """
    if not feed.table.key:
        return []
    names = [quote(name) for name in feed.table.key]
    doubled = f"SELECT {', '.join(names)} FROM _chosen GROUP BY ALL HAVING count(*) > 1"
    con.execute(f"CREATE OR REPLACE TEMP TABLE _doubled AS {doubled}")
    if not con.execute("SELECT count(*) FROM _doubled").fetchall()[0][0]:
        return [f"CAST(NULL AS INTEGER) AS {PLACE[0]}", f"CAST(NULL AS BIGINT) AS {PLACE[1]}"]
    same = " AND ".join(f"_doubled.{name} = _chosen.{name}" for name in names)  # a missing key equals none
    twice = f"EXISTS (FROM _doubled WHERE {same})"
    return [f"CASE WHEN {twice} THEN {column} END AS {name}" for column, name in zip((FILE, ROW), PLACE, strict=True)]


def _survey(reader: Reader, feed: Feed) -> Reach | None:
    """How far the spine's rows reach in time. From now on its outliers go to quarantine, and into no other period."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "reach.json"

        def measure(into: Path) -> None:
            with reader.reading(feed) as con:
                found = timeline.measure_reach(con, feed.name, feed.outcomes)
            files.publish_text(into / "reach.json", timeline.to_json(found))

        cache.provide(cache.hash_inputs("reach", feed.identity), {target: "reach.json"}, measure)
        reach = timeline.from_json(target.read_text())
    reader.outlier[feed.name] = timeline.outlier_sql(reach, feed.outcomes)
    return reach


def _spans(reader: Reader, feed: Feed, unit: str, key: bytes) -> tuple[Spans, dict[str, Any]]:
    """Each period of a feed with the times in it, be they an event's or the moment when an outcome was known; and what
    its files held.

    Once the source is open, all its periods go to the cache, later ones too: bytes seen before are never parsed again.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "spans.json"

        def measure(into: Path) -> None:
            with reader.reading(feed) as con:
                found = _measure(con, feed, unit, reader.outlier.get(feed.name))
            for period in found:
                _whole(reader, feed, period, key)
                misfits = _misfits(con, feed)
            arrived = {**asdict(reader.deliveries[feed.name]), "misfits": misfits}
            files.publish_json(into / "spans.json", {"spans": found, "delivery": arrived})

        surveyed = feed.name in reader.outlier
        cache.provide(cache.hash_inputs("spans", feed.identity, surveyed), {target: "spans.json"}, measure)
        found = json.loads(target.read_text())
    _check_lacking(feed, found["delivery"]["lacking"])
    spans = {
        period: (datetime.fromisoformat(first), datetime.fromisoformat(last))
        for period, (first, last) in found["spans"].items()
    }
    return spans, found["delivery"]


def _misfits(con: "DuckDBPyConnection", feed: Feed) -> bool:
    """Whether a row has no event time since one of its values is no time, or cannot be made one."""
    if not feed.timed:
        return False
    times = [name for name in feed.columns if feed.table.columns[name].type in ("DATE", "TIMESTAMP")]
    odd = [f"({_raw(name)} IS NOT NULL AND {quote(name)} IS NULL)" for name in times]
    where = " OR ".join([f"{FAULT} IS NOT NULL", *odd])
    sql = f"SELECT count(*) FROM {quote(feed.name)} WHERE event_time IS NULL AND ({where})"
    return bool(con.execute(sql).fetchall()[0][0])


def _check_lacking(feed: Feed, lacking: dict[str, list[str]]) -> None:
    """Raises ValueError when a file lacks a column that is required; tells of any other one that it lacks."""
    names = rawtable.name_files(feed.fetched)
    for index, columns in lacking.items():
        file = names[int(index)]
        if required := [name for name in columns if feed.table.columns[name].required]:
            raise ValueError(
                f"{feed.name} ({feed.source.address}): {file} lacks the column {', '.join(required)}, which "
                f"contract.{feed.name} requires. Mend the file, take it out, or set `required: false`."
            )
        log.warning("%s: %s lacks the column %s, which is missing in its rows", feed.name, file, ", ".join(columns))


def _measure(con: "DuckDBPyConnection", feed: Feed, unit: str, outlier: str | None) -> dict[str, tuple[str, str]]:
    there = "event_time" if feed.outcomes else "greatest(event_time, known_at)"
    span = f"min({there}), max(greatest(event_time, known_at))" if feed.timed else "NULL, NULL"
    start = f"date_trunc('{unit}', event_time)" if feed.timed else f"'{periods.WHOLE}'"
    where = f"({outlier}) IS NULL" if outlier else "TRUE"
    found = con.execute(f"SELECT {start}, {span} FROM {quote(feed.name)} WHERE {where} GROUP BY 1").fetchall()
    if not found:
        raise ValueError(f"{feed.name} ({feed.source.address}) has no rows")
    never = datetime.min.isoformat()
    spans = {_period(start, unit): (str(first or never), str(last or never)) for start, first, last in found}
    if outlier and con.execute(f"SELECT count(*) FROM {quote(feed.name)} WHERE NOT ({where})").fetchall()[0][0]:
        spans[periods.OUTLIERS] = (never, never)
    return dict(sorted(spans.items()))


def _period(start: datetime | str | None, unit: str) -> str:
    if isinstance(start, datetime):
        return periods.period_at(start, unit).name
    return start or periods.UNKNOWN


def _as_of(p: Params, spans: Spans, reach: Reach | None) -> tuple[datetime, datetime]:
    """clock.as_of, else the newest moment of which the spine's table tells (data/timeline.py); and the latest as_of
    that its rows allow, to which the flows hold a person (runtime/clock.py). Refused when before every event."""
    table = p.spine.table
    dated = [times for name, times in spans.items() if name not in (periods.UNKNOWN, periods.OUTLIERS)]
    if not dated or reach is None:
        raise ValueError(f"no row of {table} has an event time: check sources.{table}.event_time")
    first = min(each for each, _ in dated)
    told: dict[str, Any] = {"deadline": p.label.deadline, "today": datetime.now(UTC).replace(tzinfo=None)}
    now, limit = reach.now(**told), reach.limit(**told)
    as_of = to_utc(p.clock.as_of) if p.clock.as_of else now
    if as_of < first:
        raise ValueError(
            f"clock.as_of {as_of} lies before any data: {table} begins at {first}. Set a later clock.as_of."
        )
    if as_of <= limit:
        return as_of, limit
    log.warning(
        "clock.as_of is %s, but the rows of %s end at %s: bring newer data, or set clock.as_of", as_of, table, now
    )
    return now if p.clock.step else as_of, limit  # with a step history is lived through, and it ends there


def _write(reader: Reader, feed: Feed, spans: Spans, as_of: datetime, folder: Path, key: bytes) -> dict[str, int]:
    """Put one table's periods in place. Returns the rows of each."""
    rows = {}
    for period, (first, newest) in spans.items():
        if first > as_of:
            continue
        target = folder / f"{period}.parquet"
        _whole(reader, feed, period, key, target)
        if newest > as_of:
            _cut(reader.con, feed, period, as_of, target)
        rows[period] = _count(target)
    return rows


def _describe_table(feed: Feed, periods: dict[str, int], arrived: dict[str, Any]) -> RawTable:
    names, rows = rawtable.name_files(feed.fetched), sum(periods.values())
    return RawTable(
        address=feed.source.address,
        fingerprint=feed.fetched.fingerprint,
        rows=rows,
        periods=periods,
        files=names,
        read=arrived["rows"],
        empty=arrived["empty"],
        later=arrived["rows"] - arrived["empty"] - rows,
        lacking={names[int(index)]: columns for index, columns in arrived["lacking"].items()},
    )


def _whole(reader: Reader, feed: Feed, period: str, key: bytes, *targets: Path) -> None:
    """A period with all that the source knows of it: the pieces that every as_of is cut from."""

    def make(into: Path) -> None:
        with reader.reading(feed) as con:
            _parquet(_rows(con, feed, period, key, reader.outlier.get(feed.name)), into / "rows.parquet")

    surveyed = feed.name in reader.outlier
    cache.provide(
        cache.hash_inputs("whole", feed.identity, period, surveyed), dict.fromkeys(targets, "rows.parquet"), make
    )


def _cut(con: "DuckDBPyConnection", feed: Feed, period: str, as_of: datetime, target: Path) -> None:
    """Replace a period that as_of falls into, or whose outcomes were not all known by then, by what was known."""

    def make(into: Path) -> None:
        _parquet(con.sql(_known_sql(feed, as_of, target)).to_arrow_table(), into / "rows.parquet")

    cache.provide(cache.hash_inputs("cut", feed.identity, period, as_of), {target: "rows.parquet"}, make)


def _known_sql(feed: Feed, as_of: datetime, whole: Path) -> str:
    """A row is there from its event on, its outcomes from known_at on; a table without outcomes is there from known_at.

    A row without an event time stays: nobody could say when it came, and clean puts it aside.
    """
    moment = f"TIMESTAMP {literal(str(as_of))}"
    later = [quote(name) for name in [*feed.outcomes, "known_at"]]
    masked = ", ".join(f"CASE WHEN known_at <= {moment} THEN {name} END AS {name}" for name in later)
    there = f"coalesce(event_time <= {moment}, TRUE)"
    if not feed.outcomes:
        there += f" AND coalesce(known_at <= {moment}, TRUE)"
    return f"SELECT * REPLACE ({masked}) FROM {parquet([whole])} WHERE {there} ORDER BY {feed.order}"


def _rows(con: "DuckDBPyConnection", feed: Feed, period: str, key: bytes, outlier: str | None) -> "pa.Table":
    """One period's rows: raw columns in the contract's order, pseudonymised, in a fixed order."""
    where = _within(period, outlier) if feed.timed else "TRUE"
    con.execute(f"CREATE OR REPLACE TEMP TABLE _chosen AS SELECT * FROM {quote(feed.name)} WHERE {where}")
    columns, joins = [], ""
    for name in feed.columns:
        value = _value(feed, name)
        if feed.table.columns[name].pii:
            joins += _pseudonyms(con, name, value, key)
            value = f"{quote('pii ' + name)}.pseudonym"
        columns.append(f"{value} AS {quote(name)}")
    columns += [*_places(con, feed), FAULT, *(TIMES if feed.timed else ())]
    if period == periods.OUTLIERS:
        columns.append(f"{outlier} AS {timeline.OUTLIER}")
    return con.sql(f"SELECT {', '.join(columns)} FROM _chosen{joins} ORDER BY {feed.order}").to_arrow_table()


def _value(feed: Feed, name: str) -> str:
    """An outcome without the time at which it was known is dropped: nobody could say when to use it.

    One that does not fit its type stays: the time may be missing for that very reason, and clean is to hear of it.
    """
    value, odd = _raw(name), "FALSE" if name in feed.source.derive else f"{quote(name)} IS NULL"
    return f"CASE WHEN known_at IS NOT NULL OR {odd} THEN {value} END" if name in feed.outcomes else value


def _within(period: str, outlier: str | None) -> str:
    if period == periods.OUTLIERS:
        return f"({outlier}) IS NOT NULL"
    usual = f" AND ({outlier}) IS NULL" if outlier else ""
    if period == periods.UNKNOWN:
        return f"event_time IS NULL{usual}"
    span = periods.parse_name(period)
    start, end = (f"TIMESTAMP {literal(str(moment))}" for moment in (span.start, span.end))
    return f"event_time >= {start} AND event_time < {end}{usual}"


def _pseudonyms(con: "DuckDBPyConnection", name: str, value: str, key: bytes) -> str:
    """Make a table of this period's values and their pseudonyms; returns the join that uses it."""
    found = con.execute(f"SELECT DISTINCT CAST({value} AS VARCHAR) FROM _chosen WHERE {value} IS NOT NULL").fetchall()
    clear = [row[0] for row in found]
    hidden = [contract.make_pseudonym(each, key) for each in clear]
    table = quote(f"pii {name}")
    # Lists as parameters, not con.register: that would import pandas, 1.4 s of it.
    lists = "unnest($1::VARCHAR[]) AS clear, unnest($2::VARCHAR[]) AS pseudonym"
    con.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT {lists}", [clear, hidden])
    return f" LEFT JOIN {table} ON {table}.clear = CAST({value} AS VARCHAR)"


def _parquet(table: "pa.Table", path: Path) -> None:
    """Written by one thread with nothing of today in it: the same rows give the same bytes."""
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd")


def _count(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


if __name__ == "__main__":
    stage.main("ingest", feasibility.warn_after(ingest))
