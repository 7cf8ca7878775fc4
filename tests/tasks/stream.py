"""A made stream for the tests of drift: days differ from each other, and nothing else changes unless a test says so.

`size` rises and falls with the days; `weight` and `volume` go with it but for a little of their own, `noise` is alone,
`store` has three levels whose shares differ by day, and `count` comes in steps.
"""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from tasks.monitoring import drift
from tasks.monitoring.drift import Comparison
from tasks.monitoring.window import Watched
from tasks.params import Policy
from tasks.promotion.registry import Version
from tasks.training import columns
from tasks.training.columns import as_numbers
from tasks.training.profile import SCORE_COLUMN, Profile, build_profile
from tests.tasks import small

BEGIN = datetime(2024, 1, 1)
DAY = timedelta(days=1)
WEEK = 7 * DAY
PER_DAY = 80
FALSE_ALARMS = 0.25
IMPORTANCE = {"size": 2.0, "weight": 1.0, "noise": 1.0, "store": 1.0, "count": 0.1, "volume": 1.0}
Times = NDArray[np.datetime64]


def made(days: int, *, seed: int = 0, per_day: int = PER_DAY, begin: datetime = BEGIN) -> tuple[pa.Table, Times]:
    """So many days from one seed: rows (days * per_day) in the order of time."""
    rng = np.random.default_rng(seed)
    day, rows = np.repeat(np.arange(days), per_day), days * per_day
    seconds = np.sort(rng.integers(0, 86_400, (days, per_day)), axis=1).ravel()
    times = np.datetime64(begin, "us") + (day * 86_400 + seconds).astype("timedelta64[s]")
    size = rng.normal(0, 0.5, days)[day] + rng.normal(size=rows)
    shares = rng.dirichlet([60, 30, 10], days)[day]
    store = (rng.random(rows)[:, None] > np.cumsum(shares, axis=1)).sum(axis=1)
    table = {
        "size": pa.array(size.astype(np.float32)),
        "weight": pa.array((size + rng.normal(0, 0.3, rows)).astype(np.float32)),
        "noise": pa.array((rng.normal(0, 0.3, days)[day] + rng.normal(size=rows)).astype(np.float32)),
        "store": pa.array(np.array(["north", "south", "west"])[np.minimum(store, 2)].tolist()),
        "count": pa.array(rng.poisson(3, rows).astype(np.float32)),
        "volume": pa.array((size + rng.normal(0, 0.3, rows)).astype(np.float32)),
    }
    return pa.table(table), times


def profile(table: pa.Table, times: Times, *, window: timedelta = WEEK, **changes: Any) -> Profile:
    """Of these rows; the scores are a plain function of them."""
    given: dict[str, Any] = {
        "importance": IMPORTANCE,
        "contributions": np.zeros(table.num_columns),
        "scores": {SCORE_COLUMN: scores(table)},
        "score_times": times,
        "until": BEGIN,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BINS", 8)  # the rows are few
        return build_profile(small.to_rows(table, times), window=window, **{**given, **changes})


def scores(table: pa.Table) -> NDArray[np.float64]:
    size = as_numbers(table["size"]) if "size" in table.column_names else np.zeros(table.num_rows)
    return np.asarray(1 / (1 + np.exp(-np.nan_to_num(size))))


def changed(table: pa.Table, name: str, values: Any) -> pa.Table:
    """With another column of that name."""
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def moved(table: pa.Table, name: str, by: float) -> pa.Table:
    return changed(table, name, (table[name].to_numpy() + by).astype(np.float32))


def compared(of: Profile, table: pa.Table, times: Times) -> Comparison:
    return drift.compare(of, table, times, false_alarms=FALSE_ALARMS)


def watched(profile: Profile | None = None, *, min_rows: int = 1) -> Watched:
    """A champion of which nothing but the history is known."""
    p = small.settings().model_copy(update={"policy": Policy(min_rows=min_rows)})
    unknown: Any = None
    version = Version(3, "run", "d", "r", BEGIN, "c", {})
    return Watched(version, unknown, unknown, p, profile or unknown, unknown, unknown, unknown, unknown)
