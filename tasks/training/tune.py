"""tune: Optuna searches XGBoost's parameters on expanding folds → models/tuned.json, reports/trials.json.

    python -m tasks.training.tune

Trials run side by side, on matrices that each side bins once. One that falls behind the median of its elders is pruned,
in whichever fold that shows. The search may have fewer rows than there are (tune.rows); then its best trials are fitted
once more on all of them, and the best of these wins. The sampler's seed is tune.seed and the trial's number, and what
has ended goes to a log: a study that is killed and started again is the study that nobody killed.
"""

import json
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tasks import log, params
from tasks.data import cache, feasibility, featurerows, features, featuresql, periods
from tasks.data.featurerows import Rows
from tasks.data.manifest import FeaturesManifest
from tasks.params import Params, Range, Tune
from tasks.runtime import files, stage
from tasks.training import model, split
from tasks.training.model import Spec

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

T = TypeVar("T")
METRIC = {"binary": "logloss", "multiclass": "mlogloss", "regression": "rmse"}
OBJECTIVE = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}
EVERY = 10  # rounds between two looks at a trial
MAX_BIN = 256  # where tune.space names none: XGBoost's own
TAKEN = {  # by booster_params, or by the centre that a number is learnt from
    *("objective", "eval_metric", "tree_method", "nthread", "n_jobs", "device", "seed", "random_state", "verbosity"),
    *("num_class", "base_score"),
}
WARM = 20  # rounds of each fold in which nobody is pruned
RARE = 200  # rows of the rarest class that a search on fewer rows keeps
RANDOM = 6  # trials that are drawn blindly before the sampler learns
# The first trial, as far as tune.space goes: XGBoost's own recipe, so that no search is worse than none.
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
    "max_bin": MAX_BIN,
    "max_cat_to_onehot": 4,
    "max_cat_threshold": 64,
    "class_weight": 0.0,
}
STARTUP = 4  # trials that end before anybody is pruned
CODE = cache.hash_code(__file__, features.__file__, model.__file__, split.__file__)


@dataclass(frozen=True)
class Binned:
    """One fold, binned for one max_bin: XGBoost matrices, and the training rows' class codes."""

    train: Any
    valid: Any
    codes: model.Floats


class Folds:
    """The folds' rows as numbers, and their binned matrices, each made once for each side and kept."""

    def __init__(self, p: Params, rows: Rows, as_of: datetime) -> None:
        where = split.find_cuts(as_of, p.split, deadline=p.label.deadline)
        there = model.is_labelled(rows.label)
        found = split.make_folds(rows.event_time, where.start, p.split, deadline=p.label.deadline, labelled=there)
        used = rows.take(np.any([fold.train | fold.valid for fold in found], axis=0))
        self.spec: Spec = model.make_spec(
            used.table, used.label, task=p.label.task, native=p.train.categories == "native"
        )
        if self.spec.classes:
            found = split.keep_trained_classes(found, rows.label, self.spec.classes)
        self._whole = [(rows.take(fold.train), rows.take(fold.valid)) for fold in found]
        self._parts = [(_thinned(train, p.tune.rows, self.spec), valid) for train, valid in self._whole]
        self._threads = p.stage.threads
        self._binned: dict[tuple[int, int], list[Binned]] = {}

    @property
    def thinned(self) -> bool:
        return any(len(part[0]) < len(whole[0]) for part, whole in zip(self._parts, self._whole, strict=True))

    def binned(self, max_bin: int, side: int = 0) -> list[Binned]:
        """For one of the trials that run side by side: a trial's weights are set on its matrices."""
        if (max_bin, side) not in self._binned:
            self._binned[max_bin, side] = [self._bin(train, valid, max_bin) for train, valid in self._parts]
        return self._binned[max_bin, side]

    def whole(self, max_bin: int) -> Iterator[Binned]:
        """With all their rows, one fold in memory at a time."""
        return (self._bin(train, valid, max_bin) for train, valid in self._whole)

    def _bin(self, train: Rows, valid: Rows, max_bin: int) -> Binned:
        """A category that these very training rows do not have is missing in validation, as it will be in earnest."""
        spec = replace(self.spec, categories=model.find_categories(train.table, self.spec))
        data = matrix(spec, train, max_bin=max_bin, threads=self._threads)
        held = matrix(spec, valid, max_bin=max_bin, threads=self._threads, ref=data)
        return Binned(data, held, spec.encode_label(train.label))


def _thinned(rows: Rows, most: int | None, spec: Spec) -> Rows:
    """At most so many rows, evenly over time, for what ranks parameters need not be all of history. More where a class
    is rare: at least RARE of its rows, or all that there are, since the classes keep their shares."""
    if most is None:
        return rows
    counts = np.bincount(spec.encode_label(rows.label).astype(int)) if spec.classes else np.array([len(rows)])
    rarest = max(int(counts[counts > 0].min()), 1)
    wanted = max(most, math.ceil(len(rows) * min(1.0, RARE / rarest)) if spec.classes else 0)
    if len(rows) <= wanted:
        return rows
    kept = np.zeros(len(rows), dtype=bool)
    kept[np.linspace(0, len(rows) - 1, wanted).astype(int)] = True
    return rows.take(kept)


def matrix(spec: Spec, rows: Rows, *, max_bin: int, threads: int, ref: Any = None) -> Any:
    """Rows → XGBoost's binned matrix, with labels."""
    return model.import_xgboost().QuantileDMatrix(
        spec.encode(rows.table),
        label=spec.scale_label(rows.label),
        feature_names=spec.names,
        feature_types=spec.types,
        enable_categorical=spec.native,
        max_bin=max_bin,
        nthread=threads,
        ref=ref,
    )


def tune(p: Params, folder: Path = Path()) -> None:
    """Write <models>/tuned.json, <reports>/trials.json and score.json. Raises ValueError where folds have no room."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_space(p)
    source = folder / p.paths.features
    as_of = FeaturesManifest.read(source).as_of
    rows = featurerows.read_rows(source)
    featuresql.check_slices(
        p.evaluate.slices, rows.table.column_names
    )  # evaluate needs them, after all the rest is spent
    folds = Folds(p, rows, as_of)
    study = optuna.create_study(study_name="tune", pruner=optuna.pruners.NopPruner(), sampler=_sampler(p, 0))
    with _trial_log(p, source, as_of) as path:
        spent = _restore(study, path, p)
        ended_by = _search(study, folds, p, path, spent)
        finals = _finals(study, folds, p, path.with_suffix(".finals.jsonl"))
    tuned = _tuned(study, p, finals[0], ended_by)
    files.publish_json(folder / p.paths.models / "tuned.json", tuned)
    files.publish_json(folder / p.paths.reports / "score.json", {"score": tuned["score"]})
    told = {each.number: {"score": each.score, "rounds": each.rounds} for each in finals}
    listed = [{**_row(trial), "final": told.get(trial.number)} for trial in study.trials]
    files.publish_json(folder / p.paths.reports / "trials.json", listed)
    log.info("%(trials)s trials, %(pruned)s of them pruned; best %(metric)s %(score).5f", tuned)
    if ended_by == "budget":
        log.warning("tune.budget ended the search after %s of %s trials", len(study.trials), p.tune.trials)


@dataclass(frozen=True)
class Final:
    """What a trial's parameters come to on all rows."""

    score: float
    number: int
    rounds: int


def _tuned(study: "optuna.Study", p: Params, winner: Final, ended_by: str) -> dict[str, Any]:
    return {
        "params": study.trials[winner.number].params,
        "rounds": winner.rounds,
        "score": winner.score,
        "metric": METRIC[p.label.task],
        "trial": winner.number,
        "trials": len(study.trials),
        "pruned": sum(trial.state.name == "PRUNED" for trial in study.trials),
        "ended_by": ended_by,
    }


def _finals(study: "optuna.Study", folds: Folds, p: Params, path: Path) -> list[Final]:
    """The best trials, the best first. After a search on fewer rows they are those of its best, on all rows: it ranked
    the parameters, but their scores, and the rounds they want, belong to the rows that training will have.

    On the default case (24 trials, two seeds): 20,000 rows a fold and 4 finalists came in 40 s to 0.5259 and 0.5262,
    all rows with nobody pruned in 94 and 118 s to 0.5259 and 0.5260. They come after the budget: as many fits of each
    fold, which is what training costs too.
    """
    ended = [each for each in study.trials if each.state.name == "COMPLETE" and each.value is not None]
    ranked = sorted((Final(each.value or 0, each.number, each.user_attrs["rounds"]) for each in ended), key=_rank)
    if not ranked:
        raise ValueError("no trial came to an end with a finite score: check label.expression for extreme values")
    if not folds.thinned or not p.tune.finalists:
        return ranked[:1]
    wanted = [each.number for each in ranked[: p.tune.finalists]]
    wanted += [0] if 0 in {each.number for each in ranked} - set(wanted) else []  # a search on few rows may be misled
    known = [found for found in (Final(**json.loads(line)) for line in _whole_lines(path)) if found.number in wanted]
    missing = [number for number in wanted if number not in {each.number for each in known}]
    return sorted([*known, *_fit_finals(study, folds, p, path, missing)], key=_rank)


def _fit_finals(study: "optuna.Study", folds: Folds, p: Params, path: Path, numbers: Sequence[int]) -> list[Final]:
    """Fitted now, and in the log as they end."""
    from tqdm import tqdm

    found: list[Final] = []
    with tqdm(total=len(numbers), desc="finalists", unit="trial", mininterval=1, leave=False) as bar:
        for first in range(0, len(numbers), p.tune.parallel):
            some, stop = numbers[first : first + p.tune.parallel], threading.Event()
            works = [partial(_final, each, study.trials[each].params, folds, p, stop) for each in some]
            ended = side_by_side(works, len(works), stop=stop)
            _append(path, [asdict(each) for each in ended])
            found += ended
            bar.update(len(some))
    return found


def _rank(found: Final) -> tuple[float, int]:
    return found.score, found.number


def _final(number: int, drawn: dict[str, Any], folds: Folds, p: Params, stop: threading.Event) -> Final:
    parts = folds.whole(int(drawn.get("max_bin", MAX_BIN)))
    done, rounds = _across(drawn, parts, folds.spec, p, lambda _done, _rows: stopper(stop))
    return Final(done.mean, number, rounds)


def check_space(p: Params) -> None:
    """Raises ValueError when XGBoost does not know a name in tune.space, or refuses an end of its range."""
    if taken := sorted(TAKEN & p.tune.space.keys()):
        raise ValueError(f"tune.space must leave {taken} to tune, which sets them itself: take them out")
    ends = {name: _ends(_distribution(each)) for name, each in p.tune.space.items()}
    for end in (0, -1):
        if unknown := _unknown({name: values[end] for name, values in ends.items()}, p):
            raise ValueError(f"tune.space must hold parameters of XGBoost, or class_weight, but it holds {unknown}")


def _ends(dimension: Any) -> tuple[Any, ...]:
    return getattr(dimension, "choices", None) or (dimension.low, dimension.high)


def _unknown(drawn: dict[str, Any], p: Params) -> list[str]:
    """The names that XGBoost only warns of, and goes on without."""
    xgb, codes = model.import_xgboost(), np.array([0, 1], dtype=np.float32)
    data = xgb.DMatrix(codes.reshape(-1, 1), label=codes)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            xgb.train(booster_params(drawn, p, classes=2) | {"device": "cpu"}, data, 1)
        except xgb.core.XGBoostError as error:
            raise ValueError(f"tune.space: {str(error).splitlines()[0]}") from None
    text = " ".join(str(each.message) for each in said)
    return [name for name in drawn if f'"{name}"' in text]


def _sampler(p: Params, number: int) -> "optuna.samplers.BaseSampler":
    """A sampler of its own for each trial: what it draws depends on the trials before and on nothing else."""
    import optuna

    seed = p.tune.seed + number * 1_000_003
    return optuna.samplers.TPESampler(
        seed=seed % 2**32, n_startup_trials=RANDOM, multivariate=True, constant_liar=False
    )


def _search(study: "optuna.Study", folds: Folds, p: Params, path: Path, spent: float) -> str:
    """Run trials until they, or the budget, are spent; at least one. Returns which it was."""
    from tqdm import tqdm

    done, mark = len(study.trials), time.monotonic()
    with tqdm(total=p.tune.trials, initial=done, desc="tune", unit="trial", mininterval=1, leave=False) as bar:
        for first in range(done, p.tune.trials, p.tune.parallel):
            if first and spent >= p.tune.budget.total_seconds():
                return "budget"
            numbers = range(first, min(first + p.tune.parallel, p.tune.trials))
            _try(study, folds, p, numbers)
            now = time.monotonic()
            mark, seconds = now, now - mark  # with what was written after the trials before
            spent += seconds
            trials = study.get_trials(deepcopy=False)
            _append(path, [{**_row(trials[each]), "seconds": seconds / len(numbers)} for each in numbers])
            bar.set_postfix(best=_best(study))
            bar.update(len(numbers))
    return "trials"


def _best(study: "optuna.Study") -> str:
    trials = study.get_trials(deepcopy=False)
    values = [trial.value for trial in trials if trial.state.name == "COMPLETE" and trial.value is not None]
    return f"{min(values):.5f}" if values else "-"


def _try(study: "optuna.Study", folds: Folds, p: Params, numbers: Sequence[int]) -> None:
    """Trials side by side: all are drawn, and pruned, by what the trials before them all came to."""
    import optuna

    trials, stop = [_asked(study, p, number) for number in numbers], threading.Event()
    for side, trial in enumerate(trials):
        folds.binned(int(trial.params.get("max_bin", MAX_BIN)), side)  # with all threads, before they are shared out
    works = [partial(_score, trial, folds, p, side, stop) for side, trial in enumerate(trials)]
    for trial, score in zip(trials, side_by_side(works, len(works), stop=stop), strict=True):
        state = optuna.trial.TrialState.PRUNED if score is None else None
        study.tell(trial, score, state=state)


def _asked(study: "optuna.Study", p: Params, number: int) -> "Trial":
    study.sampler = _sampler(p, number)
    if number == 0:
        study.enqueue_trial(first_trial(p.tune.space))
    return study.ask({name: _distribution(each) for name, each in sorted(p.tune.space.items())})


def first_trial(space: dict[str, Range]) -> dict[str, Any]:
    """XGBoost's own values, each moved to the nearest that the space allows; a name without one is left to the draw."""
    known = {name: DEFAULTS[name] for name in space if name in DEFAULTS}
    return {name: _nearest(value, space[name]) for name, value in known.items()}


def _nearest(value: Any, dimension: Range) -> Any:
    """Of a choice the value itself, else the nearest number, else the first."""
    if not dimension.choice:
        inside = min(
            max(value, dimension.low or 0.0), dimension.high or 0.0
        )  # neither is None: params.Range saw to that
        return int(inside) if dimension.integer else float(inside)
    numbers = [choice for choice in dimension.choice if isinstance(choice, int | float)]
    if value in dimension.choice or isinstance(value, str) or not numbers:
        return value if value in dimension.choice else dimension.choice[0]
    return min(numbers, key=lambda choice: abs(choice - value))


def side_by_side(works: Sequence[Callable[[], T]], workers: int, *, stop: threading.Event | None = None) -> list[T]:
    """Do these works in threads; their results in order. The first error, or Ctrl-C, sets `stop` for the others.

    Several fits at once use the cores better than one after the other, by half here; the bytes are the same.
    """
    model.import_xgboost()  # it tells its warnings only to the thread that imports it, and check_space needs them
    stop = stop or threading.Event()
    errors: list[BaseException] = []

    def guarded(work: Callable[[], T]) -> T:
        try:
            return work()
        except BaseException as error:
            errors.append(error)
            stop.set()
            raise

    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(pool.map(guarded, works))
        except BaseException as error:
            stop.set()
            raise next((each for each in errors if not isinstance(each, Stopped)), error) from None


def _score(trial: "Trial", folds: Folds, p: Params, side: int, stop: threading.Event) -> float | None:
    """The mean of the folds' best validation scores, weighted by their rows; None when the trial was pruned."""
    import optuna

    elders = _elders(trial.study)
    parts = folds.binned(int(trial.params.get("max_bin", MAX_BIN)), side)

    def watch(done: Done, rows: int) -> Any:
        return _watcher(trial, elders, p, done, rows, stop)

    try:
        done, rounds = _across(trial.params, parts, folds.spec, p, watch)
    except optuna.TrialPruned:
        return None
    trial.set_user_attr("rounds", rounds)
    return done.mean


def _across(
    drawn: dict[str, Any], parts: Iterable[Binned], spec: Spec, p: Params, watch: "Callable[[Done, int], Any]"
) -> "tuple[Done, int]":
    """Fit the folds one after the other: what they came to, and the mean of their best rounds."""
    settings = booster_params(drawn, p, classes=len(spec.classes))
    done, rounds = Done(unit=spec.scale), []
    for binned in parts:
        if "class_weight" in drawn and spec.classes:
            _weigh(binned, spec, drawn["class_weight"])
        booster = _fit_fold(settings, binned, p, watch(done, binned.valid.num_row()))
        done = done.plus(float(booster.best_score), binned.valid.num_row())
        rounds.append(booster.best_iteration + 1)
    return done, round(float(np.mean(rounds)))


def _weigh(binned: Binned, spec: Spec, strength: float) -> None:
    """Weigh the classes in training, and take the weights out of what is scored.

    Weights shift all margins alike, which calibration would undo: so each matrix begins at its own classes' shares
    (Saerens et al. 2002), and the score tells what weighting does to the trees.
    """
    weights = model.weigh_classes(binned.codes, spec.classes, strength)
    counts = np.bincount(binned.codes.astype(int), minlength=len(spec.classes)).astype(float)
    binned.train.set_weight(weights[binned.codes.astype(int)])
    binned.train.set_base_margin(_priors(counts * weights, binned.train.num_row(), spec))
    binned.valid.set_base_margin(_priors(counts, binned.valid.num_row(), spec))


def _priors(counts: model.Floats, rows: int, spec: Spec) -> model.Floats:
    """The margins of the classes' shares, the same for each row: (rows,), or (rows, classes)."""
    logs = np.log(np.maximum(counts, 1e-9) / counts.sum())
    return np.full(rows, logs[1] - logs[0]) if spec.task == "binary" else np.tile(logs, (rows, 1))


@dataclass(frozen=True)
class Done:
    """The folds that a trial has behind it: the sum of their rows' losses, their rows, and how many folds.

    `unit` is what a loss of 1 is in the label's own units: XGBoost learns a number on a scale of its own.
    """

    total: float = 0.0
    rows: int = 0
    folds: int = 0
    unit: float = 1.0

    def plus(self, score: float, rows: int) -> "Done":
        return replace(self, total=self.total + score * self.unit * rows, rows=self.rows + rows, folds=self.folds + 1)

    @property
    def mean(self) -> float:
        return self.total / self.rows


def booster_params(drawn: dict[str, Any], p: Params, *, classes: int) -> dict[str, Any]:
    """A trial's parameters as XGBoost takes them; class_weight is ours and becomes row weights."""
    task = p.label.task
    fixed: dict[str, Any] = {"objective": OBJECTIVE[task], "eval_metric": METRIC[task], "tree_method": "hist"}
    fixed |= {"nthread": p.stage.threads, "device": p.train.device, "seed": p.tune.seed, "verbosity": 1}
    fixed |= {"num_class": classes} if task == "multiclass" else {}
    return fixed | {name: value for name, value in drawn.items() if name != "class_weight"}


def _fit_fold(settings: dict[str, Any], binned: Binned, p: Params, watcher: Any) -> Any:
    """A fold's booster, stopped when its validation score has been its best for tune.patience rounds."""
    return model.import_xgboost().train(
        settings,
        binned.train,
        p.tune.rounds,
        evals=[(binned.valid, "valid")],
        early_stopping_rounds=p.tune.patience,
        callbacks=[watcher],
        verbose_eval=False,
    )


class Stopped(RuntimeError):  # noqa: N818 (it says what happened)
    """A trial beside this one failed, or somebody pressed Ctrl-C."""


def stopper(stop: threading.Event) -> Any:
    """XGBoost's callback that ends a fit when `stop` is set."""

    class Stopper(model.import_xgboost().callback.TrainingCallback):  # type: ignore[misc]  # its class is known at run time
        def after_iteration(self, _model: Any, _epoch: int, _evals_log: Any) -> bool:
            if stop.is_set():
                raise Stopped
            return False

    return Stopper()


def _elders(study: "optuna.Study") -> "list[Curve]":
    import optuna

    ended = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return [Curve(each.intermediate_values, each.params.get("eta", 1.0)) for each in ended]


def _watcher(trial: "Trial", elders: "Sequence[Curve]", p: Params, done: Done, rows: int, stop: threading.Event) -> Any:
    """XGBoost's callback that reports the trial's score so far, every few rounds, and prunes it when it is behind."""
    import optuna

    own = Curve({}, trial.params.get("eta", 1.0))

    class Watcher(model.import_xgboost().callback.TrainingCallback):  # type: ignore[misc]  # its class is known at run time
        def after_iteration(self, _model: Any, epoch: int, evals_log: Any) -> bool:
            if stop.is_set():
                raise Stopped
            if epoch % EVERY == EVERY - 1:
                step = done.folds * p.tune.rounds + epoch
                if not math.isfinite(evals_log["valid"][METRIC[p.label.task]][-1]):
                    raise optuna.TrialPruned  # labels beyond what float32 holds
                own.scores[step] = done.plus(min(evals_log["valid"][METRIC[p.label.task]]), rows).mean
                trial.report(own.scores[step], step)
                if epoch >= WARM and behind(own, elders, rounds=p.tune.rounds):
                    raise optuna.TrialPruned
            return False

    return Watcher()


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


def behind(own: Curve, elders: Sequence[Curve], *, rounds: int) -> bool:
    """Whether a trial's last report is worse than the median of its elders' when they had come as far in that fold.

    As far, not as many rounds: a small eta is slow, not bad. On the default case (24 of 40 random trials, many times)
    it halves the CPU, 141 to 69 s, for 0.0007 of log loss, 0.52731 to 0.52806; the median at the same round takes 57 s
    to 0.52873, which no number of further trials mends.
    """
    step = max(own.scores)
    fold, epoch = divmod(step, rounds)
    then = [each.best(fold, (epoch + 1) * own.eta, rounds) for each in elders]
    return len(then) >= STARTUP and own.scores[step] > float(np.median(then))


def _row(trial: "FrozenTrial") -> dict[str, Any]:
    """A trial as plain data, without anything of the clock."""
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.value if trial.state.name == "COMPLETE" else None,
        "params": trial.params,
        "rounds": trial.user_attrs.get("rounds"),
        "steps": {str(step): value for step, value in trial.intermediate_values.items()},
    }


@contextmanager
def _trial_log(p: Params, features: Path, as_of: datetime) -> Iterator[Path]:
    """The log of this very search (same rows, space, code and libraries), held by one process at a time."""
    import optuna
    from filelock import FileLock, Timeout

    rows = [cache.hash_file(path) for _, path in periods.list_files(features)]
    search = p.tune.model_dump(exclude={"trials", "budget", "finalists"})
    asked = p.label.task, p.label.deadline, p.split.model_dump(), p.train.categories, p.train.device
    entry = cache.hash_inputs(
        rows, as_of, search, asked, CODE, optuna.__version__, np.__version__, model.import_xgboost().__version__
    )
    path = params.home() / "studies" / f"{entry}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process runs this very search; waiting for it")
        lock.acquire()
    try:
        yield path
    finally:
        lock.release()


def _append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A line each, on disk before the next trial begins."""
    with path.open("a") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows))
        stream.flush()
        os.fsync(stream.fileno())


def _restore(study: "optuna.Study", path: Path, p: Params) -> float:
    """Put the log's trials back into the study; returns the seconds they took."""
    rows = _logged(path, p.tune)
    for row in rows:
        study.add_trial(_frozen(row, p.tune.space))
    if rows:
        log.info("%s trials taken up from the log of this search", len(rows))
    return float(sum(row["seconds"] for row in rows))


def _logged(path: Path, tune: Tune) -> list[dict[str, Any]]:
    """The log's trials. Of those that ran side by side, a kill may have left some: they are cut off."""
    lines = _whole_lines(path)
    alone = len(lines) % tune.parallel if len(lines) < tune.trials else 0
    if alone:
        files.publish_text(path, "".join(lines[:-alone]))
    return [json.loads(line) for line in lines[: len(lines) - alone][: tune.trials]]


def _whole_lines(path: Path) -> list[str]:
    """A log's lines. A torn last one is cut off."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        files.publish_text(path, "".join(lines[:-1]))
    return [line for line in lines if line.endswith("\n")]


def _frozen(row: dict[str, Any], space: dict[str, Range]) -> "FrozenTrial":
    import optuna

    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[row["state"]],
        value=row["value"],
        params=row["params"],
        distributions={name: _distribution(space[name]) for name in row["params"]},
        intermediate_values={int(step): value for step, value in row["steps"].items()},
        user_attrs={"rounds": row["rounds"]} if row["rounds"] else {},
    )


def _distribution(each: Range) -> "optuna.distributions.BaseDistribution":
    """A dimension of the search as Optuna knows it."""
    import optuna

    if each.choice:
        return optuna.distributions.CategoricalDistribution(each.choice)
    low, high = each.low or 0.0, each.high or 0.0  # never None here: params.Range saw to that
    if each.integer:
        return optuna.distributions.IntDistribution(int(low), int(high), log=each.log)
    return optuna.distributions.FloatDistribution(low, high, log=each.log)


if __name__ == "__main__":
    stage.main("tune", feasibility.refuse_before(tune))
