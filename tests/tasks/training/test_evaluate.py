"""tasks.training.evaluate: its figures are scikit-learn's, on the holdout and on nothing else."""

import csv
import json
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics

from tasks.data.featurerows import Rows
from tasks.params import Params, Task
from tasks.training import evaluate, train
from tasks.training.metrics import calibration_error, draw_roc, measure
from tasks.training.model import Floats, Spec
from tests.tasks import small

LAW = settings(deadline=None, derandomize=True, max_examples=60)
TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


@dataclass(frozen=True)
class Done:
    """What evaluate left."""

    p: Params
    folder: Path

    @property
    def reports(self) -> Path:
        return self.folder / self.p.paths.reports

    def json(self, name: str) -> Any:
        return json.loads((self.reports / name).read_text())

    def csv(self, name: str) -> list[dict[str, str]]:
        return list(csv.DictReader((self.reports / name).open()))

    def column(self, name: str) -> Floats:
        values = pq.read_table(self.reports / "holdout.parquet")[name].to_numpy()
        return np.stack(values) if values.dtype == object and name.startswith("by_") else values

    def everything(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.reports.glob("**/*.*"))}


def evaluated(folder: Path, task: Task, rows: Rows | None = None, **overrides: Any) -> Done:
    p = small.settings(task, **overrides)
    small.write(folder, small.made_rows(task) if rows is None else rows, p)
    small.tuned(folder, p)
    train.train(p, folder)
    evaluate.evaluate(p, folder)
    return Done(p, folder)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Each task, once, by params alone."""
    return {task: evaluated(tmp_path_factory.mktemp(task), task) for task in TASKS}


# --- the figures


def test_binary_figures_are_those_of_scikit_learn(done: dict[str, Done]) -> None:
    told, label, found = done["binary"].json("metrics.json"), *both(done["binary"])
    yes = found >= 1 / 3  # costs 1 and 2
    assert told["rows"] == len(label)
    expected = {
        "log_loss": metrics.log_loss(label, found),
        "auc": metrics.roc_auc_score(label, found),
        "average_precision": metrics.average_precision_score(label, found),
        "brier": metrics.brier_score_loss(label, found),
        "f1": metrics.f1_score(label, yes),
        "precision": metrics.precision_score(label, yes),
        "recall": metrics.recall_score(label, yes),
        "rate": label.mean(),
        "predicted_rate": found.mean(),
    }
    assert {name: told[name] for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_glance_shows_two_figures_of_the_holdout(task: str, done: dict[str, Done]) -> None:
    """They are columns of `dvc exp show`, beside the score of the search; the rest is in metrics.json."""
    headline, scores = done[task].json("headline.json"), done[task].json("metrics.json")
    names = {"rmse", "mae"} if task == "regression" else {"log_loss", "auc"}
    assert headline == {"holdout": {name: scores[name] for name in names}}


def test_multiclass_figures_are_those_of_scikit_learn(done: dict[str, Done]) -> None:
    told, label, found = done["multiclass"].json("metrics.json"), *both(done["multiclass"])
    codes = np.searchsorted(["early", "fair", "late"], label.astype(str))
    expected = {
        "log_loss": metrics.log_loss(codes, found),
        "accuracy": metrics.accuracy_score(codes, found.argmax(axis=1)),
        "f1_macro": metrics.f1_score(codes, found.argmax(axis=1), average="macro"),
        "auc": metrics.roc_auc_score(codes, found, multi_class="ovr"),
    }
    assert {name: told[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert 0 <= told["calibration_error"] <= 1


def test_regression_figures_are_those_of_scikit_learn(done: dict[str, Done]) -> None:
    told, label, found = done["regression"].json("metrics.json"), *both(done["regression"])
    expected = {
        "rmse": metrics.root_mean_squared_error(label, found),
        "mae": metrics.mean_absolute_error(label, found),
        "median_error": metrics.median_absolute_error(label, found),
        "r2": metrics.r2_score(label, found),
        "bias": np.mean(found - label),
    }
    assert {name: told[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def both(one: Done) -> tuple[Floats, Floats]:
    return one.column("label"), one.column("by_candidate")


def test_the_expected_calibration_error_of_rows_one_can_count() -> None:
    """Two rows at 0.2 of which one came true, two at 0.9 of which both did: (2 * 0.3 + 2 * 0.1) / 4."""
    found, outcome = np.array([0.2, 0.2, 0.9, 0.9]), np.array([0.0, 1.0, 1.0, 1.0])
    assert calibration_error(outcome, found) == pytest.approx(0.2)
    assert calibration_error(np.array([1.0]), np.array([1.0])) == 0


@LAW
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_the_expected_calibration_error_lies_between_the_overall_gap_and_the_mean_miss(
    rows: list[tuple[float, bool]],
) -> None:
    found, outcome = (np.array(each, dtype=float) for each in zip(*rows, strict=True))
    told = calibration_error(outcome, found)
    assert abs(found.mean() - outcome.mean()) - 1e-9 <= told <= np.abs(found - outcome).mean() + 1e-9


def test_one_class_alone_in_a_holdout_has_figures_and_no_curve() -> None:
    spec = Spec("binary", (), {}, classes=(0.0, 1.0), threshold=0.5)
    label, found = np.zeros(20), np.linspace(0, 0.4, 20)
    told = measure(spec, label, found)
    assert all(np.isfinite(value) for value in told.values())
    assert (told["auc"], told["recall"]) == (0.5, 0)
    assert draw_roc(spec, label, found) == [{"false_positive_rate": 0.0, "true_positive_rate": 0.0}]


# --- the rows


@pytest.mark.parametrize("task", TASKS)
def test_the_figures_are_of_the_holdouts_labelled_rows_and_no_others(task: Task, done: dict[str, Done]) -> None:
    rows, times = small.made_rows(task), done[task].column("event_time")
    inside = held(rows)
    assert np.array_equal(times, rows.event_time[inside])
    assert np.array_equal(done[task].column("label"), rows.label[inside])
    assert done[task].json("metrics.json")["rows"] == inside.sum()


def held(rows: Rows) -> NDArray[np.bool_]:
    begin, end = np.datetime64(small.HELD_FROM), np.datetime64(small.AS_OF - timedelta(days=1))
    return (rows.event_time >= begin) & (rows.event_time < end)  # type: ignore[no-any-return]


def test_unlabelled_rows_of_the_holdout_are_left_out(tmp_path: Path) -> None:
    rows = small.made_rows(per_day=30)
    some = small.relabelled(rows, lambda label: np.where(np.arange(len(label)) % 2, label, np.nan), small.HELD_FROM)
    one = evaluated(tmp_path, "binary", some, **{"evaluate.baselines": ["constant"]})
    inside = held(rows)
    assert one.json("metrics.json")["rows"] == (~np.isnan(some.label[inside])).sum() < inside.sum()
    assert np.isfinite(one.column("label")).all()


def test_a_holdout_without_labels_is_an_error_and_leaves_no_report(tmp_path: Path) -> None:
    rows = small.relabelled(small.made_rows(per_day=30), lambda label: np.full_like(label, np.nan), small.HELD_FROM)
    with pytest.raises(ValueError, match=r"no labelled row lies in the holdout .*: check label and known_at"):
        evaluated(tmp_path, "binary", rows)
    assert not (tmp_path / "reports").exists()


def test_a_holdout_that_reaches_behind_history_is_an_error(tmp_path: Path) -> None:
    p = small.settings()
    small.write(tmp_path, small.made_rows(per_day=30), p)
    small.tuned(tmp_path, p)
    train.train(p, tmp_path)
    with pytest.raises(ValueError, match=r"`split.holdout < history` must hold"):
        evaluate.evaluate(small.settings(**{"split.holdout": "80d"}), tmp_path)


def test_rows_of_a_class_that_training_never_saw_are_left_out_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def renamed(label: small.Labels) -> small.Labels:
        label[::7] = "never"
        return label

    rows = small.relabelled(small.made_rows("multiclass", per_day=30), renamed, small.HELD_FROM)
    one = evaluated(tmp_path, "multiclass", rows)
    never = int((rows.label[held(rows)] == "never").sum())
    assert f"{never} rows of the holdout are of a class that training has not seen" in caplog.text
    assert one.json("metrics.json")["rows"] == held(rows).sum() - never


def two_classes(rows: Rows) -> Rows:
    return rows.take(rows.label != "fair")


def test_multiclass_with_two_classes_has_every_report(tmp_path: Path) -> None:
    one = evaluated(tmp_path, "multiclass", two_classes(small.made_rows("multiclass", per_day=30)))
    told = one.json("metrics.json")
    codes = (one.column("label") == "late").astype(int)
    assert told["auc"] == pytest.approx(metrics.roc_auc_score(codes, one.column("by_candidate")[:, 1]), rel=1e-5)
    assert told["unseen_class_rows"] == 0


def test_a_third_class_that_the_holdout_alone_has_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = small.made_rows("multiclass", per_day=30)
    young = rows.event_time >= np.datetime64(small.HELD_FROM)
    rows = rows.take((rows.label != "fair") | young)
    one = evaluated(tmp_path, "multiclass", rows)
    fair = int((rows.label[held(rows)] == "fair").sum())
    assert one.json("metrics.json")["unseen_class_rows"] == fair > 0
    assert "a class that training has not seen, ['fair']" in caplog.text


def test_a_holdout_of_unseen_classes_alone_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    def renamed(label: small.Labels) -> small.Labels:
        label[:] = "never"
        return label

    rows = small.relabelled(small.made_rows("multiclass", per_day=30), renamed, small.HELD_FROM)
    with pytest.raises(ValueError, match=r"all of classes that training has not seen, \['never'\]; .*Wait for more"):
        evaluated(tmp_path, "multiclass", rows)


# --- the reports


def test_the_profile_knows_how_many_labels_come_and_how_soon(tmp_path: Path) -> None:
    """One row of 10 gets none, the others within a day; the deadline is five days."""
    rows = small.made_rows(per_day=30)
    rows = replace(rows, label=np.where(np.arange(len(rows.label)) % 10, rows.label, np.nan))
    made = evaluated(tmp_path, "binary", rows, **{"label.deadline": "5d"}).json("profile.json")
    assert made["labelled"] == pytest.approx(0.9, abs=0.01)
    assert made["early_labels"] == {"age": 2 * 86_400, "least": pytest.approx(0.9, abs=0.01)}


@pytest.mark.parametrize("task", TASKS)
def test_the_leaderboard_has_every_model_the_best_first(task: Task, done: dict[str, Done]) -> None:
    board = done[task].json("leaderboard.json")
    losses = [row[done[task].p.gate.metric] for row in board]
    assert {row["model"] for row in board} == {"candidate", "constant", "linear", "forest"}
    assert losses == sorted(losses)
    order = [row["model"] for row in board]
    assert order.index("candidate") < order.index("linear") < order.index("constant"), "the made rows are full of steps"


@pytest.mark.parametrize("task", TASKS)
def test_the_metrics_name_what_each_baseline_reached(task: Task, done: dict[str, Done]) -> None:
    told, metric = done[task].json("metrics.json"), done[task].p.gate.metric
    board = {row["model"]: row for row in done[task].json("leaderboard.json")}
    for name in ("constant", "linear", "forest"):
        assert told[f"{name}.{metric}"] == board[name][metric]
    assert all(isinstance(value, (int, float)) for value in told.values())


def test_the_constant_is_the_rate_of_the_rows_that_the_twin_learnt_from(done: dict[str, Done]) -> None:
    rows = small.made_rows()
    seen = rows.event_time < np.datetime64(small.HELD_FROM - timedelta(days=1))
    assert done["binary"].column("by_constant") == pytest.approx(rows.label[seen].mean(), rel=1e-6)


def test_a_slices_figures_are_those_of_its_rows(done: dict[str, Done]) -> None:
    label, found = both(done["binary"])
    store = done["binary"].column("in_store")
    rows = done["binary"].json("slices.json")
    assert [row["value"] for row in rows] == ["north", "south", "west"]
    for row in rows:
        mask = store == row["value"]
        assert row["slice"] == "store"
        assert row["rows"] == mask.sum()
        assert row["log_loss"] == pytest.approx(metrics.log_loss(label[mask], found[mask]), rel=1e-5)


def test_a_slice_with_too_few_rows_is_not_reported(tmp_path: Path) -> None:
    found = evaluated(tmp_path, "binary", **{"evaluate.slice_rows": 10**6, "evaluate.baselines": ["constant"]})
    assert found.json("slices.json") == []


def test_a_slice_that_is_no_feature_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluate.slices must be features, but \['shop'\] are not among"):
        evaluated(tmp_path, "binary", **{"evaluate.slices": ["shop"], "evaluate.baselines": ["constant"]})


@pytest.mark.parametrize("task", TASKS)
def test_the_importances_find_what_decides(task: Task, done: dict[str, Done]) -> None:
    rows = done[task].csv("importance.csv")
    values = [float(row["importance"]) for row in rows]
    assert {row["feature"] for row in rows[:3]} == {"jam", "distance", "store"}
    assert rows[0]["feature"] == "jam"
    assert values == sorted(values, reverse=True)


def test_native_categories_have_importances(tmp_path: Path) -> None:
    found = evaluated(tmp_path, "binary", **{"train.categories": "native", "evaluate.baselines": ["constant"]})
    assert {row["feature"] for row in found.csv("importance.csv")[:3]} == {"jam", "distance", "store"}


def test_the_roc_curve_encloses_the_auc(done: dict[str, Done]) -> None:
    rows = done["binary"].csv("curves/roc.csv")
    across, up = (np.array([float(row[name]) for row in rows]) for name in rows[0])
    assert (across[0], up[0], across[-1], up[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(up, across) == pytest.approx(done["binary"].json("metrics.json")["auc"], abs=0.01)


@pytest.mark.parametrize("task", TASKS)
def test_the_calibration_curve_holds_every_row_once(task: Task, done: dict[str, Done]) -> None:
    rows = done[task].csv("curves/calibration.csv")
    assert sum(int(row["rows"]) for row in rows) == done[task].json("metrics.json")["rows"]
    predicted = [float(row["predicted"]) for row in rows]
    assert predicted == sorted(predicted)


@pytest.mark.parametrize("task", TASKS)
def test_the_holdout_file_has_a_column_for_each_model_and_each_seed(task: Task, done: dict[str, Done]) -> None:
    table = pq.read_table(done[task].reports / "holdout.parquet")
    by = {name for name in table.column_names if name.startswith("by_")}
    assert by == {"by_candidate", "by_constant", "by_linear", "by_forest", "by_candidate_1"}
    assert {"event_time", "label", "in_store"} == set(table.column_names) - by
    assert not np.array_equal(done[task].column("by_candidate"), done[task].column("by_candidate_1"))


@pytest.mark.parametrize("task", TASKS)
def test_the_reports_are_the_same_bytes_when_made_again(task: Task, done: dict[str, Done]) -> None:
    before = done[task].everything()
    evaluate.evaluate(
        done[task].p.model_copy(update={"stage": done[task].p.stage.model_copy(update={"threads": 2})}),
        done[task].folder,
    )
    assert done[task].everything() == before
    assert len(before) == 10


def test_rows_with_missing_values_everywhere_are_scored_by_every_model(tmp_path: Path) -> None:
    rows = small.made_rows(per_day=30)
    holes = np.random.default_rng(0).random((len(rows), 5)) < 0.2
    columns = {
        name: [None if hole else value for value, hole in zip(rows.table[name].to_pylist(), holes[:, i], strict=True)]
        for i, name in enumerate(rows.table.column_names)
    }
    table = pa.table({name: pa.array(values, rows.table.schema.field(name).type) for name, values in columns.items()})
    board = evaluated(tmp_path, "binary", replace(rows, table=table)).json("leaderboard.json")
    assert len(board) == 4
    assert all(np.isfinite(row["log_loss"]) for row in board)
