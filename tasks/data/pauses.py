"""pauses: stretches of weeks without a row, and what lies before them in time that has rows. Pure.

A shop that was closed for a month is no fault, and the month tells nothing. So lengths such as split.fold are measured
in time that has rows: what would begin in a pause, or before it, begins as much earlier as the pause is long.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from tasks.data import timeline

Times = NDArray[np.datetime64]
SHORT = 0.5  # of a fold: a gap that is no longer leaves the fold most of its rows


@dataclass(frozen=True)
class Span:
    """begin <= event_time < end."""

    begin: datetime
    end: datetime

    @property
    def days(self) -> timedelta:
        """Its length, in whole days: never less."""
        return math.ceil((self.end - self.begin) / timedelta(days=1)) * timedelta(days=1)


def find(times: Times, *, longer: timedelta) -> list[Span]:
    """The gaps in these times (n, in any order) that are longer than this, and far longer than the table's usual gap:
    from the last row before each to the first after it, oldest first."""
    if len(times) < 2:
        return []
    least = max(longer, timeline.draw(times).far)
    ordered = np.sort(times.astype("datetime64[us]"))
    places = np.flatnonzero(np.diff(ordered) > np.timedelta64(least))
    return [Span(ordered[i].item(), ordered[i + 1].item()) for i in places.tolist()]


def fold_spans(times: Times, end: datetime, *, folds: int, fold: timedelta) -> list[Span]:
    """Where each fold's validation lies, oldest first: one after the other up to `end`, each of `fold` in time that has
    rows (n, in any order)."""
    gaps = find(times, longer=SHORT * fold)
    ends = [end]
    for _ in range(folds):
        ends.append(_before(ends[-1], fold, gaps))
    return [Span(ends[i + 1], ends[i]) for i in reversed(range(folds))]


def _before(end: datetime, length: timedelta, gaps: list[Span]) -> datetime:
    """The moment that lies so long before `end`, pauses left out."""
    begin = end - length
    for gap in reversed(gaps):
        if gap.begin < end and begin < gap.end:
            begin -= min(gap.end, end) - gap.begin
    return begin


def longest_gap(times: Times) -> Span:
    """The longest stretch between two of these times (n > 1, in any order)."""
    ordered = np.sort(times.astype("datetime64[us]"))
    place = int(np.argmax(np.diff(ordered)))
    return Span(ordered[place].item(), ordered[place + 1].item())
