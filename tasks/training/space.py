"""tune.space as Optuna and XGBoost know it: the check before a search, the distributions, and the first trial.

A parameter is added in params.yaml alone. Its name here, in DEFAULTS, lets the first trial begin at XGBoost's value.
"""

import warnings
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tasks.params import Params, Range
from tasks.training import fitting, model

RESERVED = {  # set by fitting.to_booster_params, or by the centre that a number is learnt from
    *("objective", "eval_metric", "tree_method", "nthread", "n_jobs", "device", "seed", "random_state", "verbosity"),
    *("num_class", "base_score"),
}
# The first trial, as far as tune.space goes: XGBoost's own values, so that no search is worse than none.
DEFAULTS: dict[str, Any] = {
    "eta": 0.3,
    "learning_rate": 0.3,
    "max_depth": 6,
    "max_leaves": 0,
    "min_child_weight": 1.0,
    "subsample": 1.0,
    "colsample_bytree": 1.0,
    "colsample_bylevel": 1.0,
    "colsample_bynode": 1.0,
    "lambda": 1.0,
    "reg_lambda": 1.0,
    "alpha": 0.0,
    "reg_alpha": 0.0,
    "gamma": 0.0,
    "min_split_loss": 0.0,
    "max_delta_step": 0.0,
    "scale_pos_weight": 1.0,
    "num_parallel_tree": 1,
    "grow_policy": "depthwise",
    "sampling_method": "uniform",
    "booster": "gbtree",
    "max_bin": fitting.MAX_BIN,
    "max_cat_to_onehot": 4,
    "max_cat_threshold": 64,
    "class_weight": 0.0,
}
RANDOM_TRIALS = 6  # drawn blindly before the sampler learns


def check_space(p: Params) -> None:
    """Raises ValueError when XGBoost does not know a name in tune.space, or refuses an end of its range."""
    if reserved := sorted(RESERVED & p.tune.space.keys()):
        raise ValueError(f"tune.space must leave {reserved} to tune, which sets them itself: take them out")
    ends = {name: dimension.choice or _bounds(dimension) for name, dimension in p.tune.space.items()}
    for end in (0, -1):
        if unknown := _find_unknown({name: values[end] for name, values in ends.items()}, p):
            raise ValueError(f"tune.space must hold parameters of XGBoost, or class_weight, but it holds {unknown}")


def _find_unknown(drawn: dict[str, Any], p: Params) -> list[str]:
    """The names that XGBoost only warns of, and goes on without."""
    xgb, codes = model.import_xgboost(), np.array([0, 1], dtype=np.float32)
    data = xgb.DMatrix(codes.reshape(-1, 1), label=codes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            xgb.train(fitting.to_booster_params(drawn, p, classes=2) | {"device": "cpu"}, data, 1)
        except xgb.core.XGBoostError as error:
            raise ValueError(f"tune.space: {str(error).splitlines()[0]}") from None
    text = " ".join(str(warning.message) for warning in caught)
    return [name for name in drawn if f'"{name}"' in text]


def _bounds(dimension: Range) -> tuple[Any, Any]:
    kind = int if dimension.integer else float
    return kind(dimension.low or 0.0), kind(dimension.high or 0.0)  # neither is None: params.Range saw to that


def to_distribution(dimension: Range) -> BaseDistribution:
    """A dimension of the search as Optuna knows it."""
    if dimension.choice:
        return CategoricalDistribution(dimension.choice)
    kind = IntDistribution if dimension.integer else FloatDistribution
    return kind(*_bounds(dimension), log=dimension.log)


def make_first_trial(space: dict[str, Range]) -> dict[str, Any]:
    """XGBoost's own values, each moved to the nearest that the space allows; a name without one is left to the draw."""
    return {name: _nearest(DEFAULTS[name], space[name]) for name in space if name in DEFAULTS}


def _nearest(value: Any, dimension: Range) -> Any:
    """Of a choice the value itself, else the nearest number, else the first."""
    if not dimension.choice:
        low, high = _bounds(dimension)
        return type(low)(min(max(value, low), high))
    numbers = [choice for choice in dimension.choice if isinstance(choice, int | float)]
    if value in dimension.choice or isinstance(value, str) or not numbers:
        return value if value in dimension.choice else dimension.choice[0]
    return min(numbers, key=lambda choice: abs(choice - value))


def make_sampler(p: Params, number: int) -> optuna.samplers.BaseSampler:
    """A sampler of its own for each trial: what it draws depends on the trials before and on nothing else."""
    seed = (p.tune.seed + number * 1_000_003) % 2**32
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS, multivariate=True, constant_liar=False)
