"""Every decision is answered: whatever error ends its retrain, when it comes too early, and when no attempt begins."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow

from flows import answers
from flows import retrain as flow
from flows.monitor import monitor
from flows.retrain import retrain
from tasks import params
from tasks.monitoring import decisions
from tasks.params import Params
from tasks.promotion import registry
from tasks.promotion.ledger import Entry, find_answered, find_retrains
from tasks.promotion.registry import Registry
from tasks.serving.journal import Journal, open_journal
from tests.conftest import write_params
from tests.flows.conftest import Project, task_runs
from tests.tasks.monitoring.test_predecessor import GOOD_MODEL, Shop

FIRST = datetime(2024, 3, 1)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def made_before() -> None:
    """Nothing is trained here."""


@dataclass(frozen=True)
class Ledger:
    project: Project
    known: Registry
    p: Params

    def answers(self, decision: str) -> list[Entry]:
        return [line for line in self.known.read_ledger() if line.decision == decision]


@pytest.fixture
def ledger(project: Project, request: pytest.FixtureRequest) -> Ledger:
    """A ledger for each test."""
    return place(project, experiment=request.node.name.partition("[")[0])


def place(project: Project, *, experiment: str, as_of: str | None = FIRST.isoformat()) -> Ledger:
    """A params.yaml with an experiment, and so a ledger, of its own."""
    raw = project.raw | {
        "registry": {"model": experiment[:40], "experiment": experiment, "top_trials": 0},
        "clock": {"as_of": as_of},
        "gate": project.raw["gate"] | {"backoff": "7d"},
    }
    write_params(raw, project.folder)
    p = params.load(project.folder / "params.yaml")
    return Ledger(project, registry.open_registry(p.registry), p)


# --- errors


@pytest.mark.parametrize("error", [KeyError("a column"), MemoryError("no memory"), OSError(28, "No space left")])
def test_whatever_error_ends_a_retrain_its_decision_is_answered_with_the_cause(
    error: Exception, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = type(error).__name__

    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(flow, "run_stages", fails)
    with pytest.raises(type(error)):
        retrain(decision=decision)
    (line,) = ledger.answers(decision)
    assert line.is_fault
    assert line.as_of == FIRST
    assert f"({decision}: {error})" in line.reasons[0]
    assert find_retrains(ledger.known.read_ledger()) == []


def test_what_fails_before_the_workspace_is_answered_too(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match=r"tune.trails"):
        retrain(decision="mistyped", settings={"tune.trails": 3})
    (line,) = ledger.answers("mistyped")
    assert line.is_fault
    assert "tune.trails" in line.reasons[0]


def test_a_crash_is_not_answered_since_another_attempt_follows(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(flow, "run_stages", killed)
    with pytest.raises(KeyboardInterrupt):
        retrain(decision="crashed")
    assert ledger.answers("crashed") == []


def test_an_error_in_a_promotion_that_was_begun_finishes_it_and_is_no_second_answer(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Shop(ledger.known, open_journal(ledger.p.journal), tmp_path).logged("one", GOOD_MODEL)

    def half(*_: Any, **__: Any) -> None:
        ledger.known.append(Entry("intent", "half", FIRST, run=run, outcome="PROMOTE"))
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(flow, "run_stages", half)
    with pytest.raises(RuntimeError, match="the disk is full"):
        retrain(decision="half")
    assert [line.mark for line in ledger.answers("half")] == ["intent", "alias moved", "done"]


def test_a_ledger_that_stays_away_hides_no_error(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(answers, "finish_open", lambda _: (_ for _ in ()).throw(ConnectionError("MLflow is away")))
        raise RuntimeError("the first error")

    monkeypatch.setattr(flow, "run_stages", fails)
    monkeypatch.setattr(answers, "give_up", answers.give_up.with_options(retries=0))
    with pytest.raises(RuntimeError, match="the first error"):
        retrain(decision="not answered")
    assert ledger.answers("not answered") == []


# --- too early


def test_where_the_data_tell_the_time_the_back_off_is_asked_before_anything_is_trained(
    project: Project, request: pytest.FixtureRequest
) -> None:
    ledger = place(project, experiment=request.node.name, as_of=None)
    ledger.known.append(Entry("verdict", "a look", datetime(2024, 3, 14), outcome="HOLD"))
    before = len(task_runs("clean"))
    assert retrain(decision="too soon") is None
    assert len(task_runs("clean")) == before
    (line,) = ledger.answers("too soon")
    assert (line.outcome, line.is_empty, line.is_fault) == ("HOLD", True, False)
    assert "The last look, at 2024-03-14 00:00, did not promote." in line.reasons[0]


# --- the first model


def test_the_monitor_asks_for_a_first_model_where_none_serves_and_waits_for_its_back_off(ledger: Ledger) -> None:
    first = monitor(as_of=FIRST).decision
    assert first
    assert first.retrains
    again = monitor(as_of=FIRST + DAY).decision
    assert again
    assert again.action == "wait"
    assert "asked for already" in again.reasons[0]
    run = ledger.known.tracking.create_run(ledger.known.runs.experiment, "held", {})
    ledger.known.append(Entry("verdict", first.id, FIRST, run=run, outcome="HOLD"))
    early, later = (monitor(as_of=FIRST + days * DAY).decision for days in (6, 7))
    assert early
    assert later
    assert (early.action, later.action) == ("wait", "retrain")
    assert "gate.backoff" in early.reasons[0]


# --- no attempt begins


def test_a_decision_whose_runs_die_before_their_first_line_is_answered_by_the_monitor(ledger: Ledger) -> None:
    """A parameter that the flow does not know: Prefect fails the run, and no line of ours is reached."""
    run_id = ledger.known.tracking.create_run(ledger.known.runs.experiment, "long ago", {})
    with journal_of(ledger.p) as journal:  # which all tests share; each has a ledger of its own
        others = [request.decision for request in decisions.read_open(journal, answered=set())]
    for decision in ["long ago", *others]:
        ledger.known.append(Entry("verdict", decision, FIRST - 30 * DAY, run=run_id, outcome="HOLD"))
    first = monitor(as_of=FIRST).decision
    assert first
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(retrain, parameters={"decision": first.id, "colour": "red"})
        with pytest.raises(Exception, match="colour"):
            run_flow(retrain, flow_run=run, parameters=run.parameters)
        ended = client.read_flow_run(run.id)
    assert ended.state
    assert ended.state.is_failed()
    assert ledger.answers(first.id) == []
    with journal_of(ledger.p) as journal:
        for hours in (30, 24, 18):  # as if time had passed
            journal.append("decisions", request_row(first.id, hours))
        rows = journal.read("decisions").to_pylist()
    assert len([row for row in rows if row["id"] == first.id]) == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.monitoring.decisions.PATIENCE", timedelta(0))
        rests = monitor(as_of=FIRST + DAY).decision
    (line,) = ledger.answers(first.id)
    assert line.is_fault
    assert "No attempt began: a retrain was asked for 4 times" in line.reasons[0]
    assert rests
    assert rests.action == "wait"
    assert "The last retrain failed" in rests.reasons[0]
    with journal_of(ledger.p) as journal:
        assert f"failed {first.id}" in journal.read("alerts")["cause"].to_pylist()
        assert decisions.read_open(journal, answered=find_answered(ledger.known.read_ledger())) == []


@contextmanager
def journal_of(p: Params) -> Iterator[Journal]:
    journal = open_journal(p.journal)
    yield journal
    journal.close()


def request_row(decision: str, hours: int) -> pa.Table:
    moment = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=hours)
    row = {"format": decisions.FORMAT.mark, "entry": f"{decision} {hours}", "action": "retrain", "id": decision}
    row |= {"version": 0, "reasons": "Because."}
    times = {"event_time": FIRST, "as_of": FIRST, "made_at": moment}
    columns = {name: pa.array([value]) for name, value in row.items()}
    return pa.table(columns | {name: pa.array([value], pa.timestamp("us")) for name, value in times.items()})
