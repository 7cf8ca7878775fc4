"""The windows of a history: what each holds that the rest of the history does not, and means without extreme days.

A window of a history is held against the rest of it, as a new window is held against all of it. So a value that occurs
in one window alone is new there, and a number beyond all others is out of range there: else every column of many
levels would seem to change in each new window, and in none of its history.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Codes = NDArray[np.int64]
WEEK = 7  # units, of which the most extreme is left out at either end


def sliding(by_unit: NDArray[Any], span: int) -> NDArray[Any]:
    """Each `span` units in a row (units, ...) → (windows, ..., span)."""
    if len(by_unit) < span:
        return np.zeros((0, *by_unit.shape[1:], span), dtype=by_unit.dtype)
    return np.lib.stride_tricks.sliding_window_view(by_unit, span, axis=0)


def trimmed_mean(values: Floats) -> Floats:
    """The mean over a window's units (..., units) → (...), without the most extreme of a week at either end.

    A unit without rows is NaN, and stands for nothing.
    """
    ordered = np.sort(values, axis=-1)  # NaN comes last
    there = (~np.isnan(ordered)).sum(axis=-1, keepdims=True)
    place, drop = np.arange(values.shape[-1]), np.where(there >= WEEK - 2, there // WEEK + (there < WEEK), 0)
    inner = (place >= drop) & (place < there - drop)
    return np.asarray(np.where(inner, ordered, 0).sum(axis=-1) / np.maximum(inner.sum(axis=-1), 1))


def alone(groups: Codes, codes: Codes, units: Codes, *, span: int, bins: int) -> Codes:
    """Rows of each window whose value is nowhere else in the history, by bin and unit (windows, bins, span).

    Args:
        groups: the number of each row's value (n); -1: it counts nowhere.
        codes: the bin of each row (n).
        units: the unit of each row (n), in the order of time.
    """
    total = int(units[-1]) + 1 if len(units) else 0
    counts = np.zeros((max(total - span + 1, 0), bins, span), dtype=np.int64)
    rows = np.flatnonzero(groups >= 0)
    if not len(counts) or not len(rows):
        return counts
    groups, codes, units = groups[rows], codes[rows], units[rows]
    first, last = np.full(groups.max() + 1, total), np.full(groups.max() + 1, -1)
    np.minimum.at(first, groups, units)
    np.maximum.at(last, groups, units)
    begin, end = np.maximum(last - span + 1, 0)[groups], np.minimum(first, len(counts) - 1)[groups]
    inside = begin <= end  # the windows from `begin` to `end` hold all rows of the value
    parts = np.stack([begin, end, units, codes], axis=1)[inside]
    distinct, times = np.unique(parts, axis=0, return_counts=True)
    for offset in range(span):
        fits = distinct[:, 0] + offset <= distinct[:, 1]
        window, unit, code = distinct[fits, 0] + offset, distinct[fits, 2], distinct[fits, 3]
        np.add.at(counts, (window, code, unit - window), times[fits])
    return counts


def beyond(values: Floats, codes: Codes, units: Codes, *, span: int, bins: int) -> tuple[Codes, Codes]:
    """Rows of each window below, and above, all others of the history, by bin and unit (windows, bins, span)."""
    total = int(units[-1]) + 1 if len(units) else 0
    below, above = (np.zeros((max(total - span + 1, 0), bins, span), dtype=np.int64) for _ in range(2))
    starts = np.searchsorted(units, np.arange(total + 1))
    low, high = np.full(total, math.inf), np.full(total, -math.inf)
    np.fmin.at(low, units, values)
    np.fmax.at(high, units, values)
    for i in range(len(below)):
        least = min(low[:i].min(initial=math.inf), low[i + span :].min(initial=math.inf))
        most = max(high[:i].max(initial=-math.inf), high[i + span :].max(initial=-math.inf))
        if least <= most:
            rows = slice(starts[i], starts[i + span])
            for counts, outside in ((below, values[rows] < least), (above, values[rows] > most)):
                np.add.at(counts[i], (codes[rows][outside], units[rows][outside] - i), 1)
    return below, above
