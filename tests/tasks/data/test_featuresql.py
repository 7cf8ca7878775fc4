"""tasks.data.featuresql: what no model can be made of is refused by the features stage, by name, with the way out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.data import featurerows
from tasks.params import Task
from tasks.training import studies
from tests.conftest import FEATURES_SQL, Made
from tests.tasks.data.cleaned import copy_cleaned, write_cleaned

World = Callable[..., Made]
GATE = {"binary": "log_loss", "multiclass": "log_loss", "regression": "rmse"}


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cleaned(tmp_path_factory.mktemp("cleaned"), days=12, per_day=6)


@pytest.fixture
def made(make_world: World, cleaned: Path) -> Made:
    return copy_cleaned(make_world, cleaned, days=12, per_day=6)


def run(made: Made, sql: str = FEATURES_SQL, *, task: Task = "binary", label: str | None = None) -> featurerows.Rows:
    (made.folder / "tasks/features.sql").write_text(sql)
    asked: dict[str, Any] = {"label.task": task, "gate.metric": GATE[task], "features.leak_probes": 0}
    made.run("features", p=made.params(**asked | ({"label.expression": label} if label else {})))
    return featurerows.read_rows(made.folder / "data/features")


@pytest.mark.parametrize(
    ("task", "label", "said"),
    [
        ("binary", "CASE WHEN delay > 3 THEN 'late' ELSE 'fair' END", "gives a VARCHAR, .* binary needs true or false"),
        ("binary", "event_time", "gives a TIMESTAMP, .* binary needs true or false"),
        ("binary", "delay", "for the row at 2024-.*, but with label.task binary a label must be 0 or 1"),
        ("multiclass", "delay > 3", "gives a BOOLEAN, .* multiclass needs .* set label.task to binary"),
        ("multiclass", "known_at", "gives a TIMESTAMP, .* multiclass needs a text or a number"),
        ("multiclass", "[delay]", r"gives a \w+\[\], .* multiclass needs"),
        ("multiclass", "CASE WHEN delay > 3 THEN 1e17 ELSE 0 END", r"gives 1e\+17 for the row at"),
        ("regression", "CAST(delay AS VARCHAR)", "gives a VARCHAR, .* regression needs a number"),
        ("regression", "known_at - event_time", r"gives a INTERVAL, .* regression needs a number: .*epoch\("),
        ("regression", "known_at", "gives a TIMESTAMP, .* regression needs a number"),
        ("regression", "delay / 0.0", r"gives -?inf for the row at .* Divide it, make it null"),
        ("regression", "delay * 1e30", r"gives -?\S+e\+3\d for the row at 2024-.* a label must be finite and between"),
        ("regression", "CASE WHEN delay > 3 THEN 1e30 ELSE delay END", r"gives 1e\+30 for the row at"),
    ],
)
def test_a_label_that_no_model_can_learn_is_refused(made: Made, task: Task, label: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        run(made, task=task, label=label)
    assert str(caught.value).startswith("label.expression `")
    assert not (made.folder / "data/features/manifest.json").exists()


@pytest.mark.parametrize(
    ("task", "label", "values"),
    [
        ("binary", "CAST(delay > 3 AS INTEGER)", {0.0, 1.0}),
        ("binary", "CAST(delay > 3 AS DECIMAL(3, 1))", {0.0, 1.0}),
        (
            "multiclass",
            "CAST(CASE WHEN delay > 3 THEN 'late' ELSE 'fair' END AS ENUM('late', 'fair'))",
            {"late", "fair"},
        ),
        ("multiclass", "CAST(delay > 3 AS HUGEINT) + 1", {1.0, 2.0}),
        ("regression", "CAST(delay > 3 AS DECIMAL(18, 3)) + 1000000000", {1e9, 1e9 + 1}),
        ("regression", "CASE WHEN delay > 3 THEN 1 ELSE 0.0 / 0.0 END", {1.0}),
    ],
)
def test_a_label_of_any_type_that_fits_is_taken(made: Made, task: Task, label: str, values: set[Any]) -> None:
    """Not a number is a label that is missing."""
    found = run(made, task=task, label=label).label
    assert {value for value in found.tolist() if value == value and value is not None} == values


def test_a_label_of_too_many_classes_is_refused_before_anything_is_trained(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.data.features.MOST_CLASSES", 20)
    with pytest.raises(ValueError, match=r"takes up to 20 classes, but label.expression gives .*Merge rare classes"):
        run(made, task="multiclass", label="CAST(number AS VARCHAR)")


def test_a_label_that_is_always_the_same_is_warned_of(made: Made) -> None:
    """It may be a young history, and scoring goes on: training refuses it."""
    run(made, label="delay > -1e9")
    told = json.loads((made.folder / "data/features/manifest.json").read_text())["warnings"]
    assert "the label is True in every row that has one: nothing can be learnt of it" in told


@pytest.mark.parametrize("name", ["a[0]", "a]", "a<b", "a\x01b", "a\nb", " "])
def test_a_feature_name_that_xgboost_refuses_is_refused_by_name(made: Made, name: str) -> None:
    with pytest.raises(ValueError, match=r"must be printable and hold no \[, \] or <.*rename them by AS") as caught:
        run(made, f'SELECT row_id, 1 AS "{name}" FROM spine')
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ("1 AS x, 2 AS x", "['x', 'x']"),
        ("1 AS x, 2 AS X", "['X', 'x']"),
        ("1 AS x_1, 2 AS x, 3 AS X", "['X', 'x']"),
        ("store, spine.* EXCLUDE (event_time)", "['row_id', 'row_id', 'store', 'store']"),
    ],
)
def test_two_columns_of_one_name_are_refused(made: Made, columns: str, named: str) -> None:
    """DuckDB would call the second x_1, and no one would know which is which."""
    with pytest.raises(ValueError, match=r"features.sql gives several columns of one name, .*rename") as caught:
        run(made, f"SELECT row_id, {columns} FROM spine")
    assert all(name in str(caught.value) for name in set(named.strip("[]").split(", ")))


def test_names_that_only_look_odd_are_taken(made: Made) -> None:
    names = ["x_1", "x", "a b", "a=1", "naïve", "a,b", 'say "a"']
    columns = ", ".join('1 AS "' + name.replace('"', '""') + '"' for name in names)
    assert run(made, f"SELECT row_id, {columns} FROM spine").table.column_names == names


def test_a_parameter_that_tune_sets_itself_may_not_be_searched(made: Made) -> None:

    space = {"objective": {"choice": ["reg:gamma"]}, "base_score": {"low": 0, "high": 1}}
    with pytest.raises(ValueError, match=r"tune.space must leave \['base_score', 'objective'\] to tune"):
        studies.check_space(made.params(**{"tune.space": space}))
