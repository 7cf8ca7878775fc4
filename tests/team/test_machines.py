"""Machines that share nothing but addresses: what one made another goes on with, whichever of them is lost."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
from httpx import Client
from prefect.client.schemas.objects import FlowRun

from tests.faults.test_worker_faults import hear_silence, marks, next_of
from tests.flows.station import until
from tests.flows.test_loop import FIRST
from tests.team.ground import Ground, Machine, count_arrived, ground

pytestmark = [pytest.mark.team, pytest.mark.faults, pytest.mark.timeout(600)]
WEEK = timedelta(days=7)


@dataclass(frozen=True)
class Team:
    """A champion that the first machine made, and a week that the second predicted."""

    ground: Ground
    first: Machine
    second: Machine
    retrained: FlowRun
    scored: FlowRun


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    with ground() as it:
        first, second = it.add_machine("first"), it.add_machine("second")
        with it.working(first), it.station(first) as station:
            retrained = station.run("retrain", reason="the first")
        with it.working(second), it.station(second) as station:
            scored = station.run("score", as_of=(FIRST + WEEK).isoformat())
        yield Team(it, first, second, retrained, scored)


def test_what_one_machine_trained_another_scores(team: Team) -> None:
    champion = team.ground.open_registry().find_champion()
    assert champion
    assert champion.number == 1
    predictions = team.ground.read_journal("predictions")
    entries = [row["entry"] for row in predictions]
    assert len(entries) == len(set(entries)) == count_arrived(team.ground, FIRST + WEEK)
    assert {row["version"] for row in predictions} == {1}


def test_a_third_machine_answers_and_what_it_acknowledged_outlives_it(team: Team) -> None:
    machine, acknowledged = team.ground.add_machine("api"), []
    with team.ground.api(machine) as (running, address), Client(timeout=60) as client:
        for amount in range(20):
            rows = [{"store": "south", "amount": float(amount)}]
            answer = client.post(f"{address}/v1/predict/features", json={"rows": rows})
            assert answer.status_code == 200, running.log.read_text()
            acknowledged += [one["id"] for one in answer.json()["predictions"]]
        running.process.kill()
    machine.lose()
    made = [row["entry"] for row in team.ground.read_journal("predictions")]
    assert len(set(acknowledged)) == 20
    assert set(acknowledged) <= set(made)
    assert len(made) == len(set(made))


def test_a_retrain_whose_machine_is_lost_is_finished_by_another(team: Team) -> None:
    lost = team.ground.add_machine("lost")
    with team.ground.working(lost):
        with team.ground.station(lost) as station:
            run = station.ask("retrain", as_of=(FIRST + WEEK).isoformat(), decision="lost")
            until(lambda: "Finished in state Completed" in lost.read_log(), 180, station.worker.log)  # of a first stage
        lost.lose()
        with team.ground.working(team.second), team.ground.station(team.second) as station:
            hear_silence(station, run)
            assert station.ended(run).state_name == "Crashed"
            again = next_of(station, run)
            assert station.ended(again).state_name == "Completed"
    assert again.parameters["decision"] == "lost"
    known = team.ground.open_registry()
    assert [mark for mark in marks(known, "lost") if mark in ("verdict", "intent")] in (["verdict"], ["intent"])


def test_two_retrains_on_two_machines_take_turns(team: Team) -> None:
    later = [(FIRST + timedelta(days=days)).isoformat() for days in (8, 9)]
    with team.ground.working(team.first, team.second), team.ground.station(team.first) as station:
        runs = [station.ask("retrain", as_of=as_of) for as_of in later]
        for run in runs:
            station.completed(run)
        logs = [team.first.read_log(), team.second.read_log()]
    assert [sum(run.name in log or str(run.id) in log for run in runs) for log in logs] == [1, 1]
    assert sum("another run is under way" in log for log in logs) == 1
