"""contest: two models predict the same rows; are their losses surely different?

The gate, the look at the predecessor, the canary and replay all ask here. Pure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.params import Gate
from tasks.promotion.gains import Course
from tasks.promotion.interval import BlockSums, Estimate, Interval, assign_blocks
from tasks.training.model import Floats, Spec

Metric = Literal["log_loss", "rmse"]
Side = Literal["candidate", "champion"]

# A sure and wrong prediction would cost infinity and decide the verdict alone; at 1e-7 it costs 16.1. Nothing finer is
# lost: a float32 probability cannot come nearer to one than 6e-8.
CLIP = 1e-7
SIDES: tuple[Side, Side] = ("candidate", "champion")


class Skill(NamedTuple):
    """How much better than the best constant a recipe is; 0 where it is no better."""

    metric: float  # in units of the metric
    loss: float  # of the mean row loss, which for RMSE is the squared error


@dataclass(frozen=True, eq=False)
class Contest:
    """The losses of two recipes on the same rows. The candidate's models come first, one a seed."""

    losses: NDArray[np.float64]  # (models, rows)
    block: NDArray[np.intp]  # (rows,): 0, 1, 2 ... in time
    order: NDArray[np.intp]  # (rows,): each row's place in what the caller gave
    seeds: tuple[int, int]
    metric: Metric
    constant: float | None = None  # the mean loss of the best constant, which sets the scale of skill
    begins: tuple[datetime, ...] = ()  # the time of each block's first row

    @property
    def rows(self) -> int:
        return len(self.block)

    @property
    def blocks(self) -> int:
        return len(self.sums.sizes)

    @property
    def interval(self) -> Interval | None:
        """Of the gain. None for a single block."""
        return self.sums.interval

    @cached_property
    def sums(self) -> BlockSums:
        sums = np.stack([np.bincount(self.block, losses) for losses in self.losses]).astype(np.float64)
        sizes = np.bincount(self.block).astype(np.float64)
        return BlockSums(sums, sizes, self.seeds, is_root=self.metric == "rmse")

    def skill(self, side: Side) -> Skill:
        """Of the candidate or the champion. Raises ValueError where the best constant's loss was not given."""
        if self.constant is None:
            raise ValueError("a share of skill needs the losses of the best constant: give them to compare_losses")
        place = SIDES.index(side)
        loss = float(np.split(self.sums.sums, [self.seeds[0]])[place].sum()) / (self.seeds[place] * self.rows)
        constant = math.sqrt(self.constant) if self.metric == "rmse" else self.constant
        return Skill(max(0.0, constant - self.sums.metrics[place]), max(0.0, self.constant - loss))

    @property
    def course(self) -> Course:
        """The gain of each block, in units of the metric."""
        losses = self.sums.sums / self.sums.sizes
        sides = np.split(np.sqrt(losses) if self.metric == "rmse" else losses, [self.seeds[0]])
        candidate, champion = (side.mean(axis=0) for side in sides)
        return Course("block", "saved on the holdout", self.begins, tuple((champion - candidate).tolist()))

    def gain(self, level: float) -> dict[str, float | None]:
        """The gain and the two ends of its interval at this level, by name. None for a single block."""
        if self.interval is None:
            return dict.fromkeys(("gain", "low", "high"))
        tail = (1 - level) / 2
        return {"gain": self.interval.gain, "low": self.interval.low(tail), "high": self.interval.high(tail)}


def compare_losses(
    candidate: NDArray[Any],
    champion: NDArray[Any],
    *,
    times: NDArray[Any],
    gate: Gate,
    constant: NDArray[Any] | None = None,
) -> Contest:
    """The contest of two recipes on the same rows, by gate.metric and in blocks of gate.block.

    Args:
        candidate: The losses of each row, (rows,) of one model or (seeds, rows) of one model a seed.
        champion: The same of the other recipe.
        times: The event time of each row.
        constant: The losses of the best constant on these rows, for shares of skill.

    Raises:
        ValueError: The losses or times do not belong to the same rows, or are not numbers that a loss can be.
    """
    sides = [_check_losses(losses) for losses in (candidate, champion)]
    if any(side.shape[1] != len(times) for side in sides):
        counts = f"{sides[0].shape[1]:,}, {sides[1].shape[1]:,} and {len(times):,}"
        raise ValueError(f"both models must be judged on the same rows, one time each, but got {counts}")
    losses, block = np.concatenate(sides), assign_blocks(times, gate.block)
    level = None if constant is None else math.fsum(constant) / len(constant)  # in any order of the rows
    order = np.lexsort((*losses, block))  # depends on the rows' content alone, so that the sums have the same bits
    firsts = np.searchsorted(block[order], np.arange(block.max() + 1)) if len(block) else np.zeros(0, np.intp)
    begins = np.minimum.reduceat(times[order].astype("datetime64[us]"), firsts) if len(block) else times
    seeds, places = (len(sides[0]), len(sides[1])), tuple(begins.astype("datetime64[us]").tolist())
    return Contest(losses[:, order], block[order], order, seeds, gate.metric, level, places)


def compare_predictions(
    codes: ArrayLike, candidate: ArrayLike, champion: ArrayLike, *, times: NDArray[Any], gate: Gate
) -> Contest:
    """The contest of two models' predictions of the same labels; see `row_losses` for their shapes."""
    sides = [row_losses(codes, predictions, metric=gate.metric) for predictions in (candidate, champion)]
    return compare_losses(*sides, times=times, gate=gate, constant=constant_losses(codes, metric=gate.metric))


def constant_losses(codes: ArrayLike, *, metric: Metric) -> NDArray[np.float64]:
    """The row losses of the constant that is best on these labels: their mean, or the shares of their classes."""
    label = np.asarray(codes, np.float64)
    if metric == "rmse":
        return row_losses(label, np.full(len(label), label.mean()), metric=metric)
    shares = np.bincount(label.astype(np.intp)) / len(label)
    right = shares[label.astype(np.intp)]
    return np.asarray(-np.log(np.clip(right, CLIP, 1 - CLIP)), np.float64)


def estimate_loss(losses: NDArray[Any], *, times: NDArray[Any], gate: Gate) -> Estimate:
    """The metric of one model's row losses (rows,), with its interval: the gain over a model without any loss."""
    contest = compare_losses(losses, np.zeros_like(losses), times=times, gate=gate)
    value, ends = contest.sums.metrics[0], contest.gain(gate.level)
    if ends["low"] is None or ends["high"] is None:
        return Estimate(value, None, None)
    return Estimate(value, -ends["high"], -ends["low"])


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


def align_classes(spec: Spec, classes: Sequence[Any], predictions: Floats) -> Floats:
    """Predictions with the classes of `spec` first, in its order; the model's other classes follow.

    A class that the model has never seen gets no probability. Predictions of another task are returned as they are.

    Args:
        classes: The model's own, of which `predictions` has a column each.
    """
    if spec.task != "multiclass" or tuple(classes) == spec.classes:
        return predictions
    order = [*spec.classes, *(name for name in classes if name not in spec.classes)]
    aligned = np.zeros((len(predictions), len(order)))
    aligned[:, [order.index(name) for name in classes]] = predictions
    return aligned


def _check_losses(losses: NDArray[Any]) -> NDArray[np.float64]:
    """As (seeds, rows)."""
    if losses.ndim not in (1, 2) or not losses.size:
        raise ValueError(f"losses must have the shape (rows,) or (seeds, rows), but got {losses.shape}")
    if bad := int((~(np.isfinite(losses) & (losses >= 0))).sum()):
        raise ValueError(f"losses must be finite and not negative, but {bad} of {losses.size} are not")
    return np.atleast_2d(np.asarray(losses, np.float64))


def _check_classes(y: NDArray[np.float64], p: NDArray[np.float64]) -> None:
    classes = p.shape[1] if p.ndim == 2 else 2
    if not np.isin(y, np.arange(classes)).all():
        raise ValueError(f"labels must be 0..{classes - 1}, but got {np.setdiff1d(y, np.arange(classes))[:5].tolist()}")
    if p.size and (p.min() < 0 or p.max() > 1):
        raise ValueError(f"probabilities must lie in [0, 1], but got {p.min():g} to {p.max():g}; are they margins?")
    if p.ndim == 2 and p.size and (off := float(np.abs(p.sum(axis=1) - 1).max())) > 1e-3:
        raise ValueError(f"the probabilities of a row must sum to 1, but one is off by {off:g}")
