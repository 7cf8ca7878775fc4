"""drift: a window of rows against the history that its model was made of → how far each column moved.

The thresholds come from the windows of the model's own history (statistics.py), so that a stream in which nothing
changes gives drift.false_alarms alarms of the whole dataset in 30 days of event time.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.monitoring.statistics import PLAIN_DEVIATIONS, History, Relation
from tasks.training.columns import Column, jensen_shannon, to_shares
from tasks.training.model import Floats
from tasks.training.profile import Profile
from tasks.training.windows import Codes, number_units

LEAST_WINDOWS = 3  # without overlap, that a history must hold
QUALITY_SLACK = 0.05  # a share of missing, new or out-of-range values may exceed its history's worst window by this
FAULTS = ("missing", "never seen before", "out of range")  # in the order of Column.measure_quality


@dataclass(frozen=True)
class ColumnDrift:
    """One column in one window. `score` and `threshold` in deviations; `change` is a plain phrase."""

    name: str
    score: float
    threshold: float
    evidence: float  # with its weight: the dataset's signal is the largest of these
    distance: float
    usual: float  # the distance of the history's windows, on average
    change: str
    faults: tuple[str, ...] = ()  # of quality

    @property
    def alarm(self) -> bool:
        return self.score > self.threshold


@dataclass(frozen=True)
class Comparison:
    """A window against a profile. `signal` and `threshold` are of the whole dataset.

    Without columns where nothing could be compared: no rows, or too short a history.
    """

    columns: tuple[ColumnDrift, ...] = ()
    signal: float = 0.0
    threshold: float = math.inf
    rows: int = 0
    windows: float = 0.0  # without overlap, in the history
    gone: tuple[str, ...] = ()  # columns that the window lacks, or holds as another type

    @property
    def alarm(self) -> bool:
        return self.windows >= LEAST_WINDOWS and self.signal > self.threshold

    @property
    def ranked(self) -> list[ColumnDrift]:
        """All columns, the strongest evidence first."""
        return sorted(self.columns, key=lambda column: -column.evidence)

    @property
    def moved(self) -> list[ColumnDrift]:
        """The columns that alarm by themselves, the strongest evidence first."""
        return [column for column in self.ranked if column.alarm]

    @property
    def faulty(self) -> list[ColumnDrift]:
        return [column for column in self.columns if column.faults]


NOT_COMPARED = Comparison()


def compare(profile: Profile, table: pa.Table, times: NDArray[np.datetime64], *, false_alarms: float) -> Comparison:
    """A window's features against the history of the model that serves.

    Args:
        table: The window's rows (n), in the order of time.
        times: Their event times (n).
        false_alarms: drift.false_alarms, which sets the threshold.
    """
    history = History(profile, false_alarms, profile.columns, with_terms=True)
    table, gone = _with_known_columns(profile, table)
    units = _units(profile, times)
    if history.windows < LEAST_WINDOWS or not len(units):
        return Comparison(rows=len(units), windows=history.windows, gone=gone)
    empty = [i for i, name in enumerate(profile.names) if table[name].null_count == table.num_rows]
    terms = profile.joint.standardise(table, profile.names)
    remainders = profile.joint.leave(terms, units, empty=empty)
    relations = np.zeros(0) if empty else profile.joint.relate(terms, units)  # those with an empty one are no fault
    return _compare(history, table, units, (remainders, relations), gone=gone)


def compare_scores(
    profile: Profile, scores: Floats, times: NDArray[np.datetime64], *, false_alarms: float
) -> Comparison:
    """A window's predictions, (n,) or (n, classes), against those of rows that the model had not seen."""
    history = History(profile, false_alarms, profile.scores, with_terms=False)
    parts = [scores] if scores.ndim == 1 else [scores[:, i] for i in range(len(profile.scores))]
    columns = {column.name: part for column, part in zip(profile.scores, parts, strict=False)}
    units = _units(profile, times)
    if history.windows < LEAST_WINDOWS or not len(units):
        return Comparison(rows=len(units), windows=history.windows)
    return _compare(history, pa.table(columns), units, (), gone=())


def _units(profile: Profile, times: NDArray[np.datetime64]) -> Codes:
    """The unit of each row (n). A window that is one unit has no parts, wherever it begins."""
    return number_units(times, profile.unit) if profile.span > 1 else np.zeros(len(times), dtype=np.int64)


def _with_known_columns(profile: Profile, table: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """The table with every column of the history: one that is gone, or of another type, is missing in every row."""
    gone = tuple(column.name for column in profile.columns if not _fits(column, table))
    table = table.select([column.name for column in profile.columns if column.name not in gone])
    kinds = {column.name: pa.float64() if column.kind == "number" else pa.string() for column in profile.columns}
    for name in gone:
        table = table.append_column(name, pa.nulls(table.num_rows, kinds[name]))
    return table, gone


def _fits(column: Column, table: pa.Table) -> bool:
    try:
        column.assign_bins(table[column.name].slice(0, 1))
    except (KeyError, ValueError):
        return False
    return True


def _compare(
    history: History, table: pa.Table, units: Codes, by_term: tuple[Floats, ...], *, gone: tuple[str, ...]
) -> Comparison:
    """The comparison, from the window's rows and its values of the statistics by term."""
    columns = history.columns
    now = [column.window_shares(table[column.name], units) for column in columns]
    before = [to_shares(np.array(column.counts)) for column in columns]
    distances = np.array([float(jensen_shannon(*pair)) for pair in zip(now, before, strict=True)])
    is_there = np.array([column.name not in gone for column in columns])
    evidence = history.evidence_of_new((distances, *by_term))
    evidence = np.where(is_there, evidence, 0.0)  # what is gone is a fault of quality
    weighted = evidence + np.log(history.weights)
    parted = _describe_parted(history, by_term[-1], evidence) if by_term else {}
    moved = tuple(
        ColumnDrift(
            column.name,
            score=_deviations(evidence[i]),
            threshold=_deviations(history.thresholds[i]),
            evidence=float(weighted[i]),
            distance=float(distances[i]),
            usual=float(history.distances[:, i].mean()),
            change=parted.get(i) or _describe_change(column, before[i], now[i]),
            faults=_find_faults(column, table[column.name]) if is_there[i] else (),
        )
        for i, column in enumerate(columns)
    )
    return Comparison(moved, float(weighted.max()), history.threshold, len(units), history.windows, gone)


def _deviations(evidence: float) -> float:
    return math.sqrt(2 * max(evidence, 0.0))


def _describe_parted(history: History, relations: Floats, evidence: Floats) -> dict[int, str]:
    """A phrase for each column (by place) whose evidence comes of going less with the others than it did."""
    statistic, phrases, largest = Relation(history), dict[int, str](), dict[int, float]()
    for term, by_term in enumerate(statistic.by_term(relations)):
        column = history.profile.joint.terms[term].column
        least = max(evidence[column] - 1e-9, PLAIN_DEVIATIONS**2 / 2)
        if by_term >= least and by_term > largest.get(column, 0.0):
            before, now = np.tanh(statistic.relations[:, term].mean()), np.tanh(relations[term])
            phrases[column] = f"correlation with what the other columns say of it {before:.2f} → {now:.2f}"
            largest[column] = by_term
    return phrases


def _describe_change(column: Column, before: Floats, now: Floats) -> str:
    """Where a column was and is: the middle of a number, or the level whose share changed most."""
    if column.kind == "number":
        median = f"median about {_median(column, before):.4g} → {_median(column, now):.4g}"
        missing = f", missing {before[-1]:.1%} → {now[-1]:.1%}" if abs(now[-1] - before[-1]) > QUALITY_SLACK else ""
        return median + missing
    place = int(np.argmax(np.abs(now - before)))
    return f"{[*column.levels, 'other levels', 'new levels', 'missing'][place]} {before[place]:.1%} → {now[place]:.1%}"


def _median(column: Column, shares: Floats) -> float:
    """The median, as well as the bins tell it; NaN where all is missing."""
    present = shares[:-1] / max(float(shares[:-1].sum()), 1e-12)
    place = int(np.searchsorted(np.cumsum(present), 0.5))
    if not present.any():
        return math.nan
    low, high = (column.edges[min(max(edge, 0), len(column.edges) - 1)] for edge in (place - 1, place))
    inside = (0.5 - float(present[:place].sum())) / max(float(present[min(place, len(present) - 1)]), 1e-12)
    return low + (high - low) * min(max(inside, 0.0), 1.0)


def _find_faults(column: Column, values: Any) -> tuple[str, ...]:
    return tuple(
        f"{share:.1%} {name}, at most {worst:.1%} in any window of its history"
        for name, share, worst in zip(FAULTS, column.measure_quality(values), column.worst, strict=True)
        if share > worst + QUALITY_SLACK
    )
