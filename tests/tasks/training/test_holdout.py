"""tasks.training.holdout: what evaluate writes is what the gate reads, and another version is refused."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.training.holdout import Holdout, write_holdout
from tests.tasks import small


@pytest.mark.parametrize("classes", [None, 3])
def test_a_holdout_survives_its_file(classes: int | None, tmp_path: Path) -> None:
    rows = small.made_rows(per_day=5)
    shape = (len(rows), classes) if classes else len(rows)
    rng = np.random.default_rng(0)
    predictions = {name: rng.random(shape) for name in ("candidate", "linear", "candidate_1")}
    write_holdout(tmp_path / "holdout.parquet", rows, predictions, ["store", "jam"])
    read = Holdout.load(tmp_path / "holdout.parquet")
    assert np.array_equal(read.times, rows.event_time)
    assert np.array_equal(read.label, rows.label)
    assert list(read.predictions) == list(predictions)
    assert all(np.array_equal(read.predictions[name], values) for name, values in predictions.items())
    assert read.slices["store"].tolist() == rows.table["store"].to_pylist()
    assert read.slices["jam"].tolist() == rows.table["jam"].to_pylist()
    candidates = zip(read.candidates, ("candidate", "candidate_1"), strict=True)
    assert all(np.array_equal(values, predictions[name]) for values, name in candidates)


@pytest.mark.parametrize("mark", ["holdout/0", None])
def test_a_holdout_of_another_version_is_refused_with_the_way_out(mark: str | None, tmp_path: Path) -> None:
    rows, path = small.made_rows(per_day=5), tmp_path / "holdout.parquet"
    write_holdout(path, rows, {"candidate": np.zeros(len(rows))}, [])
    table = pq.read_table(path).replace_schema_metadata({"evergreen.format": mark} if mark else None)
    pq.write_table(table, path)
    with pytest.raises(ValueError, match=r"holdout.parquet is in format .*, but this evergreen reads holdout/1. Use"):
        Holdout.load(path)
