"""train: features and the tuned parameters → models/twin.ubj, which ends before the holdout, and models/model.ubj.

    python -m tasks.training.train

The twin is what the gate judges; the model is the same recipe fitted up to as_of, which is what promotion ships
(train.refit). A seed's luck is not the recipe's, so the gate also gets the twin with other seeds, in models/twins.
All carry one calibration, from out-of-fold predictions, and one threshold, from evaluate.costs.
"""

import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks import log
from tasks.data import storedrows
from tasks.data.manifest import FeaturesManifest
from tasks.data.storedrows import AnyRows
from tasks.params import Costs, Params, Task
from tasks.runtime import files, stage
from tasks.runtime.threads import stop_event
from tasks.training import bagging, calibration, distributed, fitting, matrices, model, sampling, split, warm
from tasks.training.matrices import Encoded
from tasks.training.model import Floats, Model, Spec
from tasks.training.trials import Tuned

OutOfFold = tuple[Floats, NDArray[np.int64]]  # margins (n, classes) without class weights, and the rows' classes (n)
MOST_UNSCORED = 0.01  # share of training rows whose classes may lack an out-of-fold row where margins are calibrated


def train(p: Params, folder: Path = Path()) -> None:
    """Write <models>/twin.ubj, twins/ and model.ubj. Raises ValueError for a target with one class."""
    source, target = folder / p.paths.features, folder / p.paths.models
    rows = storedrows.open_rows(source, memory=0 if p.train.distributed else p.stage.memory_bytes)
    as_of = FeaturesManifest.read(source).as_of
    tuned = Tuned.load(target / "tuned.json")
    start = split.find_holdout(as_of, p.split, deadline=p.label.deadline).begin
    seeds = 1 if p.tune.recipe else p.train.seeds  # of a recipe that is given, past fits tell what is luck
    twins = fit_twins(rows, start, tuned, p, seeds=seeds)
    shipped = _refit(rows, as_of, tuned, p, twins[0].spec) if p.train.refit else twins[0]
    shutil.rmtree(target / "twins", ignore_errors=True)
    (target / "twins").mkdir()
    (target / "twins" / ".folder").touch()  # with one twin it is empty, which neither DVC nor an object store likes
    models = {f"twins/{seed}.ubj" if seed else "twin.ubj": twin for seed, twin in enumerate(twins)}
    for name, fitted in (models | {"model.ubj": shipped}).items():
        files.publish(target / name, fitted.write)
    log.info("twin until %s, model until %s, %s rounds each", start, shipped.spec.until, tuned.rounds)


def fit_twins(rows: AnyRows, cut: datetime, tuned: Tuned, p: Params, *, seeds: int) -> list[Model]:
    """The recipe trained up to `cut` with so many seeds, calibrated alike: the first is the one with tune.seed."""
    seen = fitting.take_training(rows, cut, p)
    beside = fitting.count_beside(seen, p)
    table = Table(seen, tuned, p, threads=max(1, p.stage.threads // min(seeds, beside)))
    model.import_xgboost()  # here, since threads that import it at once get in each other's way
    names = [f"the twin of seed {seed}" for seed in range(seeds)]
    twins = fitting.map_fits(Table.fit_seed, table, range(seeds), p, names=names, threads=beside)
    extras = calibrate(rows, cut, tuned, p, spec=twins[0].spec)
    return [twin.with_spec(until=cut.isoformat(), **extras) for twin in twins]


@dataclass(frozen=True)
class Table:
    """Rows that several fits of a recipe share.

    Attributes:
        folds: the training rows of each (n).
    """

    rows: AnyRows
    tuned: Tuned
    p: Params
    threads: int
    classes: tuple[Any, ...] = ()
    folds: tuple[split.Mask, ...] = ()

    def fit_seed(self, seed: int) -> Model:
        """All rows, with another seed."""
        return fit(self.rows, self.tuned, self.p, seed=seed, threads=self.threads, stop=stop_event())

    def fit_fold(self, place: int) -> Model:
        seen = self.rows.take(self.folds[place])
        return fit(seen, self.tuned, self.p, classes=self.classes, threads=self.threads, stop=stop_event())


def _refit(rows: AnyRows, as_of: datetime, tuned: Tuned, p: Params, spec: Spec) -> Model:
    """The twin's recipe up to as_of, with the calibration of its spec, for the classes that it was judged on."""
    is_known = ~np.isnan(spec.encode_label(rows.label))
    if later := int((model.is_labelled(rows.label) & ~is_known).sum()):
        log.warning("%s rows are of a class that the twin could not learn: left out until it can", later)
    seen = fitting.take_training(rows.take(is_known), as_of, p)
    fitted = fit(seen, tuned, p, threads=p.stage.threads, classes=spec.classes, shares=spec.shares)
    until = as_of.isoformat()
    return fitted.with_spec(until=until, coef=spec.coef, intercept=spec.intercept, threshold=spec.threshold)


def fit(
    seen: AnyRows,
    tuned: Tuned,
    p: Params,
    *,
    threads: int,
    seed: int = 0,
    classes: tuple[Any, ...] = (),
    shares: tuple[float, ...] = (),
    stop: threading.Event | None = None,
) -> Model:
    """A booster on these very rows, without calibration: the mean of train.bag boosters (bagging.py), each of which
    goes on from a base with train.warm (warm.py). With train.distributed each is the work of several workers
    (distributed.py).

    Args:
        seed: added to tune.seed.
        classes: of the model, where the rows may lack one.
        shares: of their rows that are drawn, where another fit has decided it; else train.undersample does.
        stop: ends the fit when it is set.
    """
    every = Spec(p.label.task, (), {}, classes or model.find_classes(seen.label, task=p.label.task))
    shares = shares or sampling.find_shares(seen.label, every, p.train.undersample)
    seen = sampling.draw_rows(seen, every, shares)
    spec = replace(matrices.make_spec(seen, p, dropped=tuned.dropped), classes=every.classes, shares=shares)
    older = warm.count_base_rows(seen, spec, p.train.warm, rounds=tuned.rounds)
    if older:
        spec = warm.name_base_first(spec, seen, older)
    beside, ended = min(p.train.bag, fitting.count_beside(seen, p)), threading.Event()
    settings = fitting.to_booster_params(tuned.params, p, classes=len(spec.classes))
    settings |= {"nthread": max(1, threads // beside)}
    boost = partial(_boost, Encoded(spec, seen), older, tuned=tuned, p=p, stop=stop or ended)
    seeds = bagging.find_seeds(p.tune.seed + seed, p.train.bag)
    works = [partial(boost, settings | {"seed": one}) for one in seeds]
    boosters = fitting.run_side_by_side(works, min(threads, beside), stop=ended)
    return Model(bagging.merge_boosters(boosters), spec)


def _boost(
    seen: Encoded, older: int, settings: dict[str, Any], *, tuned: Tuned, p: Params, stop: threading.Event
) -> Any:
    """The recipe's booster on encoded rows, with settings that hold its seed; it goes on from a base of the oldest rows
    where `older` says how many those are."""
    if p.train.distributed:
        return distributed.boost(seen, settings, drawn=tuned.params, rounds=tuned.rounds, p=p, stop=stop)
    boost = partial(_boost_rounds, settings=settings, drawn=tuned.params, memory=p.stage.memory_bytes, stop=stop)
    if not older:
        return boost(seen, rounds=tuned.rounds)
    part, last = seen.head(older), warm.count_last_rounds(tuned.rounds)
    # One thread, since twins, past fits and models share it, and threads add up numbers in another order.
    make = partial(boost, part, rounds=tuned.rounds - last, settings=settings | {"nthread": 1})
    base = warm.load_base(part, settings | tuned.params, tuned.rounds - last, make)
    return boost(seen, rounds=last, base=base)


def _boost_rounds(
    seen: Encoded,
    *,
    settings: dict[str, Any],
    drawn: dict[str, Any],
    rounds: int,
    memory: float,
    stop: threading.Event | None,
    base: Any = None,
) -> Any:
    """XGBoost's booster on encoded rows; so many rounds, after those of the base."""
    data = seen.bin(drawn, threads=settings["nthread"], memory=memory)
    if "class_weight" in drawn and seen.spec.classes:
        data.set_weight(model.weigh_rows(seen.label, seen.spec.classes, drawn["class_weight"]))
    callbacks = [fitting.make_watcher(stop)] if stop else []  # Ctrl-C must not wait for whole fits
    return model.import_xgboost().train(settings, data, rounds, callbacks=callbacks, xgb_model=base)


def calibrate(
    rows: AnyRows,
    cut: datetime,
    tuned: Tuned,
    p: Params,
    *,
    spec: Spec,
    score: Callable[[], OutOfFold] | None = None,
) -> dict[str, Any]:
    """The spec's calibration and threshold, from models that have not seen the rows they score.

    Args:
        spec: of the model that was fitted on all rows up to `cut`.
        score: Gives what such models say. None: one is trained for each fold.
    """
    task, fields, classes = p.label.task, dict[str, Any](), spec.classes
    if task == "regression":
        return fields
    if task == "binary":
        assert p.evaluate.costs  # tasks.params checks it
        fields["threshold"] = find_threshold(p.evaluate.costs)
    seen = fitting.take_training(rows, cut, p).label
    offset = _undo_weights(seen, tuned, spec)
    if offset.any():
        fields |= to_spec_fields(calibration.Map(np.eye(len(classes)), offset), task)
    if p.train.calibration == "none":
        return fields
    margins, codes = score() if score else _score_out_of_fold(rows, cut, tuned, p, classes)
    unscored = ~np.isin(Spec(task, (), {}, classes).encode_label(seen), np.unique(codes))
    if unscored.mean() > MOST_UNSCORED:
        log.warning(
            "%.1f %% of the training rows are of classes without an out-of-fold row: calibration is left out until "
            "split.fold has some, since it would bend what it cannot see",
            100 * unscored.mean(),
        )
        return fields
    choice, say = calibration.choose_map(margins, codes), log.debug if score else log.info
    if choice.family == "none":
        say("calibration: none, since no map surely gains on rows that it was not fitted on")
        return fields
    say("calibration: %s, which gains %.5f of log loss on unseen rows", choice.family, choice.gain)
    return fields | to_spec_fields(choice.map.after(offset), task)


def _score_out_of_fold(rows: AnyRows, cut: datetime, tuned: Tuned, p: Params, classes: tuple[Any, ...]) -> OutOfFold:
    """What the folds' models say of their validation rows."""
    labelled = model.is_labelled(rows.label)
    folds = split.make_folds(rows.event_time, cut, p.split, deadline=p.label.deadline, labelled=labelled)
    folds = split.keep_trained_classes(folds, rows.label, classes)
    beside = fitting.count_beside(rows, p)
    threads = 1 if beside > 1 else p.stage.threads
    table = Table(rows, tuned, p, threads=threads, classes=classes, folds=tuple(fold.train for fold in folds))
    names = [f"the calibration's fold {place + 1}" for place in range(len(folds))]
    fits = fitting.map_fits(Table.fit_fold, table, range(len(folds)), p, names=names, threads=beside)
    return join_scores(
        score_unseen(fitted, rows.take(fold.valid), tuned, trained_on=rows.label[fold.train])
        for fold, fitted in zip(folds, fits, strict=True)
    )


def score_unseen(fitted: Model, unseen: AnyRows, tuned: Tuned, *, trained_on: NDArray[Any]) -> OutOfFold:
    """Margins (n, classes) of rows that a model has not seen, without class weights and under-sampling; the rows'
    classes (n).

    Args:
        trained_on: The labels of the rows that it was trained on, before under-sampling.
    """
    scores = np.concatenate([fitted.margins(block) for block in unseen.read_blocks()]).astype(np.float64)
    # A binary margin says as much for one class as against the other.
    margins = scores if scores.ndim == 2 else np.column_stack([-scores / 2, scores / 2])
    codes = fitted.spec.encode_label(unseen.label).astype(np.int64)
    return margins + _undo_weights(trained_on, tuned, fitted.spec), codes


def join_scores(parts: Iterable[OutOfFold]) -> OutOfFold:
    margins, codes = zip(*parts, strict=True)
    return np.concatenate(margins), np.concatenate(codes)


def _undo_weights(label: NDArray[Any], tuned: Tuned, spec: Spec) -> Floats:
    """What takes class weights and under-sampling out of margins again, by class: a margin rose by the log of its
    class's weight and of the share of its rows that were drawn.

    Args:
        label: of the rows, before under-sampling.
    """
    shares = np.asarray(spec.shares or np.ones(len(spec.classes)))
    undone = -np.log(shares)
    if "class_weight" in tuned.params:
        codes = spec.encode_label(label)
        counts = np.bincount(codes[~np.isnan(codes)].astype(int), minlength=len(spec.classes))
        undone -= np.log(model.weigh_counts(counts * shares, tuned.params["class_weight"]).astype(np.float64))
    return np.asarray(undone)


def to_spec_fields(chosen: calibration.Map, task: Task) -> dict[str, Any]:
    """A map of the classes' margins as the spec holds it: of a binary margin, a slope and a shift."""
    coef, intercept = chosen.coef, chosen.intercept
    if task == "binary":
        return {"coef": ((float(coef[1, 1] - coef[0, 1]),),), "intercept": (float(intercept[1] - intercept[0]),)}
    return {"coef": tuple(map(tuple, coef.tolist())), "intercept": tuple(intercept.tolist())}


def find_threshold(costs: Costs) -> float:
    """Act when the expected cost of acting is the smaller: p >= fp / (fp + fn) (Elkan 2001), p being calibrated."""
    return costs.false_positive / (costs.false_positive + costs.false_negative)


if __name__ == "__main__":
    stage.main("train", train)
