"""How far a window's columns still go together: of each term, its correlation with what the others predict of it.

A column that is shuffled, shifted by a row or has its sign turned keeps its distribution and its mean; what it loses is
its relation to the others. The predictions are those of the history's linear regressions. A correlation is told as its
Fisher transform, whose spread hardly depends on its size (Fisher 1915). Each day of a window counts alike, without the
most extreme ones, as in tasks/training/windows.py. Pure numpy.
"""

import numpy as np

from tasks.training.windows import Floats, trimmed_mean

LARGEST = 0.9999  # a correlation of 1 has no Fisher transform
LEAST_TIES = 4.0  # deviations of a relation from none, below which it is not watched
SLACK = 0.1  # of a correlation: a smaller fall is none
LEAST = 1e-9  # a variance below this is a constant's


def slopes(inverse: Floats) -> Floats:
    """The inverse of the terms' covariances (k, k) → the regression of each term on the others, a column each."""
    found = -inverse / np.diag(inverse)
    np.fill_diagonal(found, 0.0)
    return found


def agreement(sums: Floats, products: Floats, rows: Floats, by: Floats) -> Floats:
    """Of each term the Fisher transform of its correlation with what the others predict (k); NaN for a constant.

    Args:
        sums: of the terms, by unit (units, k).
        products: of the terms, by unit (units, k, k).
        rows: in each unit (units).
        by: the regressions (k, k), of `slopes`.
    """
    if not by.size or not rows.any():
        return np.full(len(by), np.nan)
    sums, products, rows = sums[rows > 0], products[rows > 0], rows[rows > 0]
    centre, means = sums.sum(axis=0) / rows.sum(), sums / rows[:, None]
    across = means[:, :, None] * centre
    spread = products / rows[:, None, None] - across - across.transpose(0, 2, 1) + np.outer(centre, centre)
    with_others = spread @ by
    parts = np.stack(
        [
            np.diagonal(with_others, axis1=1, axis2=2),  # the term with its prediction
            np.diagonal(spread, axis1=1, axis2=2),  # the term's variance
            (with_others * by).sum(axis=1),  # the prediction's variance
        ]
    )
    together, own, predicted = trimmed_mean(parts.transpose(0, 2, 1))
    constant = (own < LEAST) | (predicted < LEAST)
    found = together / np.sqrt(np.where(constant, 1.0, own * predicted))
    return np.asarray(np.where(constant, np.nan, np.arctanh(np.clip(found, -LARGEST, LARGEST))))


def filled(relations: Floats) -> Floats:
    """The relations of windows (m, k), with the usual one where a term is constant in a window: that says nothing."""
    there = ~np.isnan(relations)
    usual = np.where(there, relations, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    return np.asarray(np.where(there, relations, usual))


def loosened(now: Floats, usual: Floats, deviation: Floats) -> Floats:
    """By how many deviations terms go less with the others than usual (..., k): never fewer than none.

    Of terms that hardly go with the others even their parting would not show: they would only add chance. A fall by a
    few hundredths, however sure, is no parting either.
    """
    now = np.where(np.isnan(now), usual, now)
    shows = (usual > LEAST_TIES * deviation) & (np.tanh(now) < (1 - SLACK) * np.tanh(usual))
    return np.asarray(np.where(shows, (usual - now) / deviation, 0.0))
