"""feature_query: a version's features.sql, planned once and run for a few rows again and again.

DuckDB needs as long to plan the SQL as to run it for one row. It keeps the plan of a prepared statement only if that
reads none of DuckDB's own tables. So the tables are Arrow tables here, handed over at each run. Some operators of
DuckDB do not survive a second run (in 2.0 an ASOF join that sorts fails, and the database with it). So a plan is first
tried in a database of its own, on rows whose features are also computed as for training. If the plan does not repeat
them exactly, the SQL is planned for each request.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from duckdb import DuckDBPyConnection

from tasks import log, params
from tasks.data import featuresql, sqlcheck

Line = tuple[Any, ...]  # the features of a row: a float or a text each, or None


class RowSource:
    """A table that DuckDB reads anew at each run, so its rows may change while the plan stays."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows

    def __arrow_c_schema__(self) -> object:
        return self.rows.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.rows.__arrow_c_stream__(requested_schema)


@dataclass(frozen=True)
class FeatureQuery:
    """For one thread at a time. `kinds` are the features, and DuckDB's type of each."""

    con: DuckDBPyConnection
    spine: RowSource
    statement: str
    kinds: Mapping[str, str]

    def run(self, spine: pa.Table) -> list[Line]:
        """What features.compute gives for this spine, in the order of its row_id, a tuple for each row.

        Raises ValueError for rows that are lost or repeated, and duckdb.Error for SQL that fails.
        """
        self.spine.rows = spine
        rows = sorted(self.con.execute(self.statement).fetchall(), key=itemgetter(0))
        featuresql.refuse_miscounted([row[0] for row in rows], spine["row_id"].to_pylist())
        columns = [[row[place] for row in rows] for place in range(1, len(self.kinds) + 1)]
        return list(zip(*map(_plain, columns, self.kinds.values()), strict=True))

    @cached_property
    def schema(self) -> pa.Schema:
        types = {True: pa.string(), False: pa.float32()}
        return pa.schema([(name, types[featuresql.is_text(kind)]) for name, kind in self.kinds.items()])

    def table(self, lines: Sequence[Line]) -> pa.Table:
        columns = zip(*lines, strict=True) if lines else [()] * len(self.schema)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, self.schema, strict=True)]
        return pa.table(arrays, schema=self.schema)


def prepare_query(
    tables: Mapping[str, pa.Table], p: params.Params, sql: str, *, tried: Sequence[pa.Table]
) -> FeatureQuery:
    """Of SQL that features.compute takes. `tried` are spines; with no row in them no plan is kept."""
    reason = _reason_to_plan_anew(tables, p, sql, tried)
    if reason is not None:
        log.warning("features.sql is planned anew for each request, for its plan cannot be kept: %s", reason)
    return open_query(tables, p, sql, tried[0], keeps_plan=reason is None)


def _reason_to_plan_anew(
    tables: Mapping[str, pa.Table], p: params.Params, sql: str, tried: Sequence[pa.Table]
) -> str | None:
    """What a kept plan does not repeat, as the SQL gives it for training; None where it repeats all."""
    if not any(spine.num_rows for spine in tried):
        return "the state has no row to try it on"
    wanted = [_compute_for_training(tables, p, sql, spine) for spine in tried]
    try:
        query = open_query(tables, p, sql, tried[0], keeps_plan=True)
        pairs = [*zip(tried, wanted, strict=True)] * 2
        same = all(query.table(query.run(spine)).equals(expected) for spine, expected in pairs)
    except duckdb.Error as error:
        return type(error).__name__  # never its text, which may hold a value of a row
    return None if same else "run again, it gives other features"


def _compute_for_training(tables: Mapping[str, pa.Table], p: params.Params, sql: str, spine: pa.Table) -> pa.Table:
    con = featuresql.connect(p)
    for name, rows in {**tables, "spine": spine}.items():
        con.register(name, rows)
    return featuresql.compute_features(con, p, sql)


def open_query(
    tables: Mapping[str, pa.Table], p: params.Params, sql: str, spine: pa.Table, *, keeps_plan: bool
) -> FeatureQuery:
    """The rules for the SQL are those of training: a version that was promoted before a rule came is refused too.

    Args:
        keeps_plan: else the SQL is planned at each run.
    """
    featuresql.check_sql(p, sql)
    con, source = featuresql.connect(p), RowSource(spine)
    con.execute("SET threads = 1")  # so few rows are no work for two
    if not keeps_plan:
        con.execute("SET disabled_optimizers = 'join_order'")  # of a dozen small tables it takes longest to plan
    lead = f"INTERVAL {int(p.features.lead.total_seconds())} SECONDS"  # a plan that reads a variable is not kept
    con.execute(f"CREATE MACRO getvariable(name) AS CASE lower(name) WHEN 'lead' THEN {lead} END")
    for name, rows in tables.items():
        con.register(name, RowSource(rows))
    con.register("spine", source)
    sqlcheck.close_connection(con)
    con.execute(f"CREATE TEMP VIEW computed_features AS {sql}")
    kinds = featuresql.read_kinds(con, p, "computed_features")
    columns = ", ".join(featuresql.cast_sql(name, kind) for name, kind in kinds.items())
    statement = f"SELECT row_id, {columns} FROM computed_features"
    if keeps_plan:
        con.execute(f"PREPARE asked AS {statement}")
    return FeatureQuery(con, source, "EXECUTE asked" if keeps_plan else statement, kinds)


def _plain(values: Sequence[Any], kind: str) -> Sequence[Any]:
    """As features.compute has them: text, or float32 with what is not finite missing."""
    if featuresql.is_text(kind):
        return values
    with np.errstate(over="ignore"):
        floats = np.array([np.nan if value is None else value for value in values], dtype=np.float64).astype(np.float32)
    return [value if math.isfinite(value) else None for value in floats.tolist()]
