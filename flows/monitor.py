"""monitor: measure the newest window, decide whether to retrain, and say so by an event.

    python -m flows.monitor

The event is `evergreen.retrain.wanted`; its payload has the decision's id, kind and as_of. What starts a retrain on it
is a deployment's trigger: nothing is trained here. Where the champion's predecessor would surely have done better, the
alias goes back to it at once. A challenger that the gate's rule promotes serves, one that is surely worse is taken
away. Where no version serves, a first model is asked for. A decision that no run has answered is answered here, as a
fault.
"""

import contextlib
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows import cli
from flows.people import alert
from flows.runs import Steps, name_tick, retried, send_event, skip_if_busy
from tasks import params
from tasks.data import state
from tasks.monitoring import alerts, canary, decisions, page, policy, predecessor, window
from tasks.monitoring import monitor as work
from tasks.monitoring.report import draw_report
from tasks.monitoring.signal import Signal, read_signals
from tasks.promotion import changes, ledger
from tasks.promotion.registry import Registry, open_registry
from tasks.runtime import locks
from tasks.serving.journal import Journal, open_journal

RETRAIN_WANTED = "evergreen.retrain.wanted"
Reports = Literal["always", "alarms", "never"]


@dataclass(frozen=True)
class Monitored:
    """The signals of the newest window, and what was decided. None where no champion serves yet."""

    as_of: datetime
    signals: tuple[Signal, ...]
    decision: policy.Decision | None = None  # where the ledger could not be read, too
    rolled_back: int | None = None  # the version that was taken down
    report: Path | None = None
    canary: ledger.Entry | None = None  # what ended the canary
    challenger: str | None = None  # what became of it in this run, or what it waits for


@flow(name="monitor", flow_run_name=name_tick)
def monitor(
    *,
    as_of: datetime | None = None,
    report: Reports = "always",
    force: bool = False,
) -> Monitored:
    """Signals of the window that ends at as_of, the policy's decision on all signals so far, and the event.

    Args:
        as_of: Event time "now", in UTC. Empty: the newest that is journalled.
        report: When Evidently's report of the window is drawn: always, on alarms, or never.
        force: On: take an as_of beyond what was journalled, or ahead of the clock, as it is.
    """
    if skip := skip_if_busy("monitor"):
        return skip  # type: ignore[no-any-return]  # the run's end: Prefect hands it to nobody
    p = params.load()
    with locks.take_turn(params.home(), name="monitor", say=get_run_logger().info):
        journal = open_journal(p.journal)
        try:
            if as_of:
                retried("check as_of")(work.refuse_beyond)(p, journal, params.to_utc(as_of), force=force)
            return _run(p, journal, params.to_utc(as_of) if as_of else None, report=report)
        finally:
            journal.close()


def _run(p: params.Params, journal: Journal, as_of: datetime | None, *, report: Reports) -> Monitored:
    """Read and measure, decide, tell."""
    registry, champion = load_champion(p)
    if champion is None:
        return _run_without_champion(p, journal, registry, as_of)
    moment = find_now(journal, champion, as_of)
    windows = measure(champion, journal, registry, moment)
    newest, steps = windows[-1], Steps()
    result = Monitored(moment, newest.signals)
    result = steps.run(_act_and_decide, result, p, journal, registry, champion) or result
    steps.run(send_alerts, p, journal, registry, newest.signals)
    is_drawn = report == "always" or (report == "alarms" and any(signal.is_warning for signal in newest.signals))
    html = steps.run(draw, p, champion, newest) if is_drawn else None
    steps.run(journal.compact)
    result = replace(result, report=html)
    steps.run(publish, result, newest)
    steps.run(chart, registry, champion, windows, result.decision, html)
    steps.raise_first()
    return result


def _run_without_champion(p: params.Params, journal: Journal, registry: Registry, as_of: datetime | None) -> Monitored:
    """There is nothing to watch; a first model is asked for, once a tick of `score` has told what time it is."""
    get_run_logger().warning(page.NO_CHAMPION)
    steps, moment = Steps(), as_of or _as_of_last_tick()
    decision = steps.run(decide_first, p, journal, registry, moment) if moment else None
    steps.run(send_alerts, p, journal, registry, ())
    result = Monitored(moment or _now(), (), decision)
    steps.run(publish, result, None)
    steps.raise_first()
    return result


def _as_of_last_tick() -> datetime | None:
    """Not the time that has passed since: a retrain may not be ahead of a clock that goes by steps."""
    with contextlib.suppress(ValueError):
        published = state.read_published()
        return published.as_of if published else None
    return None


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


# --- read and measure ----------------------------------------------------------------------------------------------


@retried("champion", timeout_seconds=120)
def load_champion(p: params.Params) -> tuple[Registry, window.Watched | None]:
    """The version that serves, and what its windows are compared with."""
    registry = open_registry(p.registry)
    version = registry.find_champion()
    return registry, window.load_watched(p, registry, version) if version else None


@retried("now")
def find_now(journal: Journal, champion: window.Watched, as_of: datetime | None) -> datetime:
    """as_of, or the newest that is journalled, or what the champion was made of."""
    newest = as_of or window.read_newest(journal, now=state.read_event_now())
    return newest or champion.version.as_of or _now()


@retried("measure")
def measure(champion: window.Watched, journal: Journal, registry: Registry, as_of: datetime) -> list[work.Measured]:
    """The windows that were missed since the last run, and the newest one."""
    ends = work.find_due(read_signals(journal), journal, champion.version, champion.p, newest=as_of)
    windows = [work.measure_window(champion, journal=journal, registry=registry, as_of=end) for end in ends]
    for signal in windows[-1].signals:
        get_run_logger().log(30 if signal.is_warning else 20, "%s", signal.message)
    return windows


# --- act and decide ------------------------------------------------------------------------------------------------


def _act_and_decide(
    result: Monitored, p: params.Params, journal: Journal, registry: Registry, champion: window.Watched
) -> Monitored:
    """Each rests on the one before: the policy must know who serves by now."""
    as_of = result.as_of
    down = roll_back(journal, registry, champion, as_of)
    over, waits = end_canary(p, journal, registry, champion, as_of)
    departure = "was taken down" if down else None
    if departure is None and over and over.outcome == "PROMOTE":
        departure = f"gave way to version {over.version}, its challenger,"
    decision = decide(p, journal, registry, champion, as_of, departure=departure)
    end = canary.explain_end(over) if over else waits
    return replace(result, decision=decision, rolled_back=down, canary=over, challenger=end)


@retried("roll back")
def roll_back(journal: Journal, registry: Registry, champion: window.Watched, as_of: datetime) -> int | None:
    """The champion's number, if its predecessor would surely have done better: the alias has gone back.

    Where that one may serve no more, or another serves by now, nothing is done.
    """
    number = champion.version.number
    look = predecessor.find_pending(read_signals(journal), number)
    if look is None:
        return None
    decision = predecessor.decision_id(look)
    try:
        now = changes.rollback(registry, decision=decision, as_of=as_of, reasons=[look.message], champion=number)
    except ValueError as error:
        get_run_logger().warning("version %s is not taken down: %s", number, error)
        return None
    get_run_logger().warning("rolled back: version %s serves again. %s", now.number, look.message)
    return number


@retried("canary")
def end_canary(
    p: params.Params, journal: Journal, registry: Registry, champion: window.Watched, as_of: datetime
) -> tuple[ledger.Entry | None, str | None]:
    """The entry that ends the canary, where a look says what becomes of it; else why one that was decided goes on:
    a person has to approve the promotion, or the registry refuses it."""
    settlement = canary.settle(registry, as_of=as_of)
    begun, number = settlement.on, champion.version.number
    look = canary.find_pending(read_signals(journal), number, begun) if begun else None
    if look is None:
        return settlement.over, None
    if p.gate.approval == "required" and canary.is_promotion(look):
        _send(alerts.ask_approval(p.registry.model, look), journal, p)
        return None, "The challenger waits for approval: python -m flows.canary --accept promotes it."
    try:
        return canary.carry_out(registry, look, as_of=as_of), None
    except ValueError as error:
        get_run_logger().warning("the challenger is not promoted: %s", error)
        return None, f"The challenger is not promoted: {error}"


@retried("decide")
def decide(
    p: params.Params,
    journal: Journal,
    registry: Registry,
    champion: window.Watched,
    as_of: datetime,
    *,
    departure: str | None = None,
) -> policy.Decision:
    """The policy's answer to everything that was measured and done so far, sent as an event and journalled.

    Args:
        departure: How this champion went just now, if it did: `was taken down`.
    """
    busy = _answer_abandoned(p, journal, registry)
    decision = decisions.decide(
        p,
        journal=journal,
        registry=registry,
        champion=champion.version,
        as_of=as_of,
        busy=busy,
        departure=departure,
    )
    return send_decision(p, journal, decision)


@retried("decide on a first model")
def decide_first(p: params.Params, journal: Journal, registry: Registry, as_of: datetime) -> policy.Decision:
    """Whether a first model is asked for, sent as an event and journalled."""
    busy = _answer_abandoned(p, journal, registry)
    decision = decisions.decide_first(p, journal=journal, registry=registry, as_of=as_of, busy=busy)
    return send_decision(p, journal, decision)


def _answer_abandoned(p: params.Params, journal: Journal, registry: Registry) -> bool:
    """Whether a retrain is under way in this home; if none is, decisions that nobody answers are answered."""
    if locks.is_run_under_way(params.home()):
        return True
    for entry in decisions.answer_abandoned(p, journal=journal, registry=registry):
        get_run_logger().warning("decision %s: %s", entry.decision, " ".join(entry.reasons))
    return False


def send_decision(p: params.Params, journal: Journal, decision: policy.Decision) -> policy.Decision:
    if decision.retrains:  # sent before it is journalled: a kill between them asks twice, with one id, and not never
        send_event(
            RETRAIN_WANTED,
            resource=f"evergreen.model.{p.registry.model}",
            payload={
                "decision": decision.id,
                "kind": decision.kind,
                "as_of": decision.as_of.isoformat(),
                "reason": f"decision {decision.id}",
            },
        )
    decisions.append_decision(journal, decision)
    return decision


# --- tell ----------------------------------------------------------------------------------------------------------


@retried("alert")
def send_alerts(p: params.Params, journal: Journal, registry: Registry, signals: tuple[Signal, ...]) -> None:
    """What a person should hear of, each cause once."""
    history, requests = read_signals(journal), decisions.read_requests(journal)
    entries = registry.read_ledger()
    for message in alerts.list_alerts(p.registry.model, signals, history=history, requests=requests, entries=entries):
        _send(message, journal, p)


def _send(message: alerts.Alert, journal: Journal, p: params.Params) -> None:
    alert(message.subject, message.body, cause=message.cause, journal=journal, p=p)


@task(name="report", task_run_name="report", cache_policy=NO_CACHE, timeout_seconds=300)
def draw(p: params.Params, champion: window.Watched, measured: work.Measured) -> Path | None:
    """Evidently's report: HTML in the home, and a snapshot for its UI."""
    if not measured.drift.columns:
        return None
    home = params.home()
    return draw_report(
        measured.drift,
        champion.sample,
        measured.sample,
        scores=measured.score_drift,
        until=measured.until,
        html=home / "reports" / f"drift-{measured.until:%Y-%m-%dT%H%M}.html",
        workspace=home / "evidently",
        project=p.registry.model,
    )


@retried("chart", timeout_seconds=120)
def chart(
    registry: Registry,
    champion: window.Watched,
    windows: list[work.Measured],
    decision: policy.Decision | None,
    html: Path | None,
) -> None:
    """Each window as a point on the charts of this champion in MLflow, with the newest report beside them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if decision:
            (folder / "window.md").write_text(page.render_page(windows[-1], decision))
        if html:
            (folder / "drift.html").write_bytes(html.read_bytes())
        number = champion.version.number
        note = f"How version {number} fares: a point for each window that the monitor measured."
        since = champion.version.as_of or windows[0].until
        points = {measured.until: page.list_figures(measured) for measured in windows}
        run_id = registry.runs.chart(f"version {number}", points, since=since, note=note, files=folder)
    link = registry.tracking.find_link(run_id)
    create_link_artifact(link, key="mlflow-charts", link_text=f"how version {number} fares, in MLflow")


@retried("publish")
def publish(result: Monitored, measured: work.Measured | None) -> None:
    """What the Prefect UI shows beside the run."""
    text = page.render_page(measured, result.decision)
    text += f"\n## What became of the challenger\n\n{result.challenger}\n" if result.challenger else ""
    create_markdown_artifact(text, key="decision", description=f"as of {result.as_of}")
    if measured:
        rows = [{"signal": signal.kind, "alarm": signal.alarm, "message": signal.message} for signal in result.signals]
        create_table_artifact(rows, key="signals", description=f"as of {result.as_of}")
    if result.report:
        create_link_artifact(result.report.as_uri(), key="drift-report", link_text="Evidently's report of the window")
    get_run_logger().info("%s", text)


def describe(result: Monitored) -> str:
    """The run as a person reads it in a terminal."""
    lines = [signal.message for signal in result.signals] or [page.NO_CHAMPION]
    if result.decision:
        lines.append(f"{result.decision.name}: {' '.join(result.decision.reasons)}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run("monitor")
