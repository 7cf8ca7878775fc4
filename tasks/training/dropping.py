"""tune.drop: features that earn nothing on the folds are left out of the recipe.

The rule is permutation importance (Breiman 2001; Fisher, Rudin and Dominici 2019). The winner's parameters are fitted
on each fold; then a feature of the validation rows is shuffled, and the loss rises by what it earned there. It is
dropped where the mean rise over stretches of time is at most its standard error. Features that say the same may all
seem to earn nothing. So the folds are fitted once more without those that go; where they lose by it, all stay.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks import log
from tasks.params import Params
from tasks.runtime.threads import stop_event
from tasks.training import fitting, foldlosses
from tasks.training.fitting import Folds
from tasks.training.foldlosses import Scorer
from tasks.training.model import Floats

REPEATS = 3  # shuffles of each feature in each fold


@dataclass(frozen=True)
class Leaner:
    """The features that go, and what the folds come to without them."""

    dropped: list[str]
    score: float
    rounds: int


def drop_features(folds: Folds, drawn: dict[str, Any], rounds: int, p: Params) -> Leaner | None:
    """None where all features stay.

    Args:
        drawn: the winner's parameters.
        rounds: of its fits.
        p: with tune.rounds as the winner's step size needs them.
    """
    rises = measure_rises(folds, drawn, rounds, p)
    needed = {p.train.offset, *p.evaluate.slices}
    idle = [name for name, earned in zip(folds.spec.names, find_earning(rises), strict=True) if not earned]
    dropped = [name for name in idle if name not in needed]
    if not dropped or len(dropped) == len(folds.spec.features):
        return None
    lean = folds.without(dropped)
    (before, _), (after, after_rounds) = (_fit(one, drawn, p) for one in (folds, lean))
    if after > before:
        log.info("tune.drop: all features stay, since the folds lose %.3g without %s", after - before, dropped)
        return None
    log.info("tune.drop: %s of %s features earn nothing, and go: %s", len(dropped), len(folds.spec.features), dropped)
    return Leaner(dropped, after, after_rounds)


def find_earning(rises: Floats) -> NDArray[np.bool_]:
    """Of each feature (m) whether its mean rise is more than its standard error.

    Args:
        rises: of each stretch of time and feature (n, m).
    """
    error = rises.std(axis=0, ddof=1) / np.sqrt(len(rises))
    return np.asarray(rises.mean(axis=0) > error)


def measure_rises(folds: Folds, drawn: dict[str, Any], rounds: int, p: Params) -> Floats:
    """How much the loss of each stretch of the folds' validation rises when a feature is shuffled (n, features)."""
    scorers = foldlosses.fit_scorers(folds, drawn, rounds, p)
    parts = [_shuffle(scorer, np.random.default_rng([p.tune.seed, place])) for place, scorer in enumerate(scorers)]
    return np.concatenate(parts)


def _shuffle(scorer: Scorer, rng: np.random.Generator) -> Floats:
    """The same of one fold."""
    matrix, rises = scorer.matrix.copy(), list[Floats]()
    before = scorer.find_losses(matrix)
    orders = [rng.permutation(len(matrix)) for _ in range(REPEATS)]
    for number in range(matrix.shape[1]):
        column, rise = scorer.matrix[:, number], np.zeros(len(matrix))
        for order in orders:
            matrix[:, number] = column[order]
            rise += (scorer.find_losses(matrix) - before) / REPEATS
        matrix[:, number] = column
        rises.append(scorer.average(rise))
    return np.column_stack(rises)


def _fit(folds: Folds, drawn: dict[str, Any], p: Params) -> tuple[float, int]:
    """The folds' score on all rows, and the rounds."""
    watcher = fitting.make_watcher(stop_event())
    progress, rounds = fitting.fit_folds(
        drawn, folds.bin_whole(drawn), folds.spec, p, lambda *_: watcher, threads=p.stage.threads
    )
    return progress.mean, rounds
