"""python -m tasks.serving: what is left of an API that is killed, whenever that happens."""

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.conftest import raw_params, write_params
from tests.waiting import wait_until

MARK = "EVERGREEN_TEST_MARK"
ROOT = Path(__file__).parents[3]


def marked(mark: str) -> dict[int, str]:
    """The processes with this mark in their environment, and their commands."""
    commands = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                if f"{MARK}={mark}\0" in (path / "environ").read_text():
                    commands[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
            except (OSError, UnicodeDecodeError):
                continue  # it has ended, or is somebody else's
    return {pid: command for pid, command in commands.items() if command}  # a zombie has none


@pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in /proc")
@pytest.mark.parametrize(("workers", "moment"), [(1, "the mirror begins"), (1, "it serves"), (2, "it serves")])
def test_nothing_outlives_an_api_that_is_killed(tmp_path: Path, workers: int, moment: str) -> None:
    raw = raw_params("binary", 60)
    raw["serving"] = {"workers": workers}
    write_params(raw, tmp_path)
    mark, log = uuid.uuid4().hex, tmp_path / "api.log"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "EVERGREEN"))}
    env |= {"PYTHONPATH": str(ROOT), "EVERGREEN_HOME": str(tmp_path / "home"), MARK: mark}
    with log.open("wb") as out:
        command = [sys.executable, "-m", "tasks.serving", "--port", "0"]
        api = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=out, stderr=out)
    try:
        wait_until(lambda: any("mirror" in command for command in marked(mark).values()), log=log)
        if moment == "it serves":
            wait_until(lambda: log.read_text().count("startup complete") == workers, log=log)
        api.kill()
        api.wait()
        wait_until(lambda: not marked(mark))
    finally:
        api.kill()
        api.wait()
        for pid in marked(mark):
            os.kill(pid, 9)
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
