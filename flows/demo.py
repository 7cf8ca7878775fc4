"""demo: the tour. Two retrains on the real flights, and a page of what came of them.

    make demo

The first date makes a first model, which must beat the baselines; three months later a challenger meets it. One Prefect
server is started for both, since each run without a server would start its own, and stopped at the end. What the runs
leave behind stays in .evergreen, for the UIs.
"""

import os
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from flows.servers import server

if TYPE_CHECKING:
    from flows.retrain import Retrained

DATES = (datetime(2013, 4, 15), datetime(2013, 7, 15))
TRIALS, ROWS, FINALISTS, BUDGET = 8, 20_000, 2, timedelta(seconds=40)
COLOURS = {"PROMOTE": "green", "HOLD": "yellow", "REJECT": "red"}
METRICS = ("log_loss", "auc", "average_precision", "brier", "calibration_error", "f1")


def demo() -> None:
    console = Console()
    console.print("[bold]evergreen[/] keeps a model fresh: will a flight from New York arrive 15 minutes late or more?")
    with server() as address:
        os.environ["PREFECT_API_URL"] = address  # before prefect is imported
        from prefect.logging.handlers import APILogHandler

        from flows.retrain import retrain

        done = [_retrain(console, retrain, as_of) for as_of in DATES]
        APILogHandler().flush()  # the server goes when this block ends
    for each in done:
        show(console, each)
    console.print(closing())


def _retrain(console: Console, retrain: Any, as_of: datetime) -> "Retrained":
    console.rule(f"[bold]retrain as of {as_of:%d %B %Y}")
    smaller = {"tune.rows": ROWS, "tune.finalists": FINALISTS}
    result: Retrained = retrain(
        as_of=as_of, trials=TRIALS, budget=BUDGET, reason=f"demo {as_of:%Y-%m-%d}", settings=smaller
    )
    return result


def show(console: Console, done: "Retrained") -> None:
    """One retrain on one page."""
    colour = COLOURS[done.verdict.outcome]
    became = f"version {done.version} serves now" if done.version else "the champion stays"
    console.rule(f"[bold]as of {done.as_of[:10]}: [{colour}]{done.verdict.outcome}[/], {became}")
    console.print(_facts(done))
    console.print(_leaderboard(done))
    console.print(Panel("\n".join(f"• {reason}" for reason in done.verdict.reasons), title="why", border_style=colour))


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
        "  make ui-mlflow     then http://127.0.0.1:5000   runs, trials, models, the ledger\n"
        "  make ui-prefect    then http://127.0.0.1:4200   the two runs, stage by stage, with the verdicts\n"
        "  make repro         the same pipeline by hand, in this folder\n"
    )


if __name__ == "__main__":
    demo()
