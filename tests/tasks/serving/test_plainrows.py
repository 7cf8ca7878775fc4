"""A few rows are scored and journalled without Arrow's columns, to the same bits."""

import io
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import params
from tasks.serving import journal_log, predict, schema, versions
from tasks.serving.journal_log import LocalLog, read_frames
from tasks.serving.margins import find_margins
from tasks.serving.plainrows import PlainRows
from tasks.training.model import Model, Task, make_spec

ROOT = Path(__file__).parents[3]
AT = datetime(2024, 2, 29, 12, 30, 0, 1)
STORES = ("north", "south", "west")


def train(task: Task, *, native: bool = False) -> Model:
    """A booster of two numbers and a category."""
    rng = np.random.default_rng(3)
    count = 400
    size, weight = (rng.normal(size=count).astype(np.float32) for _ in range(2))
    store = rng.choice(STORES, count)
    signal = size + (store == "west") - 0.3 * weight
    label = {"binary": signal > 0, "regression": signal * 7 + 3, "multiclass": np.digitize(signal, [-0.5, 0.8])}[task]
    table = pa.table({"size": size, "store": store.tolist(), "weight": weight})
    spec = make_spec(table, np.asarray(label, float), task=task, native=native)
    values = spec.encode(table)
    data = xgboost.DMatrix(
        values,
        spec.scale_label(np.asarray(label, float))
        if task == "regression"
        else spec.encode_label(np.asarray(label, float)),
        feature_types=spec.types,
        enable_categorical=native,
    )
    objectives = {"binary": "binary:logistic", "regression": "reg:squarederror", "multiclass": "multi:softprob"}
    settings = {"objective": objectives[task], "max_depth": 4, "nthread": 1}
    return Model(
        xgboost.train(settings | ({"num_class": 3} if task == "multiclass" else {}), data, num_boost_round=20), spec
    )


def champion(model: Model) -> versions.Champion:
    return versions.Champion(7, params.load(ROOT / "params.yaml"), "", model, MappingProxyType({}))


def sent(count: int, seed: int = 0) -> dict[str, list[Any]]:
    """Columns as somebody sends them, some values missing and some categories new."""
    rng = np.random.default_rng(seed)
    size = [None if value > 1.5 else value for value in rng.normal(size=count).tolist()]
    return {"size": size, "store": rng.choice([*STORES, "new"], count).tolist()}


@pytest.mark.parametrize("rows", [1, 2, 64])
@pytest.mark.parametrize(
    "model", [train("binary"), train("regression"), train("multiclass"), train("binary", native=True)]
)
def test_margins_are_those_of_xgboosts_own_call_to_the_last_bit(model: Model, rows: int) -> None:
    matrix = predict.encoded(model.spec, sent(rows), rows)
    wanted = np.asarray(model.booster.inplace_predict(matrix, predict_type="margin"))
    margins = find_margins(model.booster, matrix)
    assert (margins.shape, margins.tobytes()) == (wanted.shape, wanted.tobytes())


def test_threads_that_ask_at_once_get_their_own_margins() -> None:
    model = train("multiclass")
    matrices = [predict.encoded(model.spec, sent(1 + seed % 5, seed), 1 + seed % 5) for seed in range(200)]
    wanted = [np.asarray(model.booster.inplace_predict(matrix, predict_type="margin")) for matrix in matrices]
    with ThreadPoolExecutor(4) as threads:
        for expected, margins in zip(
            wanted, threads.map(lambda m: find_margins(model.booster, m), matrices), strict=True
        ):
            assert np.array_equal(expected, margins)


def test_a_matrix_of_another_width_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="XGBoost: "):
        find_margins(train("binary").booster, np.zeros((1, 7), np.float32))


@pytest.mark.parametrize("count", [1, 5, predict.FEW])
@pytest.mark.parametrize("task", ["binary", "regression", "multiclass"])
def test_few_rows_are_journalled_as_many_are(task: Task, count: int, tmp_path: Path) -> None:
    """Both ways of the same rows: those of a batch that is larger by one row are Arrow's."""
    one, columns = champion(train(task)), sent(predict.FEW + 1)
    subjects = [f"row{i}" for i in range(predict.FEW + 1)]
    many = predict.answer_columns(one, columns, by="api", subjects=subjects, at=AT)
    part = {name: values[:count] for name, values in columns.items()}
    few = predict.answer_columns(one, part, by="api", subjects=subjects[:count], at=AT)
    assert isinstance(few.record, PlainRows)
    assert isinstance(many.record, pa.Table)
    assert few.to_dicts() == many.to_dicts()[:count]
    log = LocalLog.begin(tmp_path)
    log.append(few.record)
    log.append(few.record, sync=False)
    log.append(many.record.slice(0, count))
    log.close()
    empty, first, second, third = (rows.drop_columns("made_at") for rows in read_frames(log.path))
    assert not empty.num_rows
    assert first.equals(second)
    assert first.schema.equals(third.schema)
    assert first.to_pylist() == third.to_pylist()


VALUES = st.none() | st.floats(width=32, allow_infinity=False, allow_nan=False)


@settings(max_examples=200)
@given(st.lists(st.tuples(VALUES, st.none() | st.text(max_size=20), st.booleans()), min_size=1, max_size=5))
def test_every_value_comes_back_from_a_frame(values: list[tuple[Any, ...]]) -> None:
    kinds = pa.schema(
        [("number", pa.float32()), ("text", pa.string()), ("truth", pa.bool_()), ("at", pa.timestamp("us"))]
    )
    columns = [*map(list, zip(*values, strict=True)), [predict.to_microseconds(AT)] * len(values)]
    rows = PlainRows(kinds, columns)
    frames = io.BytesIO(journal_log.pack_rows(rows, None))
    (empty, back) = journal_log.unpack_frames(frames, "a log")
    assert not empty.num_rows
    assert back.equals(rows.table)
    signs = [math.copysign(1, value) for value in back["number"].to_pylist() if value is not None]
    assert signs == [math.copysign(1, value) for value, _, _ in values if value is not None]
    assert back["at"].to_pylist() == [AT] * len(values)


def test_a_reader_of_another_version_refuses_a_frame_of_plain_rows() -> None:
    """So that an older evergreen does not take it for a batch of Arrow's."""
    rows = PlainRows(pa.schema([("number", pa.float32())]), [[1.0]])
    frame = journal_log.pack_rows(rows, rows.schema)
    _, version, content, _, _ = journal_log.HEADER.unpack(frame[: journal_log.HEADER.size])
    assert content == journal_log.PLAIN
    assert version != schema.FORMAT.version
