"""contest: the losses of a model's predictions, row by row, and its classes in the order of another model's."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.training.model import Floats, Model, Spec


def align_classes(spec: Spec, judged: Model, found: Floats) -> Floats:
    """Probabilities with a column for each class of `spec` first: a class that the model never saw has none."""
    own = judged.spec.classes
    if spec.task != "multiclass" or own == spec.classes:
        return found
    order = [*spec.classes, *(each for each in own if each not in spec.classes)]
    shares = np.zeros((len(found), len(order)))
    shares[:, [order.index(each) for each in own]] = found
    return shares


Metric = Literal["log_loss", "rmse"]

# A sure and wrong prediction would cost infinity and decide the verdict alone; at 1e-7 it costs 16.1. Nothing finer is
# lost: a float32 probability cannot come nearer to one than 6e-8.
CLIP = 1e-7


def row_losses(label: ArrayLike, prediction: ArrayLike, *, metric: Metric) -> NDArray[np.float64]:
    """Log loss of each row, of (n,) probabilities of class 1 or (n, k) of classes 0..k-1; or its squared error."""
    y, p = np.asarray(label, np.float64), np.asarray(prediction, np.float64)
    if y.ndim != 1 or len(p) != len(y) or p.ndim not in ((1,) if metric == "rmse" else (1, 2)):
        raise ValueError(f"{metric} needs (n,) labels and a prediction for each, but got {y.shape} and {p.shape}")
    if bad := int((~np.isfinite(y)).sum() + (~np.isfinite(p)).sum()):
        raise ValueError(f"labels and predictions must be finite, but {bad} are not; give labelled rows only")
    if metric == "rmse":
        return np.asarray((y - p) ** 2, np.float64)
    _check_classes(y, p)
    right = p[np.arange(len(y)), y.astype(np.intp)] if p.ndim == 2 else np.where(y == 1, p, 1 - p)
    return np.asarray(-np.log(np.clip(right, CLIP, 1 - CLIP)), np.float64)


def _check_classes(y: Floats, p: Floats) -> None:
    classes = p.shape[1] if p.ndim == 2 else 2
    if not np.isin(y, np.arange(classes)).all():
        raise ValueError(f"labels must be 0..{classes - 1}, but got {np.setdiff1d(y, np.arange(classes))[:5].tolist()}")
    if p.size and (p.min() < 0 or p.max() > 1):
        raise ValueError(f"probabilities must lie in [0, 1], but got {p.min():g} to {p.max():g}; are they margins?")
    if p.ndim == 2 and p.size and (off := float(np.abs(p.sum(axis=1) - 1).max())) > 1e-3:
        raise ValueError(f"the probabilities of a row must sum to 1, but one is off by {off:g}")
