"""tasks.promotion.gc as a command: what it says first, and what it refuses. What it frees: runtime/test_gc.py."""

import shutil
from pathlib import Path

import pytest
import yaml

from tasks import params
from tasks.promotion import gc, tracking

PROJECT = Path(__file__).parents[3]
OBJECT = "files/md5/ab/c" + "0" * 29


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One object that no lock names, and a registry with no version of the model."""
    for name in ("EVERGREEN_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copy(PROJECT / "params.yaml", folder)
    put(folder / ".dvc" / "cache")
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {}}))
    return folder


def put(cache: Path) -> Path:
    path = cache / OBJECT
    path.parent.mkdir(parents=True)
    path.write_text("data")
    return path


def test_it_says_which_registry_it_asked_and_how_many_versions_that_has(checkout: Path) -> None:
    said: list[str] = []
    gc.collect(checkout, dry=True, say=said.append)
    name, uri = params.load(checkout / "params.yaml").registry.model, tracking.find_address()
    assert said == [f"0 versions of {name} in {uri}: what they were made of stays"]


def test_no_data_is_freed_for_want_of_versions_unless_that_is_meant(checkout: Path) -> None:
    kept = checkout / ".dvc" / "cache" / OBJECT
    with pytest.raises(ValueError, match=r"no version of .*, and 1 objects .* MLFLOW_TRACKING_URI .* NO_VERSIONS=1"):
        gc.collect(checkout, dry=False)
    assert kept.exists()
    assert [freed.path for freed in gc.collect(checkout, dry=False, no_versions=True)] == [kept]
    assert not kept.exists()
    assert gc.collect(checkout, dry=False) == []  # with nothing to lose there is nothing to refuse


def test_a_cache_that_others_may_use_is_not_freed_unless_that_is_meant(checkout: Path, tmp_path: Path) -> None:
    kept = put(tmp_path / "shared")
    (checkout / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {tmp_path / 'shared'}\n")
    with pytest.raises(ValueError, match=r"cache must lie in the checkout or in the home .* SHARED_CACHE=1"):
        gc.collect(checkout, dry=False, no_versions=True)
    assert kept.exists()
    gc.collect(checkout, dry=False, no_versions=True, shared_cache=True)
    assert not kept.exists()


def test_a_cache_in_the_home_is_the_checkouts_own(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    kept = put(tmp_path / "home" / "cache")
    (checkout / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {tmp_path / 'home' / 'cache'}\n")
    gc.collect(checkout, dry=False, no_versions=True)
    assert not kept.exists()
