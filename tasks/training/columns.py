"""One column of a model's history: its bins, and how far each window of the history lies from the rest of it.

The distance is that of Jensen and Shannon between binned shares (Lin 1991; base 2, 0 to 1). A window counts its days
alike and leaves out the most extreme ones (tasks/training/windows.py).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.training import digits, windows
from tasks.training.windows import Codes, Floats

BINS = 16  # of a number's distribution
LEVELS = 20  # of a category are told apart; the rest are one
MOST_STEPS = 3000  # a number with no more values than this may be recorded in steps: a value between them is new
MOST_NEW_SHARE = 0.1  # it is not, where a window of its history holds so large a share of values that are nowhere else


@dataclass(frozen=True)
class Column:
    """How one column is binned, the history's counts by bin, and the distances of the history's windows.

    Bins of a number: below the history, between `edges`, above it, missing. Bins of a category: each of `levels`, the
    other levels of the history, new levels, missing.

    Args:
        known_values: all levels; all values of a number that comes in steps; of another number nothing.
        counts: the history's rows by bin.
        history: the distance of each window of the history from the rest of it.
        worst: the largest shares of missing, new and out-of-range values in any window.
    """

    name: str
    kind: Literal["number", "category"]
    edges: tuple[float, ...]
    levels: tuple[str, ...]
    known_values: tuple[Any, ...]
    counts: tuple[int, ...] = ()
    history: tuple[float, ...] = ()
    worst: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def bins(self) -> int:
        return len(self.edges) + 2 if self.kind == "number" else len(self.levels) + 3

    def assign_bins(self, values: Any) -> Codes:
        """The bin of each value (n). Raises ValueError for values of another type."""
        try:
            if self.kind == "number":
                numbers = as_numbers(values)
                codes = np.searchsorted(np.asarray(self.edges), numbers, side="right")
                return np.where(np.isnan(numbers), self.bins - 1, codes)
            texts = as_array(values).cast(pa.string())
        except (pa.ArrowException, TypeError):
            actual = getattr(values, "type", type(values).__name__)
            raise ValueError(
                f"the column {self.name} must be a {self.kind}, but it holds other values ({actual})"
            ) from None
        top = pc.index_in(texts, value_set=pa.array(self.levels, pa.string())).fill_null(-1).to_numpy()
        is_known = pc.is_in(texts, value_set=pa.array(self.known_values, pa.string())).to_numpy(zero_copy_only=False)
        missing = texts.is_null().to_numpy(zero_copy_only=False)
        other = np.where(is_known, len(self.levels), len(self.levels) + 1)
        return np.where(missing, self.bins - 1, np.where(top >= 0, top, other)).astype(np.int64)

    def find_new(self, values: Any) -> NDArray[np.bool_]:
        """Which values the history does not hold at all (n)."""
        if self.kind == "category":
            return np.asarray(self.assign_bins(values) == self.bins - 2)
        numbers = as_numbers(values)
        if not self.known_values:
            return np.zeros(len(numbers), dtype=bool)
        return ~(np.isnan(numbers) | np.isin(numbers, self.known_values))

    def measure_quality(self, values: Any) -> Floats:
        """The shares of missing, new and out-of-range values (3)."""
        codes, rows = self.assign_bins(values), max(len(values), 1)
        outside = ((codes == 0) | (codes == self.bins - 2)).sum() if self.kind == "number" else 0
        return np.array([(codes == self.bins - 1).sum(), self.find_new(values).sum(), outside]) / rows

    def window_shares(self, values: Any, units: Codes) -> Floats:
        """The shares by bin (bins) of one window's rows (n), each of a unit from 0 on."""
        by_unit = windows.count_by_unit(self.assign_bins(values), units, self.bins)
        return windows.trimmed_mean(to_shares(by_unit).T)


def profile_column(name: str, values: Any, units: Codes, span: int) -> Column:
    """Bins a column of the history, and measures each window of it against the rest.

    Args:
        values: the column (n), in the order of time.
        units: the unit of each row (n).
        span: units in a window.
    """
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    column = _bin_texts(name, values) if is_text else _bin_numbers(name, values)
    codes = column.assign_bins(values)
    by_unit = windows.count_by_unit(codes, units, column.bins)
    rest = by_unit.sum(axis=0) - windows.sum_windows(by_unit, span)
    unique = windows.count_unique(_index_values(column, values), codes, units, span=span, bins=column.bins)
    inside, extreme = windows.slide(by_unit, span).copy(), np.zeros(len(rest))
    if is_text:
        inside = _move(inside, unique, column.bins - 2)
    else:
        below, above = windows.count_extreme(as_numbers(values), codes, units, span=span, bins=column.bins)
        inside = _move(_move(inside, below, 0), above, column.bins - 2)
        extreme = (below + above).sum(axis=(1, 2))
    usable = windows.find_usable(units, span)
    history = jensen_shannon(windows.trimmed_mean(to_shares(inside, axis=1)), to_shares(rest))[usable]
    rows = np.maximum(inside.sum(axis=(1, 2)), 1)
    counts = (inside[:, -1].sum(axis=1), unique.sum(axis=(1, 2)), extreme)
    worst = [(count / rows)[usable].max(initial=0.0) for count in counts]
    if not is_text and worst[1] > MOST_NEW_SHARE:
        column, worst[1] = replace(column, known_values=()), 0.0
    counts_of_all = tuple(by_unit.sum(axis=0).tolist())
    return replace(column, counts=counts_of_all, history=digits.to_tuples(history), worst=digits.to_tuples(worst))


def _bin_numbers(name: str, values: Any) -> Column:
    numbers = as_numbers(values)
    present = numbers[~np.isnan(numbers)]
    inner = np.quantile(present, np.linspace(0, 1, BINS + 1)[1:-1]) if len(present) else np.zeros(0)
    low, high = (present.min(), np.nextafter(present.max(), np.inf)) if len(present) else (0.0, 0.0)
    distinct = np.unique(present)
    in_steps = len(distinct) <= min(MOST_STEPS, len(present) / 20)
    edges = np.unique([low, *inner, high]).tolist()
    return Column(name, "number", tuple(edges), (), tuple(distinct.tolist()) if in_steps else ())


def _bin_texts(name: str, values: Any) -> Column:
    counts = {row["values"]: row["counts"] for row in pc.value_counts(as_array(values).drop_null()).to_pylist()}
    texts = sorted(counts)
    by_count = sorted(texts, key=lambda text: -counts[text])
    return Column(name, "category", (), tuple(by_count[:LEVELS]), tuple(texts))


def _index_values(column: Column, values: Any) -> Codes:
    """The place of each value among the known ones (n); -1 for none."""
    if column.kind == "category":
        codes = replace(column, levels=column.known_values).assign_bins(values)
        return np.where(codes < len(column.known_values), codes, -1)
    numbers = as_numbers(values)
    if not column.known_values:
        return np.full(len(numbers), -1)
    places = np.minimum(np.searchsorted(column.known_values, numbers), len(column.known_values) - 1)
    return np.where(np.isnan(numbers), -1, places)


def _move(counts: Codes, some: Codes, place: int) -> Codes:
    """Windows' counts by bin and unit (windows, bins, span), with `some` of them in the bin at `place` instead."""
    counts = counts - some
    counts[:, place] += some.sum(axis=1)
    return counts


def to_shares(counts: NDArray[Any], axis: int = -1) -> Floats:
    """Counts by bin, along this axis, as shares; NaN where there are no rows."""
    total = counts.sum(axis=axis, keepdims=True)
    return np.asarray(np.where(total > 0, counts / np.maximum(total, 1), np.nan))


def jensen_shannon(shares: Floats, others: Floats) -> Floats:
    """The Jensen-Shannon distance of shares by bin (..., bins); 0 where either has no rows."""
    p, q = (part / np.maximum(part.sum(axis=-1, keepdims=True), 1e-12) for part in (shares, others))
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p / middle), 0) + np.where(q > 0, q * np.log2(q / middle), 0)
    both = (p.sum(axis=-1) > 0) & (q.sum(axis=-1) > 0)
    return np.asarray(np.where(both, np.sqrt(np.maximum(terms.sum(axis=-1) / 2, 0)), 0))


def as_array(column: Any) -> Any:
    """One Arrow array."""
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column


def as_numbers(column: Any) -> Floats:
    """As float64, NaN where a value is missing. Raises TypeError for text: a column of another type must show."""
    array = as_array(column)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        raise TypeError("it holds text")
    values: Floats = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values
