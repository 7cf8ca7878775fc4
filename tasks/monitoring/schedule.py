"""schedule: the looks at whether another version is better than the champion, and whether the next one is due."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from tasks.monitoring.signal import Signal
from tasks.params import SignalKind
from tasks.promotion.verdict import Verdict

# What a look's signal tells of its verdict.
FIGURES = ("metric", "rule", "candidate", "champion", "looks", "bound", "loss_bound", "least", "level", "spent_level")


def list_looks(signals: Iterable[Signal], version: int, *, kind: SignalKind) -> list[Signal]:
    """The looks at this champion so far, oldest first. One that had too few rows to find anything is not counted."""
    looks = [one for one in signals if (one.kind, one.version) == (kind, version) and one.detail.get("looked")]
    return sorted(looks, key=lambda look: look.window_end)


def is_look_due(
    signals: Iterable[Signal], version: int, *, as_of: datetime, window: timedelta, kind: SignalKind
) -> bool:
    """Whether a window has passed since the last look at this champion.

    Each look makes the next one harder, so nobody gains by looking at every tick. A clock that went back looks at
    nothing again.
    """
    earlier = list_looks(signals, version, kind=kind)
    return not earlier or as_of >= earlier[-1].window_end + window


def make_look(
    kind: SignalKind,
    verdict: Verdict,
    *,
    version: int,
    since: datetime,
    as_of: datetime,
    alarm: bool,
    message: str,
    detail: Mapping[str, Any],
) -> Signal:
    """The signal of a verdict on another version than the champion, which is `version`."""
    figures = verdict.figures
    listed = {name: figures[name] for name in FIGURES if figures.get(name) is not None}
    return Signal(
        kind,
        window_begin=since,
        window_end=as_of,
        version=version,
        rows=figures.get("rows", 0),
        alarm=alarm,
        message=message,
        value=figures.get("gain"),
        low=figures.get("low"),
        high=figures.get("high"),
        detail={"outcome": verdict.outcome, "looked": verdict.counts_as_look, **detail, **listed},
    )
