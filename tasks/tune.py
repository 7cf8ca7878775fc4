"""tune: Optuna searches XGBoost's parameters on expanding folds → models/tuned.json, reports/trials.json.

    python -m tasks.tune

Each fold's rows are binned once and shared by every trial. A trial that falls behind the median of its elders is
pruned, in whichever fold that shows. The sampler's seed is tune.seed and the trial's number, and finished trials go to
a log as they end: a study that is killed and started again is the study that nobody killed.
"""

import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import features, model, params, periods, split, stage
from tasks.features import Rows
from tasks.model import Spec
from tasks.params import Params, Range

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger("evergreen")
METRIC = {"binary": "logloss", "multiclass": "mlogloss", "regression": "rmse"}
OBJECTIVE = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}
EVERY = 10  # rounds between two looks at a trial
MAX_BIN = 256  # where tune.space names none: XGBoost's own
WARM = 20  # rounds of each fold in which nobody is pruned
STARTUP = 4  # trials that end before anybody is pruned
CODE = periods.source_of(__file__, model.__file__, split.__file__)


@dataclass(frozen=True)
class Binned:
    """One fold, binned for one max_bin: XGBoost matrices, and the training rows' class codes."""

    train: Any
    valid: Any
    codes: model.Floats


class Folds:
    """The folds' rows as numbers, and their binned matrices, each made once and kept."""

    def __init__(self, p: Params, rows: Rows, as_of: datetime) -> None:
        where = split.cuts(as_of, p.split, deadline=p.label.deadline)
        there = model.labelled(rows.label)
        found = split.folds(rows.event_time, where.start, p.split, deadline=p.label.deadline, labelled=there)
        parts = [(rows.take(fold.train), rows.take(fold.valid)) for fold in found]
        used = rows.take(np.any([fold.train | fold.valid for fold in found], axis=0))
        self.spec: Spec = model.spec_for(
            used.table, used.label, task=p.label.task, native=p.train.categories == "native"
        )
        for number, (train, valid) in enumerate(parts, 1):
            if self.spec.classes:
                split.check_classes(number, train=train.label, valid=valid.label, classes=self.spec.classes)
        self._parts = [(_thinned(train, p.tune.rows), valid) for train, valid in parts]
        self._threads = p.stage.threads
        self._binned: dict[int, list[Binned]] = {}

    def binned(self, max_bin: int) -> list[Binned]:
        if max_bin not in self._binned:
            self._binned[max_bin] = [self._bin(train, valid, max_bin) for train, valid in self._parts]
        return self._binned[max_bin]

    def _bin(self, train: Rows, valid: Rows, max_bin: int) -> Binned:
        data = matrix(self.spec, train, max_bin=max_bin, threads=self._threads)
        held = matrix(self.spec, valid, max_bin=max_bin, threads=self._threads, ref=data)
        return Binned(data, held, self.spec.encode_label(train.label))


def _thinned(rows: Rows, most: int | None) -> Rows:
    """At most so many rows, evenly over time: what ranks parameters need not be all of history."""
    if most is None or len(rows) <= most:
        return rows
    kept = np.zeros(len(rows), dtype=bool)
    kept[np.linspace(0, len(rows) - 1, most).astype(int)] = True
    return rows.take(kept)


def matrix(spec: Spec, rows: Rows, *, max_bin: int, threads: int, ref: Any = None) -> Any:
    """Rows → XGBoost's binned matrix, with labels."""
    return model.xgboost().QuantileDMatrix(
        spec.encode(rows.table),
        label=spec.encode_label(rows.label),
        feature_names=spec.names,
        feature_types=spec.types,
        enable_categorical=spec.native,
        max_bin=max_bin,
        nthread=threads,
        ref=ref,
    )


def tune(p: Params, folder: Path = Path()) -> None:
    """Write <models>/tuned.json and <reports>/trials.json. Raises ValueError for history that has no room for folds."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_space(p)
    source = folder / p.paths.features
    as_of = datetime.fromisoformat(json.loads((source / "manifest.json").read_text())["as_of"])
    folds = Folds(p, features.read(source), as_of)
    study = optuna.create_study(study_name="tune", pruner=optuna.pruners.NopPruner(), sampler=_sampler(p, 0))
    with _trial_log(p, source, as_of) as path:
        spent = _restore(study, path, p)
        ended_by = _search(study, folds, p, path, spent)
    tuned = _tuned(study, p, ended_by)
    periods.publish_json(folder / p.paths.models / "tuned.json", tuned)
    periods.publish_json(folder / p.paths.reports / "trials.json", [_row(trial) for trial in study.trials])
    log.info("%(trials)s trials, %(pruned)s of them pruned; best %(metric)s %(score).5f", tuned)
    if ended_by == "budget":
        log.warning("tune.budget ended the search after %s of %s trials", len(study.trials), p.tune.trials)


def _tuned(study: "optuna.Study", p: Params, ended_by: str) -> dict[str, Any]:
    best = study.best_trial
    return {
        "params": best.params,
        "rounds": best.user_attrs["rounds"],
        "score": best.value,
        "metric": METRIC[p.label.task],
        "trials": len(study.trials),
        "pruned": sum(trial.state.name == "PRUNED" for trial in study.trials),
        "ended_by": ended_by,
    }


def check_space(p: Params) -> None:
    """Raises ValueError when XGBoost does not know a name in tune.space, or refuses an end of its range."""
    ends = {name: _ends(_distribution(each)) for name, each in p.tune.space.items()}
    for end in (0, -1):
        if unknown := _unknown({name: values[end] for name, values in ends.items()}, p):
            raise ValueError(f"tune.space must hold parameters of XGBoost, or class_weight, but it holds {unknown}")


def _ends(dimension: Any) -> tuple[Any, ...]:
    return getattr(dimension, "choices", None) or (dimension.low, dimension.high)


def _unknown(drawn: dict[str, Any], p: Params) -> list[str]:
    """The names that XGBoost only warns of, and goes on without."""
    xgb, codes = model.xgboost(), np.array([0, 1], dtype=np.float32)
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
    return optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=8, multivariate=True, constant_liar=False)


def _search(study: "optuna.Study", folds: Folds, p: Params, path: Path, spent: float) -> str:
    """Run trials until they, or the budget, are spent; at least one. Returns which it was."""
    from tqdm import tqdm

    done = len(study.trials)
    with tqdm(total=p.tune.trials, initial=done, desc="tune", unit="trial", mininterval=1, leave=False) as bar:
        for number in range(done, p.tune.trials):
            if number and spent >= p.tune.budget.total_seconds():
                return "budget"
            began = time.monotonic()
            _try(study, folds, p, number)
            seconds = time.monotonic() - began
            spent += seconds
            _append(path, {**_row(study.trials[number]), "seconds": seconds})
            bar.set_postfix(best=f"{study.best_value:.5f}")
            bar.update()
    return "trials"


def _try(study: "optuna.Study", folds: Folds, p: Params, number: int) -> None:
    import optuna

    study.sampler = _sampler(p, number)
    trial = study.ask({name: _distribution(each) for name, each in sorted(p.tune.space.items())})
    try:
        study.tell(trial, _score(trial, folds, p))
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def _score(trial: "Trial", folds: Folds, p: Params) -> float:
    """The mean of the folds' best validation scores, weighted by their rows. Raises TrialPruned."""
    drawn = trial.params
    settings = booster_params(drawn, p, classes=len(folds.spec.classes))
    done, rounds = Done(), []
    for binned in folds.binned(int(drawn.get("max_bin", MAX_BIN))):
        if "class_weight" in drawn and folds.spec.classes:
            binned.train.set_weight(model.class_weights(binned.codes, folds.spec.classes, drawn["class_weight"]))
        booster = _fit_fold(settings, binned, p, _watcher(trial, p, done, binned.valid.num_row()))
        done = done.plus(float(booster.best_score), binned.valid.num_row())
        rounds.append(booster.best_iteration + 1)
    trial.set_user_attr("rounds", round(float(np.mean(rounds))))
    return done.mean


@dataclass(frozen=True)
class Done:
    """The folds that a trial has behind it: the sum of their rows' losses, their rows, and how many folds."""

    total: float = 0.0
    rows: int = 0
    folds: int = 0

    def plus(self, score: float, rows: int) -> "Done":
        return Done(self.total + score * rows, self.rows + rows, self.folds + 1)

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
    return model.xgboost().train(
        settings,
        binned.train,
        p.tune.rounds,
        evals=[(binned.valid, "valid")],
        early_stopping_rounds=p.tune.patience,
        callbacks=[watcher],
        verbose_eval=False,
    )


def _watcher(trial: "Trial", p: Params, done: Done, rows: int) -> Any:
    """XGBoost's callback that reports the trial's score so far, every few rounds, and prunes it when it is behind."""
    import optuna

    ended = trial.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    elders = [Curve(each.intermediate_values, each.params.get("eta", 1.0)) for each in ended]
    own = Curve({}, trial.params.get("eta", 1.0))

    class Watcher(model.xgboost().callback.TrainingCallback):  # type: ignore[misc]  # its class is known at run time
        def after_iteration(self, _model: Any, epoch: int, evals_log: Any) -> bool:
            if epoch % EVERY == EVERY - 1:
                step = done.folds * p.tune.rounds + epoch
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

    rows = [periods.content(path) for _, path in periods.files(features)]
    search = p.tune.model_dump(exclude={"trials", "budget"})
    asked = p.label.task, p.label.deadline, p.split.model_dump(), p.train.categories, p.train.device
    entry = periods.key(rows, as_of, search, asked, CODE, optuna.__version__, model.xgboost().__version__)
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


def _append(path: Path, row: dict[str, Any]) -> None:
    """One line, on disk before the next trial begins."""
    with path.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _restore(study: "optuna.Study", path: Path, p: Params) -> float:
    """Put the log's trials back into the study; returns the seconds they took. A torn last line is cut off."""
    rows = _whole_lines(path)[: p.tune.trials]
    for row in rows:
        study.add_trial(_frozen(row, p.tune.space))
    if rows:
        log.info("%s trials taken up from a search that was broken off or has grown", len(rows))
    return float(sum(row["seconds"] for row in rows))


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole, _, torn = path.read_text().rpartition("\n")
    if torn:
        periods.publish(path, lambda new: _write(new, whole + "\n" if whole else ""))
    return [json.loads(line) for line in whole.splitlines()]


def _write(path: Path, text: str) -> None:
    path.write_text(text)


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
    stage.main("tune", tune)
