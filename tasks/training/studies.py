"""A search as Optuna knows it: its space, its sampler, which trial is behind the others, and the log of its trials.

A parameter is added in params.yaml alone. Its name here, in DEFAULTS, lets the first trial begin at XGBoost's value.

A trial is compared with its elders, the trials that have ended, after each fold. Within a fold nothing is compared: a
small eta is slow, and so are small trees, which often are the best in the end. The README has the measurements.

A search that is killed and started again goes on from its log (triallogs.py): a line for each trial that has ended.
The log's name is a hash of all that decides the search, so that a search on other rows or with other code begins anew.
A second file, *.finals.jsonl, has a line for each finalist.
"""

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from tasks import log, params
from tasks.data import features, periods
from tasks.params import Params, Range
from tasks.runtime import locks
from tasks.training import fitting, matrices, model, sampling, split, trialfits, triallogs
from tasks.training.trialfits import Fitted
from tasks.training.trials import Trial

DECIDES = features, fitting, matrices, model, sampling, split, trialfits  # a trial
CODE = periods.hash_code(__file__, *(str(one.__file__) for one in DECIDES))
LEAST_ELDERS = 4  # trials that end before any is pruned
RANDOM_TRIALS = 6  # drawn blindly before the sampler learns
RESERVED = {  # set by fitting.to_booster_params, or by the centre that a number is learnt from
    "objective",
    "eval_metric",
    "tree_method",
    "nthread",
    "n_jobs",
    "device",
    "seed",
    "random_state",
    "verbosity",
    "num_class",
    "base_score",
}
# The first trial, as far as tune.space goes: XGBoost's own values, so that no search is worse than none.
DEFAULTS: dict[str, Any] = {
    "eta": 0.3,
    "max_depth": 6,
    "max_leaves": 64,  # as many as max_depth 6 lets grow
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
    "max_bin": matrices.MAX_BIN,
    "max_cat_to_onehot": 4,
    "max_cat_threshold": 64,
    "class_weight": 0.0,
}
# The second trial of a search over max_leaves: small steps that draw rows and columns, which many tables like. So wide
# a space has few such, and a short search would meet none.
STEADY: dict[str, Any] = {
    "eta": 0.05,
    "max_depth": 6,
    "max_leaves": 32,
    "grow_policy": "lossguide",
    "subsample": 0.8,
    "colsample_bytree": 0.7,
}


def check_space(p: Params) -> None:
    """Raises ValueError for a name in tune.space that XGBoost does not know, or that tune cannot search, and for an end
    of a range that XGBoost refuses."""
    if reserved := sorted(RESERVED & p.tune.space.keys()):
        raise ValueError(f"tune.space must leave {reserved} to tune, which sets them itself: take them out")
    if "learning_rate" in p.tune.space:  # XGBoost would take it, but halvings read eta
        raise ValueError("tune.space must call XGBoost's step size eta, but it holds learning_rate: write eta")
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


def to_distribution(dimension: Range) -> optuna.distributions.BaseDistribution:
    """A dimension of the search as Optuna knows it."""
    if dimension.choice:
        return optuna.distributions.CategoricalDistribution(dimension.choice)
    kind = optuna.distributions.IntDistribution if dimension.integer else optuna.distributions.FloatDistribution
    return kind(*_bounds(dimension), log=dimension.log)


def make_first_trials(space: dict[str, Range]) -> list[dict[str, Any]]:
    """XGBoost's own values, and of a search over max_leaves steady ones too, each moved to the nearest that the space
    allows; a name without one is left to the draw."""
    firsts = [DEFAULTS, DEFAULTS | STEADY] if "max_leaves" in space else [DEFAULTS]
    return [{name: _nearest(values[name], space[name]) for name in space if name in values} for values in firsts]


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


def find_limit(elders: Sequence[float]) -> float:
    """The score above which a trial is behind: the median of its elders'."""
    return float(np.median(elders)) if len(elders) >= LEAST_ELDERS else math.inf


def find_limits(study: optuna.Study, folds: int) -> tuple[float, ...]:
    """The limits after each fold but the last, of the trials that have ended."""
    elders = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return tuple(
        find_limit([elder.intermediate_values.get(step, np.inf) for elder in elders]) for step in range(1, folds)
    )


def tell(study: optuna.Study, trial: optuna.Trial, fitted: Fitted) -> None:
    """Enter what a trial came to."""
    if len(study.directions) == 1:  # Optuna keeps no steps of a search for two things at once
        for place, score in enumerate(fitted.steps):
            trial.report(score, place + 1)
    if fitted.score is None:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        trial.set_user_attr("rounds", fitted.rounds)
        study.tell(trial, fitted.score if fitted.size is None else [fitted.score, fitted.size])


def create_study(p: Params) -> optuna.Study:
    """For the least loss; with tune.small for the least size too."""
    return optuna.create_study(directions=["minimize"] * (1 + p.tune.small))


def read_loss(trial: optuna.trial.FrozenTrial) -> float:
    """Of a trial that has ended."""
    return float(trial.values[0]) if trial.values else 0.0


@contextmanager
def open_log(p: Params, source: Path, as_of: datetime, *, home: Path | None = None) -> Iterator[Path]:
    """The log of this very search (same rows, space, code and libraries), held by one process at a time.

    Args:
        home: the folder of shared state, where not EVERGREEN_HOME.
    """
    rows = [periods.hash_file(path) for _, path in periods.list_files(source)]
    search = p.tune.model_dump(exclude={"trials", "budget", "cpu", "finalists", "halvings", "drop"})
    train = p.train.model_dump(include={"categories", "device", "offset", "undersample"})
    task = p.label.task, p.label.deadline, p.split.model_dump(), train
    libraries = optuna.__version__, np.__version__, model.import_xgboost().__version__
    name = periods.hash_inputs(rows, as_of, search, task, CODE, libraries)
    folder = (home or params.home()) / "studies"
    folder.mkdir(parents=True, exist_ok=True)  # a lock in a database makes none
    with locks.take_turn(folder, name=name):
        triallogs.fetch_logs(folder, name)
        yield folder / f"{name}.jsonl"


def sum_seconds(path: Path) -> float:
    """What the log's lines took, in seconds; those that ran side by side share theirs."""
    return float(sum(json.loads(line).get("seconds", 0.0) for line in triallogs.read_lines(path)))


def to_row(trial: optuna.trial.FrozenTrial) -> Trial:
    """A trial as plain data, without anything of the clock."""
    values = trial.values if trial.state.name == "COMPLETE" else [None]
    row: Trial = {
        "number": trial.number,
        "state": trial.state.name,
        "value": values[0],
        "params": trial.params,
        "rounds": trial.user_attrs.get("rounds"),
        "steps": {str(step): value for step, value in trial.intermediate_values.items()},
    }
    return row | {"size": values[1]} if len(values) > 1 else row


def restore_trials(study: optuna.Study, path: Path, p: Params) -> float:
    """Puts the log's trials back into the study; returns the seconds they took.

    Of trials that ran side by side a kill may have left some alone: they are cut off.
    """
    lines = triallogs.read_lines(path)
    alone = len(lines) % p.tune.parallel if len(lines) < p.tune.trials else 0
    if alone:
        lines = lines[:-alone]
        triallogs.write_lines(path, lines)
    rows = [json.loads(line) for line in lines[: p.tune.trials]]
    space = {name: to_distribution(dimension) for name, dimension in p.tune.space.items()}
    for row in rows:
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[row["state"]],
                values=None
                if row["value"] is None
                else [row["value"], row["size"]]
                if "size" in row
                else [row["value"]],
                params=row["params"],
                distributions={name: space[name] for name in row["params"]},
                intermediate_values={int(step): value for step, value in row["steps"].items()},
                user_attrs={"rounds": row["rounds"]} if row["rounds"] else {},
            )
        )
    if rows:
        log.info("%s trials taken up from the log of this search", len(rows))
    return float(sum(row["seconds"] for row in rows))
