"""monitoring.skew on a real registry and journal: the champion's inputs are compared with the same rows today."""

import json
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tasks import params
from tasks.data import featurerows
from tasks.monitoring import skew
from tasks.promotion import changes, registry
from tasks.promotion.registry import Registry, Version
from tasks.promotion.runs import Bundle
from tasks.serving import score
from tasks.serving.journal import Journal
from tasks.serving.journal_log import LocalLogs
from tasks.training.model import Model, import_xgboost, make_spec
from tests.conftest import BEGIN, FEATURES_SQL, KEY, Made, raw_params, write_params, write_sources
from tests.registries import place_tables
from tests.tasks import small

DAYS = 24
AS_OF = BEGIN + timedelta(days=DAYS)
WINDOW = timedelta(days=7)


@dataclass(frozen=True)
class Scene:
    """A champion, and the journal of what it has predicted of the last window's rows."""

    made: Made
    registry: Registry
    journal: Journal
    champion: Version

    def compare(self) -> skew.Skew:
        p = params.load(self.made.folder / "params.yaml")
        given: dict[str, Any] = {"registry": self.registry, "journal": self.journal, "champion": self.champion}
        return skew.compare(p, self.made.folder, **given)

    def rebuild(self) -> None:
        self.made.run("features")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose features have been made."""
    folder = tmp_path_factory.mktemp("origin")
    write_sources(folder / "source", days=DAYS, per_day=24, seed=0)
    (folder / "tasks").mkdir()
    (folder / "tasks/features.sql").write_text(FEATURES_SQL)
    write_params(raw_params("binary", DAYS), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERGREEN_PERIODS", str(folder / "periods"))
        patch.setenv("EVERGREEN_PII_KEY", KEY)
        Made(folder, raw_params("binary", DAYS), patch).run("ingest", "clean", "features")
    return folder


@pytest.fixture(scope="module")
def shelf(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, Version]:
    """A registry with a champion, whose model is small and whose recipe is the project's."""
    folder = tmp_path_factory.mktemp("shelf")
    known = registry.open_registry(
        params.Registry(model="made", experiment="made", top_trials=0), uri=place_tables(folder)
    )
    files, rows = folder / "files", featurerows.read_rows(origin / "data/features")
    (files / "reports").mkdir(parents=True)
    (files / "twins").mkdir()
    small.by_hand({}, rounds=1).write(files / "reports/tuned.json")
    for path in (origin / "params.yaml", origin / "tasks/features.sql"):
        shutil.copy(path, files)
    model = fit(rows)
    for name in ("model.ubj", "twin.ubj", "twins/1.ubj"):
        (files / name).write_bytes(model.to_bytes())
    kinds = [{"name": each.name, "kind": each.kind} for each in model.spec.features]
    bundle = Bundle(files / "model.ubj", files / "twin.ubj", kinds, rows.table.slice(0, 2))
    empty: dict[str, Any] = {"params": {}, "metrics": {}, "counts": {}, "datasets": [], "trials": []}
    run = known.runs.log("one", name="run", note="", tags={}, files=files, bundle=bundle, **empty)
    verdict = {"outcome": "PROMOTE", "reasons": ["It is better."]}
    return known, changes.promote(known, run, decision="one", verdict=verdict, as_of=BEGIN, tags={})


def fit(rows: featurerows.Rows) -> Model:
    labelled = rows.take(~np.isnan(rows.label))
    spec, xgb = make_spec(labelled.table, labelled.label, task="binary"), import_xgboost()
    data = xgb.QuantileDMatrix(spec.encode(labelled.table), spec.encode_label(labelled.label))
    return Model(xgb.train({"objective": "binary:logistic", "max_depth": 2, "nthread": 1}, data, 2), spec)


@pytest.fixture
def scene(origin: Path, shelf: tuple[Registry, Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A copy of the project, with half of the window's rows predicted by the score flow, the others by the API."""
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "periods"))
    monkeypatch.setenv("EVERGREEN_PII_KEY", KEY)
    made = Made(tmp_path / "world", raw_params("binary", DAYS), monkeypatch)
    shutil.copytree(origin, made.folder, ignore=shutil.ignore_patterns("periods"))
    p, rows = params.load(made.folder / "params.yaml"), featurerows.read_rows(made.folder / "data/features")
    entries, recent = score.subjects_of_keys(rows), rows.event_time >= np.datetime64(AS_OF - 2 * WINDOW)
    known, champion = shelf
    told = score.predict_arrived(p, made.folder, rows, entries, recent, registry=known, champion=champion)
    asked = pa.array(["api" if place % 2 else "batch" for place in range(told.num_rows)])
    book = Journal(LocalLogs(tmp_path / "logs"), str(tmp_path / "journal"))
    book.append("predictions", told.set_column(told.column_names.index("by"), "by", asked))
    return Scene(made, known, book, champion)


def rewrite(path: Path, name: str, change: Any) -> None:
    table = pq.read_table(path)
    path.chmod(0o644)
    pq.write_table(table.set_column(table.column_names.index(name), name, change(table[name])), path)


def test_features_that_come_out_the_same_are_no_skew(scene: Scene) -> None:
    found = scene.compare()
    assert found.columns == ()
    assert found.gone == 0
    assert found.until - found.since == WINDOW
    assert sum(found.compared.values()) == pytest.approx(7 * 24, abs=40)
    assert min(found.compared.values()) > 50
    assert skew.describe(found)[-1] == "None differs."


def test_a_static_table_that_is_made_anew_is_named_with_its_column_counts_and_an_example(scene: Scene) -> None:
    """What no probe sees: the table has no known_at."""
    rewrite(scene.made.folder / "data/clean/customers/all.parquet", "age", lambda age: pc.add(age, 1))
    scene.rebuild()
    found = scene.compare()
    assert {(column.name, column.origin) for column in found.columns} == {("age", "score"), ("age", "API")}
    for column in found.columns:
        assert column.differing == column.rows == found.compared[column.origin]
        assert column.recomputed == column.journalled + 1
        assert found.since <= column.event_time < found.until
    text = " ".join(skew.describe(found))
    assert "`age` differs in " in text
    assert "delivered late or corrected" in text
    assert "had published last" in text
    assert [row["feature"] for row in skew.to_rows(found.columns)] == ["age", "age"]


def test_a_late_delivery_changes_the_features_that_read_it_and_no_other(scene: Scene) -> None:
    """An outcome that came into the tables after the predictions of the hours behind it."""
    path = scene.made.folder / "data/clean/orders/2024-01.parquet"
    table = pq.read_table(path)
    early = pc.less(table["event_time"], pa.scalar(AS_OF - timedelta(days=2), pa.timestamp("us")))
    rewrite(path, "delay", lambda delay: pc.if_else(early, delay, pa.scalar(0, delay.type)))
    scene.rebuild()
    found = scene.compare()
    assert {column.name for column in found.columns} == {"store_delay_1d"}
    assert all(0 < column.differing < column.rows for column in found.columns)


def test_the_champions_own_sql_is_compared_where_todays_is_another(scene: Scene) -> None:
    other = FEATURES_SQL.replace("asked.amount,", "asked.amount * 2 AS amount, 1 AS fresh,")
    (scene.made.folder / "tasks/features.sql").write_text(other)
    scene.rebuild()
    assert scene.compare().columns == ()


def test_rows_that_are_gone_are_counted_and_other_versions_rows_are_not(scene: Scene) -> None:
    path = scene.made.folder / "data/clean/orders/2024-01.parquet"
    table = pq.read_table(path)
    path.chmod(0o644)
    pq.write_table(
        table.filter(pc.less(table["event_time"], pa.scalar(AS_OF - timedelta(days=1), pa.timestamp("us")))), path
    )
    scene.rebuild()
    found = scene.compare()
    assert 10 < found.gone < 40
    assert f"{found.gone} journalled rows are not in today's tables." in skew.describe(found)
    old = scene.journal.read("predictions")
    other = old.set_column(old.column_names.index("version"), "version", pa.array([9] * old.num_rows, pa.int64()))
    renamed = pa.array([f"{name}.other" for name in old["entry"].to_pylist()])
    scene.journal.append("predictions", other.set_column(0, "entry", renamed).drop_columns(["x_age"]))
    assert scene.compare() == found


def test_a_journal_without_predictions_says_so(scene: Scene, tmp_path: Path) -> None:
    empty = Scene(
        scene.made, scene.registry, Journal(LocalLogs(tmp_path / "none"), str(tmp_path / "nothing")), scene.champion
    )
    (line,) = skew.describe(empty.compare())
    assert line.startswith("Version 1 has no journalled predictions from 2024-01-18")
    manifest = json.loads((scene.made.folder / "data/features/manifest.json").read_text())
    assert datetime.fromisoformat(manifest["as_of"]) == AS_OF
