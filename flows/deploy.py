"""deploy: prefect.yaml's deployments and the automations, onto the server at PREFECT_API_URL.

    python -m flows.deploy

`make deploy` and `make up` run it; as often as you like. What a person has paused or edited on the server stays: a
deployment that is there keeps its schedules, and an automation that is off stays off. `--schedules` puts the schedules
of prefect.yaml in their place.
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from flows import automations, cli
from infra import HEARTBEAT, PATIENCE
from infra.servers import read_pool
from tasks import params

TIMEOUT_S = 120


def deploy(checkout: Path, client: SyncPrefectClient, *, schedules: bool = False, no_worker_runs: bool = False) -> None:
    """Put everything on the server. Raises RuntimeError with Prefect's own words where a deployment is refused."""
    pool = read_pool(checkout)
    make_pool(pool, client)
    plan = yaml.safe_load((checkout / "prefect.yaml").read_text())
    present = read_deployments(plan, client)
    put_deployments(checkout, adapt_plan(plan, present, schedules=schedules))
    automations.put_automations(client, attempts=params.load(checkout / "params.yaml").policy.attempts)
    if no_worker_runs:
        for run in automations.rerun_left_behind(pool, client):
            print(f"{run.name}: {automations.LEFT}")


def make_pool(name: str, client: SyncPrefectClient) -> None:
    """Of processes, unless somebody has made it otherwise."""
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))


def read_deployments(plan: Mapping[str, Any], client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """Those of the plan that the server has already, by name."""
    present = {}
    for deployment in plan["deployments"]:
        flow = deployment["entrypoint"].rpartition(":")[2]
        try:
            present[deployment["name"]] = client.read_deployment_by_name(f"{flow}/{deployment['name']}")
        except ObjectNotFound:
            continue
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


def main(*, schedules: bool = False, no_worker_runs: bool = False) -> None:
    """Put prefect.yaml's deployments and the automations on the server at PREFECT_API_URL.

    Args:
        schedules: Take prefect.yaml's schedules, whatever the server has.
        no_worker_runs: Take each run that the server calls running for dead.
    """
    with get_client(sync_client=True) as client:
        deploy(Path.cwd(), client, schedules=schedules, no_worker_runs=no_worker_runs)
    print(f"deployed: {', '.join(read_names(Path.cwd()))}")


def read_names(checkout: Path) -> list[str]:
    return [deployment["name"] for deployment in yaml.safe_load((checkout / "prefect.yaml").read_text())["deployments"]]


if __name__ == "__main__":
    cli.run("deploy")
