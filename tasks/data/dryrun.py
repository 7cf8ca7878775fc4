"""rehearsal: what the SQL of params.yaml and features.sql is refused for, asked of empty tables before any stage runs.

A fault in an expression, the label or features.sql needs no row to be seen. The stages would tell of it too, but only
after the sources have been read.
"""

from pathlib import Path

from duckdb import DuckDBPyConnection

from tasks.data import expressions, featuresql
from tasks.params import TIMES, Params
from tasks.runtime import stage
from tasks.runtime.sql import quote


def rehearse(p: Params, folder: Path = Path()) -> None:
    """Raises ValueError for SQL that cannot run over tables of the contract's types."""
    _rehearse_sources(p)
    with _clean_tables(p) as con:
        featuresql.rehearse(con, p, (folder / featuresql.SQL).read_text(encoding="utf-8"))


def _rehearse_sources(p: Params) -> None:
    """In the order of params.yaml: a table's expressions may use the tables above it."""
    with stage.connect(p) as con:
        for name, source in p.sources.items():
            delivered = {each: column for each, column in p.contract[name].columns.items() if each not in source.derive}
            values = [f"CAST(NULL AS {column.type}) AS {quote(each)}" for each, column in delivered.items()]
            base = f"SELECT {', '.join(values) or '1'} WHERE FALSE"
            plan = expressions.plan_expressions(con, name, source, base, list(delivered))
            con.execute(f"CREATE TEMP TABLE {quote(name)} AS {plan.sql}")


def _clean_tables(p: Params) -> DuckDBPyConnection:
    con = featuresql.connect(p)
    for name, table in p.contract.items():
        columns = [f"{quote(each)} {column.type}" for each, column in table.columns.items() if each not in TIMES]
        times = [f"{time} TIMESTAMP" for time in TIMES] if p.sources[name].event_time else []
        con.execute(f"CREATE TEMP TABLE {quote(name)} ({', '.join([*columns, *times])})")
    return con
