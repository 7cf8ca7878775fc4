"""What a receiver of OpenLineage gets of the stages of a run, by real flows and a real receiver."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from flows.stages import make_features
from tasks.runtime import openlineage
from tasks.runtime.pipeline import StageFailed
from tests.flows.conftest import Project
from tests.tasks.runtime.test_openlineage import check_event, receive


@pytest.fixture
def events(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:  # noqa: ARG001
    with receive() as (address, received, _):
        monkeypatch.setenv(openlineage.URL, address)
        yield received


@flow
def build() -> None:
    with make_features({}, force=False):
        pass


def test_each_stage_tells_what_it_reads_and_makes_down_to_the_columns(project: Project, events: list[Any]) -> None:
    build()
    for event in events:
        check_event(event)
    assert [(event["job"]["name"], event["eventType"]) for event in events] == [
        (f"made.{stage}", kind) for stage in ("ingest", "clean", "features") for kind in ("START", "COMPLETE")
    ]
    assert {event["run"]["facets"]["parent"]["job"]["name"] for event in events} == {"made.build"}
    ends = {event["job"]["name"]: event for event in events if event["eventType"] == "COMPLETE"}
    sources = {(one["namespace"], one["name"]) for one in ends["made.ingest"]["inputs"]}
    assert ("file", str(project.folder / "source" / "orders.csv")) in sources
    made = {one["name"]: one["facets"] for one in ends["made.clean"]["outputs"]}
    assert {"name": "delay", "type": "INTEGER"} in made["made.clean.orders"]["schema"]["fields"]
    assert {one["name"] for one in ends["made.features"]["inputs"]} == {
        f"made.clean.{name}" for name in project.raw["sources"]
    }
    (features,) = ends["made.features"]["outputs"]
    columns = features["facets"]["columnLineage"]["fields"]
    assert columns["segment"]["inputFields"] == [
        {"namespace": "evergreen", "name": "made.clean.customers", "field": "segment"}
    ]
    assert "delay" in {one["field"] for one in columns["store_delay_1d"]["inputFields"]}


def test_a_stage_that_fails_tells_why(project: Project, events: list[Any]) -> None:
    source = project.folder / "source" / "customers.csv"
    source.rename(source.with_suffix(".away"))
    try:
        with pytest.raises(StageFailed):
            build()
    finally:
        source.with_suffix(".away").rename(source)
    assert [event["eventType"] for event in events] == ["START", "FAIL"]
    message = events[1]["run"]["facets"]["errorMessage"]["message"]
    assert Path("source", "customers.csv").as_posix() in message
