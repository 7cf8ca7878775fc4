"""tasks.training.train: the twin knows nothing of the holdout, and what ships is its recipe."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.featurerows import Rows
from tasks.params import Costs, Params, Task
from tasks.runtime import engine
from tasks.training import calibration, train
from tasks.training.model import Floats, Model
from tests.tasks import small

LAW = settings(deadline=None, derandomize=True, max_examples=60)
FILES = ("twin.ubj", "model.ubj", "twins/1.ubj")


def project(
    folder: Path, task: Task = "binary", rows: Rows | None = None, drawn: dict[str, Any] | None = None, **overrides: Any
) -> tuple[Params, Path]:
    """A folder as features and tune leave it."""
    p = small.settings(task, **overrides)
    small.write(folder, small.made_rows(task, per_day=30) if rows is None else rows, p)
    small.tuned(folder, p, params=drawn or {"subsample": 0.8})
    return p, folder


def trained(folder: Path, *args: Any, **kwargs: Any) -> dict[str, bytes]:
    p, folder = project(folder, *args, **kwargs)
    train.train(p, folder)
    return {name: (folder / p.paths.models / name).read_bytes() for name in FILES}


def load(p: Params, folder: Path, name: str) -> Model:
    return Model.load(folder / p.paths.models / name)


def log_loss(found: Floats, outcome: Floats) -> float:
    return float(-np.mean(np.log(np.where(outcome == 1, found, 1 - found))))


# --- what each model may see


def test_the_twin_sees_nothing_that_is_known_in_the_holdout_or_after(tmp_path: Path) -> None:
    rows = small.made_rows(per_day=30)
    since = small.HELD_FROM - timedelta(days=1)  # label.deadline: the labels of these rows are known in the holdout
    before, after = (
        trained(tmp_path / name, rows=each)
        for name, each in {"a": rows, "b": small.relabelled(rows, small.flipped, since)}.items()
    )
    assert before["twin.ubj"] == after["twin.ubj"]
    assert before["twins/1.ubj"] == after["twins/1.ubj"]
    assert before["model.ubj"] != after["model.ubj"]


def test_the_twin_sees_everything_until_then(tmp_path: Path) -> None:
    rows = small.made_rows(per_day=30)
    last = small.HELD_FROM - timedelta(days=2)
    other = small.relabelled(rows, small.flipped, last, last + timedelta(days=1))
    assert trained(tmp_path / "a", rows=rows)["twin.ubj"] != trained(tmp_path / "b", rows=other)["twin.ubj"]


def test_what_ships_sees_up_to_as_of_but_no_row_whose_label_may_yet_come(tmp_path: Path) -> None:
    rows = small.made_rows(per_day=30)
    mature = small.AS_OF - timedelta(days=1)
    young = small.relabelled(rows, small.flipped, mature)
    newest = small.relabelled(rows, small.flipped, mature - timedelta(days=1), mature)
    first, same, other = (
        trained(tmp_path / name, rows=each)["model.ubj"] for name, each in {"a": rows, "b": young, "c": newest}.items()
    )
    assert first == same
    assert first != other


def test_each_model_says_until_when_it_saw(tmp_path: Path) -> None:
    p, folder = project(tmp_path)
    train.train(p, folder)
    assert load(p, folder, "twin.ubj").spec.until == small.HELD_FROM.isoformat()
    assert load(p, folder, "twins/1.ubj").spec.until == small.HELD_FROM.isoformat()
    assert load(p, folder, "model.ubj").spec.until == small.AS_OF.isoformat()


def test_unlabelled_rows_change_nothing(tmp_path: Path) -> None:
    rows = small.made_rows(per_day=30)
    gone = np.random.default_rng(0).random(len(rows)) < 0.1
    label = np.where(gone, np.nan, rows.label)
    with_them, without = replace(rows, label=label), replace(rows, label=label).take(~gone)
    assert trained(tmp_path / "a", rows=with_them) == trained(tmp_path / "b", rows=without)


def test_without_refit_the_twin_itself_ships(tmp_path: Path) -> None:
    found = trained(tmp_path, **{"train.refit": False})
    assert found["model.ubj"] == found["twin.ubj"]


# --- seeds, and again


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    assert trained(tmp_path / "a") == trained(tmp_path / "b")


def test_the_number_of_threads_does_not_change_the_bytes(tmp_path: Path) -> None:
    one, three = (trained(tmp_path / str(count), **{"stage.threads": count}) for count in (1, 3))
    assert one == three


def test_processes_do_not_change_the_bytes(tmp_path: Path) -> None:
    here, there = (trained(tmp_path / str(cluster), **{"stage.cluster": cluster}) for cluster in (None, "local:2"))
    engine.close()
    assert here == there


def test_a_twin_of_another_seed_is_another_model_with_the_same_calibration(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"train.seeds": 3})
    train.train(p, folder)
    twins = [load(p, folder, name) for name in ("twin.ubj", "twins/1.ubj", "twins/2.ubj")]
    assert len({one.to_bytes() for one in twins}) == 3
    assert twins[0].spec == twins[1].spec == twins[2].spec


def test_twins_of_an_earlier_run_with_more_seeds_do_not_stay(tmp_path: Path) -> None:
    trained(tmp_path, **{"train.seeds": 4})
    p, folder = project(tmp_path, **{"train.seeds": 1})
    train.train(p, folder)
    assert list((folder / p.paths.models / "twins").glob("*.ubj")) == []


def test_a_recipe_that_is_given_has_one_twin(tmp_path: Path) -> None:
    p = small.settings(**{"train.seeds": 3, "tune.recipe": {"params": {}, "rounds": 3}})
    small.write(tmp_path, small.made_rows(), p)
    small.tuned(tmp_path, p)
    train.train(p, tmp_path)
    assert not list((tmp_path / p.paths.models / "twins").glob("*.ubj"))


def test_class_weighting_changes_the_model(tmp_path: Path) -> None:
    none, some = (trained(tmp_path / str(each), drawn={"class_weight": each}) for each in (0.0, 0.5))
    assert none["model.ubj"] != some["model.ubj"]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_native_categories_are_trained_for_every_task(task: Task, tmp_path: Path) -> None:
    p, folder = project(tmp_path, task, **{"train.categories": "native"})
    train.train(p, folder)
    assert load(p, folder, "model.ubj").spec.native


# --- calibration


def test_a_model_that_overfits_is_calibrated_on_rows_it_has_not_seen(tmp_path: Path) -> None:
    p, folder = project(tmp_path, drawn={"max_depth": 8, "min_child_weight": 0.01, "eta": 0.9})
    train.train(p, folder)
    twin = load(p, folder, "twin.ubj")
    rows = small.made_rows(per_day=30)
    held = rows.take(rows.event_time >= np.datetime64(small.HELD_FROM))
    raw = twin.with_spec(coef=(), intercept=())
    assert twin.spec.coef[0][0] < 0.8
    assert log_loss(twin.predict(held.table), held.label) < log_loss(raw.predict(held.table), held.label) - 0.02


def test_calibration_can_be_turned_off(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"train.calibration": "none"})
    train.train(p, folder)
    assert load(p, folder, "model.ubj").spec.coef == ()


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_without_calibration_class_weights_are_taken_out_again(task: Task, tmp_path: Path) -> None:
    rows = small.made_rows(task, per_day=30)
    kept = np.arange(len(rows)) % 4 == 0
    rare = rows.take(kept | (rows.label == rows.label.min()))
    p, folder = project(tmp_path, task, rare, {"class_weight": 1.0}, **{"train.calibration": "none"})
    train.train(p, folder)
    found = load(p, folder, "model.ubj")
    shares = [np.mean(rare.label == each) for each in found.spec.classes]
    left = found.with_spec(coef=(), intercept=())
    off, weighted = (np.abs(told(each, rare) - shares).max() for each in (found, left))
    assert off < 0.04
    assert weighted > off + 0.04


def told(judged: Model, rows: Rows) -> Floats:
    """The mean probability of each class."""
    mean: Floats = judged.predict(rows.table).mean(axis=0)
    return mean if np.ndim(mean) else np.array([1 - mean, mean])


def test_several_classes_are_calibrated_together(tmp_path: Path) -> None:
    p, folder = project(tmp_path, "multiclass", drawn={"max_depth": 8, "min_child_weight": 0.01, "eta": 0.9})
    train.train(p, folder)
    one = load(p, folder, "model.ubj")
    assert np.shape(one.spec.coef) == (3, 3)
    assert one.spec.threshold is None


def test_a_class_that_the_newest_fold_alone_has_is_trained_and_nothing_is_calibrated_without_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def renamed(label: small.Labels) -> small.Labels:
        label[::9] = "new"
        return label

    rows = small.relabelled(small.made_rows("multiclass", per_day=30), renamed, small.HELD_FROM - timedelta(days=5))
    p, folder = project(tmp_path, "multiclass", rows)
    train.train(p, folder)
    assert load(p, folder, "twin.ubj").spec.classes == ("early", "fair", "late", "new")
    assert load(p, folder, "twin.ubj").spec.coef == (), "it would be bent by rows that lack a class"
    assert "hold none of the class ['new']" in caplog.text
    assert "classes without an out-of-fold row: calibration is left out" in caplog.text


def test_a_binary_margin_says_as_much_for_one_class_as_against_the_other() -> None:
    found = train.to_spec_fields(calibration.Map(np.eye(2) * 0.5, np.array([-0.1, 0.1])), "binary")
    assert found == {"coef": ((0.5,),), "intercept": (0.2,)}


def test_two_classes_under_multiclass_give_shares_that_sum_to_one(tmp_path: Path) -> None:
    rows = small.made_rows(per_day=30)
    words = np.array(["no", "yes"], dtype=object)[rows.label.astype(int)]
    p, folder = project(tmp_path, "multiclass", replace(rows, label=words))
    train.train(p, folder)
    found = load(p, folder, "twin.ubj").predict(rows.table)
    assert np.allclose(found.sum(axis=1), 1)
    assert log_loss(found[:, 1], rows.label) < 0.6


# --- the threshold


COSTS = st.floats(0.1, 100)


@LAW
@given(COSTS, COSTS, st.floats(0, 1))
def test_acting_at_the_threshold_costs_the_least(false_positive: float, false_negative: float, chance: float) -> None:
    """Elkan (2001): compare the expected cost of acting with that of not acting."""
    acts = chance >= train.find_threshold(Costs(false_positive=false_positive, false_negative=false_negative))
    acting, waiting = (1 - chance) * false_positive, chance * false_negative
    assert (acting if acts else waiting) <= min(acting, waiting) + 1e-9


def test_the_threshold_travels_in_the_model(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"evaluate.costs": {"false_positive": 1, "false_negative": 4}})
    train.train(p, folder)
    assert [load(p, folder, name).spec.threshold for name in FILES] == [0.2, 0.2, 0.2]


def test_a_regression_has_neither_threshold_nor_calibration(tmp_path: Path) -> None:
    p, folder = project(tmp_path, "regression")
    train.train(p, folder)
    spec = load(p, folder, "model.ubj").spec
    assert (spec.threshold, spec.coef, spec.classes) == (None, (), ())


# --- classes that come and go


def test_a_class_that_comes_up_in_the_holdout_waits_until_the_twin_can_learn_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = small.relabelled(small.made_rows("multiclass", per_day=30), renamed, small.HELD_FROM)
    p, folder = project(tmp_path, "multiclass", rows)
    train.train(p, folder)
    assert load(p, folder, "model.ubj").spec.classes == ("early", "fair", "late")
    assert "are of a class that the twin could not learn" in caplog.text
    assert np.isfinite(load(p, folder, "model.ubj").predict(rows.table)).all()


def renamed(label: small.Labels) -> small.Labels:
    label[::7] = "never"
    return label


def test_a_class_that_the_window_has_left_behind_is_still_one_of_the_models(tmp_path: Path) -> None:
    rows = small.relabelled(small.made_rows("multiclass", per_day=30), gone, small.HELD_FROM - timedelta(days=14))
    p, folder = project(tmp_path, "multiclass", rows, **{"split.window": "25d", "train.calibration": "none"})
    train.train(p, folder)
    assert load(p, folder, "twin.ubj").spec.classes == load(p, folder, "model.ubj").spec.classes


def gone(label: small.Labels) -> small.Labels:
    return np.where(label == "fair", "late", label)


def test_a_target_with_one_class_is_an_error_and_leaves_no_model(tmp_path: Path) -> None:
    rows = small.made_rows(per_day=30)
    p, folder = project(tmp_path, rows=replace(rows, label=np.ones_like(rows.label)))
    with pytest.raises(ValueError, match=r"two classes at least, but the training rows hold only \[1.0\]"):
        train.train(p, folder)
    assert not list((folder / p.paths.models).glob("**/*.ubj"))


def test_no_labelled_row_before_the_holdout_is_an_error(tmp_path: Path) -> None:
    p, folder = project(tmp_path, **{"split.holdout": "70d"})
    with pytest.raises(ValueError, match=r"no labelled row lies before .* shorten split.holdout"):
        train.train(p, folder)
