"""A made project as a checkout of its own, and one Prefect server for all flows of the session."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import FEATURES_SQL, KEY, raw_params, write_params, write_sources

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


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Iterator[Project]:  # noqa: ARG001
    """One for a module: its tests look at the same few runs from different sides."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("checkout")
    raw = raw_params("binary", DAYS)
    raw["registry"] = {"model": "made", "experiment": "made", "top_trials": 2}
    raw["clock"]["as_of"] = "2024-03-01"
    make_checkout(folder, raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EVERGREEN_HOME", str(home))
        patch.setenv("EVERGREEN_PII_KEY", KEY)
        patch.delenv("EVERGREEN_PERIODS", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Project(folder, home, raw)


def make_checkout(folder: Path, raw: dict[str, Any]) -> None:
    listed = [
        "tasks",
        "flows",
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
    write_sources(folder / "source", days=DAYS, per_day=80, rng=np.random.default_rng(3))
    write_params(raw, folder)
    commit(folder, "made")


def commit(folder: Path, message: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null"}
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", message]):
        subprocess.run(["git", *command], cwd=folder, check=True, env=env, capture_output=True)
