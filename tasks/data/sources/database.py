"""database: postgresql://user@host/database, the rows of a query, as Parquet.

A query is read in one snapshot, in a transaction that can only read. With a `watermark`, a column that grows, only rows
at or above the last one less `overlap` are read, and take the place of those that were read of that stretch before.
Rows that change while their watermark does not, or that are deleted below it, are not seen. Another query, be it by a
comment, is read from the beginning. The order of rows is made here, so that the same rows are the same bytes.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data.sources import copies
from tasks.data.sources.download import Limit, retry
from tasks.data.sources.scheme import DeliveryError, PassingError
from tasks.params import Source
from tasks.params.source import PGPASSWORD, show_address
from tasks.runtime import sql

CONNECT_TIMEOUT_S = 10
OVERLAP, OVERLAP_STEPS = timedelta(hours=1), 1000  # of a watermark that is a time, and of one that is a number
MEMORY = "1GB"  # to order the rows, beyond which they spill to the folder of the copies
ORDERED = re.compile(r"\border\s+by\b", re.IGNORECASE)
NAME = re.compile(r'[\w."]+')
LOST = ("08", "40", "53", "57P")  # SQLSTATEs of what may pass; without one, as where nobody answers, it may too
SPEAKING = ("3D", "42", "28", "25", "0A")  # of errors whose text is about the query, and holds no value of a row
REFUSED = ("authentication failed", "does not exist", "no pg_hba.conf entry", "permission denied", "not permitted")
SOME_ROWS = 50_000  # of a row group
PLAIN = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    pa.types.is_string,
    pa.types.is_timestamp,
    pa.types.is_date,
    pa.types.is_time,
    pa.types.is_binary,
)
Mark = datetime | date | int  # the value of a watermark


class DatabaseQuery:
    """The rows of a query in PostgreSQL."""

    def fetch(self, address: str, source: Source) -> list[Path]:
        limit = Limit.begin(source.timeout, show_address(address))
        url = _make_url(address, source, limit)
        with copies.open_copies(address, source) as shelf:
            if source.watermark is None:
                part = shelf.part_of("rows")
                retry(lambda: _read(url, _select(source), part, limit), limit)
                _order(part, part, source, limit)
                return shelf.publish((shelf.keep(part, "rows.parquet", {}),))
            return _fetch_newer(shelf, url, source, limit)


def _fetch_newer(shelf: copies.Copies, url: str, source: Source, limit: Limit) -> list[Path]:
    """Two files: the rows below the stretch that is read again each time, and those of it."""
    before = shelf.read()
    last = _parse_mark(before.state["watermark"]) if before else None
    cut = None if last is None else _step_back(last, source)
    new = shelf.part_of("new")
    retry(lambda: _read(url, _select(source, cut), new, limit), limit)
    rows = [shelf.folder / copy.path for copy in before.copies] if before else []
    name = sql.quote(source.watermark or "")
    with _open_duckdb(shelf.part_of("spill")) as con:
        mark = f"CAST({name} AS {_mark_type(con, new, source)})"
        newest = con.execute(f"SELECT max({mark}) FROM {sql.parquet([new])}").fetchall()[0][0]
        top = max((one for one in (last, newest) if one is not None), default=None)
        if top is None:
            raise DeliveryError(f"{limit.address}: no row of its query has a watermark ({source.watermark})")
        border = _spell(_step_back(top, source))
        old = [] if cut is None else [f"SELECT * FROM {sql.parquet(rows)} WHERE {mark} < {_spell(cut)}"]
        every = " UNION ALL BY NAME ".join([*old, f"SELECT * FROM {sql.parquet([new])}"])
        columns = ", ".join(sql.quote(column) for column in pq.read_schema(new).names)
        delivered = []
        for file, where in (("settled", f"{mark} < {border}"), ("recent", f"coalesce({mark} >= {border}, TRUE)")):
            part = shelf.part_of(file)
            _copy(con, f"SELECT * FROM ({every}) WHERE {where} ORDER BY {mark}, {columns}", part)
            delivered.append(shelf.keep(part, f"{file}.parquet", {}))
    return shelf.publish(tuple(delivered), {"watermark": _format_mark(top)})


# --- what PostgreSQL is asked ----------------------------------------------------------------------------------------


def _make_url(address: str, source: Source, limit: Limit) -> str:
    """The address as libpq reads it, with the password. Raises ValueError where its variable is not set."""
    variable = source.password or PGPASSWORD
    password = os.environ.get(variable)
    if source.password and not password:
        raise ValueError(
            f"{source.shown}: its password is read from the environment variable {variable}, which is not set. Set it "
            "where the stage runs."
        )
    parts = urlsplit(address)
    user, _, host = parts.netloc.rpartition("@")
    who = f"{user}:{quote(password, safe='')}@" if user and password else f"{user}@" if user else ""
    milliseconds = max(int(limit.rest_s * 1000), 1)
    settings = rf"-c default_transaction_isolation=repeatable\ read -c statement_timeout={milliseconds}"
    options = {
        "connect_timeout": str(CONNECT_TIMEOUT_S),
        "application_name": "evergreen",
        "keepalives_idle": "10",
        "tcp_user_timeout": "30000",
        **dict(parse_qsl(parts.query)),
        "options": f"{settings} -c default_transaction_read_only=on -c timezone=UTC",
    }
    return f"postgresql://{who}{host}{parts.path}?{urlencode(options, quote_via=quote)}"


def _select(source: Source, cut: Mark | None = None) -> str:
    """The query, from a watermark on."""
    text = (source.query or "").strip().rstrip(";")
    query = f"SELECT * FROM {text}" if NAME.fullmatch(text) else text
    if cut is None:
        return f"{query}\n"  # its last line may be a comment
    name = sql.quote(source.watermark or "")
    return f"SELECT * FROM ({query}\n) AS _rows WHERE {name} >= {_spell(cut)} OR {name} IS NULL"


def _read(url: str, query: str, part: Path, limit: Limit) -> None:
    """Write the rows of a query to a Parquet file."""
    import adbc_driver_manager
    import adbc_driver_postgresql.dbapi as dbapi

    limit.check()
    try:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(contextlib.closing(dbapi.connect(url)))
            cursor = stack.enter_context(contextlib.closing(connection.cursor()))
            cursor.execute(query)
            reader = cursor.fetch_record_batch()
            schema = _find_schema(reader.schema, limit)
            writer = stack.enter_context(pq.ParquetWriter(part, schema, compression="zstd"))
            for batch in _read_batches(reader, limit):
                writer.write_batch(pa.record_batch([_plain(column) for column in batch.columns], schema))
    except adbc_driver_manager.Error as error:
        raise _explain(error, limit) from None


def _read_batches(reader: pa.RecordBatchReader, limit: Limit) -> Iterator[pa.RecordBatch]:
    while True:
        limit.check()
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except (OSError, pa.ArrowException) as error:  # the text of another error may show a value
            if "statement timeout" in str(error):
                raise DeliveryError(_late(limit)) from None
            if "FATAL:" in str(error) or "ERROR:" not in str(error):
                raise PassingError(f"{limit.address} was lost while its rows came") from None
            raise DeliveryError(
                f"{limit.address}: its query failed for a row. Run it by hand to see for which"
            ) from None
        yield batch


def _late(limit: Limit) -> str:
    return f"{limit.address} did not give its rows within its timeout. Raise the source's `timeout`, or ask for less"


def _explain(error: Any, limit: Limit) -> DeliveryError:
    """What a database's error means. Its text is shown where it speaks of the query or of who asks."""
    state = error.sqlstate or ""
    line = re.sub(r"^.*?(ERROR|FATAL): +", "", str(error).partition("\n")[0])
    if state == "57014":
        return DeliveryError(_late(limit))
    if state.startswith(SPEAKING) or (not state and any(text in line for text in REFUSED)):
        return DeliveryError(f"{limit.address}: {line}. Correct the address, `query`, `password` or what it may read")
    if not state or state.startswith(LOST):
        return PassingError(f"{limit.address} does not answer ({state or line})")
    return DeliveryError(f"{limit.address}: its query fails with SQLSTATE {state}. Run it by hand to see why")


def _find_schema(schema: pa.Schema, limit: Limit) -> pa.Schema:
    """The columns as Parquet has them. Raises DeliveryError for a type that would not be read as it is meant."""
    fields = []
    for field in schema:
        kind = field.type
        name = (field.metadata or {}).get(b"POSTGRESQL:type", b"").decode()
        if name in ("numeric", "json", "jsonb"):
            kind = kind.storage_type
        if name == "money" or not (name == "uuid" or any(fits(kind) for fits in PLAIN)):
            raise DeliveryError(
                f"{limit.address}: the column {field.name} is of type {name}, which has no place in a table. Cast it "
                f'in `query`, such as "{field.name}"::text, or leave it out'
            )
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def _plain(column: pa.Array) -> pa.Array:
    is_text = isinstance(column, pa.ExtensionArray) and pa.types.is_string(column.type.storage_type)
    return column.storage if is_text else column


# --- its copies ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_duckdb(spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    settings: Mapping[str, Any] = {"memory_limit": MEMORY, "temp_directory": str(spill), "threads": 2}
    with duckdb.connect(config=dict(settings)) as con:
        con.execute("SET TimeZone = 'UTC'")
        yield con


def _order(source: Path, target: Path, settings: Source, limit: Limit) -> None:
    """Put the rows in an order of their own, unless the query gives them one."""
    if pq.read_metadata(source).num_rows == 0:
        source.unlink()
        raise DeliveryError(f"{limit.address}: its query gives no rows")
    if not ORDERED.search(settings.query or ""):
        with _open_duckdb(target.with_name("spill")) as con:
            _copy(con, f"SELECT * FROM {sql.parquet([source])} ORDER BY ALL", target)


def _copy(con: duckdb.DuckDBPyConnection, query: str, target: Path) -> None:
    """Write the rows of a query. DuckDB's own writer gives the same rows other bytes, by where they were read."""
    new = target.with_name(f"{target.name}.ordered")
    reader = con.sql(query).to_arrow_reader(SOME_ROWS)
    schema = reader.schema.remove_metadata()
    rows = schema.empty_table()
    with pq.ParquetWriter(new, schema, compression="zstd") as writer:
        for batch in reader:
            rows = pa.concat_tables([rows, pa.table(batch.columns, schema)])
            while rows.num_rows >= SOME_ROWS:
                writer.write_table(rows.slice(0, SOME_ROWS).combine_chunks())
                rows = rows.slice(SOME_ROWS)
        writer.write_table(rows.combine_chunks())
    new.replace(target)


def _mark_type(con: duckdb.DuckDBPyConnection, file: Path, source: Source) -> str:
    """The type by which watermarks are compared. Raises ValueError for one that is no watermark."""
    kinds = {row[0]: str(row[1]) for row in con.execute(f"DESCRIBE FROM {sql.parquet([file])}").fetchall()}
    kind = kinds.get(source.watermark or "")
    rule = f"{source.shown}: watermark must be a column of the query, a time or a whole number"
    if kind is None:
        raise ValueError(f"{rule}, but {source.watermark} is not among {sorted(kinds)}")
    if kind not in ("TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "DATE", "SMALLINT", "INTEGER", "BIGINT"):
        raise ValueError(f"{rule}, but {source.watermark} is of type {kind}")
    is_number = kind in ("SMALLINT", "INTEGER", "BIGINT")
    if source.overlap is not None and is_number != isinstance(source.overlap, int):
        raise ValueError(
            f"{source.shown}: overlap must be a {'whole number' if is_number else 'length of time, such as 1h'}, as "
            f"{source.watermark} is of type {kind}"
        )
    return kind


def _step_back(mark: Mark, source: Source) -> Mark:
    """How far back of the newest watermark rows are read again: as late as they may come."""
    if isinstance(mark, int):
        return mark - (source.overlap if isinstance(source.overlap, int) else OVERLAP_STEPS)
    length = source.overlap if isinstance(source.overlap, timedelta) else OVERLAP
    if isinstance(mark, datetime):
        return mark - length
    return mark - timedelta(days=-(-length // timedelta(days=1)))  # whole days, upwards


def _spell(mark: Mark) -> str:
    """A watermark as SQL, which PostgreSQL and DuckDB read alike."""
    if isinstance(mark, int):
        return str(mark)
    if isinstance(mark, datetime):
        return f"TIMESTAMP{'TZ' if mark.tzinfo else ''} '{mark.isoformat(sep=' ')}'"
    return f"DATE '{mark.isoformat()}'"


def _format_mark(mark: Mark) -> str | int:
    return mark if isinstance(mark, int) else mark.isoformat()


def _parse_mark(text: Any) -> Mark:
    if isinstance(text, int):
        return text
    return datetime.fromisoformat(text) if "T" in text else date.fromisoformat(text)
