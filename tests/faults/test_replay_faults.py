"""A replay that is killed, in the middle of a training and between two, goes on where it was and comes to the same."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.replay import history
from tests.conftest import BEGIN, write_params
from tests.tasks import small
from tests.tasks.replay.test_replay import DAY, DAYS, GRID, SMALL
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

PROJECT = Path(__file__).parents[2]
PROGRAM = """
import sys
from datetime import datetime, timedelta
from pathlib import Path
from tasks.replay import compare, history, policies, report
from tasks.replay.past import Past, make_here
from tasks import params
from tasks.runtime import files

p = params.load("params.yaml")
past = history.History(p, p.paths.features.absolute(), "SELECT 1", Path("shelf").absolute())
grid = policies.Grid(*map(datetime.fromisoformat, sys.argv[1:3]), timedelta(days=7))
made = []


def make(past, trainings, fits):
    made.extend(trainings)
    make_here(past, trainings, fits)


done = compare.compare_policies(Past(past, grid.since, make=make), grid, ["every:7d"], say=print)
report.write_report(done, Path("out"))
files.publish_json(Path("made.json"), {"made": len(made)})
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Enough rows for a training to take a while."""
    p = history.reduce_search(small.settings(**SMALL | {"tune.rounds": 200, "tune.patience": 50, "tune.trials": 6}))
    small.write(tmp_path, small.made_rows(days=DAYS, per_day=200), p, GRID.until)
    write_params(p.model_dump(mode="json"), tmp_path)
    return tmp_path


def begin(folder: Path) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(PROJECT), "EVERGREEN_HOME": str(folder / "home")}
    period = [GRID.since.isoformat(), (BEGIN + 56 * DAY).isoformat()]
    command = [sys.executable, "-c", PROGRAM, *period]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return dict(json.loads((folder / "out/replay.json").read_text()))


def whole(folder: Path) -> dict[str, int]:
    paths = (folder / "shelf").glob("2*")
    return {path.name: path.stat().st_mtime_ns for path in paths if "evidence" not in path.name}


def half(folder: Path) -> list[Path]:
    return list((folder / "shelf").glob(f"{history.PARTIAL_PREFIX}*"))


def kill_when(met: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    wait_until(lambda: met() or process.poll() is not None, every=0.005)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_killed_replay_goes_on_where_it_was(folder: Path) -> None:
    kill_when(lambda: len(whole(folder)) == 1 and bool(half(folder)), begin(folder))
    before = whole(folder)
    assert len(before) == 1, "it was to be killed in its second training"
    assert half(folder)
    assert not (folder / "out").exists()

    kill_when(lambda: len(whole(folder)) == 2, begin(folder))
    assert before.items() < whole(folder).items(), "what was whole is not made again"
    before = whole(folder)

    resumed = finish(begin(folder), folder)
    assert len(whole(folder)) == 4
    assert before.items() < whole(folder).items()
    assert half(folder) == []
    assert [retrain["outcome"] for retrain in resumed["lines"][1]["walks"][0]["retrains"]]

    again = finish(begin(folder), folder)
    assert again == resumed
    assert json.loads((folder / "made.json").read_text()) == {"made": 0}


def test_a_killed_replay_comes_to_what_an_unbroken_one_comes_to(folder: Path) -> None:
    kill_when(lambda: len(whole(folder)) == 2, begin(folder))
    resumed = finish(begin(folder), folder)
    (folder / "shelf").rename(folder / "elsewhere")
    unbroken = finish(begin(folder), folder)
    assert timeless(unbroken) == timeless(resumed)


def timeless(done: dict[str, Any]) -> dict[str, Any]:
    """Without the seconds of CPU."""
    lines = [{**line, "cpu": 0, "cost": 0} for line in done["lines"]]
    for line in lines:
        walks = [{**walk, "cpu": 0} for walk in line["walks"]]
        line["walks"] = [{**walk, "retrains": [{**one, "cpu": 0} for one in walk["retrains"]]} for walk in walks]
    return {**done, "lines": lines}
