"""labels: how many rows of a history had a label, so that a feed of labels that dies shows. Pure.

The share of each window of the history is known, and a new window may lie below the least of them by a little. A fall
that goes on to the end of the history sets no measure: it may be a feed that is dying, and each new model's history
would excuse it further.
"""

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from tasks.params import spell
from tasks.training import windows
from tasks.training.windows import DAY, Floats, Times

SLACK = 0.05  # the share may lie below the history's least by this, or by half of it where it is small
DEVIATIONS = 3.0  # of sampling
OUTAGE_SHARE = 0.5  # of the median: a window with fewer rows, or labels, was an outage itself and sets no measure
PROMPT_SHARE = 0.95  # of the labels have come by the age at which rows are looked at early
EARLY_SHARE = 0.25  # of the least that rows of that age must have: labels may well come by the week


@dataclass(frozen=True)
class EarlyLabels:
    """The least share of rows in any window of a history that had a label at this age, before their deadline."""

    age: timedelta
    least: float


def find_labelled_share(labelled: NDArray[np.bool_], times: Times, window: timedelta) -> float | None:
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
    return _find_least(shares[shares >= OUTAGE_SHARE * np.median(shares)])


def _find_least(shares: Floats) -> float:
    """The least of the windows' shares, without those at the end that are all below every one before them: at most the
    newer half."""
    before, after = np.minimum.accumulate(shares), np.maximum.accumulate(shares[::-1])[::-1]
    first = max(len(shares) // 2, 1)
    falls = np.flatnonzero(after[first:] < before[first - 1 : -1])
    return float(before[first + falls[0] - 1] if len(falls) else before[-1])


def find_early_labels(
    labelled: NDArray[np.bool_], times: Times, known_at: Times, *, window: timedelta, deadline: timedelta
) -> EarlyLabels | None:
    """The share at the age by which most labels have come, in whole days and a day to spare for their way here; None
    where that is no earlier than the deadline.

    Args:
        labelled, times: as in `find_labelled_share`.
        known_at: when each row's label came (n).
    """
    if not labelled.any():
        return None
    delays = (known_at - times).astype("timedelta64[us]").astype(np.int64) / (DAY / timedelta(microseconds=1))
    age = (int(np.ceil(np.quantile(delays[labelled], PROMPT_SHARE))) + 1) * DAY
    least = find_labelled_share(labelled & (delays <= age / DAY), times, window)
    return EarlyLabels(age, least) if age < deadline and least is not None else None


def find_label_fault(labelled: NDArray[np.bool_], least: float | None, *, age: timedelta | None = None) -> str | None:
    """What is wrong with the labels of a window's rows (n), if anything is.

    Args:
        least: the least share in the history.
        age: of rows that are looked at before their deadline; None: they are mature.
    """
    if least is None or not len(labelled):
        return None
    share, rows = float(np.mean(labelled)), len(labelled)
    slack = (1 - EARLY_SHARE) * least if age else min(SLACK, least / 2)
    if share >= least - max(slack, DEVIATIONS * np.sqrt(least * (1 - least) / rows)):
        return None
    if age is None:
        remedy = "mend their feed, or lengthen label.deadline if they only come later than they did"
        return f"labels: {share:.1%} of {rows:,} mature rows have one, at least {least:.1%} in its history: {remedy}"
    return (
        f"labels: {share:.1%} of {rows:,} rows have one {spell(age)} after their event, at least {least:.1%} in its "
        "history: their feed has stopped, or brings them less often than each monitor.window"
    )
