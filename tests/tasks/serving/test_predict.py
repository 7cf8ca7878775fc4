"""tasks.serving.predict: a column of plain values is encoded as the model's own encoder encodes a table."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.serving import predict
from tasks.serving.tables import Refused
from tasks.training.model import make_spec

SPEC = make_spec(
    pa.table({"size": pa.array([1.0, 2.0], pa.float32()), "store": ["north", "south"]}),
    np.array([0.0, 1.0]),
    task="binary",
)


@pytest.mark.parametrize(
    "values", [[1.5, 2, True], [None, 2.5, 7], [16_777_217, 2**63, -0.0], [math.nan, None, 1e300], [None, None, None]]
)
def test_numbers_are_encoded_as_in_a_table(values: list[Any]) -> None:
    stores = ["south", None, "west"]
    matrix = predict.encoded(SPEC, {"size": values, "store": stores}, 3)
    plain = [None if value is None or abs(value) > 1e38 or value != value else float(value) for value in values]
    table = pa.table({"size": pa.array(plain, pa.float64()), "store": pa.array(stores, pa.string())})
    np.testing.assert_array_equal(matrix, SPEC.encode(table))


@pytest.mark.parametrize("store", ["south", "west", None, ""])
@pytest.mark.parametrize(
    "size", [1.5, 2, True, None, -0.0, math.nan, math.inf, 1e300, -3.5e38, 16_777_217, 2**63, 1e-50]
)
def test_a_row_alone_is_encoded_as_among_others(size: Any, store: str | None) -> None:
    alone = predict.encoded(SPEC, {"size": [size], "store": [store]}, 1)
    among = predict.encoded(SPEC, {"size": [0.5, size], "store": ["north", store]}, 2)
    assert alone.tobytes() == among[1:].tobytes()
    assert (
        predict.encoded(SPEC, {"size": [size]}, 1).tobytes()
        == predict.encoded(SPEC, {"size": [size] * 2}, 2)[1:].tobytes()
    )


@pytest.mark.parametrize("values", [{"size": ["2"]}, {"size": [10**309]}, {"store": [1.0]}, {"store": ["n" * 1001]}])
def test_a_row_alone_is_refused_by_the_same_rule(values: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="must be a") as refused:
        predict.encoded(SPEC, values, 1)
    assert (refused.value.row, refused.value.name) == (0, next(iter(values)))


@pytest.mark.parametrize(
    ("values", "row"), [([1.0, "2"], 1), ([[1.0], 2.0], 0), ([None, {}], 1), ([1.0, 10**309], 1), ([None, 10**309], 1)]
)
def test_a_value_that_is_no_number_is_refused_by_its_row(values: list[Any], row: int) -> None:
    with pytest.raises(Refused, match="must be a number") as refused:
        predict.encoded(SPEC, {"size": values}, 2)
    assert (refused.value.row, refused.value.name) == (row, "size")


@pytest.mark.parametrize("value", [1.0, True, ["north"], "n" * 1001])
def test_a_value_that_is_no_text_is_refused_by_its_row(value: Any) -> None:
    with pytest.raises(Refused, match="must be a category") as refused:
        predict.encoded(SPEC, {"store": ["north", value]}, 2)
    assert (refused.value.row, refused.value.name) == (1, "store")
