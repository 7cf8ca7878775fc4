"""A worker from nothing: an empty folder, no git; the code comes by a pull step, all state is elsewhere."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient

from infra import servers
from tasks import params
from tasks.promotion import registry, tags
from tasks.runtime import locks, store
from tests.conftest import raw_params, write_sources
from tests.flows.conftest import commit, make_checkout
from tests.flows.station import Station, environment, program
from tests.flows.test_loop import place_deployments
from tests.registries import place_tables
from tests.tasks.runtime.conftest import git

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]  # a minute, on real servers: with the other long ones


@dataclass(frozen=True)
class Place:
    checkout: Path
    station: Station
    env: Mapping[str, str]


@pytest.fixture
def place(tmp_path: Path, bucket: str, postgres_url: str) -> Iterator[Place]:
    """A checkout that deploys, Prefect's server, and a worker in an empty folder with a home of its own."""
    checkout, empty = tmp_path / "checkout", tmp_path / "empty"
    empty.mkdir()
    raw = raw_params("binary", 60)
    raw["tune"] |= {"trials": 2, "rounds": 40}
    raw["train"]["seeds"], raw["evaluate"]["baselines"] = 1, ["constant"]
    for source in raw["sources"].values():
        source["address"] = str(tmp_path / source["address"])
    make_checkout(checkout, raw)
    write_sources(tmp_path / "source", days=60, per_day=80, seed=3)
    place_deployments(checkout)
    commit(checkout, "deployments")
    port = servers.free_port()
    api, logs = f"http://{servers.HOST}:{port}/api", tmp_path / "logs"
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    env = {**environment(checkout, api), **aws, store.VARIABLE: bucket, locks.VARIABLE: postgres_url}
    env["MLFLOW_TRACKING_URI"] = place_tables(tmp_path)
    worker_env = {**env, "EVERGREEN_HOME": str(tmp_path / "home"), "PREFECT_HOME": str(tmp_path / "prefect")}
    for home in (env["PREFECT_HOME"], worker_env["PREFECT_HOME"]):
        Path(home).mkdir(parents=True)
    running = [servers.start(servers.prefect(port, env), logs)]
    try:
        servers.wait(running[0])
        program(checkout, env, "-m", "flows.deploy", "--code", "store")
        with contextlib.chdir(empty):
            running.append(servers.start(servers.worker(servers.read_pool(checkout), worker_env, plain=True), logs))
        servers.wait(running[1], beside=running)
        with SyncPrefectClient(api) as client:
            yield Place(checkout, Station(empty, worker_env, client, running), env)
    finally:
        for part in reversed(running):
            servers.stop(part)


def test_a_worker_from_nothing_makes_a_version_that_names_its_commit(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place.station.completed(place.station.ask("retrain"), seconds=300)
    for name in ("MLFLOW_TRACKING_URI", store.VARIABLE, locks.VARIABLE):
        monkeypatch.setenv(name, place.env[name])
    champion = registry.open_registry(params.load(place.checkout / "params.yaml").registry).find_champion()
    assert champion
    assert champion.commit == git(place.checkout, "rev-parse", "HEAD").strip()
    assert champion.tags[tags.DIRTY] == "false"
    assert list((place.station.folder).iterdir()) == []  # the worker's folder is as empty as before

    # The machine that deployed has no data, and gets the version's by the store.
    command = [sys.executable, "-m", "flows.cli", "pull", str(champion.number), "--into", str(tmp_path / "pulled")]
    done = subprocess.run(command, cwd=place.checkout, env=dict(place.env), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pulled" / "models" / "model.ubj").exists()

    (place.checkout / "params.yaml").write_text((place.checkout / "params.yaml").read_text() + "# edited\n")
    command = [sys.executable, "-m", "flows.deploy", "--code", "store"]
    done = subprocess.run(command, cwd=place.checkout, env=dict(place.env), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "has edits that are not (params.yaml)" in done.stdout + done.stderr
