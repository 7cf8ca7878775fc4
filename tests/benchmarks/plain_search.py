"""The search of tasks/training/tune.py once more, as a person would write it: a loop of XGBClassifier.fit.

    python -m tests.benchmarks.plain_search

The same features, folds, space, rounds and patience, and the same sampler with the same seeds; each fold is fitted from
its data frame, early stopping ends a fit, nothing else does. Prints the seconds, imports left out, and the best score.
"""

import json
import time
from typing import Any

import numpy as np
import optuna
import pandas as pd
from xgboost import XGBClassifier

from tasks import params
from tasks.data import featurerows
from tasks.data.manifest import FeaturesManifest
from tasks.params import Params
from tasks.training import model, split, studies

Fold = tuple[pd.DataFrame, np.ndarray, pd.DataFrame, np.ndarray]


def search(p: Params) -> "optuna.Study":
    folds = read_folds(p)
    space = {name: studies.to_distribution(dimension) for name, dimension in sorted(p.tune.space.items())}
    study = optuna.create_study()
    for number in range(p.tune.trials):
        study.sampler = studies.make_sampler(p, number)  # so that both draw the same while they know the same
        trial = study.ask(space)
        study.tell(trial, score(trial.params, folds, p))
    return study


def read_folds(p: Params) -> list[Fold]:
    """Categories as codes, which is the faster way here; missing values are NaN."""
    rows = featurerows.read_rows(p.paths.features)
    as_of = FeaturesManifest.read(p.paths.features).as_of
    where = split.find_holdout(as_of, p.split, deadline=p.label.deadline)
    there = model.is_labelled(rows.label)
    folds = split.make_folds(rows.event_time, where.begin, p.split, deadline=p.label.deadline, labelled=there)
    table = rows.table.to_pandas()
    for name in table.select_dtypes("str"):
        codes = table[name].astype("category").cat.codes
        table[name] = codes.where(codes >= 0)
    return [(table[one.train], rows.label[one.train], table[one.valid], rows.label[one.valid]) for one in folds]


def score(drawn: dict[str, Any], folds: list[Fold], p: Params) -> float:
    """The folds' log loss, weighted by their rows."""
    losses = [fit(drawn, fold, p) for fold in folds]
    return float(np.average(losses, weights=[len(fold[3]) for fold in folds]))


def fit(drawn: dict[str, Any], fold: Fold, p: Params) -> float:
    x, y, held_x, held_y = fold
    settings = {name: value for name, value in drawn.items() if name not in ("eta", "lambda", "class_weight")}
    fitted = XGBClassifier(
        n_estimators=p.tune.rounds,
        early_stopping_rounds=p.tune.patience,
        eval_metric="logloss",
        learning_rate=drawn["eta"],
        reg_lambda=drawn["lambda"],
        n_jobs=p.stage.threads,
        random_state=p.tune.seed,
        **settings,
    )
    weight = model.weigh_rows(y, [0, 1], drawn["class_weight"])
    margin, held_margin = (
        np.full(len(labels), log_odds(y, w)) for labels, w in ((y, weight), (held_y, np.ones(len(y))))
    )
    fitted.fit(
        x,
        y,
        sample_weight=weight,
        base_margin=margin,
        eval_set=[(held_x, held_y)],
        base_margin_eval_set=[held_margin],
        verbose=False,
    )
    return float(fitted.best_score)


def log_odds(y: np.ndarray, weight: np.ndarray) -> float:
    """Weights are taken out of what is scored, as in training/fitting.py: else the two would score different things."""
    return float(np.log(weight[y == 1].sum() / weight[y == 0].sum()))


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    p = params.load()
    began = time.perf_counter()
    study = search(p)
    print(json.dumps({"seconds": time.perf_counter() - began, "score": study.best_value, "trials": len(study.trials)}))


if __name__ == "__main__":
    main()
