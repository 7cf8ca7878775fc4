"""compare: what each policy's predictions lost, and what its retrains cost, against never retraining."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np

from tasks import log
from tasks.data import feasibility
from tasks.params import spell
from tasks.promotion.interval import Estimate
from tasks.replay.course import Course, Draws, Stream
from tasks.replay.past import Past
from tasks.replay.policies import NEVER, Grid, check_period, parse_rule
from tasks.replay.walk import Measure, PolicyState, Retrain, walk
from tasks.training.model import Floats

WORSE = 0.0005  # of the metric: a first date that ends worse than never by more is counted
HOUR_S = 3600


@dataclass(frozen=True)
class Promotion:
    """What a promotion brought: the metric saved over what it replaced, on the rows that it served."""

    as_of: datetime
    rows: int
    gain: float


@dataclass(frozen=True)
class Walked:
    """One policy from one first date. Gains are against never retraining; positive is better."""

    date: datetime
    metric: float
    gain: float
    auc: float | None
    auc_gain: float | None
    cpu: float
    retrains: tuple[Retrain, ...]
    promotions: tuple[Promotion, ...]
    alarms: int | None  # None: it looks at no signal


@dataclass(frozen=True)
class Line:
    """A policy over all first dates.

    Attributes:
        metric: the mean over the dates, as gain, auc and auc_gain. Their intervals are of the weeks: a paired bootstrap
            that draws the stretches of the grid, for all dates and policies alike.
        kept, auc_kept: of what ungated refits gain, the share that this policy gains; None without those.
        cpu, cost: of the retrains of a date, on average.
        weeks: the metric by stretch of the grid, over the dates that had begun; None where no row counts.
    """

    policy: str
    metric: Estimate
    gain: Estimate
    auc: Estimate | None
    auc_gain: Estimate | None
    kept: Estimate | None
    auc_kept: Estimate | None
    walks: tuple[Walked, ...]
    cpu: float
    cost: float
    weeks: tuple[float | None, ...]

    @property
    def retrains(self) -> tuple[Retrain, ...]:
        return tuple(retrain for walked in self.walks for retrain in walked.retrains)

    @property
    def promotions(self) -> int:
        return sum(len(walked.promotions) for walked in self.walks)

    @property
    def unpromoted_dates(self) -> int:
        return sum(not walked.promotions for walked in self.walks)

    @property
    def worse_dates(self) -> int:
        return sum(walked.gain < -WORSE for walked in self.walks)

    @property
    def alarms(self) -> int | None:
        listed = [walked.alarms for walked in self.walks if walked.alarms is not None]
        return sum(listed) if listed else None

    def to_dict(self) -> dict[str, Any]:
        counted = {name: getattr(self, name) for name in ("promotions", "unpromoted_dates", "worse_dates", "alarms")}
        return asdict(self) | counted


@dataclass(frozen=True)
class Comparison:
    grid: Grid
    dates: tuple[datetime, ...]
    metric: str
    rows: int
    unlabelled_share: float  # of the rows that are old enough: these count for nobody
    stretches: tuple[int, ...]  # rows that count in each
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()  # settings that keep a policy by signals from acting

    def line(self, name: str) -> Line:
        return next(line for line in self.lines if line.policy == name)

    def to_dict(self) -> dict[str, Any]:
        grid = asdict(self.grid) | {"step": spell(self.grid.step), "starts": self.grid.starts}
        rest = {name: getattr(self, name) for name in ("dates", "metric", "rows", "unlabelled_share", "stretches")}
        return {**grid, **rest, "lines": [line.to_dict() for line in self.lines], "notes": self.notes}


def compare_policies(
    past: Past,
    grid: Grid,
    names: Sequence[str],
    dates: Sequence[datetime] = (),
    *,
    measure: Measure = Past.measure,
    say: Callable[[str], None] = log.info,
) -> Comparison:
    """Walks the grid with each policy from each first date, and compares them. `never` is always among them.

    Args:
        dates: moments of the grid, in order; none: its first.

    Raises:
        ValueError: History does not reach from before `since` to `until`.
    """
    check_period(past.rows, past.p, grid)
    notes = _explain_deafness(past, grid, names)
    for note in notes:
        say(note)
    dates = tuple(dates) or (grid.since,)
    stream = Stream(past, grid)
    states = walk(past, grid, names, dates, measure=measure, say=say)
    courses = {(state.rule.name, state.began): stream.measure(state) for state in states}
    policies = list(dict.fromkeys(state.rule.name for state in states))
    figures = Figures(stream, Draws(len(grid.starts), past.p.gate.level), dates, courses)
    lines = tuple(figures.summarize(name, [state for state in states if state.rule.name == name]) for name in policies)
    counts = np.bincount(stream.stretch, minlength=len(grid.starts))
    share = stream.unlabelled_share
    return Comparison(grid, dates, past.p.gate.metric, stream.rows, share, tuple(counts.tolist()), lines, notes)


def _explain_deafness(past: Past, grid: Grid, names: Sequence[str]) -> tuple[str, ...]:
    """Why a policy by signals cannot act on this table, whatever happens."""
    signals = {signal for name in names for signal in parse_rule(name, grid, past.p).signals or ()}
    if not signals - {"freshness"}:
        return ()
    problems = feasibility.find_problems(past.rows.event_time, grid.until, past.p)
    return tuple(one.message for one in problems if one.setting in ("policy.min_rows", "monitor.window"))


@dataclass(frozen=True)
class Figures:
    """The courses of all walks, and what they come to."""

    stream: Stream
    draws: Draws
    dates: tuple[datetime, ...]
    courses: dict[tuple[str, datetime], Course]

    def summarize(self, name: str, states: Sequence[PolicyState]) -> Line:
        walks = tuple(self._describe(state) for state in states)
        cpu = sum(walked.cpu for walked in walks) / len(walks)
        own, never = self._metrics(name), self._metrics(NEVER)
        auc, never_auc, ungated = self._aucs(name), self._aucs(NEVER), self._find_ungated()
        kept = self._share(never - own, never - self._metrics(ungated)) if ungated else None
        auc_kept = None
        if ungated and auc is not None and never_auc is not None and (other := self._aucs(ungated)) is not None:
            auc_kept = self._share(auc - never_auc, other - never_auc)
        return Line(
            policy=name,
            metric=self.draws.estimate(own),
            gain=self.draws.estimate(never - own),
            auc=self.draws.estimate(auc) if auc is not None else None,
            auc_gain=self.draws.estimate(auc - never_auc) if auc is not None and never_auc is not None else None,
            kept=kept,
            auc_kept=auc_kept,
            walks=walks,
            cpu=round(cpu, 2),
            cost=cpu / HOUR_S * self.stream.past.p.policy.cpu_price,
            weeks=self._pool([self.courses[name, date] for date in self.dates]).weeks,
        )

    def _metrics(self, name: str) -> Floats:
        """The mean over the dates, as it was and in each draw."""
        return np.asarray(
            np.nanmean([self.courses[name, date].weigh(self.draws.weights) for date in self.dates], axis=0)
        )

    def _aucs(self, name: str) -> Floats | None:
        aucs = [self.courses[name, date].auc for date in self.dates]
        listed = [auc.weigh(self.draws.weights) for auc in aucs if auc]
        return np.asarray(np.nanmean(listed, axis=0)) if len(listed) == len(aucs) else None

    def _find_ungated(self) -> str | None:
        return next((name for name, _ in self.courses if name.startswith("ungated:")), None)

    def _share(self, own: Floats, whole: Floats) -> Estimate | None:
        """None where ungated refits gain nothing: then there is nothing to keep."""
        return self.draws.estimate(own / whole) if whole[0] > 0 else None

    def _pool(self, courses: Sequence[Course]) -> Course:
        sums, rows = (np.sum([getattr(course, name) for course in courses], axis=0) for name in ("sums", "rows"))
        return Course(sums, rows, None, courses[0].is_root)

    def _describe(self, state: PolicyState) -> Walked:
        own, never = (self.courses[name, state.began] for name in (state.rule.name, NEVER))
        cpu = round(sum(retrain.cpu for retrain in state.retrains), 2)
        return Walked(
            date=state.began,
            metric=own.metric,
            gain=never.metric - own.metric,
            auc=own.auc.value if own.auc else None,
            auc_gain=own.auc.value - never.auc.value if own.auc and never.auc else None,
            cpu=cpu,
            retrains=state.retrains,
            promotions=tuple(self._list_promotions(state)),
            alarms=state.alarms if state.rule.signals is not None else None,
        )

    def _list_promotions(self, state: PolicyState) -> list[Promotion]:
        starts = self.stream.grid.starts
        offset, listed = starts.index(state.began), list[Promotion]()
        changes = [i for i in range(1, len(state.served)) if state.served[i] != state.served[i - 1]]
        for change, end in pairwise([*changes, len(state.served)]):
            numbers = range(offset + change, offset + end)
            before, after = (
                np.concatenate([self.stream.losses(training, number) for number in numbers])
                for training in (state.served[change - 1], state.served[change])
            )
            root = np.sqrt if self.courses[NEVER, state.began].is_root else np.asarray
            gain = float(root(before.mean()) - root(after.mean())) if len(before) else 0.0
            listed.append(Promotion(starts[offset + change], len(before), gain))
        return listed
