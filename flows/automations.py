"""automations: what the Prefect server does by itself: it starts a retrain that is wanted, and answers runs that die.

flows/deploy.py puts them there. A run is never scheduled again under its own id: Prefect may then execute it twice at
once. A retrain that died is a new run with the same parameters. How often is bounded here, on the server, since a run
that dies before its first line counts nothing: each further attempt is an automation of its own, which answers only the
crash of the run that the one before it has started. The last attempt trains nothing and answers the decision.
"""

from datetime import timedelta
from uuid import UUID

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture, RunDeployment
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed

from flows.runs import SKIPPED
from infra import HEARTBEAT_S

SILENCE = timedelta(seconds=5 * HEARTBEAT_S)  # so long that a server may be away for a minute, and nobody is missed
ONCE = timedelta(minutes=10)  # a worker may report one death twice
LEFT = "left behind by a worker that is gone"
BEAT = "prefect.flow-run.heartbeat"
DIED = "prefect.flow-run.Crashed"
BEGAN = {f"prefect.flow-run.{state}" for state in ("Pending", "Running")}
ENDED = {DIED, *(f"prefect.flow-run.{state}" for state in ("Completed", SKIPPED, "Failed", "Cancelled"))}
ANY: dict[str, str | list[str]] = {"prefect.resource.id": ["prefect.flow-run.*"]}
OURS: dict[str, str | list[str]] = {  # others on this server may send their heartbeats as they like
    "prefect.resource.role": "tag",
    "prefect.resource.id": "prefect.tag.evergreen",
}
AGAIN = (  # a run by hand has no decision, and promotes under its own id: the new one promotes under the same
    "{{ dict(flow_run.parameters, attempt=(flow_run.parameters.attempt or 0) + 1, "
    "decision=flow_run.parameters.decision or 'retrain-' ~ flow_run.id) | tojson }}"
)
BEGUN = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED]
RETRAIN, RETRAIN_AGAIN = "retrain", "retrain-again"  # the deployments


def put_automations(client: SyncPrefectClient, *, attempts: int) -> None:
    """Put all automations on the server, and remove those of more attempts than policy.attempts allows."""
    first = client.read_deployment_by_name(f"{RETRAIN}/{RETRAIN}").id
    further = client.read_deployment_by_name(f"{RETRAIN}/{RETRAIN_AGAIN}").id
    for automation in (start(first), end_silent(), *(rerun(number, further) for number in range(1, attempts + 2))):
        put_automation(automation, client)
    _remove_rest(attempts + 2, client)


def start(deployment: UUID) -> AutomationCore:
    """Start a retrain when the monitor decides on one."""
    parameters = {name: f"{{{{ event.payload.{name} }}}}" for name in ("as_of", "decision", "reason")}
    return AutomationCore(
        name="retrain when it is wanted",
        description="A decision to retrain starts the deployment `retrain`.",
        trigger=EventTrigger(
            expect={"evergreen.retrain.wanted"},
            match={"prefect.resource.id": "evergreen.model.*"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[RunDeployment(source="selected", deployment_id=deployment, parameters=parameters)],
    )


def end_silent() -> AutomationCore:
    """Mark a run without heartbeats as crashed: nobody else reports a worker that was killed with its run."""
    trigger = EventTrigger(
        after={BEAT, *BEGAN},
        expect={BEAT, *BEGAN, *ENDED},
        match=ANY,
        match_related=OURS,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=SILENCE,
    )
    message = f"no heartbeat for {SILENCE.total_seconds():.0f} s"
    return AutomationCore(
        name="a silent run has crashed",
        description="A run whose heartbeats have stopped is marked Crashed.",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def rerun(number: int, deployment: UUID) -> AutomationCore:
    """Run a crashed retrain, or a crashed earlier attempt, again with the same parameters and one attempt more."""
    creator = {"prefect.resource.role": "creator", "prefect.resource.name": _name(number - 1)}
    trigger = EventTrigger(
        expect={DIED},
        match={**ANY, "prefect.state-message": f"!{LEFT}"},  # those are run again by `take_up`
        match_related=[_runs_of(RETRAIN)] if number == 1 else [_runs_of(RETRAIN_AGAIN), creator],
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=ONCE,
    )
    same = {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": AGAIN}}
    return AutomationCore(
        name=_name(number),
        description="As a new run, with its decision's id: policy.attempts times, and a last one answers the decision.",
        trigger=trigger,
        actions=[RunDeployment(source="selected", deployment_id=deployment, parameters=same)],
    )


def _name(number: int) -> str:
    return f"a crashed retrain runs again ({number})"


def _runs_of(deployment: str) -> dict[str, str | list[str]]:
    return {"prefect.resource.role": "deployment", "prefect.resource.name": deployment}


def _remove_rest(number: int, client: SyncPrefectClient) -> None:
    while automations := client.read_automations_by_name(_name(number)):
        for automation in automations:
            client.delete_automation(automation.id)
        number += 1


def put_automation(one: AutomationCore, client: SyncPrefectClient) -> None:
    """Create or update the automation of this name, and delete duplicates. One that is up to date is left alone, since
    it may be counting; one that somebody has turned off stays off."""
    present = client.read_automations_by_name(one.name)
    for duplicate in present[1:]:
        client.delete_automation(duplicate.id)
    if not present:
        client.create_automation(one)
    elif _content(present[0]) != _content(one):
        client.update_automation(present[0].id, one.model_copy(update={"enabled": present[0].enabled}))


def _content(automation: AutomationCore) -> object:
    return automation.model_dump(include={"description", "trigger", "actions"}, exclude={"trigger": {"id"}})


def rerun_left_behind(pool: str, client: SyncPrefectClient) -> list[FlowRun]:
    """Mark runs that still count as running without a worker as crashed, and run a retrain among them again, once.

    The automations would do that too, but late: a server that was started since keeps the event of such a crash back
    for a quarter of an hour, since it has not seen the event before it.
    """
    begun = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=BEGUN)))
    here = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    left = client.read_flow_runs(work_pool_filter=here, flow_run_filter=begun)
    for run in left:
        if run.deployment_id and client.read_flow(run.flow_id).name == RETRAIN:
            _run_again(run, client)  # before it is marked: a kill between them does not lose it
        client.set_flow_run_state(run.id, Crashed(message=LEFT), force=True)
    return left


def _run_again(run: FlowRun, client: SyncPrefectClient) -> None:
    """What `rerun` does; under a key of the run's, so that there is one however often it is asked for."""
    before = run.parameters
    more = {"attempt": before.get("attempt", 0) + 1, "decision": before.get("decision") or f"retrain-{run.id}"}
    client.create_flow_run_from_deployment(
        client.read_deployment_by_name(f"{RETRAIN}/{RETRAIN}").id,
        parameters={**before, **more},
        idempotency_key=f"{run.id} again",
    )
