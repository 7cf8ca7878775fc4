"""What each column is for: the label, what is known when a prediction is asked, what becomes known with the outcome."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from tasks.drafting.columns import Look, Looked, read_one
from tasks.drafting.shape import Shape, describe_sql, find_columns, quote_plain
from tasks.drafting.sheet import Sheet
from tasks.drafting.wishes import Wishes, listed
from tasks.params import Task
from tasks.runtime.sql import literal, quote

TARGETS = re.compile(r"(?i)(label|target|class|outcome|y|ziel|response|churn(ed)?|default(ed)?|is_fraud|fraud)")
POSITIVE = ("1", "true", "yes", "y", "positive", "ja", "late", "churn", "fraud", "t", "good", "success", "pass")
MOST_CLASSES = 50
TELLS_AUC, SUSPECT_AUC = 0.995, 0.9  # a column that ranks the outcome so well is made of it; may be
TELLS_CORRELATION, SUSPECT_CORRELATION = 0.999, 0.95
NUMBERED = re.compile(r"(?i)(^|_)(id|ids|nr|no|num|number|key|code|index|row|rownames?|uuid)$|(?<=[a-z])(Id|ID|Nr|No)$")
FEW_LEVELS = 0.5  # of the rows: a text with more levels is a name of the row


@dataclass(frozen=True)
class Target:
    """The label.

    Attributes:
        expression: SQL over the typed columns.
        columns: those that it reads.
        is_column: it is one column as it is.
        classes: of a binary or multiclass label, the most frequent first.
    """

    expression: str
    columns: tuple[str, ...]
    task: Task
    why: str
    is_column: bool
    classes: tuple[str, ...] = ()


def find_target(sheet: Sheet, looked: Looked, wishes: Wishes, time_columns: Collection[str]) -> Target:
    """Raises ValueError with the candidates where nobody has said it and it cannot be told."""
    columns = {name: look for name, look in looked.columns.items() if name not in time_columns}
    label = wishes.label or _guess_label(columns)
    if label not in looked.columns:
        kind = describe_sql(sheet, label, "--label", list(looked.columns))
        names = find_columns(sheet, label, looked.columns)
        return _with_classes(sheet, label, names, wishes.task or _task_of_type(kind, label), f"it is a {kind}")
    look = looked.columns[label]
    if look.distinct < 2:
        raise ValueError(f"--label {label} has one value, {listed(look.levels)}: nothing can be learnt of it")
    if look.is_time:
        raise ValueError(f'--label {label} is a time: give SQL, such as --label "epoch({quote_plain(label)} - ...)"')
    task, why = _task_of_column(look, wishes.task)
    expression = quote_plain(label)
    if task == "binary" and look.type != "BOOLEAN" and not {"0", "1"} >= set(look.levels):
        if look.distinct > 2:
            raise ValueError(
                f"--task binary needs a condition, but {label} has {look.distinct:,} values: give it as --label "
                f'"{quote_plain(label)} = {_spell(look, look.levels[-1])}"'
            )
        positive = next((level for level in look.levels if level.lower() in POSITIVE), look.levels[-1])
        expression, why = f"{expression} = {_spell(look, positive)}", f"{why}; {positive} is the event"
    return _with_classes(sheet, expression, (label,), task, why, is_column=expression == quote_plain(label))


def _spell(look: Look, level: str) -> str:
    return literal(level) if look.is_text else level.replace(",", ".")


def _guess_label(columns: dict[str, Look]) -> str:
    names = [name for name, look in columns.items() if TARGETS.fullmatch(name) and look.distinct > 1]
    if not names:  # one column beside the time, or one number beside texts
        names = [name for name, look in columns.items() if len(columns) == 1 or (look.is_number and look.distinct > 1)]
    if len(names) == 1:
        return names[0]
    likely = [name for name, look in columns.items() if look.distinct > 1 and not look.personal and not look.is_time]
    raise ValueError(
        f'--label must say what to predict: a column, or SQL over the columns such as "{likely[-1] if likely else "x"} '
        f'> 10". Columns are {listed(likely, 20)}.'
    )


def _task_of_type(kind: str, label: str) -> Task:
    if kind == "BOOLEAN":
        return "binary"
    if kind.startswith("VARCHAR"):
        return "multiclass"
    if kind.startswith(("TIMESTAMP", "DATE", "INTERVAL", "TIME")):
        raise ValueError(f"--label `{label}` gives a {kind}: of a time, write epoch(...)")
    return "regression"


def _task_of_column(look: Look, wish: Task | None) -> tuple[Task, str]:
    if wish:
        return wish, "--task says so"
    if look.distinct == 2 or look.type == "BOOLEAN":
        return "binary", f"{look.name} has two values, {listed(look.levels)}"
    if not look.is_text:
        return "regression", f"{look.name} is a number with {look.distinct:,} values"
    if look.distinct > MOST_CLASSES:
        raise ValueError(
            f"--label {look.name} has {look.distinct:,} texts, too many for classes: give SQL such as --label "
            f'"{quote_plain(look.name)} = {literal(look.levels[0])}"'
        )
    return "multiclass", f"{look.name} has {look.distinct} classes, {listed(look.levels, 6)}"


def _with_classes(
    sheet: Sheet, expression: str, names: tuple[str, ...], task: Task, why: str, *, is_column: bool = False
) -> Target:
    if task == "regression":
        return Target(expression, names, task, why, is_column)
    rows = sheet.con.execute(
        f"SELECT CAST(({expression}\n) AS VARCHAR) AS c, count(*) AS n FROM typed WHERE c IS NOT NULL "
        "GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    if len(rows) < 2:
        raise ValueError(f"--label `{expression}` is {rows[0][0] if rows else 'missing'} in every row")
    total = sum(row[1] for row in rows)
    shares = listed((f"{row[0]} {row[1] / total:.1%}" for row in rows), 5)
    return Target(expression, names, task, f"{why} ({shares})", is_column, tuple(row[0] for row in rows))


# --- the other columns -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Roles:
    """
    Attributes:
        known: columns that features may read of the row itself.
        outcomes: columns that are unknown until known_at, the label's first.
        names: columns that name a row: no feature, no outcome.
        telling: outcomes for the reason that they tell the label, each with how.
        suspect: known columns that come near to it.
        empty: columns without a value or with one only, which are left out.
        personal: columns that seem to tell of persons, each with the reason.
        later: columns of times that lie after the event.
    """

    known: tuple[str, ...]
    outcomes: tuple[str, ...]
    names: tuple[str, ...]
    telling: dict[str, str]
    suspect: dict[str, str]
    empty: tuple[str, ...]
    personal: dict[str, str]
    later: tuple[str, ...]


def find_roles(sheet: Sheet, looked: Looked, shape: Shape, target: Target, wishes: Wishes) -> Roles:
    """Every column but those of the time has one role."""
    known, names, empty, later = list[str](), list[str](), list[str](), list[str]()
    outcomes, personal = list(target.columns), dict[str, str]()
    telling, suspect = dict[str, str](), dict[str, str]()
    for name, look in looked.columns.items():
        if look.personal:
            personal[name] = look.personal
        if name in target.columns or name in shape.time_columns:
            continue
        if name in wishes.known or name in shape.entity:
            known.append(name)
        elif look.distinct < 2:
            empty.append(name)
        elif name in wishes.outcome:
            outcomes.append(name)
        elif look.personal or name in shape.key or _names_rows(sheet, look):
            names.append(name)
        elif shape.kind == "series":
            (known if _is_fixed(sheet, shape, name) else outcomes).append(name)
        elif look.is_time and _comes_later(sheet, look):
            later.append(name)
            outcomes.append(name)
        elif (strength := _measure_strength(sheet, look, target)) and strength.is_sure:
            telling[name] = strength.words
            outcomes.append(name)
        else:
            known.append(name)
            if strength:
                suspect[name] = strength.words
    return Roles(tuple(known), tuple(outcomes), tuple(names), telling, suspect, tuple(empty), personal, tuple(later))


def _names_rows(sheet: Sheet, look: Look) -> bool:
    """A text that is another one in most rows, or a whole number that counts them."""
    if look.is_text:
        return look.distinct > FEW_LEVELS * look.filled
    if look.type not in ("INTEGER", "BIGINT") or look.is_time or not look.distinct == look.filled == sheet.rows:
        return False
    low, high = read_one(sheet, f"SELECT min({quote(look.name)}), max({quote(look.name)}) FROM typed")
    return bool(NUMBERED.search(look.name)) or bool(high - low < 1.5 * sheet.rows)


def _is_fixed(sheet: Sheet, shape: Shape, name: str) -> bool:
    """Whether a column has one value for each entity: it is known at any time."""
    if not shape.entity:
        return False
    by = ", ".join(map(quote, shape.entity))
    most = read_one(sheet, f"SELECT max(n) FROM (SELECT count(DISTINCT {quote(name)}) AS n FROM typed GROUP BY {by})")[
        0
    ]
    return bool(most is not None and most <= 1)


def _comes_later(sheet: Sheet, look: Look) -> bool:
    assert look.spelling
    value = f"CAST({look.spelling.sql(quote(look.name))} AS TIMESTAMP)"
    after, all_rows = read_one(
        sheet, f"SELECT count(*) FILTER ({value} > _at), count(*) FROM timed WHERE {value} IS NOT NULL"
    )
    return bool(after > 0.05 * all_rows)


@dataclass(frozen=True)
class Strength:
    """How well one column alone gives the outcome."""

    words: str
    is_sure: bool


def _measure_strength(sheet: Sheet, look: Look, target: Target) -> Strength | None:
    """None for a column that comes nowhere near. What gives the outcome surely is most likely made of it."""
    x, y = quote(look.name), f"({target.expression}\n)"
    if target.task == "regression":
        r = read_one(sheet, f"SELECT corr({x}, CAST({y} AS DOUBLE)) FROM typed")[0] if look.is_number else None
        if r is None or abs(r) < SUSPECT_CORRELATION:
            return None
        return Strength(f"its correlation with the label is {r:.4f}", abs(r) >= TELLS_CORRELATION)
    if look.is_text or look.type == "BOOLEAN" or (look.distinct <= 20 and not look.is_time):
        return _measure_levels(sheet, x, y)
    if target.task != "binary" or not look.is_number:
        return None
    area = read_one(
        sheet,
        "SELECT (sum(r) FILTER (y) - count(*) FILTER (y) * (count(*) FILTER (y) + 1) / 2) / "
        "nullif(count(*) FILTER (y) * count(*) FILTER (NOT y), 0) FROM (SELECT y, rank() OVER (ORDER BY x) + "
        f"(count(*) OVER (PARTITION BY x) - 1) / 2 AS r FROM (SELECT {x} AS x, CAST({y} AS BOOLEAN) AS y FROM typed) "
        "WHERE x IS NOT NULL AND y IS NOT NULL)",
    )[0]
    if area is None or max(area, 1 - area) < SUSPECT_AUC:
        return None
    return Strength(f"it ranks the label with an AUC of {max(area, 1 - area):.3f}", max(area, 1 - area) >= TELLS_AUC)


def _measure_levels(sheet: Sheet, x: str, y: str) -> Strength | None:
    """By the share of rows that have the usual label of their level."""
    rows, right, base = read_one(
        sheet,
        "SELECT sum(n), sum(n) FILTER (place = 1), max(label_rows) FROM (SELECT n, row_number() OVER (PARTITION BY x "
        "ORDER BY n DESC) AS place, sum(n) OVER (PARTITION BY y) AS label_rows FROM "
        f"(SELECT {x} AS x, {y} AS y, count(*) AS n FROM typed WHERE {x} IS NOT NULL AND {y} IS NOT NULL "
        "GROUP BY 1, 2))",
    )
    if not rows or rows == base or (right - base) / (rows - base) < SUSPECT_AUC:
        return None
    return Strength(f"it tells {right / rows:.1%} of the labels", (right - base) / (rows - base) >= TELLS_AUC)
