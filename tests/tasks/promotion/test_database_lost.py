"""A registry that was used and is gone is an error that names what it held; one that was never used begins."""

import json
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from infra import servers
from tasks import params
from tasks.promotion import changes, database, tracking
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Registry, open_registry
from tests.registries import place_tables

SETTINGS = params.Registry(model="late-flights", experiment="flights")
ENTRY = Entry("verdict", "d1", datetime(2024, 1, 1), outcome="HOLD")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose registry holds a line. Tests work on copies of it."""
    home = tmp_path_factory.mktemp("used")
    place_tables(home)
    opened(home).append(ENTRY)
    return home


@pytest.fixture
def home(used: Path, tmp_path: Path) -> Path:
    return shutil.copytree(used, tmp_path / "home")


def opened(home: Path) -> Registry:
    return open_registry(SETTINGS, uri=f"sqlite:///{home / 'mlflow.db'}")


def names(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir() if path.suffix in (".db", ".json"))


def test_a_database_that_is_gone_is_an_error_that_names_what_it_held(home: Path) -> None:
    (home / "mlflow.db").unlink()
    rule = (
        r"mlflow\.db is gone, .*registry\.json it held the experiments flights, flights-ledger: .* late-flights, since"
    )
    for _ in range(2):  # the first refusal makes nothing that the second would take for a registry
        with pytest.raises(ValueError, match=rf"{rule} .*Restore it from a backup; or, .*remove .*registry\.json"):
            opened(home)
        with pytest.raises(ValueError, match=rule):
            servers.mlflow(1, home, {})
    assert names(home) == ["registry.json"]
    (home / "registry.json").unlink()
    assert opened(home).read_ledger() == []


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_a_database_that_lost_its_tables_is_an_error(home: Path, content: bytes) -> None:
    (home / "mlflow.db").write_bytes(content)
    with pytest.raises(ValueError, match=r"mlflow\.db holds no registry, but .* flights-ledger"):
        opened(home)
    assert (home / "mlflow.db").read_bytes() == content


def test_a_database_that_a_server_made_anew_is_an_error(home: Path, tmp_path: Path) -> None:
    open_registry(params.Registry(model="m", experiment="other"), uri=f"sqlite:///{tmp_path}/other.db")
    shutil.copy(tmp_path / "other.db", home / "mlflow.db")
    with pytest.raises(ValueError, match=r"mlflow\.db holds them no more, but"):
        opened(home)


def test_experiments_of_the_same_names_that_were_made_anew_are_not_those(home: Path) -> None:
    path = home / "registry.json"
    told = json.loads(path.read_text())
    told["mlflow.db"]["experiments"]["flights-ledger"] -= 1
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"mlflow\.db is another one, made since, but"):
        opened(home)


def test_a_file_that_goes_under_a_running_process_is_an_error_and_a_backup_mends_it(home: Path) -> None:
    known = opened(home)
    (home / "mlflow.db").rename(home / "backup")
    for ask in (
        known.find_champion,
        known.read_ledger,
        lambda: known.append(ENTRY),
        lambda: changes.finish_open(known),
    ):
        with pytest.raises(ValueError, match=r"mlflow\.db is gone, but"):
            ask()
    assert not (home / "mlflow.db").exists()
    shutil.copy(home / "backup", home / "mlflow.db")
    assert [line.decision for line in known.read_ledger()] == ["d1"]
    known.append(Entry("verdict", "d2", datetime(2024, 1, 2), outcome="HOLD"))
    (home / "backup").unlink()
    assert [line.decision for line in opened(home).read_ledger()] == ["d1", "d2"]


def test_a_server_on_this_machine_does_not_hide_that_the_homes_file_is_gone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(home))
    (home / "registry.json").rename(home / "before.json")
    entry = json.loads((home / "before.json").read_text())["mlflow.db"]
    tracking.write_marker("http://127.0.0.1:9", entry["experiments"], "late-flights")  # as after asking the server
    assert database.read_marker(home, "mlflow.db") is not None
    served = opened(home)
    served = replace(served, tracking=replace(served.tracking, uri="http://127.0.0.1:9"))
    assert served.find_champion() is None
    (home / "mlflow.db").unlink()
    with pytest.raises(ValueError, match=r"mlflow\.db is gone, but .* flights-ledger"):
        served.find_champion()
    with pytest.raises(ValueError, match=r"mlflow\.db is gone, but"):
        tracking.check_database("http://localhost:5000")
    tracking.check_database("http://mlflow.example:5000")


def test_a_home_that_was_moved_or_never_used_is_no_error(home: Path, tmp_path: Path) -> None:
    home.rename(tmp_path / "moved")
    assert len(opened(tmp_path / "moved").read_ledger()) == 1
    assert str(tmp_path) not in (tmp_path / "moved" / "registry.json").read_text()
    assert servers.mlflow(1, tmp_path / "new", {}).name == "mlflow"


def test_a_registry_from_before_the_marker_gets_one(home: Path) -> None:
    (home / "registry.json").unlink()
    opened(home)
    entry = database.read_marker(home, "mlflow.db")
    assert entry is not None
    assert (list(entry.experiments), entry.models) == (["flights", "flights-ledger"], ("late-flights",))


def test_a_marker_that_cannot_be_read_is_named(home: Path) -> None:
    (home / "registry.json").write_text("{")
    with pytest.raises(ValueError, match=r"registry\.json must say .* remove the file: it is written anew"):
        opened(home)
