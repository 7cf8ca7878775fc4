"""The retrain flow from a terminal, where no Prefect server stands: Prefect starts one for it, on a fresh database."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import KEY
from tests.flows.conftest import ROOT, make_checkout, project_params

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


PRINT = """
import os, sys, time
import flows
from rich.console import Console
os.write(1, b"begun")
sys.stdin.read()
end = time.monotonic() + 5 * ("PREFECT__FLOW_RUN_ID" in os.environ)
while time.monotonic() < end and not all(os.path.samestat(os.fstat(fd), os.stat(os.devnull)) for fd in (1, 2)):
    time.sleep(0.01)
print("one", flush=True)
Console(file=sys.stderr).print("two")
open(sys.argv[1], "w").close()
"""


@pytest.mark.parametrize(("run", "goes_on"), [({"PREFECT__FLOW_RUN_ID": "a"}, True), ({}, False)])
def test_a_workers_run_goes_on_when_nobody_reads_what_it_prints(
    tmp_path: Path, run: dict[str, str], goes_on: bool
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    target = tmp_path / "went on"
    command = [sys.executable, "-c", PRINT, str(target)]
    reader, writer = os.pipe()
    with subprocess.Popen(
        command, cwd=ROOT, env={**env, **run}, stdin=subprocess.PIPE, stdout=writer, stderr=writer
    ) as process:
        os.close(writer)
        assert os.read(reader, 5) == b"begun"
        os.close(reader)
        process.communicate(timeout=60)
    assert (process.returncode == 0, target.exists()) == (goes_on, goes_on)
