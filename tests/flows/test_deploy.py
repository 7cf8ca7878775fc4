"""What a deploy puts on the server: heartbeats for their detector, bounded attempts, and people's own schedules."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from prefect.automations import AutomationCore, EventTrigger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import Event, RelatedResource
from prefect.events.schemas.events import Resource
from prefect.server.events.schemas.automations import EventTrigger as ServerTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.settings import get_current_settings

from flows import deploy, lost
from infra import HEARTBEAT, HEARTBEAT_S

ROOT = Path(__file__).parents[2]
PLAN = yaml.safe_load((ROOT / "prefect.yaml").read_text())
SCORE = "score/score"


# --- a detector and what it detects


def test_every_deployment_sends_its_heartbeats_as_the_detector_expects_them() -> None:
    adapted = deploy.adapt_plan(PLAN, {})
    for deployment in adapted["deployments"]:
        assert HEARTBEAT.items() <= deployment["work_pool"]["job_variables"]["env"].items()
        assert "evergreen" in deployment["tags"]  # by which the detector knows it


def test_a_pools_own_variables_stay() -> None:
    plan = {"deployments": [{"name": "a", "work_pool": {"name": "p", "job_variables": {"x": 1, "env": {"A": "b"}}}}]}
    (deployment,) = deploy.adapt_plan(plan, {})["deployments"]
    variables = deployment["work_pool"]["job_variables"]
    assert variables["x"] == 1
    assert {"A": "b", **HEARTBEAT}.items() <= variables["env"].items()


def test_a_flow_from_a_terminal_sends_its_heartbeats_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    monkeypatch.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "180")
    code = "import flows; from prefect.settings import get_current_settings as s; print(s().flows.heartbeat_frequency)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == HEARTBEAT_S


def test_silence_is_a_minutes_outage_and_two_heartbeats_and_no_more_than_a_few() -> None:
    beat = timedelta(seconds=HEARTBEAT_S)
    assert timedelta(minutes=1) + 2 * beat < deploy.SILENCE <= 6 * beat


def test_other_peoples_flows_on_the_server_are_left_alone() -> None:
    labels = Resource({"prefect.resource.id": f"prefect.flow-run.{uuid4()}"})
    tag = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.evergreen"}
    theirs = Event(event=deploy.BEAT, resource=labels)
    assert covers(deploy.end_silent(), theirs.model_copy(update={"related": [RelatedResource(tag)]}))
    assert not covers(deploy.end_silent(), theirs)


def trigger_of(automation: AutomationCore) -> EventTrigger:
    assert isinstance(automation.trigger, EventTrigger)
    return automation.trigger


# --- attempts


def crash_of(deployment: str, creator: str | None) -> Event:
    """As the server tells it."""
    related = [{"prefect.resource.role": "deployment", "prefect.resource.name": deployment, "prefect.resource.id": "d"}]
    if creator:
        related.append(
            {"prefect.resource.role": "creator", "prefect.resource.name": creator, "prefect.resource.id": "a"}
        )
    labels = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}", "prefect.state-message": "exit 1"}
    return Event(
        event=deploy.DIED,
        resource=Resource(labels),
        related=[RelatedResource(one) for one in related],
    )


def received(event: Event) -> ReceivedEvent:
    return ReceivedEvent.model_validate(event.model_dump(mode="json") | {"received": event.occurred})


def covers(automation: AutomationCore, event: Event) -> bool:
    return on_the_server(automation).covers(received(event))


def answers(automation: AutomationCore, event: Event) -> bool:
    return event.event in trigger_of(automation).expect and covers(automation, event)


def on_the_server(automation: AutomationCore) -> ServerTrigger:
    return ServerTrigger.model_validate(trigger_of(automation).model_dump(mode="json"))


def test_each_crash_has_one_answer_and_that_of_the_last_attempt_none() -> None:
    attempts = 2
    chain = [deploy.rerun(number, uuid4()) for number in range(1, attempts + 2)]
    crash = crash_of("retrain", "retrain when it is wanted")
    for automation in chain:
        assert [one.name for one in chain if answers(one, crash)] == [automation.name]
        crash = crash_of("retrain-again", automation.name)
    assert not any(answers(one, crash) for one in chain)
    assert answers(chain[0], crash_of("retrain", None))  # by hand
    assert not any(answers(one, crash_of("score", None)) for one in chain)


def test_what_was_left_behind_is_run_again_by_the_deploy_alone() -> None:
    crash = crash_of("retrain", None)
    left = Resource({**crash.resource.root, "prefect.state-message": lost.LEFT})
    assert not answers(deploy.rerun(1, uuid4()), crash.model_copy(update={"resource": left}))


# --- what people have set


@pytest.fixture(scope="module")
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:  # noqa: ARG001
    with get_client(sync_client=True) as one:
        yield one


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Flows of one line, so that a deploy takes no imports of ours."""
    (tmp_path / "flows").mkdir()
    names = {"retrain": ["retrain", "retrain-again"], "score": ["score"]}
    for flow in names:
        text = f"from prefect import flow\n\n@flow\ndef {flow}() -> None: ...\n"
        (tmp_path / "flows" / f"{flow}.py").write_text(text)
    wanted = {name for listed in names.values() for name in listed}
    plan = {**PLAN, "deployments": [one for one in PLAN["deployments"] if one["name"] in wanted]}
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(plan))
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


@pytest.fixture
def on_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs that a deploy starts ask the session's server."""
    monkeypatch.setenv("PREFECT_API_URL", str(get_current_settings().api.url))


@pytest.mark.usefixtures("on_server")
def test_what_somebody_has_paused_or_edited_survives_a_deploy(
    client: SyncPrefectClient, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy.deploy(checkout, client)
    score = client.read_deployment_by_name(SCORE)
    (schedule,) = score.schedules
    client.update_deployment_schedule(
        score.id, schedule.id, active=False, schedule=CronSchedule(cron="5 * * * *", timezone="UTC")
    )
    (wanted,) = client.read_automations_by_name("retrain when it is wanted")
    client.pause_automation(wanted.id)
    client.pause_deployment(client.read_deployment_by_name("retrain/retrain").id)

    deploy.deploy(checkout, client)
    (stays,) = client.read_deployment_by_name(SCORE).schedules
    assert (stays.id, stays.active, getattr(stays.schedule, "cron", None)) == (schedule.id, False, "5 * * * *")
    (same,) = client.read_automations_by_name("retrain when it is wanted")
    assert (same.id, same.enabled) == (wanted.id, False)
    assert client.read_deployment_by_name("retrain/retrain").paused
    assert not client.read_deployment_by_name(SCORE).paused
    assert "'5 * * * *' (paused)" in capsys.readouterr().out

    deploy.deploy(checkout, client, schedules=True)
    (again,) = client.read_deployment_by_name(SCORE).schedules
    assert (again.active, getattr(again.schedule, "cron", None)) == (True, "0 * * * *")


@pytest.mark.usefixtures("on_server")
def test_fewer_attempts_remove_what_is_too_much_and_no_deployment_has_a_limit(
    client: SyncPrefectClient, checkout: Path
) -> None:
    deploy.deploy(checkout, client)
    deploy.put_automations(client, attempts=0)
    names = {automation.name for automation in client.read_automations()}
    assert {name for name in names if name.startswith("a crashed retrain")} == {"a crashed retrain runs again (1)"}
    for name in (SCORE, "retrain/retrain", "retrain/retrain-again"):
        assert client.read_deployment_by_name(name).global_concurrency_limit is None


@pytest.mark.usefixtures("on_server")
def test_a_deployment_that_is_refused_says_why(client: SyncPrefectClient, checkout: Path) -> None:
    (checkout / "flows" / "score.py").write_text("def score(: ...\n")
    with pytest.raises(RuntimeError, match="the deployments were refused"):
        deploy.deploy(checkout, client)
