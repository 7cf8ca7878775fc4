"""The losses of a recipe on the folds, by stretches of time: what a search compares once it has ended."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.params import Params
from tasks.runtime.threads import stop_event
from tasks.training import fitting, model
from tasks.training.fitting import Folds
from tasks.training.model import Floats, Spec

GROUPS = 25  # contiguous in time, of a fold: rows of one group may rise and fall together, so their mean counts as one
MOST_ROWS = 20_000  # of a fold's validation, evenly over time
LEAST_SHARE = 1e-7  # the least probability that a loss is taken of


@dataclass(frozen=True)
class Scorer:
    """A fold's booster and the validation rows that it is asked.

    Attributes:
        matrix: encoded (n, features).
        outcome: classes, or numbers on the booster's scale (n).
        base: margins that the booster's add to (n,) or (n, classes); None: its own.
    """

    spec: Spec
    booster: Any
    matrix: NDArray[np.float32]
    outcome: Floats
    base: Floats | None

    def find_losses(self, matrix: NDArray[np.float32]) -> Floats:
        """Of each row (n), with these inputs in place of its own."""
        return find_losses(self.booster.inplace_predict(matrix, base_margin=self.base), self.outcome, self.spec)

    def average(self, losses: Floats) -> Floats:
        """The means of stretches of time (groups)."""
        return np.array([part.mean() for part in np.array_split(losses, min(GROUPS, len(losses)))])


def find_losses(predictions: Floats, outcome: Floats, spec: Spec) -> Floats:
    """Of each row (n): log loss, or of a number the squared error on the booster's scale."""
    if spec.task == "regression":
        return np.asarray(np.square(predictions - outcome))
    codes = outcome.astype(int)
    shares = np.column_stack([1 - predictions, predictions]) if spec.task == "binary" else predictions
    return np.asarray(-np.log(np.maximum(shares[np.arange(len(codes)), codes], LEAST_SHARE)))


def fit_scorers(folds: Folds, drawn: dict[str, Any], rounds: int, p: Params) -> Iterator[Scorer]:
    """Each fold's booster with these parameters, one in memory at a time."""
    settings = fitting.to_booster_params(drawn, p, classes=len(folds.spec.classes))
    watcher = fitting.make_watcher(stop_event())
    for place in range(folds.count):
        binned = folds.bin_one(drawn, place)
        fitting.balance_classes(binned, folds.spec, drawn)
        booster = model.import_xgboost().train(settings, binned.train, rounds, callbacks=[watcher])
        spec, rows = folds.open_validation(place, MOST_ROWS)
        matrix, outcome = spec.encode(rows.table), spec.encode_label(rows.label)
        if spec.task == "regression":
            outcome = spec.scale_label(rows.label, spec.find_offset(matrix)).astype(np.float64)
        yield Scorer(spec, booster, matrix, outcome, _find_base(binned.valid, len(matrix), spec))


def _find_base(valid: Any, rows: int, spec: Spec) -> Floats | None:
    """The margins at which all rows of a matrix begin, of so many rows."""
    margins = valid.get_base_margin()
    if not len(margins):
        return None
    first = margins[: len(margins) // valid.num_row()]  # one, or one for each class
    return np.full(rows, first[0]) if spec.task == "binary" else np.tile(first, (rows, 1))


def measure_losses(folds: Folds, drawn: dict[str, Any], rounds: int, p: Params) -> Floats:
    """The mean losses of all folds' stretches of time, in their order."""
    scorers = fit_scorers(folds, drawn, rounds, p)
    return np.concatenate([scorer.average(scorer.find_losses(scorer.matrix)) for scorer in scorers])
