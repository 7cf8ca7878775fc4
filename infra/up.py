"""up: everything on this machine with one command, on 127.0.0.1 alone, until Ctrl-C.

    make up
    make up PROFILE=team    # with PostgreSQL and S3: infra/team.py

Prefect's server and UI, MLflow, Evidently's UI, the API, and a worker that runs what prefect.yaml deploys. Their logs
are in <home>/logs. Two processes see to it that nothing outlives this: an inner one starts and stops the parts, and
stops them when the outer one is gone; the outer one ends whatever is left when the inner one is gone.
"""

import ctypes
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import cyclopts
from filelock import FileLock, Timeout

from infra import servers, team
from tasks import params
from tasks.promotion import database

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
NAMES = {"prefect": "Prefect", "mlflow": "MLflow", "evidently": "Evidently", "api": "API"}
Profile = Literal["laptop", "team"]
STOP_TIMEOUTS_S = {"worker": 20.0, "s3": 2.0}  # a worker stops its runs first; S3 takes its time and needs none
DEPLOY_TIMEOUT_S = 120.0


# --- the inner process ---------------------------------------------------------------------------------------------


def up(ports: Mapping[str, int], profile: Profile = "laptop") -> int:
    """Start all, deploy, stay until a part ends (1) or somebody asks to stop (0)."""
    checkout, home = Path.cwd(), params.home()
    running: list[servers.Running] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    home.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home / "up.lock", timeout=0):  # two servers over one database would take each other's runs
            try:
                _start(running, ports, profile, checkout=checkout, home=home)
                return _watch(running)
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)  # one request to stop is enough
                _stop(running)  # before the lock is released: two servers would meet over one database
    except KeyboardInterrupt:
        print("\nstopping", flush=True)
        return 0
    except (RuntimeError, ValueError, OSError) as error:
        runs_already = f"`make up` runs already for {home}: stop that one, or set EVERGREEN_HOME to another folder"
        print(f"make up: {runs_already if isinstance(error, Timeout) else error}", file=sys.stderr, flush=True)
        return 1


def _start(
    running: list[servers.Running], ports: Mapping[str, int], profile: Profile, *, checkout: Path, home: Path
) -> None:
    """Start the parts one after another. Each is added to `running` at once, so that it is stopped whatever comes."""
    started, logs, pool = time.monotonic(), home / "logs", servers.read_pool(checkout)
    free = {name: servers.free_port(wanted, option=f"--{name}-port") for name, wanted in ports.items()}
    addresses = {name: f"http://{servers.HOST}:{free[name]}" for name in NAMES}
    env = servers.environment(home, api=f"{addresses['prefect']}/api", mlflow=addresses["mlflow"])
    if profile == "team":
        store = team.open_team(home, postgres_port=free["postgres"], s3_port=free["s3"])
        env |= store.environment()
        print("starting PostgreSQL and S3", flush=True)
        running += [servers.start(part, logs) for part in store.parts(env)]
        for part in running:
            servers.wait(part, beside=running)
        store.prepare()
        prefect, mlflow = store.prefect(free["prefect"], env), store.mlflow(free["mlflow"], env)
    else:
        team.check_laptop(home)
        database.relocate_home(home)
        prefect, mlflow = servers.prefect(free["prefect"], env), servers.mlflow(free["mlflow"], home, env)
    print("starting Prefect, MLflow, Evidently, the API and a worker: half a minute", flush=True)
    others = (servers.evidently(free["evidently"], home / "evidently", env), servers.serving(free["api"], env))
    first = len(running)
    for new in (prefect, mlflow, *others):
        running.append(servers.start(new, logs))
    servers.wait(running[first], beside=running)
    _deploy(env, logs)
    running.append(servers.start(servers.worker(pool, env), logs))
    for part in running:
        servers.wait(part, beside=running)
    shown = " · ".join(f"{NAMES[name]} {address}" for name, address in addresses.items())
    print(f"ready after {time.monotonic() - started:.0f} s: {shown} · logs {logs} · Ctrl-C stops all")
    if profile == "team":
        print(f"PostgreSQL {servers.HOST}:{free['postgres']} · S3 {store.s3.endpoint} · data in {home}")
        export = f". {shlex.quote(str(store.write_environment(env)))}"
    else:
        export = f"export PREFECT_API_URL={env['PREFECT_API_URL']}"
    print(f"for `evergreen` and `prefect` in another terminal: {export}", flush=True)


def _deploy(env: Mapping[str, str], logs: Path) -> None:
    """Run flows.deploy to its end."""
    running = servers.start(
        servers.Part("deploy", ("-m", "flows.deploy", "--kind", "process", "--no-worker-runs"), lambda: True, env), logs
    )
    if running.process.wait(DEPLOY_TIMEOUT_S):
        raise RuntimeError(running.describe_end())


def _watch(running: Sequence[servers.Running]) -> int:
    while True:
        if ends := [end for part in running if (end := part.describe_end())]:
            print(f"make up: {'; '.join(ends)}. Stopping the rest.", file=sys.stderr, flush=True)
            return 1
        time.sleep(0.5)


def _stop(running: Sequence[servers.Running]) -> None:
    """Stop the parts, the last first: the worker stops its runs while the servers still listen."""
    processes = descendants(os.getpid())
    for part in reversed(running):
        servers.stop(part, seconds=STOP_TIMEOUTS_S.get(part.part.name, servers.STOP_TIMEOUT_S))
    kill(processes)


# --- the outer process ---------------------------------------------------------------------------------------------


def guarded(work: Callable[[], int]) -> int:
    """Run `work` in a child process; its status. Nothing that it started is left when this returns."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what loses its parent becomes this process's child
    outer, child = os.getpid(), os.fork()
    if child == 0:
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        os._exit(work() if os.getppid() == outer else 1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
    pid, status = os.wait()
    while pid != child:  # whoever else ends before it
        pid, status = os.wait()
    end = time.monotonic() + servers.STOP_TIMEOUT_S
    while (left := descendants(outer)) and time.monotonic() < end:
        kill(left)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        time.sleep(0.05)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":  # elsewhere only what is left in the parts' sessions is ended
        ctypes.CDLL(None).prctl(option, value)


def descendants(root: int) -> dict[int, str]:
    """The processes below one, by pid, each with its start: a pid alone may be another process's later."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    table = {pid: status for pid in pids if (status := _read_status(pid))}
    family = [root]
    for above in family:  # which grows meanwhile
        family += [pid for pid, (parent, _) in table.items() if parent == above]
    return {pid: table[pid][1] for pid in family[1:]}


def kill(processes: dict[int, str]) -> None:
    for pid, start in processes.items():
        status = _read_status(pid)
        if status and status[1] == start:
            os.kill(pid, signal.SIGKILL)


def _read_status(pid: int) -> tuple[int, str] | None:
    """A process's parent and its start; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), fields[19]


def main(
    *,
    prefect_port: int = 4200,
    mlflow_port: int = servers.MLFLOW_PORT,
    evidently_port: int = 8000,
    api_port: int = 8080,
    profile: Profile = "laptop",
    postgres_port: int = 5433,
    s3_port: int = 8333,
) -> int:
    """Start everything on this machine, until Ctrl-C.

    Args:
        prefect_port: Of Prefect's server and UI. 0: a free one.
        mlflow_port: Of MLflow's server and UI. 0: a free one.
        evidently_port: Of the drift reports. 0: a free one.
        api_port: Of the prediction API. 0: a free one.
        profile: laptop: state lies in files of the home. team: it lies in PostgreSQL and S3, which are started too.
        postgres_port: Of the team's PostgreSQL. 0: a free one.
        s3_port: Of the team's S3. 0: a free one.
    """
    ports = {"prefect": prefect_port, "mlflow": mlflow_port, "evidently": evidently_port, "api": api_port}
    if profile == "team":
        ports |= {"postgres": postgres_port, "s3": s3_port}
    return guarded(lambda: up(ports, profile))


if __name__ == "__main__":
    cyclopts.run(main)
