"""demo: the tour. The whole loop on the real flights, in a few minutes and one page.

    evergreen demo

A first model must beat the baselines. Then months go by: the champion scores what arrived, outcomes come late, the
monitor measures each week and decides, a wanted retrain meets the gate, and the fresher model is compared with the one
before it. The flows are called one after another here; under `evergreen up` schedules and an event start them. One
Prefect server is started for all, since each run without a server would start its own, and stopped at the end. What the
runs leave behind stays in .evergreen, for the UIs; what they log goes to a file there.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flows import cli
from flows.screen import Screen, divert_output
from infra.servers import run_prefect
from tasks import params

if TYPE_CHECKING:
    from flows.monitor import Monitored
    from flows.retrain import Retrained
    from tasks.monitoring.signal import Signal

STEP = timedelta(days=28)
FIRST = datetime(2013, 4, 15)
QUIET, SUMMER, LAST = FIRST + STEP, FIRST + 3 * STEP, FIRST + 4 * STEP
TRIALS, BUDGET = 6, timedelta(seconds=40)
SMALLER = {"tune.rows": 20_000, "tune.finalists": 2}
STEPS = 5
TICK_TASKS, RETRAIN_TASKS = 16, 16  # Prefect tasks of a tick (score, then monitor) and of a retrain, for the bar
COLOURS = {"PROMOTE": "green", "HOLD": "yellow", "REJECT": "red"}


def demo() -> None:
    """Live through months of real flights: a first model, drift, a retrain, and the fresher model serves."""
    home = params.home()
    log = home / "logs" / "demo.log"
    console = Console(highlight=False)
    console.print("[bold]evergreen[/] keeps a model fresh: will a flight from New York arrive 15 minutes late or more?")
    console.print(f"{STEPS} steps, about three minutes. What the flows log goes to {log}", soft_wrap=True)
    with divert_output(log) as screen, run_prefect() as address:
        os.environ["PREFECT_API_URL"] = address  # before prefect is imported
        from prefect.logging.handlers import APILogHandler

        Tour(screen, home).run()
        APILogHandler().flush()  # the server goes when this block ends


class Tour:
    """The steps, and what a person sees of each."""

    def __init__(self, screen: Screen, home: Path) -> None:
        self.screen = screen
        self.home = home
        self.step = 0

    def run(self) -> None:
        if has_history():
            self.say(
                f"[yellow]{self.home} has runs already, so little of this will be new. "
                "With EVERGREEN_HOME=<a new folder> the tour begins at the beginning.[/]"
            )
        with self.begin(f"a first model, of the flights until {FIRST:%d %B}", seconds=45, tasks=RETRAIN_TASKS):
            first = retrain_at(FIRST, None)
        self.show_retrain(first)
        self.live_on("four weeks go by: it predicts each flight, and outcomes come late", FIRST, QUIET)
        watched = self.live_on(f"eight weeks more, until {SUMMER:%d %B}", QUIET, SUMMER)
        self.answer(watched)
        watched = self.live_on(f"four weeks more, until {LAST:%d %B}", SUMMER, LAST)
        self.close(watched)

    @contextmanager
    def begin(self, what: str, *, seconds: int, tasks: int) -> Iterator[None]:
        """Say what comes, and show how far it is while it lasts."""
        self.step += 1
        self.say(f"\n[bold]{self.step} of {STEPS}: {what}[/] (about {seconds} s)")
        with self.screen.show_progress(tasks):
            yield

    def live_on(self, what: str, since: datetime, until: datetime) -> "Monitored":
        """Score and monitor; the weeks that were measured, and what was decided."""
        from flows.monitor import monitor
        from flows.score import score

        with self.begin(what, seconds=20, tasks=TICK_TASKS):
            score(as_of=until)
            watched = monitor(as_of=until, report="alarms")
        self.show_weeks(since, until)
        if watched.decision:
            why = " ".join(watched.decision.reasons) if watched.decision.retrains else "nothing has surely got worse."
            self.say(f"  [bold]{watched.decision.action}[/]: {why}")
        return watched

    def answer(self, watched: "Monitored") -> None:
        """The retrain that the monitor's decision asks for, if it asks for one."""
        decision = watched.decision
        if decision and (decision.retrains or is_left_open(decision.id)):
            with self.begin("the retrain that this decision asks for", seconds=50, tasks=RETRAIN_TASKS):
                done = retrain_at(watched.as_of, decision.id)
            self.show_retrain(done)
        else:
            self.step += 1
            self.say(f"\n[bold]{self.step} of {STEPS}:[/] no retrain is wanted, so none is made")

    def show_retrain(self, done: "Retrained") -> None:
        tables = done.reports["quality"]["tables"].values()
        rows, bad = (sum(table[name] for table in tables) for name in ("rows", "bad"))
        losses = ", ".join(f"{row['model']} {row['log_loss']:.3f}" for row in done.reports["leaderboard"])
        colour = COLOURS[done.verdict.outcome]
        serving = f"version {done.version} serves now" if done.version else "the champion stays"
        self.say(f"  {rows:,} rows read, {bad:,} put aside; {done.reports['tuned']['trials']} trials")
        self.say(f"  log loss on the holdout, which only the gate sees: {losses}")
        self.say(f"  [bold {colour}]{done.verdict.outcome}[/], {serving}. {done.verdict.reasons[0]}")

    def show_weeks(self, since: datetime, until: datetime) -> None:
        from tasks.monitoring.signal import read_signals
        from tasks.serving.journal import open_journal

        signals = read_signals(open_journal(params.load().journal))
        weeks = [signal for signal in signals if since < signal.window_end <= until]
        table = Table(box=None, padding=(0, 1), header_style="dim")
        for name in ("week to", "version", "flights", "log loss", "promoted at", "drift", "threshold"):
            table.add_column(name, justify="right")
        for end in sorted({signal.window_end for signal in weeks}):
            by_kind = {signal.kind: signal for signal in weeks if signal.window_end == end}
            drift, performance = by_kind["drift"], by_kind["performance"]
            cells = (f"{end:%d %b}", str(drift.version), f"{drift.rows:,}", *word(performance), *word(drift))
            table.add_row(*cells)
        self.screen.lines.print(table)

    def close(self, watched: "Monitored") -> None:
        """Who serves, by how much it is better, where to see it, and how to go back."""
        from flows.picture import draw_loop, read_promotions
        from tasks.promotion.registry import open_registry
        from tasks.serving.journal import open_journal

        p, picture = params.load(), self.home / "reports" / "loop.png"
        registry = open_registry(p.registry)
        draw_loop(p, registry, open_journal(p.journal), until=watched.as_of, path=picture)
        self.say(f"\n[bold green]Version {list(read_promotions(registry))[-1]} serves.[/]")
        comparison = next((signal for signal in watched.signals if signal.kind == "predecessor"), None)
        if comparison and comparison.rows:
            loss, before = comparison.detail["champion"], comparison.detail["predecessor"]
            self.say(
                f"Its log loss on the {comparison.rows:,} flights since: {loss:.4f}; "
                f"version {before} would have had {comparison.detail['candidate']:.4f}."
            )
            self.say(f"  to go back to {before}   .venv/bin/evergreen rollback --reason 'why'")
        self.say(f"  the picture       {picture}")
        self.say("  the same, live    .venv/bin/evergreen up")
        self.say("  your own table    see README.md")

    def say(self, line: str) -> None:
        self.screen.lines.print(line, highlight=False, soft_wrap=True)


def retrain_at(as_of: datetime, decision: str | None) -> "Retrained":
    from flows.retrain import retrain

    reason = f"decision {decision}" if decision else "the first model"
    done = retrain(as_of=as_of, trials=TRIALS, budget=BUDGET, reason=reason, decision=decision, settings=SMALLER)
    if done is None:
        raise RuntimeError(f"nothing was trained as of {as_of:%Y-%m-%d}: set EVERGREEN_HOME to a new folder")
    return done


def has_history() -> bool:
    from tasks.promotion import registry

    return bool(registry.open_registry(params.load().registry).read_ledger())


def is_left_open(decision: str) -> bool:
    """Whether an earlier tour asked for this retrain, and was ended before it had an answer."""
    from tasks.monitoring import decisions
    from tasks.promotion import ledger, registry
    from tasks.serving import journal

    p = params.load()
    answered = ledger.find_answered(registry.open_registry(p.registry).read_ledger())
    requests = decisions.read_requests(journal.open_journal(p.journal))
    pending = decisions.select_pending(requests, answered=answered, p=p)
    return decision in [request.decision for request in pending]


def word(signal: "Signal") -> tuple[str, str]:
    """What was measured, red where it alarms, and what it is held against."""
    value, reference = ("–" if number is None else f"{number:.3f}" for number in (signal.value, signal.reference))
    return (f"[bold red]{value}[/]" if signal.alarm else value), reference


if __name__ == "__main__":
    cli.run("demo")
