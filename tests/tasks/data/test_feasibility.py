"""tasks.data.feasibility: what params.yaml asks of a table is held against its row rate, and what would do."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import params
from tasks.data import feasibility
from tasks.data.feasibility import Problem
from tasks.data.timeline import Times
from tasks.monitoring.drift import Comparison
from tasks.monitoring.signals.drift import measure_drift, measure_prediction
from tasks.monitoring.window import Window
from tasks.params import Params
from tests.conftest import BEGIN, FEATURES_SQL, Made
from tests.programs import PROGRAMS
from tests.tasks import stream
from tests.tasks.small import settings

ROOT = Path(__file__).parents[3]
HOURLY = timedelta(hours=1)
AS_OF = BEGIN + timedelta(days=150)


def every(step: timedelta, *, days: int = 150) -> Times:
    return np.arange(np.datetime64(BEGIN, "us"), np.datetime64(BEGIN + timedelta(days=days)), np.timedelta64(step))


def problems(times: Times, as_of: datetime = AS_OF, **overrides: Any) -> dict[str, Problem]:
    return {problem.setting: problem for problem in feasibility.find_problems(times, as_of, fitted(**overrides))}


def fitted(**overrides: Any) -> Params:
    """Settings that an hourly table of 150 days fits."""
    raw = {"split.holdout": "28d", "gate.min_rows": 600, "gate.min_blocks": 14, "monitor.window": "7d"}
    p = settings(**(raw | {name: value for name, value in overrides.items() if not name.startswith("policy")}))
    return p.model_copy(update={"policy": params.Policy(min_rows=overrides.get("policy.min_rows", 100))})


def test_settings_that_fit_the_table_are_no_problem() -> None:
    assert problems(every(HOURLY)) == {}


def test_a_holdout_of_hourly_rows_is_told_the_length_that_would_do() -> None:
    found = problems(every(HOURLY), **{"gate.min_rows": 2000})["gate.min_rows"]
    assert found.stops
    assert "gate.min_rows is 2,000, but split.holdout (28d) holds 672 rows." in found.message
    length = re.search(r"split.holdout to (\d+d)", found.message)
    assert length
    assert problems(every(HOURLY), **{"gate.min_rows": 2000, "split.holdout": length[1]}) == {}
    assert problems(every(HOURLY), **{"gate.min_rows": 672}) == {}


def test_a_table_of_168_rows_a_week_is_told_that_policy_min_rows_is_never_reached() -> None:
    found = problems(every(HOURLY), **{"policy.min_rows": 500})["policy.min_rows"]
    assert not found.stops
    assert "policy.min_rows is 500, but a monitor.window of 7d holds about 168 rows" in found.message
    length = re.search(r"monitor.window to (\d+d)", found.message)
    assert length
    assert "policy.min_rows" not in problems(every(HOURLY), **{"policy.min_rows": 500, "monitor.window": length[1]})
    assert problems(every(HOURLY), **{"policy.min_rows": 168}) == {}


def test_a_week_that_is_quiet_does_not_count_for_the_table() -> None:
    times = every(HOURLY)
    assert "policy.min_rows" not in problems(times[times < np.datetime64(AS_OF - timedelta(days=5))])


def test_folds_that_leave_nothing_to_train_on_are_told_the_length_that_would_do() -> None:
    asked = {"split.folds": 3, "split.fold": "60d"}
    found = problems(every(HOURLY), **asked)["split.folds"]
    assert found.stops
    length = re.search(r"split.fold to (\w+) or less", found.message)
    assert length
    assert problems(every(HOURLY), **asked | {"split.fold": length[1]}) == {}


@pytest.mark.parametrize("day", [60, 85, 105, 121])
def test_a_pause_of_weeks_before_the_holdout_stops_nothing_where_rows_are_enough(day: int) -> None:
    times, pause = every(HOURLY), timedelta(days=40)
    apart = np.where(times < np.datetime64(BEGIN + timedelta(days=day)), times, times + np.timedelta64(pause))
    assert problems(apart, AS_OF + pause) == {}
    asked = {"split.folds": 3, "split.fold": "60d"}
    found = problems(apart, AS_OF + pause, **asked)["split.folds"]
    length = re.search(r"split.fold to (\w+) or less", found.message)
    assert length
    assert problems(apart, AS_OF + pause, **asked | {"split.fold": length[1]}) == {}


def test_a_holdout_that_is_longer_than_the_history_is_told_the_length_that_would_do() -> None:
    found = problems(every(HOURLY), **{"split.holdout": "200d"})["split.holdout"]
    assert found.stops
    length = re.search(r"split.holdout to (\w+) or less", found.message)
    assert length
    assert "split.holdout" not in problems(every(HOURLY), **{"split.holdout": length[1]})


def test_blocks_slices_and_windows_are_asked_too() -> None:
    found = problems(every(HOURLY), **{"gate.min_blocks": 40, "evaluate.slice_rows": 5000, "monitor.window": "60d"})
    assert [(name, problem.stops) for name, problem in found.items()] == [
        ("gate.min_blocks", True),
        ("evaluate.slice_rows", False),
        ("monitor.window", False),
    ]
    assert "Set split.holdout to 40d or more" in found["gate.min_blocks"].message


def test_what_stops_a_retrain_is_one_refusal_and_the_rest_is_none() -> None:
    p = fitted(**{"gate.min_rows": 2000, "policy.min_rows": 500})
    assert (
        feasibility.explain_refusal(feasibility.find_problems(every(HOURLY), AS_OF, fitted(**{"policy.min_rows": 500})))
        is None
    )
    reason = feasibility.explain_refusal(feasibility.find_problems(every(HOURLY), AS_OF, p))
    assert reason
    assert "gate.min_rows" in reason
    assert "policy.min_rows" not in reason


def test_the_flights_fit_their_params() -> None:
    """Some 920 flights a day, as of the dates that the README and the demo use."""
    p = params.load(Path(__file__).parents[3] / "params.yaml")
    times = np.arange(np.datetime64("2013-01-01", "us"), np.datetime64("2014-01-01"), np.timedelta64(94, "s"))
    for as_of in (datetime(2013, 4, 15), datetime(2013, 8, 1), datetime(2013, 12, 31)):
        known = times[times < np.datetime64(as_of)]
        assert [problem for problem in feasibility.find_problems(known, as_of, p) if problem.stops] == []


def test_the_rows_are_read_from_what_ingest_has_brought(made: Made) -> None:
    p = made.run("ingest")
    times = feasibility.read_event_times(p, made.folder)
    assert len(times) == 60 * 80
    assert (times[1:] >= times[:-1]).all()


def test_an_outlier_in_time_bends_no_row_rate(made: Made) -> None:
    orders = made.folder / "source" / "orders.csv"
    line = "999999,1970-01-01,,north,1.0,1.0,5\n"
    orders.write_text(orders.read_text() + line)
    p = made.run("ingest")
    assert (made.folder / p.paths.raw / "orders" / "outliers.parquet").exists()
    times = feasibility.read_event_times(p, made.folder)
    assert len(times) == 60 * 80
    assert times[0] >= np.datetime64(BEGIN)


def test_a_signal_that_policy_min_rows_turns_off_names_it() -> None:
    nothing = Comparison(rows=168, windows=9.0)
    window = Window(BEGIN, BEGIN, drift=nothing, score_drift=nothing)
    for signal in (measure(window, stream.watched(min_rows=500)) for measure in (measure_drift, measure_prediction)):
        assert "168 rows are fewer than policy.min_rows (500)" in signal.message
        assert not signal.alarm


@pytest.mark.parametrize("rows", [0, 1])
def test_a_table_of_no_rows_or_of_one_breaks_nothing(rows: int) -> None:
    feasibility.find_problems(every(HOURLY)[:rows], AS_OF, fitted())


def test_a_workspace_whose_name_looks_like_a_pattern_is_asked_for_its_own_rows(make_world: Callable[..., Made]) -> None:
    counts = []
    for name, days in (("w1", 3), ("w[1]", 5)):
        made = make_world(days=days, per_day=4, folder=name)
        counts.append(len(feasibility.read_event_times(made.run("ingest", p=made.params()), made.folder)))
    assert counts == [12, 20]


def program(made: Made, stage: str) -> "subprocess.CompletedProcess[str]":
    """A stage as `dvc repro` runs it."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.run(
        [sys.executable, "-m", PROGRAMS[stage]], cwd=made.folder, env=env, capture_output=True, text=True, timeout=60
    )


def test_sizes_that_do_not_fit_end_dvc_repro_by_hand_before_the_search(made: Made) -> None:
    made.params(**{"gate.min_rows": 2000})
    ingested = program(made, "ingest")
    assert ingested.returncode == 0, ingested.stderr  # who scores, or looks at clean data, needs no holdout
    assert "gate.min_rows is 2,000, but split.holdout (14d) holds" in ingested.stderr
    made.run("clean", "features")
    tuned = program(made, "tune")
    assert tuned.returncode == 1
    message = "ValueError: params.yaml does not fit the table:\ngate.min_rows is 2,000, but split.holdout (14d) holds"
    assert message in tuned.stderr
    assert not (Path(os.environ["EVERGREEN_HOME"]) / "studies").exists()
    rows = re.search(r"gate.min_rows to ([\d,]+) or less", tuned.stderr)
    assert rows
    made.params(**{"gate.min_rows": int(rows[1].replace(",", ""))})
    assert program(made, "ingest").stderr.count("does not fit") == 0
    assert program(made, "tune").returncode == 0


def refusal(made: Made, sql: str = FEATURES_SQL, **overrides: Any) -> str:
    """Of a project whose sources are not even there."""
    (made.folder / "tasks" / "features.sql").write_text(sql)
    for path in (made.folder / "source").iterdir():
        path.unlink()
    with pytest.raises(ValueError) as caught:
        feasibility.dry_run(made.params(**overrides), made.folder)
    return str(caught.value)


def test_the_made_world_and_the_flights_pass(made: Made) -> None:
    feasibility.dry_run(made.params(), made.folder)
    feasibility.dry_run(params.load(ROOT / "params.yaml"), ROOT)


@pytest.mark.parametrize(
    ("sql", "rule"),
    [
        ("SELECT row_id, amuont FROM spine", "features.sql, column 16: there is no column `amuont` here."),
        ("SELECT row_id, now() AS x FROM spine", "line 1, calls now()"),
        ("SELECT row_id FROM spine", "gives back no feature"),
        ("SELECT row_id, event_time FROM spine", "`event_time` is a TIMESTAMP, but a feature is"),
        ('SELECT row_id, amount AS "a[1]" FROM spine', "a feature's name must be printable"),
    ],
)
def test_features_that_will_not_do_are_told_at_once(made: Made, sql: str, rule: str) -> None:
    assert rule in refusal(made, sql)


@pytest.mark.parametrize(
    ("setting", "expression", "rule"),
    [
        ("label.expression", "dealy > 3", "there is no column `dealy` here. Did you mean `delay`?"),
        ("label.expression", "placed", "gives a TIMESTAMP, but label.task binary needs"),
        ("sources.orders.event_time", "plcaed", "there is no column `plcaed` here. Did you mean `placed`?"),
        ("sources.orders.event_time", "amount", "must be a TIMESTAMP"),
        ("sources.orders.known_at", "placed +", "no SQL that can be read"),
        ("sources.orders.derive", {"far": "dist > 2"}, "sources.orders.derive.far `dist > 2`, column 1: there is no"),
    ],
)
def test_expressions_that_will_not_do_are_told_at_once(made: Made, setting: str, expression: Any, rule: str) -> None:
    assert rule in refusal(made, **{setting: expression})
