"""The servers that flows need, on ports of 127.0.0.1: how each is started, asked whether it is ready, and stopped.

    python -m infra.servers    # MLflow alone, on the home's registry: make ui-mlflow

infra/up.py and flows/demo.py choose which servers run together, and for how long. Prefect, MLflow and Evidently are not
imported here: the process that starts them only waits, and that should cost no memory.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path

import yaml

from infra import HEARTBEAT, PATIENCE
from tasks import TELEMETRY_OFF, params
from tasks.promotion import database
from tasks.runtime import stage

HOST = "127.0.0.1"
START_TIMEOUT_S = 180.0  # until a part answers: ten or so, more on a busy machine
STOP_TIMEOUT_S = 10.0  # until a part ends when it is asked to
WORKER_NAME = "evergreen"
MLFLOW_PORT = 5000  # MLflow's own default
QUIET = {**TELEMETRY_OFF, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}  # a client without an answer says so within seconds
TUNED = {  # defaults that the environment may override
    **PATIENCE,
    "PREFECT_WORKER_QUERY_SECONDS": "2",  # the default, 10, is how long an event waits for its run
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # SQLite has one writer, and others wait; after the default, 10, an error
    # The defaults write one event at a time, which costs SQLite three times the CPU.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "50",
}
LEAN = {  # glibc keeps an arena of memory for each thread, and these have dozens of idle ones
    "MALLOC_ARENA_MAX": "2",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes, for what is not used here
}


@dataclass(frozen=True)
class Part:
    """A program: its arguments to Python, and the question whether it is ready."""

    name: str
    arguments: Sequence[str]
    is_ready: Callable[[], bool]
    env: Mapping[str, str]
    stop_signal: signal.Signals = signal.SIGTERM


@dataclass(frozen=True)
class Running:
    part: Part
    process: "subprocess.Popen[bytes]"
    log: Path

    def describe_end(self) -> str | None:
        """How the program ended; None while it runs."""
        status = self.process.poll()
        return None if status is None else f"{self.part.name} ended with status {status}; see {self.log}"


def environment(home: Path, *, api: str, mlflow: str | None = None) -> dict[str, str]:
    """The environment of the parts, and of the flows that a worker runs."""
    fixed = {
        "EVERGREEN_HOME": str(home),
        "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(home / "prefect")),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",  # a run that lost the address fails, and starts no server
        "PYTHONUNBUFFERED": "1",
    }
    return {**QUIET, **TUNED, **os.environ, **HEARTBEAT, **fixed, **({"MLFLOW_TRACKING_URI": mlflow} if mlflow else {})}


# --- the parts -----------------------------------------------------------------------------------------------------


def prefect(port: int, env: Mapping[str, str]) -> Part:
    return _server("prefect", port, "/api/health", env, "prefect", "server", "start", "--host", HOST)


def mlflow(port: int, home: Path, env: Mapping[str, str]) -> Part:
    """MLflow on the home's database.

    Artifacts are files at the paths that a run without the server gives them, so that both read what either wrote. A
    server that serves artifacts itself would store addresses that mean nothing without it.

    Raises ValueError for a database that is gone: the server would make an empty one.
    """
    database.check_whole(home / database.DATABASE)
    store, artifacts = database.sqlite_uri(home / database.DATABASE), (home / database.ARTIFACTS).as_uri()
    places = ("--backend-store-uri", store, "--default-artifact-root", artifacts)
    return serve_mlflow(port, env, "--no-serve-artifacts", *places)


def serve_mlflow(port: int, env: Mapping[str, str], *options: str) -> Part:
    """MLflow on a database that its options or its environment name."""
    return _server("mlflow", port, "/health", env, "mlflow", "server", "--host", HOST, "--workers", "1", *options)


def evidently(port: int, workspace: Path, env: Mapping[str, str]) -> Part:
    workspace.mkdir(parents=True, exist_ok=True)
    options = ("--workspace", str(workspace), "--host", HOST)
    return _server("evidently", port, "/", env, "evidently.cli", "ui", *options)


def serving(port: int, env: Mapping[str, str]) -> Part:
    """The API. It is ready as soon as it runs; /ready tells whether a champion serves."""
    return _server("api", port, "/health", env, "tasks.serving")


def _server(name: str, port: int, page: str, env: Mapping[str, str], module: str, *options: str) -> Part:
    """A module that listens on a port, and is ready when it answers a page."""
    arguments = ("-m", module, *options, "--port", str(port))
    return Part(name, arguments, answers(f"http://{HOST}:{port}{page}"), {**env, **LEAN})


def worker(pool: str, env: Mapping[str, str], *, name: str = WORKER_NAME, plain: bool = False) -> Part:
    """A worker of a pool. Without --limit: with it a worker ends when a crashed run is scheduled again.

    Args:
        name: Of its own among the pool's workers.
        plain: Prefect's own, which needs no checkout and takes up no lost runs.
    """
    program = ("prefect", "worker", "start") if plain else ("flows.worker",)
    command = ("-m", *program, "--pool", pool, "--type", "process", "--name", name)
    since = datetime.now(UTC)
    return Part("worker", command, lambda: _polls(env["PREFECT_API_URL"], pool, name, since), env)


def read_pool(checkout: Path) -> str:
    """The work pool that prefect.yaml sends the deployments to."""
    return str(yaml.safe_load((checkout / "prefect.yaml").read_text())["definitions"]["pool"]["name"])


def answers(url: str) -> Callable[[], bool]:
    """The question whether a page is answered."""
    return lambda: _request(urllib.request.Request(url)) is not None


def _polls(api: str, pool: str, name: str, since: datetime) -> bool:
    """Whether the worker has asked for work since then. The server remembers earlier workers, too."""
    url = f"{api}/work_pools/{pool}/workers/filter"
    answer = _request(urllib.request.Request(url, b"{}", {"Content-Type": "application/json"}))
    return any(
        worker["name"] == name and datetime.fromisoformat(worker["last_heartbeat_time"]) > since
        for worker in json.loads(answer or "[]")
    )


def _request(request: urllib.request.Request) -> bytes | None:
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return bytes(answer.read())
    except (OSError, HTTPException):
        return None


# --- starting and stopping -----------------------------------------------------------------------------------------


def free_port(wanted: int = 0, *, option: str = "") -> int:
    """The wanted port, or some free one for 0. Raises ValueError when another program has it.

    Args:
        option: Of the command, by which a person can give another one.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError as error:
            way_out = f", or give {option} another (0: any)" if option else ""
            raise ValueError(
                f"port {wanted} of {HOST} cannot be had ({error.strerror}). End what has it{way_out}."
            ) from None
        return int(probe.getsockname()[1])


def start(part: Part, logs: Path) -> Running:
    """Start a part in a session of its own: Ctrl-C reaches the process that starts it, which then stops it."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{part.name}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, *part.arguments],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=dict(part.env),
            start_new_session=True,
            preexec_fn=stage.die_with_parent,
        )
    return Running(part, process, log)


def wait(running: Running, *, beside: Sequence[Running] = (), seconds: float = START_TIMEOUT_S) -> None:
    """Wait until a part is ready. Raises RuntimeError when it, or one of those beside it, ends before."""
    until = time.monotonic() + seconds
    while not running.part.is_ready():
        for part in (running, *beside):
            if end := part.describe_end():
                raise RuntimeError(end)
        if time.monotonic() > until:
            raise RuntimeError(f"{running.part.name} did not answer within {seconds:.0f} s; see {running.log}")
        time.sleep(0.2)


def stop(running: Running, *, seconds: float = STOP_TIMEOUT_S) -> None:
    """Ask a part to end; after so many seconds kill what is left of it and of its session."""
    running.process.send_signal(running.part.stop_signal)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.process.wait(seconds)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(running.process.pid, signal.SIGKILL)
    running.process.wait()


@contextlib.contextmanager
def run_prefect() -> Iterator[str]:
    """A Prefect server on a free port, its state in <home>/prefect, while the block lasts; yields its API's address."""
    home, port = params.home(), free_port()
    os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))  # for the flows of this process, too
    api = f"http://{HOST}:{port}/api"
    running = start(prefect(port, environment(home, api=api)), home / "logs")
    try:
        wait(running)
        yield api
    finally:
        stop(running)


def become_mlflow(home: Path) -> None:
    """Replace this process by MLflow's server for a home, on its usual port."""
    database.relocate_home(home)
    part = mlflow(free_port(MLFLOW_PORT), home, {**QUIET, **os.environ})
    os.execve(sys.executable, [sys.executable, *part.arguments], dict(part.env))


if __name__ == "__main__":
    become_mlflow(params.home())
