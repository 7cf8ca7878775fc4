"""The loop end to end, with a server and a worker: a quiet stream starts nothing, a shift gets a new champion."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Paused

from tasks import params
from tasks.promotion import registry
from tasks.serving import journal
from tests.conftest import raw_params, write_sources
from tests.flows.conftest import commit, make_checkout
from tests.flows.station import Station, program, station, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]  # minutes, on real servers: with the other long ones

FIRST = datetime(2024, 3, 1)
SHIFT = datetime(2024, 3, 10)
QUIET, LOUD = SHIFT - timedelta(days=1), SHIFT + timedelta(days=24)  # so late that a model of the new rule is possible
DAYS = 100


@dataclass(frozen=True)
class Story:
    """A first champion; a tick of score and monitor while all is well; a tick after the outcomes have turned."""

    first: FlowRun
    waited: list[FlowRun]  # what had been asked for after the quiet tick
    retrained: FlowRun
    known: registry.Registry
    kept: journal.Journal


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    folder = tmp_path_factory.mktemp("loop")
    made(folder)
    with station(folder) as one:
        yield one


def made(folder: Path) -> None:
    """A checkout whose outcomes turn round on the day of the shift."""
    raw = raw_params("binary", DAYS)
    raw["clock"]["as_of"] = FIRST.isoformat()
    raw["split"] |= {"holdout": "7d", "fold": "4d", "window": "14d"}
    raw["tune"] |= {"trials": 2, "rounds": 40}
    raw["train"]["seeds"] = 1
    raw["evaluate"]["baselines"] = ["constant"]
    raw["gate"] |= {"min_rows": 200, "min_blocks": 5, "max_calibration_error": 0.3, "slice_tolerance": 0.5}
    raw["monitor"] = {"window": "6d"}
    raw["policy"] = {"signals": ["performance"], "windows": 1, "min_rows": 50, "cool_down": "5d"}
    make_checkout(folder, raw)
    write_sources(folder / "source", days=DAYS, per_day=80, seed=3)
    orders = folder / "source" / "orders.csv"
    orders.write_text(turned(orders.read_text()))
    place_deployments(folder)
    commit(folder, "with a shift")


def place_deployments(folder: Path) -> None:
    """This project's, with schedules that do not come due while a test runs."""
    text = (Path(__file__).parents[2] / "prefect.yaml").read_text()
    later = (datetime.now(UTC) + timedelta(hours=12)).hour
    assert text.count(" * * * *") == 2
    (folder / "prefect.yaml").write_text(text.replace(" * * * *", f" {later} * * *"))


def turned(text: str) -> str:
    """From the shift on, what was late is early and what was early is late."""
    head, *lines = text.splitlines()
    return "\n".join([head, *map(_turned, lines)]) + "\n"


def _turned(line: str) -> str:
    rest, _, delay = line.rpartition(",")
    if delay == "NA" or datetime.fromisoformat(line.split(",")[1]) < SHIFT:
        return line
    return f"{rest},{0 if int(delay) >= 30 else 60}"


@pytest.fixture(scope="module")
def story(here: Station) -> Story:
    first = approved(here, here.ask("retrain", reason="the first", settings={"gate.approval": "required"}))
    tick(here, QUIET)
    waited = here.runs("retrain")
    tick(here, LOUD)
    (wanted,) = until(lambda: here.runs("retrain")[1:], 30, here.worker.log)
    retrained = here.completed(wanted)
    p = params.load(here.folder / "params.yaml")
    known = registry.open_registry(p.registry, uri=f"sqlite:///{here.home / 'mlflow.db'}")
    return Story(first, waited, retrained, known, journal.open_journal(p.journal, home=here.home))


def approved(here: Station, run: FlowRun) -> FlowRun:
    """A run that waits for a person, and then is approved."""
    until(lambda: (now := here.client.read_flow_run(run.id)).state and now.state.is_paused(), 180, here.worker.log)
    here.client.resume_flow_run(run.id, run_input={"approve": True, "note": "Ann"})
    return here.completed(run)


def tick(here: Station, as_of: datetime) -> None:
    for name in ("score", "monitor"):
        here.run(name, as_of=as_of.isoformat())


def test_a_retrain_that_waited_for_a_person_promotes(story: Story, here: Station) -> None:
    champion = story.known.read_version(1)
    deployment = here.client.read_deployment_by_name("retrain/retrain")
    assert deployment.global_concurrency_limit is None  # it would end a run that pauses
    assert "A person approved it: Ann." in " ".join(story.known.read_ledger()[0].reasons)
    assert champion.as_of == FIRST


def test_while_all_is_well_nothing_happens(story: Story) -> None:
    assert [run.id for run in story.waited] == [story.first.id]
    assert [row["action"] for row in decisions(story, QUIET)] == ["wait"]


def test_a_shift_starts_one_retrain_with_the_decisions_id_and_time(story: Story, here: Station) -> None:
    (decided,) = decisions(story, LOUD)
    assert decided["action"] == "retrain"
    assert story.retrained.parameters["decision"] == decided["id"]
    assert datetime.fromisoformat(story.retrained.parameters["as_of"]) == LOUD
    assert len(here.runs("retrain")) == 2


def test_the_verdict_answers_the_decision_and_the_new_champion_serves(story: Story) -> None:
    (decided,) = decisions(story, LOUD)
    answers = [entry for entry in story.known.read_ledger() if entry.decision == decided["id"]]
    assert [entry.mark for entry in answers] == ["intent", "alias moved", "done"], answers[0].reasons
    champion = story.known.find_champion()
    assert champion
    assert (champion.number, champion.as_of, champion.decision) == (2, LOUD, decided["id"])


def decisions(story: Story, as_of: datetime) -> list[dict[str, object]]:
    return [row for row in story.kept.read("decisions").to_pylist() if row["as_of"] == as_of]


def test_a_schedule_puts_runs_on_the_servers_list(here: Station) -> None:
    waiting = until(lambda: {run.name: run for run in scheduled(here)}, 60)
    flows = {str(here.client.read_flow(run.flow_id).name) for run in waiting.values()}
    assert flows == {"score", "monitor"}


def scheduled(here: Station) -> list[FlowRun]:
    return [run for run in here.client.read_flow_runs(limit=50) if run.auto_scheduled]


def test_deploying_again_changes_nothing(here: Station) -> None:
    before = placed(here)
    program(here.folder, here.env, "-m", "flows.deploy")
    assert placed(here) == before


def placed(here: Station) -> list[str]:
    automations = here.client.read_automations()
    return sorted(
        [automation.name for automation in automations]
        + [str(deployment.id) for deployment in here.client.read_deployments()]
    )


def test_a_retrain_that_was_left_behind_runs_again_once_and_one_attempt_too_many_fails(
    here: Station, story: Story
) -> None:
    most = params.load(here.folder / "params.yaml").policy.attempts
    before = len(here.runs("retrain"))
    deployment = here.client.read_deployment_by_name("retrain/retrain")
    known = {"attempt": most, "decision": "left", "as_of": FIRST.isoformat()}
    run = here.client.create_flow_run_from_deployment(deployment.id, parameters=known, state=Paused())
    program(here.folder, here.env, "-m", "flows.deploy", "--no-worker-runs")
    assert here.ended(run).state_name == "Crashed"
    last = here.ended(here.runs("retrain")[-1])
    assert last.parameters == known | {"attempt": most + 1}
    assert last.state_name == "Failed"
    assert "`attempt <= policy.attempts` must hold" in str(last.state and last.state.message)
    assert len(here.runs("retrain")) == before + 2
    (answer,) = (line for line in story.known.read_ledger() if line.decision == "left")
    assert (answer.mark, answer.outcome) == ("verdict", "HOLD")
    assert "has crashed" in answer.reasons[0]
