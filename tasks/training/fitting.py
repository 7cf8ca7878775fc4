"""Boosters: their rows, XGBoost's parameters and matrices, and fits that run side by side and stop together."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

from tasks.data.featurerows import Rows
from tasks.params import Params
from tasks.training import model, split
from tasks.training.model import Spec

T = TypeVar("T")
METRIC = {"binary": "logloss", "multiclass": "mlogloss", "regression": "rmse"}
OBJECTIVE = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}
MAX_BIN = 256  # where tune.space names none: XGBoost's own


class Stopped(RuntimeError):  # noqa: N818 (it says what happened)
    """A fit beside this one failed, or somebody pressed Ctrl-C."""


def take_training(rows: Rows, cut: datetime, p: Params) -> Rows:
    """The labelled rows that training up to `cut` may see."""
    seen = split.select_training(rows.event_time, cut, p.split, deadline=p.label.deadline)
    return rows.take(seen & model.is_labelled(rows.label))


def to_booster_params(drawn: dict[str, Any], p: Params, *, classes: int) -> dict[str, Any]:
    """A trial's parameters as XGBoost takes them; class_weight is this project's own and becomes row weights."""
    task = p.label.task
    fixed: dict[str, Any] = {"objective": OBJECTIVE[task], "eval_metric": METRIC[task], "tree_method": "hist"}
    fixed |= {"nthread": p.stage.threads, "device": p.train.device, "seed": p.tune.seed, "verbosity": 1}
    fixed |= {"num_class": classes} if task == "multiclass" else {}
    return fixed | {name: value for name, value in drawn.items() if name != "class_weight"}


def make_matrix(spec: Spec, rows: Rows, drawn: dict[str, Any], *, threads: int, ref: Any = None) -> Any:
    """Rows → XGBoost's binned matrix, with labels.

    Args:
        drawn: a trial's parameters; max_bin counts here.
        ref: the training rows' matrix, whose bins validation rows take.
    """
    return model.import_xgboost().QuantileDMatrix(
        spec.encode(rows.table),
        label=spec.scale_label(rows.label),
        feature_names=spec.names,
        feature_types=spec.types,
        enable_categorical=spec.native,
        max_bin=int(drawn.get("max_bin", MAX_BIN)),
        nthread=threads,
        ref=ref,
    )


def make_stopper(stop: threading.Event) -> Any:
    """XGBoost's callback that ends a fit when `stop` is set."""

    class Stopper(model.import_xgboost().callback.TrainingCallback):  # type: ignore[misc]  # its class is known at run time
        def after_iteration(self, _model: Any, _epoch: int, _evals_log: Any) -> bool:
            if stop.is_set():
                raise Stopped
            return False

    return Stopper()


def run_side_by_side(works: Sequence[Callable[[], T]], workers: int, *, stop: threading.Event) -> list[T]:
    """Does these works in threads; their results in order. The first error, or Ctrl-C, sets `stop` for the others.

    Several fits at once use the cores better than one after the other, by half here; the bytes are the same.
    """
    model.import_xgboost()  # it gives its warnings only to the thread that imports it, and check_space needs them
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
            raise next((first for first in errors if not isinstance(first, Stopped)), error) from None
