"""labels: how many mature rows have a label, in a model's history and now → whether the feed of labels thins out.

Without labels nothing measures performance, and a retrain learns from the past alone. So a feed that stops is a fault.
Pure.
"""

import math
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.training import windows
from tasks.training.windows import Times

SLACK = 0.05  # the share may lie below the history's least by this, or by half of it where it is small
DEVIATIONS = 3.0  # of sampling
OUTAGE_SHARE = 0.5  # of the median: a window with fewer rows, or labels, was an outage itself and sets no measure


def find_least_share(labelled: NDArray[np.bool_], times: Times, window: timedelta) -> float | None:
    """The least share of rows with a label in any window of a history; None where it holds no window.

    Args:
        labelled: whether each row has a label (n); of rows so old that it would have come.
        times: of each row's event (n), in order.
        window: the length; whole days slide by a day, other lengths by themselves.
    """
    units, span = windows.number_units(times, windows.choose_unit(window)), windows.units_in(window)
    rows, with_label = (
        windows.slide(np.bincount(units, weights=weights), span).sum(axis=-1) for weights in (None, labelled)
    )
    full = rows >= max(OUTAGE_SHARE * float(np.median(rows)) if len(rows) else 0.0, 1)
    if not full.any():
        return None
    shares = with_label[full] / rows[full]
    return float(shares[shares >= OUTAGE_SHARE * np.median(shares)].min())


def find_fault(labelled: NDArray[Any], least: float | None) -> str | None:
    """What is wrong with the labels of a window's mature rows (n), if anything is.

    Args:
        least: the least share in the history, of `find_least_share`.
    """
    if least is None or not len(labelled):
        return None
    share, rows = float(np.mean(labelled)), len(labelled)
    sampling = DEVIATIONS * math.sqrt(least * (1 - least) / rows)
    if share >= least - max(min(SLACK, least / 2), sampling):
        return None
    return f"labels: {share:.1%} of {rows:,} mature rows have one, at least {least:.1%} in its history"
