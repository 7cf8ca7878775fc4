"""The retrain flow from a terminal, where no Prefect server stands: Prefect starts one for it, on a fresh database."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import KEY
from tests.flows.conftest import make_checkout, project_params

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def test_the_flow_runs_from_a_terminal_without_a_server(tmp_path: Path) -> None:
    folder, home = tmp_path / "checkout", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    raw = project_params()
    raw["tune"]["trials"], raw["evaluate"]["baselines"] = 2, ["constant"]
    make_checkout(folder, raw)
    foreign = ("PREFECT_", "EVERGREEN_", "MLFLOW_TRACKING")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    env |= {"PREFECT_HOME": str(home / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    env |= {"EVERGREEN_HOME": str(home), "EVERGREEN_PII_KEY": KEY}
    command = [sys.executable, "-m", "flows.retrain", "--reason", "terminal"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "# PROMOTE" in done.stdout
