"""monitor: read a window of the journal, measure its signals, and append them to the journal.

Whether to retrain is decided in policy.py, what becomes of the champion and a challenger by looks.py's signals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.data import state
from tasks.monitoring import canary, causes
from tasks.monitoring.causes import Cause, Slice
from tasks.monitoring.drift import Comparison
from tasks.monitoring.looks import take_looks
from tasks.monitoring.signal import Signal, append_signals, read_signals
from tasks.monitoring.signals import measure_signals
from tasks.monitoring.signals.performance import measure_losses
from tasks.monitoring.watched import Watched
from tasks.monitoring.window import Window, read_newest, read_window
from tasks.params import Params
from tasks.promotion.registry import Registry, Version
from tasks.runtime import clock
from tasks.serving import predictions
from tasks.serving.journal import Journal
from tasks.training.profile import draw_evenly, to_score_columns

SHAP_ROWS = 400
SHOWN_CAUSES = 8
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Measured:
    """One window: its signals, and where the alarms come from."""

    until: datetime
    signals: tuple[Signal, ...]
    drift: Comparison
    score_drift: Comparison
    sample: pa.Table  # of the window's rows: features and scores
    causes: tuple[Cause, ...] = ()
    slices: tuple[Slice, ...] = ()
    challenger: Signal | None = None  # the last look at a challenger, if one is up


def measure_window(watched: Watched, *, journal: Journal, registry: Registry, as_of: datetime) -> Measured:
    """The champion's signals at as_of, in the journal already when this returns. Measured again, they are the same."""
    window = read_window(journal, watched, as_of)
    before = read_signals(journal)
    end = max(as_of, window.newest or as_of)  # a signal of a later window was measured by a clock that was ahead
    past = [signal for signal in before if signal.window_end <= end]
    signals = measure_signals(window, watched)
    signals += take_looks(watched, past, journal=journal, registry=registry, as_of=as_of)
    append_signals(journal, signals)
    begun = registry.find_canary()
    return Measured(
        as_of,
        tuple(signals),
        window.drift,
        window.score_drift,
        draw_sample(window, watched),
        find_causes(window, watched) if any(signal.alarm for signal in signals) else (),
        find_slices(window, watched),
        canary.find_newest_look(read_signals(journal), begun) if begun else None,
    )


def draw_sample(window: Window, watched: Watched) -> pa.Table:
    """As many of the window's rows, with their scores, as the history's sample has: for the report to draw."""
    assert window.features is not None
    assert window.scores is not None
    places = draw_evenly(len(window.scores), watched.sample.num_rows)
    sample = window.features.take(places)
    for name, values in to_score_columns(window.scores[places], watched.model.spec.classes).items():
        sample = sample.append_column(name, pa.array(values))
    return sample


def find_causes(window: Window, watched: Watched) -> tuple[Cause, ...]:
    """The columns whose move changed the scores most."""
    if window.features is None or not window.features.num_rows:
        return ()
    rows = window.features.take(draw_evenly(window.features.num_rows, SHAP_ROWS))
    return tuple(causes.find_causes(watched.twin, rows, watched.profile, window.drift)[:SHOWN_CAUSES])


def find_slices(window: Window, watched: Watched) -> tuple[Slice, ...]:
    """The slices of evaluate.slices that lost most on mature outcomes."""
    rows, holdout = window.mature, watched.holdout
    if rows.rows is None or not rows.is_labelled.any():
        return ()
    is_known, losses = measure_losses(rows, watched.model, metric=watched.p.gate.metric)
    features = predictions.features_of(rows.rows, watched.model.spec)
    now = {name: _texts(features[name])[is_known] for name in holdout.slices if name in features.column_names}
    then = {name: values.astype(str) for name, values in holdout.slices.items()}
    least = watched.p.evaluate.slice_rows // 4
    return tuple(causes.find_slices(then, watched.holdout_losses, now, losses, min_rows=least)[:SHOWN_CAUSES])


def _texts(column: Any) -> "np.ndarray[Any, Any]":
    return np.array([None if value is None else str(value) for value in column.to_pylist()], dtype=object)


def find_due(
    signals: Sequence[Signal], journal: Journal, champion: Version, p: Params, *, newest: datetime
) -> list[datetime]:
    """The ends of the windows to measure: the newest, and before it those that were missed since the last one.

    A missed window without rows is no evidence: after a pause none of them is measured.
    """
    length = p.monitor.window
    ends = [signal.window_end for signal in signals if signal.version == champion.number]
    last = max((end for end in ends if end < newest), default=newest)
    missed = int((newest - last) / length - 1e-9)
    if not missed:
        return [newest]
    rows = journal.read("predictions", since=last, until=newest, columns=["entry", "event_time"])
    times = rows["event_time"].to_numpy() if rows.num_rows else np.zeros(0, dtype="datetime64[us]")
    places = np.unique((times - np.datetime64(last, "us")) // np.timedelta64(length))
    return [*(last + (place + 1) * length for place in places.tolist() if place < missed), newest]


def refuse_beyond(p: Params, journal: Journal, as_of: datetime, *, force: bool) -> None:
    """Raises ValueError for an as_of that neither the clock nor anything journalled or published has reached."""
    clock.refuse_ahead(p.clock, as_of, force=force)
    now = state.read_event_now()
    reached = [time for time in (read_newest(journal, now=now), now) if time is not None]
    if reached:
        clock.refuse_beyond(max(reached) + max(DAY, p.label.deadline), as_of, force=force)
