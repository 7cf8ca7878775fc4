"""An ordinary Prefect server and worker, with their default settings: deployed to, killed, and run against."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun

from flows import HEARTBEAT, automations, servers
from tests.faults.test_worker_faults import of
from tests.flows.station import Station, station, until
from tests.flows.test_loop import made

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
ATTEMPTS = 1


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    folder = tmp_path_factory.mktemp("plain")
    made(folder)
    raw = yaml.safe_load((folder / "params.yaml").read_text())
    raw["policy"]["attempts"] = ATTEMPTS
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with station(folder, plain=True) as found:
        yield found


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
    port = int(here.env["PREFECT_API_URL"].split(":")[2].split("/")[0])
    os.kill(here.running[0].process.pid, signal.SIGKILL)
    here.running[0].process.wait()
    here.running[0] = servers.start(servers.prefect(port, here.env), here.home / "logs-again")
    servers.wait(here.running[0])
    here.completed(run)
    limits = here.client.read_global_concurrency_limits(limit=50, offset=0)
    assert [limit.name for limit in limits if limit.active_slots] == []
    here.run("score")


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
    assert not here.client.read_automations_by_name(automations._name(ATTEMPTS + 2))  # nothing answers the last crash


def crashed(here: Station) -> list[FlowRun] | None:
    runs = here.runs("retrain")
    done = len(runs) >= ATTEMPTS + 2 and all(run.state_name == "Crashed" for run in runs)
    return runs if done else None
