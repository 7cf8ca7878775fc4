"""demo: the tour. The whole loop on the real flights, and a page of what came of it.

    make demo

A first model must beat the baselines; then three months go by, four weeks a step: the champion scores what arrived,
outcomes come late, the monitor measures each week and decides, a wanted retrain meets the gate, and at the end a
rollback is shown. The flows are called one after another here; under `make up` schedules and an event start them. One
Prefect server is started for all, since each run without a server would start its own, and stopped at the end. What the
runs leave behind stays in .evergreen, for the UIs.
"""

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from flows import cli
from infra.servers import server
from tasks import params

if TYPE_CHECKING:
    from flows.monitor import Monitored
    from flows.retrain import Retrained
    from tasks.monitoring.signal import Signal

FIRST, LAST, STEP = datetime(2013, 4, 15), datetime(2013, 8, 5), timedelta(days=28)
TRIALS, BUDGET = 6, timedelta(seconds=40)
SMALLER = {"tune.rows": 20_000, "tune.finalists": 2, "evaluate.shap_rows": 500}
COLOURS = {"PROMOTE": "green", "HOLD": "yellow", "REJECT": "red"}
METRICS = ("log_loss", "auc", "average_precision", "brier", "calibration_error", "f1")


def demo() -> None:
    console = Console()
    console.print("[bold]evergreen[/] keeps a model fresh: will a flight from New York arrive 15 minutes late or more?")
    if _lived_before():
        console.print(
            f"[yellow]{params.home()} has runs already, so little of this will be new. "
            "With EVERGREEN_HOME=<a new folder> the tour begins at the beginning.[/]"
        )
    with server() as address:
        os.environ["PREFECT_API_URL"] = address  # before prefect is imported
        from prefect.logging.handlers import APILogHandler

        pages = list(tour(console))
        APILogHandler().flush()  # the server goes when this block ends
    for page in pages:
        console.print(page)
    console.print(closing())


def tour(console: Console) -> Iterator[Any]:
    """Live through the months; what is to be shown at the end, in the order of time."""
    from flows.rollback import describe, rollback

    yield from page(_retrain(console, FIRST, None))
    as_of, done = FIRST, None
    while not (done and done.version) and (as_of := as_of + STEP) <= LAST:
        console.rule(f"[bold]{as_of:%d %B %Y}: score and monitor")
        watched = _tick(as_of)
        yield from weeks(watched)
        if watched.decision and (watched.decision.retrains or _left_open(watched.decision.id)):
            done = _retrain(console, as_of, watched.decision.id)
            yield from page(done)
    if done and done.version:
        console.rule("[bold]and back: rollback")
        yield Panel(describe(rollback(reason="to show it", as_of=as_of)), title="rollback", border_style="yellow")


def _left_open(decision: str) -> bool:
    """Whether an earlier tour asked for this retrain, and was ended before it had an answer."""
    from tasks.monitoring import decisions
    from tasks.promotion import ledger, registry
    from tasks.serving import journal

    p = params.load()
    answered = ledger.find_answered(registry.open_registry(p.registry).ledger())
    requests = decisions.read_requests(journal.open_journal(p.journal))
    pending = decisions.select_pending(requests, answered=answered, p=p)
    return decision in [request.decision for request in pending]


def _lived_before() -> bool:
    from tasks.promotion import registry

    return bool(registry.open_registry(params.load().registry).ledger())


def _tick(as_of: datetime) -> "Monitored":
    from flows.monitor import monitor
    from flows.score import score

    score(as_of=as_of)
    return monitor(as_of=as_of, report="alarms")


def _retrain(console: Console, as_of: datetime, decision: str | None) -> "Retrained":
    from flows.retrain import retrain

    console.rule(f"[bold]retrain as of {as_of:%d %B %Y}")
    reason = f"decision {decision}" if decision else "the first model"
    done = retrain(as_of=as_of, trials=TRIALS, budget=BUDGET, reason=reason, decision=decision, settings=SMALLER)
    if done is None:
        raise RuntimeError(f"decision {decision} was answered by another run: see its verdict in the MLflow UI")
    return done


# --- what a person sees --------------------------------------------------------------------------------------------


def weeks(watched: "Monitored") -> Iterator[Any]:
    """The windows that a run of the monitor measured, and what it decided."""
    from tasks.monitoring.signal import read_signals
    from tasks.serving import journal

    table = Table(title=f"weeks seen on {watched.as_of:%d %B}", title_justify="left")
    for name in ("to", "rows", "performance: log loss", "drift", "what moved most"):
        table.add_column(name, justify="right" if name == "rows" else "left")
    kept = journal.open_journal(params.load().journal)
    seen = [each for each in read_signals(kept) if watched.as_of - STEP < each.window_end <= watched.as_of]
    for end in sorted({each.window_end for each in seen}):
        by_kind = {each.kind: each for each in seen if each.window_end == end}
        table.add_row(*_cells(by_kind["performance"], by_kind["drift"]))
    yield table
    if watched.decision:
        colour = "red" if watched.decision.retrains else "green"
        why = "\n".join(f"• {reason}" for reason in watched.decision.reasons)
        yield Panel(why, title=f"decision {watched.decision.id}: {watched.decision.action}", border_style=colour)


def _cells(performance: "Signal", drift: "Signal") -> tuple[str, ...]:
    columns = drift.detail.get("columns", [])
    top = f"{columns[0]['name']}: {columns[0]['change']}" if columns else "–"
    return f"{drift.window_end:%d %b}", f"{drift.rows:,}", _cell(performance), _cell(drift), top


def _cell(signal: "Signal") -> str:
    if signal.value is None or signal.reference is None:
        return "–"
    text = f"{signal.value:.3g} against {signal.reference:.3g}"
    return f"[bold red]{text} ALARM[/]" if signal.alarm else text


def page(done: "Retrained") -> Iterator[Any]:
    """One retrain on one page."""
    from rich.rule import Rule

    colour = COLOURS[done.verdict.outcome]
    became = f"version {done.version} serves now" if done.version else "the champion stays"
    yield Rule(f"[bold]as of {done.as_of[:10]}: [{colour}]{done.verdict.outcome}[/], {became}")
    yield _facts(done)
    yield _leaderboard(done)
    yield Panel("\n".join(f"• {reason}" for reason in done.verdict.reasons), title="why", border_style=colour)


def _facts(done: "Retrained") -> Table:
    tables, tuned = done.reports["quality"]["tables"].values(), done.reports["tuned"]
    read, bad = (sum(table[name] for table in tables) for name in ("rows", "bad"))
    table = Table.grid(padding=(0, 2))
    table.add_row("rows read", f"{read:,}, of which {bad:,} went to quarantine")
    table.add_row("search", f"{tuned['trials']} trials, {tuned['pruned']} pruned; ended by the {tuned['ended_by']}")
    table.add_row("stages", ", ".join(f"{each.name} {each.status} {each.wall:.0f} s" for each in done.stages))
    table.add_row("cost", f"{done.cpu:.0f} seconds of CPU")
    return table


def _leaderboard(done: "Retrained") -> Table:
    table = Table(title="on the holdout, which only the gate sees", title_justify="left")
    table.add_column("model")
    for name in METRICS:
        table.add_column(name.replace("_", " "), justify="right")
    for row in done.reports["leaderboard"]:
        style = "bold" if row["model"] == "candidate" else ""
        table.add_row(row["model"], *(f"{row[name]:.4f}" for name in METRICS), style=style)
    return table


def closing() -> str:
    return (
        "\n[bold]Look further[/]\n"
        "  make up            Prefect on http://127.0.0.1:4200, MLflow on :5000, the drift reports on :8000,\n"
        "                     the API on :8080\n"
        "  make repro         the same pipeline by hand, in this folder\n"
    )


if __name__ == "__main__":
    cli.run("demo")
