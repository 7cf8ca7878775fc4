"""drift: how far the features, and the predictions, of the newest rows lie from the champion's history."""

from dataclasses import asdict
from typing import Any

from tasks.monitoring.drift import LEAST_WINDOWS, ColumnDrift, Comparison
from tasks.monitoring.signal import Signal
from tasks.monitoring.window import LEAST_COVERAGE, Watched, Window
from tasks.params import spell

SHOWN_COLUMNS = 5  # in a sentence


def measure_drift(window: Window, watched: Watched) -> Signal:
    """Of the features."""
    drift, moved = window.drift, window.drift.moved
    names = [f"{column.name} ({column.change}; {column.score:.1f} deviations)" for column in moved[:SHOWN_COLUMNS]]
    more = f" and {len(moved) - SHOWN_COLUMNS} more" if len(moved) > SHOWN_COLUMNS else ""
    changes = f"moved: {', '.join(names)}{more}" if names else "no column moved by itself"
    message = f"signal {drift.signal:.2f}, the threshold {drift.threshold:.2f} ({_name_rate(watched)}); {changes}."
    why_not = _why_unmeasured(drift, window, watched)
    fields = _fields(drift, window, watched, message=f"Drift: {why_not}" if why_not else f"Drift {message}")
    return Signal("drift", **fields, detail={"columns": [_to_row(column) for column in drift.ranked]})


def measure_prediction(window: Window, watched: Watched) -> Signal:
    """Of the scores."""
    drift = window.score_drift
    if (message := _why_unmeasured(drift, window, watched)) is None:
        top = drift.ranked[0]
        off = f"{top.score:.1f} deviations of the holdout's windows, the threshold {top.threshold:.1f}"
        message = f"{top.change}; {off} ({_name_rate(watched)})."
    return Signal("prediction", **_fields(drift, window, watched, message=f"Predictions: {message}"))


def _fields(comparison: Comparison, window: Window, watched: Watched, *, message: str) -> dict[str, Any]:
    is_measured = _why_unmeasured(comparison, window, watched) is None
    return {
        "window_begin": window.since,
        "window_end": window.as_of,
        "version": watched.version.number,
        "rows": window.drift.rows,
        "alarm": is_measured and comparison.alarm,
        "message": message,
        "value": comparison.signal if is_measured else None,
        "reference": comparison.threshold if is_measured else None,
    }


def _name_rate(watched: Watched) -> str:
    return f"drift.false_alarms: {watched.p.drift.false_alarms:g} in 30 days"


def _why_unmeasured(comparison: Comparison, window: Window, watched: Watched) -> str | None:
    """Why a window alarms about nothing, as one that was hardly covered does, or one of few rows."""
    least, length = watched.p.policy.min_rows, spell(window.as_of - window.since)
    if not comparison.rows:
        return f"no rows in the window, of monitor.window ({length})."
    if not comparison.windows:
        return f"the history holds less than a window of monitor.window ({length}); the next promotion brings its own."
    if comparison.windows < LEAST_WINDOWS:
        return (
            f"the history holds {comparison.windows:.1f} windows of monitor.window ({length}), and a threshold needs "
            f"{LEAST_WINDOWS}: shorten monitor.window, or wait for a model of a longer history."
        )
    if window.drift.rows < least:
        return f"{window.drift.rows:,} rows are fewer than policy.min_rows ({least:,}), which turns this signal off."
    share = f"{LEAST_COVERAGE:.0%} of its rows, from its first day on"
    whole = f"all of monitor.window ({length}) must be journalled with this model's features, {share}"
    return None if window.is_whole else f"too little of the window is journalled to tell: {whole}."


def _to_row(column: ColumnDrift) -> dict[str, Any]:
    row = {name: value for name, value in asdict(column).items() if name != "faults"} | {"alarm": column.alarm}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
