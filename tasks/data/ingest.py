"""ingest: the sources as they were known at `clock.as_of` → data/raw, Parquet by table and period.

    python -m tasks.data.ingest

Columns stay as the source has them (text for CSV), so that clean can say what was wrong with a value. Rows after as_of
are left out. An outcome that was not yet known at as_of is empty. Personal data gets pseudonyms before the first write.

Only periods that are new, or were still open at the last as_of, are worked on. A source with other bytes is read anew;
later stages do no work for its periods that come out as before.
"""

import contextlib
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from tasks import log
from tasks.data import (
    contract,
    feasibility,
    feeds,
    freshness,
    lateness,
    loading,
    manifest,
    periods,
    rawperiods,
    rowfiles,
    shrinkage,
    timeline,
    typedfiles,
)
from tasks.data.sources import fetch
from tasks.params import Params, to_utc
from tasks.params.source import READING
from tasks.runtime import stage
from tasks.runtime.threads import run_threads

NO_TIME = datetime(1970, 1, 1)  # "now" of a source whose rows all go to quarantine: a constant, for the same bytes


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
    _write_tables(p, reader, key_id, folder / p.paths.raw)


def _write_tables(p: Params, reader: feeds.Reader, key_id: str | None, raw: Path) -> None:
    con, spine = reader.con, p.spine.table
    tables = {name: typedfiles.type_files(reader, feed, threads=p.stage.threads) for name, feed in reader.feeds.items()}
    for table in tables.values():
        _check_lacking(table)
    reach = rawperiods.find_reach(reader, tables[spine], threads=p.stage.threads)
    outliers = {spine: timeline.outlier_sql(reach, typedfiles.KNOWN)}
    spans = {
        name: rawperiods.find_spans(con, table, p.ingest.period, reach if name == spine else None)
        for name, table in tables.items()
    }
    filled = {name: table.delivery.rows - table.delivery.empty for name, table in tables.items()}
    for name, source in p.sources.items():
        shrinkage.check_rows(name, source, filled[name])
    if reach is None and tables[spine].misfits:
        log.warning("no row of %s has an event time: all of them go to quarantine, with their reasons", spine)
        as_of = limit = to_utc(p.clock.as_of) if p.clock.as_of else NO_TIME
    else:
        as_of, limit = _choose_as_of(p, spans[spine], reach)
    shutil.rmtree(raw, ignore_errors=True)  # DVC has done so already; by hand, nothing of an older run may stay
    written, deliveries = dict[str, manifest.RawTable](), dict[str, lateness.Delivery]()
    for name, table in tables.items():
        written[name], contents = _write_table(p, con, table, spans[name], outliers.get(name), as_of, raw / name)
        if p.ingest.lateness is not None:
            identity = periods.hash_inputs(table.feed.identity, rawperiods.CODE)
            deliveries[name] = lateness.Delivery(identity=identity, reach=limit, periods=contents)
            lateness.check_periods(name, table.feed.source, deliveries[name], p.ingest.lateness)
    made = manifest.RawManifest(as_of=as_of, limit=limit, pii_key_id=key_id, tables=written)
    if reaches := freshness.describe_reach(made):
        log.info("what is known as of %s reaches: %s", as_of, reaches)
    made.write(raw)
    for name, source in p.sources.items():
        shrinkage.note_rows(name, source, filled[name])
    for name, delivery in deliveries.items():
        lateness.note_periods(name, p.sources[name], delivery)


def fetch_feeds(p: Params, key_id: str | None) -> dict[str, feeds.Feed]:
    """The sources, fetched. In the order of params.yaml: a table's expressions may use the tables above it."""
    fetched: dict[str, feeds.Feed] = {}
    for name, source in p.sources.items():
        table, above = p.contract[name], feeds.find_mentioned(source, fetched)
        columns = [(column, *rule.reading) for column, rule in table.columns.items()]
        others = [(other, fetched[other].identity, fetched[other].fetched.fingerprint) for other in above]
        settings = (source.model_dump(include=READING), columns, table.key)
        identity = periods.hash_inputs(name, *settings, key_id, others)
        fetched[name] = feeds.Feed(name, source, table, fetch.fetch_files(source.address, source), above, identity)
    return fetched


def _check_lacking(table: typedfiles.TypedTable) -> None:
    """Raises ValueError when a file lacks a required column; warns of any other column that it lacks. Says what is not
    read."""
    feed, names = table.feed, loading.name_files(table.feed.fetched)
    for index, columns in table.delivery.lacking.items():
        if required := [name for name in columns if feed.table.columns[name].required]:
            raise ValueError(
                f"{feed.name} ({feed.source.shown}): {names[index]} lacks the column {', '.join(required)}, which "
                f"contract.{feed.name} requires. Mend the file, take it out, or set `required: false`."
            )
        log.warning(
            "%s: %s lacks the column %s, which is missing in its rows", feed.name, names[index], ", ".join(columns)
        )
    if unread := table.delivery.unread:
        log.info("%s: not read, since the contract does not name them: %s", feed.name, ", ".join(unread))


def _choose_as_of(p: Params, spans: rawperiods.Spans, reach: timeline.Reach | None) -> tuple[datetime, datetime]:
    """as_of and the latest as_of that the spine's rows allow, to which the flows hold a person (runtime/clock.py).

    as_of is clock.as_of, else the newest moment of which the rows have news (data/timeline.py).

    Raises:
        ValueError: no row has an event time, or clock.as_of lies before every event.
    """
    table = p.spine.table
    starts = [span.first for name, span in spans.items() if name not in (periods.UNKNOWN, periods.OUTLIERS)]
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


def _write_table(
    p: Params,
    con: duckdb.DuckDBPyConnection,
    table: typedfiles.TypedTable,
    spans: rawperiods.Spans,
    outlier: str | None,
    as_of: datetime,
    folder: Path,
) -> tuple[manifest.RawTable, lateness.Contents]:
    """Put one table's periods in place. Returns what was written, and what became of the rows that were delivered; and
    what the periods hold, whatever of it was known at as_of, where `ingest.lateness` asks for it."""
    feed, delivery = table.feed, table.delivery
    turn = threading.Semaphore(max(p.stage.threads // 2, 1))
    contents: lateness.Contents = dict.fromkeys(spans)

    def write(period: str, span: rawperiods.Span) -> int:
        target = folder / f"{period}.parquet"
        # DuckDB sorts parts of a large period side by side: one for each thread would only take more memory.
        taking = turn if span.rows > rowfiles.GROUP_ROWS else contextlib.nullcontext()
        with taking, feeds.naming_table(feed), con.cursor() as cursor:
            rawperiods.provide_period(cursor, table, period, span, outlier, as_of, target)
            if p.ingest.lateness is not None:
                whole = rawperiods.select_period(table, period, span, outlier)
                contents[period] = lateness.measure_content(cursor, *whole)
        return int(pq.read_metadata(target).num_rows)

    there = {period: span for period, span in spans.items() if span.first <= as_of}
    works = [lambda period=period, span=span: write(period, span) for period, span in there.items()]
    rows = dict(zip(there, run_threads(works, p.stage.threads), strict=True))
    names, total = loading.name_files(feed.fetched), sum(rows.values())
    log.info("%s: %s rows in %s periods, as of %s", feed.name, f"{total:,}", len(rows), as_of)
    written = manifest.RawTable(
        address=feed.source.shown,
        fingerprint=feed.fetched.fingerprint,
        rows=total,
        periods=rows,
        files=names,
        read=delivery.rows,
        empty=delivery.empty,
        later=delivery.rows - delivery.empty - total,
        lacking={names[index]: columns for index, columns in delivery.lacking.items()},
        unread=delivery.unread,
        fallback=feed.fetched.fallback,
        newest=_find_newest(folder) if feed.has_times else None,
    )
    return written, contents


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


if __name__ == "__main__":
    stage.main("ingest", ingest, feasibility.warn)
