"""Calibration: margins of rows that their model has not seen, and the outcomes → a linear map of the margins.

A map with more numbers bends more, and learns more of the luck of its rows. So maps are fitted from few numbers to
many, each held near the one before by a prior, and compared on rows that they were not fitted on. The one that surely
gains there is taken; where none does, margins stay as they are. Nothing here trains a model.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks import log
from tasks.training.digits import round_digits
from tasks.training.model import Floats

Family = Literal["none", "temperature", "bias", "vector", "matrix"]
FAMILIES: tuple[Family, ...] = ("temperature", "bias", "vector", "matrix")  # from few numbers to many
BLOCKS = 5  # contiguous in time: each is scored by maps of the other four
GROUPS = 25  # contiguous in time: rows of one group may rise and fall together, so their mean counts as one
DEVIATIONS = 2.0  # standard errors that a gain must exceed
LEAST_ROWS = 50  # rows; fewer choose nothing
PRIOR_DEVIATION = 1.0  # the standard deviation of what a map adds to the temperature, in logits and in slopes
LEAST_SLOPE = 0.01  # a temperature's slope at least: margins below it rank nothing
MOST_ROWS = 100_000  # rows, evenly over time: more tell so few numbers nothing
MOST_CLASSES = 30  # classes at most for a full matrix


@dataclass(frozen=True)
class Map:
    """Margins (n, classes) @ coef.T + intercept are the calibrated ones."""

    coef: Floats
    intercept: Floats

    def __call__(self, margins: Floats) -> Floats:
        return np.asarray(margins @ self.coef.T + self.intercept)

    def after(self, offset: Floats) -> "Map":
        """The map that does the same to margins before an offset (classes) is added to them."""
        return Map(self.coef, self.intercept + self.coef @ offset)


@dataclass(frozen=True)
class Choice:
    """The family that was taken and its map; `gain` is the log loss that it saves on rows that it was not fitted on."""

    family: Family
    map: Map
    gain: float = 0.0


def choose_map(margins: Floats, codes: NDArray[np.int64]) -> Choice:
    """The map for margins (n, classes), in the order of time, and the classes' numbers (n).

    A family may be taken when its mean gain over no map, on rows that its fit has not seen, exceeds twice its standard
    error. Of those the one that gains most is taken.
    """
    places = np.linspace(0, len(codes) - 1, min(len(codes), MOST_ROWS)).astype(np.intp)
    margins, codes = margins[places], codes[places]
    classes = margins.shape[1]
    nothing = Choice("none", Map(np.eye(classes), np.zeros(classes)))
    if len(codes) < LEAST_ROWS or len(np.unique(codes)) < 2:
        return nothing
    plain = log_losses(margins, codes)
    # Of two classes a temperature and a bias are all that there is to learn.
    families = FAMILIES[:2] if classes == 2 else FAMILIES[:3] if classes > MOST_CLASSES else FAMILIES
    gains = {family: plain - _cross_fit(margins, codes, family) for family in families}
    sure = [family for family, gain in gains.items() if gain.mean() > DEVIATIONS * _error(gain)]
    if not sure:
        return nothing
    best = max(sure, key=lambda family: gains[family].mean())
    chosen = fit_map(margins, codes, best)
    if best in ("temperature", "bias") and chosen.coef[0, 0] <= LEAST_SLOPE:
        log.warning("the out-of-fold margins do not rank the outcome: calibration is left out")
        return nothing
    return Choice(best, chosen, float(gains[best].mean()))


def fit_map(margins: Floats, codes: NDArray[np.int64], family: Family) -> Map:
    """The most probable map of a family: log loss, and a normal prior around one slope for all classes.

    A class without a row here has nothing to be bent by: it keeps the common slope and no bias.
    """
    present = np.unique(codes)
    coef, intercept, slope = _find_most_probable(margins[:, present], np.searchsorted(present, codes), family)
    whole = Map(np.eye(margins.shape[1]) * slope, np.zeros(margins.shape[1]))
    whole.coef[np.ix_(present, present)], whole.intercept[present] = coef, intercept
    return Map(_rounded(whole.coef), _rounded(whole.intercept))


def _find_most_probable(margins: Floats, codes: NDArray[np.int64], family: Family) -> tuple[Floats, Floats, float]:
    """The coefficients, the biases and the common slope."""
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    classes = margins.shape[1]
    inputs = np.column_stack([margins, np.ones(len(margins))])  # the last column is for the biases
    free = np.eye(classes, classes + 1, dtype=bool) & (family == "vector") | (family == "matrix")
    free[:, -1] = family != "temperature"
    outcome = np.eye(classes)[codes]

    def unpack(numbers: Floats) -> Floats:
        """What is added to the common slope, and the biases (classes, classes + 1)."""
        added = np.zeros(free.shape)
        added[free] = numbers[1:]
        return added

    def loss(numbers: Floats) -> tuple[float, Floats]:
        added = unpack(numbers)
        logs = _log_shares(numbers[0] * margins + inputs @ added.T)
        slopes = (np.exp(logs) - outcome).T @ inputs
        penalty = np.square(added).sum() / (2 * PRIOR_DEVIATION**2)
        gradient = np.concatenate([[np.trace(slopes)], (slopes + added / PRIOR_DEVIATION**2)[free]])
        return float((penalty - logs[outcome == 1].sum()) / len(codes)), gradient / len(codes)

    start = np.zeros(1 + free.sum())
    start[0] = 1.0
    bounds = [(LEAST_SLOPE, None)] + [(None, None)] * (len(start) - 1)
    with threadpool_limits(1):  # threads would end the sums in other digits
        best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-7}).x
    added = unpack(best)
    return best[0] * np.eye(classes) + added[:, :-1], added[:, -1], float(best[0])


def log_losses(margins: Floats, codes: NDArray[np.int64]) -> Floats:
    """The log loss of each row (n)."""
    return -np.take_along_axis(_log_shares(margins), codes[:, None], axis=1)[:, 0]


def _cross_fit(margins: Floats, codes: NDArray[np.int64], family: Family) -> Floats:
    """The losses of each block's rows under the map of the other blocks (n)."""
    rows, losses = np.arange(len(codes)), np.empty(len(codes))
    for block in np.array_split(rows, BLOCKS):
        others = np.setdiff1d(rows, block)
        fitted = fit_map(margins[others], codes[others], family)
        losses[block] = log_losses(fitted(margins[block]), codes[block])
    return losses


def _error(gains: Floats) -> float:
    """The standard error of a mean gain."""
    means = np.array([group.mean() for group in np.array_split(gains, GROUPS)])
    return float(means.std(ddof=1) / np.sqrt(GROUPS))


def _log_shares(scores: Floats) -> Floats:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _rounded(values: Floats) -> Floats:
    """Ten digits: further ones differ between machines."""
    return np.asarray([round_digits(float(value), 10) for value in values.ravel()]).reshape(values.shape)
