"""signals: each is a function of a window and the champion, in a file of its own; this table lists them.

A new signal is one file and one line here, and its name in `SignalKind` of tasks/params/sections.py.
"""

from collections.abc import Callable

from tasks.monitoring.signal import Signal
from tasks.monitoring.signals.drift import measure_drift, measure_prediction
from tasks.monitoring.signals.estimate import measure_estimate
from tasks.monitoring.signals.freshness import measure_freshness
from tasks.monitoring.signals.performance import measure_performance
from tasks.monitoring.signals.quality import measure_quality
from tasks.monitoring.window import Watched, Window

Measure = Callable[[Window, Watched], Signal | None]

SIGNALS: tuple[Measure, ...] = (
    measure_performance,  # the loss on mature outcomes
    measure_estimate,  # the loss to expect, from the scores alone
    measure_freshness,  # what the champion's age costs
    measure_drift,  # of the features
    measure_prediction,  # of the scores
    measure_quality,  # missing, new and odd values, the volume of rows, the feed of labels
)


def measure_signals(window: Window, watched: Watched) -> list[Signal]:
    """All signals that can be measured of this window."""
    measured = [measure(window, watched) for measure in SIGNALS]
    return [signal for signal in measured if signal is not None]
