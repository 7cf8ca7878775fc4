"""A remote of DVC: what one machine's retrain has made, an empty one takes; and a version comes back with its data."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.retrain import retrain
from tasks import params
from tasks.promotion import pull, registry
from tasks.promotion.pull import pull_version
from tasks.runtime import project as dvc_project
from tasks.runtime import remote
from tests.flows.conftest import Project, commit, make_checkout
from tests.tasks.runtime.conftest import content, dvc, git, objects


def add_remote(folder: Path, storage: Path) -> None:
    dvc(folder, "remote", "add", "-d", "-f", "storage", str(storage))
    commit(folder, "a remote")


def test_a_version_comes_back_with_its_data_from_the_cache_or_from_the_remote(
    project: Project,
    made_once: Path,
    recorded: Callable[[], registry.Version],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    p = params.load(project.folder / "params.yaml")
    git(project.folder, "fetch", "-q", str(made_once / "checkout"))  # the commit that was recorded
    version = recorded()
    first = pull_version(p, version.number, checkout=project.folder, into=tmp_path / "first")
    data = {name: content(first.folder / name) for name in ("data", "models", "reports")}
    model = registry.open_registry(p.registry).runs.fetch(version.run_id, "model.ubj", tmp_path / "scratch")
    assert data["models"]["model.ubj"] == model.read_bytes()
    assert set(first.sizes) >= {"data/features", "data/clean", "models/model.ubj"}
    assert params.load(first.folder / "params.yaml").clock.as_of == version.as_of

    with pytest.raises(ValueError, match="is there already: remove it, or name another folder by --into"):
        pull_version(p, version.number, checkout=project.folder, into=first.folder)

    add_remote(first.folder, tmp_path / "storage")
    remote.push_outputs(first.folder)
    shutil.rmtree(project.folder / ".dvc" / "cache")
    with pytest.raises(ValueError, match=r"DVC's cache lacks .*, and no remote is set to take it from"):
        pull_version(p, version.number, checkout=project.folder)
    assert not list((project.home / "versions").iterdir())

    add_remote(project.folder, tmp_path / "storage")
    pull.main(version.number)
    again = project.home / "versions" / str(version.number)
    assert {name: content(again / name) for name in data} == data
    assert f"version {version.number} is in {again}" in capsys.readouterr().out
    assert dvc_project.find_remote(again) == str(tmp_path / "storage")


@pytest.mark.faults  # two whole retrains: with the other long ones
def test_a_machine_with_an_empty_disk_makes_nothing_anew_that_another_has_made(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_remote(project.folder, tmp_path / "storage")
    first = retrain()
    assert first
    other = tmp_path / "other" / "checkout"
    make_checkout(other, project.raw)
    add_remote(other, tmp_path / "storage")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.home / 'mlflow.db'}")
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "other" / "home"))
    monkeypatch.chdir(other)
    second = retrain()
    assert second
    assert {stage.name: stage.status for stage in second.stages} == {
        stage.name: "ran" if stage.name == "ingest" else "cached" for stage in first.stages
    }
    assert second.run_id == first.run_id
    runs = registry.open_registry(params.load(other / "params.yaml").registry).runs
    lock = yaml.safe_load(runs.fetch(first.run_id, "dvc.lock", tmp_path / "scratch").read_text())
    outputs = sum(out["size"] for stage in lock["stages"].values() for out in stage.get("outs", []))
    came = sum(path.stat().st_size for path in objects(other))  # what ingest made here among it
    assert came <= 1.05 * outputs
    assert "Same recipe and same data" in second.verdict.reasons[0]
