"""What a server's automations have missed: a run without a process is ended, a crashed retrain is run again, once."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect import get_client, states
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.events import Event
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

from flows import deploy, lost
from infra import HEARTBEAT_S
from tests.waiting import wait_until

ATTEMPTS = 2


@pytest.fixture(scope="module")
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:  # noqa: ARG001
    """A server with the retrains' deployments and the automations."""
    with get_client(sync_client=True) as one:
        flow = one.create_flow_from_name(lost.RETRAIN)
        for name in (lost.RETRAIN, lost.RETRAIN_AGAIN):
            one.create_deployment(flow, name, tags=[lost.TAG])
        deploy.put_automations(one, attempts=ATTEMPTS)
        yield one


def look(client: SyncPrefectClient) -> None:
    """As somebody does in a while whom the server has answered for long."""
    list(lost.Search(since=-math.inf).look(client, in_a_while()))


def in_a_while() -> datetime:
    return datetime.now(UTC) + timedelta(minutes=10)


def ask(client: SyncPrefectClient, **parameters: object) -> FlowRun:
    """A retrain of its own decision."""
    deployment = client.read_deployment_by_name(f"{lost.RETRAIN}/{lost.RETRAIN}")
    return client.create_flow_run_from_deployment(deployment.id, parameters={"decision": str(uuid4()), **parameters})


def crash_unheard(client: SyncPrefectClient, run: FlowRun) -> None:
    """No automation answers this crash, as if the server had lost the event."""
    client.set_flow_run_state(run.id, states.Crashed(message=lost.LEFT), force=True)


def read_attempts(client: SyncPrefectClient, run: FlowRun) -> list[int]:
    """Those of the run's decision, in order."""
    runs = client.read_flow_runs(flow_filter=lost.OF_RETRAIN, limit=200)
    return sorted(lost.count_attempts(one) for one in runs if lost.name_decision(one) == lost.name_decision(run))


def test_a_crash_that_no_automation_has_answered_runs_again_once_however_many_look(client: SyncPrefectClient) -> None:
    run = ask(client, as_of="2013-07-01T00:00:00Z")
    crash_unheard(client, run)
    for _ in range(2):
        look(client)
    assert read_attempts(client, run) == [0, 1]
    crash_unheard(client, next(one for one in client.read_flow_runs(limit=200) if is_first_again(one, run)))
    look(client)
    assert read_attempts(client, run) == [0, 1, 2]


def is_first_again(one: FlowRun, run: FlowRun) -> bool:
    same = one.parameters == {**run.parameters, "attempt": 1}
    return same and one.deployment_id != run.deployment_id  # retrain-again


def test_a_run_by_hand_runs_again_under_its_own_name(client: SyncPrefectClient) -> None:
    run = ask(client, decision=None)
    crash_unheard(client, run)
    look(client)
    assert read_attempts(client, run) == [0, 1]


def test_a_crash_that_an_automation_has_answered_is_left_alone(client: SyncPrefectClient) -> None:
    run = ask(client)
    client.set_flow_run_state(run.id, states.Crashed(message="its machine is gone"), force=True)
    wait_until(lambda: read_attempts(client, run) == [0, 1])
    look(client)
    assert read_attempts(client, run) == [0, 1]


def test_the_last_attempt_is_the_last(client: SyncPrefectClient) -> None:
    run = ask(client, attempt=ATTEMPTS + 1)
    crash_unheard(client, run)
    look(client)
    assert read_attempts(client, run) == [ATTEMPTS + 1]


def test_what_somebody_has_turned_off_stays_off(client: SyncPrefectClient) -> None:
    run, silent = ask(client, attempt=ATTEMPTS), ask(client)
    turned_off = [lost.name_rerun(ATTEMPTS + 1), lost.END_SILENT]
    ids = [one.id for name in turned_off for one in client.read_automations_by_name(name)]
    for each in ids:
        client.pause_automation(each)
    try:
        crash_unheard(client, run)
        client.set_flow_run_state(silent.id, states.Running(), force=True)
        look(client)
    finally:
        for each in ids:
            client.resume_automation(each)
    assert read_attempts(client, run) == [ATTEMPTS]
    assert client.read_flow_run(silent.id).state_name == "Running"
    crash_unheard(client, silent)


def test_a_run_without_a_process_crashes_and_runs_again_but_not_one_that_was_just_heard(
    client: SyncPrefectClient,
) -> None:
    gone, lives = ask(client), ask(client)
    for run in (gone, lives):
        client.set_flow_run_state(run.id, states.Running(), force=True)
    beat(client, gone)
    between = datetime.now(UTC)
    beat(client, lives)
    list(lost.Search(since=-math.inf).look(client, between + lost.SILENCE + lost.GRACE))
    assert client.read_flow_run(gone.id).state_name == "Crashed"
    assert read_attempts(client, gone) == [0, 1]
    assert client.read_flow_run(lives.id).state_name == "Running"
    assert read_attempts(client, lives) == [0]
    crash_unheard(client, lives)


def beat(client: SyncPrefectClient, run: FlowRun) -> None:
    """A heartbeat of the run, which the server's table has then."""
    name = f"prefect.flow-run.{run.id}"
    event = Event(event=lost.BEAT, resource={"prefect.resource.id": name})
    client.request("POST", "/events", json=[event.model_dump(mode="json")])
    wanted = EventFilter(event=EventNameFilter(name=[lost.BEAT]), resource=EventResourceFilter(id=[name]))
    wait_until(lambda: bool(client.read_events(wanted, limit=1).events))


def test_nobody_is_missed_while_the_server_has_just_come_back(client: SyncPrefectClient) -> None:
    run = ask(client)
    client.set_flow_run_state(run.id, states.Running(), force=True)
    list(lost.Search().look(client, in_a_while()))
    assert client.read_flow_run(run.id).state_name == "Running"
    look(client)
    assert client.read_flow_run(run.id).state_name == "Crashed"


def test_all_that_a_pool_without_workers_has_begun_ends_and_runs_again(client: SyncPrefectClient) -> None:
    client.create_work_pool(WorkPoolCreate(name="left", type="process"))
    flow = client.create_flow_from_name(lost.RETRAIN)
    deployment = client.create_deployment(flow, "of a pool", work_pool_name="left", tags=[lost.TAG])
    begun = [
        client.create_flow_run_from_deployment(deployment, parameters={"decision": str(uuid4())}, state=state)
        for state in (states.Running(), states.Paused(), states.Pending(name="Submitting"))
    ]
    elsewhere = ask(client)
    client.set_flow_run_state(elsewhere.id, states.Running(), force=True)
    assert {run.id for run in lost.end_all("left", client)} == {run.id for run in begun}
    for run in begun:
        assert client.read_flow_run(run.id).state_name == "Crashed"
        assert read_attempts(client, run) == [0, 1]
    assert client.read_flow_run(elsewhere.id).state_name == "Running"
    crash_unheard(client, elsewhere)


def test_a_run_that_was_lost_is_taken_up_within_five_minutes() -> None:
    away = lost.SILENCE + lost.GRACE + timedelta(seconds=lost.RETURN_S + 2 * lost.EVERY_S)
    assert away <= timedelta(minutes=5)
    assert lost.RETURN_S >= 2 * HEARTBEAT_S  # a run that lives has been heard by then
