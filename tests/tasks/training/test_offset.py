"""train.offset: a number is learnt as what it is above a feature, and predicted by adding that feature again."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.data import storedrows
from tasks.data.featurerows import Rows
from tasks.training import baselines, fitting, matrices, model, train
from tasks.training.model import Model
from tests.tasks import small
from tests.tasks.training.test_matrices import run_stages

CUT = datetime.fromisoformat("2024-02-10")
ON: dict[str, Any] = {"train.offset": "newest"}


def wandering(seed: int = 0) -> Rows:
    """Labels on top of a level that climbs to where it never was; every 50th row does not know the level."""
    rows = small.made_rows("regression", per_day=30, seed=seed)
    level = np.linspace(0, 400, len(rows))
    shown = np.where(np.arange(len(rows)) % 50 == 7, np.nan, level)
    table = rows.table.append_column("newest", pa.array(shown, from_pandas=True))
    return replace(rows, table=table, label=rows.label + level)


def fit(rows: Rows, **overrides: Any) -> Model:
    p = small.settings("regression", **overrides)
    return train.fit(fitting.take_training(rows, CUT, p), small.by_hand({"max_depth": 3}, rounds=30), p, threads=1)


def find_errors(fitted: Model, rows: Rows) -> model.Floats:
    later = rows.take((rows.event_time >= np.datetime64(CUT)) & ~np.isnan(rows.table["newest"].to_numpy()))
    return np.asarray(np.abs(fitted.predict(later.table) - later.label))


def test_a_level_that_was_never_seen_is_predicted() -> None:
    rows = wandering()
    assert find_errors(fit(rows), rows).mean() > 50, "trees alone stay at the highest level that they saw"
    assert find_errors(fit(rows, **ON), rows).mean() < 3


def test_a_prediction_is_the_same_to_the_last_bit_for_one_row_and_for_many() -> None:
    rows = wandering()
    fitted = fit(rows, **ON)
    whole = fitted.predict(rows.table)
    alone = [fitted.predict(rows.table.slice(place, 1))[0] for place in range(0, len(rows), 37)]
    assert whole[::37].tolist() == alone


def test_a_row_without_the_offset_has_the_median_label_in_its_place() -> None:
    rows = wandering()
    fitted = fit(rows, **ON)
    seen = fitting.take_training(rows, CUT, small.settings("regression"))
    assert fitted.spec.offset_else == fitted.spec.middle == np.quantile(seen.label, 0.5, method="lower")
    missing = np.isnan(rows.table["newest"].to_numpy())
    margins = fitted.margins(rows.table)[missing]
    expected = margins.astype(np.float64) * fitted.spec.scale + fitted.spec.center + fitted.spec.offset_else
    assert fitted.predict(rows.table)[missing].tolist() == expected.tolist()


def test_nothing_is_learnt_from_rows_without_the_offset() -> None:
    rows = wandering()
    missing = np.isnan(rows.table["newest"].to_numpy())
    other = replace(rows, label=np.where(missing, rows.label[::-1], rows.label))
    spec = fit(rows, **ON).spec
    ours, theirs = (fit(one, **ON).with_spec(offset_else=0.0) for one in (rows, other))
    assert ours.to_bytes() == theirs.to_bytes()
    assert (spec.center, spec.scale) == (ours.spec.center, ours.spec.scale)


def test_an_offset_without_a_value_is_refused() -> None:
    rows = wandering()
    place, empty = rows.table.column_names.index("newest"), pa.array([None] * len(rows), pa.float64())
    with pytest.raises(ValueError, match=r"train.offset 'newest' is missing in each of the"):
        fit(replace(rows, table=rows.table.set_column(place, "newest", empty)), **ON)


def test_contributions_add_up_to_the_prediction_less_a_constant() -> None:
    rows = wandering()
    fitted = fit(rows, **ON)
    rest = fitted.predict(rows.table) - fitted.contributions(rows.table).sum(axis=1)
    assert rest.std() == pytest.approx(0, abs=1e-3)


def test_a_model_file_carries_its_offset_and_an_older_reader_refuses_it(tmp_path: Path) -> None:
    rows = wandering()
    fitted, plain = fit(rows, **ON), fit(rows)
    fitted.write(tmp_path / "model.ubj")
    again = Model.load(tmp_path / "model.ubj")
    assert again.spec == fitted.spec
    assert np.array_equal(again.predict(rows.table), fitted.predict(rows.table))
    plain.to_bytes()
    marks = [one.booster.attr(model.FORMAT_ATTRIBUTE) for one in (plain, fitted)]
    assert marks == ["model/1", "model/2"]


def test_rows_in_their_files_give_the_same_bytes(tmp_path: Path) -> None:
    made = [run_stages(tmp_path / memory, memory, "regression", wandering(), **ON) for memory in ("4GB", "1kB")]
    assert made[0] == made[1]
    assert made[0]["models/twin.ubj"]


def test_with_warm_the_scale_is_that_of_what_the_base_learns() -> None:
    rows = wandering()
    fitted = fit(rows, **ON, **{"train.warm": "14d"})
    assert fitted.spec.scale < 16, "of the differences, not of the levels"
    assert find_errors(fitted, rows).mean() < 3


def test_baselines_learn_the_same_difference_from_rows_that_have_it() -> None:
    rows = wandering()
    missing = np.isnan(rows.table["newest"].to_numpy())
    rows = replace(rows, label=np.where(missing, 1e6, rows.label))
    p = small.settings("regression", **ON)
    seen = fitting.take_training(rows, CUT, p)
    held = rows.take(rows.event_time >= np.datetime64(CUT))
    spec = matrices.make_spec(seen, p)
    shown = ~np.isnan(held.table["newest"].to_numpy())
    for name, predict in baselines.BASELINES.items():
        error = np.abs(predict(seen, held, spec, 1) - held.label)[shown]
        assert error.mean() < 4, name


@pytest.mark.parametrize("name", ["nowhere", "store"])
def test_an_offset_that_is_no_number_of_the_features_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"train.offset must be a feature that is a number, but '{name}' is none"):
        fit(wandering(), **{"train.offset": name})


def test_an_offset_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train.offset 'jam' needs label.task regression"):
        small.settings("binary", **{"train.offset": "jam"})


def test_an_offset_far_from_zero_costs_no_digits_beyond_those_of_its_feature() -> None:
    """XGBoost computes in float32: what it sees is the difference, and what is added is float64."""
    rows = wandering()
    far = replace(
        rows,
        table=rows.table.set_column(
            rows.table.column_names.index("newest"),
            "newest",
            pa.array(np.round(rows.table["newest"].to_numpy()) + 2.0**23, from_pandas=True),
        ),
        label=rows.label + 2.0**23,
    )
    assert find_errors(fit(far, **ON), far).mean() < 3


def test_stored_rows_read_the_offset_of_their_own_order(tmp_path: Path) -> None:
    rows = wandering()
    stored = storedrows.write_rows(rows, tmp_path)
    spec = matrices.make_spec(rows, small.settings("regression", **ON))
    assert np.array_equal(matrices.find_offset(stored, spec), spec.find_offset(spec.encode(rows.table)))
