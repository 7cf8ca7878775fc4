"""deploy: prefect.yaml's deployments and the automations, onto the server at PREFECT_API_URL.

    python -m flows.deploy

`make deploy` and `make up` run it; as often as you like. What a person has paused or edited on the server stays: a
deployment that is there keeps its schedules, and an automation that is off stays off. `--schedules` puts the schedules
of prefect.yaml in their place. `--code store` brings the commit to the store of a team, from which a worker pulls it
for each run: such a worker needs the environment and no checkout.

The automations are what the server does by itself: it starts a retrain that is wanted, and answers runs that die. A run
is never scheduled again under its own id: Prefect may then execute it twice at once. A retrain that died is a new run
with the same parameters. How often is bounded here, on the server, since a run that dies before its first line counts
nothing: each further attempt is an automation of its own, which answers only the crash of the run that the one before
it has started. The last attempt trains nothing and answers the decision. What a server misses that was killed or lost
its database, the workers do (flows/lost.py).
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import yaml
from prefect import exceptions, get_client
from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture, RunDeployment
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import actions, objects
from prefect.client.schemas.responses import DeploymentResponse

from flows import cli, lost, runs
from flows.lost import BEAT, RETRAIN, RETRAIN_AGAIN, SILENCE, name_rerun
from infra import HEARTBEAT, PATIENCE, pools
from tasks import params
from tasks.runtime import store
from tasks.runtime.code import save_code

Steps = list[dict[str, dict[str, str]]]  # of Prefect's, by name, with their inputs
TIMEOUT_S = 120
DIED = "prefect.flow-run.Crashed"
BEGAN = {f"prefect.flow-run.{state}" for state in ("Pending", "Running")}
ANY: dict[str, str | list[str]] = {"prefect.resource.id": ["prefect.flow-run.*"]}
AGAIN = (  # a run by hand has no decision, and promotes under its own id: the new one promotes under the same
    "{{ dict(flow_run.parameters, attempt=(flow_run.parameters.attempt or 0) + 1, "
    "decision=flow_run.parameters.decision or 'retrain-' ~ flow_run.id) | tojson }}"
)


def main(
    *,
    kind: pools.Kind | None = None,
    schedules: bool = False,
    no_worker_runs: bool = False,
    code: Literal["checkout", "store"] = "checkout",
) -> None:
    """Put prefect.yaml's deployments, its pool and the automations on the server at PREFECT_API_URL.

    Args:
        kind: Of the pool, instead of prefect.yaml's.
        schedules: Take prefect.yaml's schedules, whatever the server has.
        no_worker_runs: Take each run that the server calls running for dead.
        code: Where a worker finds the code. checkout: in a folder at this one's path. store: it pulls this commit from
            EVERGREEN_STORE.
    """
    pull = pull_steps(Path.cwd()) if code == "store" else None
    with get_client(sync_client=True) as client:
        names = deploy(Path.cwd(), client, kind=kind, schedules=schedules, no_worker_runs=no_worker_runs, pull=pull)
    print(f"deployed: {', '.join(names)}")


def deploy(
    checkout: Path,
    client: SyncPrefectClient,
    *,
    kind: pools.Kind | None = None,
    schedules: bool = False,
    no_worker_runs: bool = False,
    pull: Steps | None = None,
) -> list[str]:
    """Put everything on the server. Returns the deployments' names.

    Args:
        kind: Of the pool. None: prefect.yaml's.
        pull: What a worker does before each run to have the code. None: it goes to a folder at the checkout's path.

    Raises:
        ValueError: the server's pool is of another kind, or its template needs variables that are not set.
        RuntimeError: a deployment is refused; with Prefect's own words.
    """
    pool, plan = pools.read_pool(checkout), yaml.safe_load((checkout / "prefect.yaml").read_text())
    put_pool(client, pool.name, kind or pool.kind)
    plan = plan if pull is None else {**plan, "pull": pull}
    put_deployments(checkout, adapt_plan(plan, read_deployments(plan, client), schedules=schedules))
    put_automations(client, attempts=params.load(checkout / "params.yaml").policy.attempts)
    if no_worker_runs:
        for run in lost.end_all(pool.name, client):
            print(f"{run.name}: {lost.LEFT}")
    return [deployment["name"] for deployment in plan["deployments"]]


def put_pool(client: SyncPrefectClient, name: str, kind: pools.Kind) -> None:
    """Make the pool, or give it the template of this checkout. Raises ValueError for one of another kind."""
    template = pools.read_template(kind)
    try:
        present = client.read_work_pool(name)
    except exceptions.ObjectNotFound:
        client.create_work_pool(actions.WorkPoolCreate(name=name, type=kind, base_job_template=template))
        return
    if present.type != kind:
        raise ValueError(
            f"the server's work pool {name!r} is of the kind {present.type}, not {kind}, and Prefect changes no kind: "
            "give it another name in prefect.yaml, or remove it from the server (prefect work-pool delete)"
        )
    if present.base_job_template != template:
        client.update_work_pool(name, actions.WorkPoolUpdate(base_job_template=template))


def pull_steps(checkout: Path) -> Steps:
    """Bring the checkout's commit to the store of a team; the steps by which a worker takes it from there.

    Raises:
        ValueError: There is no store, or the checkout has edits that are not committed.
    """
    shared = store.find_store()
    if shared is None:
        raise ValueError(f"--code store needs a store that the workers reach: set {store.VARIABLE}.")
    folder = save_code(checkout, shared)
    if isinstance(shared, store.S3Store):
        source = {"bucket": shared.bucket, "folder": f"{shared.prefix}/{folder}".lstrip("/")}
        return [{"prefect_aws.deployments.steps.pull_from_s3": source}]
    directory = f"{shared.address}/{folder}"
    return [{"prefect.deployments.steps.set_working_directory": {"directory": directory}}]


# --- the deployments -----------------------------------------------------------------------------------------------


def read_deployments(plan: Mapping[str, Any], client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """Those of the plan that the server has already, by name."""
    present = {}
    for deployment in plan["deployments"]:
        flow, name = deployment["entrypoint"].rpartition(":")[2], deployment["name"]
        with suppress(exceptions.ObjectNotFound):
            present[name] = client.read_deployment_by_name(f"{flow}/{name}")
    return present


def adapt_plan(
    plan: Mapping[str, Any], present: Mapping[str, DeploymentResponse], *, schedules: bool = False
) -> dict[str, Any]:
    """The plan as it is put: each run with its heartbeat, and what people have set on the server left alone."""
    adapted = []
    for deployment in plan["deployments"]:
        pool = dict(deployment["work_pool"])
        variables = dict(pool.get("job_variables") or {})
        variables["env"] = {**PATIENCE, **(variables.get("env") or {}), **HEARTBEAT}
        new = {**deployment, "work_pool": {**pool, "job_variables": variables}}
        if on_server := present.get(deployment["name"]):
            new["paused"] = on_server.paused
            if not schedules:
                new.pop("schedules", None)
                _tell_of_other_schedules(deployment, on_server)
        adapted.append(new)
    return {**plan, "deployments": adapted}


def _tell_of_other_schedules(deployment: Mapping[str, Any], on_server: DeploymentResponse) -> None:
    planned = sorted((str(line["cron"]), bool(line["active"])) for line in deployment.get("schedules", ()))
    actual = sorted((str(getattr(line.schedule, "cron", line.schedule)), line.active) for line in on_server.schedules)
    if planned != actual:
        print(
            f"{deployment['name']}: the server's schedules stay, {_spell(actual)}; prefect.yaml has {_spell(planned)} "
            "(make deploy SCHEDULES=1 takes those)"
        )


def _spell(schedules: list[tuple[str, bool]]) -> str:
    return ", ".join(f"{cron!r}{'' if active else ' (paused)'}" for cron, active in schedules) or "none"


def put_deployments(checkout: Path, plan: Mapping[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "prefect.yaml"
        path.write_text(yaml.safe_dump(dict(plan), sort_keys=False))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
        done = subprocess.run(
            command, cwd=checkout, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    if done.returncode:
        raise RuntimeError(f"the deployments were refused:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


# --- the automations -----------------------------------------------------------------------------------------------


def put_automations(client: SyncPrefectClient, *, attempts: int) -> None:
    """Put all automations on the server, and remove those of more attempts than policy.attempts allows."""
    first = client.read_deployment_by_name(f"{RETRAIN}/{RETRAIN}").id
    further = client.read_deployment_by_name(f"{RETRAIN}/{RETRAIN_AGAIN}").id
    for automation in (start(first), end_silent(), *(rerun(number, further) for number in range(1, attempts + 2))):
        put_automation(automation, client)
    number = attempts + 2
    while surplus := client.read_automations_by_name(name_rerun(number)):
        for automation in surplus:
            client.delete_automation(automation.id)
        number += 1


def start(deployment: UUID) -> AutomationCore:
    """Start a retrain when the monitor decides on one."""
    parameters = {name: f"{{{{ event.payload.{name} }}}}" for name in ("as_of", "decision", "kind", "reason")}
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
    ended = {f"prefect.flow-run.{state}" for state in ("Crashed", "Completed", runs.SKIPPED, "Failed", "Cancelled")}
    message = f"no heartbeat for {SILENCE.total_seconds():.0f} s"
    return AutomationCore(
        name=lost.END_SILENT,
        description="A run whose heartbeats have stopped is marked Crashed.",
        trigger=EventTrigger(
            after={BEAT, *BEGAN},
            expect={BEAT, *BEGAN, *ended},
            match=ANY,
            # Others on this server may send their heartbeats as they like.
            match_related={"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.evergreen"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[ChangeFlowRunState(state=objects.StateType.CRASHED, message=message)],
    )


def rerun(number: int, deployment: UUID) -> AutomationCore:
    """Run a crashed retrain, or a crashed earlier attempt, again with the same parameters and one attempt more."""
    crashed = RETRAIN if number == 1 else RETRAIN_AGAIN
    related = [{"prefect.resource.role": "deployment", "prefect.resource.name": crashed}]
    if number > 1:
        related.append({"prefect.resource.role": "creator", "prefect.resource.name": name_rerun(number - 1)})
    same = {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": AGAIN}}
    return AutomationCore(
        name=name_rerun(number),
        description="As a new run, with its decision's id: policy.attempts times, and a last one answers the decision.",
        trigger=EventTrigger(
            expect={DIED},
            match={**ANY, "prefect.state-message": f"!{lost.LEFT}"},  # whoever says so has run it again
            match_related=related,
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(minutes=10),  # a worker may report one death twice
        ),
        actions=[RunDeployment(source="selected", deployment_id=deployment, parameters=same)],
    )


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


if __name__ == "__main__":
    cli.run("deploy")
