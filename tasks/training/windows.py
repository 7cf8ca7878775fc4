"""The windows of a history: its units of time, what each window holds that the rest does not, and trimmed means.

A window slides over the history by a unit: a day, some days where it is long, or the whole window where it is no number
of days. It is compared with the rest of the history, as a new window is compared with all of it. So a value that occurs
in one window alone is new there, and a number beyond all others is out of range there. Without this rule a column of
many levels would seem to change in each new window, and in none of its history. Pure numpy.
"""

from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Codes = NDArray[np.int64]
Times = NDArray[np.datetime64]
DAY = timedelta(days=1)
MOST_UNITS = 92  # of a window: a longer one slides by more days, since each unit's window is held in memory
WEEK = 7  # units, of which the most extreme is left out at either end
LEAST_SHARE_OF_UNITS = 0.5  # a window with rows in fewer units than this share of the usual number is no evidence


def choose_unit(window: timedelta) -> timedelta:
    """By how much windows of this length slide: the least number of days that divides it into MOST_UNITS or fewer."""
    if window % DAY:
        return window
    days = window // DAY
    return next(DAY * step for step in range(1, days + 1) if days % step == 0 and days <= step * MOST_UNITS)


def units_in(window: timedelta) -> int:
    """How many units a window has."""
    return max(round(window / choose_unit(window)), 1)


def number_units(times: Times, unit: timedelta) -> Codes:
    """The number of each row's unit (n), counted from the first row's."""
    if not len(times):
        return np.zeros(0, dtype=np.int64)
    numbers = times.astype("datetime64[us]").astype(np.int64) // int(unit / timedelta(microseconds=1))
    return np.asarray(numbers - numbers[0])


def count_units(units: Codes) -> int:
    """How many units there are, with those that have no rows."""
    return int(units[-1]) + 1 if len(units) else 0


def shorten_pauses(units: Codes, span: int) -> Codes:
    """The same units (n, sorted) with each pause of more than `span` units cut to `span`.

    Windows that hold rows stay as they are. However long a pause is, at most `span` windows in it are empty.
    """
    steps = np.diff(units, prepend=units[:1])
    return np.asarray(np.cumsum(np.minimum(steps, span + 1)), dtype=np.int64)


def find_usable(units: Codes, span: int) -> NDArray[np.bool_]:
    """Which windows of the history (windows) are evidence: those with rows in at least half as many units as usual."""
    if not len(units):
        return np.zeros(0, dtype=bool)
    filled = sum_windows((np.bincount(units) > 0).astype(np.int64), span)
    usual = np.median(filled[filled > 0]) if (filled > 0).any() else 1
    return np.asarray((filled > 0) & (filled >= LEAST_SHARE_OF_UNITS * usual))


def slide(by_unit: NDArray[Any], span: int) -> NDArray[Any]:
    """Each `span` units in a row (units, ...) → (windows, ..., span)."""
    if len(by_unit) < span:
        return np.zeros((0, *by_unit.shape[1:], span), dtype=by_unit.dtype)
    return np.lib.stride_tricks.sliding_window_view(by_unit, span, axis=0)


def sum_windows(by_unit: NDArray[Any], span: int) -> NDArray[Any]:
    """Sums over each `span` units in a row (units, ...) → (windows, ...)."""
    total = np.concatenate([np.zeros_like(by_unit[:1]), np.cumsum(by_unit, axis=0)])
    return np.asarray(total[span:] - total[:-span])


def count_by_unit(codes: Codes, units: Codes, bins: int) -> Codes:
    """Rows by unit and bin (units, bins)."""
    count = count_units(units)
    return np.bincount(units * bins + codes, minlength=count * bins).reshape(count, bins)


def trimmed_mean(values: Floats) -> Floats:
    """The mean over a window's units (..., units) → (...), without the most extreme of a week at either end.

    A shift lasts, a storm or a holiday does not. A unit without rows is NaN and does not count.
    """
    ordered = np.sort(values, axis=-1)  # NaN comes last
    present = (~np.isnan(ordered)).sum(axis=-1, keepdims=True)
    place, drop = np.arange(values.shape[-1]), np.where(present >= WEEK - 2, present // WEEK + (present < WEEK), 0)
    inner = (place >= drop) & (place < present - drop)
    return np.asarray(np.where(inner, ordered, 0).sum(axis=-1) / np.maximum(inner.sum(axis=-1), 1))


def count_unique(groups: Codes, codes: Codes, units: Codes, *, span: int, bins: int) -> Codes:
    """Rows of each window whose value is nowhere else in the history, by bin and unit (windows, bins, span).

    Args:
        groups: the number of each row's value (n); -1 for a row that does not count.
        codes: the bin of each row (n).
        units: the unit of each row (n), in the order of time.
    """
    total = count_units(units)
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


def count_extreme(values: Floats, codes: Codes, units: Codes, *, span: int, bins: int) -> tuple[Codes, Codes]:
    """Rows of each window below, and above, all others of the history, by bin and unit (windows, bins, span)."""
    total = count_units(units)
    below, above = (np.zeros((max(total - span + 1, 0), bins, span), dtype=np.int64) for _ in range(2))
    starts = np.searchsorted(units, np.arange(total + 1))
    low, high = np.full(total, np.inf), np.full(total, -np.inf)
    np.fmin.at(low, units, values)
    np.fmax.at(high, units, values)
    for i in range(len(below)):
        least = min(low[:i].min(initial=np.inf), low[i + span :].min(initial=np.inf))
        most = max(high[:i].max(initial=-np.inf), high[i + span :].max(initial=-np.inf))
        if least <= most:
            rows = slice(starts[i], starts[i + span])
            for counts, outside in ((below, values[rows] < least), (above, values[rows] > most)):
                np.add.at(counts[i], (codes[rows][outside], units[rows][outside] - i), 1)
    return below, above
