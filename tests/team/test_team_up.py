"""`make up PROFILE=team`: what its servers hold is there after a restart; PostgreSQL comes from packages if need be."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import psycopg
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient

from infra import postgres, programs, servers
from tests.conftest import KEY
from tests.faults.test_worker_faults import kill, of, ready
from tests.flows.station import FOREIGN
from tests.flows.test_loop import made
from tests.servers import open_folder
from tests.servers import wait as wait_for_server

pytestmark = [pytest.mark.team, pytest.mark.faults, pytest.mark.timeout(300)]
PORTS = [f"--{name}-port=0" for name in ("prefect", "mlflow", "evidently", "api", "postgres", "s3")]
FROM_PACKAGES = """
import sys
from pathlib import Path
from infra import postgres, programs
programs.find_installed = lambda: None
postgres.become_postgres(postgres.Server(Path(sys.argv[1]), int(sys.argv[2])), unpacked=Path(sys.argv[3]))
"""


@contextmanager
def up(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """`make up PROFILE=team` in a checkout, its home beside it."""
    home = folder / "home"
    plain = {name: value for name, value in os.environ.items() if not name.startswith((*FOREIGN, "AWS_"))}
    env = {**plain, "EVERGREEN_HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "EVERGREEN_PII_KEY": KEY}
    command = [sys.executable, "-m", "infra.up", "--profile=team", *PORTS]
    process = subprocess.Popen(
        command,
        cwd=folder / "checkout",
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
    )
    try:
        yield process
    finally:
        kill(*of(home))
        process.communicate()


def read_variables(folder: Path) -> dict[str, str]:
    """What team.env tells a shell."""
    path = folder / "home" / "team.env"
    assert path.stat().st_mode & 0o077 == 0
    shell = subprocess.run(
        ["bash", "-c", f". '{path}'; env"], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    return dict(line.split("=", 1) for line in shell.stdout.splitlines())


def test_what_the_team_profile_holds_is_there_after_a_restart() -> None:
    with open_folder() as folder:
        (folder / "checkout").mkdir()
        made(folder / "checkout")
        with up(folder) as process:
            for address in re.findall(r"http://\S+", ready(process)):
                assert urlopen(address, timeout=60).status == 200
            before = read_variables(folder)
            with SyncPrefectClient(before["PREFECT_API_URL"]) as client:
                deployed = {one.name: one.id for one in client.read_deployments()}
            MlflowClient(before["MLFLOW_TRACKING_URI"]).create_experiment("held")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert of(folder / "home") == set()
        with up(folder) as process:
            ready(process)
            after = read_variables(folder)
            with SyncPrefectClient(after["PREFECT_API_URL"]) as client:
                assert {one.name: one.id for one in client.read_deployments()} == deployed
            assert MlflowClient(after["MLFLOW_TRACKING_URI"]).get_experiment_by_name("held")
            keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "EVERGREEN_STORE"}
            assert {name: after[name] for name in keys} == {name: before[name] for name in keys}


def test_where_postgres_is_not_installed_it_runs_from_this_systems_packages() -> None:
    with open_folder() as folder:
        programs.unpack_postgres(folder / "programs" / "postgres")
        server = postgres.Server(folder / "postgres", servers.free_port())
        postgres.read_secret(folder / "postgres" / "password")
        arguments = ("-c", FROM_PACKAGES, str(server.folder), str(server.port), str(folder / "programs"))
        part = servers.Part("postgres", arguments, server.is_ready, dict(os.environ), stop_signal=signal.SIGINT)
        running = servers.start(part, folder / "logs")
        try:
            wait_for_server(running)
            server.create_databases()
            program = Path(f"/proc/{running.process.pid}/exe").readlink()
            assert program.is_relative_to(folder / "programs")
            with psycopg.connect(server.url("prefect")) as connection:
                assert connection.execute("SELECT similarity('word', 'words') > 0.5").fetchone() == (True,)
        finally:
            servers.stop(running)
