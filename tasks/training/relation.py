"""How far a window's columns still go together: of each term, its correlation with what the others predict of it.

A column that is shuffled, shifted by a row or has its sign turned keeps its distribution and its mean; it loses its
relation to the others. The predictions are those of the history's linear regressions. A correlation is given as its
Fisher transform, whose spread hardly depends on its size (Fisher 1915). Each day of a window counts alike, without the
most extreme ones, as in tasks/training/windows.py. Pure numpy.
"""

import numpy as np

from tasks.training.windows import Floats, trimmed_mean

LARGEST = 0.9999  # a correlation of 1 has no Fisher transform
LEAST_TIES = 4.0  # deviations of a relation from none, below which it is not watched
LEAST_FALL = 0.1  # of a correlation, as a share: a smaller fall is none
LEAST_VARIANCE = 1e-9  # a smaller one is a constant's


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
    together, own, predicted = trimmed_mean(parts.transpose(0, 2, 1))
    constant = (own < LEAST_VARIANCE) | (predicted < LEAST_VARIANCE)
    correlation = together / np.sqrt(np.where(constant, 1.0, own * predicted))
    return np.asarray(np.where(constant, np.nan, np.arctanh(np.clip(correlation, -LARGEST, LARGEST))))


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
