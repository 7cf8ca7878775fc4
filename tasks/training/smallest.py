"""tune.small: of a search over loss and size at once, the smallest model whose loss is within one standard error.

The rule is that of one standard error (Breiman et al. 1984, section 3.4.3), on paired losses: of the trials that no
other beats in both loss and size, the smallest whose losses are higher than those of the best by no more than the
standard error of the mean difference over stretches of time.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tasks import log
from tasks.params import Params
from tasks.training import foldlosses
from tasks.training.fitting import Folds
from tasks.training.model import Floats

FRONT = 8  # trials of the front, those of the least loss, that are compared


@dataclass(frozen=True)
class Candidate:
    """A trial of the front. `size` is of its model, in bytes."""

    number: int
    params: dict[str, Any]
    rounds: int
    size: float


@dataclass(frozen=True)
class Choice:
    """The trial that was chosen, beside the one of the least loss.

    Attributes:
        size, best_size: of the models, in bytes, the mean of the folds'.
        loss_more: how much more the chosen one loses; `error` is its standard error.
    """

    trial: int
    size: float
    best_trial: int
    best_size: float
    loss_more: float = 0.0
    error: float = 0.0

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def choose_smallest(folds: Folds, candidates: Sequence[Candidate], p: Params) -> Choice:
    """
    Args:
        candidates: the one of the least loss first.
    """
    best = candidates[0]
    losses = _measure(folds, best, p)
    smaller = sorted((one for one in candidates if one.size < best.size), key=lambda one: (one.size, one.number))
    for one in smaller:
        more, error = find_difference(_measure(folds, one, p) - losses)
        if more <= error:
            log.info("trial %s has %.0f kB, the best has %.0f", one.number, one.size / 1e3, best.size / 1e3)
            return Choice(one.number, one.size, best.number, best.size, more, error)
    return Choice(best.number, best.size, best.number, best.size)


def find_difference(more: Floats) -> tuple[float, float]:
    """The mean of paired differences, and its standard error."""
    return float(more.mean()), float(more.std(ddof=1) / np.sqrt(len(more)))


def _measure(folds: Folds, one: Candidate, p: Params) -> Floats:
    """In the label's units; squared for a number."""
    return foldlosses.measure_losses(folds, one.params, one.rounds, p) * folds.spec.scale**2
