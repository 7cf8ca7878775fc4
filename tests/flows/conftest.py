"""A made project as a checkout of its own, and one Prefect server for all flows of the session.

What the stages make of the made project is made once for all modules, so that each need not train the same model anew:
a module's project begins with it in its cache, and its first retrain takes it from there. Where the law is that the
stages run, the module overrides `made_before` with None.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, TaskRunFilter, TaskRunFilterName
from prefect.client.schemas.objects import TaskRun

from tasks import params
from tasks.promotion import changes, registry
from tests.conftest import FEATURES_SQL, KEY, raw_params, write_params, write_sources
from tests.registries import place_tables

ROOT = Path(__file__).parents[2]
DAYS = 75


@dataclass(frozen=True)
class Project:
    """A git checkout with this project's code and the made world's tables, params and features."""

    folder: Path
    home: Path
    raw: dict[str, Any]


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def shown(key: str) -> list[str]:
    """What the session's server shows under this key; other modules' runs are on it too, so look among all."""
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return [str(one.data) for one in artifacts]


def task_runs(name: str) -> list[TaskRun]:
    """The task runs of this name on the session's server, other modules' among them."""
    with get_client(sync_client=True) as client:
        return client.read_task_runs(task_run_filter=TaskRunFilter(name=TaskRunFilterName(any_=[name])))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which `dvc repro` has run, with its home beside it: for all of xdist's workers, by the first."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made, new = shared / "made-once", shared / ".made-once"
    with FileLock(shared / "made-once.lock"):
        if not made.exists():
            shutil.rmtree(new, ignore_errors=True)
            (new / "checkout").mkdir(parents=True)
            make_checkout(new / "checkout", project_params())
            repro(new / "checkout", new / "home")
            new.rename(made)
    return made


def project_params() -> dict[str, Any]:
    raw = raw_params("binary", DAYS)
    raw["registry"] = {"model": "made", "experiment": "made", "top_trials": 2}
    raw["clock"]["as_of"] = "2024-03-01"
    raw["monitor"] = {"window": "4d"}
    return raw


def repro(checkout: Path, home: Path) -> None:
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"EVERGREEN_HOME": str(home), "EVERGREEN_PII_KEY": KEY, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "-q"], cwd=checkout, env={**mine, **own}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def made_before(made_once: Path) -> Path | None:
    """What the project's cache begins with; None for nothing."""
    return made_once


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory,
    prefect_server: None,  # noqa: ARG001
    made_before: Path | None,
) -> Iterator[Project]:
    """One for a module: its tests look at the same few runs from different sides."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("checkout")
    raw = project_params()
    make_checkout(folder, raw)
    place_tables(home)
    if made_before:
        shutil.copytree(made_before / "checkout" / ".dvc" / "cache", folder / ".dvc" / "cache")
        shutil.copytree(made_before / "home" / "periods", home / "periods")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EVERGREEN_HOME", str(home))
        patch.setenv("EVERGREEN_PII_KEY", KEY)
        patch.delenv("EVERGREEN_PERIODS", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Project(folder, home, raw)


@pytest.fixture(scope="module")
def recorded(project: Project, made_once: Path) -> Callable[[], registry.Version]:
    """The project's home has the run that was recorded when it was made once; called, this makes it the champion.

    For modules that need a champion and are not about how a retrain makes one.
    """
    shutil.copytree(made_once / "home", project.home, dirs_exist_ok=True)

    def promote() -> registry.Version:
        p = params.load(project.folder / "params.yaml")
        known = registry.open_registry(p.registry)
        (run,) = (
            run
            for run in known.tracking.client.search_runs([known.runs.experiment])
            if "evergreen.record" in run.data.tags
        )
        as_of = datetime.fromisoformat(project.raw["clock"]["as_of"])
        verdict = {"outcome": "PROMOTE", "reasons": ["It is the first."]}
        return changes.promote(known, run.info.run_id, decision="the first", verdict=verdict, as_of=as_of, tags={})

    return promote


def make_checkout(folder: Path, raw: dict[str, Any]) -> None:
    listed = [
        "tasks",
        "flows",
        "infra",
        "dvc.yaml",
        ".dvc/config",
        ".dvc/.gitignore",
        ".dvcignore",
        ".gitignore",
        "requirements.lock",
    ]
    for name in listed:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (folder / "tasks" / "features.sql").write_text(FEATURES_SQL)
    write_sources(folder / "source", days=DAYS, per_day=80, seed=3)
    write_params(raw, folder)
    commit(folder, "made")


def commit(folder: Path, message: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null"}
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", message]):
        subprocess.run(["git", *command], cwd=folder, check=True, env=env, capture_output=True)
