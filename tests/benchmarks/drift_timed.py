"""The monitor's drift, or Evidently's with library defaults, on made rows, in a process of its own.

    python -m tests.benchmarks.drift_timed ours | theirs 300000

30 columns; the window and the history have so many rows each. Prints the seconds that signals and report took, imports
left out, and for each planted case the columns that were said to have moved.
"""

import json
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import params
from tasks.monitoring import drift
from tasks.monitoring.report import draw_report
from tasks.monitoring.signals.drift import measure_drift, measure_prediction
from tasks.monitoring.signals.quality import measure_quality
from tasks.monitoring.window import Watched, Window
from tasks.promotion.registry import Version
from tasks.training.evaluate import SAMPLE_ROWS
from tasks.training.profile import SCORE_COLUMN, Profile, build_profile
from tests.tasks import small

NUMBERS, CATEGORIES = 24, 6
HISTORY, WEEK = 140, 7  # days
CASES = {"nothing": (), "a mean": ("n3",), "a category": ("c0",), "both": ("n3", "c0")}
UNTIL = datetime(2024, 6, 1)


def rows(count: int, days: int, *, seed: int, moved: tuple[str, ...] = ()) -> tuple[pa.Table, Any]:
    """Numbers of several shapes and categories of 4 to 24 levels; a moved number by half a deviation, a moved
    category's first level twice as often. And their times."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {}
    for i in range(NUMBERS):
        values = [rng.normal, rng.lognormal, rng.uniform][i % 3](0, 1, count)
        columns[f"n{i}"] = values + (0.5 * values.std() if f"n{i}" in moved else 0)
    for i in range(CATEGORIES):
        shares = np.ones(4 * (i + 1)) / (4 * (i + 1))
        if f"c{i}" in moved:
            shares[1:] *= (1 - 2 * shares[0]) / (1 - shares[0])
            shares[0] *= 2
        columns[f"c{i}"] = pa.array(
            np.array([f"level {j}" for j in range(len(shares))])[rng.choice(len(shares), count, p=shares)]
        )
    times = np.sort(rng.integers(0, days * 86_400_000_000, count)) * np.timedelta64(1, "us")
    return pa.table(columns), np.datetime64(UNTIL - timedelta(days=days), "us") + times


def ours(count: int) -> dict[str, Any]:
    import evidently.presets  # noqa: F401

    then, then_times = rows(count, HISTORY, seed=0)
    profile = build_profile(
        small.to_rows(then, then_times),
        importance=dict.fromkeys(then.column_names, 1.0),
        contributions=np.zeros(then.num_columns),
        scores={SCORE_COLUMN: np.zeros(2)},
        score_times=then_times[:2],
        until=UNTIL,
        window=timedelta(days=WEEK),
    )
    result: dict[str, Any] = {"moved": {}}
    for case, now, times in _windows(count):
        began = time.perf_counter()
        result["moved"][case] = _signals_and_report(profile, then, now, times, params.load().drift.false_alarms)
        result.setdefault("seconds", time.perf_counter() - began)
    return result


def _signals_and_report(profile: Profile, then: pa.Table, now: pa.Table, times: Any, false_alarms: float) -> list[str]:
    comparison = drift.compare(profile, now, times, false_alarms=false_alarms)
    window = Window(UNTIL - timedelta(days=WEEK), UNTIL, drift=comparison, score_drift=comparison, rows=comparison.rows)
    unknown: Any = None
    version = Version(1, "", "", "", UNTIL, "", {})
    champion = Watched(version, unknown, unknown, params.load(), profile, unknown, unknown, unknown, unknown)
    for measure in (measure_drift, measure_prediction, measure_quality):
        measure(window, champion)
    samples = [one.take(np.linspace(0, one.num_rows - 1, SAMPLE_ROWS).astype(int)) for one in (then, now)]
    draw_report(comparison, samples[0], samples[1], until=UNTIL, html=Path("drift.html"))
    return sorted(one.name for one in comparison.moved) if comparison.alarm else []


def theirs(count: int) -> dict[str, Any]:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    then, _ = rows(count, HISTORY, seed=0)
    definition = DataDefinition(
        numerical_columns=[f"n{i}" for i in range(NUMBERS)], categorical_columns=[f"c{i}" for i in range(CATEGORIES)]
    )
    result: dict[str, Any] = {"moved": {}}
    for case, now, _ in _windows(count):
        frames = [one.to_pandas() for one in (now, then)]
        began = time.perf_counter()
        data = [Dataset.from_pandas(frame, data_definition=definition) for frame in frames]
        snapshot = Report([DataDriftPreset()], include_tests=True).run(*data)
        snapshot.save_html("theirs.html")
        result.setdefault("seconds", time.perf_counter() - began)
        result["moved"][case] = sorted(_failed(snapshot))
    return result


def _failed(snapshot: Any) -> Iterator[str]:
    for one in snapshot.dict()["tests"]:
        name = str(one["metric_config"]["params"].get("column", ""))
        if name and "FAIL" in str(one["status"]).upper():
            yield name


def _windows(count: int) -> Iterator[tuple[str, pa.Table, Any]]:
    for seed, (case, moved) in enumerate(CASES.items(), start=1):
        yield case, *rows(count, WEEK, seed=seed, moved=moved)


if __name__ == "__main__":
    print(json.dumps({"ours": ours, "theirs": theirs}[sys.argv[1]](int(sys.argv[2]))))
