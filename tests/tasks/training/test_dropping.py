"""tune.drop: features that earn nothing on the folds go, and what goes is part of the recipe."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks import params
from tasks.data.featurerows import Rows
from tasks.params import Params, Task
from tasks.promotion.recipe import identify_recipe
from tasks.training import dropping, evaluate, fitting, profile, train, tune
from tasks.training.model import Model
from tasks.training.trials import Tuned
from tests.tasks import small

TASKS: list[Task] = ["binary", "multiclass", "regression"]
NOISE = {"noise_1", "noise_2"}
DRAWN: dict[str, Any] = {"max_depth": 3, "eta": 0.2}
LITTLE: dict[str, Any] = {"tune.trials": 2, "tune.rounds": 40, "tune.drop": True, "tune.rows": None}


def drop(rows: Rows, p: Params, drawn: dict[str, Any] | None = None) -> set[str]:
    lean = dropping.drop_features(fitting.Folds(p, rows, small.AS_OF), drawn or DRAWN, 25, p)
    return set(lean.dropped) if lean else set()


@pytest.mark.parametrize("task", TASKS)
def test_what_decides_the_outcome_stays_and_noise_goes(task: Task) -> None:
    rows = small.made_rows(task, per_day=120)
    dropped = drop(rows, small.settings(task, **LITTLE))
    assert dropped
    assert dropped <= NOISE


@pytest.mark.parametrize("more", [{"class_weight": 0.5}, {}], ids=["weighed", "drawn"])
def test_it_knows_of_class_weights_and_under_sampling(more: dict[str, Any]) -> None:
    rows = small.made_rows("binary", per_day=120)
    p = small.settings("binary", **LITTLE, **({} if more else {"train.undersample": 0.5}))
    assert drop(rows, p, DRAWN | more) <= NOISE


def test_the_offset_and_the_slices_stay_whatever_they_earn() -> None:
    rows = small.made_rows("regression", per_day=60)
    flat = rows.table.append_column("flat", pa.array(np.ones(len(rows), np.float32)))
    rows = replace(rows, table=flat)
    needed = {"train.offset": "flat", "evaluate.slices": ["noise_1"]}
    assert drop(rows, small.settings("regression", **LITTLE)) >= {"flat"}
    assert drop(rows, small.settings("regression", **LITTLE, **needed)).isdisjoint({"flat", "noise_1"})


def test_doubles_that_hide_each_other_do_not_both_go() -> None:
    rows = small.made_rows("regression", per_day=60)
    table = rows.table
    for name in ("jam", "distance"):
        table = table.append_column(f"{name}_again", rows.table[name])
    dropped = drop(replace(rows, table=table), small.settings("regression", **LITTLE))
    assert not {"jam", "jam_again"} <= dropped
    assert not {"distance", "distance_again"} <= dropped


def test_a_feature_earns_where_its_rise_exceeds_the_standard_error() -> None:
    rises = np.array([[1.0, 1.0, 0.0], [1.2, -1.0, 0.0], [0.8, 0.3, 0.0]])
    assert dropping.find_earning(rises).tolist() == [True, False, False]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """tune, train and evaluate with tune.drop."""
    folder, p = tmp_path_factory.mktemp("lean"), small.settings("binary", **LITTLE)
    small.write(folder, small.made_rows("binary", per_day=120), p)
    tune.tune(p, folder, home=folder / "home")
    train.train(p, folder)
    evaluate.evaluate(p, folder)
    return folder, p


def test_the_model_its_profile_and_its_sample_have_the_features_that_stay(made: tuple[Path, Params]) -> None:
    folder, p = made
    tuned = Tuned.load(folder / p.paths.models / "tuned.json")
    assert tuned.dropped
    stay = sorted({"distance", "jam", "store", *NOISE} - set(tuned.dropped))
    for name in ("twin.ubj", "model.ubj"):
        assert Model.load(folder / p.paths.models / name).spec.names == stay
    assert profile.Profile.load(folder / p.paths.reports / "profile.json").names == stay
    assert set(pa.parquet.read_schema(folder / p.paths.reports / "reference.parquet").names) == {*stay, "_score"}


def test_a_recipe_that_is_given_leaves_out_what_the_search_left_out(made: tuple[Path, Params], tmp_path: Path) -> None:
    folder, p = made
    tuned = Tuned.load(folder / p.paths.models / "tuned.json")
    raw = p.model_dump(mode="json")
    raw["tune"]["recipe"] = {"params": tuned.params, "rounds": tuned.rounds, "dropped": tuned.dropped}
    given = params.validate(raw)
    small.write(tmp_path, small.made_rows("binary", per_day=120), given)
    tune.tune(given, tmp_path, home=tmp_path / "home")
    train.train(given, tmp_path)
    first, second = (one / p.paths.models / "model.ubj" for one in (folder, tmp_path))
    assert first.read_bytes() == second.read_bytes()


def test_what_was_dropped_is_part_of_the_recipes_id(made: tuple[Path, Params]) -> None:
    folder, p = made
    tuned = json.loads((folder / p.paths.models / "tuned.json").read_text())
    entries: dict[str, Any] = {"features": {}, "train": {}}
    plain = {name: value for name, value in tuned.items() if name != "dropped"}
    ids = [identify_recipe(p, entries, one) for one in (tuned, plain, {**tuned, "dropped": []})]
    assert ids[0] != ids[1] == ids[2], "a recipe of an older version that knew of no dropped features keeps its id"


def test_it_is_off_by_default() -> None:
    assert not params.load(Path(__file__).parents[3] / "params.yaml").tune.drop
