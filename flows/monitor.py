"""monitor: measure the newest window, decide whether to retrain, and say so by an event.

    python -m flows.monitor

The event is `evergreen.retrain.wanted`; its payload has the decision's id and as_of. What starts a retrain on it is a
deployment's trigger: nothing is trained here. Where the champion's predecessor would surely have done better, the alias
goes back to it at once. A challenger that the gate's rule promotes serves, one that is surely worse is taken away.
Where no version serves, a first model is asked for. A decision that no run has answered is answered here, as a fault.
"""

import contextlib
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows import cli
from flows.alert import alert
from flows.network import NETWORK, Steps, send_event
from flows.ticks import skip_if_busy
from tasks import params
from tasks.data import state
from tasks.monitoring import canary, decisions, drift, predecessor
from tasks.monitoring import monitor as work
from tasks.monitoring.monitor import Measured, Watched
from tasks.monitoring.policy import Decision
from tasks.monitoring.signal import Signal
from tasks.params import Params
from tasks.promotion import changes, registry
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Registry
from tasks.runtime import locks
from tasks.serving import journal
from tasks.serving.journal import Journal

WANTED = "evergreen.retrain.wanted"
Reports = Literal["always", "alarms", "never"]


@dataclass(frozen=True)
class Monitored:
    """The signals of the newest window, and what was decided. None where no champion serves yet."""

    as_of: datetime
    signals: tuple[Signal, ...]
    decision: Decision | None
    rolled_back: int | None = None  # the version that was taken down
    report: Path | None = None
    canary: Entry | None = None  # what ended the canary
    challenger: str | None = None  # what became of it in this run, or what it waits for


def named() -> str:
    """The run's name in the UI: the flow's, and its as_of when somebody gave one."""
    as_of = flow_run.parameters.get("as_of")
    return f"monitor {str(as_of)[:10]}" if as_of else "monitor"


@flow(name="monitor", flow_run_name=named)
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
        kept = journal.open_journal(p.journal)
        try:
            if as_of:
                task(name="check as_of", cache_policy=NO_CACHE, **NETWORK)(work.refuse_beyond)(
                    p, kept, params.to_utc(as_of), force=force
                )
            return _monitored(p, kept, params.to_utc(as_of) if as_of else None, report=report)
        finally:
            kept.close()


def _monitored(p: Params, kept: Journal, as_of: datetime | None, *, report: Reports) -> Monitored:
    known, of = champion(p)
    if of is None:
        return _without_champion(p, kept, known, as_of)
    moment = now_of(kept, of, as_of)
    windows = measured(p, of, kept, known, moment)
    found, steps = windows[-1], Steps()
    acts = steps.run(_act, p, kept, known, of, moment) or Acts()
    steps.run(told, p, kept, known, found)
    wanted = report == "always" or (report == "alarms" and any(each.alarm for each in found.signals))
    drawn = steps.run(drawn_up, p, of, found, moment) if wanted else None
    steps.run(kept.compact)
    done = Monitored(moment, found.signals, acts.decision, acts.down, drawn, acts.over, acts.challenger)
    steps.run(published, done, found)
    steps.run(charted, known, of, windows, acts.decision, drawn)
    steps.raise_first()
    return done


@dataclass(frozen=True)
class Acts:
    """What was done and decided; nothing of it where the ledger could not be asked."""

    decision: Decision | None = None
    down: int | None = None
    over: Entry | None = None
    challenger: str | None = None


def _act(p: Params, kept: Journal, known: Registry, of: Watched, moment: datetime) -> Acts:
    """Each rests on the one before: the policy must know who serves by now."""
    down = taken_down(kept, known, of, moment)
    over, waits = tried(p, kept, known, of, moment)
    won = over.version if over and over.outcome == "PROMOTE" else None
    decision = decided(p, kept, known, of, moment, down=down is not None, won=won)
    return Acts(decision, down, over, canary.explain_end(over) if over else waits)


def _without_champion(p: Params, kept: Journal, known: Registry, as_of: datetime | None) -> Monitored:
    """There is nothing to watch; a first model is asked for, once a tick of `score` has told what time it is."""
    get_run_logger().warning(NOBODY)
    steps, moment = Steps(), as_of or _as_of_last_tick()
    decision = steps.run(decided_first, p, kept, known, moment) if moment else None
    steps.run(told, p, kept, known)
    done = Monitored(moment or datetime.now(UTC).replace(tzinfo=None), (), decision)
    steps.run(published, done)
    steps.raise_first()
    return done


def _as_of_last_tick() -> datetime | None:
    """Not the time that has passed since: a retrain may not be ahead of a clock that goes by steps."""
    with contextlib.suppress(ValueError):
        published = state.read_current()
        return published.as_of if published else None
    return None


@task(name="now", task_run_name="now", cache_policy=NO_CACHE, **NETWORK)
def now_of(kept: Journal, of: Watched, as_of: datetime | None) -> datetime:
    """as_of, or the newest that is journalled, or what the champion was made of."""
    newest = as_of or work.newest(kept, now=state.read_event_now())
    return newest or of.version.as_of or datetime.now(UTC).replace(tzinfo=None)


@task(name="champion", task_run_name="champion", cache_policy=NO_CACHE, timeout_seconds=120, **NETWORK)
def champion(p: Params) -> tuple[Registry, Watched | None]:
    """Who serves, and what it has to be held against."""
    known = registry.open_registry(p.registry)
    serving = known.champion()
    return known, work.watched(p, known, serving) if serving else None


@task(name="measure", task_run_name="measure", cache_policy=NO_CACHE, **NETWORK)
def measured(p: Params, of: Watched, kept: Journal, known: Registry, as_of: datetime) -> list[Measured]:
    """The windows that were missed, made good, and the newest one."""
    ends = work.due(kept, of.version, p, newest=as_of)
    found = [work.measure(p, of, journal=kept, registry=known, as_of=end) for end in ends]
    for each in found[-1].signals:
        get_run_logger().log(30 if each.alarm else 20, "%s", each.message)
    return found


@task(name="roll back", task_run_name="roll back", cache_policy=NO_CACHE, **NETWORK)
def taken_down(kept: Journal, known: Registry, of: Watched, as_of: datetime) -> int | None:
    """The champion's number, if its predecessor would surely have done better: the alias has gone back. Where that one
    may serve no more, or another serves by now, the look stands and nothing is done."""
    look = predecessor.find_pending(work.signals(kept), of.version.number)
    if look is None:
        return None
    decision = predecessor.decision_id(look)
    try:
        now = changes.rollback(
            known, decision=decision, as_of=as_of, reasons=[look.message], champion=of.version.number
        )
    except ValueError as error:
        get_run_logger().warning("version %s is not taken down: %s", of.version.number, error)
        return None
    get_run_logger().warning("rolled back: version %s serves again. %s", now.number, look.message)
    return of.version.number


@task(name="canary", task_run_name="canary", cache_policy=NO_CACHE, **NETWORK)
def tried(p: Params, kept: Journal, known: Registry, of: Watched, as_of: datetime) -> tuple[Entry | None, str | None]:
    """The line that ends the canary, where a look says what becomes of it; else why one that was decided goes on. Where
    a person has to approve a promotion, or the registry refuses it, the look stands."""
    found = canary.settle(known, as_of=as_of)
    look = canary.find_pending(work.signals(kept), of.version.number, found.on) if found.on else None
    if look is None:
        return found.over, None
    if p.gate.approval == "required" and canary.is_promotion(look):
        approve = f"To promote it: python -m flows.canary --accept\n{look.message}"
        subject = f"evergreen: a challenger of {p.registry.model} waits for approval"
        alert(subject, approve, cause=f"approve {canary.decision_id(look)}", journal=kept, p=p)
        return None, "The challenger waits for approval: python -m flows.canary --accept promotes it."
    try:
        return canary.carry_out(known, look, as_of=as_of), None
    except ValueError as error:
        get_run_logger().warning("the challenger is not promoted: %s", error)
        return None, f"The challenger is not promoted: {error}"


@task(name="decide", task_run_name="decide", cache_policy=NO_CACHE, **NETWORK)
def decided(
    p: Params,
    kept: Journal,
    known: Registry,
    of: Watched,
    as_of: datetime,
    *,
    down: bool = False,
    won: int | None = None,
) -> Decision:
    """The policy's answer to everything that was measured and done so far, said by an event and kept. `down`: this
    champion was taken down; `won`: the challenger that was promoted in its place."""
    busy = _answer_abandoned(p, kept, known)
    decision = decisions.decide(
        p,
        journal=kept,
        registry=known,
        champion=of.version,
        as_of=as_of,
        busy=busy,
        down=down,
        replaced_by=won,
    )
    return _say(p, kept, decision)


@task(name="decide", task_run_name="decide on a first model", cache_policy=NO_CACHE, **NETWORK)
def decided_first(p: Params, kept: Journal, known: Registry, as_of: datetime) -> Decision:
    """Whether a first model is asked for, said by an event and kept."""
    busy = _answer_abandoned(p, kept, known)
    return _say(p, kept, decisions.decide_first(p, journal=kept, registry=known, as_of=as_of, busy=busy))


def _answer_abandoned(p: Params, kept: Journal, known: Registry) -> bool:
    """Whether a retrain is under way in this home; if none is, decisions that nobody answers are answered."""
    if locks.is_run_under_way(params.home()):
        return True
    for line in decisions.answer_abandoned(p, journal=kept, registry=known):
        get_run_logger().warning("decision %s: %s", line.decision, " ".join(line.reasons))
    return False


def _say(p: Params, kept: Journal, decision: Decision) -> Decision:
    if decision.retrains:
        _want(p, decision)  # before it is kept: a kill between them asks twice, with one id, and not never
    work.keep(decision, kept)
    return decision


def _want(p: Params, decision: Decision) -> None:
    send_event(
        WANTED,
        resource=f"evergreen.model.{p.registry.model}",
        payload={"decision": decision.id, "as_of": decision.as_of.isoformat(), "reason": f"decision {decision.id}"},
    )


@task(name="report", task_run_name="report", cache_policy=NO_CACHE, timeout_seconds=300)
def drawn_up(p: Params, of: Watched, found: Measured, as_of: datetime) -> Path | None:
    """Evidently's report: HTML in the home, and a snapshot for its UI."""
    if not found.drift.columns:
        return None
    home = params.home()
    return drift.report(
        found.drift,
        of.sample,
        found.sample,
        said=found.scores,
        until=as_of,
        html=home / "reports" / f"drift-{as_of:%Y-%m-%dT%H%M}.html",
        workspace=home / "evidently",
        project=p.registry.model,
    )


@task(name="alert", task_run_name="alert", cache_policy=NO_CACHE, **NETWORK)
def told(p: Params, kept: Journal, known: Registry, found: Measured | None = None) -> None:
    """What a person should hear of, each cause once; also what a run before this one decided, and could not say."""
    for each in found.signals if found else ():
        if each.alarm and each.kind != "challenger":  # what came of that is told below
            began = work.began(kept, each)
            alert(f"evergreen: {each.kind} of {p.registry.model}", each.message, cause=began, journal=kept, p=p)
    for cause, why in work.wanted_lately(kept):
        alert(f"evergreen: a retrain of {p.registry.model} is wanted", why, cause=cause, journal=kept, p=p)
    lines = known.ledger()
    for line in decisions.faults_lately(lines):
        subject = f"evergreen: a retrain of {p.registry.model} failed"
        alert(subject, "\n".join(line.reasons), cause=f"failed {line.decision}", journal=kept, p=p)
    for line in canary.list_ended(lines):
        did = "was promoted" if line.outcome == "PROMOTE" else "was taken away: it is never put up or promoted again"
        subject = f"evergreen: the challenger of {p.registry.model}, version {line.version}, {did}"
        alert(subject, "\n".join(line.reasons), cause=f"canary {line.decision}", journal=kept, p=p)
    for line in predecessor.list_rollbacks(lines):
        subject = f"evergreen: version {line.champion} of {p.registry.model} was taken down"
        why = "\n".join([*line.reasons, f"Version {line.version} serves again."])
        alert(subject, why, cause=f"down {line.champion}", journal=kept, p=p)


@task(name="chart", task_run_name="chart", cache_policy=NO_CACHE, timeout_seconds=120, **NETWORK)
def charted(
    known: Registry, of: Watched, windows: list[Measured], decision: Decision | None, drawn: Path | None
) -> None:
    """Each window as a point on the charts of this champion in MLflow, with the newest report beside them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if decision:
            (folder / "window.md").write_text(work.markdown(windows[-1], decision))
        if drawn:
            (folder / "drift.html").write_bytes(drawn.read_bytes())
        number = of.version.number
        note = f"How version {number} fares: a point for each window that the monitor measured."
        since = of.version.as_of or windows[0].until
        points = {each.until: work.figures(each) for each in windows}
        run_id = known.runs.chart(f"version {number}", points, since=since, note=note, files=folder)
    create_link_artifact(
        known.tracking.find_link(run_id), key="mlflow-charts", link_text=f"how version {number} fares, in MLflow"
    )


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE, **NETWORK)
def published(done: Monitored, found: Measured | None = None) -> None:
    """What the Prefect UI shows beside the run."""
    text = _markdown(done, found)
    text += f"\n## What became of the challenger\n\n{done.challenger}\n" if done.challenger else ""
    create_markdown_artifact(text, key="decision", description=f"as of {done.as_of}")
    if found:
        rows = [{"signal": each.kind, "alarm": each.alarm, "message": each.message} for each in done.signals]
        create_table_artifact(rows, key="signals", description=f"as of {done.as_of}")
    if done.report:
        create_link_artifact(done.report.as_uri(), key="drift-report", link_text="Evidently's report of the window")
    get_run_logger().info("%s", text)


def _markdown(done: Monitored, found: Measured | None) -> str:
    if found and done.decision:
        return work.markdown(found, done.decision)
    if found:
        return "# No decision\n\nThe window was measured, and the decision failed: see this run's error.\n"
    if done.decision:
        reasons = "\n".join(f"- {reason}" for reason in done.decision.reasons)
        return f"# {done.decision.action} (decision {done.decision.id})\n\n{NOBODY}\n\n{reasons}\n"
    return f"{NOBODY} No tick of the score flow has told yet what time it is."


NOBODY = "No champion serves yet: there is nothing to watch."


def describe(done: Monitored) -> str:
    """The run as a person reads it in a terminal."""
    lines = [signal.message for signal in done.signals] or [NOBODY]
    if done.decision:
        lines.append(f"{done.decision.action}: {' '.join(done.decision.reasons)}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run("monitor")
