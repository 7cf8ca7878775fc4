"""A registry that was copied or moved with its home: it works, and nothing is written to where it was made."""

import contextlib
import shutil
import sqlite3
import sysconfig
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tasks import params
from tasks.promotion import changes, database
from tasks.promotion.registry import Registry, open_registry
from tests.registries import place_tables
from tests.tasks.promotion.conftest import BETTER

AS_OF = datetime(2013, 7, 1)
SETTINGS = params.Registry(model="m", experiment="e", top_trials=1)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, made: dict[str, Any]) -> Path:
    """A home with two champions, one after the other. Its name has to be written otherwise in an address."""
    home = tmp_path_factory.mktemp("template") / "ho me é#%20"
    place_tables(home)
    registry = open_at(home)
    for name in ("r1", "r2"):
        changes.promote(registry, registry.runs.log(name, **made), decision=name, verdict=BETTER, as_of=AS_OF, tags={})
    chart(registry, home.parent)
    return home


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Path:
    """The template as if it had been made here."""
    place = tmp_path / "made here"
    shutil.copytree(template, place)
    with sqlite3.connect(place / database.DATABASE) as connection:
        for table, columns in database.ADDRESSES.items():
            for column in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (template.as_uri(), place.as_uri())
                )
    connection.close()
    assert names_of(place) == {place.as_uri()}
    return place


def open_at(home: Path) -> Registry:
    return open_registry(SETTINGS, uri=f"sqlite:///{home}/mlflow.db")


def chart(registry: Registry, folder: Path) -> None:
    files = folder / "charts"
    files.mkdir(exist_ok=True)
    (files / "chart.txt").write_text("a chart")
    registry.runs.chart("version 1", {AS_OF: {"loss": 0.5}}, since=AS_OF, note="", files=files)


def names_of(home: Path) -> set[str]:
    """The homes that the addresses in a database name."""
    with contextlib.closing(sqlite3.connect(home / database.DATABASE)) as connection:
        found = {
            str(address)
            for table, columns in database.ADDRESSES.items()
            for column in columns
            for (address,) in connection.execute(f"SELECT {column} FROM {table}")
        }
    return {address.partition("/mlartifacts/")[0] for address in found if "/mlartifacts/" in address}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in paths}


def test_a_copy_works_and_leaves_every_byte_and_time_of_the_original(
    home: Path,
    tmp_path: Path,
    made: dict[str, Any],
) -> None:
    before, copy = snapshot(home), tmp_path / "the copy"
    shutil.copytree(home, copy)
    registry = open_at(copy)
    champion = registry.find_champion()
    assert champion
    assert (
        registry.runs.fetch(champion.run_id, "model.ubj", tmp_path / "got").read_bytes()
        == made["bundle"].model.read_bytes()
    )
    third = registry.runs.log("r3", **made)
    changes.promote(registry, third, decision="r3", verdict=BETTER, as_of=AS_OF, tags={})
    changes.rollback(registry, decision="back", reasons=["slow"], as_of=AS_OF)
    chart(registry, tmp_path)
    serving = registry.find_champion()
    assert serving
    assert serving.number == 2
    assert registry.runs.fetch(third, "reports/metrics.json", tmp_path / "got").read_text() == "{}"
    assert names_of(copy) == {copy.as_uri()}
    assert snapshot(home) == before
    again = open_at(home).find_champion()
    assert again
    assert again.number == 2
    assert len(open_at(home).list_versions()) == 2


def test_a_moved_home_finds_its_models_and_makes_no_new_folder_at_the_old_place(
    home: Path,
    tmp_path: Path,
    made: dict[str, Any],
) -> None:
    target = tmp_path / "there"
    home.rename(target)
    registry = open_at(target)
    champion = registry.find_champion()
    assert champion
    assert (
        registry.runs.fetch(champion.run_id, "model.ubj", tmp_path / "got").read_bytes()
        == made["bundle"].model.read_bytes()
    )
    registry.runs.log("r3", **made)
    assert not home.exists()


def test_a_home_that_is_moved_before_a_model_is_made_is_at_home_where_it_stands(home: Path, tmp_path: Path) -> None:
    shutil.rmtree(home / "mlartifacts")
    home.rename(tmp_path / "there")
    database.relocate_home(tmp_path / "there")
    assert names_of(tmp_path / "there") == {(tmp_path / "there").as_uri()}


def test_a_home_under_another_name_is_left_as_it_is(home: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(home)
    before = (home / database.DATABASE).read_bytes()
    database.relocate_home(link)
    assert (home / database.DATABASE).read_bytes() == before


def test_a_database_without_its_artifacts_is_refused_and_not_changed(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "the copy"
    copy.mkdir()
    shutil.copy(home / database.DATABASE, copy)
    before, original = (copy / database.DATABASE).read_bytes(), snapshot(home)
    with pytest.raises(ValueError, match="were not brought along") as refusal:
        open_at(copy)
    assert f"Copy {home / 'mlartifacts'} to {copy / 'mlartifacts'}" in str(refusal.value)
    assert (copy / database.DATABASE).read_bytes() == before
    shutil.copytree(home / "mlartifacts", copy / "mlartifacts")  # the way out
    assert open_at(copy).find_champion()
    assert snapshot(home) == original


def test_artifacts_that_a_server_keeps_elsewhere_on_purpose_stay_there(home: Path, tmp_path: Path) -> None:
    (tmp_path / "databases").mkdir()
    (home / database.DATABASE).rename(tmp_path / "databases" / database.DATABASE)
    registry = open_at(tmp_path / "databases")
    champion = registry.find_champion()
    assert champion
    assert registry.runs.fetch(champion.run_id, "model.ubj", tmp_path / "got").exists()
    assert names_of(tmp_path / "databases") == {home.as_uri()}


def test_what_a_server_has_logged_by_the_experiments_number_is_moved_too(home: Path, tmp_path: Path) -> None:
    with sqlite3.connect(home / database.DATABASE) as connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? || experiment_id", (f"{home.as_uri()}/mlartifacts/",)
        )
    connection.close()
    target = tmp_path / "there"
    home.rename(target)
    database.relocate_home(target)
    assert names_of(target) == {target.as_uri()}


def test_a_database_that_is_not_mlflows_or_not_there_is_left_alone(tmp_path: Path) -> None:
    assert database.relocate_home(tmp_path) == 0
    sqlite3.connect(tmp_path / database.DATABASE).close()
    assert database.relocate_home(tmp_path) == 0


def test_a_path_that_no_address_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold no question mark"):
        database.sqlite_uri(Path("/home/what?/mlflow.db"))


def test_an_environment_in_which_mlflow_cannot_make_its_tables_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: "/home/100%/.venv/lib")
    with pytest.raises(ValueError, match="environment must hold no %"):
        database.sqlite_uri(Path("/home/mlflow.db"))
