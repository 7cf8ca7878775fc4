"""train.undersample: some rows of the frequent class teach, and the probabilities are those of all rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.data import storedrows
from tasks.data.featurerows import Rows
from tasks.training import fitting, model, sampling, train
from tasks.training.model import Spec
from tests.tasks import small
from tests.tasks.training.test_matrices import run_stages

SHARE = 0.2
ON: dict[str, Any] = {"train.undersample": SHARE}
HASHES = [2933018355018540444, 13643779156112355351, 10449980362060498130]  # of the three rows in the test of them
RARE = Spec("binary", (), {}, (0.0, 1.0))


def rare_rows(per_day: int = 200) -> Rows:
    """One row in eight is positive."""
    rows = small.made_rows("binary", per_day=per_day)
    level = small.made_rows("regression", per_day=per_day).label
    keys = pa.table({"order": pa.array([f"order {number}" for number in range(len(rows))])})
    return replace(rows, label=(level > np.quantile(level, 7 / 8)).astype(float), keys=keys)


def draw(rows: Rows, share: float = SHARE) -> Rows:
    drawn = sampling.draw_rows(rows, RARE, sampling.find_shares(rows.label, RARE, share))
    return drawn.load()


def name_rows(rows: Rows) -> set[str]:
    assert rows.keys is not None
    return set(rows.keys["order"].to_pylist())


def test_all_rare_rows_and_a_share_of_the_frequent_ones_are_drawn() -> None:
    rows = rare_rows()
    drawn = draw(rows)
    assert drawn.label.sum() == rows.label.sum()
    share, count = (drawn.label == 0).sum() / (rows.label == 0).sum(), (rows.label == 0).sum()
    assert abs(share - SHARE) < 4 * np.sqrt(SHARE * (1 - SHARE) / count)


def test_the_same_rows_are_drawn_in_any_order_and_beside_any_others() -> None:
    rows = rare_rows(per_day=20)
    order = np.random.default_rng(0).permutation(len(rows))
    assert rows.keys is not None
    shuffled = Rows(
        rows.table.take(order),
        rows.event_time[order],
        rows.known_at[order],
        rows.label[order],
        rows.keys.take(order),
    )
    assert name_rows(draw(shuffled)) == name_rows(draw(rows))
    half = rows.slice(0, len(rows) // 2)
    assert name_rows(draw(half)) == name_rows(draw(rows)) & name_rows(half)
    assert name_rows(draw(rows, 0.1)) < name_rows(draw(rows, 0.2)), "a smaller share draws some of the same rows"


def test_a_hash_is_the_same_on_every_machine() -> None:
    """Written down here, so that another library or machine that gave other ones would fail."""
    times = np.array(["2024-01-01T00:00", "2024-01-01T00:00", "1969-12-31T23:59"], "datetime64[us]")
    keys = pa.table({"shop": pa.array([1, 1, 2]), "order": pa.array(["a", "ö", None])})
    rows = Rows(pa.table({"x": [1.0, 2.0, 3.0]}), times, times, np.zeros(3), keys)
    assert sampling.hash_keys(rows).tolist() == HASHES


def test_rows_without_a_key_are_told_apart_by_their_features() -> None:
    rows = replace(rare_rows(per_day=20), keys=None)
    assert len(np.unique(sampling.hash_keys(rows))) == len(rows)


def test_rows_in_their_files_are_drawn_alike(tmp_path: Path) -> None:
    rows = replace(rare_rows(per_day=20), keys=None)
    stored = storedrows.write_rows(rows, tmp_path)
    assert np.array_equal(sampling.hash_keys(stored), sampling.hash_keys(rows))


@pytest.mark.parametrize("drawn", [{}, {"class_weight": 0.5}], ids=["plain", "weighed"])
@pytest.mark.parametrize("calibration", ["none", "sigmoid"])
def test_the_corrected_mean_probability_is_the_prior(drawn: dict[str, float], calibration: str) -> None:
    """Of all rows, within the sampling error of the rows that were drawn."""
    rows = rare_rows()
    p = small.settings("binary", **ON, **{"train.calibration": calibration})
    tuned = small.by_hand({"max_depth": 3, "eta": 0.2, **drawn}, rounds=40)
    twin = train.fit_twins(rows, small.HELD_FROM, tuned, p, seeds=1)[0]
    seen = fitting.take_training(rows, small.HELD_FROM, p)
    assert twin.spec.shares == (SHARE, 1.0)
    prior, mean = seen.label.mean(), twin.predict(seen.load().table).mean()
    of_drawn = prior / (prior + SHARE * (1 - prior))
    assert abs(mean - prior) < 0.1 * prior
    assert of_drawn > 3 * prior, "without the correction the mean would be this"


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_the_correction_is_the_log_of_the_share(task: Any) -> None:
    """A model of no rounds knows nothing but the shares of the classes."""
    rows = small.made_rows(task, per_day=60)
    p = small.settings(task, **ON, **{"train.calibration": "none"})
    twin = train.fit_twins(rows, small.HELD_FROM, small.by_hand({}, rounds=1), p, seeds=1)[0]
    plain = twin.with_spec(coef=(), intercept=())
    table = rows.table.slice(0, 50)
    corrected, raw = (to_shares(one.predict(table)) for one in (twin, plain))
    frequent = int(np.argmin(twin.spec.shares))
    other = 1 - frequent if task == "binary" else (frequent + 1) % 3
    moved = np.log(corrected[:, frequent] / corrected[:, other]) - np.log(raw[:, frequent] / raw[:, other])
    assert moved == pytest.approx(np.full(50, -np.log(SHARE)))


def to_shares(predictions: model.Floats) -> model.Floats:
    return predictions if predictions.ndim == 2 else np.column_stack([1 - predictions, predictions])


def test_folds_are_scored_on_all_their_rows_with_the_correction() -> None:
    """A search that scored the raw margins would report the loss of a model that is wrong by a factor of five."""
    rows = rare_rows()
    spec, scores = None, []
    for share in (None, SHARE):
        p = small.settings("binary", **{"train.undersample": share})
        folds = fitting.Folds(p, rows, small.AS_OF)
        spec = folds.spec
        drawn = {"max_depth": 3, "eta": 0.2}
        watcher = fitting.make_watcher(train.threading.Event())
        progress, _ = fitting.fit_folds(drawn, folds.bin_whole(drawn), spec, p, lambda *_, w=watcher: w, threads=1)
        scores.append(progress.mean)
    assert scores[1] == pytest.approx(scores[0], rel=0.15)


def test_the_refit_draws_by_the_shares_that_the_twin_was_corrected_for(tmp_path: Path) -> None:
    """Also where another class has become the most frequent one since."""
    rows = rare_rows(per_day=60)
    late = rows.event_time >= np.datetime64(small.HELD_FROM)
    rows = replace(rows, label=np.where(late, 1.0, rows.label), keys=None)
    p = small.settings("binary", **ON)
    folder = small.write(tmp_path, rows, p)
    small.tuned(folder, p)
    train.train(p, folder)
    twin, shipped = (model.Model.load(folder / p.paths.models / name) for name in ("twin.ubj", "model.ubj"))
    assert twin.spec.shares == shipped.spec.shares == (SHARE, 1.0)
    assert twin.spec.intercept == shipped.spec.intercept


def test_stages_make_the_same_whatever_memory_there_is(tmp_path: Path) -> None:
    rows = replace(rare_rows(per_day=60), keys=None)
    made = [run_stages(tmp_path / memory, memory, "binary", rows, **ON) for memory in ("4GB", "1kB")]
    assert made[0] == made[1]


def test_a_share_that_draws_nothing_is_refused() -> None:
    rows = rare_rows(per_day=1)
    with pytest.raises(
        ValueError, match=r"train.undersample 1e-12 draws none of the \d+ rows of the class 0.0: raise it"
    ):
        draw(rows, 1e-12)


def test_a_number_is_not_sampled() -> None:
    with pytest.raises(ValueError, match=r"train.undersample 0.2 is for classes, but label.task is regression"):
        small.settings("regression", **ON)
