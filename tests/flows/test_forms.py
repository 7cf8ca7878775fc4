"""What the Prefect UI asks a person for: each deployment's form has its help, and leaves out what machines fill in."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect import Flow, flow
from prefect.automations import RunDeployment
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate

from flows import deploy
from flows.forms import hide_from_form

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
FOR_MACHINES = {
    "retrain": {"decision", "attempt"},
    "retrain-again": {"decision", "attempt"},
    "rollback": {"champion", "decision"},
}

each_deployment = pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])


def load_flow(deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Flow[..., Any]:
    monkeypatch.chdir(ROOT)
    return load_flow_from_entrypoint(deployment["entrypoint"])


@each_deployment
def test_every_field_of_a_form_has_its_help(deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    form = parameter_schema(load_flow(deployment, monkeypatch))
    assert form.properties
    assert [name for name, field in form.properties.items() if not field.get("description")] == []


@each_deployment
def test_a_form_asks_for_what_people_choose_and_for_nothing_else(
    deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_people = load_flow(deployment, monkeypatch)
    parameters = set(of_people.fn.__annotations__) - {"return"}
    hidden = FOR_MACHINES.get(deployment["name"], set())
    assert set(parameter_schema(of_people).properties) == parameters - hidden
    assert hidden <= parameters


def test_what_a_trigger_passes_is_accepted_by_the_servers_schema_and_by_the_flow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (retrain,) = (deployment for deployment in DEPLOYMENTS if deployment["name"] == "retrain")
    (action,) = deploy.start(uuid4()).actions
    assert isinstance(action, RunDeployment)
    assert action.parameters
    of_people = load_flow(retrain, monkeypatch)
    passed = {**dict.fromkeys(action.parameters, "7"), "kind": "refresh", "as_of": "2024-03-01T00:00:00Z", "attempt": 1}
    validate(passed, parameter_schema(of_people).model_dump(), raise_on_error=True)
    assert of_people.validate_parameters(passed)["decision"] == "7"


def test_a_limit_of_a_field_is_in_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    (retrain,) = (deployment for deployment in DEPLOYMENTS if deployment["name"] == "retrain")
    form = parameter_schema(load_flow(retrain, monkeypatch))
    assert form.properties["trials"]["anyOf"][0] == {"minimum": 1, "type": "integer"}


def test_hiding_a_parameter_that_is_not_there_is_refused() -> None:
    @flow
    def count(to: int = 1) -> int:
        return to

    with pytest.raises(ValueError, match="no parameter \\['up_to'\\] to hide"):
        hide_from_form("up_to")(count)
