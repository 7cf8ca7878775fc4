"""A model's history as its columns go together: what linear regressions leave of each term, and how far terms relate.

A season moves columns together. A column that moves alone breaks its relation to the others, and shows in the mean of
what a regression on the others leaves of it, in standard deviations of what it leaves.

A column that is shuffled, shifted by a row or has its sign turned keeps its distribution and its mean; it loses its
relation: its correlation with what the others predict of it. A correlation is given as its Fisher transform, whose
spread hardly depends on its size (Fisher 1915). Each day of a window counts alike, without the most extreme ones, as in
tasks/training/windows.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.data.storedrows import AnyRows
from tasks.training import digits, moderation, windows
from tasks.training.columns import Column, as_array, as_numbers
from tasks.training.windows import Codes, Floats

MOST_INDICATORS = 8  # levels of a category that take part
RIDGE = 0.005  # on correlations: a column that others give exactly is taken to leave that much of itself
CLIPPED_SHARE = 0.002  # of a number's rows at each end, taken for the nearest of the rest
LEAST_ROWS = 5  # in a window, on average, of a level that takes part: a rarer one is there or not by chance
LARGEST_CORRELATION = 0.9999  # a correlation of 1 has no Fisher transform
LEAST_TIES = 4.0  # deviations of a relation from none, below which it is not watched
LEAST_FALL = 0.1  # of a correlation, as a share: a smaller fall is none
LEAST_VARIANCE = 1e-9  # a smaller one is a constant's


@dataclass(frozen=True)
class Term:
    """A number, or the indicator of a category's level, as the regressions take it.

    Args:
        column: the place of its column in the profile.
        level: the level of an indicator; None for a number.
        low, high: where it is clipped.
        centre, scale: its mean and deviation in the history. Scale 0: it is the same everywhere.
    """

    column: int
    level: str | None
    low: float
    high: float
    centre: float
    scale: float


@dataclass(frozen=True)
class Joint:
    """The history's columns together, as k standardised terms.

    Args:
        inverse: of the terms' correlations (k, k).
        history: what the regressions leave of each window of the history (windows, k).
        relations: how far each term goes with the others in each window (windows, k).
        unrelated: the deviation of what they would leave if units had nothing to do with each other (k).
        outside: the same, of the units outside of each window (windows, k).
    """

    terms: tuple[Term, ...]
    inverse: tuple[tuple[float, ...], ...] = ()
    history: tuple[tuple[float, ...], ...] = ()
    relations: tuple[tuple[float, ...], ...] = ()
    unrelated: tuple[float, ...] = ()
    outside: tuple[tuple[float, ...], ...] = ()

    def standardise(self, table: pa.Table, names: Sequence[str]) -> NDArray[np.float32]:
        """Rows (n) → (n, k). A missing number stands at the centre: that it is missing shows elsewhere."""
        values = np.empty((table.num_rows, len(self.terms)), dtype=np.float32)
        for i, term in enumerate(self.terms):
            clipped = np.clip(_read_term(table[names[term.column]], term.level), term.low, term.high)
            values[:, i] = (np.nan_to_num(clipped, nan=term.centre) - term.centre) / term.scale
        return values

    def leave(self, values: NDArray[np.float32], units: Codes, *, empty: Sequence[int] = ()) -> Floats:
        """What the regressions leave of a window (k).

        Args:
            values: the window's standardised terms (n, k).
            units: the unit of each row (n).
            empty: columns without values. They are taken to move as the others say: else those that go with them
                would seem to move alone.
        """
        sums = np.zeros((int(units.max()) + 1, values.shape[1]))
        np.add.at(sums, units, values)
        means, inverse = _mean_by_unit(sums, np.bincount(units).astype(float)), np.asarray(self.inverse)
        if (away := np.isin([term.column for term in self.terms], empty)).any():
            by_others = inverse[np.ix_(~away, away)] @ np.linalg.inv(inverse[np.ix_(away, away)])
            means[:, away] = -means[:, ~away] @ by_others
        return leave(means, inverse)

    def relate(self, values: NDArray[np.float32], units: Codes) -> Floats:
        """How far each term goes with the others in a window (k), of its standardised terms (n, k)."""
        sums, products = _sum_by_unit(values, units)
        rows = np.bincount(units).astype(float)
        return correlate(sums, products, rows, find_slopes(np.asarray(self.inverse)))


def profile_joint(rows: AnyRows, columns: Sequence[Column], units: Codes, span: int) -> Joint:
    """Fits the regressions on a history (n), and measures each window of it against the rest."""
    names = [column.name for column in columns]
    least = LEAST_ROWS * (windows.count_units(units) / span)
    terms = [term for i, column in enumerate(columns) for term in _fit_terms(i, column, rows, least)]
    joint = Joint(tuple(term for term in terms if term.scale > 0))
    sums, products = _sum_blocks(joint, rows, names, units)
    history, relations = _leave_windows_out(sums, products, units, span)
    inverse = _invert(products.sum(axis=0), sums.sum(axis=0), len(units))
    by_unit = _mean_by_unit(sums, np.bincount(units).astype(float)) - sums.sum(axis=0) / max(len(units), 1)
    unrelated, outside = moderation.simulate_unrelated(_standardise_rest(by_unit, inverse), span)
    return replace(
        joint,
        inverse=digits.to_tuples(inverse),
        history=digits.to_tuples(history),
        relations=digits.to_tuples(fill_constant(np.array(relations))),
        unrelated=digits.to_tuples(unrelated),
        outside=digits.to_tuples(outside[windows.find_usable(units, span)]),
    )


def leave(shifts: Floats, inverse: Floats) -> Floats:
    """Shifts of a window's units (units, k) → what the other terms do not explain of them, in deviations of it (k)."""
    return windows.trimmed_mean(_standardise_rest(shifts, inverse).T) if len(inverse) else np.zeros(0)


def _leave_windows_out(sums: Floats, products: Floats, units: Codes, span: int) -> tuple[list[Floats], list[Floats]]:
    """Of each window, by the regressions of the rest: what they leave of it (k), and how far its terms go together."""
    rows = np.bincount(units, minlength=len(sums)).astype(float) if len(units) else np.zeros(0)
    all_rows, all_sums, all_products = rows.sum(), sums.sum(axis=0), products.sum(axis=0)
    history, relations = [], []
    for i in np.flatnonzero(windows.find_usable(units, span)).tolist():
        inside = slice(i, i + span)
        rest, rest_sums = all_rows - rows[inside].sum(), all_sums - sums[inside].sum(axis=0)
        inverse = _invert(all_products - products[inside].sum(axis=0), rest_sums, rest)
        history.append(leave(_mean_by_unit(sums[inside], rows[inside]) - rest_sums / max(rest, 1), inverse))
        slopes = find_slopes(inverse)
        relations.append(correlate(sums[inside], products[inside], rows[inside], slopes))
    return history, relations


def _levels(column: Column, least: float) -> tuple[str | None, ...]:
    """The levels with at least so many rows. A category that takes two values has one indicator."""
    if column.kind == "number":
        return (None,)
    common = [level for level, count in zip(column.levels, column.counts, strict=False) if count >= least]
    return tuple(common[: min(MOST_INDICATORS, max(len(column.levels) - 1, 1))])


def _read_term(column: Any, level: str | None) -> Floats:
    """A number as it is; of a category, 1 where it is `level`."""
    if level is None:
        return as_numbers(column)
    same = pc.equal(as_array(column).cast(pa.string()), level).fill_null(False)
    return np.asarray(same.to_numpy(zero_copy_only=False), dtype=np.float64)


def _fit_terms(place: int, column: Column, rows: AnyRows, least: float) -> list[Term]:
    """The terms of a column, of which there are as many as it has levels that are not rare."""
    levels = _levels(column, least)
    values = rows.read_column(column.name) if levels else None
    return [_fit_term(place, level, values) for level in levels]


def _fit_term(place: int, level: str | None, column: Any) -> Term:
    values = _read_term(column, level)
    present = values[~np.isnan(values)]
    if not len(present):
        return Term(place, level, 0.0, 0.0, 0.0, 0.0)
    low, high = np.quantile(present, [CLIPPED_SHARE, 1 - CLIPPED_SHARE])
    if low == high:
        low, high = present.min(), present.max()
    clipped = np.clip(present, low, high)
    return Term(place, level, float(low), float(high), float(clipped.mean()), float(clipped.std()))


def _sum_blocks(joint: Joint, rows: AnyRows, names: Sequence[str], units: Codes) -> tuple[Floats, Floats]:
    """`_sum_by_unit` of all rows (n), a block at a time."""
    count, k = windows.count_units(units), len(joint.terms)
    sums, products, first = np.zeros((count, k)), np.zeros((count, k, k)), 0
    for block in rows.read_blocks():
        own = units[first : first + block.num_rows]
        part = slice(int(own[0]), int(own[-1]) + 1)
        more, more_products = _sum_by_unit(joint.standardise(block, names), own - own[0])
        sums[part] += more
        products[part] += more_products
        first += block.num_rows
    return sums, products


def _sum_by_unit(values: NDArray[np.float32], units: Codes) -> tuple[Floats, Floats]:
    """Of each unit: the sums of the terms (units, k) and of their products (units, k, k)."""
    from threadpoolctl import threadpool_limits

    count, k = windows.count_units(units), values.shape[1]
    starts = np.searchsorted(units, np.arange(count + 1))
    sums, products = np.zeros((count, k)), np.zeros((count, k, k))
    with threadpool_limits(1):  # for so small a product more threads only wait, and their sums end in other digits
        for i in range(count):
            part = values[starts[i] : starts[i + 1]].astype(np.float64)
            sums[i], products[i] = part.sum(axis=0), part.T @ part
    return sums, products


def _mean_by_unit(sums: Floats, rows: Floats) -> Floats:
    """The means of each unit (units, k); NaN where it has no rows."""
    return np.asarray(np.where(rows[:, None] > 0, sums / np.maximum(rows[:, None], 1), np.nan))


def _standardise_rest(shifts: Floats, inverse: Floats) -> Floats:
    """What the other terms do not explain of each unit's shifts (units, k), in deviations of it."""
    return np.asarray(shifts @ inverse / np.sqrt(np.diag(inverse)))


def _invert(products: Floats, sums: Floats, rows: float) -> Floats:
    """The inverse of the terms' covariances, which are close to correlations, with a ridge."""
    mean = sums / max(rows, 1)
    covariance = products / max(rows, 1) - np.outer(mean, mean)
    return np.asarray(np.linalg.inv(covariance + RIDGE * np.eye(len(mean)))) if len(mean) else np.zeros((0, 0))


def find_slopes(inverse: Floats) -> Floats:
    """The inverse of the terms' covariances (k, k) → the regression of each term on the others, a column each."""
    slopes = -inverse / np.diag(inverse)
    np.fill_diagonal(slopes, 0.0)
    return slopes


def correlate(sums: Floats, products: Floats, rows: Floats, slopes: Floats) -> Floats:
    """Of each term the Fisher transform of its correlation with what the others predict (k); NaN for a constant.

    Args:
        sums: of the terms, by unit (units, k).
        products: of the terms, by unit (units, k, k).
        rows: in each unit (units).
        slopes: the regressions (k, k), of `find_slopes`.
    """
    if not slopes.size or not rows.any():
        return np.full(len(slopes), np.nan)
    sums, products, rows = sums[rows > 0], products[rows > 0], rows[rows > 0]
    centre, means = sums.sum(axis=0) / rows.sum(), sums / rows[:, None]
    across = means[:, :, None] * centre
    spread = products / rows[:, None, None] - across - across.transpose(0, 2, 1) + np.outer(centre, centre)
    with_others = spread @ slopes
    parts = np.stack(
        [
            np.diagonal(with_others, axis1=1, axis2=2),  # the term with its prediction
            np.diagonal(spread, axis1=1, axis2=2),  # the term's variance
            (with_others * slopes).sum(axis=1),  # the prediction's variance
        ]
    )
    together, own, predicted = windows.trimmed_mean(parts.transpose(0, 2, 1))
    constant = (own < LEAST_VARIANCE) | (predicted < LEAST_VARIANCE)
    correlation = together / np.sqrt(np.where(constant, 1.0, own * predicted))
    return np.asarray(
        np.where(constant, np.nan, np.arctanh(np.clip(correlation, -LARGEST_CORRELATION, LARGEST_CORRELATION)))
    )


def fill_constant(relations: Floats) -> Floats:
    """The relations of windows (m, k), with the usual one where a term is constant in a window: that says nothing."""
    present = ~np.isnan(relations)
    usual = np.where(present, relations, 0.0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)
    return np.asarray(np.where(present, relations, usual))


def measure_loosening(now: Floats, usual: Floats, deviation: Floats) -> Floats:
    """By how many deviations terms go less with the others than usual (..., k); 0 where they do not.

    Terms that hardly go with the others are left out: their parting would not show, and they would add chance only.
    A fall by a few hundredths counts for nothing, however sure it is.
    """
    now = np.where(np.isnan(now), usual, now)
    shows = (usual > LEAST_TIES * deviation) & (np.tanh(now) < (1 - LEAST_FALL) * np.tanh(usual))
    return np.asarray(np.where(shows, (usual - now) / deviation, 0.0))
