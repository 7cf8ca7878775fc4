"""plan: a champion's features.sql, planned once and run for a few rows again and again.

To plan the SQL takes DuckDB as long as to run it for a row. DuckDB keeps the plan of a prepared statement as long as it
reads none of its own tables, whose contents a plan may have been fitted to: so the tables are Arrow's here, handed over
at each run. Not every operator of DuckDB survives a second run (2.0: the ASOF join that sorts fails, and the database
with it), so a plan is first tried, in a database of its own, on rows whose features are also computed anew; one that
does not repeat them exactly is not kept, and the SQL is planned for each request.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from duckdb import DuckDBPyConnection

from tasks import log
from tasks.data import featuresql, sqlcheck
from tasks.params import Params

Line = tuple[Any, ...]  # the features of a row: a float or a text each, or None


class RowSource:
    """A table that DuckDB reads anew at each run: other rows may take their place while a plan is kept."""

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
        text = {name: featuresql.is_text(kind) for name, kind in self.kinds.items()}
        return pa.schema([(name, pa.string() if text[name] else pa.float32()) for name in text])

    def table(self, lines: Sequence[Line]) -> pa.Table:
        columns = zip(*lines, strict=True) if lines else [()] * len(self.schema)
        return pa.table(
            [pa.array(values, field.type) for values, field in zip(columns, self.schema, strict=True)],
            schema=self.schema,
        )


def prepare_query(tables: Mapping[str, pa.Table], p: Params, sql: str, *, tried: Sequence[pa.Table]) -> FeatureQuery:
    """Of SQL that features.compute takes. `tried` are spines; with no row in them no plan is kept."""
    why = _why_not(tables, p, sql, tried)
    if why is None:
        return _prepared(tables, p, sql, tried[0])
    log.warning("features.sql is planned anew for each request, for its plan cannot be kept: %s", why)
    return prepare_each_time(tables, p, sql, tried[0])


def prepare_each_time(tables: Mapping[str, pa.Table], p: Params, sql: str, spine: pa.Table) -> FeatureQuery:
    """One that plans the SQL at each run."""
    settings = ("disabled_optimizers = 'join_order'",)  # of a dozen small tables it takes longest to plan
    return _opened(tables, p, sql, spine, settings=settings)


def _why_not(tables: Mapping[str, pa.Table], p: Params, sql: str, tried: Sequence[pa.Table]) -> str | None:
    if not any(spine.num_rows for spine in tried):
        return "the state has no row to try it on"
    wanted = [_computed(tables, p, sql, spine) for spine in tried]
    try:
        query = _prepared(tables, p, sql, tried[0])
        pairs = [*zip(tried, wanted, strict=True)] * 2
        same = all(query.table(query.run(spine)).equals(expected) for spine, expected in pairs)
    except duckdb.Error as error:
        return type(error).__name__  # never its text, which may hold a value of a row
    return None if same else "run again, it gives other features"


def _computed(tables: Mapping[str, pa.Table], p: Params, sql: str, spine: pa.Table) -> pa.Table:
    """As for training."""
    con = featuresql.connect(p)
    for name, rows in {**tables, "spine": spine}.items():
        con.register(name, rows)
    return featuresql.compute_features(con, p, sql)


def _prepared(tables: Mapping[str, pa.Table], p: Params, sql: str, spine: pa.Table) -> FeatureQuery:
    plan = _opened(tables, p, sql, spine)
    plan.con.execute(f"PREPARE asked AS {plan.statement}")
    return replace(plan, statement="EXECUTE asked")


def _opened(
    tables: Mapping[str, pa.Table], p: Params, sql: str, spine: pa.Table, *, settings: Sequence[str] = ()
) -> FeatureQuery:
    """The rules for the SQL are those of training: a version that was promoted before a rule came is refused too."""
    featuresql.check_sql(p, sql)
    con, fed = featuresql.connect(p), RowSource(spine)
    for setting in ("threads = 1", *settings):  # so few rows are no work for two
        con.execute(f"SET {setting}")
    lead = f"INTERVAL {int(p.features.lead.total_seconds())} SECONDS"  # a plan that reads a variable is not kept
    con.execute(f"CREATE MACRO getvariable(name) AS CASE lower(name) WHEN 'lead' THEN {lead} END")
    for name, rows in tables.items():
        con.register(name, RowSource(rows))
    con.register("spine", fed)
    sqlcheck.close_connection(con)
    con.execute(f"CREATE TEMP VIEW found AS {sql}")
    kinds = featuresql.read_kinds(con, p, "found")
    columns = ", ".join(featuresql.cast_sql(name, kind) for name, kind in kinds.items())
    return FeatureQuery(con, fed, f"SELECT row_id, {columns} FROM found", kinds)


def _plain(values: Sequence[Any], kind: str) -> Sequence[Any]:
    """As features.compute has them: text, or float32 with what is not finite missing."""
    if featuresql.is_text(kind):
        return values
    with np.errstate(over="ignore"):
        floats = np.array([np.nan if value is None else value for value in values], dtype=np.float64).astype(np.float32)
    return [value if math.isfinite(value) else None for value in floats.tolist()]
