"""Does features.sql use what nobody knew when a prediction was asked?

Some moments are probed. Everything that became known after a moment is hidden, and all rows that were asked in the
hours before it are computed again. A row that uses only what was known comes out the same. A row that looks ahead comes
out otherwise, if what it looks at became known after the moment. So the rows next to the moment show most. To catch a
leak that hits one row in a hundred takes some hundreds of them: where rows are few, more moments are probed. One row of
each of the first moments is also computed alone: a feature must not depend on which rows are asked together.

No probe sees into a static table: it has no known_at, so nothing of it is hidden. The choices below are pure; what is
done in DuckDB follows them.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.data.manifest import Probes
from tasks.runtime.sql import quote, time_sql

MOMENT_ROWS = 500  # rows that are probed of one moment at most, the newest
NEAR = timedelta(hours=1)  # a window that reaches an hour ahead shows in the rows of the hour before a moment only
NEAR_ROWS = 1000  # rows next to their moments, in all: a leak in 1 % of them shows in ten
FEW_ROWS = 500  # in a build with fewer a leak in 1 % may show in none
MOST_PROBES_FACTOR = 8  # times features.leak_probes moments are probed at most, where rows are few
GOLDEN_RATIO = (5**0.5 - 1) / 2  # its multiples, modulo 1, lie evenly however many are taken
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-6, 1e-9  # sums of fractions are added in another order
EPOCH = datetime(1970, 1, 1)
Microseconds = NDArray[np.int64]


@dataclass(frozen=True)
class Times:
    """The times of a period, in microseconds."""

    asked: Microseconds  # of its rows, in order
    with_outcome: NDArray[np.int64]  # the places of the rows that have an outcome
    delay: int  # of an outcome, the median
    arrivals: tuple[Microseconds, ...]  # of each timed table: when it learns something, in order


@dataclass(frozen=True)
class Moment:
    """Where time is cut: the rows at first <= place < end are computed again; `near` of them lie close before it."""

    at: datetime
    first: int
    end: int
    near: int

    def __len__(self) -> int:
        return self.end - self.first


# --- which moments ---------------------------------------------------------------------------------------------------


def read_times(spine: Path, timed: Sequence[Sequence[Path]], lead: timedelta) -> Times:
    """The times of a period's file of the spine's table, and of the files of each timed table around it."""
    rows = pq.read_table(spine, columns=["event_time", "known_at"])
    event_time, known_at = _microseconds(rows["event_time"]), _microseconds(rows["known_at"])
    has_outcome, order = rows["known_at"].is_valid().to_numpy(), np.argsort(event_time, kind="stable")
    delay = int(np.median((known_at - event_time)[has_outcome])) if has_outcome.any() else 0
    news = [[pq.read_table(path, columns=["known_at"])["known_at"] for path in paths] for paths in timed]
    arrivals = tuple(
        np.sort(np.concatenate([_microseconds(part.drop_null()) for part in parts])) for parts in news if parts
    )
    return Times(event_time[order] - _length(lead), np.flatnonzero(has_outcome[order]), max(delay, 0), arrivals)


def _microseconds(column: pa.ChunkedArray) -> Microseconds:
    return np.asarray(column.cast(pa.timestamp("us")).cast(pa.int64()).fill_null(0), dtype=np.int64)


def _length(length: timedelta) -> int:
    return length // timedelta(microseconds=1)


def choose_moments(times: Times, count: int, *, lead: timedelta, seed: str) -> list[Moment]:
    """At most `count` moments, drawn evenly from the rows, so that dense hours are drawn more often.

    The first n of them are the same for every count. `seed` starts the draw.
    """
    candidates = times.with_outcome if len(times.with_outcome) else np.arange(len(times.asked))
    draw = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=6).digest())
    moments: dict[int, Moment] = {}
    for number in range(count if len(candidates) else 0):
        place = int(candidates[int(((draw / 2**48 + number * GOLDEN_RATIO) % 1) * len(candidates))])
        end = _end_before_news(times, place, draw + number, lead)
        at, near = int(times.asked[end - 1]), min(_length(NEAR), times.delay or _length(NEAR))
        first = max(int(np.searchsorted(times.asked, at - _span(times, lead), side="left")), end - MOMENT_ROWS)
        since = max(int(np.searchsorted(times.asked, at - near, side="right")), first)
        moments.setdefault(end, Moment(EPOCH + timedelta(microseconds=at), first, end, end - since))
    return list(moments.values())


def _end_before_news(times: Times, place: int, turn: int, lead: timedelta) -> int:
    """How many rows are asked before a table next learns something. Tables take turns.

    Just before its news, most rows can be caught looking at a table. One without news for long leaves the place as is.
    """
    end = int(np.searchsorted(times.asked, times.asked[place], side="right"))
    if not times.arrivals:
        return end
    news = times.arrivals[turn % len(times.arrivals)]
    following = int(np.searchsorted(news, times.asked[place], side="right"))
    if following == len(news) or news[following] - times.asked[place] > _span(times, lead):
        return end
    return int(np.searchsorted(times.asked, news[following], side="left"))


def _span(times: Times, lead: timedelta) -> int:
    """How long before a moment rows are probed. Of older rows, most outcomes were known at the moment."""
    return max(_length(lead) + times.delay, _length(NEAR))


def plan_moments(
    read_times: Callable[[int], Times], names: Sequence[str], *, at_least: int, lead: timedelta
) -> list[list[Moment]]:
    """The moments of each period, oldest first: as many as it takes to have NEAR_ROWS rows close before them."""
    chosen: list[list[Moment]] = []
    for total in range(at_least, MOST_PROBES_FACTOR * at_least + 1):
        chosen = [
            choose_moments(read_times(place), count, lead=lead, seed=names[place]) if count else []
            for place, count in enumerate(spread_evenly(total, len(names)))
        ]
        if sum(moment.near for moments in chosen for moment in moments) >= NEAR_ROWS:
            break
    return chosen


def spread_evenly(total: int, places: int) -> list[int]:
    """`total` spread over `places` as evenly as whole numbers allow, with more for the last ones."""
    return [total // places + (places - 1 - i < total % places) for i in range(places)] if places else []


def count_rows(moments: Sequence[Moment]) -> int:
    """Different rows that are computed again."""
    return len({place for moment in moments for place in range(moment.first, moment.end)})


def describe(probes: Probes) -> str:
    """One line for people: what was probed, and what was not."""
    if not probes.moments:
        return "no leak was looked for: no moment was probed (features.leak_probes)"
    line = f"no leak in {probes.rows:,} rows at {probes.moments} moments"
    if probes.rows < FEW_ROWS:
        line += f"; the rows lie too far apart to probe {FEW_ROWS}, so a leak in few of them may go unseen"
    if probes.unseen:
        line += f"; no probe sees into {', '.join(probes.unseen)}: a static table has no known_at"
    return line


# --- what differs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Of a column: in how many rows it differs, and the last of them with its two values."""

    count: int
    place: int
    one: Any
    other: Any


def find_differences(one: pa.Table, other: pa.Table) -> dict[str, Difference]:
    """The columns that differ between two tables of the same rows."""
    differences = {}
    for name in one.column_names:
        if places := np.flatnonzero(_is_different(one[name], other[name])).tolist():
            values = (table[name][places[-1]].as_py() for table in (one, other))
            differences[name] = Difference(len(places), places[-1], *values)
    return differences


def _is_different(one: pa.ChunkedArray, other: pa.ChunkedArray) -> NDArray[np.bool_]:
    """By row. The last digits of numbers do not count."""
    if pa.types.is_string(one.type) or pa.types.is_string(other.type):
        return np.array([left != right for left, right in zip(one.to_pylist(), other.to_pylist(), strict=True)], bool)
    left, right = (column.cast(pa.float64()).to_numpy() for column in (one, other))
    far = np.abs(left - right) > np.maximum(
        RELATIVE_TOLERANCE * np.maximum(np.abs(left), np.abs(right)), ABSOLUTE_TOLERANCE
    )
    return np.asarray(far | (np.isnan(left) != np.isnan(right)))


# --- in DuckDB -------------------------------------------------------------------------------------------------------

ROWS = "row_id > getvariable('probe_first') AND row_id <= getvariable('probe_end')"
KNOWN = "known_at <= getvariable('probe_at')"


@dataclass(frozen=True)
class World:
    """The spine and the tables of a period in DuckDB. `recompute` runs features.sql over what they hold then."""

    con: duckdb.DuckDBPyConnection
    timed: Sequence[str]
    recompute: Callable[[], pa.Table]

    @contextmanager
    def limit_rows(self, limits: Mapping[str, str]) -> Iterator[None]:
        """Hide all rows of these tables for which their limit does not hold. After an error the connection is unfit."""
        for name, limit in limits.items():
            self.con.execute(f"ALTER TABLE {quote(name)} RENAME TO {quote('_' + name)}")
            self.con.execute(f"CREATE TEMP VIEW {quote(name)} AS FROM {quote('_' + name)} WHERE {limit}")
        yield
        for name in limits:
            self.con.execute(f"DROP VIEW {quote(name)}")
            self.con.execute(f"ALTER TABLE {quote('_' + name)} RENAME TO {quote(name)}")


def refuse_leaks(
    world: World, stored: pa.Table, event_time: pa.ChunkedArray, moments: Sequence[Moment], *, alone: int
) -> None:
    """Compute the rows of each moment again; of the first `alone` moments the last row by itself too.

    Args:
        stored: the period's features.
        event_time: the times of its rows.

    Raises:
        ValueError: a row comes out otherwise.
    """
    single = [replace(moment, first=moment.end - 1) for moment in moments[:alone] if len(moment) > 1]
    with world.limit_rows({"spine": ROWS, **dict.fromkeys(world.timed, KNOWN)}):
        for moment in [*moments, *single]:
            if differences := _compare(world, stored, moment):
                break
        else:
            return
    raise ValueError(f"features.sql leaks: {_explain(world, stored, event_time, moment, differences)}")


def _compare(world: World, stored: pa.Table, moment: Moment) -> dict[str, Difference]:
    """The columns of the moment's rows that differ from what is stored, when the rows are computed again."""
    for name, value in (("first", moment.first), ("end", moment.end), ("at", time_sql(moment.at))):
        world.con.execute(f"SET VARIABLE probe_{name} = {value}")
    try:
        again = world.recompute()
    except ValueError as error:
        raise ValueError(
            f"features.sql leaks: it works on all rows, but not when all that was not known by {moment.at} is hidden. "
            f"{error}"
        ) from None
    return find_differences(stored.slice(moment.first, len(moment)), again)


def _explain(
    world: World,
    stored: pa.Table,
    event_time: pa.ChunkedArray,
    moment: Moment,
    differences: Mapping[str, Difference],
) -> str:
    """A column that differs also when nothing is hidden depends on which rows are asked together. Others look ahead."""
    with world.limit_rows({"spine": ROWS}):
        together = _compare(world, stored, moment)
    name = next((name for name in differences if name not in together), next(iter(differences)))
    difference, count = differences[name], len(moment)
    event = event_time[moment.first + difference.place].as_py()
    row = f"`{name}` of the row at {event} is {difference.one}, but {difference.other}"
    if name not in together:
        return (
            f"{row} when all that was not known by {moment.at} is hidden ({difference.count} of {count} rows differ). "
            "Compare known_at with event_time - lead."
        )
    return (
        f"{row} when it is computed with only the {count} rows asked up to {moment.at} ({difference.count} of them "
        "differ). A row's features must not depend on which other rows the spine holds: read other rows from the clean "
        "tables, where known_at <= event_time - lead."
    )
