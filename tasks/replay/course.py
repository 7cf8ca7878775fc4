"""course: what one policy's predictions lost, week by week, from one first date on; and draws of weeks.

Weeks that several walks share are drawn together, so a difference between policies, or a mean over first dates, has the
uncertainty that those weeks give it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.promotion.contest import align_classes, row_losses
from tasks.promotion.interval import SEED, Estimate, draw_blocks
from tasks.replay.history import Training
from tasks.replay.past import Past
from tasks.replay.policies import Grid
from tasks.replay.walk import PolicyState
from tasks.training import model

REPLICATES = 2000
MIN_STRETCHES = 8  # of the grid, for an interval


@dataclass(frozen=True, eq=False)
class Course:
    """One walk's losses by stretch of the grid: sums of row losses (n), rows (n), and its AUC. Stretches before the
    first date have no rows."""

    sums: model.Floats
    rows: NDArray[np.int64]
    auc: "Auc | None"
    is_root: bool  # the metric is the root of the mean loss

    @property
    def metric(self) -> float:
        return float(self.weigh(np.ones((1, len(self.sums))))[0])

    def weigh(self, draws: model.Floats) -> model.Floats:
        """The metric of draws (draws, stretches), where each stretch counts as often as it was drawn."""
        with np.errstate(invalid="ignore"):  # a draw may miss all stretches of a late first date
            means = (draws @ self.sums) / (draws @ self.rows)
        return np.asarray(np.sqrt(means) if self.is_root else means)

    @property
    def weeks(self) -> tuple[float | None, ...]:
        power = 0.5 if self.is_root else 1
        return tuple(float(s / n) ** power if n else None for s, n in zip(self.sums, self.rows, strict=True))


@dataclass(frozen=True, eq=False)
class Auc:
    """One stream's AUC, and that of draws of its stretches. Two streams of the same rows are drawn alike."""

    wins: model.Floats  # see count_wins

    @property
    def value(self) -> float:
        return float(self.weigh(np.ones((1, len(self.wins))))[0])

    def weigh(self, draws: model.Floats) -> model.Floats:
        """The AUC of each draw (draws, stretches), where each stretch counts as often as it was drawn."""
        pairs, positive, negative = self.wins[:, :-2], self.wins[:, -2], self.wins[:, -1]
        with np.errstate(invalid="ignore"):  # a draw without one of the classes has no AUC
            shares = ((draws @ pairs) * draws).sum(axis=1) / ((draws @ positive) * (draws @ negative))
        return np.asarray(shares)


def count_wins(codes: model.Floats, scores: model.Floats, block: NDArray[np.intp], count: int) -> model.Floats:
    """How often a positive row of one block has a higher score than a negative one of another; ties count half.

    Returns:
        (count, count + 2): the wins, then each block's positive and negative rows. The AUC of any draw of blocks
        follows from it.
    """
    positive = codes == 1
    order = np.argsort(scores[positive], kind="stable")
    high, high_block = scores[positive][order], block[positive][order]
    wins = np.empty((count, count + 2))
    for other in range(count):
        low = np.sort(scores[~positive & (block == other)])
        beaten = (np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")) / 2
        wins[:, other] = np.bincount(high_block, beaten, minlength=count)
        wins[other, -1] = len(low)
    wins[:, -2] = np.bincount(high_block, minlength=count)
    return wins


class Stream:
    """The rows that count, in the order of time: from the first date on, mature at the end, and labelled."""

    def __init__(self, past: Past, grid: Grid) -> None:
        self.past, self.grid = past, grid
        p, where = past.p, past.find_rows(grid.since, grid.until)
        label, times = past.rows.label[where], past.rows.event_time[where]
        mature = times < np.datetime64(grid.until - p.label.deadline)
        counts = mature & model.is_labelled(label)
        if not counts.any():
            raise ValueError(
                f"no row from {grid.since} on had an outcome by {grid.until}: nothing can be compared. Give a later "
                "--until, or check label and known_at."
            )
        self.unlabelled_share = round(1 - float(counts.sum() / mature.sum()), 6)
        self.spec = model.Spec(p.label.task, (), {}, model.find_classes(past.rows.label, task=p.label.task))
        self.codes = self.spec.encode_label(label[counts]).astype(np.float64)
        starts = np.array(grid.starts, dtype="datetime64[us]")
        self.stretch = np.searchsorted(starts, times[counts], side="right") - 1
        self._masks = [counts[self._rows_of(number, where.start)] for number in range(len(starts))]
        self._losses = dict[tuple[Training, int], model.Floats]()

    def _rows_of(self, number: int, offset: int) -> slice:
        where = self.past.find_rows(*self.grid.stretches[number])
        return slice(where.start - offset, where.stop - offset)

    @property
    def rows(self) -> int:
        return len(self.codes)

    def measure(self, state: PolicyState) -> Course:
        """The course of a walk."""
        first, is_root = self.grid.starts.index(state.began), self.past.p.gate.metric == "rmse"
        served = list(enumerate(state.served, start=first))
        losses = [self.losses(training, number) for number, training in served]
        sums, rows = np.zeros(len(self.grid.starts)), np.zeros(len(self.grid.starts), np.int64)
        sums[first:], rows[first:] = [values.sum() for values in losses], [len(values) for values in losses]
        return Course(sums, rows, self._measure_auc(served), is_root)

    def losses(self, training: Training, number: int) -> model.Floats:
        """The row losses of a candidate on the rows of a stretch that count."""
        if (training, number) not in self._losses:
            codes = self.codes[self.stretch == number]
            scores = self._scores(training, number)
            self._losses[training, number] = row_losses(codes, scores, metric=self.past.p.gate.metric)
        return self._losses[training, number]

    def _scores(self, training: Training, number: int) -> model.Floats:
        scores = self.past.scores(training, *self.grid.stretches[number])
        classes = self.past.candidate(training).model.spec.classes
        return np.asarray(align_classes(self.spec, classes, scores)[self._masks[number]])

    def _measure_auc(self, served: Sequence[tuple[int, Training]]) -> Auc | None:
        """None but for two classes that both occur."""
        if self.spec.task != "binary":
            return None
        own = self.stretch >= served[0][0]
        codes = self.codes[own]
        if len(np.unique(codes)) < 2:
            return None
        scores = np.concatenate([self._scores(training, number) for number, training in served])
        return Auc(count_wins(codes, scores, self.stretch[own], len(self.grid.starts)))


@dataclass(frozen=True)
class Draws:
    """The stretches of a grid as they are, and drawn anew with replacement, all walks alike."""

    stretches: int
    level: float

    @cached_property
    def drawn(self) -> model.Floats:
        return draw_blocks(self.stretches, REPLICATES, seed=SEED).astype(np.float64)

    @property
    def weights(self) -> model.Floats:
        """(1 + draws, stretches): first each stretch once."""
        return np.vstack([np.ones((1, self.stretches)), self.drawn])

    def estimate(self, values: NDArray[Any]) -> Estimate:
        """The figure of what was, and its percentile interval.

        Args:
            values: of the rows of `weights`.
        """
        if self.stretches < MIN_STRETCHES:
            return Estimate(float(values[0]), None, None)
        low, high = np.nanquantile(values[1:], [(1 - self.level) / 2, (1 + self.level) / 2])
        return Estimate(float(values[0]), float(low), float(high))
