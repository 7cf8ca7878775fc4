"""statistics: how far a window lies from the windows of a model's history, by column. Pure; the page describes them.

Each statistic turns its values into evidence, which grows as -log p does: of the history's own windows, each against
those that it does not overlap, and of a new window against them all. A column's evidence is the largest of these.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Protocol

import numpy as np

from tasks.training import joint, moderation
from tasks.training.columns import Column
from tasks.training.model import Floats
from tasks.training.profile import Profile

MONTH = timedelta(days=30)
EVEN_SHARE = 0.5  # of the weights is spread evenly: a column of no importance can still alarm
SAMPLING_SHARE = 0.5  # no deviation is taken for smaller than this share of what sampling alone gives
PLAIN_DEVIATIONS = 2.0  # a term that is off by less needs no explanation


class Statistic(Protocol):
    """One way to measure how far a window moved. A new one is such a class and a line in `History.statistics`."""

    def of_history(self) -> Floats:
        """The evidence of each of the history's windows, by the windows that it does not overlap (windows, columns)."""

    def of_new(self, values: Floats) -> Floats:
        """The evidence of a new window's values, by all windows of the history (columns)."""


@dataclass(frozen=True)
class History:
    """What a profile's windows show when nothing is wrong: the evidence of each, and the thresholds that follow.

    Args:
        false_alarms: alarms of the whole dataset in 30 days of event time, when nothing changes.
        columns: the profile's features, or its scores.
        with_terms: whether the columns' relations to each other are measured too: of features alone.
    """

    profile: Profile
    false_alarms: float
    columns: tuple[Column, ...]
    with_terms: bool

    @cached_property
    def statistics(self) -> tuple[Statistic, ...]:
        """In the order of the values that `evidence_of_new` takes."""
        return (Distance(self), Remainder(self), Relation(self)) if self.with_terms else (Distance(self),)

    @cached_property
    def distances(self) -> Floats:
        """Of the history's windows (windows, columns)."""
        return np.array([column.history for column in self.columns]).T.reshape(-1, len(self.columns))

    @cached_property
    def windows(self) -> float:
        """How many of them fit in without overlap."""
        return len(self.distances) / self.profile.span + 1 - 1 / self.profile.span if len(self.distances) else 0.0

    @cached_property
    def share(self) -> float:
        """Of the windows, those that may alarm: drift.false_alarms for each 30 days."""
        return min(self.false_alarms * (self.profile.window / MONTH), 0.5)

    @cached_property
    def weights(self) -> Floats:
        """Of the columns: half of each spread evenly, half by the model's importance."""
        count = max(len(self.columns), 1)
        shares = np.array(self.profile.weights) if self.with_terms else np.full(count, 1 / count)
        return np.asarray(EVEN_SHARE / count + (1 - EVEN_SHARE) * (shares if shares.sum() else 1 / count))

    @cached_property
    def rows(self) -> float:
        """In a window, usually."""
        units = max(len(self.distances) + self.profile.span - 1, 1)
        return max(sum(self.columns[0].counts) / units * self.profile.span, 1.0) if self.columns else 1.0

    @cached_property
    def least_term_deviation(self) -> float:
        """What sampling does to a mean in deviations, and to a Fisher transform: no term's deviation is smaller."""
        return SAMPLING_SHARE / math.sqrt(self.rows)

    @cached_property
    def own(self) -> Floats:
        """The evidence of each of the history's windows (windows, columns)."""
        return np.asarray(np.maximum.reduce([statistic.of_history() for statistic in self.statistics]))

    def evidence_of_new(self, values: Sequence[Floats]) -> Floats:
        """The evidence of a new window by column, from its values of each statistic."""
        pairs = zip(self.statistics, values, strict=True)
        return np.asarray(np.maximum.reduce([statistic.of_new(measured) for statistic, measured in pairs]))

    def to_columns(self, evidence: Floats) -> Floats:
        """Of each column's terms the largest (windows, terms) → (windows, columns)."""
        by_column = np.full((len(evidence), len(self.columns)), -math.inf)
        for term in range(evidence.shape[1]):
            column = self.profile.joint.terms[term].column
            by_column[:, column] = np.maximum(by_column[:, column], evidence[:, term])
        return by_column

    @cached_property
    def thresholds(self) -> Floats:
        """Of each column's own evidence."""
        return np.array([self._threshold(column) for column in self.own.T])

    @cached_property
    def threshold(self) -> float:
        """Of the dataset's signal."""
        return self._threshold(self.signal(self.own))

    def signal(self, evidence: Floats) -> Floats:
        """The dataset's signal of evidence by column (..., columns): a weighted Bonferroni rule."""
        return np.asarray((evidence + np.log(self.weights)).max(axis=-1))

    def _threshold(self, evidence: Floats) -> float:
        """What a new window exceeds with probability `share`: the quantile of the history's windows. Beyond what their
        number tells, the tail of evidence is taken to be exponential."""
        seen_share = max(self.share, 1 / (self.windows + 1))
        return float(np.quantile(evidence, 1 - seen_share, method="higher")) + math.log(seen_share / self.share)


@dataclass(frozen=True)
class Distance:
    """The Jensen-Shannon distance of a column's distribution from the history's. Values by column."""

    history: History

    @cached_property
    def least_deviation(self) -> Floats:
        bins = np.array([column.bins for column in self.history.columns])
        return SAMPLING_SHARE * np.sqrt((bins - 1) / (8 * math.log(2) * self.history.rows))

    def of_history(self) -> Floats:
        distances, span = self.history.distances, self.history.profile.span
        mean, deviation = _of_others(distances, span)
        deviations = (distances - mean) / np.maximum(deviation, self.least_deviation)
        return moderation.weigh_new_values(deviations, moderation.count_disjoint(len(distances), span), span)

    def of_new(self, values: Floats) -> Floats:
        distances = self.history.distances
        deviations = (values - distances.mean(axis=0)) / np.maximum(distances.std(axis=0), self.least_deviation)
        return moderation.weigh_new_values(deviations, np.array(self.history.windows), self.history.profile.span)


@dataclass(frozen=True)
class Remainder:
    """A column's mean given the other columns: what their regressions leave of it, which is 0 on average. By term."""

    history: History

    @cached_property
    def remainders(self) -> Floats:
        """Of the history's windows (windows, terms)."""
        joint = np.array(self.history.profile.joint.history, dtype=np.float64)
        return joint.reshape(len(self.history.distances), -1)

    def of_history(self) -> Floats:
        span, count = self.history.profile.span, len(self.remainders)
        _, deviation = _of_others(self.remainders, span, mean=0.0)
        outside = np.array(self.history.profile.joint.outside).reshape(self.remainders.shape)
        return self._evidence(self.remainders, deviation, moderation.count_disjoint(count, span), outside)

    def of_new(self, values: Floats) -> Floats:
        deviation = np.sqrt((self.remainders**2).mean(axis=0))[None]
        unrelated = np.array(self.history.profile.joint.unrelated)[None]
        return np.asarray(self._evidence(values[None], deviation, np.array([self.history.windows]), unrelated)[0])

    def _evidence(self, remainders: Floats, deviations: Floats, windows: Floats, unrelated: Floats) -> Floats:
        """Of windows (n, terms), whose usual deviations (n, terms) come from so many windows (n)."""
        degrees = moderation.degrees_of_freedom(windows, self.history.profile.span)
        variances, degrees = moderation.pool_variances(deviations**2, degrees, unrelated**2)
        usual = np.maximum(np.sqrt(variances), self.history.least_term_deviation)
        blamed = [self._blamed(*pair) for pair in zip(remainders, usual, strict=True)]
        evidence = moderation.weigh_deviations(np.array(blamed).reshape(remainders.shape), degrees)
        return self.history.to_columns(evidence)

    def _blamed(self, remainders: Floats, usual: Floats) -> Floats:
        """What is left of each term, in deviations, without what is there only because another term moved.

        Where one term alone moves, all that go with it seem off, but none by more of its own deviations. The largest is
        taken out together with its share in the others, until none is off (matching pursuit: Mallat and Zhang 1993).
        """
        inverse = np.asarray(self.history.profile.joint.inverse)
        root, rest = np.sqrt(np.diag(inverse)), remainders.copy()
        off = np.abs(rest) / usual > PLAIN_DEVIATIONS
        blamed = np.where(off, 0.0, np.abs(remainders) / usual)
        while off.any():
            term = int(np.argmax(np.where(off, np.abs(rest), 0)))
            blamed[term] = abs(rest[term]) / usual[term]
            rest = rest - rest[term] * inverse[:, term] / (root[term] * root)
            off = (np.abs(rest) / usual > PLAIN_DEVIATIONS) & (blamed == 0)
        return np.where(blamed > 0, blamed, np.minimum(np.abs(rest) / usual, PLAIN_DEVIATIONS))


@dataclass(frozen=True)
class Relation:
    """A column's correlation with what the others predict of it, as its Fisher transform. Values by term.

    Without values, as where a column is empty or in a profile without relations, a relation is never off.
    """

    history: History

    @cached_property
    def relations(self) -> Floats:
        """Of the history's windows (windows, terms)."""
        joint = np.array(self.history.profile.joint.relations, dtype=np.float64)
        return joint.reshape(len(self.history.distances), -1)

    def of_history(self) -> Floats:
        span = self.history.profile.span
        mean, deviation = _of_others(self.relations, span)
        deviation = np.maximum(deviation, self.history.least_term_deviation)
        fall = joint.measure_loosening(self.relations, mean, deviation)
        windows = moderation.count_disjoint(len(self.relations), span)
        return self.history.to_columns(moderation.weigh_new_values(fall, windows, span))

    def of_new(self, values: Floats) -> Floats:
        return np.asarray(self.history.to_columns(self.by_term(values)[None])[0])

    def by_term(self, values: Floats) -> Floats:
        """The evidence that a new window's terms go less with the others than usual (terms)."""
        if not values.size or not self.relations.size:
            return np.zeros(0)
        deviation = np.maximum(self.relations.std(axis=0), self.history.least_term_deviation)
        fall = joint.measure_loosening(values, self.relations.mean(axis=0), deviation)
        return moderation.weigh_new_values(fall, np.array(self.history.windows), self.history.profile.span)


def _of_others(values: Floats, span: int, mean: float | None = None) -> tuple[Floats, Floats]:
    """For each window (windows, ...) the mean of those that it does not overlap, and their deviation from it or `mean`.

    Where all windows sum to nothing, the mean of the others is the window itself with its sign turned.
    """
    sums, squares = (
        np.concatenate([np.zeros_like(values[:1]), np.cumsum(power, axis=0)]) for power in (values, values**2)
    )
    places = np.arange(len(values))
    low, high = np.maximum(places - span + 1, 0), np.minimum(places + span, len(values))
    count = np.maximum(len(values) - (high - low), 1)[:, None]
    means = (sums[-1] - sums[high] + sums[low]) / count if mean is None else np.full_like(values, mean)
    square = (squares[-1] - squares[high] + squares[low]) / count
    return means, np.sqrt(np.maximum(square - means**2, 0))
