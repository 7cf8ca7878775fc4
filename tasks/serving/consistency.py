"""consistency: refuses a row that gives a column and contradicts the columns that it is derived from.

The contract derives event_time and other columns by expressions (sources.<table>). A row may give such a column and
also the columns that it is derived from. If they disagree, training would have learnt from the derived value and the
answer would use the other. An expression over columns that the row does not give is not checked.
"""

import json
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from duckdb import DuckDBPyConnection

from tasks.data import contract, expressions
from tasks.params import Column, Params
from tasks.runtime import stage
from tasks.runtime.sql import quote
from tasks.serving import tables

GIVEN = "\x1fgiven "  # begins the name of a column as the row gives it
WHEN = Column(type="TIMESTAMP")


@dataclass(frozen=True)
class ConsistencyChecker:
    """The steps of the contract that a row can be checked against. One thread at a time computes."""

    con: DuckDBPyConnection
    table: str
    columns: Mapping[str, Column]
    steps: tuple[expressions.Step, ...]
    sql: str
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def of(p: Params) -> "ConsistencyChecker | None":
        """None where no row can contradict itself."""
        name = p.spine.table
        source, table = p.sources[name], p.contract[name]
        names = dict.fromkeys([*table.key, *p.spine.columns])
        columns = {"event_time": WHEN, **{column: table.columns[column] for column in names if column in table.columns}}
        con = stage.connect(p)
        usable = _select_usable(con, expressions.list_steps(source), columns)
        made = {step.name for step in usable}
        if made.isdisjoint(columns):
            return None
        own = source.model_copy(
            update={
                "derive": {step.name: step.expression for step in usable if not step.is_time},
                "event_time": source.event_time if "event_time" in made else None,
                "known_at": None,
            }
        )
        plain = [column for column in columns if column not in made]
        given = [f"{quote(GIVEN + column)} AS {quote(column)}" for column in plain]
        con.register("asked", _make_table({column: [] for column in columns}, columns))
        plan = expressions.plan_expressions(con, name, own, f"SELECT {', '.join(['*', *given])} FROM asked", plain)
        guarded = [step for step in usable if f"sources.{name}.{step.setting}" not in plan.unguarded]
        checked = tuple(step for step in guarded if step.name in columns)
        if not checked:
            return None
        wrong = [_contradiction_sql(step, columns[step.name], plan.kinds[step.name]) for step in checked]
        sql = f"SELECT {', '.join(wrong)} FROM ({plan.guarded}) ORDER BY {quote(GIVEN)}"
        con.execute(sql).fetchall()
        return ConsistencyChecker(con, name, columns, checked, sql)

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Raises Refused for the first row that contradicts itself; the rows are as they came, without pseudonyms."""
        values = {name: [row.get(name) for row in rows] for name in self.columns}
        with self.lock:
            self.con.register("asked", _make_table(values, self.columns))
            results = self.con.execute(self.sql).fetchall()
        for place, wrong in enumerate(results):
            for step, contradicts in zip(self.steps, wrong, strict=True):
                if contradicts:
                    rule = f"must be what sources.{self.table}.{step.setting} makes of the row's other columns"
                    raise tables.Refused(
                        place, step.name, f"{rule}, `{step.expression}`, but it is another. Mend one of them"
                    )


def _contradiction_sql(step: expressions.Step, column: Column, kind: str) -> str:
    given, made = quote(GIVEN + step.name), quote(step.name)
    typed = made if step.is_time else contract.clean_sql(step.name, column, kind=kind)
    return f"coalesce({given} <> {typed}, FALSE)"


def _make_table(values: Mapping[str, Sequence[Any]], columns: Mapping[str, Column]) -> Any:
    count = len(next(iter(values.values())))
    numbered = {GIVEN: pa.array(range(count), pa.int64())}
    return pa.table(numbered | {GIVEN + name: tables.column_of(values[name], columns[name].type) for name in columns})


def _select_usable(
    con: DuckDBPyConnection, steps: Sequence[expressions.Step], columns: Collection[str]
) -> list[expressions.Step]:
    """The steps whose columns a row gives, or that such steps make."""
    names, usable = {name.lower() for name in columns}, []
    for step in steps:
        wanted = _list_columns(con, step.expression)
        own = step.name.lower() in (wanted or ())  # it only changes its own value, so there is nothing to compare
        if step.name != "known_at" and wanted is not None and wanted <= names and not own:
            usable.append(step)
            names.add(step.name.lower())
    return usable


def _list_columns(con: DuckDBPyConnection, expression: str) -> set[str] | None:
    """The columns that an expression reads; None where it reads more than its row, or nothing."""
    rows = con.execute("SELECT json_serialize_sql(?)", [f"SELECT ({expression}\n)"]).fetchall()
    tree = json.loads(rows[0][0])
    if tree["error"]:
        return None
    nodes = list(_walk(tree))
    if any(node.get("class") in ("SUBQUERY", "WINDOW", "LAMBDA") for node in nodes):
        return None
    return {node["column_names"][0].lower() for node in nodes if node.get("class") == "COLUMN_REF"} or None


def _walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _walk(part)
