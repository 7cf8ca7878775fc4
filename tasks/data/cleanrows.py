"""cleanrows: one period's rows, typed and held against the rules → the good ones, and those that go to quarantine.

Each row is computed once, and a row group of them is in memory at a time. First come rules that look into other tables,
by themselves: DuckDB makes joins of them, which mix up the rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.data import arrays, contract, periods, rowfiles, units
from tasks.data.arrays import Flags
from tasks.data.quality import Counts
from tasks.params import PLACE, Table
from tasks.runtime.sql import parquet, quote

ROW = quote(f"{contract.HIDDEN}place")  # of a row in the period's file, from 0
CODE = periods.hash_code(__file__, arrays.__file__, rowfiles.__file__, units.__file__)
DELETES, LOSES = quote(f"{contract.HIDDEN}deletes"), quote(f"{contract.HIDDEN}loses")
LOSER, WINNER = quote(f"{contract.HIDDEN}loser"), quote(f"{contract.HIDDEN}winner")  # of a key: place, file and row
NUMBERS = ("INTEGER", "BIGINT", "DOUBLE")


@dataclass(frozen=True)
class PeriodFile:
    """A period's file of data/raw, and what it is held against.

    Attributes:
        typed: each column as SQL in the contract's type.
        rules: over the typed columns and the raw ones (`contract.raw_name`).
        superseded: why a row goes that another one of its key supersedes, as SQL over WINNER, a struct of file and
            row; None where no key comes twice.
        deleted: whether a row says that the one of its key is gone, as SQL over the typed columns.
    """

    path: Path
    table: Table
    typed: dict[str, str]
    rules: tuple[contract.Rule, ...]
    superseded: str | None
    deleted: str = "FALSE"

    @cached_property
    def columns(self) -> list[str]:
        return list(pq.read_schema(self.path).names)

    def bad_sql(self, i: int) -> str:
        """Whether a row breaks a rule. A row that deletes another one needs its key alone."""
        rule = self.rules[i]
        column = rule.name.split(":")[0]
        if self.deleted == "FALSE" or column not in self.table.columns or column in self.table.key:
            return f"coalesce({rule.broken}, FALSE)"
        return f"(coalesce({rule.broken}, FALSE) AND NOT {self.deleted})"

    @property
    def steady(self) -> list[str]:
        """The columns of numbers whose unit must not change."""
        rules = {name: self.table.columns[name] for name in self.typed if name in self.table.columns}
        return [name for name, rule in rules.items() if rule.type in NUMBERS and rule.scale == "steady"]

    def rows_sql(self, where: str = "TRUE") -> str:
        """The rows, each as it came, typed, and with its place. `where` is over the raw file."""
        typed = [f"{value} AS {quote(name)}" for name, value in self.typed.items()]
        raw = [f"{quote(name)} AS {contract.raw_name(name)}" for name in self.typed]
        rest = [quote(name) for name in self.columns if name not in self.typed]
        columns = ", ".join([*typed, *raw, *rest, f"file_row_number AS {ROW}"])
        return f"(SELECT {columns} FROM {parquet([self.path], file_row_number='TRUE')} WHERE {where})"


@dataclass(frozen=True)
class _Losing:
    """Of each row of a period, whether another one of its key wins, and whether both stand in one file."""

    loses: Flags
    is_double: Flags


def split_rows(con: duckdb.DuckDBPyConnection, period: PeriodFile, into: Path) -> Counts:
    """Write clean.parquet and held.parquet, and count. A connection that has the tables that the rules look into."""
    looked_up, losing = _look_up(con, period), _decide_keys(con, period)
    tally = _Tally(period)
    with rowfiles.RowWriter(into / "clean.parquet") as writer:
        for batch in _check_rows(con, period):
            places = slice(tally.rows, tally.rows + batch.num_rows)
            flags = [
                looked_up[i][places] if i in looked_up else arrays.read_flags(batch[_flag(i)[1:-1]])
                for i in range(len(period.rules))
            ]
            typed = batch.select(list(period.typed))
            deletes = arrays.read_flags(batch[DELETES[1:-1]])
            is_held = tally.add(typed, flags, losing.loses[places] | deletes, losing.is_double[places])
            good = typed.filter(arrays.make_flags(~is_held)) if is_held.any() else typed
            tally.sample(good)
            writer.add(good)
    _write_held(con, period, np.concatenate(tally.held), tally.broken, into / "held.parquet")
    return tally.count()


class _Tally:
    """What became of the rows so far. `held`: the places of those that go to quarantine."""

    def __init__(self, period: PeriodFile) -> None:
        self.rules = period.rules
        self.rows = self.bad = self.superseded = self.doubled = 0
        self.broken = [0] * len(period.rules)
        self.nulls = dict.fromkeys(period.typed, 0)
        self.held: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        self._step = -(-pq.read_metadata(period.path).num_rows // units.SAMPLE) or 1
        self._values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in period.steady}

    def add(self, typed: pa.RecordBatch, flags: Sequence[Flags], loses: Flags, is_double: Flags) -> Flags:
        """Count the next rows: `flags` (rules, rows). Returns which of them go to quarantine."""
        is_bad = is_double.copy()
        for i, (rule, breaks) in enumerate(zip(self.rules, flags, strict=True)):
            self.broken[i] += int(breaks.sum())
            is_bad |= breaks & rule.is_bad
        for name in self.nulls:
            self.nulls[name] += typed[name].null_count
        self.bad += int(is_bad.sum())
        self.superseded += int((loses & ~is_bad).sum())
        self.doubled += int((loses & is_bad).sum())
        self.held.append(np.flatnonzero(is_bad | loses) + self.rows)
        self.rows += typed.num_rows
        return is_bad | loses

    def sample(self, good: pa.RecordBatch) -> None:
        """Note values of the columns that are to stay in one unit."""
        for name, values in self._values.items():
            values.append(arrays.read_floats(good[name][:: self._step]))

    def count(self) -> Counts:
        broken = [(rule, count) for rule, count in zip(self.rules, self.broken, strict=True) if count]
        by_rule = {rule.name: count for rule, count in broken if rule.is_bad}
        return {
            "rows": self.rows,
            "bad": self.bad,
            "superseded": self.superseded,
            "by_rule": by_rule | ({"key: duplicate": self.doubled} if self.doubled else {}),
            "reported": {rule.name: count for rule, count in broken if not rule.is_bad},
            "nulls": self.nulls,
            "spreads": {name: units.measure_spread(np.concatenate(values)) for name, values in self._values.items()},
        }


def _check_rows(con: duckdb.DuckDBPyConnection, period: PeriodFile) -> Iterator[pa.RecordBatch]:
    """The typed rows in their order, with a flag for every rule that looks into no other table."""
    flags = [_flag_sql(period, i) for i, rule in enumerate(period.rules) if not rule.looks_up]
    columns = ", ".join([*map(quote, period.typed), *flags, f"{period.deleted} AS {DELETES}"])
    reader = con.sql(f"SELECT {columns} FROM {period.rows_sql()}").to_arrow_reader(rowfiles.GROUP_ROWS)
    yield arrays.make_empty(reader.schema)  # a file without rows has its columns
    yield from reader


def _flag_sql(period: PeriodFile, i: int) -> str:
    return f"{period.bad_sql(i)} AS {_flag(i)}"


def _flag(i: int) -> str:
    return quote(f"{contract.HIDDEN}b{i}")


def _look_up(con: duckdb.DuckDBPyConnection, period: PeriodFile) -> dict[int, Flags]:
    """By the place of a rule that looks into another table: which rows break it."""
    rules = {i: rule for i, rule in enumerate(period.rules) if rule.looks_up}
    if not rules:
        return {}
    flags = ", ".join(_flag_sql(period, i) for i in rules)
    broken = " OR ".join(map(_flag, rules))
    query = f"SELECT * FROM (SELECT {ROW}, {flags} FROM {period.rows_sql()}) WHERE {broken}"
    looked_up = {i: np.zeros(pq.read_metadata(period.path).num_rows, bool) for i in rules}
    for batch in con.sql(query).to_arrow_reader(rowfiles.GROUP_ROWS):
        places = arrays.read_whole(batch[ROW[1:-1]])
        for i, flags_of_rule in looked_up.items():
            flags_of_rule[places] = arrays.read_flags(batch[_flag(i)[1:-1]])
    return looked_up


def _decide_keys(con: duckdb.DuckDBPyConnection, period: PeriodFile) -> _Losing:
    """Of rows with one key one wins: a good one before a bad one, the higher version, the later delivery. Leaves the
    table `_losing` of the others, with their winners."""
    count = pq.read_metadata(period.path).num_rows
    losing = _Losing(np.zeros(count, bool), np.zeros(count, bool))
    if period.superseded is None:
        return losing
    table = period.table
    bad = " OR ".join(period.bad_sql(i) for i, rule in enumerate(period.rules) if rule.is_bad) or "FALSE"
    version = f"{quote(table.version)} DESC NULLS LAST, " if table.version else ""
    order = f"{bad}, {version}{PLACE[0]} DESC, {PLACE[1]} DESC, {ROW} DESC"
    window = f"OVER (PARTITION BY {', '.join(map(quote, table.key))} ORDER BY {order})"
    is_whole = " AND ".join(f"{quote(name)} IS NOT NULL" for name in table.key)
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE _losing AS SELECT {LOSER}, {PLACE[0]}, {WINNER} FROM (SELECT {ROW} AS {LOSER}, "
        f"{PLACE[0]}, first_value(struct_pack(file := {PLACE[0]}, row := {PLACE[1]})) {window} AS {WINNER}, "
        f"row_number() {window} > 1 AND {is_whole} AS {LOSES} FROM {period.rows_sql(f'{PLACE[0]} IS NOT NULL')}) "
        f"WHERE {LOSES}"
    )
    # With versions or deletions, a row that comes twice in one file is no fault.
    is_double = "FALSE" if table.version or table.deleted else f"{WINNER}.file = {PLACE[0]}"
    query = f"SELECT {LOSER} AS place, {is_double} AS is_double FROM _losing"
    for batch in con.sql(query).to_arrow_reader(rowfiles.GROUP_ROWS):
        places = arrays.read_whole(batch["place"])
        losing.loses[places] = True
        losing.is_double[places] = arrays.read_flags(batch["is_double"])
    return losing


def _write_held(
    con: duckdb.DuckDBPyConnection, period: PeriodFile, places: NDArray[np.int64], broken: Sequence[int], path: Path
) -> None:
    """The rows of these places as they came, each with all its reasons. `broken`: by rule, how many rows break it."""
    con.execute("CREATE OR REPLACE TEMP TABLE _held AS SELECT unnest($1::BIGINT[]) AS place", [places.tolist()])
    reasons = [
        f"CASE WHEN {period.bad_sql(i)} THEN {rule.reason} END"
        for i, rule in enumerate(period.rules)
        if rule.is_bad and broken[i]
    ]
    reasons += [f"CASE WHEN {period.deleted} THEN 'it says that the row of its key is gone' END"]
    join = ""
    if period.superseded is not None:
        reasons.append(f"CASE WHEN {WINNER} IS NOT NULL THEN {period.superseded} END")
        join = f" LEFT JOIN (SELECT {LOSER}, {WINNER} FROM _losing) ON {LOSER} = {ROW}"
    raw = [f"{contract.raw_name(name)} AS {quote(name)}" for name in period.typed]
    reason = f"concat_ws('; ', {', '.join(reasons) or 'NULL'}) AS reason"
    where = "file_row_number IN (SELECT place FROM _held)" if len(places) else "FALSE"
    rows = f"{period.rows_sql(where)}{join}"
    rowfiles.write_rows(con, f"SELECT {', '.join([*raw, reason])} FROM {rows} ORDER BY {ROW}", path)
