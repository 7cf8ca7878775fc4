"""From when the rows come: how long the holdout, the folds, the windows and the lags are, and how many rows they want.

All rules are here, and pure. They are made so that a table of a hundred yearly rows and one of a thousand rows an hour
both get a holdout with rows enough for the gate, folds before it, and a window that the monitor can judge.
"""

import math
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from tasks.drafting.shape import Shape

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
HELD_SHARE = 0.2  # of the history, at most
HELD_ROWS, HELD_AT_LEAST = 2000, timedelta(days=28)  # where there are more, the holdout need not be longer
BLOCKS = 28  # that a holdout is cut into
MIN_BLOCKS = 14
QUIET = 0.5  # of the usual rows, that a quiet stretch still has
SMALL_ROWS = 20_000  # with fewer, fits cost little: more and shorter folds, whose training is more like the last one's
WINDOW_ROWS = 500
WINDOWS = 8  # of the monitor, in the history before the holdout, at least
ENOUGH_SLICE_ROWS = 50
LENGTHS = [HOUR * n for n in (1, 2, 3, 6, 12)] + [
    DAY * n for n in (1, 2, 3, 7, 14, 28, 56, 91, 182, 364, 728, 1820, 3640)
]


@dataclass(frozen=True)
class Lengths:
    """What of params.yaml follows from the row rate; the names are the settings'."""

    rows: int
    span: timedelta
    deadline: timedelta
    holdout: timedelta
    held_rows: int
    folds: int
    fold: timedelta
    block: timedelta
    min_rows: int
    min_blocks: int
    slice_rows: int
    window: timedelta
    window_rows: int
    period: str
    lookback: timedelta

    @property
    def is_small(self) -> bool:
        return self.rows < SMALL_ROWS


def choose_lengths(shape: Shape, *, deadline: timedelta, reach: timedelta) -> Lengths:
    """
    Args:
        deadline: how late an outcome may come.
        reach: how far back the longest lag looks.
    """
    times = shape.times[(shape.times >= np.datetime64(shape.begin)) & (shape.times <= np.datetime64(shape.end))]
    span, rows = shape.end - shape.begin, len(times)
    even = shape.step.length if shape.step else timedelta(0)
    newest = shape.end - times[int((1 - HELD_SHARE) * (rows - 1))].item()  # rows may come ever more often, or ever less
    held = _holdout(min(newest, (1 - HELD_SHARE) * span), rows / max(span / HOUR, 1), even)
    inside = times[times >= np.datetime64(shape.end - held)]
    block = _round_up(max(_floor(held / BLOCKS), even), even)
    blocks = len(np.unique(inside.astype(np.int64) // int(block / timedelta(microseconds=1))))
    history = span - deadline - held
    window = _window(history, rows / max(span / HOUR, 1), even)
    window_rows = int(len(times) * (window / max(span, HOUR)))
    return Lengths(
        rows=rows,
        span=span,
        deadline=deadline,
        holdout=held,
        held_rows=len(inside),
        folds=4 if rows < SMALL_ROWS else 2,
        fold=_whole(min(held, history / (10 if rows < SMALL_ROWS else 4)), even),
        block=block,
        min_rows=max(min(int(QUIET * len(inside)), HELD_ROWS), 2),
        min_blocks=max(min(MIN_BLOCKS, int(QUIET * blocks)), 2),
        slice_rows=min(max(ENOUGH_SLICE_ROWS, len(inside) // 20), 500),
        window=window,
        window_rows=max(min(int(QUIET * window_rows), WINDOW_ROWS), 1),
        period=_period(span),
        lookback=_whole(reach * 1.1 + 2 * max(even, DAY) + deadline, DAY),
    )


def _holdout(newest: timedelta, per_hour: float, even: timedelta) -> timedelta:
    """The time of the newest fifth of the rows, or less where a shorter one has rows and days enough."""
    return _whole(min(newest, max(HELD_AT_LEAST, min(HELD_ROWS / max(per_hour, 1e-9), 1e8) * HOUR)), even)


def _window(history: timedelta, per_hour: float, even: timedelta) -> timedelta:
    wanted = max(WINDOW_ROWS / max(per_hour, 1e-6) * HOUR, 7 * DAY)
    return _round_up(max(_floor(min(wanted, history / WINDOWS)), even), even)


def _floor(length: timedelta) -> timedelta:
    """The longest of LENGTHS that is no longer."""
    return max((one for one in LENGTHS if one <= length), default=HOUR)


def _whole(length: timedelta, even: timedelta) -> timedelta:
    """In whole days, or hours up to two days; a step of the rows at least."""
    unit = DAY if length > 2 * DAY else HOUR
    return max(math.floor(length / unit), 1) * unit if length >= even else even


def _round_up(length: timedelta, even: timedelta) -> timedelta:
    return max(length, even)


def _period(span: timedelta) -> str:
    return "month" if span > 60 * DAY else "week" if span > 14 * DAY else "day"


def measure_delay(delays: "np.ndarray[tuple[int], np.dtype[np.timedelta64]]") -> timedelta:
    """How late outcomes come, but for one in a hundred, in whole hours or days."""
    late = timedelta(microseconds=int(np.quantile(delays.astype("timedelta64[us]").astype(np.int64), 0.99)))
    unit = DAY if late > 2 * DAY else HOUR
    return max(math.ceil(late / unit), 1) * unit
