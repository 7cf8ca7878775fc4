"""A pool's kind is one word; its template takes what every deployment gives, and is what the server then has."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.workers.process import ProcessJobConfiguration
from prefect_aws.workers.ecs_worker import ECSJobConfiguration

from flows import deploy
from infra import HEARTBEAT, pools

ROOT = Path(__file__).parents[2]
PLAN = yaml.safe_load((ROOT / "prefect.yaml").read_text())
ENVIRONMENT = {
    "POOL_CLUSTER": "evergreen",
    "POOL_TASK": "evergreen-run",
    "POOL_SUBNETS": "subnet-1,subnet-2",
    "POOL_GROUPS": "sg-1",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
}
RUN = FlowRun(id=uuid4(), name="bold-owl", flow_id=uuid4())


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:  # noqa: ARG001
    with get_client(sync_client=True) as one:
        yield one


def variables_of(name: str) -> dict[str, Any]:
    adapted = {one["name"]: one for one in deploy.adapt_plan(PLAN, {})["deployments"]}
    return dict(adapted[name]["work_pool"]["job_variables"])


def put_kind(folder: Path, kind: str) -> Path:
    text = (ROOT / "prefect.yaml").read_text()
    assert text.count("kind: process") == 1
    (folder / "prefect.yaml").write_text(text.replace("kind: process", f"kind: {kind}"))
    return folder


def test_the_kind_is_one_word(tmp_path: Path) -> None:
    assert pools.read_pool(ROOT) == pools.Pool("evergreen", "process")
    for kind in pools.KINDS:
        assert pools.read_pool(put_kind(tmp_path, kind)) == pools.Pool("evergreen", kind)


def test_a_kind_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"definitions.kind is 'nomad'; it is one of process, docker, kubernetes, ecs"):
        pools.read_pool(put_kind(tmp_path, "nomad"))


@pytest.mark.parametrize("kind", pools.KINDS)
def test_a_template_has_a_variable_for_all_that_deployments_give(kind: pools.Kind) -> None:
    template = pools.read_template(kind, ENVIRONMENT)
    declared = template["variables"]["properties"]
    assert all("default" in variable and variable["title"] for variable in declared.values())
    given = {key for one in PLAN["deployments"] for key in variables_of(one["name"])}
    assert given - declared.keys() <= {"capacity"}
    assert given == {"cpu", "memory", "env", "capacity"}


def test_a_template_names_the_variables_that_it_lacks() -> None:
    given = {name: value for name, value in ENVIRONMENT.items() if name not in ("POOL_SUBNETS", "POOL_GROUPS")}
    with pytest.raises(ValueError, match=r"kind ecs needs POOL_SUBNETS, POOL_GROUPS .*`evergreen cloud status` prints"):
        pools.read_template("ecs", given)


def test_a_retrain_and_a_replay_get_more_than_a_score() -> None:
    for heavy in ("retrain", "retrain-again", "replay"):
        for resource in ("cpu", "memory"):
            assert variables_of(heavy)[resource] > variables_of("score")[resource]


def test_what_ran_on_spot_is_run_again_elsewhere() -> None:
    template = pools.read_template("ecs", ENVIRONMENT)
    assert template["variables"]["properties"]["capacity"]["default"] == "FARGATE_SPOT"
    assert [one["name"] for one in PLAN["deployments"] if "capacity" in variables_of(one["name"])] == ["retrain-again"]
    assert variables_of("retrain-again")["capacity"] == "FARGATE"


@pytest.mark.parametrize("name", [one["name"] for one in PLAN["deployments"]])
def test_fargate_has_what_a_deployment_asks_for(name: str) -> None:
    """https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task_definition_parameters.html#task_size"""
    sizes = {1024: (2, 8), 2048: (4, 16), 4096: (8, 30), 8192: (16, 60), 16384: (32, 120)}
    variables = variables_of(name)
    low, high = sizes[variables["cpu"]]
    assert low * 1024 <= variables["memory"] <= high * 1024
    assert variables["memory"] % (1024 * {8192: 4, 16384: 8}.get(variables["cpu"], 1)) == 0


@pytest.mark.parametrize(("kind", "model"), [("process", ProcessJobConfiguration), ("ecs", ECSJobConfiguration)])
def test_a_worker_knows_every_line_of_its_template(
    client: SyncPrefectClient,  # noqa: ARG001
    kind: pools.Kind,
    model: Any,
) -> None:
    template = pools.read_template(kind, ENVIRONMENT)
    assert template["job_configuration"].keys() <= model.model_fields.keys()
    for deployment in PLAN["deployments"]:
        made = asyncio.run(model.from_template_and_values(template, variables_of(deployment["name"])))
        made.prepare_for_flow_run(RUN)
        assert made.command.endswith("prefect flow-run execute" if kind == "ecs" else "-m prefect.engine")
        assert HEARTBEAT.items() <= made.env.items()


def test_a_deploy_makes_the_pool_and_brings_it_to_its_template(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    deploy.put_pool(client, "made-ecs", "ecs")
    made = client.read_work_pool("made-ecs")
    assert (made.type, made.base_job_template) == ("ecs", pools.read_template("ecs", ENVIRONMENT))
    monkeypatch.setenv("POOL_GROUPS", "sg-2")
    deploy.put_pool(client, "made-ecs", "ecs")
    changed = client.read_work_pool("made-ecs").base_job_template["variables"]["properties"]
    assert changed["security_groups"]["default"] == ["sg-2"]


def test_a_pool_of_another_kind_is_left_alone_and_named(client: SyncPrefectClient) -> None:
    client.create_work_pool(WorkPoolCreate(name="theirs", type="kubernetes"))
    with pytest.raises(ValueError, match="work pool 'theirs' is of the kind kubernetes, not process"):
        deploy.put_pool(client, "theirs", "process")
    assert client.read_work_pool("theirs").base_job_template == {}
