"""A series' label as the change since the newest known value: trees predict none beyond those they have seen."""

import math
from dataclasses import dataclass

from tasks.drafting.columns import Looked, read_one
from tasks.drafting.roles import Target
from tasks.drafting.shape import Shape, quote_plain
from tasks.drafting.sheet import Sheet
from tasks.drafting.wishes import Wishes

NEAR = 0.9  # correlation of a series with itself, from which its change is the better label


@dataclass(frozen=True)
class Change:
    """A series' label as the change since the newest value that is known when a prediction is asked.

    Attributes:
        before: the column of that value, and `sql` that makes it.
        nearness: the correlation of a value with it.
    """

    before: str
    sql: str
    expression: str
    nearness: float


def find_change(sheet: Sheet, looked: Looked, shape: Shape, target: Target, wishes: Wishes) -> Change | None:
    """None where there is none: for events, classes and expressions. Raises ValueError where --change asks for one."""
    name = target.columns[0] if target.columns else ""
    if shape.step is None or target.task != "regression" or not target.is_column or f"{name}_before" in looked.columns:
        if wishes.change:
            raise ValueError("--change needs a series whose label is one column of numbers")
        return None
    by = f"PARTITION BY {', '.join(map(quote_plain, shape.entity))} " if shape.entity else ""
    back = 1 + math.ceil(wishes.lead / shape.step.length)
    column, before = quote_plain(name), f"{name}_before"
    sql = f"lag({column}{f', {back}' if back > 1 else ''}) OVER ({by}ORDER BY {shape.time})"
    nearness = read_one(sheet, f"SELECT corr({column}, b) FROM (SELECT *, {sql} AS b FROM timed)")[0]
    return Change(before, sql, f"{column} - {quote_plain(before)}", nearness or 0.0)
