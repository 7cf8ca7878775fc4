"""timeline: where a table's rows are dense in time; so what is "now", what is history, and what is an outlier. Pure.

Rows are dense where the gap to the next is usual: at most `FAR` times the longest gap that comes back in the middle
of the table. Only the table's own gaps count, so the rule is the same for 3 rows a day and for 10,000, for a shop that
closes at weekends and for a table that is filled once a month. A real gap of weeks stays inside, because rows are dense
on both of its sides. A lone row beyond a far gap neither moves "now" nor begins the history.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.runtime.sql import literal, quote

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Times = NDArray[np.datetime64]
Moments = NDArray[np.int64]  # microseconds
SLOTS = 4096  # the middle nine tenths of more rows than this are cut into so many: what lies closer is one moment
EDGE = 0.1  # of the slots at either end say nothing of what is usual: the outliers are there
FAR = 3  # times the usual gap
ENOUGH_GAPS = 30  # in the middle of a table, to tell what is usual
DENSE_SLOTS = 3  # of one cluster, to be more than a lone row
DENSE_SHARE = 0.1  # of the usual number of rows in a slot
FAR_EXTENT = 3  # times the extent of all other rows, where there are too few gaps
LONE_SHARE, RARE_SHARE = 0.2, 0.01  # of the rows, where there are too few gaps; where there are one or two moments
ROOM, LONGEST_ROOM = 0.5, timedelta(days=180)  # of the dense part: a row that lies no further off is kept
DAY = timedelta(days=1)
OUTLIER = "_outlier"  # the column that says why a row is one; no column of a contract begins so
SHORT = 0.5  # of a fold: a gap that is no longer leaves the fold most of its rows


@dataclass(frozen=True)
class Timeline:
    """Rows are dense up to `dense_end`; those before `begin` or after `end` are outliers. `gap`: the usual one."""

    begin: datetime
    dense_end: datetime
    end: datetime
    gap: timedelta

    @property
    def far(self) -> timedelta:
        return FAR * self.gap


def draw_timeline(times: Times) -> Timeline:
    """The timeline of rows (n > 0), in any order."""
    moments = np.sort(times.astype("datetime64[us]").astype(np.int64))
    slots = _cut_slots(moments)
    gap = _usual_gap(slots)
    return _of_few(slots) if gap is None else _of_many(slots, gap)


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
    starts = np.flatnonzero(np.diff(number, prepend=number[0] - 1))
    ends = np.append(starts[1:], len(moments))
    return _Slots(moments[starts], moments[ends - 1], ends - starts, width)


def _usual_gap(slots: _Slots) -> int | None:
    """The longest gap in the middle that comes back: the second longest, since a real gap of weeks may come once."""
    edge = max(round(EDGE * len(slots.first)), 1)
    inner = np.sort(slots.gaps[edge : len(slots.gaps) - edge])
    if len(inner) < ENOUGH_GAPS:
        return None
    return max(int(inner[-2]), slots.width)


def _of_many(slots: _Slots, gap: int) -> Timeline:
    cuts = np.flatnonzero(slots.gaps > FAR * gap)
    begins, ends = np.append(0, cuts + 1), np.append(cuts, len(slots.first) - 1)
    dense = np.flatnonzero(_are_dense(slots, begins, ends))
    low, high = int(dense[0]), int(dense[-1])
    dense_end = int(slots.last[ends[high]])
    extent = dense_end - int(slots.first[begins[low]])
    room = max(FAR * gap, min(int(ROOM * extent), LONGEST_ROOM // timedelta(microseconds=1)))
    apart = slots.gaps[cuts]
    while low > 0 and apart[low - 1] <= room:
        low -= 1
    while high < len(apart) and apart[high] <= room:
        high += 1
    return _timeline(int(slots.first[begins[low]]), dense_end, int(slots.last[ends[high]]), gap)


def _are_dense(slots: _Slots, begins: Any, ends: Any) -> NDArray[np.bool_]:
    """Of clusters of slots: those with about as many rows as the table usually has in so many slots."""
    count, rows = ends - begins + 1, np.add.reduceat(slots.rows, begins)
    dense = (count >= DENSE_SLOTS) & (rows >= DENSE_SHARE * np.median(slots.rows) * count)
    dense[np.argmax(count)] = True
    return np.asarray(dense)


def _of_few(slots: _Slots) -> Timeline:
    """Too few moments to tell a usual gap: lone is what lies far beyond the extent of all others."""
    low, high = 0, len(slots.first) - 1
    while high > low:
        cut = low + int(np.argmax(slots.gaps[low:high]))
        left, right = (int(slots.rows[low : cut + 1].sum()), int(slots.rows[cut + 1 : high + 1].sum()))
        begin, end = (low, cut) if left > right else (cut + 1, high)
        few = max(1, LONE_SHARE * (left + right)) if end - begin + 1 >= DENSE_SLOTS else RARE_SHARE * (left + right)
        extent = max(int(slots.last[end] - slots.first[begin]), DAY // timedelta(microseconds=1))
        if min(left, right) > few or slots.gaps[cut] <= FAR_EXTENT * extent:
            break
        low, high = begin, end
    gap = int((slots.first[low + 1 : high + 1] - slots.last[low:high]).max(initial=slots.width))
    begin, end = int(slots.first[low]), int(slots.last[high])
    return _timeline(begin, end, end, gap)


def _timeline(begin: int, dense_end: int, end: int, gap: int) -> Timeline:
    return Timeline(_moment(begin), _moment(dense_end), _moment(end), timedelta(microseconds=gap))


def _moment(microseconds: int) -> datetime:
    moment: datetime = np.datetime64(microseconds, "us").item()
    return moment


# --- now -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """How far a table's rows tell of time. `known`: of the moments when outcomes were known; None where none was.
    `late`: known_at says nothing of how late outcomes come, since it is the event's own time."""

    events: Timeline
    known: Timeline | None
    late: bool

    def now(self, *, deadline: timedelta, today: datetime) -> datetime:
        """The newest moment of which something is known.

        Rows without an outcome may be young, or scheduled. They are young where they end about as late as the newest
        outcome, or where they end at `today`, the clock on the wall; else they are scheduled, and tell nothing of now.
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
        """The latest as_of that these rows allow: beyond it nothing has come, and nothing can be told."""
        newest = max(self.now(deadline=deadline, today=today), self.events.dense_end)
        return newest + max(DAY, self.events.gap, deadline)


def find_reach(event_time: Times, known_at: Times) -> Reach:
    """Of rows (n > 0). known_at is NaT where no outcome is known."""
    there = ~np.isnat(known_at)
    if not there.any():
        return Reach(draw_timeline(event_time), None, late=False)
    late = bool((known_at[there] == event_time[there]).all())
    return Reach(draw_timeline(event_time), draw_timeline(known_at[there]), late)


# --- outliers, as SQL -----------------------------------------------------------------------------------------------


def measure_reach(con: "DuckDBPyConnection", table: str, outcomes: Sequence[str]) -> Reach | None:
    """The reach of the rows that have an event time. An outcome counts as known where the row holds one."""
    moment = f"CASE WHEN {_is_known(outcomes)} THEN known_at END AS known_at"
    rows = con.sql(f"SELECT event_time, {moment} FROM {quote(table)} WHERE event_time IS NOT NULL").to_arrow_table()
    if not rows.num_rows:
        return None
    return find_reach(rows["event_time"].to_numpy(), rows["known_at"].to_numpy())


def _is_known(outcomes: Sequence[str]) -> str:
    return "(" + (" OR ".join(f"{quote(name)} IS NOT NULL" for name in outcomes) or "TRUE") + ")"


def outlier_sql(reach: Reach | None, outcomes: Sequence[str]) -> str:
    """Why a row is an outlier in time; NULL for one that is none."""
    if reach is None:
        return "CAST(NULL AS VARCHAR)"
    cases = _case("event_time", reach.events, "TRUE")
    cases += _case("known_at", reach.known, _is_known(outcomes)) if reach.known else ""
    return f"CASE {cases} END"


def _case(name: str, line: Timeline, where: str) -> str:
    bounds = " AND ".join(f"TIMESTAMP {literal(str(moment))}" for moment in (line.begin, line.end))
    far = f" is an outlier in time: the other rows lie between {line.begin} and {line.end}"
    return f"WHEN {where} AND {name} NOT BETWEEN {bounds} THEN concat('{name} ', {name}, {literal(far)}) "


def to_json(reach: Reach | None) -> str:
    return json.dumps(reach and asdict(reach), default=_plain)


def _plain(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value.isoformat()


def from_json(text: str) -> Reach | None:
    raw = json.loads(text)
    if raw is None:
        return None
    return Reach(_line(raw["events"]), raw["known"] and _line(raw["known"]), raw["late"])


def _line(raw: Mapping[str, Any]) -> Timeline:
    moments = {name: datetime.fromisoformat(raw[name]) for name in ("begin", "dense_end", "end")}
    return Timeline(**moments, gap=timedelta(seconds=raw["gap"]))


# --- pauses: lengths such as split.fold are measured in time that has rows ------------------------------------------


@dataclass(frozen=True)
class Span:
    """begin <= event_time < end."""

    begin: datetime
    end: datetime

    @property
    def days(self) -> timedelta:
        """Its length, in whole days: never less."""
        return math.ceil((self.end - self.begin) / timedelta(days=1)) * timedelta(days=1)


def find_gaps(times: Times, *, longer: timedelta) -> list[Span]:
    """The gaps in these times (n, in any order) that are longer than this, and far longer than the table's usual gap:
    from the last row before each to the first after it, oldest first."""
    if len(times) < 2:
        return []
    least = max(longer, draw_timeline(times).far)
    ordered = np.sort(times.astype("datetime64[us]"))
    places = np.flatnonzero(np.diff(ordered) > np.timedelta64(least))
    return [Span(ordered[i].item(), ordered[i + 1].item()) for i in places.tolist()]


def place_folds(times: Times, end: datetime, *, folds: int, fold: timedelta) -> list[Span]:
    """Where each fold's validation lies, oldest first: one after the other up to `end`, each of `fold` in time that has
    rows (n, in any order)."""
    gaps = find_gaps(times, longer=SHORT * fold)
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


def find_longest_gap(times: Times) -> Span:
    """The longest stretch between two of these times (n > 1, in any order)."""
    ordered = np.sort(times.astype("datetime64[us]"))
    place = int(np.argmax(np.diff(ordered)))
    return Span(ordered[place].item(), ordered[place + 1].item())
