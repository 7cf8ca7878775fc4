"""schedule: the comparisons of this champion with another version so far, and whether the next one is due."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from tasks.monitoring.signal import Signal
from tasks.params import SignalKind


def list_looks(signals: Iterable[Signal], version: int, *, kind: SignalKind) -> list[Signal]:
    """The looks at this champion so far, oldest first. What could not have taken it down, for want of rows, is none."""
    found = [each for each in signals if (each.kind, each.version) == (kind, version)]
    return sorted((each for each in found if each.detail.get("looked")), key=lambda each: each.window_end)


def is_look_due(
    signals: Iterable[Signal],
    version: int,
    *,
    as_of: datetime,
    window: timedelta,
    kind: SignalKind,
) -> bool:
    """Whether monitor.window has passed since the last look at this champion. Each look makes the next one harder, so
    nobody gains by looking at every tick; and a clock that went back looks at nothing again."""
    earlier = list_looks(signals, version, kind=kind)
    return not earlier or as_of >= earlier[-1].window_end + window
