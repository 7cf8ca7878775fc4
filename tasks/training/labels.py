"""labels: how many mature rows have a label, in a model's history and now → whether the feed of labels thins out.

Without labels nothing measures performance, and a retrain learns from the past alone; so a feed that stops must be
heard of. Pure.
"""

import math
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.training import windows

DAY = timedelta(days=1)
SLACK = 0.05  # the share may lie below the history's least by this, or by half of it where it is small
SURE = 3.0  # deviations of sampling
RARE = 0.5  # of the median: a window with fewer rows, or labels, was an outage itself, and sets no measure


def least_share(labelled: NDArray[np.bool_], times: "NDArray[np.datetime64]", window: timedelta) -> float | None:
    """The least share of rows with a label in any window of a history; None where it holds no window.

    Args:
        labelled: whether each row has a label (n); of rows so old that it would have come.
        times: of each row's event (n), in order.
        window: the length; whole days are slid by a day, other lengths by themselves.
    """
    unit = DAY if window % DAY == timedelta(0) else window
    if not len(labelled):
        return None
    number = times.astype("datetime64[us]").astype(np.int64) // int(unit / timedelta(microseconds=1))
    units, span = number - number[0], max(round(window / unit), 1)
    rows, there = (
        windows.sliding(np.bincount(units, weights=weights), span).sum(axis=-1) for weights in (None, labelled)
    )
    full = rows >= max(RARE * float(np.median(rows)) if len(rows) else 0.0, 1)
    if not full.any():
        return None
    shares = there[full] / rows[full]
    return float(shares[shares >= RARE * np.median(shares)].min())


def bound(least: float, rows: int) -> float:
    """A window of so many rows whose share of labels lies below this is surely thinner than any in the history."""
    sampling = SURE * math.sqrt(least * (1 - least) / rows)
    return least - max(min(SLACK, least / 2), sampling)


def fault(labelled: NDArray[Any], least: float | None) -> str | None:
    """What is wrong with the labels of a window's mature rows (n), if anything is."""
    if least is None or not len(labelled):
        return None
    share = float(np.mean(labelled))
    if share >= bound(least, len(labelled)):
        return None
    return f"labels: {share:.1%} of {len(labelled):,} mature rows have one, at least {least:.1%} in its history"
