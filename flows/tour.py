"""tour: the demo's steps, what a person sees of each, and its picture.

The picture is the loop at a glance: each version's loss by week, and what the version before it would have lost.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from prefect.logging.handlers import APILogHandler
from rich.table import Table

from flows.demo import FIRST, STEPS, Screen
from flows.monitor import Monitored, monitor
from flows.retrain import retrain
from flows.score import score
from tasks import params
from tasks.monitoring import decisions, predecessor
from tasks.monitoring.policy import Decision
from tasks.monitoring.signal import Signal, read_signals
from tasks.params import RetrainKind
from tasks.promotion import contest, ledger, recipe
from tasks.promotion.registry import Registry, open_registry
from tasks.serving.journal import Journal, open_journal
from tasks.serving.predictions import features_of
from tasks.training.model import Floats

WEEK = timedelta(days=7)
JUNE, LAST = FIRST + 9 * WEEK, FIRST + 12 * WEEK
TRIALS, BUDGET = 6, timedelta(seconds=80)
SMALLER = {"tune.rows": 20_000, "tune.finalists": 2}
TICK_TASKS, RETRAIN_TASKS = 16, 16  # Prefect tasks of a tick (score, then monitor) and of a retrain, for the bar
OUTCOME_COLOURS = {"PROMOTE": "green", "HOLD": "yellow", "REJECT": "red"}
VERSION_COLOURS = ("#4c72b0", "#2e8b57", "#c44e52", "#8172b3")  # in the order in which they served
SIZE_INCHES, DOTS_PER_INCH = (8, 3.4), 100


class Tour:
    """The steps, and what a person sees of each."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.p = params.load()
        self.step = 0

    def run(self) -> None:
        if open_registry(self.p.registry).read_ledger():
            self.say(
                f"[yellow]{params.home()} has runs already, so little of this will be new. "
                "With EVERGREEN_HOME=<a new folder> the tour begins at the beginning.[/]"
            )
        self.retrain_at(f"a first model, of the flights until {FIRST:%d %B}", FIRST, None, seconds=45)
        watched = self.live_on("nine weeks go by: it predicts each flight, and outcomes come late", FIRST, JUNE)
        decision = watched.decision
        if decision and (decision.retrains or self.is_left_open(decision.id)):
            what = f"the {decision.kind} that this decision asks for"
            self.retrain_at(what, watched.as_of, decision, seconds=90)
        else:
            self.step += 1
            self.say(f"\n[bold]{self.step} of {STEPS}:[/] no retrain is wanted, so none is made")
        self.close(self.live_on(f"three weeks more, until {LAST:%d %B}", JUNE, LAST))
        APILogHandler().flush()  # the server goes when the demo ends

    @contextmanager
    def begin(self, what: str, *, seconds: int, tasks: int) -> Iterator[None]:
        """Say what comes, and show how far it is while it lasts."""
        self.step += 1
        self.say(f"\n[bold]{self.step} of {STEPS}: {what}[/] (about {seconds} s)")
        with self.screen.show_progress(tasks):
            yield

    def live_on(self, what: str, since: datetime, until: datetime) -> Monitored:
        """Score and monitor; the weeks that were measured, and what was decided."""
        with self.begin(what, seconds=20, tasks=TICK_TASKS):
            score(as_of=until)
            watched = monitor(as_of=until, report="alarms")
        self.show_weeks(since, until)
        if watched.decision:
            why = " ".join(watched.decision.reasons) if watched.decision.retrains else "nothing has surely got worse."
            self.say(f"  [bold]{watched.decision.name}[/]: {why}")
        return watched

    def is_left_open(self, decision: str) -> bool:
        """Whether an earlier tour asked for this retrain, and was ended before it had an answer."""
        answered = ledger.find_answered(open_registry(self.p.registry).read_ledger())
        requests = decisions.read_requests(open_journal(self.p.journal))
        pending = decisions.select_pending(requests, answered=answered, p=self.p)
        return decision in [request.decision for request in pending]

    def retrain_at(self, what: str, as_of: datetime, decision: Decision | None, *, seconds: int) -> None:
        """Retrain, and show what came of it."""
        reason = f"decision {decision.id}" if decision else "the first model"
        kind: RetrainKind = decision.kind if decision else "search"
        with self.begin(what, seconds=seconds, tasks=RETRAIN_TASKS):
            done = retrain(
                as_of=as_of,
                kind=kind,
                trials=TRIALS,
                budget=BUDGET,
                reason=reason,
                decision=decision.id if decision else None,
                settings=SMALLER,
            )
        if done is None:
            raise RuntimeError(f"nothing was trained as of {as_of:%Y-%m-%d}: set EVERGREEN_HOME to a new folder")
        tables = done.reports["quality"]["tables"].values()
        rows, bad = (sum(table[name] for table in tables) for name in ("rows", "bad"))
        losses = ", ".join(f"{row['model']} {row['log_loss']:.3f}" for row in done.reports["leaderboard"])
        colour = OUTCOME_COLOURS[done.verdict.outcome]
        serving = f"version {done.version} serves now" if done.version else "the champion stays"
        self.say(
            f"  {rows:,} rows read, {bad:,} put aside; {done.reports['tuned']['trials']} trials\n"
            f"  log loss on the holdout, which only the gate sees: {losses}\n"
            f"  [bold {colour}]{done.verdict.outcome}[/], {serving}. {done.verdict.reasons[0]}"
        )

    def show_weeks(self, since: datetime, until: datetime) -> None:
        signals = read_signals(open_journal(self.p.journal))
        weeks = [signal for signal in signals if since < signal.window_end <= until]
        table = Table(box=None, padding=(0, 1), header_style="dim")
        for name in ("week to", "version", "flights", "log loss", "usual", "drift", "threshold"):
            table.add_column(name, justify="right")
        for end in sorted({signal.window_end for signal in weeks}):
            by_kind = {signal.kind: signal for signal in weeks if signal.window_end == end}
            drift, performance = by_kind["drift"], by_kind["performance"]
            cells = (f"{end:%d %b}", str(drift.version), f"{drift.rows:,}", *word(performance), *word(drift))
            table.add_row(*cells)
        self.screen.lines.print(table)

    def close(self, watched: Monitored) -> None:
        """Who serves, by how much it is better, where to see it, and how to go back."""
        registry, picture = open_registry(self.p.registry), params.home() / "reports" / "loop.png"
        draw_loop(self.p, registry, open_journal(self.p.journal), until=watched.as_of, path=picture)
        self.say(f"\n[bold green]Version {list(read_promotions(registry))[-1]} serves.[/]")
        comparison = next((signal for signal in watched.signals if signal.kind == "predecessor"), None)
        if comparison and comparison.rows:
            loss, before = comparison.detail["champion"], comparison.detail["predecessor"]
            self.say(
                f"Its log loss on the {comparison.rows:,} flights since: {loss:.4f}; "
                f"version {before} would have had {comparison.detail['candidate']:.4f}.\n"
                f"  to go back to {before}   .venv/bin/evergreen rollback --reason 'why'"
            )
        self.say(
            f"  the picture       {picture}\n"
            "  the same, live    .venv/bin/evergreen up\n"
            "  your own table    see README.md"
        )

    def say(self, line: str) -> None:
        self.screen.lines.print(line, highlight=False, soft_wrap=True)


def word(signal: Signal) -> tuple[str, str]:
    """What was measured, red where it alarms, and what it is held against."""
    value, reference = ("–" if number is None else f"{number:.3f}" for number in (signal.value, signal.reference))
    return (f"[bold red]{value}[/]" if signal.alarm else value), reference


# --- the picture -----------------------------------------------------------------------------------------------------


def draw_loop(p: params.Params, registry: Registry, journal: Journal, *, until: datetime, path: Path) -> None:
    """Draw who served when, what it lost, and the drift alarms. Only outcomes that are mature at `until` count."""
    from matplotlib import dates, pyplot

    promotions = read_promotions(registry)
    colours = dict(zip(promotions, VERSION_COLOURS, strict=False))
    axes: Any  # its types know no dates
    day_and_month: Any = dates.DateFormatter
    figure, axes = pyplot.subplots(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    for number, moment in promotions.items():
        axes.axvline(moment, color=colours.get(number), linewidth=1)
        axes.annotate(f" version {number} serves", (moment, 1.02), xycoords=("data", "axes fraction"))
        for version, weeks, losses in measure_curves(p, registry, journal, number, until=until):
            label = f"version {version}{'' if version == number else f', on the rows of {number}'}"
            style = "o-" if version == number else "o:"
            axes.plot(weeks, losses, style, color=colours.get(version), label=label)
    alarms = [signal.window_end for signal in read_signals(journal) if signal.kind == "drift" and signal.alarm]
    axes.plot(alarms, np.full(len(alarms), axes.get_ylim()[0]), "v", color="#c44e52", label="drift alarm")
    axes.set_ylabel("log loss of the week")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(day_and_month("%d %b"))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def read_promotions(registry: Registry) -> dict[int, datetime]:
    """When each version began to serve, the newest last."""
    changes = (entry for entry in registry.read_ledger() if entry.mark in ledger.CHAMPION_CHANGES)
    return {entry.version: entry.as_of for entry in changes if entry.version}


def measure_curves(
    p: params.Params, registry: Registry, journal: Journal, number: int, *, until: datetime
) -> Iterator[tuple[int, list[datetime], list[float]]]:
    """The mean losses by week on the rows that a version predicted: its own, and its predecessor's on the same rows.

    Yields the version, the ends of the weeks, and its losses.
    """
    version = registry.read_version(number)
    model = recipe.fetch_model(registry, version)
    rows, codes = predecessor.read_mature(journal, version, model.spec, until=until - p.label.deadline)
    if not len(codes):
        return
    times = rows["event_time"].to_numpy()
    start = times[0].astype("datetime64[D]")
    week_of = ((times - start) / np.timedelta64(WEEK)).astype(int)
    weeks, counts = np.unique(week_of, return_counts=True)
    weeks = weeks[counts >= np.median(counts) / 2]  # days at an end are no week
    ends = [(start + np.timedelta64(WEEK) * (week + 1)).astype(datetime) for week in weeks]
    scores: dict[int, Floats] = {number: np.array(rows["score"].to_pylist(), dtype=np.float64)}
    if before := registry.find_predecessor(version):
        earlier = recipe.fetch_model(registry, before)
        again = earlier.predict(features_of(rows, earlier.spec))
        scores[before.number] = contest.align_classes(model.spec, earlier.spec.classes, again)
    for scored_by, values in scores.items():
        losses = contest.row_losses(codes, values, metric=p.gate.metric)
        yield scored_by, ends, [float(losses[week_of == week].mean()) for week in weeks]
