"""A retrain that made what serves already: closed beside the flow, by the same words as the gate's, with no look."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL

from flows.retrain import Retrained, retrain
from tasks import params
from tasks.promotion import ledger, registry, same
from tests.flows.conftest import Project, task_runs

COSTS = ("cpu", "cpu_s", "cost")


@pytest.fixture(scope="module")
def first(project: Project, recorded: Callable[[], registry.Version]) -> Retrained:  # noqa: ARG001
    """What serves, made again from the cache of stages: the gate answers, and leaves its lock."""
    recorded()
    done = retrain()
    assert done
    return done


def open_registry(project: Project) -> registry.Registry:
    return registry.open_registry(params.load(project.folder / "params.yaml").registry)


def decided(done: Retrained) -> tuple[Any, ...]:
    """Its verdict and its run, without what it cost."""
    figures = {name: figure for name, figure in done.verdict.figures.items() if name not in COSTS}
    return replace(done.verdict, figures=figures), done.run_id, done.record, done.as_of, done.version, done.reports


def count(name: str) -> int:
    return len(task_runs(name))


def test_what_serves_already_is_closed_beside_the_flow_with_the_gates_own_verdict(
    first: Retrained, project: Project
) -> None:
    before, judged, closed = open_registry(project).read_ledger(), count("gate"), count("nothing changed")
    again = retrain()
    assert again
    assert {stage.status for stage in again.stages[1:]} == {"unchanged"}
    assert decided(again) == decided(first)
    assert (count("gate"), count("nothing changed")) == (judged, closed + 1)
    *entries, entry = open_registry(project).read_ledger()
    assert entries == before
    last = before[-1]
    unlike = ("decision", "made_at", "cpu", "verdict")
    assert {name: value for name, value in vars(entry).items() if name not in unlike} == {
        name: value for name, value in vars(last).items() if name not in unlike
    }
    assert not entry.counts_as_look


@pytest.mark.usefixtures("first")
def test_a_retrain_with_nothing_to_judge_imports_no_mlflow() -> None:
    program = "import sys; from flows.retrain import retrain; print(retrain().verdict.reasons, 'mlflow' in sys.modules)"
    env = {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", env["PREFECT_API_URL"])
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("nothing to judge.',) False")


def test_where_the_program_beside_the_flow_has_died_the_gate_answers(
    first: Retrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, judged = same.start, count("gate")

    @contextlib.contextmanager
    def start_and_kill() -> Iterator[same.Closer]:
        with start() as closer:
            closer._process.kill()
            yield closer

    monkeypatch.setattr(same, "start", start_and_kill)
    again = retrain()
    assert again
    assert decided(again) == decided(first)
    assert count("gate") == judged + 1


def test_a_decision_gets_one_answer_however_often_it_is_asked(first: Retrained, project: Project) -> None:
    assert retrain(decision="asked twice")
    assert retrain(decision="asked twice") is None
    answers = [entry for entry in open_registry(project).read_ledger() if entry.decision == "asked twice"]
    assert [(entry.outcome, entry.run) for entry in answers] == [("HOLD", first.run_id)]


def test_a_promotion_that_was_cut_off_is_left_to_the_gate_which_ends_it(first: Retrained, project: Project) -> None:
    known, judged = open_registry(project), count("gate")
    known.append(ledger.Entry("intent", "cut off", datetime.fromisoformat(first.as_of), run=first.run_id))
    assert retrain()
    assert count("gate") == judged + 1
    assert "cut off" in ledger.find_answered(known.read_ledger())
