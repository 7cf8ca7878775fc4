"""ingest: the sources as they were known at `clock.as_of` → data/raw, Parquet by table and period.

    python -m tasks.ingest

Columns stay as the source has them (text for CSV), so that clean can say what was wrong with a value. Rows after as_of
are left out; an outcome that was not yet known at as_of is empty; personal data is pseudonymised before the first
write. Only periods that are new, or were still open at the last as_of, are worked on.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import contract, periods, sources, stage
from tasks.contract import literal, quoted
from tasks.params import Params, Source, Table, in_utc
from tasks.sources import Fetched

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

log = logging.getLogger("evergreen")
CODE = periods.source_of(__file__, contract.__file__, sources.__file__)
TIMES = ("event_time", "known_at")


@dataclass(frozen=True)
class Feed:
    """One table's source, fetched, and `identity`: the hash of everything that its rows are made of."""

    name: str
    source: Source
    table: Table
    fetched: Fetched
    identity: str

    @property
    def timed(self) -> bool:
        return self.source.event_time is not None


class Reader:
    """The sources as typed tables in DuckDB, each read once and only when something new is asked of it."""

    def __init__(self, p: Params, feeds: dict[str, Feed], scratch: Path) -> None:
        import duckdb

        self.con = duckdb.connect(config={"threads": p.stage.threads, "memory_limit": p.stage.memory})
        self.con.execute("SET TimeZone = 'UTC'")
        self._feeds, self._scratch, self._open = feeds, scratch, set[str]()

    @contextmanager
    def reading(self, feed: Feed) -> Iterator["DuckDBPyConnection"]:
        """The connection, with the feed's table and those above it; DuckDB's errors name the table."""
        import duckdb

        try:
            for name in self._feeds:
                self._load(self._feeds[name])
                if name == feed.name:
                    break
            yield self.con
        except duckdb.Error as error:
            raise ValueError(f"{feed.name} ({feed.source.address}) does not fit its params: {error}") from None

    def _load(self, feed: Feed) -> None:
        if feed.name in self._open:
            return
        source, columns = feed.source, feed.table.columns
        present = sources.load(self.con, feed.fetched, "arrived", nulls=source.nulls, scratch=self._scratch)
        wanted = [each for each in columns if each not in source.derive and each not in TIMES]
        contract.check_columns(feed.name, present, wanted)
        self.con.execute(f"CREATE TEMP TABLE {quoted(feed.name)} AS {_typed_sql(feed, wanted)}")
        self.con.execute("DROP TABLE arrived")
        self._open.add(feed.name)


def ingest(p: Params, folder: Path = Path()) -> None:
    """Write <raw>/<table>/<period>.parquet and <raw>/manifest.json. Raises ValueError for a source that will not do."""
    key = contract.pii_key() if _has_pii(p) else b""
    _check_key(p, key)
    feeds = _fetch(p, contract.key_id(key))
    with tempfile.TemporaryDirectory() as scratch:
        reader = Reader(p, feeds, Path(scratch))
        spans = {name: _spans(reader, feed, p.ingest.period, key) for name, feed in feeds.items()}
        as_of = _as_of(p, spans[p.spine.table])
        raw = folder / p.paths.raw
        shutil.rmtree(raw, ignore_errors=True)  # DVC has done so already; by hand, nothing of an older run may stay
        tables = {name: _write(reader, feed, spans[name], as_of, raw / name, key) for name, feed in feeds.items()}
    _report(tables, as_of)
    key_id = contract.key_id(key) if key else None
    manifest = {"as_of": as_of.isoformat(), "pii_key_id": key_id, "tables": tables}
    periods.publish_json(raw / "manifest.json", manifest)


def _has_pii(p: Params) -> bool:
    return any(column.pii for table in p.contract.values() for column in table.columns.values())


def _check_key(p: Params, key: bytes) -> None:
    wanted = p.ingest.pii_key_id
    if wanted and wanted != contract.key_id(key):
        raise ValueError(
            f"ingest.pii_key_id is {wanted}, but the key at hand has the id {contract.key_id(key)}: pseudonyms would "
            "change. Set EVERGREEN_PII_KEY to the key of that id, or write the new id into params.yaml."
        )


def _fetch(p: Params, key_id: str) -> dict[str, Feed]:
    """In the order of params.yaml: a table's expressions may use the tables above it."""
    feeds: dict[str, Feed] = {}
    for name, source in p.sources.items():
        fetched, table = sources.fetch(source.address), p.contract[name]
        above = [each.identity for each in feeds.values()]
        parts = (fetched.fingerprint, source.model_dump(), table.model_dump(), p.ingest.period, key_id, above, CODE)
        feeds[name] = Feed(name, source, table, fetched, periods.key(*parts))
    return feeds


def _typed_sql(feed: Feed, wanted: list[str]) -> str:
    """The contract's columns typed, beside each its raw self; then the derived columns and the two times in turn."""
    pairs = ", ".join(
        f"{contract.typed(each, feed.table.columns[each])} AS {quoted(each)}, {quoted(each)} AS {quoted('raw ' + each)}"
        for each in wanted
    )
    sql = f"SELECT {pairs} FROM arrived"
    for name, expression in feed.source.derive.items():
        sql = f"SELECT *, ({expression}) AS {quoted(name)} FROM ({sql})"
    if feed.source.event_time:
        sql = f"SELECT *, CAST(({feed.source.event_time}) AS TIMESTAMP) AS event_time FROM ({sql})"
        sql = f"SELECT *, CAST(({feed.source.known_at or 'event_time'}) AS TIMESTAMP) AS known_at FROM ({sql})"
    return sql


def _spans(reader: Reader, feed: Feed, unit: str, key: bytes) -> dict[str, datetime]:
    """Each period of a feed with the newest time in it, be it an event's or the moment when an outcome was known.

    Once the source is open, all its periods go to the cache, later ones too: bytes seen before are never parsed again.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "spans.json"

        def measure(into: Path) -> None:
            with reader.reading(feed) as con:
                found = _measure(con, feed, unit)
            for period in found:
                _whole(reader, feed, period, key)
            (into / "spans.json").write_text(json.dumps(found))

        periods.cached(periods.key("spans", feed.identity), {target: "spans.json"}, measure)
        return {period: datetime.fromisoformat(last) for period, last in json.loads(target.read_text()).items()}


def _measure(con: "DuckDBPyConnection", feed: Feed, unit: str) -> dict[str, str]:
    if not feed.timed:
        return {periods.WHOLE: datetime.min.isoformat()}
    last = "max(greatest(event_time, coalesce(known_at, event_time)))"
    found = con.execute(f"SELECT date_trunc('{unit}', event_time), {last} FROM {quoted(feed.name)} GROUP BY 1").fetchall()
    if not found:
        raise ValueError(f"{feed.name} ({feed.source.address}) has no rows")
    names = {periods.holding(start, unit).name if start else periods.UNKNOWN: newest for start, newest in found}
    return {name: (newest or datetime.min).isoformat() for name, newest in sorted(names.items())}


def _as_of(p: Params, spans: dict[str, datetime]) -> datetime:
    """clock.as_of, else the newest event of the spine's table. Refused when it lies before every event."""
    dated = sorted(name for name in spans if name not in (periods.UNKNOWN, periods.WHOLE))
    if not dated:
        raise ValueError(f"no row of {p.spine.table} has an event time: check sources.{p.spine.table}.event_time")
    as_of = in_utc(p.clock.as_of) if p.clock.as_of else max(spans[name] for name in dated)
    if as_of <= periods.named(dated[0]).start:
        raise ValueError(f"clock.as_of {as_of} lies before any data: {p.spine.table} begins in {dated[0]}")
    return as_of


def _write(
    reader: Reader, feed: Feed, spans: dict[str, datetime], as_of: datetime, folder: Path, key: bytes
) -> dict[str, Any]:
    """Put one table's periods in place, and say what they hold."""
    rows = {}
    for period, newest in spans.items():
        if period not in (periods.WHOLE, periods.UNKNOWN) and periods.named(period).start > as_of:
            continue
        target = folder / f"{period}.parquet"
        _whole(reader, feed, period, key, target)
        if newest > as_of:
            _cut(reader.con, feed, period, as_of, target)
        rows[period] = _count(target)
    return {
        "address": feed.source.address,
        "fingerprint": feed.fetched.fingerprint,
        "rows": sum(rows.values()),
        "periods": rows,
    }


def _whole(reader: Reader, feed: Feed, period: str, key: bytes, *targets: Path) -> None:
    """A period with all that the source knows of it, as the pieces are that every as_of is cut from."""

    def make(into: Path) -> None:
        with reader.reading(feed) as con:
            _parquet(_rows(con, feed, period, key), into / "rows.parquet")

    periods.cached(periods.key("whole", feed.identity, period), dict.fromkeys(targets, "rows.parquet"), make)


def _cut(con: "DuckDBPyConnection", feed: Feed, period: str, as_of: datetime, target: Path) -> None:
    """Replace a period that as_of falls into, or whose outcomes were not all known by then, by what was known."""
    moment = f"TIMESTAMP {literal(str(as_of))}"
    later = [quoted(name) for name, column in feed.table.columns.items() if column.outcome] + ["known_at"]
    masked = ", ".join(f"CASE WHEN known_at <= {moment} THEN {name} END AS {name}" for name in later)

    def make(into: Path) -> None:
        whole = f"SELECT * REPLACE ({masked}) FROM read_parquet({literal(str(target))}) WHERE event_time <= {moment}"
        _parquet(con.sql(whole).to_arrow_table(), into / "rows.parquet")

    periods.cached(periods.key("cut", feed.identity, period, as_of), {target: "rows.parquet"}, make)


def _rows(con: "DuckDBPyConnection", feed: Feed, period: str, key: bytes) -> "pa.Table":
    """One period's rows: raw columns in the contract's order, pseudonymised, in a fixed order.

    An outcome without the time at which it was known is dropped: nobody could say when to use it.
    """
    where = _within(period) if feed.timed else "TRUE"
    con.execute(f"CREATE OR REPLACE TEMP TABLE chosen AS SELECT * FROM {quoted(feed.name)} WHERE {where}")
    columns, joins = [], ""
    for name, column in feed.table.columns.items():
        if name in TIMES:
            continue
        value = quoted(name if name in feed.source.derive else f"raw {name}")
        if column.pii:
            joins += _pseudonyms(con, name, value, key)
            value = f"{quoted('pii ' + name)}.pseudonym"
        if column.outcome and feed.timed:
            value = f"CASE WHEN known_at IS NOT NULL THEN {value} END"
        columns.append(f"{value} AS {quoted(name)}")
    order = [quoted(name) for name in feed.table.columns if name not in TIMES]
    if feed.timed:
        columns += TIMES
        order.insert(0, "event_time")
    return con.sql(f"SELECT {', '.join(columns)} FROM chosen{joins} ORDER BY {', '.join(order)}").to_arrow_table()


def _within(period: str) -> str:
    if period == periods.UNKNOWN:
        return "event_time IS NULL"
    span = periods.named(period)
    return f"event_time >= TIMESTAMP {literal(str(span.start))} AND event_time < TIMESTAMP {literal(str(span.end))}"


def _pseudonyms(con: "DuckDBPyConnection", name: str, value: str, key: bytes) -> str:
    """Make a table of this period's values and their pseudonyms; returns the join that uses it."""
    found = con.execute(f"SELECT DISTINCT CAST({value} AS VARCHAR) FROM chosen WHERE {value} IS NOT NULL").fetchall()
    clear = [row[0] for row in found]
    hidden = [contract.pseudonym(each, key) for each in clear]
    table = quoted(f"pii {name}")
    # Lists as parameters, not con.register: that would import pandas, 1.4 s of it.
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT unnest($1::VARCHAR[]) AS clear, unnest($2::VARCHAR[]) AS pseudonym",
        [clear, hidden],
    )
    return f" LEFT JOIN {table} ON {table}.clear = CAST({value} AS VARCHAR)"


def _parquet(table: "pa.Table", path: Path) -> None:
    """Written by one thread with nothing of today in it: the same rows give the same bytes."""
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd")


def _count(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _report(tables: dict[str, dict[str, Any]], as_of: datetime) -> None:
    for name, table in tables.items():
        log.info("%s: %s rows in %s periods, as of %s", name, f"{table['rows']:,}", len(table["periods"]), as_of)


if __name__ == "__main__":
    stage.main("ingest", ingest)
