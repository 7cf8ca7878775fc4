"""--change: a series' label as the change since the newest known value."""

import math
from dataclasses import dataclass

from tasks.drafting.columns import Looked
from tasks.drafting.roles import Target
from tasks.drafting.shape import Shape, quote_plain
from tasks.drafting.wishes import Wishes


@dataclass(frozen=True)
class Change:
    """A series' label as the change since the newest value that is known when a prediction is asked.

    Attributes:
        before: the column of that value, and `sql` that makes it.
    """

    before: str
    sql: str
    expression: str


def make_change(looked: Looked, shape: Shape, target: Target, wishes: Wishes) -> Change:
    """Raises ValueError where there is none: for events, classes and expressions."""
    name = target.columns[0] if target.columns else ""
    if shape.step is None or target.task != "regression" or not target.is_column or f"{name}_before" in looked.columns:
        raise ValueError("--change needs a series whose label is one column of numbers")
    by = f"PARTITION BY {', '.join(map(quote_plain, shape.entity))} " if shape.entity else ""
    back = 1 + math.ceil(wishes.lead / shape.step.length)
    column, before = quote_plain(name), f"{name}_before"
    sql = f"lag({column}{f', {back}' if back > 1 else ''}) OVER ({by}ORDER BY {shape.time})"
    return Change(before, sql, f"{column} - {quote_plain(before)}")
