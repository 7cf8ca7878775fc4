"""feeds: the sources of a run, fetched, as typed tables in DuckDB, with what their expressions derive."""

import contextlib
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
from pydantic import TypeAdapter

from tasks.data import contract, expressions, loading, packing, periods, sqlcheck
from tasks.data.sources.fetch import Fetched
from tasks.params import PLACE, TIMES, Column, Params, Source, Table
from tasks.runtime import locks, stage
from tasks.runtime.sql import quote

FILE, ROW = quote(f"{contract.HIDDEN}file"), quote(f"{contract.HIDDEN}row")  # where a row stood
CODE = periods.hash_inputs(loading.CODE, periods.hash_code(__file__, contract.__file__, expressions.__file__))


@dataclass(frozen=True)
class Feed:
    """One table's source, fetched.

    Attributes:
        above: the tables above this one that its expressions may use.
        identity: the hash of everything that its rows are made of, apart from the bytes of its own files.
    """

    name: str
    source: Source
    table: Table
    fetched: Fetched
    above: tuple[str, ...]
    identity: str

    @property
    def delivered(self) -> dict[str, Column]:
        """The columns that the files bring."""
        return {name: rule for name, rule in self.table.columns.items() if name not in self.source.derive}

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
class RowPlan:
    """How the rows of a feed's `_arrived` are computed.

    Attributes:
        typed: SQL of the delivered columns, typed, with the raw values that differ.
        plan: the same with what is derived from them.
        twins: the raw values that are those of typed columns, as SQL: a column less to carry.
        beside: these, and the raw values of what is derived.
    """

    typed: str
    plan: expressions.Plan
    twins: list[str]
    beside: list[str]


ROW_PLAN = TypeAdapter(RowPlan)


class Reader:
    """The sources as typed tables in DuckDB. Each is read once, and only when it is first asked for."""

    def __init__(self, p: Params, feeds: dict[str, Feed], key: bytes) -> None:
        self.con, self.feeds, self.key = stage.connect(p), feeds, key
        self._loaded: set[str] = set()
        self._plans: dict[str, RowPlan] = {}
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def open_table(self, feed: Feed) -> Iterator[duckdb.DuckDBPyConnection]:
        """The connection, with the feed's table. DuckDB's errors name the table."""
        with naming_table(feed):
            self._load(feed)
            yield self.con

    def open_above(self, feed: Feed) -> None:
        """Have the tables in the database that the feed's expressions may use. Any thread may ask."""
        with self._lock:
            for name in feed.above:
                with self.open_table(self.feeds[name]):
                    pass

    def plan(self, feed: Feed, files: loading.SourceFiles) -> RowPlan:
        """How the rows of a feed's `_arrived` are computed.

        Any thread may ask. It has the tables in the database that the feed's expressions use.
        """
        with self._lock:
            if feed.name not in self._plans:
                self.open_above(feed)
                self._plans[feed.name] = self._find_plan(feed, files)
            return self._plans[feed.name]

    def _find_plan(self, feed: Feed, files: loading.SourceFiles) -> RowPlan:
        """The plan is in the cache too: to ask DuckDB for the type of each expression takes 0.1 s."""

        def make() -> Any:
            files.load(self.con, (), "_arrived")
            return asdict(plan_rows(self.con, feed, files.forms))

        return ROW_PLAN.validate_python(
            periods.remember(periods.hash_inputs("plan", feed.identity, files.forms, CODE), "plan.json", make)
        )

    def _load(self, feed: Feed) -> None:
        if feed.name in self._loaded:
            return
        with open_files(self.con, feed) as files:
            plan = self.plan(feed, files)
            files.load(self.con, range(len(files.names)), "_arrived")
        target = f"CREATE TABLE {quote(feed.name)} AS SELECT {', '.join(['*', *plan.beside])} FROM "
        expressions.run_plan(plan.plan, feed.name, feed.source, lambda rows: self.con.execute(f"{target}({rows})"))
        self.con.execute("DROP TABLE _arrived")
        self._loaded.add(feed.name)


@contextlib.contextmanager
def naming_table(feed: Feed) -> Iterator[None]:
    """DuckDB's errors name the table."""
    try:
        yield
    except duckdb.Error as error:
        sqlcheck.raise_machine_error(error)
        raise ValueError(
            f"{feed.name} ({feed.source.shown}) does not fit its params: DuckDB cannot compute its rows "
            f"({type(error).__name__}). Check sources.{feed.name} and contract.{feed.name}."
        ) from None


@contextlib.contextmanager
def open_files(con: duckdb.DuckDBPyConnection, feed: Feed) -> Iterator[loading.SourceFiles]:
    """A feed's files. What is unpacked is gone again at the end: it may hold personal data.

    Raises:
        ValueError: a file is torn or no table (with its name and the line), or no file has a column.
    """
    try:
        with locks.open_folder(packing.scratch_root()) as folder:
            yield loading.SourceFiles(con, feed.fetched, feed.source, feed.delivered, folder)
    except ValueError as error:
        raise ValueError(f"{feed.name}: {error}") from None


def find_mentioned(source: Source, tables: Iterable[str]) -> tuple[str, ...]:
    """Those of these tables whose name stands in one of a source's expressions."""
    text = "\n".join(step.expression for step in expressions.list_steps(source))
    return tuple(name for name in tables if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE))


def plan_rows(con: duckdb.DuckDBPyConnection, feed: Feed, forms: Sequence[str]) -> RowPlan:
    """How the rows of `_arrived` are computed."""
    clean = {
        name: contract.clean_sql(name, rule, kind=form, decimal=feed.source.decimal)
        for (name, rule), form in zip(feed.delivered.items(), forms, strict=True)
    }
    same = [name for name, value in clean.items() if value == quote(name) and name not in TIMES]
    twins = [f"{quote(name)} AS {contract.raw_name(name)}" for name in same]
    typed = _typed_sql(clean, same)
    plan = expressions.plan_expressions(con, feed.name, feed.source, typed, list(feed.delivered))
    beside = list(twins)
    for column in (column for column in feed.columns if column in feed.source.derive):
        kind, wanted = plan.kinds[column], feed.table.columns[column].type
        raw = loading.raw_sql(quote(column), kind, wanted, loading.choose_form({kind}, wanted))
        beside.append(f"{raw} AS {contract.raw_name(column)}")
    return RowPlan(typed, plan, twins, beside)


def _typed_sql(clean: dict[str, str], same: Sequence[str]) -> str:
    """The delivered columns typed, with the raw value of each that is not the same, and each row's place.

    Args:
        clean: SQL of each column's typed value.
    """
    columns = ", ".join(
        [
            *[f"v{i} AS {quote(name)}" for i, name in enumerate(clean)],
            f"file AS {FILE}",
            f"rowid - start + 1 AS {ROW}",
        ]
    )
    typed = [f"{value} AS {quote(name)}" for name, value in clean.items()]
    raw = [f"{quote(name)} AS {contract.raw_name(name)}" for name in clean if name not in same]
    return f"SELECT {', '.join([*typed, *raw, FILE, ROW])} FROM (SELECT {columns} FROM _arrived WHERE NOT blank)"
