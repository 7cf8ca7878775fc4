"""Boosters: XGBoost's parameters, fits that run side by side and stop together, and the folds of a search.

The folds' rows are binned matrices that are made once; one trial's fit goes over all folds.
"""

import copy
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

import numpy as np

from tasks.data.featurerows import Rows
from tasks.data.storedrows import AnyRows
from tasks.params import Params
from tasks.runtime import engine
from tasks.training import matrices, model, sampling, split
from tasks.training.matrices import Encoded

T = TypeVar("T")
Shared = TypeVar("Shared")
Item = TypeVar("Item")
METRIC = {"binary": "logloss", "multiclass": "mlogloss", "regression": "rmse"}
OBJECTIVE = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}
VALIDATED = 4  # rows of a fold's validation that a search on fewer rows has, for each of tune.rows
WORTH_THINNING = 1.5  # a search has fewer rows only where there are so many times as many
LEAST_RARE_ROWS = 200  # of the rarest class that a search on fewer rows keeps


class Stopped(RuntimeError):  # noqa: N818 (it says what happened)
    """A fit beside this one failed, or somebody pressed Ctrl-C."""


def take_training(rows: AnyRows, cut: datetime, p: Params) -> AnyRows:
    """The labelled rows that training up to `cut` may see. Raises ValueError when there is none."""
    old_enough = split.select_training(rows.event_time, cut, p.split, deadline=p.label.deadline)
    seen = old_enough & model.is_labelled(rows.label)
    if not seen.any():
        raise ValueError(f"no labelled row lies before {cut}: wait for more data, or shorten split.holdout")
    return rows.take(seen)


def count_beside(rows: AnyRows, p: Params) -> int:
    """How many fits of these rows run side by side: one, where memory does not hold the rows or each is distributed."""
    return p.stage.threads if isinstance(rows, Rows) and not p.train.distributed else 1


def map_fits(
    function: Callable[[Shared, Item], T],
    shared: Shared,
    items: Sequence[Item],
    p: Params,
    *,
    names: Sequence[str],
    costs: Sequence[float] = (),
    threads: int,
    report: Callable[[int], None] = lambda _: None,
) -> list[T]:
    """`engine.map_ordered` for a function that fits: here and one after the other, where each fit is spread itself."""
    if p.train.distributed:
        p, threads = p.model_copy(update={"stage": p.stage.model_copy(update={"cluster": None})}), 1
    return engine.map_ordered(function, shared, items, p, names=names, costs=costs, threads=threads, report=report)


def to_booster_params(drawn: dict[str, Any], p: Params, *, classes: int) -> dict[str, Any]:
    """A trial's parameters as XGBoost takes them; class_weight is this project's own and becomes row weights."""
    fixed: dict[str, Any] = {
        "objective": OBJECTIVE[p.label.task],
        "eval_metric": METRIC[p.label.task],
        "tree_method": "hist",
        "nthread": p.stage.threads,
        "device": p.train.device,
        "seed": p.tune.seed,
        "verbosity": 1,
    }
    fixed |= {"num_class": classes} if p.label.task == "multiclass" else {}
    return fixed | {name: value for name, value in drawn.items() if name != "class_weight"}


def make_watcher(stop: threading.Event, report: Callable[[int, list[float]], None] | None = None) -> Any:
    """XGBoost's callback that ends a fit when `stop` is set, and else reports each round's validation scores so far."""

    class Watcher(model.import_xgboost().callback.TrainingCallback):  # type: ignore[misc]  # its class is known at run time
        def after_iteration(self, _model: Any, epoch: int, evals_log: Any) -> bool:
            if stop.is_set():
                raise Stopped
            if report:
                report(epoch, next(iter(evals_log["valid"].values())))
            return False

    return Watcher()


def run_side_by_side(works: Sequence[Callable[[], T]], workers: int, *, stop: threading.Event) -> list[T]:
    """Does these works in threads; their results in order. The first error, or Ctrl-C, sets `stop` for the others.

    Several fits at once use the cores better than one after the other, by half here; the bytes are the same.
    """
    model.import_xgboost()  # it gives its warnings only to the thread that imports it, and check_space needs them
    if workers == 1:
        return [work() for work in works]  # Ctrl-C comes here by itself
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work) for work in works]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # for those that a failure left running
    errors = [error for future in futures if (error := future.exception())]
    if errors:
        raise next((error for error in errors if not isinstance(error, Stopped)), errors[0])
    return [future.result() for future in futures]


@dataclass(frozen=True)
class Binned:
    """One fold, binned for one max_bin: XGBoost matrices, and the training rows' class codes.

    Attributes:
        shares: of each class, how much of its rows training drew; none: all.
    """

    train: Any
    valid: Any
    codes: model.Floats
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Progress:
    """The folds that a trial has behind it: the sum of their rows' losses, their rows, and how many folds.

    `unit` is what a loss of 1 is in the label's own units: XGBoost learns a number on a scale of its own. `size` is the
    sum of their models' bytes, where it is asked.
    """

    total: float = 0.0
    rows: int = 0
    folds: int = 0
    unit: float = 1.0
    size: int = 0

    def plus(self, score: float, rows: int, size: int = 0) -> "Progress":
        total, size = self.total + score * self.unit * rows, self.size + size
        return replace(self, total=total, rows=self.rows + rows, folds=self.folds + 1, size=size)

    def join(self, other: "Progress") -> "Progress":
        """The folds of both."""
        total, rows, size = self.total + other.total, self.rows + other.rows, self.size + other.size
        return replace(self, total=total, rows=rows, folds=self.folds + other.folds, size=size)

    @property
    def mean(self) -> float:
        return self.total / self.rows


class Folds:
    """The folds' rows as numbers, and their binned matrices, each made once for each side and kept."""

    def __init__(self, p: Params, rows: AnyRows, as_of: datetime) -> None:
        start = split.find_holdout(as_of, p.split, deadline=p.label.deadline).begin
        labelled = model.is_labelled(rows.label)
        folds = split.make_folds(rows.event_time, start, p.split, deadline=p.label.deadline, labelled=labelled)
        used = rows.take(np.any([fold.train | fold.valid for fold in folds], axis=0))
        self.spec: model.Spec = matrices.make_spec(used, p)
        if self.spec.classes:
            folds = split.keep_trained_classes(folds, rows.label, self.spec.classes)
        pairs = [(rows.take(fold.train), rows.take(fold.valid)) for fold in folds]
        self._shares = [sampling.find_shares(train.label, self.spec, p.train.undersample) for train, _ in pairs]
        self._whole = [
            (sampling.draw_rows(train, self.spec, shares), valid)
            for (train, valid), shares in zip(pairs, self._shares, strict=True)
        ]
        most = p.tune.rows
        if most and max(len(train) for train, _ in self._whole) <= WORTH_THINNING * most:
            most = None  # all rows cost less than to fit finalists once more
        self._parts = [
            (thin_rows(train, most, self.spec), thin_rows(valid, most and VALIDATED * most, self.spec))
            for train, valid in self._whole
        ]
        self._threads, self._memory = p.stage.threads, p.stage.memory_bytes
        self._binned: dict[tuple[Any, int], list[Binned]] = {}

    @property
    def thinning(self) -> float:
        """How many times as many rows training has as the search. 1: it has all."""
        whole, parts = (sum(len(train) for train, _ in pairs) for pairs in (self._whole, self._parts))
        return whole / parts

    def bin_thinned(self, drawn: dict[str, Any], side: int) -> list[Binned]:
        """With at most tune.rows of training, for one of the trials that run side by side: a trial's weights are set
        on its matrices."""
        key = drawn.get("max_bin"), side
        if key not in self._binned:
            self._binned[key] = [self._bin(part, place, drawn) for place, part in enumerate(self._parts)]
        return self._binned[key]

    def bin_whole(self, drawn: dict[str, Any]) -> Iterator[Binned]:
        """With all their rows, one fold in memory at a time."""
        return (self._bin(part, place, drawn) for place, part in enumerate(self._whole))

    def bin_one(self, drawn: dict[str, Any], fold: int) -> Binned:
        """One fold with all its rows."""
        return self._bin(self._whole[fold], fold, drawn)

    def without(self, names: Sequence[str]) -> "Folds":
        """The same rows, of which these features are not seen."""
        lean = copy.copy(self)
        lean.spec, lean._binned = self.spec.without(names), {}
        return lean

    def open_validation(self, fold: int, most: int) -> tuple[model.Spec, Rows]:
        """At most so many of a fold's validation rows, evenly over time, with the spec of its training."""
        train, valid = self._whole[fold]
        return self._find_spec(train), take_evenly(valid, most).load()

    def _find_spec(self, train: AnyRows) -> model.Spec:
        """A category that these training rows do not have is missing in validation, as it will be when serving."""
        return replace(self.spec, categories=matrices.find_categories(train, self.spec))

    @property
    def count(self) -> int:
        return len(self._whole)

    def _bin(self, part: tuple[AnyRows, AnyRows], place: int, drawn: dict[str, Any]) -> Binned:
        train, valid = part
        spec = self._find_spec(train)
        data = Encoded(spec, train).bin(drawn, threads=self._threads, memory=self._memory)
        held_out = Encoded(spec, valid).bin(drawn, threads=self._threads, memory=self._memory, ref=data)
        return Binned(data, held_out, spec.encode_label(train.label), self._shares[place])


def thin_rows(rows: AnyRows, most: int | None, spec: model.Spec) -> AnyRows:
    """At most so many rows, evenly over time and in memory: to rank parameters, not all of history is needed.

    More where a class is rare: at least 200 of its rows, or all that there are, since the classes keep their shares.
    """
    if most is not None and spec.classes:
        counts = np.bincount(spec.encode_label(rows.label).astype(int))
        rarest = int(counts[counts > 0].min())
        most = max(most, math.ceil(len(rows) * min(1.0, LEAST_RARE_ROWS / rarest)))
    return rows if most is None or len(rows) <= most else take_evenly(rows, most).load()


def take_evenly(rows: AnyRows, most: int) -> AnyRows:
    """So many of the rows, evenly over time; all of them where there are no more."""
    drawn = np.zeros(len(rows), dtype=bool)
    drawn[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)] = True
    return rows.take(drawn)


def fit_folds(
    drawn: dict[str, Any],
    parts: Iterable[Binned],
    spec: model.Spec,
    p: Params,
    watch: Callable[[Progress, int], Any],
    *,
    threads: int,
) -> tuple[Progress, int]:
    """Fits the folds one after the other: what they came to, and the mean of their best rounds.

    Args:
        drawn: a trial's parameters.
        watch: makes XGBoost's callback for a fold, from the folds before it and the fold's validation rows.
        threads: of each fit.
    """
    settings = to_booster_params(drawn, p, classes=len(spec.classes)) | {"nthread": threads}
    progress, rounds = Progress(unit=spec.scale), []
    for binned in parts:
        balance_classes(binned, spec, drawn)
        rows = binned.valid.num_row()
        booster = fit_fold(settings, binned, p, watch(progress, rows))
        progress = progress.plus(float(booster.best_score), rows, _measure_size(booster) if p.tune.small else 0)
        rounds.append(booster.best_iteration + 1)
    return progress, round(float(np.mean(rounds)))


def _measure_size(booster: Any) -> int:
    """Bytes of a booster up to its best round."""
    return len(booster[: booster.best_iteration + 1].save_raw("ubj"))


def fit_fold(settings: dict[str, Any], binned: Binned, p: Params, watcher: Any) -> Any:
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


def balance_classes(binned: Binned, spec: model.Spec, drawn: dict[str, Any]) -> None:
    """Weighs the classes in training, and takes the weights out of what is scored, as under-sampling too.

    Both shift all margins alike, which is taken out again. So each matrix begins at its own classes' shares (Saerens et
    al. 2002), and the score shows what they do to the trees.
    """
    if not spec.classes or not ("class_weight" in drawn or binned.shares):
        return
    codes = binned.codes.astype(int)
    weights = model.weigh_classes(binned.codes, spec.classes, drawn.get("class_weight", 0.0))
    counts = np.bincount(codes, minlength=len(spec.classes)).astype(float)
    binned.train.set_weight(weights[codes])
    for data, shares in ((binned.train, counts * weights), (binned.valid, counts / (binned.shares or 1.0))):
        logs = np.log(np.maximum(shares, 1e-9) / shares.sum())
        rows = data.num_row()
        data.set_base_margin(np.full(rows, logs[1] - logs[0]) if spec.task == "binary" else np.tile(logs, (rows, 1)))
