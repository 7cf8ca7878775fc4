"""probe: does features.sql use what nobody knew when a row was asked? A moment is probed, not a row.

At a moment all that became known later is hidden, and all rows that were asked in the hours before it are computed
again. A row that uses only what was known comes out the same; one that looks ahead does not, if what it looks at became
known after the moment. So the rows next to the moment show most, and a leak that hits one row in a hundred needs some
hundreds of them: where rows are few, more moments are probed. One row of each of the first moments is computed alone
too: a feature must not depend on which rows are asked together.

What no probe sees: a static table has no known_at, so nothing of it is hidden. The choices below are pure; what is done
in DuckDB follows them.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.runtime.sql import literal, quote

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

MOMENT_ROWS = 500  # of one moment at most, the newest
NEAR = timedelta(hours=1)  # a window that reaches an hour ahead shows in the rows of the hour before a moment only
NEAR_ROWS = 1000  # so many rows next to their moments are wanted in all: a leak in 1 % of them shows in ten
FEW_ROWS = 500  # in a build with fewer a leak in 1 % may show in none
MOST_TIMES = 8  # at most so many times features.leak_probes, where rows are few
GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, lie evenly however many are taken
RELATIVE, ABSOLUTE = 1e-6, 1e-9  # sums of fractions come out in another order
EPOCH = datetime(1970, 1, 1)
Microseconds = NDArray[np.int64]


@dataclass(frozen=True)
class Times:
    """The times of a period, in microseconds: when its rows are asked (in order), the places of the rows that have an
    outcome, how late outcomes are as a rule, and when each timed table learns something (in order)."""

    asked: Microseconds
    with_outcome: NDArray[np.int64]
    delay: int
    arrivals: tuple[Microseconds, ...]


@dataclass(frozen=True)
class Moment:
    """Where time is cut: the rows at first <= place < end are computed again; `near` of them lie next to it."""

    at: datetime
    first: int
    end: int
    near: int

    def __len__(self) -> int:
        return self.end - self.first


@dataclass(frozen=True)
class Probed:
    """How much was probed: moments, and different rows."""

    moments: int
    rows: int


# --- which moments ---------------------------------------------------------------------------------------------------


def read_times(spine: Path, timed: Sequence[Sequence[Path]], lead: timedelta) -> Times:
    """Of a period's file of the spine's table, and the files of each timed table around it."""
    import pyarrow.parquet as pq

    own = pq.read_table(spine, columns=["event_time", "known_at"])
    event, known = _microseconds(own["event_time"]), _microseconds(own["known_at"])
    has_outcome = own["known_at"].is_valid().to_numpy()
    order = np.argsort(event, kind="stable")
    delays = (known - event)[has_outcome]
    delay = max(int(np.median(delays)), 0) if len(delays) else 0
    news = [[pq.read_table(path, columns=["known_at"])["known_at"] for path in paths] for paths in timed]
    arrivals = tuple(
        np.sort(np.concatenate([_microseconds(part.drop_null()) for part in parts])) for parts in news if parts
    )
    return Times(event[order] - _length(lead), np.flatnonzero(has_outcome[order]), delay, arrivals)


def _microseconds(column: "pa.ChunkedArray") -> Microseconds:
    import pyarrow as pa

    values: Microseconds = column.cast(pa.timestamp("us")).cast(pa.int64()).fill_null(0).to_numpy()
    return values


def _length(length: timedelta) -> int:
    return length // timedelta(microseconds=1)


def choose_moments(times: Times, count: int, *, lead: timedelta, seed: str) -> list[Moment]:
    """At most `count` moments, drawn evenly from the times at which rows are asked, so that dense hours are drawn more
    often. The first n of them are the same, however many are asked for."""
    candidates = times.with_outcome if len(times.with_outcome) else np.arange(len(times.asked))
    draw = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=6).digest())
    moments: dict[int, Moment] = {}
    for number in range(count if len(candidates) else 0):
        share = (draw / 2**48 + number * GOLDEN) % 1
        place = int(candidates[int(share * len(candidates))])
        end = _end_before_news(times, place, draw + number, lead)
        moments.setdefault(end, _moment_at(times, end, lead))
    return list(moments.values())


def _end_before_news(times: Times, place: int, turn: int, lead: timedelta) -> int:
    """How many rows are asked before a table, each in turn, next learns something. Just before a table's news the most
    rows can be caught looking at it; a table without news for long stays as it is."""
    end = int(np.searchsorted(times.asked, times.asked[place], side="right"))
    if not times.arrivals:
        return end
    news = times.arrivals[turn % len(times.arrivals)]
    following = int(np.searchsorted(news, times.asked[place], side="right"))
    if following == len(news) or news[following] - times.asked[place] > _span(times, lead):
        return end
    return int(np.searchsorted(times.asked, news[following], side="left"))


def _moment_at(times: Times, end: int, lead: timedelta) -> Moment:
    at = int(times.asked[end - 1])
    first = max(int(np.searchsorted(times.asked, at - _span(times, lead), side="left")), end - MOMENT_ROWS)
    near = min(_length(NEAR), times.delay or _length(NEAR))
    since = max(int(np.searchsorted(times.asked, at - near, side="right")), first)
    return Moment(EPOCH + timedelta(microseconds=at), first, end, end - since)


def _span(times: Times, lead: timedelta) -> int:
    """How long before a moment rows are probed: further back, most rows' own outcomes were known at the moment."""
    return max(_length(lead) + times.delay, _length(NEAR))


def plan_moments(
    read_times: Callable[[int], Times], names: Sequence[str], *, at_least: int, lead: timedelta
) -> list[list[Moment]]:
    """The moments of each period, oldest first: as many as it takes to have NEAR_ROWS rows next to them."""
    chosen: list[list[Moment]] = [[] for _ in names]
    for total in range(at_least, MOST_TIMES * at_least + 1):
        counts = spread_evenly(total, len(names))
        chosen = [
            choose_moments(read_times(place), count, lead=lead, seed=name) if count else []
            for place, (name, count) in enumerate(zip(names, counts, strict=True))
        ]
        if sum(moment.near for moments in chosen for moment in moments) >= NEAR_ROWS:
            break
    return chosen


def spread_evenly(total: int, places: int) -> list[int]:
    """`total` spread over `places` as evenly as whole numbers go, more of it to the last."""
    return [total // places + (places - 1 - i < total % places) for i in range(places)] if places else []


def count_rows(moments: Sequence[Moment]) -> Probed:
    places = [np.arange(moment.first, moment.end) for moment in moments]
    return Probed(len(moments), len(np.unique(np.concatenate(places))) if places else 0)


def describe(probed: Probed, unseen: Sequence[str]) -> str:
    """One line for people: what was probed, and what was not."""
    if not probed.moments:
        return "no leak was looked for: no moment was probed (features.leak_probes)"
    line = f"no leak in {probed.rows:,} rows at {probed.moments} moments"
    if probed.rows < FEW_ROWS:
        line += f"; the rows lie too far apart to probe {FEW_ROWS}, so a leak in few of them may go unseen"
    if unseen:
        line += f"; no probe sees into {', '.join(unseen)}: a static table has no known_at"
    return line


# --- what differs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Of a column: in how many rows it differs, and the last of them with its two values."""

    count: int
    place: int
    one: Any
    other: Any


def find_differences(one: "pa.Table", other: "pa.Table") -> dict[str, Difference]:
    """The columns that differ between two tables of the same rows."""
    differences = {}
    for name in one.column_names:
        places = np.flatnonzero(_is_different(one[name], other[name]))
        if len(places):
            last = int(places[-1])
            differences[name] = Difference(len(places), last, one[name][last].as_py(), other[name][last].as_py())
    return differences


def _is_different(one: "pa.ChunkedArray", other: "pa.ChunkedArray") -> NDArray[np.bool_]:
    """But for the last digits of numbers: sums of fractions come out in another order."""
    import pyarrow as pa

    if pa.types.is_string(one.type) or pa.types.is_string(other.type):
        different: NDArray[np.bool_] = _objects(one) != _objects(other)
        return different
    left, right = (column.cast(pa.float64()).to_numpy() for column in (one, other))
    far = np.abs(left - right) > np.maximum(RELATIVE * np.maximum(np.abs(left), np.abs(right)), ABSOLUTE)
    return np.asarray(far | (np.isnan(left) != np.isnan(right)))


def _objects(column: "pa.ChunkedArray") -> NDArray[Any]:
    values = np.empty(len(column), dtype=object)
    values[:] = column.to_pylist()
    return values


# --- in DuckDB -------------------------------------------------------------------------------------------------------

ROWS = "row_id > getvariable('probe_first') AND row_id <= getvariable('probe_end')"
KNOWN = "known_at <= getvariable('probe_at')"


@dataclass(frozen=True)
class World:
    """The spine and the tables of a period in DuckDB. `recompute` runs features.sql over what they hold then."""

    con: "DuckDBPyConnection"
    timed: Sequence[str]
    recompute: Callable[[], "pa.Table"]

    @contextmanager
    def cut(self, limits: Mapping[str, str]) -> Iterator[None]:
        """Tables with only those rows for which their limit holds. On an error the connection is of no more use."""
        for name, limit in limits.items():
            self.con.execute(f"ALTER TABLE {quote(name)} RENAME TO {quote('_' + name)}")
            self.con.execute(f"CREATE TEMP VIEW {quote(name)} AS FROM {quote('_' + name)} WHERE {limit}")
        yield
        for name in limits:
            self.con.execute(f"DROP VIEW {quote(name)}")
            self.con.execute(f"ALTER TABLE {quote('_' + name)} RENAME TO {quote(name)}")

    def set_limits(self, sample: "Sample") -> None:
        at = f"TIMESTAMP {literal(str(sample.at))}"
        for name, value in (("first", sample.first), ("end", sample.end), ("at", at)):
            self.con.execute(f"SET VARIABLE probe_{name} = {value}")


@dataclass(frozen=True)
class Sample:
    """Rows at first <= place < end that are computed again as of a moment."""

    at: datetime
    first: int
    end: int


def refuse_leaks(
    world: World, stored: "pa.Table", event_time: "pa.ChunkedArray", moments: Sequence[Moment], *, alone: int
) -> None:
    """Compute the rows of each moment again; of the first `alone` moments the last row by itself too.

    `stored` and `event_time` are the period's features and its rows' times. Raises ValueError on a difference.
    """
    samples = [Sample(moment.at, moment.first, moment.end) for moment in moments]
    samples += [Sample(each.at, each.end - 1, each.end) for each in moments[:alone] if len(each) > 1]
    with world.cut({"spine": ROWS, **dict.fromkeys(world.timed, KNOWN)}):
        differing = ((sample, _compare(world, stored, sample)) for sample in samples)
        sample, differences = next(((one, found) for one, found in differing if found), (None, {}))
    if sample:
        raise ValueError(f"features.sql leaks: {_explain(world, stored, event_time, sample, differences)}")


def _compare(world: World, stored: "pa.Table", sample: Sample) -> "dict[str, Difference]":
    world.set_limits(sample)
    try:
        again = world.recompute()
    except ValueError as error:
        raise ValueError(
            f"features.sql leaks: it works on all rows, but not when all that was not known by {sample.at} is hidden. "
            f"{error}"
        ) from None
    return find_differences(stored.slice(sample.first, sample.end - sample.first), again)


def _explain(
    world: World,
    stored: "pa.Table",
    event_time: "pa.ChunkedArray",
    sample: Sample,
    differences: "Mapping[str, Difference]",
) -> str:
    """What differs also when nothing is hidden depends on which rows are asked together; the rest looks ahead."""
    with world.cut({"spine": ROWS}):
        together = _compare(world, stored, sample)
    name = next((name for name in differences if name not in together), next(iter(differences)))
    found, count = differences[name], sample.end - sample.first
    event = event_time[sample.first + found.place].as_py()
    row = f"`{name}` of the row at {event} is {found.one}, but {found.other}"
    if name not in together:
        return (
            f"{row} when all that was not known by {sample.at} is hidden ({found.count} of {count} rows differ). "
            "Compare known_at with event_time - lead."
        )
    return (
        f"{row} when it is computed with only the {count} rows asked up to {sample.at} ({found.count} of them differ). "
        "A row's features must not depend on which other rows the spine holds: read other rows from the clean tables, "
        "where known_at <= event_time - lead."
    )
