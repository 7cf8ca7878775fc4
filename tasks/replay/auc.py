"""auc: the area under the ROC curve of a stream of predictions, in draws of its blocks, without ranking rows again."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tasks.promotion.interval import SEED, Estimate, draw_blocks
from tasks.training.model import Floats

REPLICATES = 2000


@dataclass(frozen=True, eq=False)
class Auc:
    """One stream's AUC, and that of draws of its blocks. Two streams of the same rows are drawn alike."""

    wins: Floats  # see count_wins

    @property
    def value(self) -> float:
        return float(self.weigh(np.ones((1, len(self.wins))))[0])

    @cached_property
    def drawn(self) -> Floats:
        return self.weigh(draw_blocks(len(self.wins), REPLICATES, seed=SEED).astype(np.float64))

    def weigh(self, draws: Floats) -> Floats:
        """The AUC of each draw (draws, blocks), where each block counts as often as it was drawn."""
        pairs, positive, negative = self.wins[:, :-2], self.wins[:, -2], self.wins[:, -1]
        with np.errstate(invalid="ignore"):  # a draw without one of the classes has no AUC
            shares = ((draws @ pairs) * draws).sum(axis=1) / ((draws @ positive) * (draws @ negative))
        return np.asarray(shares)

    def estimate(self, level: float) -> Estimate:
        return _estimate(self.value, self.drawn, level)

    def estimate_gain(self, other: "Auc", level: float) -> Estimate:
        return _estimate(self.value - other.value, self.drawn - other.drawn, level)


def _estimate(value: float, drawn: Floats, level: float) -> Estimate:
    """By the percentile bootstrap: over months of days it needs no refinement."""
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def count_wins(codes: Floats, scores: Floats, block: NDArray[np.intp]) -> Floats:
    """How often a positive row of one block has a higher score than a negative one of another; ties count half.

    Returns:
        (blocks, blocks + 2): the wins, then each block's positive and negative rows. The AUC of any draw of blocks
        follows from it.
    """
    count, positive = int(block.max()) + 1, codes == 1
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
