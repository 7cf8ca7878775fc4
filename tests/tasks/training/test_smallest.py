"""tune.small: a search over loss and size at once, and the smallest model that loses little more."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import params
from tasks.params import Params
from tasks.promotion import runs
from tasks.training import fitting, smallest, studies, trials, tune
from tasks.training.smallest import Candidate
from tasks.training.trials import Tuned
from tests.tasks import small

SPACE = {"max_depth": {"low": 1, "high": 7, "integer": True}, "eta": {"low": 0.05, "high": 0.5, "log": True}}
ON: dict[str, Any] = {
    "tune.small": True,
    "tune.trials": 8,
    "tune.rounds": 60,
    "tune.space": SPACE,
    "tune.rows": None,
    "tune.parallel": 1,
}


def search(folder: Path, **overrides: Any) -> tuple[Tuned, list[trials.Trial]]:
    p = small.settings("binary", **{**ON, **overrides})
    small.write(folder, small.made_rows("binary", per_day=80), p)
    tune.tune(p, folder, home=folder / "home")
    return (
        Tuned.load(folder / p.paths.models / "tuned.json"),
        trials.read_trials(folder / p.paths.reports / "trials.json"),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tuned, list[trials.Trial]]:
    return search(tmp_path_factory.mktemp("small"))


def test_the_winner_is_no_larger_than_the_best_and_surely_little_worse(
    made: tuple[Tuned, list[trials.Trial]],
) -> None:
    tuned, listed = made
    assert tuned.preferred
    best = min(listed, key=lambda trial: trial["value"] or 0.0)
    assert tuned.preferred["best_trial"] == best["number"]
    assert tuned.preferred["size"] <= tuned.preferred["best_size"] == best["size"]
    assert tuned.preferred["loss_more"] <= tuned.preferred["error"]
    assert tuned.trial == tuned.preferred["trial"]
    assert tuned.params == listed[int(tuned.preferred["trial"])]["params"]


def test_each_trial_has_its_size_and_deeper_trees_of_as_many_rounds_are_larger(
    made: tuple[Tuned, list[trials.Trial]],
) -> None:
    _, listed = made
    assert all(trial["state"] == "COMPLETE" and trial["size"] for trial in listed)
    p = small.settings("binary", **ON)
    folds = fitting.Folds(p, small.made_rows("binary", per_day=80), small.AS_OF)
    shallow, deep = (measure_size(folds, depth, p) for depth in (1, 6))
    assert shallow < deep / 3


def measure_size(folds: fitting.Folds, depth: int, p: Params) -> float:
    drawn = {"max_depth": depth, "eta": 0.1}
    p = p.model_copy(update={"tune": p.tune.model_copy(update={"rounds": 10, "patience": 10})})
    watcher = fitting.make_watcher(tune.trialfits.stop_event())
    progress, _ = fitting.fit_folds(drawn, folds.bin_whole(drawn), folds.spec, p, lambda *_: watcher, threads=1)
    return progress.size / progress.folds


def test_the_smallest_within_an_error_of_the_best_is_chosen() -> None:
    """Trees of one leaf know nothing; of two whose models say the same, the smaller is taken."""
    p = small.settings("binary", **ON)
    folds = fitting.Folds(p, small.made_rows("binary", per_day=80), small.AS_OF)
    good = {"max_depth": 3, "eta": 0.3}
    candidates = [
        Candidate(0, good, 30, 3000.0),
        Candidate(1, good, 30, 2000.0),
        Candidate(2, {"max_depth": 1, "eta": 0.01}, 1, 100.0),
    ]
    choice = smallest.choose_smallest(folds, candidates, p)
    assert (choice.trial, choice.best_trial, choice.loss_more) == (1, 0, 0.0)
    assert smallest.choose_smallest(folds, candidates[::2], p).trial == 0


def test_the_error_is_that_of_the_paired_differences() -> None:
    more, error = smallest.find_difference(np.array([0.1, 0.3, 0.2]))
    assert (more, error) == pytest.approx((0.2, 0.1 / np.sqrt(3)))


def test_a_search_that_was_killed_goes_on_and_ends_as_it_would_have(
    made: tuple[Tuned, list[trials.Trial]], tmp_path: Path
) -> None:
    search(tmp_path)
    log = next((tmp_path / "home" / "studies").glob("*.jsonl"))
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:5]) + "\n")
    tuned, listed = search(tmp_path)
    assert (tuned, listed) == made


def test_fewer_rows_rank_the_front_and_all_rows_choose(tmp_path: Path) -> None:
    tuned, listed = search(tmp_path, **{"tune.rows": 300, "tune.trials": 6, "tune.finalists": 3})
    finals = [trial["number"] for trial in listed if trial["final"]]
    assert tuned.preferred
    assert len(finals) >= 1
    assert tuned.trial in finals


def test_mlflow_gets_the_sizes(made: tuple[Tuned, list[trials.Trial]]) -> None:
    _, listed = made
    table = runs._trial_table([runs._trial_row(trial) for trial in listed])
    place = table["columns"].index("size")
    assert [row[place] for row in table["data"]] == [trial["size"] for trial in listed]


def test_it_is_off_by_default_and_then_no_file_tells_of_sizes(tmp_path: Path) -> None:
    assert not params.load(Path(__file__).parents[3] / "params.yaml").tune.small
    tuned, listed = search(tmp_path, **{"tune.small": False, "tune.trials": 2})
    assert tuned.preferred is None
    assert "size" not in json.dumps(listed)
    assert len(studies.create_study(small.settings("binary")).directions) == 1
