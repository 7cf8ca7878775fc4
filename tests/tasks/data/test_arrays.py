"""tasks.data.arrays: the same values as pyarrow's own conversions give, without pandas."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tasks.data import arrays
from tests.conftest import Made

ROWS = 37
PRESENT = np.random.default_rng(0).random(ROWS) < 0.6


def holed(values: list[object], *, holes: bool) -> list[object]:
    return [value if here or not holes else None for value, here in zip(values, PRESENT, strict=True)]


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("start", [0, 3, 8, ROWS])
def test_flags_numbers_and_times_are_those_of_the_column_wherever_it_begins(start: int, holes: bool) -> None:
    bits = pa.array(holed([i % 3 == 0 for i in range(ROWS)], holes=holes), pa.bool_())[start:]
    assert arrays.read_flags(bits).tolist() == [bool(value) for value in bits.to_pylist()]
    for kind in (pa.int32(), pa.int64(), pa.float64()):
        numbers = pa.array(holed(list(range(ROWS)), holes=holes), kind)[start:]
        expected = [np.nan if value is None else value for value in numbers.to_pylist()]
        np.testing.assert_array_equal(arrays.read_floats(numbers), np.array(expected, float))
    times = pa.array(holed([i * 10**15 for i in range(ROWS)], holes=holes), pa.timestamp("us"))[start:]
    np.testing.assert_array_equal(arrays.read_times(times), np.array(times.to_pylist(), "datetime64[us]"))


def test_whole_numbers_are_read_where_none_is_missing() -> None:
    assert arrays.read_whole(pa.array([1, 2, 3], pa.int64())[1:]).tolist() == [2, 3]
    assert arrays.read_whole(pa.array([], pa.int64())).tolist() == []
    with pytest.raises(ValueError, match="must have a value in each row"):
        arrays.read_whole(pa.array([1, None], pa.int64()))


def test_flags_become_a_column() -> None:
    for count in (0, 1, 8, ROWS):
        assert arrays.make_flags(PRESENT[:count]).to_pylist() == PRESENT[:count].tolist()


def test_no_rows_have_their_columns() -> None:
    schema = pa.schema([("a", pa.int32()), ("b", pa.list_(pa.string())), ("c", pa.timestamp("us"))])
    empty = arrays.make_empty(schema)
    assert (empty.schema, empty.num_rows) == (schema, 0)


@pytest.mark.parametrize("stage", ["ingest", "clean"])
def test_a_stage_of_the_intake_does_without_pandas(make_world: Callable[..., Made], stage: str) -> None:
    made = make_world(days=20, per_day=4)
    made.run("ingest", p=made.params())
    code = (
        "import sys; from tasks import params; from tasks.data import STAGE; STAGE.STAGE(params.load()); "
        "sys.exit('pandas' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "EVERGREEN_PERIODS": str(made.folder / "new")}
    subprocess.run([sys.executable, "-c", code.replace("STAGE", stage)], cwd=made.folder, env=env, check=True)
