"""monitoring.decisions on a real ledger and journal: a fault costs nothing but a rest, and no decision is left open."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tasks import params
from tasks.monitoring import decisions
from tasks.monitoring.decisions import Request
from tasks.monitoring.obstacles import FIRST_REST
from tasks.monitoring.policy import Decision
from tasks.monitoring.signal import Signal, append_signals
from tasks.params import Params, Policy
from tasks.promotion import ledger, registry
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Registry, Version
from tasks.serving.journal import Journal
from tasks.serving.journal_log import LocalLogs
from tests.registries import place_tables
from tests.tasks import small

DAY = timedelta(days=1)
NOW = datetime(2024, 6, 1)
CHAMPION = Version(1, "run", "d", "r", NOW - 60 * DAY, "c", {})


def settings() -> Params:
    policy = Policy(signals=["performance"], windows=1, min_rows=50, attempts=2)
    return small.settings(**{"monitor.window": "4d", "gate.backoff": "7d"}).model_copy(update={"policy": policy})


@dataclass(frozen=True)
class Loop:
    """A ledger and a journal, and a champion whose last window alarms."""

    known: Registry
    journal: Journal
    p: Params

    def decides(self, as_of: datetime = NOW, **given: Any) -> Decision:
        """As the monitor does: a decision to retrain goes into the journal."""
        found = decisions.decide(
            self.p, journal=self.journal, registry=self.known, champion=CHAMPION, as_of=as_of, **given
        )
        return self.keeps(found)

    def decides_first(self, as_of: datetime = NOW, **given: Any) -> Decision:
        return self.keeps(
            decisions.decide_first(self.p, journal=self.journal, registry=self.known, as_of=as_of, **given)
        )

    def keeps(self, decision: Decision) -> Decision:
        decisions.append_decision(self.journal, decision)
        return decision

    def alarms(self, until: datetime = NOW) -> None:
        alarm = Signal("performance", until - 4 * DAY, until, 1, 900, True, "Loss.")
        append_signals(self.journal, [alarm])

    def asked(self, decision: str, *, ago: timedelta, as_of: datetime = NOW) -> None:
        """A decision to retrain that was asked for so long ago."""
        moment = datetime.now(UTC).replace(tzinfo=None) - ago
        row = {
            "format": decisions.FORMAT.mark,
            "action": "retrain",
            "id": decision,
            "as_of": as_of,
            "version": 1,
            "reasons": "Loss.",
        }
        row |= {"event_time": as_of, "entry": f"{decision} {moment}", "made_at": moment}
        types = {name: pa.timestamp("us") for name in ("as_of", "event_time", "made_at")}
        self.journal.append("decisions", pa.table({name: pa.array([row[name]], types.get(name)) for name in row}))

    def judges(self, decision: str, **changes: Any) -> None:
        """A verdict on a candidate."""
        self.answers(decision, run=self.known.tracking.create_run(self.known.runs.experiment, decision, {}), **changes)

    def answers(self, decision: str, *, ago: timedelta = timedelta(0), **changes: Any) -> None:
        """A line of the ledger, written so long ago."""
        given: dict[str, Any] = {"champion": 1, "outcome": "HOLD", "made_at": datetime.now(UTC) - ago, **changes}
        self.known.write_entry(Entry("verdict", decision, given.pop("as_of", NOW), **given))

    def fails(self, decision: str, *, ago: timedelta = timedelta(0)) -> None:
        self.answers(decision, ago=ago, counts_as_look=False, failed=True, reasons=("No disk.",))

    def sweeps(self) -> list[Entry]:
        return decisions.answer_abandoned(self.p, journal=self.journal, registry=self.known)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return place_tables(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def loop(uri: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Loop]:
    """A ledger of its own, in one database."""
    known = registry.open_registry(params.Registry(model="made", experiment=request.node.name, top_trials=0), uri=uri)
    journal = Journal(LocalLogs(tmp_path / "logs"), str(tmp_path / "parquet"))
    yield Loop(known, journal, settings())
    journal.close()


# --- faults


def test_a_fault_in_the_ledger_costs_neither_cool_down_nor_budget_but_a_rest(loop: Loop) -> None:
    loop.alarms()
    first = loop.decides()
    assert first.retrains
    loop.fails(first.id, ago=timedelta(minutes=1))
    rests = loop.decides()
    assert rests.action == "wait"
    assert "The last retrain failed" in rests.reasons[0]
    assert ledger.find_retrains(loop.known.read_ledger()) == []


def test_after_the_rest_the_same_alarms_ask_under_a_new_id(loop: Loop) -> None:
    loop.alarms()
    loop.fails("before", ago=FIRST_REST + timedelta(minutes=1))
    again = loop.decides()
    assert again.retrains
    loop.fails(again.id)
    assert len({again.id, loop.decides().id, "before"}) == 3
    assert "The last 2 retrains failed" in loop.decides().reasons[0]


def test_faults_on_end_count_until_a_candidate_is_made(loop: Loop) -> None:
    loop.fails("a", ago=timedelta(hours=3))
    loop.judges("b", ago=timedelta(hours=2), as_of=NOW - 30 * DAY)
    loop.fails("c", ago=timedelta(hours=1))
    loop.answers("d", ago=timedelta(minutes=1), counts_as_look=False)  # the gate would not look yet
    assert [line.decision for line in ledger.find_empty_answers(loop.known.read_ledger())] == ["c", "d"]
    assert [line.is_fault for line in ledger.find_empty_answers(loop.known.read_ledger())] == [True, False]
    assert ledger.find_retrains(loop.known.read_ledger()) == [NOW - 30 * DAY]


def test_a_verdict_on_a_candidate_costs_the_cool_down_also_where_nobody_looked(loop: Loop) -> None:
    loop.alarms()
    loop.judges("barred", counts_as_look=False, as_of=NOW - DAY)
    assert "policy.cool_down" in loop.decides().reasons[0]


# --- the gate's back-off


def test_a_retrain_that_the_gate_would_refuse_as_too_early_waits_until_it_would_be_judged(loop: Loop) -> None:
    loop = replace(loop, p=loop.p.model_copy(update={"policy": loop.p.policy.model_copy(update={"cool_down": DAY})}))
    loop.judges("a look", as_of=NOW - 2 * DAY)
    loop.alarms(NOW)
    waits = loop.decides()
    assert waits.action == "wait"
    assert "gate.backoff (7d) later, from 2024-06-06 00:00 on" in waits.reasons[0]
    loop.alarms(NOW + 5 * DAY)
    assert loop.decides(NOW + 5 * DAY).retrains


def test_a_first_model_that_was_held_is_tried_again_when_the_gate_would_look(loop: Loop) -> None:
    first = loop.decides_first()
    assert first.retrains
    loop.judges(first.id, champion=None)
    assert "gate.backoff" in loop.decides_first(NOW + 6 * DAY).reasons[0]
    later = loop.decides_first(NOW + 7 * DAY)
    assert later.retrains
    loop.fails(later.id)
    assert "The last retrain failed" in loop.decides_first(NOW + 7 * DAY).reasons[0]


def test_while_a_retrain_is_under_way_no_first_model_is_asked_for(loop: Loop) -> None:
    assert loop.decides_first(busy=True).action == "wait"


# --- decisions that nobody answers


def requests(*asks: tuple[str, int, float]) -> list[Request]:
    """(decision, times, hours since it was last asked for)"""
    return [
        Request(name, 1, NOW, times, NOW - timedelta(hours=ago), "Loss.", "search", "") for name, times, ago in asks
    ]


@pytest.mark.parametrize(
    ("found", "abandoned"),
    [
        ([], 0),
        (requests(("a", 1, 5)), 0),
        (requests(("a", 1, 7)), 0),  # it is asked for again
        (requests(("a", 2, 7)), 0),
        (requests(("a", 3, 5)), 0),  # the last attempt may be under way
        (requests(("a", 3, 6)), 1),
        (requests(("a", 1, 20), ("b", 1, 13), ("c", 1, 6)), 3),  # alarms that flicker are other causes
        (requests(("a", 1, 17)), 0),
        (requests(("a", 1, 18)), 1),  # its alarms have ended: nobody asks again
    ],
)
def test_a_decision_is_asked_for_a_bounded_number_of_times(found: list[Request], abandoned: int) -> None:
    hours = timedelta(hours=6)
    assert len(decisions.find_abandoned(found, now=NOW, most=3, patience=hours)) == abandoned


def test_a_decision_whose_attempts_never_begin_is_answered_as_one_fault_and_the_next_rests(loop: Loop) -> None:
    loop.alarms()
    decision = loop.decides().id  # just now: an answer may be under way
    assert loop.sweeps() == []
    for hours in (30, 24, 18):
        loop.asked("never began", ago=timedelta(hours=hours))
    loop.judges(decision, as_of=NOW - 30 * DAY, ago=timedelta(hours=40))
    (line,) = loop.sweeps()
    assert (line.decision, line.outcome, line.is_fault, line.champion) == ("never began", "HOLD", True, 1)
    assert "No attempt began: a retrain was asked for 3 times" in line.reasons[0]
    assert "never began" in ledger.find_answered(loop.known.read_ledger())
    assert loop.sweeps() == []
    assert "The last retrain failed" in loop.decides().reasons[0]


def test_of_decisions_that_came_one_after_the_other_one_is_the_fault(loop: Loop) -> None:
    for hours, name in ((30, "a"), (24, "b"), (18, "c")):
        loop.asked(name, ago=timedelta(hours=hours))
    assert {line.decision: line.is_fault for line in loop.sweeps()} == {"a": False, "b": False, "c": True}
    assert decisions.read_open(loop.journal, answered=ledger.find_answered(loop.known.read_ledger())) == []


def test_while_a_retrain_is_under_way_what_waits_for_long_is_not_asked_for_again(loop: Loop) -> None:
    loop.alarms()
    loop.asked("long", ago=timedelta(hours=8))
    waits = loop.decides(busy=True)
    assert waits.action == "wait"
    assert "The retrain of decision long is not answered yet" in waits.reasons[0]
    assert loop.decides().retrains
