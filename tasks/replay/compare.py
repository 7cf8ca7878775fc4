"""compare: what each policy's predictions lost, and what its retrains cost, against never retraining."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks import log
from tasks.data import feasibility
from tasks.params import spell
from tasks.promotion.contest import align_classes, compare_losses, estimate_loss, row_losses
from tasks.promotion.interval import SEED, Estimate, assign_blocks, draw_blocks
from tasks.replay.walk import BY_SIGNALS, NEVER, Grid, Past, PolicyState, Retrain, check_period, walk
from tasks.training import model

REPLICATES = 2000  # of the bootstrap of an AUC


@dataclass(frozen=True)
class Line:
    """A policy over the whole stream.

    Attributes:
        gain: against never retraining, as auc_gain; positive is better.
        alarms: None: it looks at no signal.
        cost: of its retrains.
        cost_per_percent: of error saved against never; None where nothing was saved.
        weeks: the metric by stretch of the grid; None where no row counts.
    """

    policy: str
    metric: Estimate
    gain: Estimate
    auc: Estimate | None
    auc_gain: Estimate | None
    retrains: tuple[Retrain, ...]
    alarms: int | None
    cpu: float
    cost: float
    cost_per_percent: float | None
    weeks: tuple[float | None, ...]

    @property
    def promotions(self) -> int:
        return sum(retrain.promoted for retrain in self.retrains)


@dataclass(frozen=True)
class Comparison:
    grid: Grid
    metric: str
    rows: int
    unlabelled_share: float  # of the rows that are old enough: these count for nobody
    first_cpu: float  # of the model that all begin with
    stretches: tuple[int, ...]  # rows that count in each
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()  # settings that keep a policy by signals from acting

    def line(self, name: str) -> Line:
        return next(line for line in self.lines if line.policy == name)

    def to_dict(self) -> dict[str, Any]:
        lines = [{**asdict(line), "promotions": line.promotions} for line in self.lines]
        figures = asdict(self)
        grid = figures.pop("grid") | {"step": spell(self.grid.step), "starts": self.grid.starts}
        return {**grid, **figures, "lines": lines}


def compare_policies(
    past: Past, grid: Grid, names: Sequence[str], *, say: Callable[[str], None] = log.info
) -> Comparison:
    """Walks the grid with each policy, and compares them. `never` is always among them.

    Raises:
        ValueError: History does not reach from before `since` to `until`.
    """
    check_period(past.rows, past.p, grid)
    notes = _explain_deafness(past, grid, names)
    for note in notes:
        say(note)
    stream = Stream(past, grid)
    states = walk(past, grid, names, say=say)
    scores = {state.rule.name: stream.scores(state) for state in states}
    losses = {name: row_losses(stream.codes, values, metric=past.p.gate.metric) for name, values in scores.items()}
    aucs = {name: stream.measure_auc(values) for name, values in scores.items()}
    return Comparison(
        grid,
        past.p.gate.metric,
        len(stream.codes),
        stream.unlabelled_share,
        past.candidate(grid.since).cpu,
        tuple(stream.sum_by_stretch(np.ones(len(stream.codes)))[1].tolist()),
        tuple(_summarize(state, stream, losses, aucs) for state in states),
        notes,
    )


def _explain_deafness(past: Past, grid: Grid, names: Sequence[str]) -> tuple[str, ...]:
    """Why a policy by signals cannot act on this table, whatever happens."""
    if not set(names) & BY_SIGNALS.keys():
        return ()
    problems = feasibility.find_problems(past.rows.event_time, grid.until, past.p)
    return tuple(one.message for one in problems if one.setting in ("policy.min_rows", "monitor.window"))


def _summarize(
    state: PolicyState, stream: "Stream", losses: Mapping[str, model.Floats], aucs: Mapping[str, "Auc | None"]
) -> Line:
    p, name = stream.past.p, state.rule.name
    cpu = sum(retrain.cpu for retrain in state.retrains)
    cost = cpu / 3600 * p.policy.cpu_price
    metric = estimate_loss(losses[name], times=stream.times, gate=p.gate)
    contest = compare_losses(losses[name], losses[NEVER], times=stream.times, gate=p.gate)
    (own, never), ends = contest.sums.metrics, contest.gain(p.gate.level)
    saved = 100 * (never - own) / never if never else 0.0
    auc, never_auc = aucs[name], aucs[NEVER]
    return Line(
        policy=name,
        metric=metric,
        gain=Estimate(never - own, ends["low"], ends["high"]),
        auc=auc.estimate(p.gate.level) if auc else None,
        auc_gain=auc.estimate(p.gate.level, above=never_auc) if auc and never_auc else None,
        retrains=state.retrains,
        alarms=state.alarms if state.rule.signals else None,
        cpu=round(cpu, 2),
        cost=cost,
        cost_per_percent=cost / saved if saved > 0 and state.retrains else None,
        weeks=stream.measure_weeks(losses[name]),
    )


class Stream:
    """The rows that count, in the order of time: from since on, mature at until, and labelled."""

    def __init__(self, past: Past, grid: Grid) -> None:
        self.past, self.grid = past, grid
        p, where = past.p, past.find_rows(grid.since, grid.until)
        label, times = past.rows.label[where], past.rows.event_time[where]
        mature = times < np.datetime64(grid.until - p.label.deadline)
        self._counts = mature & model.is_labelled(label)
        if not self._counts.any():
            raise ValueError(
                f"no row from {grid.since} on had an outcome by {grid.until}: nothing can be compared. Give a later "
                "--until, or check label and known_at."
            )
        self.times = times[self._counts]
        self.unlabelled_share = round(1 - float(self._counts.sum() / mature.sum()), 6)
        self.spec = model.Spec(p.label.task, (), {}, model.find_classes(past.rows.label, task=p.label.task))
        self.codes = self.spec.encode_label(label[self._counts]).astype(np.float64)

    def scores(self, state: PolicyState) -> model.Floats:
        """Each row's prediction by the champion of the time when it arrived."""
        parts = [
            align_classes(self.spec, self.past.candidate(by).model.spec.classes, self.past.scores(by, *stretch))
            for by, stretch in zip(state.served, self.grid.stretches, strict=True)
        ]
        return np.asarray(np.concatenate(parts)[self._counts])

    def measure_auc(self, scores: model.Floats) -> "Auc | None":
        """None but for two classes that both occur."""
        if self.spec.task != "binary" or len(np.unique(self.codes)) < 2:
            return None
        return Auc(count_wins(self.codes, scores, assign_blocks(self.times, self.past.p.gate.block)))

    def sum_by_stretch(self, values: model.Floats) -> tuple[model.Floats, NDArray[np.intp]]:
        """The sum of the rows' values (n), and the number of rows, in each stretch of the grid."""
        starts = np.array(self.grid.starts, dtype="datetime64[us]")
        place, count = np.searchsorted(starts, self.times, side="right") - 1, len(starts)
        return np.bincount(place, values, minlength=count).astype(np.float64), np.bincount(place, minlength=count)

    def measure_weeks(self, losses: model.Floats) -> tuple[float | None, ...]:
        power = 0.5 if self.past.p.gate.metric == "rmse" else 1
        sums, rows = self.sum_by_stretch(losses)
        return tuple(float(total / count) ** power if count else None for total, count in zip(sums, rows, strict=True))


# --- the area under the ROC curve, in draws of its blocks without ranking rows again -------------------------------


@dataclass(frozen=True, eq=False)
class Auc:
    """One stream's AUC, and that of draws of its blocks. Two streams of the same rows are drawn alike."""

    wins: model.Floats  # see count_wins

    @property
    def value(self) -> float:
        return float(self.weigh(np.ones((1, len(self.wins))))[0])

    @cached_property
    def drawn(self) -> model.Floats:
        return self.weigh(draw_blocks(len(self.wins), REPLICATES, seed=SEED).astype(np.float64))

    def weigh(self, draws: model.Floats) -> model.Floats:
        """The AUC of each draw (draws, blocks), where each block counts as often as it was drawn."""
        pairs, positive, negative = self.wins[:, :-2], self.wins[:, -2], self.wins[:, -1]
        with np.errstate(invalid="ignore"):  # a draw without one of the classes has no AUC
            shares = ((draws @ pairs) * draws).sum(axis=1) / ((draws @ positive) * (draws @ negative))
        return np.asarray(shares)

    def estimate(self, level: float, *, above: "Auc | None" = None) -> Estimate:
        """With its interval, or how far it lies above another's. By the percentile bootstrap: over months of days it
        needs no refinement."""
        value, drawn = (self.value - above.value, self.drawn - above.drawn) if above else (self.value, self.drawn)
        low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        return Estimate(value, float(low), float(high))


def count_wins(codes: model.Floats, scores: model.Floats, block: NDArray[np.intp]) -> model.Floats:
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
