"""monitor: read a window of the journal, measure its signals, and append them to the journal.

Whether to retrain is decided in policy.py, what becomes of champion and challenger by the looks here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.data import state
from tasks.monitoring import canary, predecessor
from tasks.monitoring.drift import Comparison
from tasks.monitoring.signal import Signal, append_signals, is_look_due, list_looks, read_signals
from tasks.monitoring.signals import measure_signals
from tasks.monitoring.signals.performance import measure_losses
from tasks.monitoring.window import Watched, Window, read_newest, read_window
from tasks.params import Params, SignalKind
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Registry, Version
from tasks.runtime import clock
from tasks.serving.journal import Journal
from tasks.serving.predictions import features_of
from tasks.training.model import Floats
from tasks.training.profile import draw_evenly, to_score_columns

SHAP_ROWS = 400
SHOWN_CAUSES = 8
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Cause:
    """A column's part in where the scores went. `shift`: of its mean SHAP value, in units of the margin."""

    name: str
    shift: float
    score: float  # how far the column moved, in deviations
    change: str


@dataclass(frozen=True)
class Slice:
    """A group of rows with its mean loss at promotion and now."""

    name: str
    value: str
    rows: int
    loss_then: float
    loss_now: float


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
    window, begun = read_window(journal, watched, as_of), registry.find_canary()
    end = max(as_of, window.newest or as_of)  # a signal of a later window was measured by a clock that was ahead
    before = [signal for signal in read_signals(journal) if signal.window_end <= end]
    signals = measure_signals(window, watched)
    signals += take_looks(watched, before, journal=journal, registry=registry, begun=begun, as_of=as_of)
    append_signals(journal, signals)
    return Measured(
        as_of,
        tuple(signals),
        window.drift,
        window.score_drift,
        draw_sample(window, watched),
        tuple(find_causes(window, watched)) if any(signal.is_warning for signal in signals) else (),
        tuple(find_slices(window, watched)),
        canary.find_newest_look(read_signals(journal), begun) if begun else None,
    )


def take_looks(
    watched: Watched,
    before: Sequence[Signal],
    *,
    journal: Journal,
    registry: Registry,
    begun: Entry | None,
    as_of: datetime,
) -> list[Signal]:
    """The champion compared with its predecessor, and with the challenger that `begun` put up, where a look is due.

    Each look spends some of the champion's error budget, so there is one in each monitor.window, however often the
    monitor runs. Both need more than a window: all rows that are mature and that neither version has seen.

    Args:
        before: The signals so far, without those of a clock that was ahead.
    """
    p, champion = watched.p, watched.version
    comparisons: dict[SignalKind, Callable[..., Signal | None]] = {"predecessor": predecessor.compare}
    if begun:
        comparisons["challenger"] = partial(canary.compare, begun=begun)
    looks = []
    for kind, compare in comparisons.items():
        if is_look_due(before, champion.number, as_of=as_of, window=p.monitor.window, kind=kind):
            count = len(list_looks(before, champion.number, kind=kind))
            looks.append(compare(p, journal=journal, registry=registry, champion=champion, as_of=as_of, looks=count))
    return [look for look in looks if look]


# --- where the alarms come from ------------------------------------------------------------------------------------


def draw_sample(window: Window, watched: Watched) -> pa.Table:
    """As many of the window's rows, with their scores, as the history's sample has: for the report to draw."""
    assert window.features is not None
    assert window.scores is not None
    places = draw_evenly(len(window.scores), watched.sample.num_rows)
    sample = window.features.take(places)
    for name, values in to_score_columns(window.scores[places], watched.model.spec.classes).items():
        sample = sample.append_column(name, pa.array(values))
    return sample


def find_causes(window: Window, watched: Watched) -> list[Cause]:
    """What each column's move did to the scores, the largest first: the mean SHAP value of these rows less that of the
    holdout. Of several classes, the class that moved most."""
    if window.features is None or not window.features.num_rows:
        return []
    twin, rows = watched.twin, window.features.take(draw_evenly(window.features.num_rows, SHAP_ROWS))
    shift = twin.contributions(rows).mean(axis=0) - np.array(watched.profile.contributions)
    by_feature = shift if shift.ndim == 1 else shift[np.argmax(np.abs(shift).sum(axis=1))]
    moves = {column.name: (column.score, column.change) for column in window.drift.columns}
    names = [(place, twin.spec.names[place]) for place in np.argsort(-np.abs(by_feature), kind="stable")]
    causes = [Cause(name, float(by_feature[place]), *moves.get(name, (0.0, ""))) for place, name in names]
    return causes[:SHOWN_CAUSES]


def find_slices(window: Window, watched: Watched) -> list[Slice]:
    """The slices of evaluate.slices that lost most on mature outcomes."""
    rows, holdout = window.mature, watched.holdout
    if rows.rows is None or not rows.is_labelled.any():
        return []
    is_known, losses = measure_losses(rows, watched.model, metric=watched.p.gate.metric)
    features = features_of(rows.rows, watched.model.spec)
    names = [name for name in holdout.slices if name in features.column_names]
    texts = {name: [value if value is None else str(value) for value in features[name].to_pylist()] for name in names}
    now = {name: np.array(values, dtype=object)[is_known] for name, values in texts.items()}
    then = {name: values.astype(str) for name, values in holdout.slices.items()}
    least = watched.p.evaluate.slice_rows // 4
    return compare_slices(then, watched.holdout_losses, now, losses, min_rows=least)[:SHOWN_CAUSES]


def compare_slices(
    then: Mapping[str, NDArray[Any]],
    losses_then: Floats,
    now: Mapping[str, NDArray[Any]],
    losses_now: Floats,
    *,
    min_rows: int,
) -> list[Slice]:
    """The groups of at least `min_rows` rows now, those that lost most first."""
    slices = [
        Slice(name, str(value), int(inside.sum()), float(losses_then[before].mean()), float(losses_now[inside].mean()))
        for name in sorted(then.keys() & now.keys())
        for value in sorted({value for value in now[name].tolist() if value is not None}, key=str)
        if (inside := now[name] == value).sum() >= min_rows and (before := then[name] == value).any()
    ]
    return sorted(slices, key=lambda group: group.loss_then - group.loss_now)


# --- which windows are measured ------------------------------------------------------------------------------------


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
    times = rows["event_time"].to_numpy()
    places = np.unique((times - np.datetime64(last, "us")) // np.timedelta64(length))
    return [*(last + (place + 1) * length for place in places.tolist() if place < missed), newest]


def refuse_beyond(p: Params, journal: Journal, as_of: datetime, *, force: bool) -> None:
    """Raises ValueError for an as_of that neither the clock nor anything journalled or published has reached."""
    clock.refuse_ahead(p.clock, as_of, force=force)
    now = state.read_event_now()
    reached = [time for time in (read_newest(journal, now=now), now) if time is not None]
    if reached:
        clock.refuse_beyond(max(reached) + max(DAY, p.label.deadline), as_of, force=force)
