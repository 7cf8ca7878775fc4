"""The sources of a run, and their typed tables in DuckDB."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb

from tasks.data import contract, expressions, rawtable, sqlcheck
from tasks.data.expressions import HIDDEN
from tasks.data.rawtable import Delivery
from tasks.data.sources import Fetched
from tasks.params import PLACE, TIMES, Params, Source, Table
from tasks.runtime import stage
from tasks.runtime.sql import quote

FILE, ROW = quote(f"{HIDDEN}file"), quote(f"{HIDDEN}row")  # where a row stood


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
        others = [name for name in self.columns if name not in self.outcomes]
        names = [*TIMES[: self.has_times], *others, *self.outcomes, *(PLACE if self.table.key else ())]
        return ", ".join(quote(name) for name in names)


class Reader:
    """The sources as typed tables in DuckDB. Each is read once, and only when it is first asked for."""

    def __init__(self, p: Params, feeds: dict[str, Feed]) -> None:
        self.con = stage.connect(p)
        self._feeds = feeds
        self.outlier: dict[str, str] = {}  # by table: why a row is an outlier in time, as SQL
        self.deliveries: dict[str, Delivery] = {}  # of the tables that have been read

    @contextmanager
    def open_table(self, feed: Feed) -> Iterator[duckdb.DuckDBPyConnection]:
        """The connection, with the feed's table and those above it. DuckDB's errors name the table."""
        try:
            for name in self._feeds:
                if name not in self.deliveries:
                    self._load(self._feeds[name])
                if name == feed.name:
                    break
            yield self.con
        except duckdb.Error as error:
            sqlcheck.raise_machine_error(error)
            raise ValueError(
                f"{feed.name} ({feed.source.address}) does not fit its params: DuckDB cannot compute its rows "
                f"({type(error).__name__}). Check sources.{feed.name} and contract.{feed.name}."
            ) from None

    def _load(self, feed: Feed) -> None:
        delivered = {name: column for name, column in feed.table.columns.items() if name not in feed.source.derive}
        try:
            delivery = rawtable.load_table(self.con, feed.fetched, feed.source, delivered, "_arrived")
        except ValueError as error:
            raise ValueError(f"{feed.name}: {error}") from None
        forms = dict(self.con.execute("SELECT column_name, column_type FROM (DESCRIBE _arrived)").fetchall())
        is_text = {name: forms[f"v{i}"] == "VARCHAR" for i, name in enumerate(delivered)}
        plan = expressions.plan_expressions(
            self.con, feed.name, feed.source, _typed_sql(feed, is_text), list(delivered)
        )
        expressions.create_table(self.con, plan, _raw_derived(feed, plan.kinds))
        self.con.execute("DROP TABLE _arrived")
        self.deliveries[feed.name] = delivery


def _typed_sql(feed: Feed, is_text: dict[str, bool]) -> str:
    """The delivered columns typed, each with its raw value beside it, and each row's place."""
    named = [f"v{i} AS {quote(name)}" for i, name in enumerate(is_text)]
    place = [f"file AS {FILE}", f"rowid - start + 1 AS {ROW}"]
    arrived = f"SELECT {', '.join([*named, *place])} FROM _arrived WHERE NOT blank"
    pairs = [
        f"{contract.typed_sql(name, feed.table.columns[name], text=text, decimal=feed.source.decimal)} "
        f"AS {quote(name)}, {quote(name)} AS {raw_name(name)}"
        for name, text in is_text.items()
    ]
    return f"SELECT {', '.join([*pairs, FILE, ROW])} FROM ({arrived})"


def raw_name(name: str) -> str:
    """The column beside a typed one that holds its value as it came."""
    return quote(f"{HIDDEN}raw {name}")


def _raw_derived(feed: Feed, kinds: dict[str, str]) -> list[str]:
    """The derived columns of the contract, in the form that raw values have."""
    columns = []
    for name in (name for name in feed.columns if name in feed.source.derive):
        wanted = feed.table.columns[name].type
        form = wanted if kinds[name] in rawtable.LOSSLESS[wanted] else "VARCHAR"
        columns.append(f"{rawtable.raw_sql(quote(name), kinds[name], wanted, form)} AS {raw_name(name)}")
    return columns
