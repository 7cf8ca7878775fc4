"""The monitor flow on a made table: a quiet stream is left alone, one whose outcomes turn asks for a retrain, once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from prefect import task
from prefect.cache_policies import NO_CACHE

import flows.monitor as flow
from flows.monitor import RETRAIN_WANTED, Monitored, monitor
from flows.score import score
from tasks import params
from tasks.monitoring.decisions import append_decision
from tasks.promotion import ledger, registry
from tasks.serving.journal import open_journal
from tests.conftest import write_params
from tests.flows.conftest import Project, shown
from tests.waiting import wait_until

FIRST = datetime(2024, 3, 1)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Story:
    """Before any champion; quiet days; days whose outcomes are turned round; the same day again."""

    nobody: Monitored
    quiet: Monitored
    first: Monitored
    second: Monitored
    again: Monitored


@pytest.fixture(scope="module")
def story(project: Project, recorded: Callable[[], registry.Version]) -> Story:
    policy = {"signals": ["performance"], "windows": 2, "min_rows": 50, "cool_down": "5d"}
    write_params({**project.raw, "policy": policy}, project.folder)
    nobody = monitor()
    assert recorded().number == 1
    done = {4: watched(4)}
    source = project.folder / "source/orders.csv"
    source.write_text(turned(source.read_text()))
    done |= {days: watched(days) for days in (10, 14)}
    return Story(nobody, done[4], done[10], done[14], monitor(as_of=FIRST + 14 * DAY))


def watched(days: int) -> Monitored:
    score(as_of=FIRST + days * DAY)
    return monitor(as_of=FIRST + days * DAY)


def turned(text: str) -> str:
    """From the fourth of March on, what was late is early and what was early is late."""
    lines = []
    for line in text.splitlines():
        rest, _, delay = line.rpartition(",")
        late = delay.isdigit() and any(f",2024-03-{day:02} " in line for day in range(4, 17))
        lines.append(f"{rest},{0 if int(delay) >= 30 else 60}" if late else line)
    return "\n".join(lines) + "\n"


def alarms(done: Monitored) -> dict[str, bool]:
    return {signal.kind: signal.alarm for signal in done.signals}


def test_without_a_champion_there_is_nothing_to_watch(story: Story) -> None:
    assert (story.nobody.signals, story.nobody.decision) == ((), None)


def test_a_quiet_stream_is_left_alone(story: Story) -> None:
    assert not any(alarms(story.quiet).values())
    assert story.quiet.decision
    assert story.quiet.decision.action == "wait"


def test_only_mature_outcomes_count(story: Story, project: Project) -> None:
    deadline = params.load(project.folder / "params.yaml").label.deadline
    journal = open_journal(params.Journal(), home=project.home)
    until = FIRST + 10 * DAY - deadline
    rows = journal.read("predictions", since=until - 4 * DAY, until=until).num_rows
    (signal,) = (one for one in story.first.signals if one.kind == "performance")
    assert 0.9 * rows < signal.rows <= rows


def test_outcomes_that_turn_alarm_and_ask_when_they_last(story: Story) -> None:
    assert alarms(story.first)["performance"]
    assert alarms(story.second)["performance"]
    assert story.first.decision
    assert story.second.decision
    assert (story.first.decision.action, story.second.decision.action) == ("wait", "retrain")
    assert "at promotion" in story.second.decision.reasons[0]


def test_one_cause_asks_once(story: Story) -> None:
    assert story.again.decision
    assert story.second.decision
    assert story.again.decision.id == story.second.decision.id
    assert story.again.decision.action == "wait"


def test_the_event_carries_the_decision_and_its_time(story: Story) -> None:
    from prefect.client.orchestration import get_client
    from prefect.events.filters import EventFilter, EventNameFilter

    wanted = EventFilter(event=EventNameFilter(name=[RETRAIN_WANTED]))
    assert story.second.decision
    mine = story.second.decision.id  # other tests' events are on this server too
    with get_client(sync_client=True) as client:
        events = wait_until(
            lambda: [one for one in client.read_events(wanted, limit=50).events if one.payload["decision"] == mine]
        )
    (event,) = events
    assert event.payload["as_of"] == (FIRST + 14 * DAY).isoformat()
    assert event.resource.id == "evergreen.model.made"


def test_signals_and_decisions_are_in_the_journal(story: Story, project: Project) -> None:
    journal = open_journal(params.Journal(), home=project.home)
    measured = journal.read("signals")
    windows = {4, 8, 10, 14}  # the eighth was missed, and made good by the run of the tenth
    assert {(one - FIRST).days for one in measured["event_time"].to_pylist()} == windows
    assert measured.num_rows == len(windows) * len(story.second.signals)
    decided = [(row["id"], row["action"]) for row in journal.read("decisions").to_pylist()]
    assert story.second.decision
    assert (story.second.decision.id, "retrain") in decided


@pytest.mark.usefixtures("story")
def test_each_window_is_a_point_on_the_champions_chart_also_one_that_was_missed() -> None:
    known = registry.open_registry(params.load().registry)
    champion = known.find_champion()
    assert champion
    assert champion.as_of
    client = known.tracking.client
    (experiment,) = (one for one in client.search_experiments() if one.name.endswith("-monitor"))
    (run,) = client.search_runs([experiment.experiment_id])
    points = client.get_metric_history(run.info.run_id, "drift")
    moments = {point.step: datetime.fromtimestamp(point.timestamp / 1000, UTC).replace(tzinfo=None) for point in points}
    assert {(one - FIRST).days for one in moments.values()} == {4, 8, 10, 14}
    assert all(moment - champion.as_of == timedelta(hours=step) for step, moment in moments.items())


def test_what_a_run_decided_that_was_killed_before_it_could_say_so_is_told_by_the_next(story: Story) -> None:
    p = params.load()
    assert story.second.decision
    journal, known = open_journal(p.journal), registry.open_registry(p.registry)
    append_decision(journal, replace(story.second.decision, id="lost"))
    journal.close()
    known.append(ledger.Entry("rolled back", "predecessor-9-lost", FIRST, version=1, champion=9))
    for _ in range(2):
        monitor(as_of=FIRST + 14 * DAY, report="never")
    causes = journal.read("alerts")["cause"].to_pylist()
    assert [causes.count(one) for one in ("lost", "down 9", story.second.decision.id)] == [1, 1, 1]


@pytest.mark.parametrize("name", ["send_alerts", "decide", "draw", "chart"])
def test_a_step_that_fails_costs_no_other_step_and_fails_the_run_at_its_end(
    name: str, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ConnectionError(f"{name}: nobody answers")

    assert story
    costs = {"send_alerts": set(), "decide": set(), "draw": {"drift-report"}, "chart": {"mlflow-charts"}}
    before = {key: len(shown(key)) for key in ("decision", "signals", "drift-report", "mlflow-charts")}
    monkeypatch.setattr(flow, name, task(name=name, cache_policy=NO_CACHE)(fails))
    with pytest.raises(ConnectionError, match=f"{name}: nobody answers"):
        monitor(as_of=FIRST + 14 * DAY)
    after = {key: len(shown(key)) for key in before}
    missing = {key for key in before if after[key] == before[key]}
    assert missing == costs[name]
    assert (name == "decide") <= any("# No decision" in page for page in shown("decision"))
