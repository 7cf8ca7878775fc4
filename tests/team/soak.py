"""A team under work while its machines and its servers are killed by turns; and what was lost, doubled or stuck then.

Two machines work on what is asked for. A victim is killed with all its processes; a machine loses its disk too. It is
started again at once, as a supervisor does, and so is what ends by itself. Nobody runs a tick again that died: the next
one brings in what it had not.
"""

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType

from tasks import params
from tests.flows.test_loop import FIRST
from tests.servers import ROOT
from tests.team.ground import Ground, Machine, count_arrived

T = TypeVar("T")
DAY = timedelta(days=1)
VICTIMS = ("machine", "prefect", "machine", "mlflow", "s3", "postgres")
BEGUN = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
SERVER_WAIT_S = 120.0  # until Prefect's server answers again
RUN_WAIT_S = 600.0  # for a run while nobody is killed
END_WAIT_S = 1500.0  # after the last kill, until nothing is under way: what waits, and further attempts
SAMPLE_S = 3.0
ATTEMPTS = params.load(ROOT / "params.yaml").policy.attempts
RUN_ID = b"PREFECT__FLOW_RUN_ID="


@dataclass(frozen=True)
class Plan:
    """How many of each, and how long from one kill to the next, in seconds."""

    scores: int
    monitors: int
    retrains: int
    kills: int
    pause: tuple[float, float] = (15.0, 40.0)
    seed: int = 5


@dataclass
class Result:
    """`wrong`: a line for each loss and each double. `stuck`: seconds for which a run that had begun had no process, or
    for which a crashed retrain was not run again, the longest of each run."""

    wrong: list[str]
    stuck: dict[str, float]
    killed: Counter[str]
    states: Counter[str]
    ended: list[str] = field(default_factory=list)  # parts that ended though nobody had killed them
    seconds: float = 0.0


# --- what is watched -----------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """For each run that has begun, since when no process of it lives; for each retrain that crashed, since when."""

    api: str
    stuck: dict[str, float] = field(default_factory=dict)
    _dead_since: dict[str, float] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

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
        while not self._over.wait(SAMPLE_S):
            with suppress(Exception):  # the server is away
                self.look()

    def look(self) -> None:
        with SyncPrefectClient(self.api) as client:
            runs = read_runs(client)
        names, living, now = {str(run.id): run.name for run in runs}, find_runs(), time.monotonic()
        begun = {str(run.id) for run in runs if run.state_type in BEGUN}
        self._dead_since = {
            run: self._dead_since.get(run, now) for run in (begun - living) | find_unanswered_crashes(runs)
        }  # a run that lives, or has ended, begins anew
        for run, since in self._dead_since.items():
            name = f"{names[run]} ({run[:8]})"
            self.stuck[name] = max(self.stuck.get(name, 0.0), now - since)


def find_unanswered_crashes(runs: Sequence[FlowRun]) -> set[str]:
    """Crashed retrains that have attempts left, and no later one."""
    retrains = [run for run in runs if run.parameters.get("decision")]
    newest: defaultdict[str, int] = defaultdict(int)
    for run in retrains:
        newest[run.parameters["decision"]] = max(newest[run.parameters["decision"]], count_attempts(run))
    crashed = [run for run in retrains if run.state_type == StateType.CRASHED and count_attempts(run) <= ATTEMPTS]
    return {str(run.id) for run in crashed if newest[run.parameters["decision"]] == count_attempts(run)}


def count_attempts(run: FlowRun) -> int:
    return int(run.parameters.get("attempt") or 0)


def find_runs() -> set[str]:
    """The flow runs that have a process on this computer."""
    runs = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            for line in path.read_bytes().split(b"\0"):
                if line.startswith(RUN_ID):
                    runs.add(line.removeprefix(RUN_ID).decode())
    return runs


def read_runs(client: SyncPrefectClient, types: Sequence[StateType] | None = None) -> list[FlowRun]:
    """The flow runs in states of these types, or all; those that a schedule has made ahead are left out."""
    state = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))) if types else None
    runs: list[FlowRun] = []
    while page := client.read_flow_runs(flow_run_filter=state, limit=200, offset=len(runs)):
        runs += page
    return [run for run in runs if not run.auto_scheduled]


# --- the soak ------------------------------------------------------------------------------------------------------


def soak(it: Ground, plan: Plan, *, say: Callable[[str], None] = print) -> Result:
    """Ask, kill and start again; then wait until nothing is under way, and count."""
    began, watch = time.monotonic(), Watch(it.addresses["PREFECT_API_URL"])
    machines = [it.add_machine(name) for name in ("first", "second")]
    with it.working(*machines):
        with it.station(machines[0]) as station:
            station.completed(station.ask("retrain", reason="the first"), seconds=RUN_WAIT_S)
        work = Work(it, machines, plan, say)
        with watch.running():
            work.run()
            work.wait_for_end()
        with it.station(machines[0]) as station:
            last = station.ask("score", as_of=(FIRST + plan.scores * DAY).isoformat())
            station.completed(last, seconds=RUN_WAIT_S)  # what ticks that died had not
        states = Counter(f"{name} {state}" for name, state in work.read_states())
    return Result(find_wrong(it, plan), watch.stuck, work.killed, states, work.ended, seconds=time.monotonic() - began)


@dataclass
class Work:
    ground: Ground
    machines: list[Machine]
    plan: Plan
    say: Callable[[str], None]
    killed: Counter[str] = field(default_factory=Counter)
    ended: list[str] = field(default_factory=list)

    def run(self) -> None:
        rng, plan = random.Random(self.plan.seed), self.plan
        for number in range(plan.retrains):
            moment = FIRST + (7 + number) * DAY
            self.ask("retrain", number, as_of=moment.isoformat(), decision=f"queued {number}")
        ticks, asked = max(plan.scores, plan.monitors), 0
        for number, victim in enumerate(islice(cycle(VICTIMS), plan.kills), 1):
            due = -(-ticks * number // plan.kills)
            while asked < due:  # spread over the kills
                asked += 1
                for name, many in (("score", plan.scores), ("monitor", plan.monitors)):
                    if asked <= many:
                        self.ask(name, asked, as_of=(FIRST + asked * DAY).isoformat())
            end = time.monotonic() + rng.uniform(*plan.pause)
            while time.monotonic() < end:
                self.supervise()
                time.sleep(1)
            self.kill(victim, rng)

    def ask(self, name: str, number: int, **parameters: Any) -> None:
        def create(client: SyncPrefectClient) -> FlowRun:
            deployment = client.read_deployment_by_name(f"{name}/{name}")
            return client.create_flow_run_from_deployment(
                deployment.id, parameters=parameters, idempotency_key=f"{name} {number}"
            )

        self.query(create)

    def query(self, act: Callable[[SyncPrefectClient], T]) -> T:
        """What Prefect's server answers, also when it is just being started again."""
        end = time.monotonic() + SERVER_WAIT_S
        while True:
            try:
                with SyncPrefectClient(self.ground.addresses["PREFECT_API_URL"]) as client:
                    return act(client)
            except Exception:
                if time.monotonic() > end:
                    raise
                self.supervise()
                time.sleep(1)

    def kill(self, victim: str, rng: random.Random) -> None:
        before = time.monotonic()
        if victim == "machine":
            machine = self.choose_machine(rng)
            machine.lose()
            machine.start()
            victim = f"machine {machine.name}"
        else:
            self.ground.restart(victim)
        self.killed[victim.split(" ")[0]] += 1
        self.say(f"  kill {self.killed.total()}: {victim}, back after {time.monotonic() - before:.0f} s")

    def choose_machine(self, rng: random.Random) -> Machine:
        """One that has runs, if there is one."""
        living = find_runs()
        busy = [machine for machine in self.machines if any(run in machine.read_log() for run in living)]
        return rng.choice(busy or self.machines)

    def supervise(self) -> None:
        """Start again what has ended by itself."""
        for name in ("postgres", "s3", "prefect", "mlflow"):
            if end := self.ground.running[name].describe_end():
                self.ended.append(end)
                self.ground.restart(name)
        for machine in self.machines:
            if machine.worker and (end := machine.worker.describe_end()):
                self.ended.append(f"{machine.name}: {end}")
                machine.start()

    def wait_for_end(self) -> None:
        end = time.monotonic() + END_WAIT_S
        quiet = 0
        while quiet < 3 and time.monotonic() < end:
            self.supervise()
            runs = self.query(read_runs)
            under_way = [run for run in runs if not (run.state and run.state.is_final())]
            quiet = quiet + 1 if not under_way and not self.find_unanswered() else 0
            time.sleep(5)
        for run in under_way:
            self.say(f"  {run.name} is {run.state_name} still")

    def find_unanswered(self) -> set[str]:
        wanted = {f"queued {number}" for number in range(self.plan.retrains)}
        return wanted - {entry.decision for entry in self.ground.open_registry().read_ledger()}

    def read_states(self) -> list[tuple[str, str]]:
        with SyncPrefectClient(self.ground.addresses["PREFECT_API_URL"]) as client:
            flows = {flow.id: flow.name for flow in client.read_flows()}
            return [(flows[run.flow_id], str(run.state_name)) for run in read_runs(client)]


# --- what is counted -----------------------------------------------------------------------------------------------


def find_wrong(it: Ground, plan: Plan) -> list[str]:
    """A line for each prediction, decision and version that is lost or doubled."""
    return [*_find_predictions(it, FIRST + plan.scores * DAY), *_find_decisions(it, plan), *_find_versions(it)]


def _find_predictions(it: Ground, until: datetime) -> Iterator[str]:
    entries = [row["entry"] for row in it.read_journal("predictions")]
    wanted = count_arrived(it, until)
    if doubled := len(entries) - len(set(entries)):
        yield f"{doubled} predictions are doubled"
    if len(set(entries)) != wanted:
        yield f"{len(set(entries))} rows were predicted, but {wanted} arrived"


def _find_decisions(it: Ground, plan: Plan) -> Iterator[str]:
    wanted = [row["id"] for row in it.read_journal("decisions") if row["action"] == "retrain"]
    for name, many in Counter(wanted).items():
        if many > 1:
            yield f"decision {name} is in the journal {many} times"
    answers: defaultdict[str, int] = defaultdict(int)
    for entry in it.open_registry().read_ledger():
        answers[str(entry.decision)] += entry.mark in ("verdict", "intent")
    for name in {*wanted, *(f"queued {number}" for number in range(plan.retrains))}:
        if answers[name] != 1:
            yield f"decision {name} has {answers[name]} answers"


def _find_versions(it: Ground) -> Iterator[str]:
    known = it.open_registry()
    ledger = known.read_ledger()
    done = Counter(int(entry.version or 0) for entry in ledger if entry.mark == "done")
    versions = {int(one.version) for one in known.tracking.client.search_model_versions(f"name='{known.model}'")}
    if versions != set(done) or any(many > 1 for many in done.values()):
        yield f"the registry has versions {sorted(versions)}, and the ledger promoted {sorted(done.elements())}"
    intents = Counter(entry.decision for entry in ledger if entry.mark == "intent")
    finished = Counter(entry.decision for entry in ledger if entry.mark == "done")
    if intents != finished:
        yield f"promotions begun {dict(intents)}, finished {dict(finished)}"
    runs = known.tracking.search_runs(known.runs.experiment, "attributes.status = 'FINISHED'")
    records = Counter(record for run in runs if (record := run.data.tags.get("evergreen.record")))
    for record, many in records.items():
        if many > 1:
            yield f"record {record} has {many} runs"
