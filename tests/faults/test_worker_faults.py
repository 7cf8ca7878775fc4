"""A worker, its runs and `make up` when they are killed: what was begun is finished once, and no process is left."""

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

from flows import deploy, lost
from infra import servers, up
from tasks import params
from tasks.promotion import registry
from tasks.serving.journal import open_journal
from tests.flows.kills import restart_server, restart_worker
from tests.flows.station import Station, program, station, until
from tests.flows.test_loop import FIRST, made

pytestmark = pytest.mark.faults

WEEK = timedelta(days=7)
ONE_EACH = ["intent", "alias moved", "done"]
LOST_S = 300.0  # until what was lost is taken up
SILENCE = timedelta(seconds=10)  # the least that Prefect's detector takes
AWAY = lost.SILENCE + 2 * lost.GRACE
QUICK = """
from flows import lost, worker
lost.EVERY_S, lost.RETURN_S = 2.0, 5.0
worker.main()
"""
HOLD = """

def _hold(whole):
    import pathlib, threading

    def held(*args, **kwargs):
        result = whole(*args, **kwargs)
        mark = pathlib.Path({mark!r})
        if not mark.exists():
            mark.touch()
            threading.Event().wait()
        return result

    return held


{place} = _hold({place})
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    folder = tmp_path_factory.mktemp("faults")
    made(folder)
    with station(folder) as one:
        yield one


def open_registry(here: Station) -> registry.Registry:
    p = params.load(here.folder / "params.yaml")
    return registry.open_registry(p.registry, uri=f"sqlite:///{here.home / 'mlflow.db'}")


def marks(known: registry.Registry, decision: str) -> list[str]:
    return [entry.mark for entry in known.read_ledger() if entry.decision == decision]


def next_of(here: Station, run: FlowRun, *, seconds: float = 60) -> FlowRun:
    """The run that came of the crash of another."""

    def came() -> FlowRun | None:
        return next((one for one in here.runs("retrain") if one.created and one.created > run.created), None)

    return until(came, seconds, here.worker.log)


def kill(*roots: int) -> None:
    """Each with all that is below it, at once."""
    for pid in {*roots, *(pid for root in roots for pid in up.descendants(root))}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def held_after(here: Station, flow: str, place: str) -> Iterator[Path]:
    """The first run of a flow of this checkout waits for ever after its first call of `place`; then the file exists."""
    source, mark = here.folder / "flows" / f"{flow}.py", here.folder / f"{flow} is held"
    text = source.read_text()
    source.write_text(text + HOLD.format(mark=str(mark), place=place))
    try:
        yield mark
    finally:
        source.write_text(text)


def hear_silence(here: Station, run: FlowRun) -> None:
    """What finds silent runs looks at this one alone, for seconds instead of minutes.

    It begins to count anew when it is changed, so the run's last sign of life comes once more.
    """
    automation = deploy.end_silent()
    trigger = automation.trigger.model_copy(update={"match": resource_of(run), "within": SILENCE})
    (known,) = here.client.read_automations_by_name(automation.name)
    here.client.update_automation(known.id, automation.model_copy(update={"trigger": trigger}))
    signs = EventNameFilter(name=[deploy.BEAT, *deploy.BEGAN])
    wanted = EventFilter(event=signs, resource=EventResourceFilter(id=list(resource_of(run).values())))
    last = until(lambda: here.client.read_events(wanted, limit=1).events, 60, here.worker.log)[0]
    again = last.model_copy(update={"id": uuid4(), "occurred": datetime.now(UTC), "follows": None})
    here.client.request("POST", "/events", json=[again.model_dump(mode="json")])


def resource_of(run: FlowRun) -> dict[str, str]:
    return {"prefect.resource.id": f"prefect.flow-run.{run.id}"}


@pytest.mark.timeout(600)
def test_a_retrain_that_is_killed_after_it_promoted_runs_again_and_promotes_nothing_twice(here: Station) -> None:
    with held_after(here, "retrain", "carry_out.fn") as mark:
        run = here.ask("retrain", decision="first")
        until(mark.exists, 180, here.worker.log)
        kill(*up.descendants(here.worker.process.pid))
    assert here.ended(run).state_name == "Crashed"
    again = next_of(here, run)
    assert {name: again.parameters[name] for name in ("attempt", "decision")} == {"attempt": 1, "decision": "first"}
    assert here.ended(again).state_name == "Completed"
    known = open_registry(here)
    assert marks(known, "first")[:3] == ONE_EACH
    assert set(marks(known, "first")[3:]) <= {"verdict"}
    champion = known.find_champion()
    assert champion
    assert champion.number == 1
    assert len(here.runs("retrain")) == 2


@pytest.mark.timeout(600)
def test_a_score_that_is_killed_is_made_whole_by_the_next_and_predicts_nothing_twice(here: Station) -> None:
    as_of = (FIRST + WEEK).isoformat()
    with held_after(here, "score", "work.Journal.append") as mark:
        run = here.ask("score", as_of=as_of)
        until(mark.exists, 120, here.worker.log)
        kill(*up.descendants(here.worker.process.pid))
    logs = here.home / "journal" / "logs" / "predictions"
    assert [path for path in logs.glob("*.log") if path.stat().st_size]
    assert here.ended(run).state_name == "Crashed"
    here.run("score", as_of=as_of)
    journal = open_journal(params.Journal(), home=here.home)
    entries = journal.read("predictions")["entry"].to_pylist()
    assert len(entries) == len(set(entries)) == len(arrived(here, FIRST, FIRST + WEEK))
    outcomes = journal.read("outcomes").num_rows
    here.run("score", as_of=as_of)
    assert (journal.read("predictions").num_rows, journal.read("outcomes").num_rows) == (len(entries), outcomes)


def arrived(here: Station, since: datetime, until_: datetime) -> list[str]:
    lines = (here.folder / "source" / "orders.csv").read_text().splitlines()[1:]
    return [line for line in lines if since <= datetime.fromisoformat(line.split(",")[1]) < until_]


def antedate(here: Station, run: FlowRun, by: timedelta) -> None:
    """Time that passes while the server is away: the run's signs of life lie so much further back."""
    columns = {"flow_run_state": "timestamp", "events": "occurred", "event_resources": "occurred"}
    with closing(sqlite3.connect(here.home / "prefect" / "prefect.db", timeout=30)) as database, database:
        for table, moment in columns.items():
            owner, name = (
                ("flow_run_id", str(run.id)) if moment == "timestamp" else ("resource_id", f"prefect.flow-run.{run.id}")
            )
            earlier = f"strftime('%Y-%m-%d %H:%M:%f000', {moment}, ?)"
            values = [f"-{by.total_seconds():.0f} seconds", name]
            assert database.execute(f"UPDATE {table} SET {moment} = {earlier} WHERE {owner} = ?", values).rowcount


@pytest.mark.timeout(900)
def test_a_run_that_is_lost_with_its_worker_and_its_server_is_made_again_once(here: Station) -> None:
    """The server that comes back has seen nothing of it: its automations would hold the news back, or have none."""
    before = len(here.runs("retrain"))
    has_said, run = here.listen(), here.ask("retrain", decision="lost", as_of=(FIRST + WEEK).isoformat())
    until(lambda: has_said("Task run 'clean'"), 120, here.worker.log)
    kill(here.worker.process.pid)
    restart_server(here, lambda: antedate(here, run, AWAY))
    restart_worker(here, QUICK)
    again = next_of(here, run, seconds=LOST_S)
    assert (again.parameters["decision"], again.parameters["attempt"]) == ("lost", 1)
    assert here.ended(run).state_name == "Crashed"
    assert here.ended(again, seconds=180).state_name == "Completed"
    assert len(here.runs("retrain")) == before + 2
    assert marks(open_registry(here), "lost") in (["verdict"], ONE_EACH)


@pytest.mark.timeout(600)
def test_a_worker_that_is_killed_with_its_run_is_noticed_and_the_run_is_made_again_once(here: Station) -> None:
    before = len(here.runs("retrain"))
    has_said, run = here.listen(), here.ask("retrain", decision="second", as_of=(FIRST + 2 * WEEK).isoformat())
    until(lambda: has_said("Task run 'clean'"), 120, here.worker.log)
    kill(here.worker.process.pid)
    here.worker.process.wait()
    other = servers.start(servers.worker("evergreen", here.env), here.home / "other-logs")
    try:
        hear_silence(here, run)
        assert here.ended(run).state_name == "Crashed"
        again = next_of(here, run)
        assert again.parameters["attempt"] == 1
        assert here.ended(again, seconds=180).state_name == "Completed"
    finally:
        servers.stop(other)
    assert len(here.runs("retrain")) == before + 2
    assert marks(open_registry(here), "second") in (["verdict"], ONE_EACH)


# --- make up ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout, and in it the home that all of them stand in, one after the other: a killed one leaves it usable."""
    folder = tmp_path_factory.mktemp("up")
    made(folder)
    return folder


@pytest.fixture
def standing(ground: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """`make up`, which is to say that it is ready."""
    home = ground / "home"
    env = {**os.environ, "EVERGREEN_HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
    command = [sys.executable, "-m", "infra.up", "--prefect-port=0", "--mlflow-port=0", "--evidently-port=0"]
    command += ["--api-port=0"]
    process = subprocess.Popen(
        command, cwd=ground, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    try:
        yield process, home
    finally:
        kill(*of(home))
        process.communicate()


def ready(process: "subprocess.Popen[str]") -> str:
    """The line of addresses."""
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("ready"):
            return line
    raise AssertionError("".join(lines))


def of(home: Path) -> set[int]:
    """The processes that were started with this home."""
    mark = f"EVERGREEN_HOME={home}".encode()
    return {int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if mark in _read(path).split(b"\0")}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def inner(process: "subprocess.Popen[str]") -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


@pytest.mark.timeout(600)
def test_ctrl_c_ends_everything_in_good_order(standing: tuple["subprocess.Popen[str]", Path]) -> None:
    process, home = standing
    for address in re.findall(r"http://\S+", ready(process)):
        assert urlopen(address, timeout=60).status == 200
    assert len(of(home)) >= 7
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert of(home) == set()
    assert "stopped!" in (home / "logs" / "worker.log").read_text()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("which", ["outer", "inner"])
def test_a_killed_supervisor_leaves_no_process(standing: tuple["subprocess.Popen[str]", Path], which: str) -> None:
    process, home = standing
    ready(process)
    os.kill(process.pid if which == "outer" else inner(process), signal.SIGKILL)
    until(lambda: not of(home), 60)
    assert process.wait(60) != 0


@pytest.mark.timeout(600)
def test_a_part_that_dies_is_named_with_its_log_and_the_rest_stops(
    standing: tuple["subprocess.Popen[str]", Path],
) -> None:
    process, home = standing
    ready(process)
    victim = next(pid for pid in of(home) if b"mlflow\0server" in _read(Path(f"/proc/{pid}/cmdline")))
    os.kill(victim, signal.SIGKILL)
    last, _ = process.communicate(timeout=60)
    assert f"mlflow ended with status -9; see {home / 'logs' / 'mlflow.log'}" in last
    assert process.returncode == 1
    assert of(home) == set()


def test_up_is_refused_where_it_runs_already_and_where_a_port_is_taken(ground: Path) -> None:
    home = ground / "home"
    env: dict[str, Any] = {**os.environ, "EVERGREEN_HOME": str(home)}
    port = servers.free_port()
    with servers.socket.socket() as taken:
        taken.bind((servers.HOST, port))
        taken.listen()
        rest = [f"--{name}-port=0" for name in ("mlflow", "evidently", "api")]
        with pytest.raises(AssertionError, match=f"port {port} of 127.0.0.1 cannot be had"):
            program(ground, env, "-m", "infra.up", f"--prefect-port={port}", *rest)
    home.mkdir(exist_ok=True)
    with (
        up.FileLock(home / "up.lock"),
        pytest.raises(AssertionError, match="runs already for"),
    ):
        program(ground, env, "-m", "infra.up")
