"""Run label.expression and features.sql in DuckDB, and check that a model can learn from what they give back.

Each refusal comes from the features stage, before any model is trained. It names the setting, what it gives and what
would do.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from tasks.data import contract, featurerows, periods, sqlcheck
from tasks.params import TIMES, Label, Params
from tasks.runtime import stage
from tasks.runtime.sql import parquet, quote, time_sql

SQL = Path("tasks/features.sql")  # below the project in whose folder the stage runs, like every other path
LARGEST_LABEL = 2**53  # float64 tells neighbouring whole numbers apart up to here
INTEGERS = {f"{sign}{size}" for sign in ("", "U") for size in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")}
NUMBERS = {*INTEGERS, "BOOLEAN", "DECIMAL", "FLOAT", "DOUBLE"}
TASK_NEEDS = {
    "binary": "true or false, or 1 or 0: write a comparison, such as arr_delay >= 15",
    "multiclass": "a text or a number for each class: for true or false, set label.task to binary",
    "regression": "a number: of a time, write epoch(...)",
}


def check_sql(p: Params, sql: str) -> None:
    """Raises ValueError for SQL that uses more than the spine, the clean tables and the lead."""
    sqlcheck.check_sql(sql, p.sources, {name for table in p.contract.values() for name in table.columns})


def connect(p: Params) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection in UTC, within stage.threads and stage.memory, that knows the lead."""
    con = stage.connect(p)
    con.execute(f"SET VARIABLE lead = INTERVAL {int(p.features.lead.total_seconds())} SECONDS")
    return con


def create_table(con: duckdb.DuckDBPyConnection, p: Params, name: str, paths: list[Path], *, where: str) -> None:
    """A clean table in memory, of its files' rows. Without a file it is empty."""
    columns = contract.columns_sql(p.contract[name], has_times=p.sources[name].event_time is not None)
    content = f"AS FROM {parquet(paths)} WHERE {where}" if paths else f"({columns})"
    con.execute(f"CREATE TEMP TABLE {quote(name)} {content}")


def create_spine(con: duckdb.DuckDBPyConnection, p: Params, period: periods.Period) -> pa.Table:
    """Make the table `spine` of the period's rows, numbered in a fixed order. Returns their keys, times and labels."""
    table, label = p.contract[p.spine.table], p.label
    # Without a key, outcomes come last: the number of a row must not give them away.
    early_first = sorted(table.columns, key=lambda name: table.columns[name].outcome)
    order = ", ".join(quote(name) for name in ["event_time", *(table.key or early_first)])
    keys = "".join(f", {quote(name)} AS {quote(featurerows.KEY + name)}" for name in table.key)
    due = f"known_at <= event_time + INTERVAL {int(label.deadline.total_seconds())} SECONDS"
    before = (
        f"CREATE TEMP TABLE _rows AS SELECT row_number() OVER (ORDER BY {order}) AS row_id, *{keys}, "
        f"event_time AS _event_time, known_at AS _known_at, CASE WHEN {due} THEN ("
    )
    after = f"\n) END AS _label FROM {quote(p.spine.table)} WHERE event_time >= {time_sql(period.start)}"
    try:
        con.execute(f"{before}{label.expression}{after}")
    except duckdb.Error as error:
        setting, names = f"label.expression `{label.expression}`", [*table.columns, *TIMES]
        raise ValueError(
            sqlcheck.explain(error, label.expression, setting=setting, before=before, columns=names)
        ) from None
    kind = str(con.execute("DESCRIBE SELECT _label FROM _rows").fetchall()[0][1])
    meta = ", ".join(quote(name) for name in [*(featurerows.KEY + name for name in table.key), *featurerows.META[:2]])
    rows = con.sql(f"SELECT {meta}, {_label_sql(kind, label)} AS _label FROM _rows ORDER BY row_id").to_arrow_table()
    _check_labels(rows["_label"], rows["_event_time"], label)
    columns = ", ".join(["row_id", "event_time", *map(quote, p.spine.columns)])
    con.execute(f"CREATE TEMP TABLE spine AS SELECT {columns} FROM _rows ORDER BY row_id")
    con.execute("DROP TABLE _rows")  # it holds the labels: features.sql must not find it
    return rows


def compute_features(con: duckdb.DuckDBPyConnection, p: Params, sql: str) -> pa.Table:
    """Run the SQL over the connection's spine and tables → one row of features per row of the spine, in its order.

    The connection is closed to everything else from now on.

    Raises:
        ValueError: the SQL uses more than that, fails (with its line), loses or repeats rows, or gives back an outcome.
    """
    check_sql(p, sql)
    sqlcheck.close_connection(con)
    before = "CREATE OR REPLACE TEMP TABLE _computed AS "
    try:
        con.execute(before + sql)
    except duckdb.Error as error:
        # Of all tables: only DuckDB knows which of them can be read at one place of the SQL.
        columns = sorted({"row_id", *TIMES, *(name for table in p.contract.values() for name in table.columns)})
        raise ValueError(sqlcheck.explain(error, sql, setting="features.sql", before=before, columns=columns)) from None
    kinds = read_kinds(con, p, "_computed")
    if any(re.search(r"_\d+$", name) for name in kinds):  # DuckDB calls the second of two columns `x` x_1
        names = [str(row[0]) for row in con.execute(f"DESCRIBE {sql}").fetchall()]
        counts = Counter(name.lower() for name in names)
        if twice := sorted({name for name in names if counts[name.lower()] > 1}):
            raise ValueError(
                f"features.sql gives several columns of one name, {twice} (capital letters make no difference): rename "
                "them by AS, or leave one out by EXCLUDE"
            )
    selected = ", ".join(_feature_sql(name, kind) for name, kind in kinds.items())
    computed = con.sql(f"SELECT row_id, {selected} FROM _computed ORDER BY row_id").to_arrow_table()
    wanted = con.sql("SELECT row_id FROM spine ORDER BY row_id").to_arrow_table()["row_id"]
    con.execute("DROP TABLE _computed")
    if not computed["row_id"].equals(wanted):
        refuse_miscounted(computed["row_id"].to_pylist(), wanted.to_pylist())
    return computed.drop_columns(["row_id"])


def read_kinds(con: duckdb.DuckDBPyConnection, p: Params, table: str) -> dict[str, str]:
    """The features that features.sql gave back as a table or a view, with DuckDB's type of each."""
    kinds = {row[0]: str(row[1]) for row in con.execute(f"DESCRIBE FROM {table}").fetchall()}
    _check_names(p, list(kinds))
    for name, kind in kinds.items():
        if not is_text(kind) and kind.partition("(")[0] not in NUMBERS:
            raise ValueError(f"features.sql: `{name}` is a {kind}, but a feature is a number, true or false, or a text")
    return {name: kind for name, kind in kinds.items() if name != "row_id"}


def refuse_miscounted(given: list[Any], wanted: list[Any]) -> None:
    """Raises ValueError when these row_ids are not those of the spine."""
    if given == wanted:
        return
    lost, repeated = len(set(wanted) - set(given)), len(given) - len(set(given))
    raise ValueError(
        f"features.sql must give each row_id of the spine once, but of {len(wanted)} rows it loses {lost} and repeats "
        f"{repeated}: a LEFT JOIN keeps rows, and the table it joins needs one row per key"
    )


def _check_names(p: Params, names: list[str]) -> None:
    if "row_id" not in names:
        raise ValueError(f"features.sql must give back row_id, but gives {names}")
    if names == ["row_id"]:
        raise ValueError("features.sql gives back no feature beside row_id")
    spine = p.contract[p.spine.table].columns
    later = [name for name in names if (name in spine and spine[name].outcome) or name in ("known_at", "label")]
    if later:
        raise ValueError(f"features.sql gives back {later}, which nobody knows when a prediction is asked")
    if hidden := [name for name in names if name.startswith("_")]:
        raise ValueError(f"a feature's name must not start with an underscore, but {hidden} do")
    if wrong := [name for name in names if not name.strip() or re.search(r"[\[\]<\x00-\x1f\x7f]", name)]:
        raise ValueError(
            f"a feature's name must be printable and hold no [, ] or <, which XGBoost refuses, but features.sql gives "
            f"{wrong}: rename them by AS"
        )


def _feature_sql(name: str, kind: str) -> str:
    """Text stays text; every other column becomes float32, as XGBoost reads it. What is not finite is missing."""
    if is_text(kind):
        return cast_sql(name, kind)
    value = f"TRY_CAST({quote(name)} AS FLOAT)"
    return f"CASE WHEN isfinite({value}) THEN {value} END AS {quote(name)}"


def cast_sql(name: str, kind: str) -> str:
    """Text as VARCHAR, a number as FLOAT. A DOUBLE stays one: the caller rounds it."""
    column = quote(name)
    if is_text(kind):
        return f"CAST({column} AS VARCHAR) AS {column}"
    return column if kind in ("FLOAT", "DOUBLE") else f"TRY_CAST({column} AS FLOAT) AS {column}"


def is_text(kind: str) -> bool:
    """Whether DuckDB's type is a text."""
    return kind.partition("(")[0] in ("VARCHAR", "ENUM")


def _label_sql(kind: str, label: Label) -> str:
    """The label's column as it is stored: a text, true or false, or a DOUBLE in which not-a-number is missing.

    Raises ValueError for a type that the task cannot learn.
    """
    base = kind.partition("(")[0]
    fits = {
        "binary": base in NUMBERS,
        "multiclass": is_text(kind) or (base in NUMBERS and base != "BOOLEAN"),
        "regression": base in NUMBERS,
    }
    if kind.endswith("]") or not fits[label.task]:
        raise ValueError(
            f"label.expression `{label.expression}` gives a {kind}, but label.task {label.task} needs "
            f"{TASK_NEEDS[label.task]}."
        )
    if is_text(kind):
        return "CAST(_label AS VARCHAR)"
    return (
        "_label" if base == "BOOLEAN" else "CASE WHEN NOT isnan(CAST(_label AS DOUBLE)) THEN CAST(_label AS DOUBLE) END"
    )


def _check_labels(labels: pa.ChunkedArray, times: pa.ChunkedArray, label: Label) -> None:
    """Raises ValueError for the first label (n), of the event at its time (n), that is out of the task's range."""
    if not pa.types.is_floating(labels.type):
        return
    if label.task == "binary":
        wrong, rule = pc.invert(pc.is_in(labels, value_set=pa.array([0.0, 1.0, None]))), "0 or 1"
    else:
        wrong, rule = (
            pc.greater(pc.abs(labels), float(LARGEST_LABEL)),
            f"finite and between -2**53 and 2**53 ({LARGEST_LABEL:.3g})",
        )
    place = pc.index(pc.fill_null(wrong, False), True).as_py()
    if place >= 0:
        raise ValueError(
            f"label.expression `{label.expression}` gives {labels[place].as_py():g} for the row at "
            f"{times[place].as_py()}, but with label.task {label.task} a label must be {rule}. Divide it, make it null "
            "where it means nothing, or bound the column in the contract (max)."
        )


def check_slices(slices: Iterable[str], names: Sequence[str]) -> None:
    """Raises ValueError for a name in evaluate.slices that no feature has."""
    if missing := [name for name in slices if name not in names]:
        raise ValueError(
            f"evaluate.slices must be features, but {missing} are not among {sorted(names)}: mend the setting, or add "
            "the column to features.sql"
        )
