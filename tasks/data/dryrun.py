"""Try the SQL of params.yaml and features.sql on empty tables, before any stage runs.

A fault in an expression, the label or features.sql needs no row to be seen. The stages would refuse it too, but only
after the sources have been read.
"""

from datetime import datetime
from pathlib import Path

from tasks.data import expressions, featuresql
from tasks.data.periods import Period
from tasks.params import Params
from tasks.runtime import stage
from tasks.runtime.sql import quote

ALWAYS = Period("all", datetime(1970, 1, 1), datetime(2200, 1, 1))


def dry_run(p: Params, folder: Path = Path()) -> None:
    """Raises ValueError for SQL that cannot run over tables of the contract's types."""
    with stage.connect(p) as con:
        for name, source in p.sources.items():  # in the order of params.yaml: SQL may use the tables above
            kinds = {column: rule.type for column, rule in p.contract[name].columns.items()}
            delivered = [column for column in kinds if column not in source.derive]
            values = ", ".join(f"CAST(NULL AS {kinds[column]}) AS {quote(column)}" for column in delivered)
            plan = expressions.plan_expressions(con, name, source, f"SELECT {values or '1'} WHERE FALSE", delivered)
            con.execute(f"CREATE TEMP TABLE {quote(name)} AS {plan.sql}")
    with featuresql.connect(p) as con:
        for name in p.contract:
            featuresql.create_table(con, p, name, [], where="TRUE")
        featuresql.create_spine(con, p, ALWAYS)
        featuresql.compute_features(con, p, (folder / featuresql.SQL).read_text(encoding="utf-8"))
