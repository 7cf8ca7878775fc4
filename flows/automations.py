"""automations: the work pool, and what the Prefect server does about a run that has died.

    python -m flows.automations

`make deploy` and `make up` run it; as often as you like. A run is never scheduled again under its own id: Prefect may
then execute it twice at once. A retrain that died is a new run with the same parameters, policy.attempts times at most.
"""

import argparse
from datetime import timedelta
from pathlib import Path

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture, RunDeployment
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from flows.servers import ONE_RETRAIN, pool_of

SILENCE = timedelta(seconds=75)  # two heartbeats of 30 s missed (PREFECT_FLOWS_HEARTBEAT_FREQUENCY), and some
ONCE = timedelta(minutes=10)  # a worker may report one death twice
LEFT = "left behind by a worker that is gone"
BEAT = "prefect.flow-run.heartbeat"
DIED = "prefect.flow-run.Crashed"
ENDED = {DIED, *(f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled"))}
ANY: dict[str, str | list[str]] = {"prefect.resource.id": ["prefect.flow-run.*"]}
RETRAIN: dict[str, str | list[str]] = {"prefect.resource.role": "deployment", "prefect.resource.name": "retrain"}
AGAIN = (  # a run by hand has no decision, and promotes under its own id: the new one promotes under the same
    "{{ dict(flow_run.parameters, attempt=(flow_run.parameters.attempt or 0) + 1, "
    "decision=flow_run.parameters.decision or 'retrain-' ~ flow_run.id) | tojson }}"
)
BEGUN = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED]


def silent() -> AutomationCore:
    """A worker that is killed with its run tells nobody: the run's silence does."""
    trigger = EventTrigger(
        after={BEAT},
        expect={BEAT, *ENDED},
        match=ANY,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=SILENCE,
    )
    said = f"no heartbeat for {SILENCE.total_seconds():.0f} s"
    return AutomationCore(
        name="a silent run has crashed",
        description="A run whose heartbeats have stopped is marked Crashed.",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=said)],
    )


def again() -> AutomationCore:
    """The parameters as they were, and one attempt more; the flow itself refuses one too many."""
    trigger = EventTrigger(
        expect={DIED},
        match={**ANY, "prefect.state-message": f"!{LEFT}"},  # those are run again by `take_up`
        match_related=RETRAIN,
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=ONCE,
    )
    same = {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": AGAIN}}
    return AutomationCore(
        name="a crashed retrain runs again",
        description="As a new run, with its decision's id; policy.attempts times at most.",
        trigger=trigger,
        actions=[RunDeployment(source="inferred", parameters=same)],
    )


def take_up(pool: str, client: SyncPrefectClient) -> list[FlowRun]:
    """What is still called running when no worker runs: crashed, and a retrain of them runs again, once.

    The automations would do that too, but late: a server that was started since keeps the event of such a crash back
    for a quarter of an hour, since it has not seen the event before it.
    """
    begun = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=BEGUN)))
    here = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    left = client.read_flow_runs(work_pool_filter=here, flow_run_filter=begun)
    for run in left:
        if run.deployment_id and client.read_flow(run.flow_id).name == "retrain":
            _run_again(run, client)  # before it is marked: a kill between them does not lose it
        client.set_flow_run_state(run.id, Crashed(message=LEFT), force=True)
    return left


def _run_again(run: FlowRun, client: SyncPrefectClient) -> None:
    """What `again` does; under a key of the run's, so that there is one however often it is asked for."""
    assert run.deployment_id
    known = run.parameters
    more = {"attempt": known.get("attempt", 0) + 1, "decision": known.get("decision") or f"retrain-{run.id}"}
    client.create_flow_run_from_deployment(
        run.deployment_id, parameters={**known, **more}, idempotency_key=f"{run.id} again"
    )


def keep(one: AutomationCore, client: SyncPrefectClient) -> None:
    """One of its name, as it is wanted. One that is so already is left alone: it may be counting."""
    known = client.read_automations_by_name(one.name)
    for more in known[1:]:
        client.delete_automation(more.id)
    if not known:
        client.create_automation(one)
    elif _said(known[0]) != _said(one):
        client.update_automation(known[0].id, one)


def _said(one: AutomationCore) -> object:
    return one.model_dump(include={"description", "trigger", "actions"}, exclude={"trigger": {"id"}})


def make_pool(name: str, client: SyncPrefectClient) -> None:
    """Of processes, unless somebody has made it otherwise."""
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))


def make_limit(client: SyncPrefectClient) -> None:
    """One retrain at a time, of all that deployments start."""
    client.upsert_global_concurrency_limit_by_name(ONE_RETRAIN, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-worker-runs", action="store_true", help="so what is called running has died")
    pool, alone = pool_of(Path.cwd()), parser.parse_args().no_worker_runs
    with get_client(sync_client=True) as client:
        make_pool(pool, client)
        make_limit(client)
        for each in (silent(), again()):
            keep(each, client)
        for run in take_up(pool, client) if alone else []:
            print(f"{run.name}: {LEFT}")


if __name__ == "__main__":
    main()
