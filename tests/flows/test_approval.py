"""Approval on a real Prefect server: a run pauses with its verdict until a person decides, or time runs out."""

import threading
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import ArtifactSort
from prefect.flow_runs import resume_flow_run
from prefect.runtime import flow_run

from flows import people, retrain
from flows.retrain import Recorded, Retrained
from tasks import params
from tasks.promotion import ledger, registry
from tasks.promotion.registry import Registry
from tasks.promotion.verdict import Verdict
from tests.flows.conftest import Project
from tests.waiting import wait_until

COSTS = {"kind": "search", "cpu": {}, "cpu_s": 0.0, "cost": 0.0}  # as the flow adds them to each verdict

BETTER = Verdict("PROMOTE", ("Better than the champion.",), {"looked": True, "gain": 0.01})
pytestmark = pytest.mark.usefixtures("prefect_server")


def required(within: timedelta) -> params.Gate:
    return params.Gate(metric="log_loss", approval="required", approval_within=within)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "POLL", 0.2)


@dataclass(frozen=True)
class Asked:
    """The verdict after the pause, the run, and the run as it was while it waited."""

    verdict: Verdict
    run: FlowRun
    paused: FlowRun


def ask_person(
    answer: dict[str, Any] | None, *, within: timedelta = timedelta(minutes=2), meanwhile: Callable[[], None] = print
) -> Asked:
    """A run whose verdict a person answers, once its page asks for it."""
    seen: list[FlowRun] = []
    ids: list[UUID] = []

    @flow(name="asking")
    def asking() -> Verdict:
        ids.append(UUID(str(flow_run.id)))
        return people.ask_approval(BETTER, required(within))

    def person() -> None:
        seen.append(paused(ids))
        meanwhile()
        if answer is not None:
            resume_flow_run(ids[0], run_input=answer)

    thread = threading.Thread(target=copy_context().run, args=[person])
    thread.start()
    verdict = asking()
    thread.join()
    return Asked(verdict, run_of(ids[0]), seen[0])


def run_of(run_id: UUID) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id)


def paused(ids: list[UUID]) -> FlowRun:
    def asks() -> FlowRun | None:
        run = run_of(ids[0]) if ids else None
        paused = run and run.state and run.state.is_paused()
        return run if paused and {"schema", "description"} <= form(ids[0]).keys() else None

    return wait_until(asks)


def form(run_id: UUID | None) -> dict[str, str]:
    """What the page of a paused run shows: the schema of the form, and the text above it."""
    assert run_id
    with get_client(sync_client=True) as client:
        inputs = client.filter_flow_run_input(run_id, key_prefix="", limit=10, exclude_keys=set())
    return {one.key.rpartition("-")[2]: one.value for one in inputs}


def test_what_a_person_approves_is_promoted_and_the_ledger_has_the_note() -> None:
    done = ask_person({"approve": True, "note": "Ann: looks right"})
    assert done.verdict.outcome == "PROMOTE"
    assert done.verdict.reasons == ("A person approved it: Ann: looks right.", "Better than the champion.")
    assert done.run.state
    assert done.run.state.is_completed()


def test_what_a_person_refuses_is_rejected_and_spends_the_look() -> None:
    done = ask_person({"approve": False, "note": "Bob: not before the holidays"})
    assert done.verdict.outcome == "REJECT"
    assert done.verdict.reasons[0] == "A person refused it: Bob: not before the holidays."
    assert done.verdict.counts_as_look


def test_an_answer_that_says_nothing_refuses() -> None:
    assert ask_person({}).verdict.outcome == "REJECT"


def test_when_nobody_decides_in_time_it_is_held_and_the_run_ends_well() -> None:
    done = ask_person(None, within=timedelta(seconds=4))
    assert done.verdict.outcome == "HOLD"
    assert done.verdict.reasons[0] == "Nobody decided within gate.approval_within (4s)."
    assert done.run.state
    assert done.run.state.is_completed()


def test_the_verdict_is_shown_where_it_is_decided() -> None:
    shown: list[Any] = []
    texts: list[str] = []

    def look() -> None:
        with get_client(sync_client=True) as client:
            listed = client.read_artifacts(
                sort=ArtifactSort.CREATED_DESC, limit=200
            )  # the server is other modules' too
            shown.extend(one for one in listed if one.key == "verdict")
        texts.extend(form(page.flow_run_id)["description"] for page in shown[:1])

    ask_person({"approve": True}, meanwhile=look)
    assert "Better than the champion." in str(shown[0].data)
    assert "Better than the champion." in texts[0]
    assert "Promote this candidate?" in texts[0]


@pytest.mark.parametrize(
    ("verdict", "settings"),
    [(BETTER, params.Gate(metric="log_loss")), (Verdict("HOLD", ("No.",), {}), required(timedelta(days=1)))],
    ids=["no approval asked", "nothing to approve"],
)
def test_without_anything_to_approve_nobody_is_asked(verdict: Verdict, settings: params.Gate) -> None:
    assert people.ask_approval(verdict, settings) is verdict


# --- what the retrain flow makes of it


@pytest.fixture(scope="module")
def approved(project: Project) -> tuple[Retrained, Registry]:
    """A whole retrain that a person approves."""

    def person() -> None:
        run = paused_retrain()
        resume_flow_run(run, run_input={"approve": True, "note": "Ann: looks right"})

    thread = threading.Thread(target=copy_context().run, args=[person])
    thread.start()
    done = retrain.retrain(settings={"gate.approval": "required", "gate.approval_within": "5m"})
    thread.join()
    return done, registry.open_registry(params.load(project.folder / "params.yaml").registry)


def paused_retrain() -> UUID:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    waiting = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED]))

    def asks() -> UUID | None:
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=waiting))
        return runs[0].id if runs and {"schema", "description"} <= form(runs[0].id).keys() else None

    return wait_until(asks, 300, every=0.5)


@pytest.mark.faults  # a whole retrain: with the other long ones
def test_a_retrain_that_is_approved_promotes(approved: tuple[Retrained, Registry]) -> None:
    done, known = approved
    champion = known.find_champion()
    assert champion
    assert (done.version, champion.number) == (1, 1)
    assert done.verdict.reasons[0] == "A person approved it: Ann: looks right."
    assert known.read_ledger()[0].reasons == done.verdict.reasons


@pytest.mark.faults  # a whole retrain: with the other long ones
def test_a_retrain_that_is_refused_leaves_the_champion_and_spends_the_look(
    approved: tuple[Retrained, Registry], project: Project
) -> None:
    done, known = approved
    refused = Verdict("REJECT", ("A person refused it: no.",), {"looked": True, "champion_version": 1, **COSTS})
    verdict, version = acted(project, done, known, refused, "refused")
    assert (verdict, version, ledger.count_looks(known.read_ledger(), 1)) == (refused, None, 1)
    line = known.read_ledger()[-1]
    assert (line.mark, line.outcome, line.champion, line.reasons) == ("verdict", "REJECT", 1, refused.reasons)


@pytest.mark.faults  # a whole retrain: with the other long ones
def test_what_was_judged_against_a_champion_that_serves_no_longer_is_held(
    approved: tuple[Retrained, Registry], project: Project
) -> None:
    done, known = approved
    stale = Verdict("PROMOTE", ("Better than it.",), {"looked": True, "champion_version": 7, **COSTS})
    before = ledger.count_looks(known.read_ledger(), 1)
    verdict, version = acted(project, done, known, stale, "stale")
    assert (verdict.outcome, version) == ("HOLD", None)
    assert "version 7 served, and now version 1 does" in verdict.reasons[0]
    assert (ledger.count_looks(known.read_ledger(), 1), ledger.count_looks(known.read_ledger(), 7)) == (before, 0)
    assert [one.number for one in known.list_versions()] == [1]


def acted(
    project: Project, done: Retrained, known: Registry, verdict: Verdict, decision: str
) -> tuple[Verdict, int | None]:
    p = params.load(project.folder / "params.yaml")
    recorded = Recorded(done.record, done.run_id, done.as_of)
    return retrain.carry_out.fn(p, known, recorded, verdict, decision=decision)
