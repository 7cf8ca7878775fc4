"""train: features and the tuned parameters → models/twin.ubj, which ends before the holdout, and models/model.ubj.

    python -m tasks.train

The twin is what the gate judges; the model is the same recipe fitted up to as_of, which is what promotion ships
(train.refit). A seed's luck is not the recipe's, so the gate also gets the twin with other seeds, in models/twins.
All carry one calibration, from out-of-fold predictions, and one threshold, from evaluate.costs.
"""

import json
import logging
import shutil
import threading
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tasks import features, model, periods, split, stage, tune
from tasks.features import Rows
from tasks.model import Floats, Model, Spec
from tasks.params import Costs, Params, Task

log = logging.getLogger("evergreen")


def train(p: Params, folder: Path = Path()) -> None:
    """Write <models>/twin.ubj, twins/ and model.ubj. Raises ValueError for a target with one class."""
    source, target = folder / p.paths.features, folder / p.paths.models
    rows = features.read(source)
    as_of = datetime.fromisoformat(json.loads((source / "manifest.json").read_text())["as_of"])
    tuned = json.loads((target / "tuned.json").read_text())
    start = split.cuts(as_of, p.split, deadline=p.label.deadline).start
    twins = fit_twins(rows, start, tuned, p, seeds=p.train.seeds)
    shipped = _refit(rows, as_of, tuned, p, twins[0]) if p.train.refit else twins[0]
    shutil.rmtree(target / "twins", ignore_errors=True)
    (target / "twins").mkdir()
    for seed, twin in enumerate(twins):
        _save(twin, target / (f"twins/{seed}.ubj" if seed else "twin.ubj"))
    _save(shipped, target / "model.ubj")
    log.info("twin until %s, model until %s, %s rounds each", start, shipped.spec.until, tuned["rounds"])


def fit_twins(rows: Rows, cut: datetime, tuned: dict[str, Any], p: Params, *, seeds: int) -> list[Model]:
    """The recipe trained up to `cut` with so many seeds, calibrated alike: the first is the one with tune.seed."""
    stop = threading.Event()
    works = [partial(fit, rows, cut, tuned, p, seed=seed, threads=1, stop=stop) for seed in range(seeds)]
    twins = tune.side_by_side(works, p.stage.threads, stop=stop)
    extras = calibrate(rows, cut, tuned, p, classes=twins[0].spec.classes)
    return [twin.with_spec(**extras) for twin in twins]


def _refit(rows: Rows, as_of: datetime, tuned: dict[str, Any], p: Params, twin: Model) -> Model:
    """The twin's recipe up to as_of, for the classes that the twin was judged on."""
    known = ~np.isnan(twin.spec.encode_label(rows.label))
    if later := int((model.labelled(rows.label) & ~known).sum()):
        log.warning("%s rows are of a class that the twin could not learn: left out until it can", later)
    fitted = fit(rows.take(known), as_of, tuned, p, classes=twin.spec.classes)
    kept = {name: getattr(twin.spec, name) for name in ("coef", "intercept", "threshold")}
    return fitted.with_spec(**kept)


def fit(
    rows: Rows,
    cut: datetime,
    tuned: dict[str, Any],
    p: Params,
    *,
    seed: int = 0,
    classes: tuple[Any, ...] = (),
    threads: int | None = None,
    stop: threading.Event | None = None,
) -> Model:
    """A booster on the labelled rows that training up to `cut` may see, without calibration."""
    seen = split.training(rows.event_time, cut, p.split, deadline=p.label.deadline) & model.labelled(rows.label)
    if not seen.any():
        raise ValueError(f"no labelled row lies before {cut}: wait for more data, or shorten split.holdout")
    threads = threads or p.stage.threads
    found = _fit(rows.take(seen), tuned, p, seed=seed, classes=classes, threads=threads, stop=stop)
    return found.with_spec(until=cut.isoformat())


def _fit(
    seen: Rows,
    tuned: dict[str, Any],
    p: Params,
    *,
    threads: int,
    seed: int = 0,
    classes: tuple[Any, ...] = (),
    stop: threading.Event | None = None,
) -> Model:
    spec = model.spec_for(seen.table, seen.label, task=p.label.task, native=p.train.categories == "native")
    spec = replace(spec, classes=classes or spec.classes)
    drawn = tuned["params"]
    data = tune.matrix(spec, seen, max_bin=int(drawn.get("max_bin", tune.MAX_BIN)), threads=threads)
    if "class_weight" in drawn and spec.classes:
        codes = spec.encode_label(seen.label)
        data.set_weight(model.class_weights(codes, spec.classes, drawn["class_weight"]))
    settings = tune.booster_params(drawn, p, classes=len(spec.classes))
    settings |= {"seed": p.tune.seed + seed, "nthread": threads}
    callbacks = [tune.stopper(stop)] if stop else []  # Ctrl-C must not wait for whole fits
    return Model(model.xgboost().train(settings, data, tuned["rounds"], callbacks=callbacks), spec)


def calibrate(
    rows: Rows, cut: datetime, tuned: dict[str, Any], p: Params, *, classes: tuple[Any, ...]
) -> dict[str, Any]:
    """The spec's calibration and threshold, from models that have not seen the rows they score."""
    if p.label.task == "regression":
        return {}
    extras: dict[str, Any] = {"threshold": threshold(p.evaluate.costs)} if p.label.task == "binary" else {}
    there = model.labelled(rows.label)
    if "class_weight" in tuned["params"]:
        seen = split.training(rows.event_time, cut, p.split, deadline=p.label.deadline) & there
        known = Spec(p.label.task, (), {}, classes).encode_label(rows.take(seen).label)
        extras |= unweighed(known[~np.isnan(known)], tuned["params"]["class_weight"], classes, p.label.task)
    if p.train.calibration == "none":
        return extras
    folds = split.folds(rows.event_time, cut, p.split, deadline=p.label.deadline, labelled=there)
    stop = threading.Event()
    trained = [partial(_fit, rows.take(fold.train), tuned, p, classes=classes, threads=1, stop=stop) for fold in folds]
    valid = [rows.take(fold.valid) for fold in folds]
    fitted = tune.side_by_side(trained, p.stage.threads, stop=stop)
    margins = [each.margins(part.table) for each, part in zip(fitted, valid, strict=True)]
    codes = [each.spec.encode_label(part.label) for each, part in zip(fitted, valid, strict=True)]
    return extras | platt(np.concatenate(margins), np.concatenate(codes), classes=len(classes))


def unweighed(codes: Floats, strength: float, classes: tuple[Any, ...], task: Task) -> dict[str, Any]:
    """The calibration that does no more than take class weights out again: a margin rose by the log of its weight."""
    logs = np.log(model.weights_of_classes(codes, classes, strength).astype(float))
    if task == "binary":
        return {"coef": ((1.0,),), "intercept": (float(logs[0] - logs[1]),)}
    return {"coef": tuple(map(tuple, np.eye(len(classes)).tolist())), "intercept": tuple((-logs).tolist())}


def platt(margins: Floats, codes: Floats, *, classes: int) -> dict[str, Any]:
    """Logistic regression of the outcome on the margins (Platt 1999); for several classes on all of them at once.

    Margins that do not rank the outcome, or do not hold every class, carry nothing to calibrate by: they are left.
    """
    from sklearn.linear_model import LogisticRegression

    there = ~np.isnan(codes)
    inputs = margins[there].reshape(there.sum(), -1).astype(np.float64)
    if len(np.unique(codes[there])) < classes:
        log.warning("the out-of-fold rows do not hold all %s classes: calibration is left out", classes)
        return {}
    found = LogisticRegression(C=1e6, max_iter=1000).fit(inputs, codes[there].astype(int))
    coef, intercept = found.coef_, found.intercept_
    if margins.ndim == 1 and coef[0, 0] <= 0:
        log.warning("the out-of-fold margins do not rank the outcome: calibration is left out")
        return {}
    if margins.ndim == 2 and classes == 2:  # scikit-learn gives one row for two classes, softmax needs one each
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    return {"coef": tuple(map(tuple, coef.tolist())), "intercept": tuple(intercept.tolist())}


def threshold(costs: Costs) -> float:
    """Act when the expected cost of acting is the smaller: p >= fp / (fp + fn) (Elkan 2001), p being calibrated."""
    return costs.false_positive / (costs.false_positive + costs.false_negative)


def _save(fitted: Model, path: Path) -> None:
    data = fitted.to_bytes()
    periods.publish(path, lambda new: _write(new, data))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


if __name__ == "__main__":
    stage.main("train", train)
