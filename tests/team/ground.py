"""A team in earnest: PostgreSQL, S3, Prefect and MLflow on them, and machines of their own checkouts and homes.

A machine is a folder: a clone of the code, an empty home, an empty cache of DVC's, and a worker that takes one run at a
time. To lose a machine is to kill all of its processes at once and to remove its folder. A machine that comes back
begins with an empty disk. Nothing is shared but what has an address.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from prefect.client.orchestration import SyncPrefectClient

from infra import postgres, s3, servers, up
from infra.servers import HOST, Part, Running
from infra.team import Team
from tasks import params
from tasks.promotion import registry
from tasks.runtime import store
from tasks.serving.journal import open_journal
from tasks.serving.schema import Kind
from tests.conftest import KEY
from tests.flows.conftest import commit
from tests.flows.station import FOREIGN, Station, program
from tests.flows.test_loop import FIRST, made
from tests.servers import UNPACKED, open_folder
from tests.waiting import wait_until

CODE = "CHECKOUT"  # where a machine has its checkout; prefect.yaml's pull step goes there
PULL = [{"prefect.deployments.steps.set_working_directory": {"directory": f"{{{{ ${CODE} }}}}"}}]


@dataclass
class Machine:
    """`folder` has all that this machine has. `worker`: its process, if it runs."""

    name: str
    folder: Path
    origin: Path
    addresses: Mapping[str, str]
    worker: Running | None = None

    @property
    def checkout(self) -> Path:
        return self.folder / "code" / self.name

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def env(self) -> dict[str, str]:
        own = {"EVERGREEN_HOME": self.home, "PREFECT_HOME": self.folder / "prefect", CODE: self.checkout}
        return {**self.addresses, **{name: str(path) for name, path in own.items()}}

    def set_up(self) -> None:
        """An empty machine with the code."""
        self.checkout.parent.mkdir(parents=True)
        env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null"}
        subprocess.run(["git", "clone", "-q", self.origin, self.checkout], check=True, env=env, capture_output=True)

    def start(self) -> None:
        """Start its worker, and wait until it asks for runs."""
        if not self.folder.exists():
            self.set_up()
        part = servers.worker(servers.read_pool(self.checkout), self.env, name=self.name)
        self.worker = start(replace(part, arguments=(*part.arguments, "--limit", "1")), self.folder / "logs")
        servers.wait(self.worker)

    def stop(self) -> None:
        if self.worker:
            servers.stop(self.worker, seconds=20)
            self.worker = None

    def lose(self) -> None:
        """Kill it with all that runs on it, and remove its disk."""
        if self.worker:
            kill(self.worker)
            self.worker = None
        discard(self.folder)

    def read_log(self) -> str:
        return self.worker.log.read_text(errors="replace") if self.worker else ""


@dataclass
class Ground:
    """The team's servers and its machines. `parts`: what is started again after a kill, by name."""

    folder: Path
    team: Team
    origin: Path
    addresses: dict[str, str]
    running: dict[str, Running] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)

    def add_machine(self, name: str) -> Machine:
        """A machine with an empty disk, whose worker is not started."""
        machine = Machine(name, self.folder / "machines" / name, self.origin, self.addresses)
        machine.set_up()
        self.machines[name] = machine
        return machine

    @contextmanager
    def working(self, *machines: Machine) -> Iterator[None]:
        """Their workers, and no others, run in the block. A machine that was lost stays so."""
        try:
            for machine in machines:
                machine.start()
            yield
        finally:
            for machine in machines:
                machine.stop()

    @contextmanager
    def station(self, machine: Machine) -> Iterator[Station]:
        """To ask for runs, and to wait for them. After an error the log of this machine's worker is shown."""
        assert machine.worker
        with SyncPrefectClient(self.addresses["PREFECT_API_URL"]) as client:
            yield Station(machine.checkout, machine.env, client, [self.running["prefect"], machine.worker])

    @contextmanager
    def api(self, machine: Machine) -> Iterator[tuple[Running, str]]:
        """The API on a machine, and its address, once it can answer."""
        port = servers.free_port()
        running = start(servers.serving(port, machine.env), machine.folder / "logs", cwd=machine.checkout)
        try:
            wait_until(servers.answers(f"http://{HOST}:{port}/ready"), log=running.log)
            yield running, f"http://{HOST}:{port}"
        finally:
            kill(running)

    def read_journal(self, kind: Kind) -> list[dict[str, Any]]:
        """What the team's journal holds, as a machine without a disk reads it."""
        with self.as_machine(), closing(open_journal(params.Journal())) as journal:
            return list(journal.read(kind).to_pylist())

    def open_registry(self) -> registry.Registry:
        p = params.load(self.origin / "params.yaml")
        with self.as_machine():
            return registry.open_registry(p.registry)

    @contextmanager
    def as_machine(self) -> Iterator[None]:
        """This process has the variables of a machine whose home is new."""
        with open_folder() as folder, patch.dict(os.environ, {**self.addresses, "EVERGREEN_HOME": str(folder)}):
            store._connect.cache_clear()
            yield

    def restart(self, name: str) -> None:
        """SIGKILL a server with all below it, and start it again at its address with its data.

        One that ends while it starts is started again, as a supervisor does. Raises RuntimeError with its last lines.
        """
        for tries_left in reversed(range(3)):
            kill(self.running[name])
            running = self.running[name] = start(self.running[name].part, self.folder / "logs")
            try:
                servers.wait(running)
                break
            except RuntimeError as error:
                lines = running.log.read_text(errors="replace").splitlines()[-20:]
                print("\n".join([f"  {error}", *lines]), flush=True)
                if not tries_left:
                    raise


def kill(running: Running) -> None:
    """A process and all below it at once, by SIGKILL."""
    for pid in (running.process.pid, *up.descendants(running.process.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    running.process.wait()


def discard(folder: Path) -> None:
    """Remove a folder that processes may write to until they are gone."""

    def remove() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    wait_until(remove)


def start(part: Part, logs: Path, *, cwd: Path | None = None) -> Running:
    """As servers.start, in a working directory of its own, and with a log that goes on after a restart."""
    if cwd:
        part = replace(part, arguments=("-c", ENTER, str(cwd), *part.arguments[1:]))
    if (log := logs / f"{part.name}.log").exists():
        log.replace(logs / f"{part.name}.{len(list(logs.iterdir()))}.log")
    return servers.start(part, logs)


ENTER = """
import os, runpy, sys
_, folder, module, *rest = sys.argv
os.chdir(folder)
sys.path[0] = folder
sys.argv = [module, *rest]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@contextmanager
def ground() -> Iterator[Ground]:
    """The servers, with the deployments of a made project on them; no machine yet."""
    with ExitStack() as stack:
        folder = stack.enter_context(open_folder())
        team = Team(
            folder,
            postgres.Server(folder / "postgres", servers.free_port()),
            s3.Server(folder / "s3", servers.free_port()),
        )
        it = Ground(folder, team, make_origin(folder / "origin"), {})
        stack.callback(_stop, it)
        plain = {name: value for name, value in os.environ.items() if not name.startswith((*FOREIGN, "AWS_"))}
        for part in (team.postgres.part(plain, unpacked=UNPACKED), team.s3.part(plain)):
            it.running[part.name] = start(part, folder / "logs")
            servers.wait(it.running[part.name])
        team.prepare()
        ports = {name: servers.free_port() for name in ("prefect", "mlflow")}
        it.addresses = read_addresses(plain, team, folder, ports)
        for part in (team.prefect(ports["prefect"], it.addresses), team.mlflow(ports["mlflow"], it.addresses)):
            it.running[part.name] = start(part, folder / "logs")
        for name in ("prefect", "mlflow"):
            servers.wait(it.running[name])
        program(it.origin, it.addresses, "-m", "flows.deploy")
        yield it


def read_addresses(plain: Mapping[str, str], team: Team, folder: Path, ports: Mapping[str, int]) -> dict[str, str]:
    """The variables that all machines have alike."""
    api, mlflow = f"http://{HOST}:{ports['prefect']}/api", f"http://{HOST}:{ports['mlflow']}"
    with patch.dict(os.environ, plain, clear=True):
        env = servers.environment(folder / "nobody", api=api, mlflow=mlflow)
    return {**env, **team.environment(), "EVERGREEN_PII_KEY": KEY, "DO_NOT_TRACK": "true"}


def make_origin(folder: Path) -> Path:
    """The repository that machines clone, where prefect.yaml lets each run in the checkout of its own machine."""
    folder.mkdir()
    made(folder)
    plan = yaml.safe_load((folder / "prefect.yaml").read_text())
    (folder / "prefect.yaml").write_text(yaml.safe_dump({**plan, "pull": PULL}, sort_keys=False))
    commit(folder, "for machines at different paths")
    return folder


def _stop(it: Ground) -> None:
    for machine in it.machines.values():
        machine.stop()
    for name in reversed(it.running):
        servers.stop(it.running[name], seconds=1 if name == "s3" else servers.STOP_TIMEOUT_S)


def count_arrived(it: Ground, until: datetime) -> int:
    """Orders since the first model."""
    lines = (it.origin / "source" / "orders.csv").read_text().splitlines()[1:]
    return sum(FIRST <= datetime.fromisoformat(line.split(",")[1]) < until for line in lines)
