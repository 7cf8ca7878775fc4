"""The templates of docker and kubernetes pools, by Prefect's own workers of these kinds and by Kubernetes' schema.

    make check-cloud

Those workers are not in the project's environment, so this is a program in an environment of its own, and no test. No
container is started: what the workers would ask of Docker and of Kubernetes is made and checked.
"""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import docker.models.containers
import kubernetes_validate
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect_docker.worker import DockerWorker
from prefect_kubernetes.worker import KubernetesWorker

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from infra import pools  # noqa: E402

NOBODY = "http://127.0.0.1:9/api"  # nothing is asked of Prefect
ENGINE: Any = SimpleNamespace(version=lambda: {"Version": "28.5.1"})  # all that is asked of Docker
KUBERNETES = ("1.30", "1.37")
ENVIRONMENT = {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def configure(worker: Any, deployment: dict[str, Any]) -> Any:
    """What a worker makes of the template for a run of a deployment."""
    variables = {**deployment["work_pool"].get("job_variables", {}), "env": {"PREFECT_CLIENT_MAX_RETRIES": "7"}}
    template = pools.read_template(worker.type, ENVIRONMENT)
    client = PrefectClient(NOBODY)
    made = asyncio.run(worker.job_configuration.from_template_and_values(template, variables, client=client))
    made.prepare_for_flow_run(FlowRun(id=uuid4(), name="bold-owl", flow_id=uuid4()))
    return made


def check_docker(deployment: dict[str, Any]) -> None:
    made, variables = configure(DockerWorker, deployment), deployment["work_pool"]["job_variables"]
    worker = DockerWorker.__new__(DockerWorker)
    settings = worker._build_container_settings(ENGINE, made)
    taken = set(docker.models.containers.RUN_CREATE_KWARGS) | set(docker.models.containers.RUN_HOST_CONFIG_KWARGS)
    taken |= {"image", "network", "network_mode", "volumes", "ports"}
    assert settings.keys() <= taken, settings.keys() - taken
    assert settings["entrypoint"] == ["tini", "--"]
    assert settings["command"] == "prefect flow-run execute"
    assert settings["mem_limit"] == settings["memswap_limit"] == f"{variables['memory']}m"
    assert settings["cpu_shares"] == variables["cpu"]
    assert settings["environment"]["MLFLOW_TRACKING_URI"] == ENVIRONMENT["MLFLOW_TRACKING_URI"]
    assert settings["environment"]["PREFECT__FLOW_RUN_ID"]
    assert settings["volumes"] == ["evergreen:/var/lib/evergreen"]


def check_kubernetes(deployment: dict[str, Any]) -> None:
    made, variables = configure(KubernetesWorker, deployment), deployment["work_pool"]["job_variables"]
    for name in ("parallelism", "completions"):  # the worker wants them in a place that Kubernetes drops them from
        del made.job_manifest["spec"]["template"]["spec"][name]
    for version in KUBERNETES:
        kubernetes_validate.validate(made.job_manifest, version, strict=True)
    assert made.job_manifest["spec"]["backoffLimit"] == 0
    (container,) = made.job_manifest["spec"]["template"]["spec"]["containers"]
    assert (container["command"], container["args"]) == (["tini", "--"], ["prefect", "flow-run", "execute"])
    assert container["resources"]["requests"] == {"cpu": f"{variables['cpu']}m", "memory": f"{variables['memory']}Mi"}
    assert {"PREFECT__FLOW_RUN_ID", "PREFECT_CLIENT_MAX_RETRIES"} <= {line["name"] for line in container["env"]}
    assert container["envFrom"] == [{"secretRef": {"name": "evergreen"}}]


def check_template(worker: Any) -> None:
    """Every property of the configuration is one that the worker knows; it would drop others without a word."""
    given = pools.read_template(worker.type, ENVIRONMENT)["job_configuration"].keys()
    known = worker.job_configuration.model_fields.keys()
    assert given <= known, given - known


def main() -> None:
    for worker, check in ((DockerWorker, check_docker), (KubernetesWorker, check_kubernetes)):
        check_template(worker)
        for deployment in DEPLOYMENTS:
            check(deployment)
        print(f"{worker.type}: {len(DEPLOYMENTS)} deployments")


if __name__ == "__main__":
    main()
