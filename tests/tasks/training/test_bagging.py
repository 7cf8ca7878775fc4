"""tasks.training.bagging: a bag is one booster that says what the mean of its members says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.params import Task
from tasks.training import bagging, model, split, train
from tasks.training.model import Model
from tests.tasks import small

DRAWN: dict[str, Any] = {"max_depth": 3, "eta": 0.3, "subsample": 0.6, "max_bin": 32}


def fit(task: Task, *, bag: int, seed: int = 0) -> tuple[Model, Any]:
    p, rows = small.settings(task, **{"train.bag": bag}), small.made_rows(task, per_day=20)
    seen = rows.take(split.select_between(rows.event_time, None, small.HELD_FROM))
    fitted = train.fit(seen, small.by_hand(DRAWN, rounds=12), p, threads=2, seed=seed)
    return fitted, rows.table


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_bags_margin_is_the_mean_of_its_members_margins(task: Task) -> None:
    bag, table = fit(task, bag=3)
    members = [fit(task, bag=1, seed=number * bagging.SEED_STEP)[0] for number in range(3)]
    assert not np.allclose(members[0].margins(table), members[1].margins(table))
    mean = np.mean([member.margins(table) for member in members], axis=0)
    np.testing.assert_allclose(bag.margins(table), mean, atol=1e-5)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_what_explains_a_bag_adds_up_to_what_it_says(task: Task) -> None:
    bag, table = fit(task, bag=2)
    data = model.import_xgboost().DMatrix(bag.spec.encode(table), feature_names=bag.spec.names)
    parts = bag.booster.predict(data, pred_contribs=True)
    np.testing.assert_allclose(parts.sum(axis=-1), bag.margins(table), atol=1e-4)


def test_a_bag_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    bag, table = fit("binary", bag=2)
    bag.write(tmp_path / "model.ubj")
    read = Model.load(tmp_path / "model.ubj")
    np.testing.assert_array_equal(read.margins(table), bag.margins(table))
    assert read.to_bytes() == bag.to_bytes() == fit("binary", bag=2)[0].to_bytes()


def test_twins_of_a_bag_share_no_booster() -> None:
    seeds = [seed for twin in range(3) for seed in bagging.find_seeds(7 + twin, 5)]
    assert len(set(seeds)) == 15
