"""tasks.training.tune: a search that is broken off is the search that nobody broke off, and pruning loses nothing."""

import itertools
import json
import logging
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data import featurerows
from tasks.data.featurerows import Rows
from tasks.params import Params, Task
from tasks.runtime import engine, store
from tasks.runtime.store import Store
from tasks.training import fitting, model, split, studies, train, triallogs, tune
from tasks.training.matrices import Encoded
from tasks.training.model import Model, Spec
from tasks.training.studies import find_limit
from tasks.training.trials import Tuned, read_trials
from tests.tasks import small

LAW = settings(deadline=None, derandomize=True, max_examples=60)
SPACE = {
    "max_depth": {"low": 1, "high": 4, "integer": True},
    "eta": {"low": 0.05, "high": 0.5, "log": True},
    "subsample": {"low": 0.6, "high": 1.0},
    "max_bin": {"choice": [16, 32]},
    "class_weight": {"low": 0.0, "high": 0.2},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of a search lives in a home of its own, until a test asks for another."""
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def another_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "another"))


def project(folder: Path, task: Task = "binary", rows: Rows | None = None, **overrides: Any) -> tuple[Params, Path]:
    p = small.settings(task, **{"tune.space": SPACE, "tune.trials": 3, "tune.rounds": 40, **overrides})
    return p, small.write(folder, small.made_rows(task, per_day=40) if rows is None else rows, p)


def searched(p: Params, folder: Path) -> dict[str, Any]:
    tune.tune(p, folder)
    found: dict[str, Any] = json.loads((folder / p.paths.models / "tuned.json").read_text())
    assert json.loads((folder / p.paths.reports / "score.json").read_text()) == {"score": found["score"]}
    return found


def outputs(p: Params, folder: Path) -> tuple[bytes, bytes]:
    return (folder / p.paths.models / "tuned.json").read_bytes(), (
        folder / p.paths.reports / "trials.json"
    ).read_bytes()


def trials(p: Params, folder: Path) -> list[dict[str, Any]]:
    return [dict(trial) for trial in read_trials(folder / p.paths.reports / "trials.json")]


def with_trials(p: Params, count: int, **more: Any) -> Params:
    return p.model_copy(update={"tune": p.tune.model_copy(update={"trials": count, **more})})


# --- the search


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_search_finds_parameters_for_every_task(task: Task, tmp_path: Path) -> None:
    p, folder = project(tmp_path, task)
    found = searched(p, folder)
    assert found["params"].keys() == SPACE.keys()
    assert found["score"] == min(trial["value"] for trial in trials(p, folder) if trial["state"] == "COMPLETE")
    assert 1 <= found["rounds"] <= 40
    assert (found["trials"], found["ended_by"]) == (3, "trials")


def test_a_recipe_that_is_given_is_taken_without_a_search(tmp_path: Path) -> None:
    drawn = {"max_depth": 3, "eta": 1e-05, "subsample": 0.1234567890123456}
    p, folder = project(tmp_path, **{"tune.recipe": {"params": drawn, "rounds": 7}})
    tune.tune(p, folder)
    taken = Tuned.load(folder / p.paths.models / "tuned.json")
    assert (taken.params, taken.rounds, taken.trials, taken.ended_by) == (drawn, 7, 0, "recipe")
    assert taken.score is None
    assert trials(p, folder) == []


def test_what_is_searched_is_as_good_as_the_rule_allows(tmp_path: Path) -> None:
    p, folder = project(tmp_path)
    constant = 0.69
    assert searched(p, folder)["score"] < constant - 0.15


def test_another_seed_is_another_search_and_the_same_seed_is_the_same(tmp_path: Path) -> None:
    p, folder = project(tmp_path)
    first = searched(p, folder)
    assert searched(with_trials(p, 3, seed=8), folder)["params"] != first["params"]
    assert searched(p, folder) == first


def test_the_order_of_the_space_in_the_file_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, folder = project(tmp_path)
    tune.tune(p, folder)
    before = outputs(p, folder)
    another_home(monkeypatch, tmp_path)
    turned = with_trials(p, 3, space=dict(reversed(p.tune.space.items())))
    tune.tune(turned, folder)
    assert outputs(p, folder) == before


def test_the_number_of_threads_does_not_change_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, folder = project(tmp_path)
    tune.tune(p, folder)
    before = outputs(p, folder)
    another_home(monkeypatch, tmp_path)
    tune.tune(p.model_copy(update={"stage": p.stage.model_copy(update={"threads": 2})}), folder)
    assert outputs(p, folder) == before


def test_the_search_is_the_same_in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"tune.trials": 12, "tune.rows": 400, "tune.finalists": 2, "tune.halvings": 1, "tune.budget": "30m"}
    p, folder = project(tmp_path, **more)
    tune.tune(p, folder)
    before, listed = outputs(p, folder), read_trials(folder / p.paths.reports / "trials.json")
    assert {trial["state"] for trial in listed} == {"COMPLETE", "PRUNED"}
    assert any(trial["final"] for trial in listed)
    for cluster in ("local:1", "local:2"):
        another_home(monkeypatch, tmp_path / cluster)
        tune.tune(p.model_copy(update={"stage": p.stage.model_copy(update={"cluster": cluster})}), folder)
        assert outputs(p, folder) == before
    engine.close()


def test_each_folds_rows_are_binned_once_a_side_however_many_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    original = Encoded.bin

    def counted(encoded: Encoded, drawn: dict[str, Any], **more: Any) -> Any:
        made.append((len(encoded.rows), drawn["max_bin"]))
        return original(encoded, drawn, **more)

    monkeypatch.setattr(Encoded, "bin", counted)
    p, folder = project(tmp_path, **{"tune.trials": 12})
    tune.tune(p, folder)
    parts = 2 * p.split.folds * p.tune.parallel
    assert 0 < len(made) <= parts * len({max_bin for _, max_bin in made}) < p.tune.trials * 2 * p.split.folds


def test_no_trial_sees_a_row_of_the_holdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, folder = project(tmp_path)
    tune.tune(p, folder)
    before = outputs(p, folder)
    another_home(monkeypatch, tmp_path)
    since = small.HELD_FROM - p.label.deadline  # what is known only in the holdout
    small.write(folder, small.relabelled(small.made_rows(per_day=40), small.flipped, since), p)
    tune.tune(p, folder)
    assert outputs(p, folder) == before


@LAW
@given(st.integers(1, 200), st.none() | st.integers(1, 300))
def test_a_search_on_fewer_rows_takes_them_evenly_over_time(count: int, most: int | None) -> None:
    rows = small.made_rows(per_day=200, days=1).take(np.arange(200) < count)
    kept = fitting.thin_rows(rows, most, Spec("regression", (), {}))
    assert len(kept) == min(count, most or count)
    assert kept.event_time[0] == rows.event_time[0]
    gaps = np.diff(np.flatnonzero(np.isin(rows.table["jam"].to_numpy(), kept.table["jam"].to_numpy())))
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("share", "thinned"), [(0.9, False), (0.7, False), (0.6, True)])
def test_a_search_has_fewer_rows_where_that_saves_more_than_finalists_cost(share: float, thinned: bool) -> None:
    p, rows = small.settings(), small.made_rows(per_day=40)
    labelled = model.is_labelled(rows.label)
    start = split.find_holdout(small.AS_OF, p.split, deadline=p.label.deadline).begin
    folds = split.make_folds(rows.event_time, start, p.split, deadline=p.label.deadline, labelled=labelled)
    most = round(share * max(fold.train.sum() for fold in folds))
    assert (fitting.Folds(with_trials(p, 1, rows=most), rows, small.AS_OF).thinning > 1) is thinned


def test_class_weighting_changes_what_a_trial_learns(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"tune.trials": 1})
    scores = []
    for strength in (0.0, 1.0):
        weighted = p.tune.space | {
            "class_weight": p.tune.space["class_weight"].model_copy(update={"choice": [strength]})
        }
        scores.append(searched(with_trials(p, 1, space=weighted), folder)["score"])
    assert scores[0] != scores[1]


def test_class_weights_alone_do_not_change_a_score(tmp_path: Path) -> None:
    """A booster that learns nothing knows the shares of the classes, weighted or not."""
    found = []
    for strength in (0.0, 1.0):
        space = SPACE | {"eta": {"choice": [1e-9]}, "class_weight": {"choice": [strength]}}
        p, folder = project(tmp_path / str(strength), **{"tune.space": space, "tune.trials": 1, "tune.rounds": 1})
        found.append(searched(p, folder)["score"])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_the_best_on_fewer_rows_are_ranked_again_on_all(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"tune.trials": 6, "tune.rows": 150, "tune.finalists": 6})
    found, ended = searched(p, folder), [each for each in trials(p, folder) if each["state"] == "COMPLETE"]
    alone = {each["number"]: on_all_rows(p, folder, each["params"]) for each in ended}
    assert found["trial"] == min(alone, key=lambda number: alone[number][0])
    assert (found["score"], found["rounds"]) == alone[found["trial"]]
    assert found["score"] != ended[0]["value"]


def on_all_rows(p: Params, folder: Path, drawn: dict[str, Any], *, rounds: int | None = None) -> tuple[float, int]:
    rows = featurerows.read_rows(folder / p.paths.features)
    made = fitting.Folds(p, rows, small.AS_OF)
    slower = p.model_copy(update={"tune": p.tune.model_copy(update={"rounds": rounds or p.tune.rounds})})
    stopper = fitting.make_watcher(threading.Event())
    progress, best = fitting.fit_folds(drawn, made.bin_whole(drawn), made.spec, slower, lambda *_: stopper, threads=1)
    return progress.mean, best


def test_a_search_on_all_rows_needs_no_finalists(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"tune.rows": None, "tune.finalists": 3})
    found = searched(p, folder)
    assert found["score"] == min(trial["value"] for trial in trials(p, folder) if trial["state"] == "COMPLETE")


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_in_one_trial_stops_the_one_beside_it_and_is_the_one_that_is_told(place: int) -> None:
    stop = threading.Event()

    def waits() -> None:
        assert stop.wait(30)
        raise fitting.Stopped

    def fails() -> None:
        raise ValueError("this one")

    with pytest.raises(ValueError, match="this one"):
        fitting.run_side_by_side([fails, waits] if place == 0 else [waits, fails], 2, stop=stop)


def test_a_search_on_fewer_rows_keeps_enough_of_a_rare_class() -> None:
    rows = small.made_rows(per_day=200)
    rare = rows.take((rows.label == 0) | (np.arange(len(rows)) % 50 == 0))
    spec = model.make_spec(rare.table, rare.label, task="binary")
    there = int((rare.label == 1).sum())
    kept = fitting.thin_rows(rare, 100, spec)
    assert int((kept.label == 1).sum()) >= 0.9 * min(there, fitting.LEAST_RARE_ROWS)


def test_a_category_that_a_folds_training_lacks_is_missing_in_its_validation(tmp_path: Path) -> None:
    rows = small.made_rows(per_day=40)
    late = np.array(rows.table["store"].to_pylist(), dtype=object)
    late[rows.event_time > np.datetime64(small.HELD_FROM - timedelta(days=12))] = "new"
    renamed = replace(
        rows, table=rows.table.set_column(rows.table.column_names.index("store"), "store", [late.tolist()])
    )
    space = {name: each for name, each in SPACE.items() if name != "class_weight"}
    native = {"train.categories": "native", "tune.trials": 2, "tune.space": space}
    p, folder = project(tmp_path, rows=renamed, **native)
    assert searched(p, folder)["score"] == one_by_hand(p, folder)


def one_by_hand(p: Params, folder: Path) -> float:
    """The tuned parameters' score, by models that were fitted and asked as training and serving do."""
    tuned = Tuned.load(folder / p.paths.models / "tuned.json")
    rows, where = (
        featurerows.read_rows(folder / p.paths.features),
        split.find_holdout(small.AS_OF, p.split, deadline=p.label.deadline),
    )
    there = model.is_labelled(rows.label)
    total, count = 0.0, 0
    for fold in split.make_folds(rows.event_time, where.begin, p.split, deadline=p.label.deadline, labelled=there):
        train_rows, valid = rows.take(fold.train), rows.take(fold.valid)
        losses = [loss(train.fit(train_rows, replace(tuned, rounds=n), p, threads=1), valid) for n in range(1, 41)]
        total, count = total + min(losses) * len(valid), count + len(valid)
    return pytest.approx(total / count, rel=1e-4)  # type: ignore[return-value]


def loss(one: Model, rows: Rows) -> float:
    found = one.predict(rows.table)
    return float(-np.mean(np.log(np.where(rows.label == 1, found, 1 - found))))


def test_native_categories_are_searched_too(tmp_path: Path) -> None:
    p, folder = project(tmp_path)
    native = p.model_copy(update={"train": p.train.model_copy(update={"categories": "native"})})
    assert searched(native, folder)["score"] != searched(p, folder)["score"]


# --- broken off, and gone on with


@pytest.mark.parametrize("torn", [0, 1, 40])
def test_a_search_that_is_resumed_is_the_search_that_nobody_broke_off(
    torn: int, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, folder = project(tmp_path)
    tune.tune(with_trials(p, 10), folder)
    unbroken = outputs(p, folder)
    monkeypatch.setenv("EVERGREEN_HOME", str(home / "broken"))
    tune.tune(with_trials(p, 5), folder)
    tear(home / "broken", torn)
    tune.tune(with_trials(p, 10), folder)
    assert outputs(p, folder) == unbroken


def tear(home: Path, count: int) -> None:
    """Cut the end off the log, as a kill in the middle of a line does."""
    (path,) = (home / "studies").glob("*.jsonl")
    path.write_bytes(path.read_bytes()[: -count or None])


def test_a_search_that_grows_takes_up_its_trials(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    p, folder = project(tmp_path)
    tune.tune(with_trials(p, 4), folder)
    first = trials(p, folder)
    caplog.set_level(logging.INFO)
    tune.tune(with_trials(p, 7), folder)
    assert trials(p, folder)[:4] == first
    assert "4 trials taken up" in caplog.text


@pytest.mark.parametrize("left", [1, 3, 5])
def test_a_kill_between_the_lines_of_trials_that_ran_side_by_side_changes_nothing(
    left: int, tmp_path: Path, home: Path
) -> None:
    p, folder = project(tmp_path, **{"tune.trials": 8})
    tune.tune(p, folder)
    unbroken = outputs(p, folder)
    (path,) = (home / "studies").glob("*.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:left]))
    tune.tune(p, folder)
    assert outputs(p, folder) == unbroken
    assert len(path.read_text().splitlines()) == 8


@pytest.mark.parametrize("torn", [0, 7])
def test_another_machine_of_a_team_goes_on_with_a_search(
    torn: int,
    team: Store,
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where a kill tore the last line on the first machine."""
    p, folder = project(tmp_path)
    with monkeypatch.context() as patch:
        patch.delenv(store.VARIABLE)
        tune.tune(with_trials(p, 10), folder)
    unbroken = outputs(p, folder)
    for number, (trials_done, machine) in enumerate([(4, "one"), (6, "one"), (10, "two")]):
        monkeypatch.setenv("EVERGREEN_HOME", str(home / machine))
        if number == 1:
            tear(home / machine, torn)
        caplog.clear()
        caplog.set_level(logging.INFO)
        tune.tune(with_trials(p, trials_done), folder)
    assert "6 trials taken up" in caplog.text
    assert outputs(p, folder) == unbroken
    assert team.list_names("studies")


def test_what_the_store_did_not_take_of_a_search_goes_there_with_the_next_trial(
    shared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise store.StoreError("away")

    path = tmp_path / "studies" / "it.jsonl"
    path.parent.mkdir()
    triallogs.append_rows(path, [{"number": 0}])
    with monkeypatch.context() as patch:
        patch.setattr(type(shared), "add", fail)
        for number in (1, 2):
            triallogs.append_rows(path, [{"number": number}])
    triallogs.append_rows(path, [{"number": 3}])
    (tmp_path / "other").mkdir()
    triallogs.fetch_logs(tmp_path / "other", "it")
    assert (tmp_path / "other" / "it.jsonl").read_text() == path.read_text()
    assert path.read_text().count("\n") == 4


def test_a_search_that_shrinks_is_the_smaller_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, folder = project(tmp_path)
    tune.tune(with_trials(p, 2), folder)
    small_one = outputs(p, folder)
    another_home(monkeypatch, tmp_path)
    tune.tune(with_trials(p, 4), folder)
    tune.tune(with_trials(p, 2), folder)
    assert outputs(p, folder) == small_one


def test_trials_on_other_rows_are_not_taken_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    p, folder = project(tmp_path)
    tune.tune(p, folder)
    small.write(folder, small.made_rows(per_day=40, seed=1), p)
    caplog.set_level(logging.INFO)
    tune.tune(p, folder)
    assert "taken up" not in caplog.text


def test_what_does_not_touch_the_search_does_not_begin_it_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    p, folder = project(tmp_path)
    tune.tune(p, folder)
    other = p.train.model_copy(update={"refit": False, "seeds": 5, "calibration": "none"})
    caplog.set_level(logging.INFO)
    tune.tune(p.model_copy(update={"train": other}), folder)
    assert "3 trials taken up" in caplog.text


def test_the_budget_ends_the_search_and_says_after_how_many_trials(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    p, folder = project(tmp_path)
    found = searched(with_trials(p, 9, budget=timedelta(microseconds=1)), folder)
    assert (found["trials"], found["ended_by"]) == (p.tune.parallel, "budget")
    assert "tune.budget ended the search after 2 of 9 trials" in caplog.text


def test_the_cpu_that_money_leaves_ends_the_search_before_the_trials_that_would_exceed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two trials at a time take 10 s: a third pair would end after 30 of 29 s."""
    p, folder = project(tmp_path)
    clock = itertools.count(0, 10)
    monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(tune, "cost", SimpleNamespace(read_own_usage=lambda: next(clock)))
    result = searched(with_trials(p, 20, cpu=timedelta(seconds=29)), folder)
    assert (result["trials"], result["ended_by"]) == (2 * p.tune.parallel, "cpu")
    assert "tune.cpu ended the search after 4 of 20 trials" in caplog.text


def test_what_is_written_between_trials_counts_for_the_budget_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, folder = project(tmp_path)
    now, append = [0.0], triallogs.append_rows

    def append_slowly(path: Path, lines: list[dict[str, Any]]) -> None:
        append(path, lines)
        now[0] += 10

    monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(triallogs, "append_rows", append_slowly)
    result = searched(with_trials(p, 20, budget=timedelta(seconds=15)), folder)
    assert (result["trials"], result["ended_by"]) == (3 * p.tune.parallel, "budget")


def test_a_search_that_its_budget_ended_goes_on_with_a_larger_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, folder = project(tmp_path)
    tune.tune(with_trials(p, 4), folder)
    unbroken = outputs(p, folder)
    another_home(monkeypatch, tmp_path)
    short = with_trials(p, 4, budget=timedelta(microseconds=1))
    assert searched(short, folder) == searched(short, folder), "the same budget again is no further trial"
    tune.tune(with_trials(p, 4), folder)
    assert outputs(p, folder) == unbroken


def test_a_second_process_on_the_same_search_waits_and_takes_what_the_first_did(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    p, folder = project(tmp_path)
    tune.tune(p, folder)
    done = outputs(p, folder)
    caplog.set_level(logging.INFO)
    second = threading.Thread(target=tune.tune, args=(p, folder))
    with studies.open_log(p, folder / p.paths.features, small.AS_OF):
        second.start()
        second.join(1.0)
        assert second.is_alive()
        assert "another run is under way" in caplog.text
    second.join(60)
    assert "3 trials taken up" in caplog.text
    assert outputs(p, folder) == done


# --- pruning


HARD = {"max_depth": {"low": 1, "high": 5, "integer": True}, "eta": {"low": 0.02, "high": 0.6, "log": True}}


def test_pruning_saves_fits_and_loses_less_than_a_thousandth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of three searches: one alone may be lucky either way."""
    found: dict[bool, list[tuple[float, int, int]]] = {True: [], False: []}
    for prunes, seed in [(True, 0), (True, 1), (True, 2), (False, 0), (False, 1), (False, 2)]:
        rows = small.made_rows(per_day=100, seed=seed)
        longer = {"tune.space": HARD, "tune.trials": 16, "tune.rounds": 120, "tune.seed": seed}
        p, folder = project(tmp_path / str(seed), rows=rows, **longer)
        monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / f"home {prunes}"))
        monkeypatch.setattr(studies, "LEAST_ELDERS", 4 if prunes else 10**9)
        one = searched(p, folder)
        found[prunes].append((one["score"], one["pruned"], count_folds(p, folder)))
    (score, pruned, cost), (other, none, more) = (np.mean(found[each], axis=0) for each in (True, False))
    assert none == 0 < pruned
    assert cost < 0.9 * more
    assert score <= other + 0.001


def count_folds(p: Params, folder: Path) -> int:
    """What the trials cost, in fits of a fold."""
    return sum(p.split.folds if trial["state"] == "COMPLETE" else len(trial["steps"]) for trial in trials(p, folder))


def test_a_pruned_trial_is_told_apart_and_is_never_the_best(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"tune.space": HARD, "tune.trials": 12, "tune.rounds": 80})
    found = searched(p, folder)
    dropped = [trial for trial in trials(p, folder) if trial["state"] == "PRUNED"]
    assert len(dropped) == found["pruned"] > 0
    assert all(trial["value"] is None and trial["rounds"] is None and trial["steps"] for trial in dropped)
    assert found["params"] not in [trial["params"] for trial in dropped]


ELDERS = [0.40, 0.41, 0.42, 0.43, 0.44]


@pytest.mark.parametrize(("score", "pruned"), [(0.43, True), (0.42, False), (0.41, False)])
def test_a_trial_is_behind_when_it_is_worse_than_the_median_of_its_elders(score: float, pruned: bool) -> None:
    assert (score > find_limit(ELDERS)) is pruned


def test_nobody_is_behind_before_enough_elders_have_ended() -> None:
    assert find_limit(ELDERS[: studies.LEAST_ELDERS - 1]) == np.inf


def test_a_trial_is_compared_with_what_its_elders_had_after_the_same_folds(tmp_path: Path) -> None:
    """The first fold may be the easier one: a trial that is pruned was behind there, not behind their ends."""
    p, folder = project(tmp_path, **{"tune.space": HARD, "tune.trials": 12, "tune.rounds": 80})
    searched(p, folder)
    listed = trials(p, folder)
    for first in range(0, 12, p.tune.parallel):
        elders = [trial["steps"]["1"] for trial in listed[:first] if trial["state"] == "COMPLETE"]
        for trial in listed[first : first + p.tune.parallel]:
            assert (trial["state"] == "PRUNED") is (trial["steps"]["1"] > find_limit(elders))


# --- slowed down


def slow_down(params: dict[str, Any], times: int) -> dict[str, Any]:
    return params | {"eta": params["eta"] / 2**times}


def test_a_slower_winner_is_taken_as_long_as_the_folds_gain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    space = SPACE | {"eta": {"choice": [0.9]}, "max_depth": {"choice": [6]}}
    p, folder = project(tmp_path, rows=small.made_rows(per_day=100), **{"tune.halvings": 9, "tune.space": space})
    caplog.set_level(logging.INFO)
    result = searched(p, folder)
    winner = trials(p, folder)[result["trial"]]["params"]
    halvings = round(np.log2(winner["eta"] / result["params"]["eta"]))
    assert 1 <= halvings < 9
    assert result["params"] == slow_down(winner, halvings)
    other = with_trials(p, 3, rounds=9999, seed=p.tune.seed + 1)
    steps = [on_all_rows(other, folder, slow_down(winner, count))[0] for count in range(halvings + 2)]
    assert steps[: halvings + 1] == sorted(steps[: halvings + 1], reverse=True)
    assert steps[halvings + 1] >= steps[halvings] == pytest.approx(result["score"])
    assert caplog.text.count("eta 0.") == halvings + 2


def test_what_slows_the_winner_down_ends_with_the_budget(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"tune.halvings": 9})
    result = searched(with_trials(p, 3, budget=timedelta(microseconds=1)), folder)
    assert result["params"] == trials(p, folder)[result["trial"]]["params"]


def test_a_winner_that_was_slowed_down_is_not_fitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, folder = project(tmp_path, **{"tune.halvings": 1})
    tune.tune(p, folder)
    before = outputs(p, folder)
    monkeypatch.setattr(fitting, "fit_folds", None)
    tune.tune(p, folder)
    assert outputs(p, folder) == before


def test_finalists_end_with_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two take 10 s by this clock: trials take 30 of 55 s, and a third pair of finalists would end after 60."""
    p, folder = project(tmp_path, **{"tune.trials": 6, "tune.rows": 150, "tune.finalists": 6})
    clock = itertools.count(0, 10)
    monkeypatch.setattr(studies, "LEAST_ELDERS", 10**9)
    monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert searched(with_trials(p, 6, budget=timedelta(seconds=55)), folder)["ended_by"] == "trials"
    assert "tune.budget ends with 4 of 6 finalists" in caplog.text
    before = outputs(p, folder)
    searched(with_trials(p, 6, budget=timedelta(seconds=55)), folder)
    assert outputs(p, folder) == before, "the same budget again is no further finalist"


def test_the_first_trial_is_a_finalist_whatever_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, folder = project(tmp_path, **{"tune.trials": 6, "tune.rows": 150, "tune.finalists": 6})
    monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=itertools.count(0, 10).__next__))
    tune.tune(with_trials(p, 6, budget=timedelta(seconds=30)), folder)
    finals = [trial["number"] for trial in trials(p, folder) if trial["final"]]
    assert len(finals) == 2
    assert 0 in finals


# --- the files


def test_files_of_another_version_are_refused_with_the_way_out(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"tune.trials": 1})
    searched(p, folder)
    tuned, listed = folder / p.paths.models / "tuned.json", folder / p.paths.reports / "trials.json"
    assert Tuned.load(tuned).trials == len(read_trials(listed)) == 1
    tuned.write_text(tuned.read_text().replace("tuned/1", "tuned/0"))
    with pytest.raises(ValueError, match=r"tuned.json is in format tuned/0, but this evergreen reads tuned/1. Use the"):
        Tuned.load(tuned)
    listed.write_text("[]")
    with pytest.raises(ValueError, match=r"trials.json is in format unknown, but this evergreen reads trials/1. Use"):
        read_trials(listed)


# --- what cannot be searched


def test_a_parameter_that_xgboost_does_not_know_is_an_error(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"tune.space": SPACE | {"max_dept": {"low": 1, "high": 3, "integer": True}}})
    with pytest.raises(
        ValueError, match=r"must hold parameters of XGBoost, or class_weight, but it holds \['max_dept'\]"
    ):
        tune.tune(p, folder)


def test_the_step_size_goes_by_the_name_that_halvings_read(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"tune.space": {"learning_rate": {"low": 0.1, "high": 0.3}}})
    with pytest.raises(ValueError, match=r"holds learning_rate: write eta"):
        tune.tune(p, folder)


def test_a_slice_that_is_no_feature_is_refused_before_the_search(tmp_path: Path) -> None:
    p = small.settings("binary", **{"evaluate.slices": ["shop"]})
    small.write(tmp_path, small.made_rows("binary"), p)
    with pytest.raises(ValueError, match=r"evaluate.slices must be features, but \['shop'\] are not among"):
        tune.tune(p, tmp_path)


def test_a_value_that_xgboost_refuses_is_an_error_before_the_search(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"tune.space": {"subsample": {"low": 0.5, "high": 3}}})
    with pytest.raises(ValueError, match=r"tune.space: value 3 for Parameter subsample exceed bound"):
        tune.tune(p, folder)
    assert not (folder / p.paths.models).exists()


def test_history_without_room_for_the_folds_is_an_error(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"split.folds": 9})
    with pytest.raises(ValueError, match=r"fold 1 of 9 .* Use fewer or shorter folds"):
        tune.tune(p, folder)


def test_a_fold_whose_training_lacks_a_class_is_an_error(tmp_path: Path) -> None:
    p = small.settings()
    begin = small.AS_OF - timedelta(days=small.DAYS)
    early = begin + timedelta(days=36)  # the first fold learns from 29 days
    rows = small.relabelled(small.made_rows(per_day=40), np.zeros_like, begin, early)
    with pytest.raises(ValueError, match=r"the training rows of fold 1 hold none of the class \[1.0\]"):
        tune.tune(p, small.write(tmp_path, rows, p))


def test_a_target_with_one_class_is_an_error(tmp_path: Path) -> None:
    p = small.settings()
    rows = small.made_rows(per_day=40)
    with pytest.raises(ValueError, match="a target needs two classes at least"):
        tune.tune(p, small.write(tmp_path, replace(rows, label=np.zeros_like(rows.label)), p))


# --- the first trial


def test_the_first_trial_is_xgboosts_own_recipe(tmp_path: Path) -> None:
    own = {"max_depth": 6, "eta": 0.3, "min_child_weight": 1.0, "subsample": 1.0, "max_bin": 256, "class_weight": 0.0}
    wide = {
        "max_depth": {"low": 3, "high": 8, "integer": True},
        "eta": {"low": 0.05, "high": 0.5, "log": True},
        "min_child_weight": {"low": 1, "high": 64, "log": True},
        "subsample": {"low": 0.6, "high": 1.0},
        "max_bin": {"choice": [64, 256]},
        "class_weight": {"low": 0.0, "high": 0.4},
    }
    p, folder = project(tmp_path, **{"tune.space": wide, "tune.trials": 1})
    found = searched(p, folder)
    assert found["params"] == own
    made = fitting.Folds(p, featurerows.read_rows(folder / p.paths.features), small.AS_OF)
    stopper = fitting.make_watcher(threading.Event())
    plain, _ = fitting.fit_folds({}, made.bin_whole({}), made.spec, p, lambda *_: stopper, threads=1)
    assert found["score"] == pytest.approx(plain.mean, abs=1e-7), "what XGBoost makes of no parameters at all"


def test_a_search_is_never_worse_than_its_first_trial_on_all_rows(tmp_path: Path) -> None:
    """Few rows may rank it last: it is fitted on all of them all the same."""
    p, folder = project(tmp_path, **{"tune.trials": 5, "tune.rows": 100, "tune.finalists": 1})
    found, first = searched(p, folder), trials(p, folder)[0]
    assert first["final"] is not None
    assert found["score"] <= first["final"]["score"]


@pytest.mark.parametrize(
    ("dimensions", "first"),
    [
        ({"eta": {"low": 0.01, "high": 0.1, "log": True}}, {"eta": 0.1}),
        ({"max_depth": {"low": 8, "high": 12, "integer": True}}, {"max_depth": 8}),
        ({"max_bin": {"choice": [16, 128]}}, {"max_bin": 128}),
        ({"grow_policy": {"choice": ["lossguide"]}}, {"grow_policy": "lossguide"}),
        ({"grow_policy": {"choice": ["lossguide", "depthwise"]}}, {"grow_policy": "depthwise"}),
        ({"subsample": {"low": 0.5, "high": 0.5}}, {"subsample": 0.5}),
        ({"refresh_leaf": {"choice": [0, 1]}}, {}),
    ],
)
def test_the_first_trial_stays_within_the_space(
    dimensions: dict[str, Any], first: dict[str, Any], tmp_path: Path
) -> None:
    p, folder = project(tmp_path, **{"tune.space": dimensions, "tune.trials": 1, "tune.rounds": 3})
    assert studies.make_first_trials(p.tune.space)[0] == first
    assert searched(p, folder)["params"].items() >= first.items()


def test_the_second_trial_over_leaves_takes_small_steps_and_draws_rows(tmp_path: Path) -> None:
    leaves = {"max_leaves": {"low": 4, "high": 64, "log": True, "integer": True}}
    p, folder = project(tmp_path, **{"tune.trials": 2, "tune.space": SPACE | leaves})
    tune.tune(p, folder)
    second = trials(p, folder)[1]["params"]
    assert second.items() >= {"eta": 0.05, "subsample": 0.8, "max_leaves": 32}.items()


def test_a_class_that_is_younger_than_a_fold_does_not_stop_the_search(tmp_path: Path) -> None:
    def renamed(label: small.Labels) -> small.Labels:
        label[::9] = "new"
        return label

    rows = small.made_rows("multiclass", per_day=40)
    p, folder = project(tmp_path, "multiclass", small.relabelled(rows, renamed, small.HELD_FROM - timedelta(days=5)))
    assert np.isfinite(searched(p, folder)["score"])
