"""A series' offset: the past value of the label that is nearest to it, where the label wanders or comes back by season.

Trees predict no value beyond those that they have seen. What is left of a label above its newest value, or its value a
season ago, seldom leaves what was seen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tasks.drafting.columns import read_one
from tasks.drafting.featuretext import Window
from tasks.drafting.roles import Target
from tasks.drafting.shape import Shape, quote_plain
from tasks.drafting.sheet import Sheet
from tasks.drafting.wishes import Wishes

MOST_LEFT = 0.5  # of the label's variance: an offset that leaves more is none
LEAST_KNOWN = 0.5  # of the rows that have an offset


@dataclass(frozen=True)
class Offset:
    """
    Attributes:
        feature: its name.
        left: the mean squared difference of label and offset, as a share of the label's variance.
    """

    feature: str
    left: float


def find_offset(
    sheet: Sheet, shape: Shape, target: Target, wishes: Wishes, own: Mapping[str, Window | None], *, until: datetime
) -> Offset | None:
    """The label's own past value that leaves least of its variance; None where each leaves more than half.

    Args:
        own: features that are such a value, by name: the season that it lies back; None: the newest known.
        until: the holdout's begin: what it holds is not looked at.
    """
    if shape.step is None or target.task != "regression" or wishes.change:  # a change has it taken off already
        return None
    keys = [quote_plain(name) for name in shape.entity]
    sheet.con.execute(
        f"CREATE OR REPLACE TEMP TABLE own AS SELECT {', '.join(['_at', *keys])}, "
        f"CAST({target.expression} AS DOUBLE) AS value FROM timed "
        f"WHERE _at < TIMESTAMP '{until}' AND ({target.expression}) IS NOT NULL"
    )
    back = 1 + math.ceil(wishes.lead / shape.step.length)
    offsets = []
    for feature, season in own.items():
        pairs = _pair_season(season, keys) if season else _pair_newest(back, keys)
        left, known = read_one(
            sheet,
            "SELECT avg((value - before) ** 2) / nullif(var_pop(value), 0), count(before) / nullif(count(*), 0) "
            f"FROM ({pairs})",
        )
        if left is not None and left <= MOST_LEFT and known >= LEAST_KNOWN:
            offsets.append(Offset(feature, left))
    return min(offsets, key=lambda offset: offset.left, default=None)


def _pair_newest(back: int, keys: Sequence[str]) -> str:
    """SQL for each value and the one so many steps before it."""
    by = f"PARTITION BY {', '.join(keys)} " if keys else ""
    return f"SELECT value, lag(value, {back}) OVER ({by}ORDER BY _at) AS before FROM own"


def _pair_season(season: Window, keys: Sequence[str]) -> str:
    same = "".join(f" AND a.{key} = b.{key}" for key in keys)
    on = f"b._at = a._at - INTERVAL {season.sql}{same}"
    return f"SELECT a.value, b.value AS before FROM own AS a LEFT JOIN own AS b ON {on}"
