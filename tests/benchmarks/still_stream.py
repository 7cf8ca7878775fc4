"""A stream that does not change, made of the real year: how often the monitor alarms, what it finds of planted shifts.

    python -m tests.benchmarks.still_stream 4
    python -m tests.benchmarks.still_stream 4 labels

In a folder with data/features. Whole days of finished feature rows are put into a random order, so that days stay what
they are (storms, weekends, hourly weather) and nothing else does. One half of the days is the model's history, the
other half comes in windows of a week. With `labels`, only the signal of performance is counted, and days that follow
each other stay together in stretches of 1, 4 and 7. Prints counts as JSON.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import params
from tasks.data import featurerows
from tasks.data.featurerows import Rows
from tasks.monitoring import drift
from tasks.monitoring.drift import Comparison
from tasks.monitoring.excess import AtPromotion, measure_holdout
from tasks.monitoring.signals.performance import measure_performance
from tasks.monitoring.statistics import History
from tasks.monitoring.window import Predictions, Watched, Window
from tasks.params import Params
from tasks.promotion.contest import row_losses
from tasks.promotion.registry import Version
from tasks.training import fitting, train
from tasks.training.columns import as_numbers
from tasks.training.model import Model
from tasks.training.profile import SCORE_COLUMN, Profile, build_profile
from tests.tasks import small

BEGIN = np.datetime64("2020-01-01", "us")
DAY = np.timedelta64(1, "D")
WEEK = 7
HELD = 28  # days at the end of the history that stand for the holdout
TOGETHER = (1, 4, 7)  # days
SHARES = (0.05, 0.40)  # of a category that is doubled
TURNED = 0.1  # of the labels
DRAWN = {"max_depth": 5, "eta": 0.15, "subsample": 0.8, "colsample_bytree": 0.6}
TUNED = small.by_hand(DRAWN, rounds=60)


@dataclass(frozen=True)
class Stream:
    """The year's days in a new order: days[i] comes on the i-th day."""

    rows: Rows
    starts: Any  # of each day's rows, and where the last one ends
    days: Any

    def take(self, first: int, last: int) -> Rows:
        """The rows that come from day `first` to before day `last`, at their new times."""
        places = [np.arange(self.starts[day], self.starts[day + 1]) for day in self.days[first:last]]
        rows = _at(self.rows, np.concatenate(places))
        lengths = [len(place) for place in places]
        of_day = rows.event_time - rows.event_time.astype("datetime64[D]")
        times = BEGIN + np.repeat(np.arange(first, last), lengths) * DAY + of_day
        return Rows(rows.table, times, times, rows.label)


def _at(rows: Rows, places: Any) -> Rows:
    return Rows(rows.table.take(places), rows.event_time[places], rows.known_at[places], rows.label[places])


def stream(rows: Rows, seed: int, *, together: int = 1) -> Stream:
    """Stretches of so many days stay together."""
    day = rows.event_time.astype("datetime64[D]").astype(int)
    known = np.unique(day)
    starts = np.append(np.searchsorted(day, known), len(day))
    stretches = np.random.default_rng(seed).permutation(len(known) // together)
    return Stream(rows, starts, (stretches[:, None] * together + np.arange(together)).ravel())


@dataclass(frozen=True)
class Watch:
    """A model of a stream's first days, and what it is held against."""

    p: Params
    profile: Profile
    model: Model
    at_promotion: AtPromotion

    def compare(self, rows: Rows) -> Comparison:
        return drift.compare(self.profile, rows.table, rows.event_time, false_alarms=self.p.drift.false_alarms)

    def alarms(self, rows: Rows) -> tuple[bool, bool]:
        """Of drift and of quality."""
        comparison = self.compare(rows)
        return comparison.alarm, bool(comparison.faulty or comparison.gone)

    def performance(self, rows: Rows, label: Any) -> bool:
        """On outcomes that are all mature."""
        since, until = _moment(rows.event_time[0]), _moment(rows.event_time[-1])
        shown = np.array([None if np.isnan(one) else one for one in label], dtype=object)
        unknown: Any = None
        version = Version(1, "", "", "", until, "", {})
        champion = Watched(
            version, self.model, unknown, self.p, self.profile, unknown, unknown, self.at_promotion, unknown
        )
        predictions = Predictions(since, until, rows.event_time, self.model.predict(rows.table), shown)
        return measure_performance(Window(since, until, predictions), champion).alarm


def _moment(time: np.datetime64) -> datetime:
    return time.astype("datetime64[us]").astype(datetime)


def watch(p: Params, history: Rows, days: int) -> Watch:
    """Trained on all but the newest days of the history, which stand for its holdout."""
    cut = BEGIN + (days - HELD) * DAY
    fitted = train.fit(fitting.take_training(history, _moment(cut), p), TUNED, p, threads=p.stage.threads)
    held = _at(history, np.flatnonzero(history.event_time >= cut))
    there = ~np.isnan(held.label)
    label, scores = held.label[there], fitted.predict(held.table)[there]
    losses = row_losses(label, scores, metric=p.gate.metric)
    at_promotion = measure_holdout(label, scores, losses, held.event_time[there], p.gate)
    parts = fitted.contributions(held.table.take(np.arange(0, len(held), max(len(held) // 500, 1))))
    profile = build_profile(
        history,
        importance=dict(zip(fitted.spec.names, np.abs(parts).mean(axis=0).tolist(), strict=True)),
        contributions=parts.mean(axis=0),
        scores={SCORE_COLUMN: fitted.predict(held.table)},
        score_times=held.event_time,
        until=_moment(BEGIN + days * DAY),
        window=timedelta(days=WEEK),
    )
    return Watch(p, profile, fitted, at_promotion)


# --- planted shifts ------------------------------------------------------------------------------------------------

Shift = Callable[[Rows], Rows]


def shifts(profile: Profile, history: Rows) -> Iterator[tuple[str, Shift]]:
    """Each number by half a deviation, and each level of 5 to 40 % twice as often."""
    for column in profile.columns:
        if column.kind == "number":
            by = 0.5 * float(np.nanstd(as_numbers(history.table[column.name])))
            yield f"{column.name} + half a deviation", _raised(column.name, by)
            continue
        shares = np.array(column.counts) / sum(column.counts)
        for level, share in zip(column.levels, shares, strict=False):
            if SHARES[0] <= share <= SHARES[1]:
                yield f"{column.name} {level} doubled", _doubled(column.name, level)


def _raised(name: str, by: float) -> Shift:
    def plant(rows: Rows) -> Rows:
        return _with(rows, name, pa.array(as_numbers(rows.table[name]) + by, from_pandas=True))

    return plant


def _doubled(name: str, level: str) -> Shift:
    def plant(rows: Rows) -> Rows:
        values = np.array(rows.table[name].to_pylist(), dtype=object)
        others = np.flatnonzero(values != level)
        count = min(int((values == level).sum()), len(others))
        values[np.random.default_rng(0).choice(others, count, replace=False)] = level
        return _with(rows, name, pa.array(values.tolist(), pa.string()))

    return plant


def _with(rows: Rows, name: str, values: Any) -> Rows:
    table = rows.table.set_column(rows.table.column_names.index(name), name, values)
    return Rows(table, rows.event_time, rows.known_at, rows.label)


def turned(label: Any, seed: int) -> Any:
    hit = np.random.default_rng(seed).random(len(label)) < TURNED
    return np.where(hit, 1 - label, label)


# --- the count -----------------------------------------------------------------------------------------------------


def count(p: Params, seeds: int) -> dict[str, Any]:
    rows = _whole_days(featurerows.read_rows(Path(p.paths.features)))
    result: dict[str, Any] = {"windows": [], "alarms": {}}
    for seed in range(seeds):
        made = stream(rows, seed)
        half = len(made.days) // 2
        history = made.take(0, half)
        held = watch(p, history, half)
        weeks = range(half, len(made.days) - WEEK + 1, WEEK)
        result["windows"] += [(seed, *held.alarms(made.take(day, day + WEEK))) for day in weeks]
        for day in list(weeks)[:-1:6]:
            _plant(result, held, history, [made.take(one, one + WEEK) for one in (day, day + WEEK)])
    return result | {
        "windows_of_history": History(held.profile, p.drift.false_alarms, held.profile.columns, True).windows
    }


def _whole_days(rows: Rows) -> Rows:
    """Without the first week, whose look-back is short, and a last day that is not whole."""
    begin, end = rows.event_time[0].astype("datetime64[D]") + 7, rows.event_time[-1].astype("datetime64[D]")
    return rows.take((rows.event_time >= begin) & (rows.event_time < end))


def _plant(result: dict[str, Any], held: Watch, history: Rows, pair: list[Rows]) -> None:
    for name, plant in shifts(held.profile, history):
        seen = [held.alarms(plant(one)) for one in pair]
        result["alarms"].setdefault(name, []).append([any(one) for one in zip(*seen, strict=True)])


def count_labels(p: Params, seeds: int) -> dict[int, dict[str, list[list[bool]]]]:
    """By how many days stay together, a list a stream: whether each window alarms, as it is and with labels turned."""
    rows = _whole_days(featurerows.read_rows(Path(p.paths.features)))
    counts: dict[int, dict[str, list[list[bool]]]] = {together: {"quiet": [], "turned": []} for together in TOGETHER}
    for seed, together in itertools.product(range(seeds), TOGETHER):
        made = stream(rows, seed, together=together)
        half = len(made.days) // 2
        held = watch(p, made.take(0, half), half)
        weeks = [made.take(day, day + WEEK) for day in range(half, len(made.days) - WEEK + 1, WEEK)]
        counts[together]["quiet"].append([held.performance(one, one.label) for one in weeks])
        counts[together]["turned"].append([held.performance(one, turned(one.label, seed)) for one in weeks])
    return counts


def main(seeds: int, what: str = "drift") -> None:
    print(json.dumps({"drift": count, "labels": count_labels}[what](params.load(), seeds), default=bool))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
