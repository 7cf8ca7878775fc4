"""tasks.training.model: one file is the whole model, and nothing but a whole one is taken."""

import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.params import Task
from tasks.training import model
from tasks.training.model import Model, Spec
from tests.tasks import small

PROJECT = Path(__file__).parents[3]
TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")
OBJECTIVES = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}
LAW = settings(deadline=None, derandomize=True, max_examples=50)
ELSEWHERE = f"""
import sys
sys.path.insert(0, {str(PROJECT)!r})
import numpy as np
import pyarrow.parquet as pq
from concurrent.futures import ThreadPoolExecutor
from tasks.training.model import Model, import_xgboost
with ThreadPoolExecutor(4) as pool:
    assert len(set(pool.map(lambda _: import_xgboost(), range(4)))) == 1  # side by side
found = Model.load("model.ubj").predict(pq.read_table("rows.parquet"))
assert not {{"sklearn", "scipy.stats", "mlflow", "duckdb"}} & set(sys.modules), "scoring needs this module alone"
import sklearn
np.save("found.npy", found)
"""


def fitted(task: Task = "binary", *, native: bool = False, table: pa.Table | None = None) -> Model:
    rows = small.made_rows(task, per_day=20)
    table = rows.table if table is None else table
    spec = model.make_spec(table, rows.label, task=task, native=native)
    xgb = model.import_xgboost()
    data = xgb.QuantileDMatrix(
        spec.encode(table),
        spec.scale_label(rows.label),
        feature_names=spec.names,
        feature_types=spec.types,
        enable_categorical=native,
    )
    chosen = {"objective": OBJECTIVES[task], "nthread": 1, "seed": 1, "subsample": 0.8}
    chosen |= {"num_class": len(spec.classes)} if task == "multiclass" else {}
    return Model(xgb.train(chosen, data, 6), spec)


def calibrated(task: Task) -> Model:
    """With all that a model may carry."""
    extras: dict[str, Any] = {"until": "2024-02-01T00:00:00"}
    if task == "binary":
        extras |= {"coef": ((0.9,),), "intercept": (0.1,), "threshold": 0.25}
    if task == "multiclass":
        extras |= {"coef": ((1.0, 0.1, 0.0), (0.0, 0.9, 0.0), (0.0, 0.0, 1.1)), "intercept": (0.1, 0.0, -0.1)}
    return fitted(task).with_spec(**extras)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return small.made_rows(per_day=5, seed=9).table


@pytest.fixture(scope="module")
def binary() -> Model:
    return fitted()


def saved(one: Model, folder: Path) -> Path:
    path = folder / "model.ubj"
    path.write_bytes(one.to_bytes())
    return path


# --- one file


@pytest.mark.parametrize("task", TASKS)
def test_a_loaded_model_is_the_model_that_was_saved(task: Task, table: pa.Table, tmp_path: Path) -> None:
    one = calibrated(task)
    again = Model.load(saved(one, tmp_path))
    assert again.spec == one.spec
    assert np.array_equal(again.predict(table), one.predict(table))
    assert again.to_bytes() == one.to_bytes()


def test_the_file_alone_is_the_model_in_another_process_and_needs_no_scikit_learn(
    binary: Model, table: pa.Table, tmp_path: Path
) -> None:
    saved(binary, tmp_path)
    pq.write_table(table, tmp_path / "rows.parquet")
    subprocess.run([sys.executable, "-I", "-c", ELSEWHERE], cwd=tmp_path, check=True)
    assert np.array_equal(np.load(tmp_path / "found.npy"), binary.predict(table))


@pytest.mark.parametrize("native", [False, True])
def test_the_same_inputs_give_the_same_bytes(native: bool) -> None:
    assert fitted(native=native).to_bytes() == fitted(native=native).to_bytes()


def test_a_change_of_the_spec_is_another_model_and_leaves_the_first(binary: Model, tmp_path: Path) -> None:
    before = binary.to_bytes()
    assert binary.with_spec(threshold=0.1).to_bytes() != before
    assert Model.load(saved(binary, tmp_path)).spec.threshold is None
    assert binary.to_bytes() == before


def test_loading_unpickles_nothing(binary: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a model file must not be unpickled")

    path = saved(binary, tmp_path)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refused)
    assert Model.load(path).spec == binary.spec
    assert (
        model.import_xgboost().Booster(model_file=str(path)).num_boosted_rounds() == 6
    )  # plain XGBoost reads past the hash


# --- files that are no model


@cache
def whole() -> bytes:
    return fitted().to_bytes()


@LAW
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_torn_file_is_refused_before_xgboost_sees_it(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = whole()
    path = tmp_path_factory.mktemp("torn") / "model.ubj"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(
        ValueError, match=r"model.ubj is no whole model of this project: it was torn, or made elsewhere"
    ):
        Model.load(path)


@LAW
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_file_with_one_other_byte_is_refused(
    share: float, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(whole())
    data[int(share * len(data))] ^= flip
    path = tmp_path_factory.mktemp("rotten") / "model.ubj"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="no whole model"):
        Model.load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file", b'{"version": [3, 2, 0]}'])
def test_another_programs_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.ubj").write_bytes(content)
    with pytest.raises(ValueError, match="no whole model"):
        Model.load(tmp_path / "model.ubj")


def test_a_foreign_xgboost_model_is_refused(binary: Model, tmp_path: Path) -> None:
    binary.booster.save_model(str(tmp_path / "foreign.ubj"))
    with pytest.raises(ValueError, match=r"made elsewhere. Copy it again, or train it with tasks.training.train"):
        Model.load(tmp_path / "foreign.ubj")


@pytest.mark.parametrize("mark", ["model/0", None])
def test_a_model_of_another_version_is_refused_with_the_way_out(
    mark: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "FORMAT", SimpleNamespace(mark=mark))
    path = saved(fitted(), tmp_path)
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"model.ubj is in format .*, but this evergreen reads model/1 and model/2. Use the"
    ):
        Model.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.ubj"):
        Model.load(tmp_path / "model.ubj")


# --- rows in


@pytest.mark.parametrize("native", [False, True])
def test_an_unseen_category_scores_as_a_missing_one(native: bool, table: pa.Table) -> None:
    one = fitted(native=native)
    unseen, missing = (with_store(table, value) for value in ("mars", None))
    assert np.array_equal(one.predict(unseen), one.predict(missing))
    assert not np.array_equal(one.predict(unseen), one.predict(with_store(table, "south")))


def with_store(table: pa.Table, value: str | None) -> pa.Table:
    place = table.column_names.index("store")
    return table.set_column(place, "store", pa.array([value] * len(table), pa.string()))


def test_the_order_of_columns_matters_neither_to_training_nor_to_scoring(binary: Model, table: pa.Table) -> None:
    turned = small.made_rows(per_day=20).table
    turned = turned.select(turned.column_names[::-1])
    assert fitted(table=turned).to_bytes() == binary.to_bytes()
    assert np.array_equal(binary.predict(table.select(table.column_names[::-1])), binary.predict(table))


def test_columns_that_the_model_does_not_know_are_ignored(binary: Model, table: pa.Table) -> None:
    more = table.append_column("later", pa.array(range(len(table))))
    assert np.array_equal(binary.predict(more), binary.predict(table))


def test_a_missing_column_is_named(binary: Model, table: pa.Table) -> None:
    with pytest.raises(ValueError, match=r"the model needs the features \['jam', 'store'\], but the rows have \['dist"):
        binary.predict(table.drop_columns(["jam", "store"]))


def test_a_column_of_the_wrong_type_is_named(binary: Model, table: pa.Table) -> None:
    wrong = table.set_column(table.column_names.index("jam"), "jam", pa.array(["much"] * len(table)))
    with pytest.raises(ValueError, match=r"the feature jam must be a number, but it holds other values .string."):
        binary.predict(wrong)


def test_numbers_may_come_in_any_type_and_categories_as_dictionaries(binary: Model, table: pa.Table) -> None:
    other = pa.table(
        {name: table[name].cast(pa.float64()) for name in table.column_names if name != "store"}
        | {"store": table["store"].dictionary_encode()}
    )
    assert np.array_equal(binary.predict(other), binary.predict(table))


def test_a_column_that_is_all_null_is_missing_values(binary: Model, table: pa.Table) -> None:
    empty = table.set_column(table.column_names.index("jam"), "jam", pa.nulls(len(table)))
    assert np.isfinite(binary.predict(empty)).all()


def test_no_rows_give_no_predictions(binary: Model, table: pa.Table) -> None:
    assert binary.predict(table.slice(0, 0)).shape == (0,)


def test_native_categories_are_split_as_categories_and_coded_ones_as_numbers() -> None:
    assert fitted(native=True).booster.feature_types.count("c") == 1
    assert fitted(native=False).booster.feature_types is None


# --- predictions out


def test_binary_gives_a_probability_a_row(table: pa.Table) -> None:
    found = calibrated("binary").predict(table)
    assert found.shape == (len(table),)
    assert ((found > 0) & (found < 1)).all()


def test_multiclass_gives_shares_that_sum_to_one_a_class_a_column(table: pa.Table) -> None:
    one = calibrated("multiclass")
    found = one.predict(table)
    assert one.spec.classes == ("early", "fair", "late")
    assert found.shape == (len(table), 3)
    assert np.allclose(found.sum(axis=1), 1)


def test_regression_gives_the_value(table: pa.Table) -> None:
    found = calibrated("regression").predict(table)
    assert found.shape == (len(table),)
    assert found.min() < -1 < 2 < found.max()


def test_margins_however_large_give_probabilities_without_a_warning(binary: Model) -> None:
    margins = np.array([-1e30, -800, 0, 800, 1e30], dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert binary.from_margins(margins).tolist() == [0, 0, 0.5, 1, 1]
        shares = fitted("multiclass").from_margins(np.array([[800, -800, 0]], dtype=np.float32))
    assert shares.tolist() == [[1, 0, 0]]


def test_calibration_is_a_line_through_the_margins(binary: Model, table: pa.Table) -> None:
    margins = binary.margins(table).astype(float)
    bent = binary.with_spec(coef=((2.0,),), intercept=(-1.0,))
    assert np.allclose(bent.predict(table), 1 / (1 + np.exp(1 - 2 * margins)))


# --- labels


def test_labels_become_codes_and_missing_ones_stay_missing() -> None:
    words = np.array(["late", None, "early", "never seen"], dtype=object)
    spec = replace(fitted("multiclass").spec, classes=("early", "late"))
    assert np.array_equal(spec.encode_label(words), np.array([1, np.nan, 0, np.nan], np.float32), equal_nan=True)
    assert model.is_labelled(words).tolist() == [True, False, True, True]
    assert model.is_labelled(np.array([1.0, np.nan])).tolist() == [True, False]
    assert model.is_labelled(words[:0]).dtype == bool


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        (
            "binary",
            [0.0, 0.0],
            r"two classes at least, but the training rows hold only \[0.0\]. Check label.expression",
        ),
        ("multiclass", ["a", None], r"hold only \['a'\]"),
        ("binary", [0.0, 7.0], r"needs a label that is true or false, but it holds \[0.0, 7.0\]"),
        ("binary", ["yes", "no"], "label.task binary needs a label that is a number, but label.expression gives text"),
        ("regression", ["1", "2"], "label.task regression needs a label that is a number"),
    ],
)
def test_a_label_that_does_not_fit_the_task_is_an_error(task: Task, label: list[Any], message: str) -> None:
    values = np.array(label, dtype=object if isinstance(label[0], str) else float)
    with pytest.raises(ValueError, match=message):
        model.find_classes(values, task=task)


def test_classes_may_be_numbers(tmp_path: Path) -> None:
    spec = Spec("multiclass", (), {}, classes=model.find_classes(np.array([2.0, 0.0, 5.0, np.nan]), task="multiclass"))
    assert spec.classes == (0.0, 2.0, 5.0)
    again = Model.load(saved(replace(fitted(), spec=spec), tmp_path)).spec
    assert again.encode_label(np.array([5.0, 0.0])).tolist() == [2, 0]


@LAW
@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.floats(0, 1))
def test_class_weights_even_the_classes_out_as_much_as_they_are_told(drawn: list[int], strength: float) -> None:
    codes = np.array([0, 1, 2, 3, *drawn], dtype=np.float32)
    classes = range(4)
    counts = np.bincount(codes.astype(int))
    none, some, all_ = (model.weigh_rows(codes, classes, each) for each in (0.0, strength, 1.0))
    assert (none == 1).all()
    assert np.allclose(np.bincount(codes.astype(int), weights=all_), len(codes) / 4, rtol=1e-5)
    by_class = np.array([some[codes == each][0] for each in classes])
    assert (np.diff(by_class[np.argsort(counts)]) <= 0).all(), "a rarer class weighs no less"
