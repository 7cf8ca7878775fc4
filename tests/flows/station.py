"""A made checkout with what surrounds it in earnest: a Prefect server on SQLite, its deployments, and a process worker.

Each has a home of its own; everything that is waited for has a bound.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun

from infra import servers
from infra.servers import HOST, Running
from tasks.promotion.database import DATABASE
from tests.conftest import KEY
from tests.registries import place_tables
from tests.waiting import PATIENCE_S, wait_until

T = TypeVar("T")
FOREIGN = ("EVERGREEN_", "PREFECT_", "MLFLOW_", "DVC_", "GIT_")


@dataclass(frozen=True)
class Station:
    folder: Path
    env: Mapping[str, str]
    client: SyncPrefectClient
    running: list[Running]  # the server, then the worker

    @property
    def worker(self) -> Running:
        return self.running[1]

    @property
    def home(self) -> Path:
        return self.folder / ".evergreen"

    def run(self, name: str, **parameters: Any) -> FlowRun:
        """A run of the deployment of this name by the worker, to its good end."""
        return self.completed(self.ask(name, **parameters))

    def ask(self, name: str, **parameters: Any) -> FlowRun:
        deployment = self.client.read_deployment_by_name(f"{name}/{name}")
        return self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    def completed(self, run: FlowRun, *, seconds: float = 120) -> FlowRun:
        done = self.ended(run, seconds=seconds)
        assert done.state_name == "Completed", self.explain(done)
        return done

    def explain(self, run: FlowRun) -> str:
        """How a run ended, what it logged, and the end of its worker's log."""
        chosen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        lines = [line.message for line in self.client.read_logs(chosen, limit=200)]
        state = f"{run.name} is {run.state_name}: {run.state and run.state.message}"
        return "\n".join([state, *lines, self.worker.log.read_text(errors="replace")[-3000:]])

    def ended(self, run: FlowRun, *, seconds: float = 120) -> FlowRun:
        """The run in its final state. Raises AssertionError with the worker's log when it takes longer."""

        def final() -> FlowRun | None:
            now = self.client.read_flow_run(run.id)
            return now if now.state and now.state.is_final() else None

        return until(final, seconds, self.worker.log)

    def runs(self, name: str) -> list[FlowRun]:
        """Those of a flow that somebody asked for, the oldest first; schedules make others in advance."""
        runs = self.client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[name])), limit=50)
        return sorted((one for one in runs if not one.auto_scheduled), key=lambda one: str(one.created))

    def listen(self) -> Callable[[str], bool]:
        """Whether the worker has said a text since now."""
        begin = self.worker.log.stat().st_size
        return lambda text: text.encode() in self.worker.log.read_bytes()[begin:]


def until(ask: Callable[[], T | None], seconds: float, log: Path | None = None, *, every: float = 0.2) -> T:
    """What is found, once it is. All in seconds, of which a busy machine may take some more."""
    return wait_until(ask, max(seconds, PATIENCE_S), log=log, every=every)


@contextmanager
def station(folder: Path, *, plain: bool = False) -> Iterator[Station]:
    """For a checkout that has been made. `plain`: server and worker as somebody starts them who knows Prefect alone."""
    port = servers.free_port()
    api, logs = f"http://{HOST}:{port}/api", folder / ".evergreen" / "logs"
    env = plain_environment(folder, api) if plain else environment(folder, api)
    if not (folder / ".evergreen" / DATABASE).exists():
        place_tables(folder / ".evergreen")
    running = [servers.start(servers.prefect(port, env), logs)]
    try:
        servers.wait(running[0])
        program(folder, env, "-m", "flows.deploy")
        running.append(servers.start(servers.worker(servers.read_pool(folder), env, plain=plain), logs))
        servers.wait(running[1], beside=running)
        with SyncPrefectClient(api) as client:
            yield Station(folder, env, client, running)
    finally:
        for part in reversed(running):
            servers.stop(part)


def plain_environment(folder: Path, api: str) -> dict[str, str]:
    """The addresses and the key, and nothing of how the parts should behave."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    given = {"EVERGREEN_HOME": str(folder / ".evergreen"), "PREFECT_HOME": str(folder / ".evergreen" / "prefect")}
    return {**mine, **given, "PREFECT_API_URL": api, "EVERGREEN_PII_KEY": KEY, "DO_NOT_TRACK": "true"}


def environment(folder: Path, api: str) -> dict[str, str]:
    """What `make up` gives its parts, for this folder."""
    given = {"EVERGREEN_HOME": str(folder / ".evergreen"), "PREFECT_HOME": str(folder / ".evergreen" / "prefect")}
    theirs = servers.environment(folder / ".evergreen", api=api)
    added = {name: value for name, value in theirs.items() if name not in os.environ}
    return {**plain_environment(folder, api), **added, **given}


def program(folder: Path, env: Mapping[str, str], *arguments: str) -> str:
    """A program to its end, in the checkout."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=dict(env), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
