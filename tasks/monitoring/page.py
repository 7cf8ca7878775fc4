"""page: a measured window as a person reads it, and as numbers on a chart. Pure."""

import re
from collections.abc import Sequence

from tasks.monitoring import canary
from tasks.monitoring.monitor import Measured
from tasks.monitoring.policy import Decision

NO_CHAMPION = "No champion serves yet: there is nothing to watch."
ARMS = ("arm", "version", "scored", "compared on", "loss")
NOT_IN_A_CELL = re.compile(r"[|\x00-\x1f]")
NOT_IN_A_METRIC = re.compile(r"[^\w ./:-]")  # as MLflow names them
SHOWN_COLUMNS = 8


def list_figures(measured: Measured) -> dict[str, float]:
    """The window as numbers, for a chart over time."""
    figures: dict[str, float | None] = {signal.kind: signal.value for signal in measured.signals}
    figures |= {f"{signal.kind}.threshold": signal.reference for signal in measured.signals}
    figures |= {f"{signal.kind}.alarm": float(signal.alarm) for signal in measured.signals if signal.kind != "estimate"}
    for column in measured.drift.columns:
        figures[f"moved.{NOT_IN_A_METRIC.sub('_', column.name)[:200]}"] = round(column.score, 4)
    return {name: value for name, value in figures.items() if value is not None}


def render_page(measured: Measured | None, decision: Decision | None) -> str:
    """The decision, the signals, what moved and what it did, as Markdown; without a window, no champion serves."""
    if measured and decision:
        return _render_window(measured, decision)
    if measured:
        return "# No decision\n\nThe window was measured, and the decision failed: see this run's error.\n"
    if decision:
        reasons = "\n".join(f"- {reason}" for reason in decision.reasons)
        return f"# {decision.action} (decision {decision.id})\n\n{NO_CHAMPION}\n\n{reasons}\n"
    return f"{NO_CHAMPION} No tick of the score flow has told yet what time it is."


def _render_window(measured: Measured, decision: Decision) -> str:
    title = f"# {decision.action} (as of {decision.as_of:%Y-%m-%d %H:%M}, decision {decision.id})"
    parts = [title, "\n".join(f"- {reason}" for reason in decision.reasons)]
    states = [
        (signal.kind, "ALARM" if signal.alarm else "quiet" if signal.is_measured else "not measured", signal.message)
        for signal in measured.signals
    ]
    parts += ["## Signals", render_table(("signal", "", "what was seen"), states)]
    if look := measured.challenger:
        parts += ["## Champion and challenger", render_table(ARMS, canary.tabulate_arms(look)), look.message]
    if moved := measured.drift.moved[:SHOWN_COLUMNS]:
        rows = [(column.name, f"{column.score:.1f}", f"{column.threshold:.1f}", column.change) for column in moved]
        parts += ["## Columns that moved", render_table(("column", "deviations", "threshold", "how"), rows)]
    if measured.causes:
        shifts = [(cause.name, f"{cause.shift:+.4f}", f"{cause.score:.1f}", cause.change) for cause in measured.causes]
        parts += ["## What moved the scores", render_table(("column", "SHAP shift", "deviations", "how"), shifts)]
    if measured.slices:
        losses = [
            (f"{group.name} {group.value}", f"{group.rows:,}", f"{group.loss_then:.4f}", f"{group.loss_now:.4f}")
            for group in measured.slices
        ]
        names = ("slice", "rows", "loss at promotion", "loss now")
        parts += ["## Slices that lost most", render_table(names, losses)]
    return "\n\n".join(parts) + "\n"


def render_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[NOT_IN_A_CELL.sub("/", cell) for cell in row] for row in (names, ["---"] * len(names), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
