"""The expressions of a source, `derive` and the two times, over its typed columns, as SQL.

A fault in an expression itself is refused with the setting's name. When one fails for some rows, all is computed again
with each row guarded. The rows that fail are marked, and clean puts them into quarantine with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass

import duckdb

from tasks.data import contract, sqlcheck
from tasks.data.contract import HIDDEN
from tasks.params import FAULT, Source
from tasks.runtime.sql import literal, quote

NO_TIME = ": no time"  # after a setting's name: it gives a text that is no time
TIME_KINDS = ("TIMESTAMP", "DATE", "VARCHAR", '"NULL"')
FAILED = f"{HIDDEN}failed "  # begins the name of the column that says whether an expression failed
# Beyond these no clock is right, and half of all libraries fail: such a time counts as none.
SANE = "BETWEEN TIMESTAMP '1700-01-01' AND TIMESTAMP '2200-01-01'"


@dataclass(frozen=True)
class Step:
    """One expression: the column that it makes, and the setting below sources.<table> that holds it."""

    name: str
    setting: str
    expression: str
    is_time: bool = False


def list_steps(source: Source) -> list[Step]:
    """The expressions of a source, in order: each may use the columns of those before it."""
    steps = [Step(name, f"derive.{name}", expression) for name, expression in source.derive.items()]
    if source.event_time:
        steps.append(Step("event_time", "event_time", source.event_time, is_time=True))
        steps.append(Step("known_at", "known_at", source.known_at or "event_time", is_time=True))
    return steps


@dataclass(frozen=True)
class Plan:
    """The SQL of a source's rows with all that it derives: plain, and with each expression guarded row by row."""

    sql: str
    guarded: str
    unguarded: list[str]  # settings that DuckDB cannot guard
    kinds: dict[str, str]  # the type of each column that is derived


def plan_expressions(con: duckdb.DuckDBPyConnection, table: str, source: Source, base: str, present: list[str]) -> Plan:
    """`base` is SQL with the columns `present`. Raises ValueError, with the setting's name, for what is no SQL."""
    kinds, unguarded, sql, guarded = dict[str, str](), list[str](), base, base
    marks, guarded_marks = list[str](), list[str]()  # the columns that say whether a step failed
    for step in list_steps(source):
        kinds[step.name] = kind = _find_kind(con, table, source, step, sql, present)
        sql, can_guard = _step_sql(sql, step, kind, present, guard=False), True
        is_text = step.is_time and kind == "VARCHAR"
        marks += [FAILED + step.name] if is_text else []
        try:
            con.execute(f"DESCRIBE SELECT {_guarded_sql(step)} FROM ({guarded})").fetchall()
        except duckdb.Error:  # DuckDB guards no subquery, no window function and nothing random
            unguarded.append(f"sources.{table}.{step.setting}")
            can_guard = False
        guarded = _step_sql(guarded, step, kind, present, guard=can_guard)
        guarded_marks += [FAILED + step.name] if is_text or can_guard else []
        present = [*present, step.name]
    return Plan(_marked_sql(sql, marks), _marked_sql(guarded, guarded_marks), unguarded, kinds)


def has_window(con: duckdb.DuckDBPyConnection, source: Source) -> bool:
    """Whether an expression looks at other rows of its table: then a row cannot be computed by itself."""
    steps = [step for step in list_steps(source) if "over" in step.expression.lower()]  # few others need a parser
    texts = [f"SELECT ({step.expression}\n)" for step in steps]
    trees = (con.execute("SELECT json_serialize_sql(?)", [text]).fetchall()[0][0] for text in texts)
    return any('"class":"WINDOW"' in tree for tree in trees)


def run_plan(plan: Plan, table: str, source: Source, act: Callable[[str], object]) -> None:
    """Have `act` make the rows of the plan's SQL, guarded where it fails for a row as it is.

    Raises:
        ValueError: a row fails that cannot be marked.
    """
    for sql in (plan.sql, plan.guarded):
        try:
            act(sql)
            return
        except duckdb.Error as error:
            sqlcheck.raise_machine_error(error)
    raise ValueError(
        f"{table} ({source.shown}) does not fit its params: one of {', '.join(plan.unguarded)} fails for a row, and "
        "no single row can be put aside, since it holds a subquery, a window function or random(). Put TRY(...) around "
        "the part that fails; a subquery must give one row at most."
    )


def _find_kind(
    con: duckdb.DuckDBPyConnection, table: str, source: Source, step: Step, sql: str, present: list[str]
) -> str:
    """The type that DuckDB sees in an expression."""
    before = "DESCRIBE SELECT ("
    try:
        kind = str(con.execute(f"{before}{step.expression}\n) AS v FROM ({sql})").fetchall()[0][1])
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException) as error:
        cause = sqlcheck.explain(
            error,
            step.expression,
            setting=f"sources.{table}.{step.setting} `{step.expression}`",
            before=before,
            columns=present,
            tables="the tables above this one",
        )
        raise ValueError(
            f"{table} ({source.shown}) does not fit its params: {cause} It must be SQL over the contract's columns."
        ) from None
    except duckdb.Error as error:
        sqlcheck.raise_machine_error(error)
        return "TIMESTAMP" if step.is_time else "VARCHAR"
    if step.is_time and not kind.startswith(TIME_KINDS):
        raise ValueError(
            f"{table} ({source.shown}) does not fit its params: sources.{table}.{step.setting} must be a TIMESTAMP, "
            f"a DATE or a text, but `{step.expression}` is a {kind}; to_timestamp(...) makes a TIMESTAMP of seconds."
        )
    return kind


def _guarded_sql(step: Step) -> str:
    """NULL where the expression fails, and a struct with its value, be that NULL, where it does not."""
    return f"TRY(struct_pack(v := ({step.expression}\n)))"


def _step_sql(sql: str, step: Step, kind: str, present: list[str], *, guard: bool) -> str:
    """The columns of `sql`, the step's, and where it can fail for a row, whether it did."""
    if not step.is_time and not guard:  # one level less: DuckDB plans many levels slowly
        column = f"({step.expression}\n) AS {quote(step.name)}"
        return f"SELECT *{f' REPLACE ({column})' if step.name in present else f', {column}'} FROM ({sql})"
    hidden = quote(f"{HIDDEN}step {step.name}")
    value, failures = (
        (f"{hidden}.v", [f"WHEN {hidden} IS NULL THEN {literal(step.setting)}"]) if guard else (hidden, [])
    )
    inner = f"SELECT *, {_guarded_sql(step) if guard else f'({step.expression}{chr(10)})'} AS {hidden} FROM ({sql})"
    if step.is_time:
        moment = f"CAST({value} AS TIMESTAMP)"
        if kind == "VARCHAR":
            moment = contract.timestamp_sql(value)
            no_time = literal(step.setting + NO_TIME)
            failures.append(f"WHEN {value} IS NOT NULL AND {moment} IS NULL THEN {no_time}")
        value = f"CASE WHEN {moment} {SANE} THEN {moment} END"
    column = f"{value} AS {quote(step.name)}"
    columns = f" REPLACE ({column})" if step.name in present else f", {column}"
    mark = f", CASE {' '.join(failures)} END AS {quote(FAILED + step.name)}" if failures else ""
    return f"SELECT * EXCLUDE ({hidden}){columns}{mark} FROM ({inner})"


def _marked_sql(sql: str, marks: list[str]) -> str:
    """One list of the settings that failed for a row; NULL where none did."""
    failures = [quote(mark) for mark in marks]
    if not failures:
        return f"SELECT *, CAST(NULL AS VARCHAR[]) AS {quote(FAULT)} FROM ({sql})"
    names = f"list_filter([{', '.join(failures)}], lambda name: name IS NOT NULL)"
    fault = f"CASE WHEN coalesce({', '.join(failures)}) IS NOT NULL THEN {names} END"
    return f"SELECT * EXCLUDE ({', '.join(failures)}), {fault} AS {quote(FAULT)} FROM ({sql})"
