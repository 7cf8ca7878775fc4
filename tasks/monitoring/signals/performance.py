"""performance: the loss on mature outcomes, against what is usual for such rows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.monitoring.excess import LEAST_BLOCKS, Change, Excess, compare_excess, measure_excess
from tasks.monitoring.signal import Signal
from tasks.monitoring.window import Predictions, Watched, Window
from tasks.params import spell
from tasks.promotion.contest import Metric, row_losses
from tasks.promotion.verdict import METRIC_NAMES
from tasks.training.model import Floats, Model


def measure_performance(window: Window, watched: Watched) -> Signal:
    """An alarm when the loss is surely higher than usual, by more than monitor.tolerance.

    Usual is what the model itself expects of the window's rows, and what its loss lay above that on the holdout, at
    promotion. `reference` is what is usual, `low` and `high` are the interval of the loss against it.
    """
    rows, p, before = window.mature, watched.p, watched.at_promotion
    is_labelled = rows.is_labelled
    fields: dict[str, Any] = {
        "kind": "performance",
        "window_begin": window.as_of - p.monitor.window,
        "window_end": window.as_of,
        "version": watched.version.number,
        "rows": int(is_labelled.sum()),
    }
    if not is_labelled.any():
        wait = f"they are mature label.deadline ({spell(p.label.deadline)}) after their event"
        return Signal(**fields, alarm=False, message=f"Performance: no mature outcomes {rows.span}; {wait}.")
    is_known, losses = measure_losses(rows, watched.model, metric=p.gate.metric)
    if not is_known.any():
        count = f"all {is_labelled.sum():,} mature outcomes {rows.span}"
        return Signal(**fields, alarm=True, message=f"Performance: {count} are of classes that it never saw.")
    expected = before.expectation.expect(rows.scores[is_known])
    now = measure_excess(losses, expected, rows.times[is_known], p.gate)
    change, usual = compare_excess(now, before.excess, level=p.gate.level), now.expected + before.excess.value
    most, unlabelled = p.monitor.tolerance * before.skill, float(1 - is_labelled.mean())
    is_higher = change is not None and change.surely_higher_by > most
    detail = {
        "expected": now.expected,
        "at_promotion": before.excess.loss,
        "excess_at_promotion": before.excess.value,
        "skill": before.skill,
        "unlabelled": unlabelled,
    }
    ends: dict[str, Any] = {"low": change.low, "high": change.high} if change else {}
    message = f"{_describe(now, change, rows, watched)} {unlabelled:.1%} of the rows never got a label."
    return Signal(**fields, **ends, alarm=is_higher, message=message, value=now.loss, reference=usual, detail=detail)


def _describe(now: Excess, change: Change | None, rows: Predictions, watched: Watched) -> str:
    """The loss, what was usual, and the setting that decides whether it alarms."""
    p, before = watched.p, watched.at_promotion
    name, off = METRIC_NAMES[p.gate.metric].capitalize(), before.excess.value
    interval = f" ({p.gate.level:.0%} interval {change.low:.4f} to {change.high:.4f})" if change else ""
    usual = (
        f"{name} {now.loss:.4f}{interval} {rows.span}; {now.expected + off:.4f} is usual for such rows: the model "
        f"expected {now.expected:.4f}, and at promotion its {before.excess.loss:.4f} lay {abs(off):.4f} "
        f"{'above' if off >= 0 else 'below'} what it expected."
    )
    return f"{usual} {_describe_limit(now, change, watched)}"


def _describe_limit(now: Excess, change: Change | None, watched: Watched) -> str:
    p, skill = watched.p, watched.at_promotion.skill
    if change is None:
        blocks = watched.at_promotion.excess.blocks
        few, longer = (now.blocks, "monitor.window") if now.blocks < LEAST_BLOCKS else (blocks, "split.holdout")
        return (
            f"No interval, and so no alarm: it needs {LEAST_BLOCKS} blocks of gate.block ({spell(p.gate.block)}), and "
            f"{longer} has {few}: lengthen it, or shorten gate.block."
        )
    limit = f"monitor.tolerance ({p.monitor.tolerance:.0%} of its skill, {skill:.4f})"
    if change.surely_higher_by <= p.monitor.tolerance * skill:
        return f"It is not surely higher by more than {limit}."
    share = f" ({change.surely_higher_by / skill:.0%} of its skill)" if skill else ""
    return f"It is surely higher by {change.surely_higher_by:.4f}{share}, and alarms beyond {limit}."


def measure_losses(rows: Predictions, model: Model, *, metric: Metric) -> tuple[NDArray[np.bool_], Floats]:
    """Which rows have an outcome that the model knows (n), and the loss of each of those."""
    codes = model.spec.encode_label(rows.labels)
    is_known = ~np.isnan(codes)
    return is_known, row_losses(codes[is_known], rows.scores[is_known], metric=metric)
