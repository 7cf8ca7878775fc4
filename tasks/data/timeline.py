"""Where a table's rows are dense in time: so what is "now", what is history, what is an outlier, what is a pause.

Rows are dense where the gap to the next is usual: at most `FAR` times the longest gap that comes back in the middle
of the table. Only the table's own gaps count, so the rule is the same for 3 rows a day and for 10,000, for a shop that
closes at weekends and for a table that is filled once a month. A real gap of weeks stays inside, because rows are dense
on both of its sides. A lone row beyond a far gap neither moves "now" nor begins the history.

A pause is no fault: a shop may close for a month. So lengths such as split.fold are measured in time that has rows.
What would begin in a pause, or before it, begins earlier by the length of the pause.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from duckdb import DuckDBPyConnection
from numpy.typing import NDArray

from tasks.data import arrays
from tasks.runtime.sql import literal, quote, time_sql

Times = NDArray[np.datetime64]
Moments = NDArray[np.int64]  # microseconds
Ends = tuple[datetime, datetime]  # the first and the last of some moments
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
    return _draw_timeline(_order(times))


def _draw_timeline(moments: Moments, rows: Moments | None = None) -> Timeline:
    """Of moments in their order (n > 0), and how many rows each has; None: one."""
    slots = _cut_slots(moments, rows)
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


def _cut_slots(moments: Moments, rows: Moments | None) -> _Slots:
    until = None if rows is None else np.cumsum(rows)
    count = len(moments) if until is None else int(until[-1])
    places = [int(share * (count - 1)) for share in (0.05, 0.95)]
    low, high = moments[places if until is None else np.searchsorted(until, places, side="right")].tolist()
    width = max((high - low) // SLOTS, 1) if count > SLOTS else 1
    number = moments // width
    starts = np.append(0, np.flatnonzero(number[1:] != number[:-1]) + 1)
    ends = np.append(starts[1:], len(moments))
    return _Slots(
        moments[starts], moments[ends - 1], ends - starts if rows is None else np.add.reduceat(rows, starts), width
    )


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


# --- the reach of a table, file by file -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What some rows of a table tell of its reach.

    Attributes:
        events, known: the moments of events and of known outcomes in order, and how many rows have each (2, n).
        late: known_at is always the event's own time.
    """

    events: Moments
    known: Moments
    late: bool

    def pack(self) -> Moments:
        """As one array (2, n): first come how many moments are of events, and whether known_at is late."""
        head = np.array([[self.events.shape[1]], [self.late]], np.int64)
        return np.concatenate([head, self.events, self.known], axis=1)

    @staticmethod
    def unpack(packed: Moments) -> "Seen":
        (count, late), rest = packed[:, 0], packed[:, 1:]
        return Seen(rest[:, :count], rest[:, count:], bool(late))


def see_times(event_time: Times, known_at: Times) -> Seen:
    """What rows (n) tell. known_at is NaT where no outcome is known."""
    is_known = ~np.isnat(known_at)
    late = bool((known_at[is_known] == event_time[is_known]).all())
    return Seen(_count_times(event_time), _count_times(known_at[is_known]), late)


def measure_moments(con: DuckDBPyConnection, rows: str, known: str) -> Seen:
    """What the rows tell that have an event time, a part of them in memory at a time.

    Args:
        rows: a table or a table function, as SQL.
        known: whether an outcome of a row is known, as SQL (`known_sql`).
    """
    moment = f"CASE WHEN {known} THEN CAST(known_at AS TIMESTAMP) END AS known_at"
    query = f"SELECT CAST(event_time AS TIMESTAMP) AS event_time, {moment} FROM {rows} WHERE event_time IS NOT NULL"
    batches = con.sql(query).to_arrow_reader()
    return _join([see_times(*(arrays.read_times(column) for column in batch.columns)) for batch in batches])


def join_reach(parts: Iterable[Seen]) -> Reach | None:
    """The reach of a table whose rows are in these parts. None where no row has an event time."""
    seen = _join(list(parts))
    if not seen.events.size:
        return None
    if not seen.known.size:
        return Reach(_draw_timeline(*seen.events), None, late=False)
    return Reach(_draw_timeline(*seen.events), _draw_timeline(*seen.known), seen.late)


def measure_reach(con: DuckDBPyConnection, rows: str, known: str) -> Reach | None:
    """The reach of the rows that have an event time. The arguments are those of `measure_moments`."""
    return join_reach([measure_moments(con, rows, known)])


def _count_times(times: Times) -> Moments:
    moments = times.astype("datetime64[us]", copy=False).view(np.int64)
    return np.stack(np.unique(moments, return_counts=True))


def _join(parts: Sequence[Seen]) -> Seen:
    events, known = _add_counts([part.events for part in parts]), _add_counts([part.known for part in parts])
    return Seen(events, known, all(part.late for part in parts))


def _add_counts(parts: Sequence[Moments]) -> Moments:
    """Moments with their rows (2, n), each moment once, in order."""
    moments, rows = np.concatenate([np.zeros((2, 0), np.int64), *parts], axis=1)
    if not len(moments):
        return np.zeros((2, 0), np.int64)
    if (moments[1:] < moments[:-1]).any():
        order = np.argsort(moments, kind="stable")  # which is fast where the parts are in order
        moments, rows = moments[order], rows[order]
    is_new = moments[1:] != moments[:-1]
    if is_new.all():
        return np.stack([moments, rows])
    starts = np.append(0, np.flatnonzero(is_new) + 1)
    return np.stack([moments[starts], np.add.reduceat(rows, starts)])


# --- outliers, as SQL -----------------------------------------------------------------------------------------------


def known_sql(outcomes: Sequence[str]) -> str:
    """Whether a row holds an outcome, as SQL. Without outcomes every row counts."""
    return "(" + (" OR ".join(f"{quote(name)} IS NOT NULL" for name in outcomes) or "TRUE") + ")"


def outlier_sql(reach: Reach | None, known: str) -> str:
    """The reason why a row is an outlier in time; NULL for every other row. `known` is as in `measure_moments`."""
    if reach is None:
        return "CAST(NULL AS VARCHAR)"
    lines = (("event_time", reach.events, "TRUE"), ("known_at", reach.known, known))
    return f"CASE {' '.join(_case_sql(name, line, where) for name, line, where in lines if line)} END"


def has_outliers(reach: Reach | None, events: Ends | None, known: Ends | None) -> bool:
    """Whether any of some rows is an outlier, by the first and the last of their times (`outlier_sql` says which)."""
    if reach is None:
        return False
    lines = ((reach.events, events), (reach.known, known))
    return any(line and ends and not line.begin <= ends[0] <= ends[1] <= line.end for line, ends in lines)


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
