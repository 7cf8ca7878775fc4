"""The drafted features.sql: calendar, the known columns, and what was known of the past, never later than lead allows.

Of a series: the newest values of each measured column, means over two windows, and the value a season ago. Of events:
how many there were, and the mean outcome, over two windows, in all and for each group that comes often.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from tasks.drafting.columns import Look, Looked
from tasks.drafting.roles import Roles, Target
from tasks.drafting.shape import Shape, quote_plain
from tasks.runtime.sql import literal

DAY = timedelta(days=1)
MOST_MEASURED = 20  # columns beside the label's whose past makes features
MOST_GROUPS, GROUP_ROWS = 3, 20  # of events; rows of a group on average, at least
MOST_CLASSES = 4
LAGS = 3
YEARS = 2  # of history, before the season of the year can be learnt
DIGITS = 9  # after the point, of what has many


@dataclass(frozen=True)
class Window:
    """A stretch of the past: a name for columns, an interval, and its longest length."""

    name: str
    sql: str
    length: timedelta


@dataclass(frozen=True)
class Past:
    """Which windows and seasons a table's past is seen through."""

    windows: tuple[Window, ...]
    seasons: tuple[Window, ...]

    @property
    def reach(self) -> timedelta:
        return max((one.length for one in (*self.windows, *self.seasons)), default=DAY)


def _days(number: int) -> Window:
    return Window(f"{number}d", f"{number} DAY", number * DAY)


def _hours(number: int) -> Window:
    return Window(f"{number}h", f"{number} HOUR", timedelta(hours=number))


def _months(number: int) -> Window:
    return Window(f"{number}m", f"{number} MONTH", 31 * number * DAY)


def _years(number: int) -> Window:
    return Window(f"{number}y", f"{number} YEAR", 366 * number * DAY)


SERIES = [  # the longest step, and the windows and seasons that go with it
    (timedelta(minutes=10), Past((_hours(1), _days(1)), (_days(1), _days(7)))),
    (timedelta(hours=12), Past((_days(1), _days(7)), (_days(1), _days(7)))),
    (DAY, Past((_days(7), _days(28)), (_days(7), _days(364)))),
    (7 * DAY, Past((_days(28), _days(91)), (_days(364),))),
    (31 * DAY, Past((_months(3), _months(12)), (_months(12),))),
    (92 * DAY, Past((_months(12), _months(36)), (_months(12),))),
    (timedelta.max, Past((_years(3), _years(10)), ())),
]
EVENTS = [(timedelta(hours=1), Past((_hours(1), _days(1)), ())), (DAY, Past((_days(1), _days(7)), ()))]
SLOW_EVENTS = Past((_days(7), _days(28)), ())


def choose_past(shape: Shape, span: timedelta) -> Past:
    """Windows that hold some rows each, and seasons that the history has seen three times."""
    if shape.step:
        past = next(past for longest, past in SERIES if shape.step.length <= longest)
        seasons = tuple(one for one in past.seasons if span >= 3 * one.length and one.length > shape.step.length)
        return Past(past.windows, seasons)
    usual = span / max(len(shape.times), 1) * 20
    return next((past for longest, past in EVENTS if usual <= longest), SLOW_EVENTS)


@dataclass(frozen=True)
class Drafted:
    """The SQL, the names of its features, and the groups whose past it reads.

    Attributes:
        own: of a series, the features that are the label's own value, by name: the season that it lies back; None: the
            newest known.
    """

    sql: str
    features: tuple[str, ...]
    groups: tuple[str, ...]
    own: Mapping[str, Window | None] = field(default_factory=dict)


def write_features(
    table: str, looked: Looked, shape: Shape, target: Target, roles: Roles, past: Past, lookback: timedelta
) -> Drafted:
    writer = _Writer(table, looked, shape, target, roles, past, lookback)
    return writer.series() if shape.kind == "series" else writer.events()


def choose_groups(columns: Mapping[str, Look], shape: Shape, roles: Roles, rows: int) -> tuple[str, ...]:
    """Of events, the columns whose values come often enough to have a past of their own."""
    if shape.entity:
        return shape.entity
    often = [name for name in roles.known if columns[name].is_text and columns[name].distinct <= rows / GROUP_ROWS]
    return tuple(sorted(often, key=lambda name: -columns[name].distinct)[:MOST_GROUPS])


class _Writer:
    def __init__(
        self,
        table: str,
        looked: Looked,
        shape: Shape,
        target: Target,
        roles: Roles,
        past: Past,
        lookback: timedelta,
    ) -> None:
        self.table, self.columns, self.shape = quote_plain(table), looked.columns, shape
        self.target, self.roles, self.past, self.lookback = target, roles, past, lookback
        self.names: set[str] = {"row_id", "event_time", "known_at", "label", *map(str.lower, roles.outcomes)}
        self.features: list[str] = []
        self.own: dict[str, Window | None] = {}

    def name(self, wanted: str, *, is_feature: bool = True) -> str:
        """A name that no other feature has, and that XGBoost takes."""
        name = "".join("_" if letter in "[]<" or not letter.isprintable() else letter for letter in wanted).lstrip("_")
        name, number = name or "feature", 2
        while name.lower() in self.names:
            name, number = f"{wanted}_{number}", number + 1
        self.names.add(name.lower())
        if is_feature:
            self.features.append(name)
        return name

    # --- series ------------------------------------------------------------------------------------------------------

    def series(self) -> Drafted:
        keys = [quote_plain(name) for name in self.shape.entity]
        by = f"PARTITION BY {', '.join(keys)} " if keys else ""
        known = list(self.known_columns())
        calendar = list(self.calendar())
        lines = list(self.measured())
        windows = [
            f"last_{one.name} AS ({by}ORDER BY known_at RANGE BETWEEN INTERVAL {one.sql} PRECEDING AND CURRENT ROW)"
            for one in self.past.windows
        ]
        windows = [f"steps AS ({by}ORDER BY known_at)", *windows]
        same = " AND ".join(f"asked.{key} = past.{key}" for key in keys)
        seasons = [self.season(one, keys) for one in self.past.seasons]
        joins = ["LEFT JOIN newest ON newest.row_id = asked.row_id", *(join for join, _ in seasons)]
        selected = [
            *known,
            *calendar,
            "newest.* EXCLUDE (row_id)",
            *(column for _, columns in seasons for column in columns),
        ]
        sql = f"""\
{self.header()}
WITH asked AS (
    SELECT *, event_time - getvariable('lead') AS asked_at FROM spine
),

-- What the past looked like when each row became known, seen from it backwards. Decimals have exact sums, so that
-- threads cannot change the last digit.
past AS (
    SELECT {", ".join([*keys, "known_at"])},
{_block(lines)}
    FROM {self.table}
    WHERE known_at IS NOT NULL
    WINDOW
{_block(windows)}
),

-- The newest past that was known when the prediction is asked; none where features.lookback may not hold all of it.
newest AS (
    SELECT asked.row_id, past.* EXCLUDE ({", ".join([*keys, "known_at"])})
    FROM asked ASOF JOIN past ON {same + " AND " if same else ""}asked_at >= past.known_at
    WHERE asked_at - past.known_at <= INTERVAL {self.freshest} DAY
)

SELECT asked.row_id,
{_block(selected, 4)}
FROM asked
{chr(10).join(joins)}
"""
        return Drafted(sql, tuple(self.features), self.shape.entity, self.own)

    @property
    def freshest(self) -> int:
        """Days: beyond them the past would reach back further than the lookback."""
        return max(int((self.lookback - self.past.reach) / DAY), 1)

    def measured(self) -> Iterator[str]:
        """The columns of the CTE `past`."""
        for name, value, is_text, is_main in self.list_measured():
            for lag in range(LAGS if is_main else 1):
                column = self.name(f"{name}_{lag + 1}")
                if self.is_label(name) and not lag:
                    self.own[column] = None
                yield f"{value if not lag else f'lag({value}, {lag}) OVER steps'} AS {quote_plain(column)}"
            if is_text:
                continue
            for one in self.past.windows if is_main else self.past.windows[:1]:
                column = self.name(f"{name}_mean_{one.name}")
                yield f"avg({value}) OVER last_{one.name} AS {quote_plain(column)}"

    def list_measured(self) -> Iterator[tuple[str, str, bool, bool]]:
        """What has a past: a name, its SQL, whether it is a text, whether it is the label."""
        if not self.target.is_column:
            yield "outcome", self.outcome_sql(), self.target.task == "multiclass", True
        own = self.target.columns
        for name in (*own, *[name for name in self.roles.outcomes if name not in own][:MOST_MEASURED]):
            look = self.columns[name]
            if not look.is_time and not look.personal:
                yield name, self.value_sql(look), look.is_text, name in own

    def is_label(self, name: str) -> bool:
        """Whether what has this name in `list_measured` is the label itself."""
        return name == "outcome" if not self.target.is_column else name == self.target.columns[0]

    def season(self, one: Window, keys: Sequence[str]) -> tuple[str, list[str]]:
        """The row a season before the one that is asked, where it was known by then."""
        alias = f"before_{one.name}"
        same = [f"{alias}.{key} = asked.{key}" for key in keys]
        on = [f"{alias}.event_time = asked.event_time - INTERVAL {one.sql}", *same, f"{alias}.known_at <= asked_at"]
        columns = []
        for name, _, _, is_main in self.list_measured():
            if is_main and name in self.columns:
                column = self.name(f"{name}_{one.name}_before")
                if self.is_label(name):
                    self.own[column] = one
                columns.append(f"{alias}.{quote_plain(name)} AS {quote_plain(column)}")
        return f"LEFT JOIN {self.table} AS {alias} ON {' AND '.join(on)}", columns

    # --- events ------------------------------------------------------------------------------------------------------

    def events(self) -> Drafted:
        groups = choose_groups(self.columns, self.shape, self.roles, len(self.shape.times))
        known, calendar = list(self.known_columns()), list(self.calendar())
        keys = [quote_plain(name) for name in groups]
        outcomes = dict(self.list_outcomes())
        blocks = [self.group(None, outcomes), *(self.group(name, outcomes) for name in groups)]
        names = ["by_all", *(f"by_{i + 1}" for i in range(len(groups)))]
        asked = ", ".join([*keys, *["NULL"] * len(outcomes)])
        columns = ", ".join([*keys, *(f"{sql} AS {name}" for name, sql in outcomes.items())])
        by = ",\n\n".join(
            f"{name} AS (\n    SELECT row_id,\n{_block(lines)}\n    FROM timeline\n    WINDOW\n{_block(windows)}\n)"
            for name, (lines, windows) in zip(names, blocks, strict=True)
        )
        selected = [*known, *calendar, *(f"{name}.* EXCLUDE (row_id)" for name in names)]
        joins = "\n".join(f"JOIN {name} ON {name}.row_id = asked.row_id" for name in names)
        sql = f"""\
{self.header()}
WITH asked AS (
    SELECT *, event_time - getvariable('lead') AS asked_at FROM spine
),

-- Outcomes as they became known, and the questions between them, on one line of time. Decimals have exact sums, so that
-- threads cannot change the last digit.
timeline AS (
    SELECT NULL AS row_id, known_at AS moment, {columns}
    FROM {self.table}
    WHERE known_at IS NOT NULL
    UNION ALL
    SELECT row_id, asked_at, {asked} FROM asked
),

{by}

SELECT asked.row_id,
{_block(selected, 4)}
FROM asked
{joins}
"""
        return Drafted(sql, tuple(self.features), groups)

    def group(self, name: str | None, outcomes: dict[str, str]) -> tuple[list[str], list[str]]:
        """The columns of one group's CTE, and its windows."""
        by = f"PARTITION BY {quote_plain(name)} " if name else ""
        prefix = name or "all"
        lines, windows = [], []
        for one in self.past.windows:
            windows.append(
                f"last_{one.name} AS ({by}ORDER BY moment RANGE BETWEEN INTERVAL {one.sql} PRECEDING AND CURRENT ROW)"
            )
            count = quote_plain(self.name(f"{prefix}_rows_{one.name}"))
            lines.append(f"count({next(iter(outcomes))}) OVER last_{one.name} AS {count}")
            for outcome in outcomes:
                column = quote_plain(self.name(f"{prefix}_{outcome}_{one.name}"))
                lines.append(f"avg({outcome}) OVER last_{one.name} AS {column}")
        return lines, windows

    def list_outcomes(self) -> Iterator[tuple[str, str]]:
        """The outcome as numbers: itself, or whether it is one of the frequent classes."""
        if self.target.task != "multiclass":
            yield "outcome", self.outcome_sql()
            return
        for number, level in enumerate(self.target.classes[:MOST_CLASSES]):
            text = f"CAST(({self.target.expression}) AS VARCHAR) = {literal(level)}"
            slug = "".join(letter if letter.isalnum() else "_" for letter in level.lower())[:20] or str(number)
            yield self.name(f"is_{slug}", is_feature=False), f"CAST({text} AS INTEGER)"

    # --- both --------------------------------------------------------------------------------------------------------

    def outcome_sql(self) -> str:
        expression = f"({self.target.expression})" if not self.target.is_column else self.target.expression
        if self.target.task == "binary":
            return f"CAST({expression} AS INTEGER)"
        if self.target.task == "multiclass":
            return f"CAST({expression} AS VARCHAR)"
        look = self.columns[self.target.columns[0]] if self.target.is_column else None
        return _decimal(expression, look.decimals if look else DIGITS)

    def value_sql(self, look: Look) -> str:
        """A column as a value with exact sums."""
        name = quote_plain(look.name)
        if look.type == "BOOLEAN":
            return f"CAST({name} AS INTEGER)"
        return _decimal(name, look.decimals) if look.type == "DOUBLE" else name

    def known_columns(self) -> Iterator[str]:
        for name in self.roles.known:
            look = self.columns[name]
            column = f"asked.{quote_plain(name)}"
            if look.is_time:
                feature = self.name(f"days_since_{name}")
                sql = f"CAST({look.spelling.sql(column)} AS TIMESTAMP)" if look.spelling else column
                yield f"epoch(asked.event_time - {sql}) / 86400 AS {quote_plain(feature)}"
                continue
            feature = self.name(name)
            yield column if feature == name else f"{column} AS {quote_plain(feature)}"

    def calendar(self) -> Iterator[str]:
        """What of the calendar has been seen twice."""
        times = self.shape.times
        span = times[-1].item() - times[0].item()
        hours, weekdays = (
            {one.hour for one in times[-5000:].tolist()},
            {one.isoweekday() for one in times[-5000:].tolist()},
        )
        if len(hours) > 1:
            yield f"hour(asked.event_time) AS {quote_plain(self.name('hour'))}"
        if len(weekdays) > 1 and span >= 14 * DAY and not self.is_monthly:
            yield f"isodow(asked.event_time) AS {quote_plain(self.name('weekday'))}"
        if span >= YEARS * 365 * DAY and not (self.shape.step and self.shape.step.length > 92 * DAY):
            part = ("month", "month") if self.is_monthly else ("dayofyear", "day_of_year")
            yield f"{part[0]}(asked.event_time) AS {quote_plain(self.name(part[1]))}"

    @property
    def is_monthly(self) -> bool:
        return self.shape.step is not None and self.shape.step.length > 7 * DAY

    def header(self) -> str:
        return f"""\
-- Drafted by `evergreen init`: yours to change. The one definition of every feature, run in DuckDB for training,
-- scoring and serving alike.
--
-- In:  spine   the rows to make features for: row_id, event_time and spine.columns
--      {self.table}   the clean table, no further back than features.lookback
--      getvariable('lead')   how long before its event a prediction is asked
-- Out: row_id once for each row of the spine, and the features. Text is a category, everything else a number.
--
-- A row may use only what was known when its prediction is asked: known_at <= event_time - lead."""


def _decimal(sql: str, decimals: int) -> str:
    return f"TRY_CAST({sql} AS DECIMAL(27, {min(decimals, DIGITS)}))"


def _block(lines: Sequence[str], indent: int = 8) -> str:
    return textwrap.indent(",\n".join(lines), " " * indent)
