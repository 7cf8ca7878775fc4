"""Decisions to retrain on a plain Prefect server, each with a SIGKILL in its middle, and what came of each.

A decision is said as the monitor says it, by a process of its own. What is killed is started again at once, as a
supervisor does. Processes are watched apart from what the server says of them: a run that is called dead may live.
"""

import json
import os
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Literal

from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort

from infra import servers
from tasks import params
from tasks.promotion import ledger, registry
from tasks.runtime import locks
from tests.flows.station import Station, program

Victim = Literal["worker", "server", "run"]
VICTIMS: tuple[Victim, ...] = ("worker", "server", "run")
LOCKS = ("run", "score", "monitor", "replay")
LIMIT_S = 1200.0  # after its server was killed, Prefect holds the news of a crash back for a quarter of an hour
POLL_S = 0.5
HOOKS = b"\0hook\0"  # in the command of a process in which a worker runs the hooks of a run that has ended
SAY = """
import json, sys
from datetime import datetime
from flows.monitor import send_decision
from tasks.serving import journal
from tasks import params
from tasks.monitoring.policy import Decision
p, (name, as_of) = params.load(), json.loads(sys.argv[1])
decision = Decision("retrain", name, datetime.fromisoformat(as_of), 1, ("for a test",))
kept = journal.open_journal(p.journal)
send_decision(p, kept, decision)
kept.close()
"""


@dataclass(frozen=True)
class Kill:
    """`share`: how much of a usual retrain passes before it; a run's is counted from when its process begins."""

    victim: Victim
    share: float


@dataclass(frozen=True)
class Life:
    """When a process of a flow run was seen first and last, by time.monotonic."""

    begin: float
    end: float


@dataclass(frozen=True)
class Result:
    """What came of a decision. `killed`: the moment, None where the run had ended before its turn came."""

    decision: str
    victim: Victim | None
    killed: float | None
    seconds: float | None  # from the event to the answer; None: there was none
    states: tuple[str, ...]  # of its runs, the oldest first
    answers: int  # verdicts in the ledger
    overlaps: int  # pairs of its runs whose processes lived at one time
    false_deaths: int  # runs that were called crashed, and nobody had killed

    @property
    def doubled(self) -> int:
        completed = sum(state == "Completed" for state in self.states)
        return max(self.answers - 1, 0) + max(completed - 1, 0) + self.overlaps + self.false_deaths


def draw_kills(count: int, seed: int) -> list[Kill]:
    """Worker, server and run by turns, at moments from one seed."""
    rng = random.Random(seed)
    return [Kill(victim, rng.uniform(0.02, 0.98)) for victim in islice(cycle(VICTIMS), count)]


@dataclass
class Watch:
    """The processes of flow runs of one home, looked up in /proc again and again."""

    home: Path
    lives: dict[str, Life] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    def look(self) -> dict[str, int]:
        """The flow runs that have processes now, each with the one that is the root of the others."""
        mark, processes = f"EVERGREEN_HOME={self.home}", defaultdict[str, dict[int, int]](dict)
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                lines = path.read_bytes().decode(errors="replace").split("\0")
                run = next((line for line in lines if line.startswith("PREFECT__FLOW_RUN_ID=")), None)
                if run and mark in lines and HOOKS not in (path.parent / "cmdline").read_bytes():
                    parent = (path.parent / "stat").read_text().rpartition(")")[2].split()[1]
                    processes[run.partition("=")[2]][int(path.parent.name)] = int(parent)
        now = time.monotonic()
        for name in processes:
            self.lives[name] = Life(self.lives[name].begin if name in self.lives else now, now)
        return {
            name: next((pid for pid, parent in family.items() if parent not in family), min(family))
            for name, family in processes.items()
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.2):
            self.look()


@dataclass(frozen=True)
class Stand:
    """A station under a watch. `usual`: the seconds from an event to its answer, and those of a run's process."""

    station: Station
    watch: Watch
    usual: tuple[float, float] = (60.0, 30.0)

    def try_kill(self, decision: str, as_of: datetime, kill: Kill | None) -> Result:
        """Say a decision, kill when it is time, start what was killed, and wait for what comes of it."""
        say(self.station, decision, as_of)
        began, killed, alive = time.monotonic(), None, set[str]()
        if kill:
            killed, alive = self._kill(decision, kill, began)
        seconds = self._wait_for_answer(decision, began)
        runs = self._wait_for_runs(decision)
        lives = sorted((life for run in runs if (life := self.watch.lives.get(str(run.id)))), key=lambda it: it.begin)
        crashed = [run for run in runs if run.state_name == "Crashed"]
        return Result(
            decision,
            kill.victim if kill else None,
            killed and killed - began,
            seconds,
            tuple(str(run.state_name) for run in runs),
            len([entry for entry in self._ledger() if entry.decision == decision and entry.mark in ANSWER_BEGINS]),
            sum(later.begin < earlier.end for earlier, later in pairwise(lives)),
            sum(not self._was_killed(run, kill, alive) for run in crashed),
        )

    def _kill(self, decision: str, kill: Kill, began: float) -> tuple[float | None, set[str]]:
        """The moment, and which of the decision's runs had a process then."""
        if kill.victim == "run":
            end = began + LIMIT_S
            while not (mine := self._processes(decision)) and time.monotonic() < end:
                time.sleep(0.1)
            time.sleep(kill.share * self.usual[1])
            mine = self._processes(decision)
            if not mine:
                return None, set()
            os.kill(next(iter(mine.values())), signal.SIGKILL)
            return time.monotonic(), set(mine)
        time.sleep(max(began + kill.share * self.usual[0] - time.monotonic(), 0))
        alive, moment = set(self._processes(decision)), time.monotonic()
        (restart_server if kill.victim == "server" else restart_worker)(self.station)
        return moment, alive

    def _processes(self, decision: str) -> dict[str, int]:
        now = self.watch.look()
        mine = {str(run.id) for run in runs_of(self.station, decision)} if now else set()
        return {run: pid for run, pid in now.items() if run in mine}

    def _was_killed(self, run: FlowRun, kill: Kill | None, alive: set[str]) -> bool:
        """Whether a crash is owed to the kill. A worker may take its run with it, or leave one that has not begun; one
        that is called dead and lives shows as an overlap with the run that takes its place."""
        if kill is None or kill.victim == "server":
            return False
        return kill.victim == "worker" or str(run.id) in alive

    def _wait_for_answer(self, decision: str, began: float) -> float | None:
        while time.monotonic() < began + LIMIT_S:
            if decision in {entry.decision for entry in self._ledger() if entry.mark in ledger.ANSWERS}:
                return time.monotonic() - began
            time.sleep(POLL_S)
        return None

    def _wait_for_runs(self, decision: str) -> list[FlowRun]:
        """The decision's runs, when all have ended and each crash was answered by a further one."""
        end = time.monotonic() + LIMIT_S
        while True:
            runs = runs_of(self.station, decision)
            crashed = sum(run.state_name == "Crashed" for run in runs)
            ended = all(run.state and run.state.is_final() for run in runs)
            if (ended and len(runs) > crashed) or time.monotonic() > end:
                return runs
            time.sleep(POLL_S)

    def _ledger(self) -> list[ledger.Entry]:
        return open_registry(self.station).read_ledger()


ANSWER_BEGINS = ("verdict", "intent")


def open_registry(station: Station) -> registry.Registry:
    p = params.load(station.folder / "params.yaml")
    return registry.open_registry(p.registry, uri=f"sqlite:///{station.home / 'mlflow.db'}")


def say(station: Station, decision: str, as_of: datetime) -> None:
    program(station.folder, station.env, "-c", SAY, json.dumps([decision, as_of.isoformat()]))


def runs_of(station: Station, decision: str) -> list[FlowRun]:
    """A decision's runs, the oldest first."""
    flow = FlowFilter(name=FlowFilterName(any_=["retrain"]))
    runs = station.client.read_flow_runs(flow_filter=flow, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=50)
    return sorted((run for run in runs if run.parameters.get("decision") == decision), key=lambda run: str(run.created))


def restart_server(station: Station, meanwhile: Callable[[], None] = lambda: None) -> None:
    """SIGKILL it, and start it anew on its port. `meanwhile`: called while there is none."""
    port = int(station.env["PREFECT_API_URL"].split(":")[2].split("/")[0])
    _restart(station, 0, servers.prefect(port, station.env), meanwhile)


def restart_worker(station: Station, program: str | None = None) -> None:
    """SIGKILL it alone, so that its runs live on, and start another of its name, by another program if one is given."""
    part = servers.worker(servers.read_pool(station.folder), station.env)
    if program:
        part = replace(part, arguments=("-c", program, *part.arguments[2:]))
    _restart(station, 1, part)


def _restart(station: Station, place: int, part: servers.Part, meanwhile: Callable[[], None] = lambda: None) -> None:
    old = station.running[place]
    os.kill(old.process.pid, signal.SIGKILL)
    old.process.wait()
    meanwhile()
    station.running[place] = servers.start(part, station.home / f"logs-after-{old.process.pid}")
    servers.wait(station.running[place])


def taken_places(station: Station) -> list[str]:
    """What holds a place though nothing runs: Prefect's limits, our locks, and runs that have begun and never end."""
    limits = station.client.read_global_concurrency_limits(limit=200, offset=0)
    taken = [f"limit {limit.name}" for limit in limits if limit.active_slots]
    taken += [f"lock {name}" for name in LOCKS if locks.is_run_under_way(station.home, name=name)]
    runs = station.client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200)
    begun = [run for run in runs if run.state and not run.state.is_final() and not run.state.is_scheduled()]
    return taken + [f"run {run.name} is {run.state_name}" for run in begun]


def count_doubled_records(station: Station) -> int:
    """MLflow runs beyond the first of one record."""
    known = open_registry(station)
    runs = known.tracking.search_runs(known.runs.experiment, "attributes.status = 'FINISHED'")
    records = [record for run in runs if (record := run.data.tags.get("evergreen.record"))]
    return len(records) - len(set(records))


def unanswered(results: Sequence[Result]) -> list[str]:
    """Decisions without an answer, or with one that says only that their retrain failed."""
    return [result.decision for result in results if result.seconds is None or "Failed" in result.states]
