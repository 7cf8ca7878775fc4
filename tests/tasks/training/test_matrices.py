"""tasks.training.matrices: the same booster, whether its rows are in memory, in their files, or binned on disk."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.data import featurerows, storedrows
from tasks.data.featurerows import Rows
from tasks.data.storedrows import StoredRows
from tasks.params import Params, Task
from tasks.runtime import stage
from tasks.training import evaluate, fitting, matrices, model, train, tune
from tasks.training.matrices import Encoded
from tests.tasks import small

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")
IN_FILES, ON_DISK = "100KB", "1kB"  # stage.memory: below the rows', and below their matrix's
DRAWN = {"subsample": 0.8, "colsample_bytree": 0.7, "max_depth": 5}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a period is several blocks, and a block does not end with a period."""
    monkeypatch.setattr(featurerows, "BLOCK_ROWS", 300)


def open_both(folder: Path, task: Task = "binary") -> tuple[Params, Rows, StoredRows]:
    p = small.settings(task)
    small.write(folder, with_gaps(small.made_rows(task, per_day=60)), p)
    features = folder / p.paths.features
    in_memory = storedrows.open_rows(features, memory=p.stage.memory_bytes)
    stored = storedrows.open_rows(features, memory=1e5)
    assert isinstance(in_memory, Rows)
    assert isinstance(stored, StoredRows)
    return p, in_memory, stored


def with_gaps(rows: Rows) -> Rows:
    """One value in seven is missing."""
    table = rows.table
    for place, name in enumerate(table.column_names):
        missing = (np.arange(len(rows)) + place) % 7 == 0
        values = [None if gone else value for gone, value in zip(missing, table[name].to_pylist(), strict=True)]
        table = table.set_column(place, name, pa.array(values, table[name].type))
    return Rows(table, rows.event_time, rows.known_at, rows.label, rows.keys)


# --- rows in their files


def test_rows_in_their_files_are_the_rows_in_memory(tmp_path: Path) -> None:
    _, rows, stored = open_both(tmp_path)
    some = np.random.default_rng(0).random(len(rows)) < 0.3
    odd = np.arange(int(some.sum())) % 2 == 1
    for one, other in (
        (rows, stored),
        (rows.take(some), stored.take(some)),
        (rows.take(some).take(odd), stored.take(some).take(odd)),
    ):
        assert len(one) == len(other)
        assert one.schema.equals(other.schema)
        for name in ("event_time", "known_at", "label"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert other.load().table.equals(one.table)
        assert other.load().keys == one.keys
        assert all(other.read_column(name).equals(one.read_column(name)) for name in one.schema.names)
        assert pa.concat_tables(list(other.read_blocks())).equals(one.table)
        assert other.slice(100, 900).load().table.equals(one.slice(100, 900).table)
        assert all(block.num_rows <= 300 for block in other.read_blocks())


def test_no_row_at_all_is_an_empty_table(tmp_path: Path) -> None:
    _, rows, stored = open_both(tmp_path)
    none = stored.take(np.zeros(len(rows), dtype=bool))
    assert len(none) == 0
    assert none.load().table.equals(rows.table.slice(0, 0))
    assert none.event_time.dtype == rows.event_time.dtype


def test_rows_are_read_into_memory_where_it_holds_them(tmp_path: Path) -> None:
    p, rows, _ = open_both(tmp_path)
    weight = storedrows._weigh_row(
        pa.schema([*rows.schema, *(pa.field(name, pa.float64()) for name in featurerows.META)])
    )
    kinds = [storedrows.open_rows(tmp_path / p.paths.features, memory=len(rows) * share * weight) for share in (0.5, 2)]
    assert [type(one) for one in kinds] == [StoredRows, Rows]


# --- one matrix, one booster


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("max_bin", [16, 256])
def test_boosters_are_the_same_from_memory_from_files_and_from_disk(task: Task, max_bin: int, tmp_path: Path) -> None:
    p, rows, stored = open_both(tmp_path, task)
    spec = matrices.make_spec(rows, p)
    assert spec == matrices.make_spec(stored, p)
    drawn = {**DRAWN, "max_bin": max_bin}
    ways = [(rows, 1e9), (stored, 1e9), (stored, 1.0)]
    boosters = [boost(p, Encoded(spec, one), drawn, memory) for one, memory in ways]
    assert boosters[0] == boosters[1] == boosters[2]


def boost(p: Params, encoded: Encoded, drawn: dict[str, Any], memory: float) -> bytes:
    settings = fitting.to_booster_params(drawn, p, classes=len(encoded.spec.classes))
    data = encoded.bin(drawn, threads=1, memory=memory)
    return bytes(model.import_xgboost().train(settings, data, 20).save_raw("ubj"))


def test_what_is_binned_on_disk_goes_with_its_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spill").mkdir()
    monkeypatch.setattr(stage, "spill_folder", lambda _: tmp_path / "spill")
    p, _, stored = open_both(tmp_path)
    data = Encoded(matrices.make_spec(stored, p), stored).bin({}, threads=1, memory=1.0)
    assert sum(path.stat().st_size for path in (tmp_path / "spill").rglob("*") if path.is_file()) > 1000
    del data
    gc.collect()
    assert list((tmp_path / "spill").iterdir()) == []


# --- the stages


def run_stages(folder: Path, memory: str, task: Task, rows: Rows | None = None, **overrides: Any) -> dict[str, bytes]:
    """What tune, train and evaluate make within so much memory."""
    p = small.settings(
        task,
        **{
            "stage.memory": memory,
            "stage.threads": 1,
            "tune.trials": 2,
            "tune.rows": 500,
            "tune.finalists": 1,
            "tune.rounds": 30,
            **overrides,
        },
    )
    small.write(folder, rows or with_gaps(small.made_rows(task, per_day=60)), p)
    tune.tune(p, folder, home=folder / "home")
    train.train(p, folder)
    evaluate.evaluate(p, folder)
    made = [*(folder / p.paths.models).rglob("*"), *(folder / p.paths.reports).rglob("*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in made if path.is_file()}


@pytest.mark.parametrize("task", TASKS)
def test_tune_train_and_evaluate_make_the_same_whatever_memory_there_is(task: Task, tmp_path: Path) -> None:
    more = {"train.bag": 2} if task == "binary" else {}
    first, second, third = (
        run_stages(tmp_path / memory, memory, task, **more) for memory in ("4GB", IN_FILES, ON_DISK)
    )
    assert first.keys() == second.keys() == third.keys()
    assert [name for name in first if not first[name] == second[name] == third[name]] == []


def test_a_base_is_the_same_whatever_memory_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for memory in ("4GB", ON_DISK):
        monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / f"home {memory}"))
        made.append(run_stages(tmp_path / memory, memory, "binary", **{"train.warm": "14d"}))
        made.append({path.name: path.read_bytes() for path in (tmp_path / f"home {memory}" / "boosters").glob("*.ubj")})
    assert made[1]
    assert made[0] == made[2]
    assert made[1] == made[3]
