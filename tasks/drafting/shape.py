"""What the rows are: when each happened, whether they are series or events, and what tells them apart.

Series: one row for each step of time (and for each entity), all columns measured together. Only what is older than a
row can predict it. Events: rows that come when they come; what stands in a row is known when its prediction is asked,
but for its outcome.
"""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from itertools import combinations

import duckdb
import numpy as np

from tasks.data import sqlcheck, timeline
from tasks.drafting.columns import Look, Looked, read_one
from tasks.drafting.sheet import Sheet
from tasks.drafting.wishes import Kind, Wishes, listed
from tasks.runtime.sql import quote

DOUBLED_SHARE = 0.001  # of the rows of a series may come twice
REPEATED_SHARE = 0.01  # of the rows of events may repeat another in every column
COVERED_SHARE = 0.3  # of all steps of all entities, that have a row
EVEN_SHARE = 0.6  # of the gaps that are one step: weekends and holidays may be missing
CALENDAR = {1: ("1 MONTH", 31), 3: ("3 MONTH", 92), 12: ("1 YEAR", 366)}  # months: an interval, and its days at most
UNITS = ((86400, "DAY"), (3600, "HOUR"), (60, "MINUTE"), (1, "SECOND"))
PARTS = {  # columns that are a time together, by their names: what each adds to the year
    "quarter": ("quarter|qtr|quartal", 4, "to_months(3 * ({} - 1))"),
    "month": ("month|mon|monat|mois", 12, "to_months({} - 1)"),
    "day": ("day|dom|tag|day_of_month", 31, "to_days({} - 1)"),
    "hour": ("hour|hr|stunde", 24, "to_hours({})"),
    "minute": ("minute|min", 60, "to_minutes({})"),
}
MOST_ENTITIES = 0.2  # of the rows: more levels than this make no series


@dataclass(frozen=True)
class Step:
    """The usual distance of two rows: an interval of SQL, and its longest length."""

    sql: str
    length: timedelta

    @property
    def words(self) -> str:
        number, unit = self.sql.split()
        return unit.lower() if number == "1" else f"{number} {unit.lower()}s"


@dataclass(frozen=True)
class Shape:
    """
    Attributes:
        time: SQL over the typed columns.
        time_columns: the columns in it.
        step: of a series; None for events.
        entity: what tells the series of one table apart.
        key: what tells rows apart; event_time may be in it.
        doubled: rows beyond the first of their key.
        times: the event times, in order.
    """

    time: str
    time_columns: tuple[str, ...]
    kind: Kind
    step: Step | None
    entity: tuple[str, ...]
    key: tuple[str, ...]
    doubled: int
    times: timeline.Times

    @property
    def begin(self) -> datetime:
        return timeline.draw_timeline(self.times).begin

    @property
    def end(self) -> datetime:
        return timeline.draw_timeline(self.times).dense_end


# --- when ------------------------------------------------------------------------------------------------------------


def find_time(sheet: Sheet, looked: Looked, wish: str | None) -> tuple[str, tuple[str, ...]]:
    """The event time as SQL, and its columns. Raises ValueError with the candidates where it cannot be told."""
    columns = looked.columns
    if wish in columns:
        if (spelling := columns[wish].spelling) is None:
            raise ValueError(
                f"--time {wish} holds no times that can be read, such as {listed(columns[wish].levels, 2)}. "
                f"{_name_candidates(looked)}"
            )
        return spelling.sql(quote_plain(wish)), (wish,)
    if wish is not None:
        kind = describe_sql(sheet, wish, "--time", columns)
        if not kind.startswith(("TIMESTAMP", "DATE")):
            raise ValueError(f"--time {wish} gives a {kind}, but a DATE or a TIMESTAMP is needed")
        return wish, find_columns(sheet, wish, columns)
    candidates = _list_candidates(looked)
    if len(candidates) == 1:
        return candidates[0]
    raise ValueError(f"--time must say when a row happened. {_name_candidates(looked)}")


def _list_candidates(looked: Looked) -> list[tuple[str, tuple[str, ...]]]:
    """Columns of times; where there are none, a year with what stands beside it."""
    spelled = {name: look.spelling for name, look in looked.columns.items() if look.spelling}
    whole = {name: spelling for name, spelling in spelled.items() if spelling.format != "%Y"}
    if whole:
        return [(spelling.sql(quote_plain(name)), (name,)) for name, spelling in whole.items()]
    return [_join_parts(looked, name) for name in spelled]


def _join_parts(looked: Looked, year: str) -> tuple[str, tuple[str, ...]]:
    sql, names = quote_plain(year), [year]
    for pattern, largest, part in PARTS.values():
        for name, look in looked.columns.items():
            if look.type == "INTEGER" and re.fullmatch(f"(?i){pattern}", name) and 1 < look.distinct <= largest:
                sql += f" + {part.format(quote_plain(name))}"
                names.append(name)
                break
    return sql, tuple(names)


def _name_candidates(looked: Looked) -> str:
    names = [name for name, look in looked.columns.items() if look.is_time]
    if names:
        return f"Columns with times are {listed(names)}: give one by --time, or SQL over the columns."
    return (
        f"No column holds times that can be read; there are {listed(looked.columns)}. Give SQL by --time, such as "
        "--time \"strptime(day || ' ' || clock, '%d.%m.%Y %H:%M')\"."
    )


# --- SQL that a person has written -----------------------------------------------------------------------------------


def describe_sql(sheet: Sheet, sql: str, flag: str, columns: Collection[str], *, table: str = "typed") -> str:
    """The type of an expression over the typed columns. Raises ValueError where it is none."""
    before = "DESCRIBE SELECT ("
    try:
        return str(sheet.con.execute(f"{before}{sql}\n) AS v FROM {table}").fetchall()[0][1])
    except duckdb.Error as error:
        raise ValueError(
            sqlcheck.explain(error, sql, setting=f"{flag} `{sql}`", before=before, columns=columns)
        ) from None


def find_columns(sheet: Sheet, sql: str, columns: Collection[str]) -> tuple[str, ...]:
    """Those of the columns that an expression reads."""
    tree = sheet.con.execute("SELECT json_serialize_sql(?)", [f"SELECT ({sql}\n) FROM typed"]).fetchall()[0][0]
    names = {str(path[-1]).lower() for path in _column_paths(json.loads(tree))}
    return tuple(name for name in columns if name.lower() in names)


def _column_paths(value: object) -> Iterator[Sequence[str]]:
    if isinstance(value, dict):
        if value.get("class") == "COLUMN_REF":
            yield value["column_names"]
        for part in value.values():
            yield from _column_paths(part)
    elif isinstance(value, list):
        for part in value:
            yield from _column_paths(part)


def quote_plain(name: str) -> str:
    """A column's name as SQL; without quotes where it needs none."""
    if re.fullmatch(r"[A-Za-z_]\w*", name) and name.isascii() and name.lower() not in _reserved():
        return name
    return quote(name)


@cache
def _reserved() -> frozenset[str]:
    with duckdb.connect() as con:
        rows = con.execute(
            "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved'"
        ).fetchall()
    return frozenset(row[0] for row in rows)


# --- what the rows are -----------------------------------------------------------------------------------------------


def find_shape(sheet: Sheet, looked: Looked, wishes: Wishes, label: Collection[str]) -> Shape:
    """`label`: the columns of the label. Raises ValueError where no row has a time, or the flags do not fit."""
    named = {*wishes.key, *wishes.entity, *wishes.known, *wishes.outcome} - {"event_time"}
    if unknown := sorted(named - looked.columns.keys()):
        raise ValueError(f"the table has no column {listed(unknown)}; it has {listed(looked.columns, 30)}")
    time, time_columns = find_time(sheet, looked, wishes.time)
    sheet.con.execute(f"CREATE OR REPLACE TEMP TABLE timed AS SELECT *, CAST({time} AS TIMESTAMP) AS _at FROM typed")
    arrived = sheet.con.sql("SELECT _at FROM timed WHERE _at IS NOT NULL ORDER BY _at").fetchnumpy()["_at"]
    times = np.asarray(arrived, "datetime64[us]")
    if len(times) < 2:
        raise ValueError(f"{sheet.address}: {len(times)} rows have a time by `{time}`: mend --time")
    others = [name for name in looked.columns if name not in time_columns and name not in label]
    entity, step = _find_series(sheet, looked, wishes, others)
    kind: Kind = wishes.kind or ("series" if step else "events")
    if kind == "series" and step is None:
        raise ValueError(
            "--kind series needs rows at an even step of time, one for each step and entity: name what tells the "
            "series apart by --entity, or leave --kind out"
        )
    if kind == "events":
        entity, step = wishes.entity, None
    key = wishes.key or (("event_time", *entity) if kind == "series" else _find_key(sheet, looked, others))
    return Shape(time, time_columns, kind, step, entity, key, _count_doubled(sheet, key), times)


def _find_series(
    sheet: Sheet, looked: Looked, wishes: Wishes, others: Sequence[str]
) -> tuple[tuple[str, ...], Step | None]:
    if wishes.kind == "events":
        return wishes.entity, None
    if wishes.entity:
        return wishes.entity, _find_step(sheet, wishes.entity)
    levels = [
        name
        for name in others
        if 1 < looked.columns[name].distinct <= MOST_ENTITIES * sheet.rows
        and looked.columns[name].type in ("VARCHAR", "INTEGER", "BIGINT", "BOOLEAN")
        and looked.columns[name].filled == sheet.rows
    ]
    levels.sort(key=lambda name: (not looked.columns[name].is_text, looked.columns[name].distinct))
    for entity in [(), *((name,) for name in levels), *combinations(levels[:6], 2)]:
        if (step := _find_step(sheet, entity)) and _covers(sheet, entity, step):
            return entity, step
    return (), None


def _find_step(sheet: Sheet, entity: Sequence[str]) -> Step | None:
    """The step of a table whose rows are one for each time and entity; None where they are not, or uneven."""
    names = ", ".join(map(quote, entity))
    by = f"PARTITION BY {names} " if entity else ""
    sheet.con.execute(
        f"CREATE OR REPLACE TEMP TABLE _gaps AS SELECT _at, before, _at - before AS gap FROM "
        f"(SELECT _at, lag(_at) OVER ({by}ORDER BY _at) AS before FROM timed WHERE _at IS NOT NULL) "
        "WHERE before IS NOT NULL"
    )
    month = " OR ".join(
        [
            "_at = before + to_months({0})",
            "(last_day(_at) = _at AND last_day(before) = before AND date_diff('month', before, _at) = {0})",
        ]
    )
    counts = ", ".join(f"count(*) FILTER ({month.format(months)})" for months in CALENDAR)
    total, same, *months = read_one(
        sheet, f"SELECT count(*), count(*) FILTER (gap = INTERVAL 0 SECOND), {counts} FROM _gaps"
    )
    if not total or same > DOUBLED_SHARE * total:
        return None
    if (best := max(months)) >= EVEN_SHARE * total:
        text, days = CALENDAR[list(CALENDAR)[months.index(best)]]
        return Step(text, timedelta(days=days))
    gap, count = read_one(sheet, "SELECT epoch_us(gap), count(*) FROM _gaps GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1")
    if count < EVEN_SHARE * total or gap % 1_000_000:
        return None
    seconds = gap // 1_000_000
    size, unit = next((size, unit) for size, unit in UNITS if seconds % size == 0)
    return Step(f"{seconds // size} {unit}", timedelta(seconds=seconds))


def _covers(sheet: Sheet, entity: Sequence[str], step: Step) -> bool:
    """Whether the series lie side by side: not each number of a flight is one."""
    names = ", ".join(map(quote, entity))
    count = f"(SELECT count(*) FROM (SELECT DISTINCT {names} FROM timed))" if entity else "1"
    rows, entities, seconds = read_one(
        sheet, f"SELECT count(*), {count}, epoch(max(_at)) - epoch(min(_at)) FROM timed WHERE _at IS NOT NULL"
    )
    steps = seconds / step.length.total_seconds() + 1
    return bool(rows >= COVERED_SHARE * entities * steps and rows >= 3 * entities)


def _find_key(sheet: Sheet, looked: Looked, others: Sequence[str]) -> tuple[str, ...]:
    """A column that is another one in each row; else the time with one or two columns. Empty where rows repeat, but for
    a few that repeat another as a whole: an export that ran twice, say."""
    repeated = _count_doubled(sheet, sheet.columns)
    repeated = repeated if repeated <= REPEATED_SHARE * sheet.rows else 0
    full = [name for name in others if looked.columns[name].filled == sheet.rows and _can_be_key(looked.columns[name])]
    full.sort(
        key=lambda name: bool(looked.columns[name].personal)
    )  # stable: a person's name only where nothing else is
    for name in full:
        if looked.columns[name].distinct == sheet.rows - repeated:
            return (name,)
    usable = sorted(full, key=lambda name: -looked.columns[name].distinct)[:6]
    for size in (0, 1, 2):
        for names in combinations(usable, size):
            if _count_doubled(sheet, ("event_time", *names)) <= repeated:
                return ("event_time", *names)
    return ()


def _can_be_key(look: Look) -> bool:
    return look.type in ("VARCHAR", "INTEGER", "BIGINT") and not look.is_time


def _count_doubled(sheet: Sheet, key: Sequence[str]) -> int:
    if not key:
        return 0
    names = ", ".join("_at" if name == "event_time" else quote(name) for name in key)
    rows, keys = read_one(
        sheet, f"SELECT (SELECT count(*) FROM timed), count(*) FROM (SELECT DISTINCT {names} FROM timed)"
    )
    return int(rows - keys)
