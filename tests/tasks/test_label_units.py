"""A number to predict keeps its precision: with an offset, or in other units, every stage comes to the same errors."""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.data.featurerows import Rows
from tasks.params import Params
from tasks.promotion.contest import row_losses
from tasks.training import evaluate, fitting, model, train, tune
from tasks.training.holdout import Holdout
from tasks.training.model import Model
from tests.tasks import small

OFFSET = 1e9
UNIT = 2.0**-30
SPACE = {"max_depth": {"low": 2, "high": 4, "integer": True}, "gamma": {"low": 0.1, "high": 2.0}}


def whole_numbers(factor: float = 1.0, offset: float = 0.0) -> Rows:
    """Delays in whole minutes, which float64 adds to the offset without loss."""
    rows = small.made_rows("regression", per_day=30)
    return replace(rows, label=np.round(rows.label * 5) * factor + offset)


class Run:
    """tune, train and evaluate on these rows."""

    def __init__(self, folder: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EVERGREEN_HOME", str(folder / "home"))
        self.p: Params = small.settings("regression", **{"tune.space": SPACE, "tune.trials": 2, "tune.rounds": 20})
        self.folder = small.write(folder, rows, self.p)
        (folder / "tasks").mkdir()
        (folder / "tasks" / "features.sql").write_text("-- not run here\n")
        tune.tune(self.p, folder)
        train.train(self.p, folder)
        evaluate.evaluate(self.p, folder)

    def json(self, path: Path) -> Any:
        return json.loads((self.folder / path).read_text())

    @property
    def tuned(self) -> dict[str, Any]:
        return dict(self.json(self.p.paths.models / "tuned.json"))

    @property
    def errors(self) -> dict[str, float]:
        """RMSE of the twin and of every baseline."""
        board = self.json(self.p.paths.reports / "leaderboard.json")
        return {row["model"]: row["rmse"] for row in board}

    @property
    def gains(self) -> float:
        """What the gate sees: the constant's squared error less the candidate's."""
        held = Holdout.load(self.folder / self.p.paths.reports / "holdout.parquet")
        losses = {
            name: row_losses(held.label, held.predictions[name], metric="rmse").mean()
            for name in ("candidate", "constant")
        }
        return float(losses["constant"] - losses["candidate"])

    @property
    def shipped(self) -> Model:
        return Model.load(self.folder / self.p.paths.models / "model.ubj")


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path / "plain", whole_numbers(), monkeypatch)


def test_an_offset_changes_no_error_in_any_stage(plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = Run(tmp_path / "moved", whole_numbers(offset=OFFSET), monkeypatch)
    assert moved.tuned == plain.tuned
    assert moved.errors == pytest.approx(plain.errors, rel=1e-5)
    assert moved.gains == pytest.approx(plain.gains, rel=1e-5)
    table = whole_numbers().table
    assert np.array_equal(moved.shipped.margins(table), plain.shipped.margins(table)), "the very same trees"
    assert moved.shipped.predict(table) - OFFSET == pytest.approx(plain.shipped.predict(table), abs=1e-5)


def test_the_calibration_curve_tells_numbers_far_from_zero_apart(
    plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Run(tmp_path / "moved", whole_numbers(offset=OFFSET), monkeypatch)
    near, far = ((run.folder / "reports/curves/calibration.csv").read_text().splitlines()[1:] for run in (plain, moved))
    values = [[[float(value) for value in line.split(",")[:2]] for line in lines] for lines in (near, far)]
    assert np.array(values[1]) - OFFSET == pytest.approx(np.array(values[0]), abs=1e-3)


def test_other_units_give_the_same_trees_and_errors_in_those_units(
    plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XGBoost alone makes no split of so small a label, and gamma would mean another thing."""
    tiny = Run(tmp_path / "tiny", whole_numbers(UNIT), monkeypatch)
    assert tiny.tuned["params"] == plain.tuned["params"]
    assert tiny.tuned["score"] == pytest.approx(plain.tuned["score"] * UNIT, rel=1e-5)
    assert tiny.errors == pytest.approx({name: value * UNIT for name, value in plain.errors.items()}, rel=1e-5)
    assert plain.errors["candidate"] < 0.7 * plain.errors["constant"]


def test_contributions_are_in_the_labels_units(plain: Run) -> None:
    table = whole_numbers().table
    spread = plain.shipped.predict(table) - plain.shipped.contributions(table).sum(axis=1)
    assert spread.std() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("label", "center", "scale"),
    [
        ([3.0, np.nan, 1.0, 2.0], 2.0, 1.0),
        ([7.0, 7.0], 7.0, 1.0),
        ([np.nan], 0.0, 1.0),
        ([1e9, 1e9 + 64, 1e9 - 64], 1e9, 64.0),
    ],
)
def test_the_center_is_a_label_and_the_scale_a_power_of_two(label: list[float], center: float, scale: float) -> None:
    assert model.find_center(np.array(label)) == (center, scale)


def test_a_model_file_carries_its_center(tmp_path: Path) -> None:
    rows = whole_numbers(offset=OFFSET)
    p = small.settings("regression")
    seen = fitting.take_training(rows, datetime.fromisoformat("2024-03-01"), p)
    one = train.fit(seen, small.by_hand({}, rounds=3), p, threads=1)
    path = tmp_path / "model.ubj"
    path.write_bytes(one.to_bytes())
    again = Model.load(path)
    assert again.spec == one.spec
    assert abs(again.spec.center - OFFSET) < 100
    assert np.array_equal(again.predict(rows.table), one.predict(rows.table))
    assert again.to_bytes() == one.to_bytes()
