"""checks: what label.expression and features.sql may give back, so that a model can be made of it. Pure.

Each refusal comes from the features stage, before any model is trained, and names the setting, what it gives and what
would do.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tasks.params import Task

if TYPE_CHECKING:
    import pyarrow as pa

LARGEST = 2**53  # beyond it float64 takes neighbouring whole numbers for one
MOST_CLASSES = 1000
INTEGERS = {f"{sign}{size}" for sign in ("", "U") for size in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")}
NUMBERS = {*INTEGERS, "BOOLEAN", "DECIMAL", "FLOAT", "DOUBLE"}
WANTED = {
    "binary": "true or false, or 1 or 0: write a comparison, such as arr_delay >= 15",
    "multiclass": "a text or a number for each class: for true or false, set label.task to binary",
    "regression": "a number: of a time, write epoch(...)",
}


def is_text(kind: str) -> bool:
    """Whether DuckDB's type is a text."""
    return kind.partition("(")[0] in ("VARCHAR", "ENUM")


def label_sql(kind: str, task: Task, expression: str) -> str:
    """The label's column as it is stored: a text, true or false, or a DOUBLE in which not-a-number is missing.

    Raises ValueError for a type that the task cannot learn.
    """
    base = kind.partition("(")[0]
    fits = {
        "binary": base in NUMBERS,
        "multiclass": is_text(kind) or (base in NUMBERS and base != "BOOLEAN"),
        "regression": base in NUMBERS,
    }
    if kind.endswith("]") or not fits[task]:
        raise ValueError(f"label.expression `{expression}` gives a {kind}, but label.task {task} needs {WANTED[task]}.")
    if is_text(kind):
        return "CAST(_label AS VARCHAR)"
    return (
        "_label" if base == "BOOLEAN" else "CASE WHEN NOT isnan(CAST(_label AS DOUBLE)) THEN CAST(_label AS DOUBLE) END"
    )


def check_labels(labels: "pa.ChunkedArray", times: "pa.ChunkedArray", task: Task, expression: str) -> None:
    """Raises ValueError for the first label (n), of the event at its time (n), that is out of the task's range."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_floating(labels.type):
        return
    if task == "binary":
        wrong, rule = pc.invert(pc.is_in(labels, value_set=pa.array([0.0, 1.0, None]))), "0 or 1"
    else:
        wrong, rule = pc.greater(pc.abs(labels), float(LARGEST)), f"finite and between -2**53 and 2**53 ({LARGEST:.3g})"
    place = pc.index(pc.fill_null(wrong, False), True).as_py()
    if place >= 0:
        raise ValueError(
            f"label.expression `{expression}` gives {labels[place].as_py():g} for the row at {times[place].as_py()}, "
            f"but with label.task {task} a label must be {rule}. Divide it, make it null where it means nothing, or "
            "bound the column in the contract (max)."
        )


def check_class_count(count: int) -> None:
    """Raises ValueError for more classes than a model is made for."""
    if count > MOST_CLASSES:
        raise ValueError(
            f"label.task multiclass takes up to {MOST_CLASSES:,} classes, but label.expression gives {count:,}. Merge "
            "rare classes, or set label.task to regression for a number."
        )


def check_feature_names(names: Iterable[str]) -> None:
    """Raises ValueError for names that XGBoost refuses, or cuts at an unprintable character."""
    if wrong := [name for name in names if not name.strip() or re.search(r"[\[\]<\x00-\x1f\x7f]", name)]:
        raise ValueError(
            f"a feature's name must be printable and hold no [, ] or <, which XGBoost refuses, but features.sql gives "
            f"{wrong}: rename them by AS"
        )


def check_slices(slices: Iterable[str], names: Sequence[str]) -> None:
    """Raises ValueError for a name in evaluate.slices that no feature has."""
    if missing := [name for name in slices if name not in names]:
        raise ValueError(
            f"evaluate.slices must be features, but {missing} are not among {sorted(names)}: mend the setting, or add "
            "the column to features.sql"
        )


def check_same_names(given: Sequence[Any]) -> None:
    """Raises ValueError when two columns have one name, for whoever would be given another one without a word."""
    folded = [str(name).lower() for name in given]
    if twice := sorted({str(name) for name, low in zip(given, folded, strict=True) if folded.count(low) > 1}):
        raise ValueError(
            f"features.sql gives several columns of one name, {twice} (capital letters make no difference): rename "
            "them by AS, or leave one out by EXCLUDE"
        )
