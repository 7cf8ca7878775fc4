"""moderation: how much evidence a deviation is, where it is compared with a few windows of a history. Pure numpy.

Six windows give a column's deviation to a third, twelve to a fifth. So the largest of many columns' deviations lies far
beyond a normal deviate's quantile. Two remedies:

- Evidence is that of Student's t with as many degrees of freedom as the windows have: a short history's is worth less.
- The variances of a history's terms are pooled. What windows would vary by if their units had nothing to do with each
  other is known well, from all units, and the terms of one table differ from it by similar factors. The fewer the
  windows, and the more alike the factors, the more of each variance comes from all terms (the moderated t of Smyth
  2004, Stat. Appl. Genet. Mol. Biol. 3:3).
"""

import numpy as np

from tasks.training.windows import Floats, slide, trimmed_mean

DRAWS = 500  # of windows whose units are drawn from all of a history: their deviation is known to about 3 %
MOST_ADDED = 100.0  # degrees of freedom that the other terms add: no terms are wholly alike
LEAST_DEVIATION = 1e-12  # a smaller one is a constant's


def degrees_of_freedom(windows: Floats, span: int) -> Floats:
    """Of a variance around 0, from so many windows without overlap and all that slide between them.

    Those that slide add half as much again.
    """
    return np.maximum(np.asarray(windows) * 3 * span**2 / (2 * span**2 + 1), 1.0)


def count_disjoint(windows: int, span: int) -> Floats:
    """For each window that slides (windows): how many windows fit, without overlap, into those it does not overlap."""
    places = np.arange(windows)
    before, after = np.maximum(places - span + 1, 0), np.maximum(windows - places - span, 0)
    fitting = (np.where(count > 0, (count + span - 1) / span, 0.0) for count in (before, after))
    return np.maximum(sum(fitting), 1.0)


def weigh_deviations(deviations: Floats, degrees: Floats) -> Floats:
    """Student's t as evidence: half the square of the normal deviate that is as rare (Wallace 1959); 0 below 0."""
    scale = (8 * degrees + 1) / (8 * degrees + 3)
    return np.asarray(scale**2 * degrees / 2 * np.log1p(np.maximum(deviations, 0.0) ** 2 / degrees))


def weigh_new_values(deviations: Floats, windows: Floats, span: int) -> Floats:
    """Evidence of new values (..., k), in deviations from the mean of so many windows (...).

    Both the mean and the deviation are estimates, which makes the evidence smaller.
    """
    count = np.asarray(windows, dtype=np.float64)[..., None]
    wider = np.sqrt(np.maximum(1 - 1 / count, 0.0) / (1 + 1 / count))
    return weigh_deviations(deviations * wider, np.maximum(degrees_of_freedom(count, span) - 1, 1.0))


def pool_variances(variances: Floats, degrees: Floats, unrelated: Floats) -> tuple[Floats, Floats]:
    """Moderates variances (n, k) by those of the other terms; returns them and their degrees of freedom (n, k).

    Args:
        degrees: the degrees of freedom before (n).
        unrelated: the variances if units had nothing to do with each other (n, k); 0 where it is not known.
    """
    usable = (variances > LEAST_DEVIATION**2) & (unrelated > LEAST_DEVIATION**2)
    ratios = np.log(np.where(usable, variances, 1.0) / np.where(usable, unrelated, 1.0))
    half, count = degrees / 2, usable.sum(axis=1)
    ratios = np.where(usable, ratios + (1 / (2 * half) + 1 / (12 * half**2))[:, None], 0.0)  # a log's bias
    mean = ratios.sum(axis=1) / np.maximum(count, 1)
    spread = np.where(usable, (ratios - mean[:, None]) ** 2, 0.0).sum(axis=1) / np.maximum(count - 1, 1)
    added = _match_spread(spread - (1 / half + 1 / (2 * half**2) + 1 / (6 * half**3)))
    added = np.minimum(added, degrees * np.maximum(count - 1, 0))  # no more than the other terms have
    half = np.maximum(added / 2, LEAST_DEVIATION)
    common = np.where(added > 0, np.exp(np.where(added > 0, mean - 1 / (2 * half) - 1 / (12 * half**2), 0.0)), 1.0)
    by_others = np.where(usable, added[:, None], 0.0)
    total = by_others + degrees[:, None]
    return (by_others * common[:, None] * unrelated + degrees[:, None] * variances) / total, total


def _match_spread(excess: Floats) -> Floats:
    """The degrees of freedom at which a chi-square's log varies by so much: how alike the terms' factors are."""
    positive = np.maximum(excess, LEAST_DEVIATION)
    matched = np.minimum((1 + np.sqrt(1 + 2 * positive)) / positive, MOST_ADDED)
    return np.where(excess > 0, matched, MOST_ADDED)


def simulate_unrelated(by_unit: Floats, span: int) -> tuple[Floats, Floats]:
    """The deviation of windows whose units are drawn at random: of all (k), and of those outside each window.

    Args:
        by_unit: the terms of each unit (units, k); NaN where there are no rows.

    Returns:
        The deviations from all units (k), and from those outside of each window that slides (windows, k).
    """
    present = np.asarray(~np.isnan(by_unit).any(axis=1))
    rows = by_unit[present]
    if not rows.size:
        return np.zeros(by_unit.shape[1]), np.zeros((max(len(by_unit) - span + 1, 0), by_unit.shape[1]))
    drawn = np.random.default_rng(0).integers(0, len(rows), (DRAWS, span))
    whole = trimmed_mean(rows[drawn].transpose(0, 2, 1)).std(axis=0)
    filled = np.where(present[:, None], by_unit, 0.0)
    parts = (present[:, None].astype(float), filled, filled**2)
    count, sums, squares = (values.sum(axis=0) - slide(values, span).sum(axis=-1) for values in parts)
    count = np.maximum(count, 1)
    outside = np.sqrt(np.maximum(squares / count - (sums / count) ** 2, 0.0))
    return whole, outside * whole / np.maximum(rows.std(axis=0), LEAST_DEVIATION)
