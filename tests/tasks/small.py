"""Small made feature rows for the tests of the modelling path: a folder as data.features leaves it, in milliseconds.

The outcome depends on two numbers and a category, by a rule that is known here, and on nothing else.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks import params
from tasks.data.featurerows import Rows
from tasks.data.manifest import FeaturesManifest
from tasks.params import Params, Task
from tasks.training.trials import Tuned
from tests.conftest import BEGIN, raw_params

DAYS = 60
AS_OF = BEGIN + timedelta(days=DAYS)
HELD_FROM = AS_OF - timedelta(days=15)  # label.deadline 1d, split.holdout 14d
Labels = NDArray[Any]


def settings(task: Task = "binary", **overrides: Any) -> Params:
    """The made world's params for these rows; settings(**{"tune.trials": 2}) with another value."""
    raw = raw_params(task, DAYS)
    raw["spine"]["columns"] = ["store"]
    for name, value in overrides.items():
        section, key = name.split(".")
        raw.setdefault(section, {})[key] = value
    return params.validate(raw)


def made_rows(task: Task = "binary", *, per_day: int = 60, days: int = DAYS, seed: int = 0) -> Rows:
    """Rows in the order of time: jam decides most, then distance, then the store; the noise says nothing."""
    rng = np.random.default_rng(seed)
    count = per_day * days
    minutes = np.sort(rng.integers(0, days * 1440, count))
    event_time = np.datetime64(BEGIN, "us") + minutes.astype("timedelta64[m]")
    numbers = {name: rng.normal(size=count).astype(np.float32) for name in ("jam", "distance", "noise_1", "noise_2")}
    store = rng.choice(["north", "south", "west"], count)
    level = np.where(np.abs(numbers["jam"]) > 0.7, 2.0, -2.0) + np.where(numbers["distance"] > 0, 1.0, -1.0)
    level += store == "south"
    known_at = event_time + rng.integers(60, 1440, count).astype("timedelta64[m]")
    table = pa.table(numbers | {"store": pa.array(store.tolist())})
    return Rows(table, event_time, known_at, _label(task, level + rng.logistic(size=count)))


def to_rows(table: pa.Table, times: NDArray[np.datetime64]) -> Rows:
    """Features and their times as rows without a label."""
    return Rows(table, times, times, np.full(len(times), np.nan))


def _label(task: Task, level: NDArray[np.float64]) -> Labels:
    if task == "binary":
        return (level > 1).astype(np.float64)
    if task == "regression":
        return level
    return np.array(["early", "fair", "late"], dtype=object)[np.digitize(level, [-1, 1.5])]


def relabelled(rows: Rows, change: Callable[[Labels], Labels], since: datetime, until: datetime = AS_OF) -> Rows:
    """The same rows with other labels between two moments."""
    label = rows.label.copy()
    inside = (rows.event_time >= np.datetime64(since)) & (rows.event_time < np.datetime64(until))
    label[inside] = change(label[inside])
    return replace(rows, label=label)


def flipped(label: Labels) -> Labels:
    return 1 - label


def known(rows: Rows, as_of: datetime) -> Rows:
    """What there was of them at a moment: labels that came later are not there yet."""
    label = rows.label.copy()
    label[rows.known_at > np.datetime64(as_of)] = None if label.dtype == object else np.nan
    return replace(rows, label=label).take(rows.event_time < np.datetime64(as_of))


def write(folder: Path, rows: Rows, p: Params, as_of: datetime = AS_OF) -> Path:
    """Put rows where tasks.data.features puts them: Parquet by month and a manifest. Returns the folder."""
    out = folder / p.paths.features
    out.mkdir(parents=True, exist_ok=True)
    label = pa.array(rows.label, from_pandas=True)
    times = {"_event_time": pa.array(rows.event_time), "_known_at": pa.array(rows.known_at), "_label": label}
    table = pa.table({**times, **{name: rows.table[name] for name in rows.table.column_names}})
    months = rows.event_time.astype("datetime64[M]")
    for month in np.unique(months):
        pq.write_table(table.filter(months == month), out / f"{month}.parquet")
    FeaturesManifest(as_of=as_of).write(out)
    return folder


def tuned(folder: Path, p: Params, **changes: Any) -> Tuned:
    """Parameters as tune would leave them, without a search."""
    drawn = {"max_depth": 3, "eta": 0.3, "subsample": 0.8, "max_bin": 32}
    made = by_hand(drawn | changes.pop("params", {}), **{"rounds": 20, **changes})
    made.write(folder / p.paths.models / "tuned.json")
    return made


def by_hand(drawn: dict[str, Any], *, rounds: int) -> Tuned:
    """Parameters that nobody searched."""
    return Tuned(drawn, rounds, score=0.5, metric="logloss", trial=0, trials=1, pruned=0, ended_by="trials")
