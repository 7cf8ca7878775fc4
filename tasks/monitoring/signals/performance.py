"""performance: the loss on mature outcomes, against the twin's loss on the holdout at promotion."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.monitoring.signal import Signal
from tasks.monitoring.window import Predictions, Watched, Window, measure_loss
from tasks.promotion.contest import Metric, row_losses
from tasks.promotion.interval import Estimate
from tasks.promotion.verdict import METRIC_NAMES
from tasks.training.model import Floats, Model


def measure_performance(window: Window, watched: Watched) -> Signal:
    """An alarm when the loss is surely higher than at promotion, by more than monitor.tolerance."""
    rows, p, before = window.mature, watched.p, watched.at_promotion
    is_labelled = rows.is_labelled
    fields: dict[str, Any] = {
        "kind": "performance",
        "window_begin": window.as_of - p.monitor.window,
        "window_end": window.as_of,
        "version": watched.version.number,
        "rows": int(is_labelled.sum()),
        "reference": before.value,
    }
    if not is_labelled.any():
        return Signal(**fields, alarm=False, message=f"Performance: no mature outcomes {rows.span}.")
    is_known, losses = measure_losses(rows, watched.model, metric=p.gate.metric)
    if not is_known.any():
        count = f"all {is_labelled.sum():,} mature outcomes {rows.span}"
        return Signal(**fields, alarm=True, message=f"Performance: {count} are of classes that it never saw.")
    now = measure_loss(losses, rows.times[is_known], p.gate)
    worse_by = surely_worse_by(before, now)
    interval = f" ({p.gate.level:.0%} interval {now.low:.4f} to {now.high:.4f})" if now.low is not None else ""
    unlabelled = float(1 - is_labelled.mean())
    message = (
        f"{METRIC_NAMES[p.gate.metric].capitalize()} {now.value:.4f}{interval} {rows.span}, {before.value:.4f} at "
        f"promotion; {unlabelled:.1%} of the rows never got a label."
    )
    return Signal(
        **fields,
        alarm=worse_by is not None and worse_by > p.monitor.tolerance,
        message=message,
        value=now.value,
        low=now.low,
        high=now.high,
        detail={"unlabelled": unlabelled, "surely_worse_by": worse_by},
    )


def measure_losses(rows: Predictions, model: Model, *, metric: Metric) -> tuple[NDArray[np.bool_], Floats]:
    """Which rows have an outcome that the model knows (n), and the loss of each of those."""
    codes = model.spec.encode_label(rows.labels)
    is_known = ~np.isnan(codes)
    return is_known, row_losses(codes[is_known], rows.scores[is_known], metric=metric)


def surely_worse_by(before: Estimate, now: Estimate) -> float | None:
    """The lower end of the interval of now - before, made of the intervals of each (Zou and Donner 2008)."""
    if now.low is None:
        return None
    above = (before.high - before.value) if before.high is not None else 0.0
    return now.value - before.value - float(np.hypot(now.value - now.low, above))
