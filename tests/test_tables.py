"""The tables of tests/benchmarks/tables: each folder's params.yaml and features.sql make features of such rows."""

import csv
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from tasks.params import yamltext
from tests.benchmarks.tables import table
from tests.conftest import Made

ROOT = Path(__file__).parents[1]
DAYS = 70
BEGIN = datetime(2017, 1, 1)
TEXTS = {"problem": ("suspicious", "traffic"), "avg_price_per_room": (50.0, 75.25, 120.5)}


@pytest.mark.parametrize(("name", "rows"), [("hotels", "stays"), ("stops", "stops")])
def test_a_table_makes_features_that_know_nothing_of_the_future(
    name: str, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = set_up(name, rows, tmp_path, monkeypatch)
    made.run("ingest", "clean", "features")  # the last raises an error where a feature leaks
    features = read_features(made.folder)
    assert len(features) == DAYS * 12
    assert features.drop(columns=["_label", "_known_at"]).tail(100).notna().all(axis=None)


def test_a_hotel_s_recent_price_is_that_of_guests_who_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = set_up("hotels", "stays", tmp_path, monkeypatch)
    made.run("ingest", "clean", "features")
    features = read_features(made.folder)
    row = features.iloc[-1]
    asked_at = row._event_time - timedelta(days=1)
    left = (features._known_at <= asked_at) & (features._known_at >= asked_at - timedelta(days=7))
    assert row.price_7d == pytest.approx(features._label[left].mean(), rel=1e-6)
    assert len(set(features._label[left])) > 1


def test_an_unknown_key_of_a_table_is_refused(tmp_path: Path) -> None:
    shutil.copytree(table.FOLDER / "stops", tmp_path / "stops")
    with (tmp_path / "stops" / "params.yaml").open("a") as stream:
        stream.write("\nreplay:\n  dats: 3\n")
    copy_settings(tmp_path / "checkout")
    with pytest.raises(ValueError, match=r"Did you mean `replay\.dates`"):
        table.set_table(tmp_path / "stops", tmp_path / "checkout")


def test_a_checkout_goes_into_an_empty_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="is not empty"):
        table.make_checkout("hotels", tmp_path)


def set_up(name: str, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A folder with the table's settings, and made rows as its contract has them."""
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "periods"))
    folder = tmp_path / "checkout"
    copy_settings(folder)
    table.set_table(table.FOLDER / name, folder)
    raw = yamltext.read(folder / "params.yaml")[0]
    raw["clock"]["as_of"] = (BEGIN + timedelta(days=DAYS)).isoformat()
    raw["features"]["leak_probes"] = 1
    raw["split"] |= {"holdout": "7d", "fold": "7d", "folds": 1}
    raw["gate"] |= {"min_rows": 10, "min_blocks": 5}
    made = Made(folder, raw, monkeypatch)
    made.params()
    write_rows(folder / raw["sources"][rows]["address"], raw["contract"][rows]["columns"])
    return made


def copy_settings(folder: Path) -> None:
    (folder / "tasks").mkdir(parents=True)
    shutil.copy2(ROOT / "params.yaml", folder)


def write_rows(path: Path, columns: dict[str, dict[str, Any]]) -> None:
    """Twelve rows a day."""
    rng = np.random.default_rng(0)
    moments = [BEGIN + timedelta(days=day, hours=int(hour)) for day in range(DAYS) for hour in range(0, 24, 2)]
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns))
        writer.writeheader()
        for number, moment in enumerate(moments):
            writer.writerow({name: draw(name, column, number, moment, rng) for name, column in columns.items()})


def draw(name: str, column: dict[str, Any], number: int, moment: datetime, rng: np.random.Generator) -> Any:
    """A value of the column's type within its bounds; times are the row's."""
    if name in TEXTS:
        return rng.choice(TEXTS[name])
    values: dict[str, Callable[[], Any]] = {
        "DATE": lambda: moment.date(),
        "TIMESTAMP": lambda: moment.isoformat(),
        "VARCHAR": lambda: number if name == "idNum" else rng.choice(["a", "b"]),
        "INTEGER": lambda: number if name == "rownames" else draw_whole(column, rng),
        "DOUBLE": lambda: round(float(rng.uniform(column["min"], column["max"])), 3),
    }
    return values[column["type"]]()


def draw_whole(column: dict[str, Any], rng: np.random.Generator) -> int:
    return int(rng.integers(column["min"], min(column["max"], column["min"] + 3) + 1))


def read_features(folder: Path) -> Any:
    """All feature rows, in the order of time."""
    files = str(folder / "data" / "features" / "*.parquet")
    with duckdb.connect() as connection:
        return connection.execute("SELECT * FROM read_parquet($1) ORDER BY _event_time", [files]).df()
