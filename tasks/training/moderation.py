"""moderation: how sure a deviation is, where it is held against a few windows of a history. Pure numpy.

Six windows tell a column's deviation to a third, twelve to a fifth, so the largest of many columns' deviations lies far
beyond a normal deviate's quantile. Two remedies. Evidence is that of Student's t with as many degrees of freedom as the
windows have, so that a short history's is worth less. And the variances of a history's terms are pooled: what windows
would vary by if their units had nothing to do with each other is known well, from all units, and the terms of one
table differ from it by similar factors. The fewer the windows, and the more alike the factors, the more of each
variance comes from all terms (the moderated t of Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3).
"""

import numpy as np

from tasks.training.windows import Floats, sliding, trimmed_mean

DRAWS = 500  # of windows whose units are drawn from all of a history: their deviation is known to about 3 %
MOST = 100.0  # degrees of freedom that the other terms add: no terms are wholly alike
LEAST = 1e-12  # a smaller deviation is a constant's


def freedom(windows: Floats, span: int) -> Floats:
    """Degrees of freedom of a variance around nothing, of so many windows without overlap and all that slide between
    them: those tell half as much again."""
    return np.maximum(np.asarray(windows) * 3 * span**2 / (2 * span**2 + 1), 1.0)


def apart(windows: int, span: int) -> Floats:
    """Of each window that slides (windows): how many of those that it does not overlap fit in without overlap."""
    places = np.arange(windows)
    before, after = np.maximum(places - span + 1, 0), np.maximum(windows - places - span, 0)
    fitting = (np.where(count > 0, (count + span - 1) / span, 0.0) for count in (before, after))
    return np.maximum(sum(fitting), 1.0)


def evidence(deviations: Floats, degrees: Floats) -> Floats:
    """Student's t as evidence, the squared half of the normal deviate that is as rare, by Wallace (1959): what lies
    below nothing is none."""
    scale = (8 * degrees + 1) / (8 * degrees + 3)
    return np.asarray(scale**2 * degrees / 2 * np.log1p(np.maximum(deviations, 0.0) ** 2 / degrees))


def evidence_of_new(deviations: Floats, windows: Floats, span: int) -> Floats:
    """Evidence of values (..., k) in deviations of so many windows (...) from their mean, which are estimates both."""
    count = np.asarray(windows, dtype=np.float64)[..., None]
    wider = np.sqrt(np.maximum(1 - 1 / count, 0.0) / (1 + 1 / count))
    return evidence(deviations * wider, np.maximum(freedom(count, span) - 1, 1.0))


def pool(variances: Floats, degrees: Floats, unrelated: Floats) -> tuple[Floats, Floats]:
    """Variances (n, k) with so many degrees of freedom (n), moderated by those of the other terms; and the degrees of
    freedom that they have then (n, k).

    Args:
        unrelated: the variances if units had nothing to do with each other (n, k); 0 where it is not known.
    """
    there = (variances > LEAST**2) & (unrelated > LEAST**2)
    ratios = np.log(np.where(there, variances, 1.0) / np.where(there, unrelated, 1.0))
    half, count = degrees / 2, there.sum(axis=1)
    ratios = np.where(there, ratios + (1 / (2 * half) + 1 / (12 * half**2))[:, None], 0.0)  # a log's bias
    mean = ratios.sum(axis=1) / np.maximum(count, 1)
    spread = np.where(there, (ratios - mean[:, None]) ** 2, 0.0).sum(axis=1) / np.maximum(count - 1, 1)
    added = _added(spread - (1 / half + 1 / (2 * half**2) + 1 / (6 * half**3)))
    added = np.minimum(added, degrees * np.maximum(count - 1, 0))  # no more than the other terms have
    half = np.maximum(added / 2, LEAST)
    common = np.where(added > 0, np.exp(np.where(added > 0, mean - 1 / (2 * half) - 1 / (12 * half**2), 0.0)), 1.0)
    by_others = np.where(there, added[:, None], 0.0)
    total = by_others + degrees[:, None]
    return (by_others * common[:, None] * unrelated + degrees[:, None] * variances) / total, total


def _added(excess: Floats) -> Floats:
    """The degrees of freedom at which a chi-square's log varies by so much: how alike the terms' factors are."""
    held = np.maximum(excess, LEAST)
    return np.where(excess > 0, np.minimum((1 + np.sqrt(1 + 2 * held)) / held, MOST), MOST)


def unrelated(by_unit: Floats, span: int) -> tuple[Floats, Floats]:
    """The deviation of windows whose units are drawn from all units (units, k), NaN where there are no rows: of all
    (k), and of those outside of each window that slides (windows, k)."""
    there = np.asarray(~np.isnan(by_unit).any(axis=1))
    rows = by_unit[there]
    if not rows.size:
        return np.zeros(by_unit.shape[1]), np.zeros((max(len(by_unit) - span + 1, 0), by_unit.shape[1]))
    drawn = np.random.default_rng(0).integers(0, len(rows), (DRAWS, span))
    whole = trimmed_mean(rows[drawn].transpose(0, 2, 1)).std(axis=0)
    filled = np.where(there[:, None], by_unit, 0.0)
    count, sums, squares = (_outside(values, span) for values in (there[:, None].astype(float), filled, filled**2))
    count = np.maximum(count, 1)
    rest = np.sqrt(np.maximum(squares / count - (sums / count) ** 2, 0.0))
    return whole, rest * whole / np.maximum(rows.std(axis=0), LEAST)


def _outside(values: Floats, span: int) -> Floats:
    """Sums over the units (units, k) outside of each window that slides (windows, k)."""
    return np.asarray(values.sum(axis=0) - sliding(values, span).sum(axis=-1))
