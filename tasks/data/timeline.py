"""Where a table's rows are dense in time: so what is "now", what is history, what is an outlier, what is a pause.

Rows are dense where the gap to the next is usual: at most `FAR` times the longest gap that comes back in the middle
of the table. Only the table's own gaps count, so the rule is the same for 3 rows a day and for 10,000, for a shop that
closes at weekends and for a table that is filled once a month. A real gap of weeks stays inside, because rows are dense
on both of its sides. A lone row beyond a far gap neither moves "now" nor begins the history.

A pause is no fault: a shop may close for a month. So lengths such as split.fold are measured in time that has rows.
What would begin in a pause, or before it, begins earlier by the length of the pause.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from duckdb import DuckDBPyConnection
from numpy.typing import NDArray

from tasks.runtime.sql import literal, quote, time_sql

Times = NDArray[np.datetime64]
Moments = NDArray[np.int64]  # microseconds
SLOTS = 4096  # the middle nine tenths of more rows than this are cut into so many: what lies closer is one moment
EDGE_SHARE = 0.1  # of the slots at either end, where the outliers are: they say nothing of what is usual
FAR_GAPS = 3  # usual gaps make a far one
ENOUGH_GAPS = 30  # in the middle of a table show what is usual
DENSE_SLOTS = 3  # of one cluster, to be more than a lone row
DENSE_SHARE = 0.1  # of the usual number of rows in a slot
FAR_EXTENTS = 3  # times the extent of all other rows is far, where there are too few gaps
LONE_SHARE, RARE_SHARE = 0.2, 0.01  # of the rows, where there are too few gaps; where there are one or two moments
ROOM_SHARE, LONGEST_ROOM = 0.5, timedelta(days=180)  # of the dense part: a row no further off is no outlier
DAY = timedelta(days=1)
OUTLIER = "_outlier"  # the column that says why a row is one; no column of a contract begins so
SHORT_SHARE = 0.5  # of a fold: a gap that is no longer leaves the fold most of its rows


@dataclass(frozen=True)
class Timeline:
    """Rows are dense up to `dense_end`; those before `begin` or after `end` are outliers. `gap`: the usual one."""

    begin: datetime
    dense_end: datetime
    end: datetime
    gap: timedelta

    @property
    def far(self) -> timedelta:
        return FAR_GAPS * self.gap


def draw_timeline(times: Times) -> Timeline:
    """The timeline of rows (n > 0), in any order."""
    slots = _cut_slots(_order(times))
    gap = _usual_gap(slots)
    return _draw_few(slots) if gap is None else _draw_many(slots, gap)


def _order(times: Times) -> Moments:
    """In the order of time, as microseconds. Rows mostly come in it: those of a large table are not copied then."""
    moments = times.astype("datetime64[us]", copy=False).view(np.int64)
    return moments if (moments[1:] >= moments[:-1]).all() else np.sort(moments)


@dataclass(frozen=True)
class _Slots:
    """The moments at which there are rows: their first and last microsecond, and how many rows each holds."""

    first: Moments
    last: Moments
    rows: Moments
    width: int

    @property
    def gaps(self) -> Moments:
        return self.first[1:] - self.last[:-1]


def _cut_slots(moments: Moments) -> _Slots:
    low, high = (int(moments[int(share * (len(moments) - 1))]) for share in (0.05, 0.95))
    width = max((high - low) // SLOTS, 1) if len(moments) > SLOTS else 1
    number = moments // width
    starts = np.append(0, np.flatnonzero(number[1:] != number[:-1]) + 1)
    ends = np.append(starts[1:], len(moments))
    return _Slots(moments[starts], moments[ends - 1], ends - starts, width)


def _usual_gap(slots: _Slots) -> int | None:
    """The longest gap in the middle that comes back: the second longest, since a real gap of weeks may come once."""
    edge = max(round(EDGE_SHARE * len(slots.first)), 1)
    inner = np.sort(slots.gaps[edge : len(slots.gaps) - edge])
    if len(inner) < ENOUGH_GAPS:
        return None
    return max(int(inner[-2]), slots.width)


def _draw_many(slots: _Slots, gap: int) -> Timeline:
    """Far gaps cut the slots into clusters. Dense are those with about as many rows as is usual in so many slots."""
    cuts = np.flatnonzero(slots.gaps > FAR_GAPS * gap)
    begins, ends = np.append(0, cuts + 1), np.append(cuts, len(slots.first) - 1)
    count, rows = ends - begins + 1, np.add.reduceat(slots.rows, begins)
    is_dense = (count >= DENSE_SLOTS) & (rows >= DENSE_SHARE * np.median(slots.rows) * count)
    is_dense[np.argmax(count)] = True
    dense = np.flatnonzero(is_dense)
    low, high = int(dense[0]), int(dense[-1])
    dense_end = int(slots.last[ends[high]])
    extent = dense_end - int(slots.first[begins[low]])
    room = max(FAR_GAPS * gap, min(int(ROOM_SHARE * extent), LONGEST_ROOM // timedelta(microseconds=1)))
    apart = slots.gaps[cuts]
    while low > 0 and apart[low - 1] <= room:
        low -= 1
    while high < len(apart) and apart[high] <= room:
        high += 1
    return _to_timeline(int(slots.first[begins[low]]), dense_end, int(slots.last[ends[high]]), gap=gap)


def _draw_few(slots: _Slots) -> Timeline:
    """Too few moments show no usual gap: an outlier lies far beyond the extent of all others."""
    low, high = 0, len(slots.first) - 1
    while high > low:
        cut = low + int(np.argmax(slots.gaps[low:high]))
        left, right = (int(slots.rows[low : cut + 1].sum()), int(slots.rows[cut + 1 : high + 1].sum()))
        begin, end = (low, cut) if left > right else (cut + 1, high)
        few = max(1, LONE_SHARE * (left + right)) if end - begin + 1 >= DENSE_SLOTS else RARE_SHARE * (left + right)
        extent = max(int(slots.last[end] - slots.first[begin]), DAY // timedelta(microseconds=1))
        if min(left, right) > few or slots.gaps[cut] <= FAR_EXTENTS * extent:
            break
        low, high = begin, end
    gap = int((slots.first[low + 1 : high + 1] - slots.last[low:high]).max(initial=slots.width))
    begin, end = int(slots.first[low]), int(slots.last[high])
    return _to_timeline(begin, end, end, gap=gap)


def _to_timeline(*moments: int, gap: int) -> Timeline:
    begin, dense_end, end = (np.datetime64(moment, "us").item() for moment in moments)
    return Timeline(begin, dense_end, end, timedelta(microseconds=gap))


# --- now -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """How far a table's rows reach in time.

    `known`: the timeline of known_at, None where no outcome is known. `late`: known_at is always the event's own time,
    so it does not say how late outcomes come.
    """

    events: Timeline
    known: Timeline | None
    late: bool

    def now(self, *, deadline: timedelta, today: datetime) -> datetime:
        """The newest moment of which something is known. `today` is the clock on the wall.

        Rows without an outcome are young, or they are scheduled and do not count. They are young where they end about
        as late as the newest outcome, or where they end today.
        """
        newest = self.events.dense_end
        if self.known is None:
            return newest
        reached = self.known.dense_end
        if newest <= reached + self.known.gap + (deadline if self.late else timedelta(0)):
            return max(reached, newest)
        if timedelta(0) <= today - self.events.end <= self.events.far:
            return max(reached, self.events.end)
        return reached

    def limit(self, *, deadline: timedelta, today: datetime) -> datetime:
        """The latest as_of that these rows allow: nothing is known of a later time."""
        newest = max(self.now(deadline=deadline, today=today), self.events.dense_end)
        return newest + max(DAY, self.events.gap, deadline)


def find_reach(event_time: Times, known_at: Times) -> Reach:
    """The reach of rows (n > 0). known_at is NaT where no outcome is known."""
    is_known = ~np.isnat(known_at)
    if not is_known.any():
        return Reach(draw_timeline(event_time), None, late=False)
    late = bool((known_at[is_known] == event_time[is_known]).all())
    return Reach(draw_timeline(event_time), draw_timeline(known_at[is_known]), late)


# --- outliers, as SQL -----------------------------------------------------------------------------------------------


def measure_reach(con: DuckDBPyConnection, rows: str, known: str) -> Reach | None:
    """The reach of the rows that have an event time.

    Args:
        rows: a table or a table function, as SQL.
        known: whether an outcome of a row is known, as SQL (`known_sql`).
    """
    moment = f"CASE WHEN {known} THEN known_at END AS known_at"
    times = con.sql(f"SELECT event_time, {moment} FROM {rows} WHERE event_time IS NOT NULL").to_arrow_table()
    return find_reach(times["event_time"].to_numpy(), times["known_at"].to_numpy()) if times.num_rows else None


def known_sql(outcomes: Sequence[str]) -> str:
    """Whether a row holds an outcome, as SQL. Without outcomes every row counts."""
    return "(" + (" OR ".join(f"{quote(name)} IS NOT NULL" for name in outcomes) or "TRUE") + ")"


def outlier_sql(reach: Reach | None, known: str) -> str:
    """The reason why a row is an outlier in time; NULL for every other row. `known` is as in `measure_reach`."""
    if reach is None:
        return "CAST(NULL AS VARCHAR)"
    lines = (("event_time", reach.events, "TRUE"), ("known_at", reach.known, known))
    return f"CASE {' '.join(_case_sql(name, line, where) for name, line, where in lines if line)} END"


def _case_sql(name: str, line: Timeline, where: str) -> str:
    bounds = f"{time_sql(line.begin)} AND {time_sql(line.end)}"
    reason = f" is an outlier in time: the other rows lie between {line.begin} and {line.end}"
    return f"WHEN {where} AND {name} NOT BETWEEN {bounds} THEN concat('{name} ', {name}, {literal(reason)})"


# --- pauses: lengths such as split.fold are measured in time that has rows ------------------------------------------


@dataclass(frozen=True)
class Span:
    """begin <= event_time < end."""

    begin: datetime
    end: datetime

    @property
    def days(self) -> timedelta:
        """Its length, rounded up to whole days."""
        return math.ceil((self.end - self.begin) / timedelta(days=1)) * timedelta(days=1)


def find_gaps(times: Times, *, longer: timedelta) -> list[Span]:
    """The gaps in these times (n, in any order) that are longer than `longer` and far longer than the usual gap.

    Each goes from the last row before it to the first row after it. The oldest comes first.
    """
    if len(times) < 2:
        return []
    far = np.timedelta64(max(longer, draw_timeline(times).far))
    ordered = _order(times).view("datetime64[us]")
    places = np.flatnonzero(np.diff(ordered) > far)
    return [Span(ordered[i].item(), ordered[i + 1].item()) for i in places.tolist()]


def place_folds(times: Times, end: datetime, *, folds: int, fold: timedelta) -> list[Span]:
    """The validation of each fold, oldest first: back to back up to `end`, each of length `fold` with pauses left out.

    `times` (n, in any order) are those of the rows.
    """
    gaps = find_gaps(times, longer=SHORT_SHARE * fold)
    spans: list[Span] = []
    for _ in range(folds):
        begin = end - fold
        for gap in reversed(gaps):
            if gap.begin < end and begin < gap.end:
                begin -= min(gap.end, end) - gap.begin
        spans.insert(0, Span(begin, end))
        end = begin
    return spans


def find_longest_gap(times: Times) -> Span:
    """The longest stretch between two of these times (n > 1, in any order)."""
    ordered = np.sort(times.astype("datetime64[us]"))
    place = int(np.argmax(np.diff(ordered)))
    return Span(ordered[place].item(), ordered[place + 1].item())
