"""Made streams that do not change, with columns that are hard to hold against a history: how often drift alarms.

    python -m tests.benchmarks.still_columns 30

Of each kind so many streams: 84 days of history and eight weeks after it, of plain columns and one of the kind. The
last week also comes with planted faults, one at a time: which are found. Prints counts as JSON.
"""

import json
import sys
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.monitoring import drift
from tasks.monitoring.drift import Comparison
from tasks.monitoring.statistics import History
from tasks.params import Drift
from tasks.training.profile import Profile, build_profile
from tests.tasks import small

KINDS = ("zipf", "unique text", "unique number", "plain")
HISTORY, WEEKS, WEEK = 84, 8, 7  # days, weeks, days
PER_DAY = 60
LEVELS = 5000
BEGIN = np.datetime64("2024-01-01", "us")
SETTINGS = Drift()
BROKEN = ("shuffled", "shifted", "turned")  # how `weight` stops going with `size`
Times = Any


def rows(kind: str, days: int, seed: int) -> tuple[pa.Table, Times]:
    """So many days of rows (days * PER_DAY), in the order of time."""
    rng = np.random.default_rng(seed)
    count, day = days * PER_DAY, np.repeat(np.arange(days), PER_DAY)
    seconds = np.sort(rng.integers(0, 86_400, (days, PER_DAY)), axis=1).ravel()
    size = rng.normal(0, 0.5, days)[day] + rng.normal(size=count)
    columns: dict[str, Any] = {
        "size": size,
        "weight": size + rng.normal(0, 1.0, count),
        "noise": rng.normal(0, 0.3, days)[day] + rng.normal(size=count),
        "store": rng.choice(["north", "south", "west"], count, p=[0.6, 0.3, 0.1]),
        "steps": rng.poisson(3, count).astype(float),
    }
    if kind != "plain":
        columns["odd"] = _odd(kind, count, rng)
    return pa.table(columns), BEGIN + (day * 86_400 + seconds).astype("timedelta64[s]")


def _odd(kind: str, count: int, rng: np.random.Generator) -> Any:
    if kind == "zipf":
        shares = 1 / np.arange(1, LEVELS + 1)
        return np.char.add("level ", rng.choice(LEVELS, count, p=shares / shares.sum()).astype(str))
    if kind == "unique text":  # one in twenty is a name that comes again
        numbers = np.where(rng.random(count) < 0.05, rng.integers(0, 5, count), rng.integers(0, 2**60, count))
        return np.char.add("order ", numbers.astype(str))
    return rng.integers(0, 2**40, count).astype(float)


def profile(table: pa.Table, times: Times) -> Profile:
    return build_profile(
        small.to_rows(table, times),
        importance={},
        contributions=np.zeros(table.num_columns),
        scores={},
        score_times=times,
        until=times[-1].astype(object),
        window=timedelta(days=WEEK),
    )


def broken(table: pa.Table, how: str, rng: np.random.Generator) -> pa.Table:
    """With a `weight` that has its own distribution still, and goes with nothing."""
    weight = table["weight"].to_numpy()
    if how == "shuffled":
        weight = rng.permutation(weight)
    elif how == "shifted":
        weight = np.roll(weight, 1)
    else:
        weight = 2 * weight.mean() - weight
    return table.set_column(table.column_names.index("weight"), "weight", pa.array(weight))


def raised(table: pa.Table, name: str, deviations: float) -> pa.Table:
    values = table[name].to_numpy()
    return table.set_column(table.column_names.index(name), name, pa.array(values + deviations * values.std()))


def count(kind: str, seeds: int) -> dict[str, Any]:
    """Alarms of each week (drift, quality), the planted shifts that were found, and the history's windows."""
    result: dict[str, Any] = {"windows": [], "alarms": {}, "windows_of_history": 0.0}
    for seed in range(seeds):
        table, times = rows(kind, HISTORY + WEEKS * WEEK, seed)
        cut, week = HISTORY * PER_DAY, WEEK * PER_DAY
        model = profile(table.slice(0, cut), times[:cut])
        result["windows_of_history"] = History(model, SETTINGS.false_alarms, model.columns, with_terms=True).windows
        for begin in range(cut, cut + WEEKS * week, week):
            now, when = table.slice(begin, week), times[begin : begin + week]
            drifted = compare(model, now, when)
            result["windows"].append((seed, drifted.alarm, bool(drifted.faulty)))
        rng = np.random.default_rng(seed)
        for how in BROKEN:
            result["alarms"].setdefault(how, []).append(compare(model, broken(now, how, rng), when).alarm)
        for name in ("noise", "size"):
            result["alarms"].setdefault(f"{name} raised", []).append(compare(model, raised(now, name, 0.6), when).alarm)
    return result


def compare(model: Profile, table: pa.Table, times: Times) -> Comparison:
    return drift.compare(model, table, times, false_alarms=SETTINGS.false_alarms)


def main(seeds: int) -> None:
    print(json.dumps({kind: count(kind, seeds) for kind in KINDS}, default=bool))


if __name__ == "__main__":
    main(int(sys.argv[1]))
