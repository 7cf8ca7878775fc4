"""A search that is killed in the middle of a trial, and two processes that begin the same search at once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.params import Params
from tests.conftest import write_params
from tests.tasks import small

pytestmark = pytest.mark.faults

PROJECT = Path(__file__).parents[2]
TRIALS = 12
DYING = """\
import os, signal, sys
from tasks.runtime import stage
from tasks.training import fitting, triallogs, tune

left, rounds, append, fit = int(sys.argv[1]), 4, triallogs.append_rows, fitting.fit_fold

def appended(path, rows):
    global left
    append(path, rows)
    if path.parent.name == "studies":
        left -= len(rows)

def dying(settings, binned, p, watcher):
    after = watcher.after_iteration
    def round_done(model, epoch, evals_log):
        if left <= 0 and epoch == rounds:
            os.kill(os.getpid(), signal.SIGKILL)
        return after(model, epoch, evals_log)
    watcher.after_iteration = round_done
    return fit(settings, binned, p, watcher)

triallogs.append_rows, fitting.fit_fold = appended, dying
stage.main("tune", tune.tune)
"""


@pytest.fixture
def project(tmp_path: Path) -> tuple[Params, Path]:
    """Enough rows for a trial to take a while."""
    p = small.settings(**{"tune.trials": TRIALS, "tune.budget": "10m", "tune.rounds": 200, "tune.patience": 40})
    folder = small.write(tmp_path / "project", small.made_rows(per_day=400), p)
    write_params(p.model_dump(mode="json"), folder)
    return p, folder


def begin(folder: Path, home: Path, *program: str) -> subprocess.Popen[str]:
    env = os.environ | {"EVERGREEN_HOME": str(home), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, *(program or ("-m", "tasks.training.tune"))]
    return subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, output = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def outputs(p: Params, folder: Path) -> tuple[bytes, bytes]:
    return (folder / p.paths.models / "tuned.json").read_bytes(), (
        folder / p.paths.reports / "trials.json"
    ).read_bytes()


def logged(home: Path) -> list[dict[str, Any]]:
    paths = list((home / "studies").glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def killed_after(count: int, folder: Path, home: Path) -> None:
    """SIGKILL, some rounds into the trial that follows so many of its own."""
    process = begin(folder, home, "-c", DYING, str(count))
    _, output = process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL, output


def test_a_search_that_is_killed_and_resumed_is_the_search_that_nobody_killed(
    project: tuple[Params, Path], tmp_path: Path
) -> None:
    p, folder = project
    finish(begin(folder, tmp_path / "unbroken"))
    unbroken = outputs(p, folder)
    for path in (folder / p.paths.models / "tuned.json", folder / p.paths.reports / "trials.json"):
        path.unlink()
    for count in (2, 5):
        killed_after(count, folder, tmp_path / "killed")
        assert not (folder / p.paths.models / "tuned.json").exists(), "it was to be killed before its end"
    assert 7 <= len(logged(tmp_path / "killed")) < TRIALS
    assert "trials taken up" in finish(begin(folder, tmp_path / "killed"))
    assert outputs(p, folder) == unbroken
    assert [row["number"] for row in logged(tmp_path / "killed")] == list(range(TRIALS))


def test_two_processes_that_begin_one_search_make_each_trial_once(project: tuple[Params, Path], tmp_path: Path) -> None:
    p, folder = project
    both = [begin(folder, tmp_path / "home") for _ in range(2)]
    messages = [finish(process) for process in both]
    assert sum(f"{TRIALS} trials taken up" in text for text in messages) == 1
    assert [row["number"] for row in logged(tmp_path / "home")] == list(range(TRIALS))
    assert json.loads(outputs(p, folder)[0])["trials"] == TRIALS
