"""page: a measured window as a person reads it, and as numbers on a chart. Pure."""

import re

from tasks.monitoring import canary
from tasks.monitoring.monitor import Measured
from tasks.monitoring.policy import Decision
from tasks.monitoring.signal import Signal
from tasks.params import SignalKind
from tasks.promotion.verdict import render_table

NO_CHAMPION = "No champion serves yet: there is nothing to watch."
NOT_IN_A_METRIC = re.compile(r"[^\w ./:-]")  # as MLflow names them
SHOWN_COLUMNS = 8


def list_figures(measured: Measured) -> dict[str, float]:
    """The window as numbers, for a chart over time.

    The loss alarms where the low end of its interval lies above what is usual, drift where it lies above its threshold.
    """
    figures: dict[str, float | None] = {signal.kind: signal.value for signal in measured.signals}
    figures |= {f"{signal.kind}.{name_reference(signal.kind)}": signal.reference for signal in measured.signals}
    figures |= {f"{signal.kind}.low": signal.low for signal in measured.signals}
    figures |= {f"{signal.kind}.alarm": float(signal.alarm) for signal in measured.signals if signal.kind != "estimate"}
    for column in measured.drift.columns:
        figures[f"moved.{NOT_IN_A_METRIC.sub('_', column.name)[:200]}"] = round(column.score, 4)
    return {name: value for name, value in figures.items() if value is not None}


def name_reference(kind: SignalKind) -> str:
    """What a signal's value is held against."""
    return {"performance": "usual", "estimate": "at_promotion"}.get(kind, "threshold")


def render_page(measured: Measured | None, decision: Decision | None) -> str:
    """The decision, the signals, what moved and what it did, as Markdown; without a window, no champion serves."""
    if measured and decision:
        return _render_window(measured, decision)
    if measured:
        return "# No decision\n\nThe window was measured, and the decision failed: see this run's error.\n"
    if decision:
        reasons = "\n".join(f"- {reason}" for reason in decision.reasons)
        return f"# {decision.name} (decision {decision.id})\n\n{NO_CHAMPION}\n\n{reasons}\n"
    return f"{NO_CHAMPION} No tick of the score flow has told yet what time it is."


def _name_state(signal: Signal) -> str:
    if signal.alarm:
        return "ALARM" if signal.is_warning else "age costs"
    return "quiet" if signal.is_measured else "not measured"


def _render_window(measured: Measured, decision: Decision) -> str:
    title = f"# {decision.name} (as of {decision.as_of:%Y-%m-%d %H:%M}, decision {decision.id})"
    parts = [title, "\n".join(f"- {reason}" for reason in decision.reasons)]
    states = [
        {
            "signal": signal.kind,
            "": _name_state(signal),
            "what was seen": signal.message,
        }
        for signal in measured.signals
    ]
    parts += ["## Signals", render_table(states)]
    if look := measured.challenger:
        parts += ["## Champion and challenger", render_table(canary.tabulate_arms(look)), look.message]
    moved = [
        {
            "column": column.name,
            "deviations": f"{column.score:.1f}",
            "threshold": f"{column.threshold:.1f}",
            "how": column.change,
        }
        for column in measured.drift.moved[:SHOWN_COLUMNS]
    ]
    shifts = [
        {
            "column": cause.name,
            "SHAP shift": f"{cause.shift:+.4f}",
            "deviations": f"{cause.score:.1f}",
            "how": cause.change,
        }
        for cause in measured.causes
    ]
    losses = [
        {
            "slice": f"{group.name} {group.value}",
            "rows": f"{group.rows:,}",
            "loss at promotion": f"{group.loss_then:.4f}",
            "loss now": f"{group.loss_now:.4f}",
        }
        for group in measured.slices
    ]
    tables = {"Columns that moved": moved, "What moved the scores": shifts, "Slices that lost most": losses}
    for name, rows in tables.items():
        parts += [f"## {name}", render_table(rows)] if rows else []
    return "\n\n".join(parts) + "\n"
