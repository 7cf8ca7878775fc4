"""An ordinary Prefect server and worker, with their default settings: deployed to, killed, and run against."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Scheduled

from flows import deploy
from infra import HEARTBEAT
from tasks.runtime import locks
from tests.faults.test_worker_faults import of
from tests.flows import kills
from tests.flows.station import Station, station, until
from tests.flows.test_loop import made

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
ATTEMPTS = 1
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    folder = tmp_path_factory.mktemp("plain")
    made(folder)
    raw = yaml.safe_load((folder / "params.yaml").read_text())
    raw["policy"]["attempts"] = ATTEMPTS
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with station(folder, plain=True) as one:
        yield one


def test_a_run_sends_its_heartbeats_as_the_detector_expects_them(here: Station) -> None:
    assert "PREFECT_FLOWS_HEARTBEAT_FREQUENCY" not in here.env
    run = here.ask("score")
    pid = until(lambda: process_of(here, run), 60, here.worker.log, every=0.02)
    (name, value), *_ = HEARTBEAT.items()
    environment = dict(
        line.split("=", 1) for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in line
    )
    assert environment[name] == value
    here.completed(run)


def process_of(here: Station, run: FlowRun) -> int | None:
    mark = f"PREFECT__FLOW_RUN_ID={run.id}"
    for pid in of(here.home):
        try:
            if mark in Path(f"/proc/{pid}/environ").read_text().split("\0"):
                return pid
        except OSError:
            continue
    return None


def test_a_server_that_is_killed_in_mid_run_leaves_no_place_taken(here: Station) -> None:
    run = here.ask("score")
    until(lambda: here.client.read_flow_run(run.id).state_name == "Running", 60, here.worker.log)
    kills.restart_server(here)
    here.completed(run)
    assert kills.taken_places(here) == []
    here.run("score")


def test_a_run_outlives_its_worker(here: Station) -> None:
    run = here.ask("score")
    until(lambda: here.client.read_flow_run(run.id).state_name == "Running", 60, here.worker.log)
    kills.restart_worker(here)
    assert here.completed(run).run_count == 1
    assert kills.taken_places(here) == []


def test_a_retrain_that_dies_before_its_first_line_is_tried_so_often_and_no_oftener(here: Station) -> None:
    source = here.folder / "flows" / "retrain.py"
    text = source.read_text()
    source.write_text(f"import a_module_that_is_not_there\n{text}")
    try:
        here.ask("retrain", decision="in vain")
        runs = until(lambda: crashed(here), 150, here.worker.log)
    finally:
        source.write_text(text)
    assert [run.parameters.get("attempt", 0) for run in runs] == list(range(ATTEMPTS + 2))
    assert {run.parameters["decision"] for run in runs} == {"in vain"}
    names = [run.created_by.display_value if run.created_by else None for run in runs[1:]]
    assert names == [f"a crashed retrain runs again ({number})" for number in range(1, ATTEMPTS + 2)]
    assert not here.client.read_automations_by_name(deploy.name_rerun(ATTEMPTS + 2))  # nothing answers the last crash


def crashed(here: Station) -> list[FlowRun] | None:
    runs = here.runs("retrain")
    done = len(runs) >= ATTEMPTS + 2 and all(run.state_name == "Crashed" for run in runs)
    return runs if done else None


# --- ticks


def test_a_tick_beside_a_longer_run_is_skipped_without_an_error_and_the_next_does_its_work(here: Station) -> None:
    log = here.worker.log.stat().st_size
    with locks.take_turn(here.home, name="score"), locks.take_turn(here.home, name="monitor"):
        ticks = {name: tick(here, name) for name in ("score", "monitor")}
        skipped = {name: here.ended(run) for name, run in ticks.items()}
    for name, run in skipped.items():
        assert (run.state_type, run.state_name) == (StateType.COMPLETED, "Skipped")
        assert f"another run of {name} is under way" in str(run.state and run.state.message)
        assert count_task_runs(here, run) == 0
    following = here.completed(tick(here, "monitor"))
    assert count_task_runs(here, following) >= 1
    text = here.worker.log.read_bytes()[log:].decode()
    assert "Traceback" not in text
    assert "status code" not in text  # of a process that failed


def tick(here: Station, name: str) -> FlowRun:
    """A run as a schedule starts it. No client may say so: it is noted in the server's database before it is due."""
    deployment = here.client.read_deployment_by_name(f"{name}/{name}").id
    run = here.client.create_flow_run_from_deployment(
        deployment, state=Scheduled(scheduled_time=datetime.now(UTC) + HOUR)
    )
    with closing(sqlite3.connect(here.home / "prefect" / "prefect.db", timeout=30)) as database, database:
        database.execute("UPDATE flow_run SET auto_scheduled = 1 WHERE id = ?", [str(run.id)])
    here.client.set_flow_run_state(run.id, Scheduled(), force=True)
    assert here.client.read_flow_run(run.id).auto_scheduled
    return run


def count_task_runs(here: Station, run: FlowRun) -> int:
    return len(here.client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))))
