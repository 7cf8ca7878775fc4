"""An ECS pool from end to end: what the worker of the stack asks ECS for, that it runs, and what follows when it ends.

AWS is simulated (tests/simulator.py), Prefect and PostgreSQL are real. Containers are played here: the definition's own
command, environment and secrets, as a process in the checkout. Only addresses are led elsewhere, those of servers that
the simulated AWS has no machines for.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.ecs.models import ecs_backends
from moto.ecs.responses import EC2ContainerServiceResponse
from moto.moto_api import state_manager
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun

from infra import postgres, servers
from infra.aws import cloud
from tests.conftest import KEY
from tests.faults.conftest import Server
from tests.flows.conftest import ROOT, commit, make_checkout, project_params
from tests.flows.conftest import made_once as made_once
from tests.flows.station import until
from tests.infra.conftest import read_outputs
from tests.simulator import ACCOUNT, REGION, make_network, run_aws

pytestmark = pytest.mark.faults
NAME = "evergreen"
DEPLOYMENTS = {one["name"]: one for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}


@dataclass
class Ecs:
    """The stack, its worker under way, and each request of it to run a task."""

    folder: Path
    outputs: Mapping[str, str]
    addresses: Mapping[str, str]
    client: SyncPrefectClient
    asked: list[dict[str, Any]] = field(default_factory=list)
    worker: servers.Running | None = None

    def start(self, name: str, **parameters: Any) -> FlowRun:
        deployment = self.client.read_deployment_by_name(f"{name}/{name}")
        return self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    def request(self, name: str, *, run: FlowRun | None = None) -> dict[str, Any]:
        """The worker's request for a run, or for the first of a deployment, once it has come."""
        assert self.worker
        return until(lambda: next(self.requests(name, run), None), 90, self.worker.log)

    def requests(self, name: str, run: FlowRun | None) -> Iterator[dict[str, Any]]:
        for request in self.asked:
            tags = tags_of(request)
            if (tags["prefect.io/deployment-name"] == name and run is None) or tags["prefect.io/flow-run-id"] == str(
                run and run.id
            ):
                yield request

    def state(self, run: FlowRun) -> str | None:
        return self.client.read_flow_run(run.id).state_name

    def play(self, container: Mapping[str, Any], override: Mapping[str, Any]) -> "subprocess.CompletedProcess[str]":
        """Run a container as ECS would: its entry point, its command, its environment, its secrets."""
        words = [*container.get("entryPoint", ()), *override.get("command", container.get("command", ()))]
        assert words[:2] == ["tini", "--"]
        program, *arguments = words[2:]
        found = {"python": sys.executable, "prefect": str(Path(sys.executable).parent / "prefect")}[program]
        return subprocess.run(
            [found, *arguments],
            cwd=self.folder,
            env=self.environment(container, override),
            capture_output=True,
            text=True,
            timeout=400,
        )

    def environment(self, container: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, str]:
        image = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DO_NOT_TRACK": "true"}
        aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        given = [*container.get("environment", ()), *override.get("environment", ())]
        plain = {line["name"]: line["value"] for line in given}
        client = boto3.client("secretsmanager")
        secret = {
            line["name"]: client.get_secret_value(SecretId=line["valueFrom"])["SecretString"]
            for line in container.get("secrets", ())
        }
        named = {**plain, **secret}
        return {
            **image,
            **aws,
            **named,
            **{name: self.addresses[name] for name in named.keys() & self.addresses.keys()},
        }


def tags_of(request: Mapping[str, Any]) -> dict[str, str]:
    return {line["key"]: line["value"] for line in request["tags"]}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, made_once: Path) -> Path:
    """A made project whose pool is of the kind ecs, as its image would have it."""
    folder = tmp_path_factory.mktemp("image")
    make_checkout(folder, project_params())
    (folder / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text().replace("kind: process", "kind: ecs"))
    commit(folder, "ecs")
    shutil.copytree(made_once / "checkout" / ".dvc" / "cache", folder / ".dvc" / "cache")
    return folder


@pytest.fixture(scope="module")
def ecs(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, postgres_server: postgres.Server, server: Server
) -> Iterator[Ecs]:
    base = tmp_path_factory.mktemp("ecs")
    port = servers.free_port()
    api = f"http://{servers.HOST}:{port}/api"
    quiet = {**os.environ, **servers.QUIET, **servers.TUNED, "PREFECT_HOME": str(base / "prefect")}
    prefect = servers.start(servers.prefect(port, quiet), base / "logs")
    try:
        servers.wait(prefect)
        with run_aws(), SyncPrefectClient(api) as client, pytest.MonkeyPatch.context() as patch:
            vpc, subnets = make_network()
            cloud.up(name=NAME, vpc=vpc, subnets=tuple(subnets), budget_email="a@b.c", image_tag="4b62e5d")
            outputs = read_outputs(NAME)
            boto3.client("secretsmanager").put_secret_value(SecretId=outputs["PiiKeySecret"], SecretString=KEY)
            addresses = {
                "PREFECT_API_URL": api,
                "MLFLOW_TRACKING_URI": server.uri,
                "EVERGREEN_LOCKS": postgres_server.url("evergreen"),
                "EVERGREEN_HOME": str(base / "home"),  # the container's own disk
            }
            one = Ecs(checkout, outputs, addresses, client)
            original = EC2ContainerServiceResponse.run_task

            def record(self: EC2ContainerServiceResponse) -> str:
                one.asked.append(json.loads(self.body))
                return original(self)

            patch.setattr(EC2ContainerServiceResponse, "run_task", record)
            state_manager.set_transition("ecs::task", {"progression": "manual", "times": 1_000_000})  # RUNNING stays
            deploy, worker = containers(f"{NAME}-worker")
            done = one.play(deploy, {})
            assert done.returncode == 0, done.stdout + done.stderr
            for name in ("score", "monitor"):  # whose hour may come
                client.pause_deployment(client.read_deployment_by_name(f"{name}/{name}").id)
            one.worker = start_worker(one, worker, base)
            yield one
            servers.stop(one.worker)
            state_manager.unset_transition("ecs::task")
    finally:
        servers.stop(prefect)


def containers(family: str) -> list[dict[str, Any]]:
    definition = boto3.client("ecs").describe_task_definition(taskDefinition=family)["taskDefinition"]
    return list(definition["containerDefinitions"])


def start_worker(ecs: Ecs, container: Mapping[str, Any], base: Path) -> servers.Running:
    tini, dashes, python, *arguments = [*container["entryPoint"], *container["command"]]
    assert (tini, dashes, python) == ("tini", "--", "python")
    own = {"PREFECT_WORKER_WEBSERVER_PORT": str(servers.free_port()), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    env = {**ecs.environment(container, {}), **own, "PREFECT_HOME": str(base / "worker")}
    return servers.start(servers.Part("worker", arguments, lambda: True, env), base / "logs")


@pytest.fixture(scope="module")
def retrain(ecs: Ecs) -> tuple[FlowRun, dict[str, Any]]:
    """The first run of the deployment, and what was asked for it."""
    run = ecs.start("retrain", decision="first", reason="the first", as_of="2024-03-01T00:00:00")
    return run, ecs.request("retrain", run=run)


def test_the_worker_asks_for_the_definition_the_resources_and_spot(
    ecs: Ecs, retrain: tuple[FlowRun, dict[str, Any]]
) -> None:
    run, request = retrain
    assert request["cluster"] == ecs.outputs["Cluster"]
    assert request["taskDefinition"] == f"{NAME}-run"
    variables = DEPLOYMENTS["retrain"]["work_pool"]["job_variables"]
    overrides = request["overrides"]
    assert (overrides["cpu"], overrides["memory"]) == (str(variables["cpu"]), str(variables["memory"]))
    assert request["capacityProviderStrategy"] == [{"capacityProvider": "FARGATE_SPOT", "weight": 1}]
    assert "launchType" not in request
    network = request["networkConfiguration"]["awsvpcConfiguration"]
    assert network["assignPublicIp"] == "DISABLED"
    assert network["securityGroups"] == [ecs.outputs["RunGroupId"]]
    assert len(network["subnets"]) == 2
    tags = tags_of(request)
    assert (tags["prefect.io/flow-run-id"], tags["prefect.io/deployment-name"]) == (str(run.id), "retrain")
    assert (request["propagateTags"], request["enableECSManagedTags"]) == ("TASK_DEFINITION", True)


def test_what_it_asks_for_has_no_roles_and_no_secrets_of_its_own(
    ecs: Ecs, retrain: tuple[FlowRun, dict[str, Any]]
) -> None:
    """Roles and secrets are the definition's: a run can ask for no others, and no value passes Prefect."""
    _, request = retrain
    assert {"taskRoleArn", "executionRoleArn"} & request["overrides"].keys() == set()
    (override,) = request["overrides"]["containerOverrides"]
    names = {line["name"] for line in override["environment"]}
    assert {"PREFECT__FLOW_RUN_ID", "PREFECT_API_URL", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"} <= names
    secrets = [boto3.client("secretsmanager").get_secret_value(SecretId=ecs.outputs[one])["SecretString"]
               for one in ("PiiKeySecret", "LocksSecret", "LocksPasswordSecret")]  # fmt: skip
    assert [one for one in secrets if one in json.dumps(request)] == []
    definition = boto3.client("ecs").describe_task_definition(taskDefinition=f"{NAME}-run")["taskDefinition"]
    assert definition["taskRoleArn"] == ecs.outputs["RunRole"]
    assert definition["executionRoleArn"] == ecs.outputs["RunStartRole"]
    (container,) = definition["containerDefinitions"]
    assert {line["name"]: line["valueFrom"] for line in container["secrets"]} == {
        "EVERGREEN_PII_KEY": ecs.outputs["PiiKeySecret"],
        "EVERGREEN_LOCKS": ecs.outputs["LocksSecret"],
    }


def test_that_very_command_finishes_the_retrain(ecs: Ecs, retrain: tuple[FlowRun, dict[str, Any]]) -> None:
    run, request = retrain
    (container,) = containers(f"{NAME}-run")
    (override,) = request["overrides"]["containerOverrides"]
    done = ecs.play(container, override)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert ecs.state(run) == "Completed", done.stderr[-3000:]
    keys = boto3.client("s3").list_objects_v2(Bucket=ecs.outputs["SharedBucket"])["Contents"]
    assert keys
    assert all(one["Key"].startswith("evergreen/") for one in keys)
    stop_tasks(0)
    assert ecs.worker
    log = ecs.worker.log
    until(lambda: "Container 'prefect' exited successfully" in log.read_text() or None, 60, log)
    assert ecs.state(run) == "Completed"


def test_a_task_that_is_taken_away_ends_as_crashed_and_is_run_again_without_spot(
    ecs: Ecs, retrain: tuple[FlowRun, dict[str, Any]]
) -> None:
    assert retrain
    run = ecs.start("retrain", decision="second", reason="again", as_of="2024-03-01T00:00:00")
    ecs.request("retrain", run=run)
    assert ecs.worker
    stop_tasks(143)
    until(lambda: ecs.state(run) == "Crashed" or None, 60, ecs.worker.log)
    state = ecs.client.read_flow_run(run.id).state
    assert state
    assert "status code 143" in str(state.message)
    again = ecs.request("retrain-again")
    assert again["capacityProviderStrategy"] == [{"capacityProvider": "FARGATE", "weight": 1}]
    (override,) = again["overrides"]["containerOverrides"]
    number = next(line["value"] for line in override["environment"] if line["name"] == "PREFECT__FLOW_RUN_ID")
    parameters = ecs.client.read_flow_run(number).parameters  # type: ignore[arg-type]
    assert (parameters["decision"], parameters["attempt"]) == ("second", 1)


def stop_tasks(status: int) -> None:
    """What ECS says of the tasks when their containers have ended with this exit status, 143 after Spot's SIGTERM."""
    client = boto3.client("ecs")
    for task in ecs_backends[ACCOUNT][REGION].tasks[NAME].values():
        for container in task.containers:
            container.exitCode = status
    for arn in client.list_tasks(cluster=NAME)["taskArns"]:
        client.stop_task(cluster=NAME, task=arn, reason="Your Spot Task was interrupted.")
