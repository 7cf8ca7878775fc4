"""Which trial of a search is behind the others, and XGBoost's callback that ends it.

A trial is compared with its elders, the trials that have ended, when they had come as far in that fold. As far means
that eta times the rounds is the same: a small eta is slow, not bad. The README has the measurements.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

from tasks.params import Params
from tasks.training import fitting, model
from tasks.training.folds import Progress

ROUNDS_BETWEEN_REPORTS = 10
WARM_UP_ROUNDS = 20  # of each fold, in which no trial is pruned
LEAST_ELDERS = 4  # trials that end before any is pruned


@dataclass(frozen=True)
class Curve:
    """A trial's reports by step, which is its fold times tune.rounds and the round; and how far a round takes it."""

    scores: dict[int, float]
    eta: float

    def best(self, fold: int, reach: float, rounds: int) -> float:
        """The best score in a fold by the time that eta times the rounds came to `reach`."""
        parts = ((*divmod(step, rounds), score) for step, score in self.scores.items())
        inside = (score for part, epoch, score in parts if part == fold and (epoch + 1) * self.eta <= reach)
        return min(inside, default=math.inf)


def is_behind(own: Curve, elders: Sequence[Curve], *, rounds: int) -> bool:
    """Whether a trial's last report is worse than the median of its elders when they had come as far in that fold."""
    step = max(own.scores)
    fold, epoch = divmod(step, rounds)
    then = [elder.best(fold, (epoch + 1) * own.eta, rounds) for elder in elders]
    return len(then) >= LEAST_ELDERS and own.scores[step] > float(np.median(then))


def read_curves(study: optuna.Study) -> list[Curve]:
    """Of the trials that have ended."""
    ended = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return [Curve(trial.intermediate_values, trial.params.get("eta", 1.0)) for trial in ended]


def make_watcher(
    trial: optuna.Trial, elders: Sequence[Curve], p: Params, stop: threading.Event, progress: Progress, rows: int
) -> Any:
    """XGBoost's callback for one fold: it reports the score so far every few rounds, and prunes a trial that is behind.

    Args:
        stop: set when the fit must end.
        progress: the folds before this one.
        rows: of validation in this fold.
    """
    own = Curve({}, trial.params.get("eta", 1.0))

    class Watcher(model.import_xgboost().callback.TrainingCallback):  # type: ignore[misc]  # its class is known at run time
        def after_iteration(self, _model: Any, epoch: int, evals_log: Any) -> bool:
            if stop.is_set():
                raise fitting.Stopped
            if epoch % ROUNDS_BETWEEN_REPORTS == ROUNDS_BETWEEN_REPORTS - 1:
                step, scores = progress.folds * p.tune.rounds + epoch, evals_log["valid"][fitting.METRIC[p.label.task]]
                if not math.isfinite(scores[-1]):
                    raise optuna.TrialPruned  # labels beyond what float32 holds
                own.scores[step] = progress.plus(min(scores), rows).mean
                trial.report(own.scores[step], step)
                if epoch >= WARM_UP_ROUNDS and is_behind(own, elders, rounds=p.tune.rounds):
                    raise optuna.TrialPruned
            return False

    return Watcher()
