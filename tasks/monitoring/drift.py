"""drift: a window of rows against the history that its model was made of → what moved, an alarm, a report.

The thresholds are not a library's: each comes from the windows of the model's own history (training/profile.py), so
that a stream in which nothing changes gives drift.false_alarms alarms of the whole dataset in 30 days of event time.
The only importer of evidently, which draws the report with these thresholds; it decides nothing.

How far a column moved is told as a score: how many deviations of its history's windows its distance, its mean given the
other columns, or its correlation with them (training/relation.py) lies off theirs, whichever is most; of a short
history by fewer, as Student's t says (moderation.py). Squared and halved a score is evidence, as -log p of a normal
deviate grows; the dataset's signal is the largest evidence plus the log of the column's weight, half of it spread
evenly, half by the model's importance (a weighted Bonferroni rule: Genovese et al. 2006). The threshold is a quantile
of the same number over the history's windows, each scored by those that it does not overlap: no shape is assumed of it,
except of its tail where there are fewer windows than the rate asks for.
"""

import math
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.monitoring.signal import Signal
from tasks.params import Drift
from tasks.training import moderation, relation
from tasks.training.columns import Column, as_numbers, jensen_shannon, to_shares
from tasks.training.model import Floats, Model
from tasks.training.profile import Profile
from tasks.training.windows import Codes, number_units

if TYPE_CHECKING:
    import pyarrow as pa

MONTH = timedelta(days=30)
ENOUGH = 3  # windows without overlap that a history must hold
EVEN = 0.5  # of the weights is spread evenly: a column of no importance can still alarm
SLACK = 0.05  # a share of missing, new or out-of-range values may exceed its history's worst window by this
FLOOR = 0.5  # of what sampling alone does to a distance: no deviation of the history is taken for smaller
PLAIN = 2.0  # deviations: a term that is off by less needs no explanation
SHOWN = 5  # columns in a sentence
KEPT = 20  # reports of some megabytes each
SNAPSHOTS = 200  # of half a megabyte each, for Evidently's UI
QUALITY = ("missing", "never seen before", "out of range")


@dataclass(frozen=True)
class ColumnDrift:
    """One column in one window. `score` and `threshold` in deviations; `change` is a plain phrase."""

    name: str
    score: float
    threshold: float
    evidence: float  # with its weight: the dataset's signal is the largest of these
    distance: float
    usual: float
    change: str
    faults: tuple[str, ...] = ()  # of quality

    @property
    def alarm(self) -> bool:
        return self.score > self.threshold


@dataclass(frozen=True)
class Comparison:
    """A window against a profile; `signal` and `threshold` are of the whole dataset."""

    columns: tuple[ColumnDrift, ...]
    signal: float
    threshold: float
    rows: int
    windows: float  # without overlap, in the history
    gone: tuple[str, ...] = ()  # columns that the window lacks, or holds as another type

    @property
    def alarm(self) -> bool:
        return self.windows >= ENOUGH and self.signal > self.threshold

    @property
    def moved(self) -> list[ColumnDrift]:
        """The columns that alarm by themselves, the strongest evidence first."""
        return sorted((each for each in self.columns if each.alarm), key=lambda each: -each.evidence)

    @property
    def faulty(self) -> list[ColumnDrift]:
        return [each for each in self.columns if each.faults]


# --- the history's own scores --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """What the windows of a history show when nothing is wrong: distances (m, columns), what is left (m, terms), and
    how far terms go with the others (m, terms)."""

    profile: Profile
    settings: Drift
    columns: tuple[Column, ...]
    with_terms: bool

    @cached_property
    def distances(self) -> Floats:
        return np.array([each.history for each in self.columns]).T.reshape(-1, len(self.columns))

    @cached_property
    def left(self) -> Floats:
        history = np.array(self.profile.joint.history, dtype=np.float64)
        return history.reshape(len(self.distances), -1) if self.with_terms else np.zeros((len(self.distances), 0))

    @cached_property
    def relations(self) -> Floats:
        """Without any, in the profile of an older version, a relation is never off."""
        relations = np.array(self.profile.joint.relations, dtype=np.float64)
        return relations.reshape(len(self.distances), -1) if self.with_terms else np.zeros((len(self.distances), 0))

    @cached_property
    def windows(self) -> float:
        """How many of them fit in without overlap."""
        return len(self.distances) / self.profile.span + 1 - 1 / self.profile.span if len(self.distances) else 0.0

    @cached_property
    def share(self) -> float:
        """Of the windows, those that may alarm: drift.false_alarms for each 30 days."""
        return min(self.settings.false_alarms * (self.profile.window / MONTH), 0.5)

    @cached_property
    def weights(self) -> Floats:
        count = max(len(self.columns), 1)
        shares = np.array(self.profile.weights) if self.with_terms else np.full(count, 1 / count)
        return np.asarray(EVEN / count + (1 - EVEN) * (shares if shares.sum() else 1 / count))

    @cached_property
    def floors(self) -> tuple[Floats, Floats]:
        """What sampling does to a distance and to a mean, in windows of the usual number of rows: see FLOOR."""
        units = max(len(self.distances) + self.profile.span - 1, 1)
        rows = max(sum(self.columns[0].counts) / units * self.profile.span, 1.0) if self.columns else 1.0
        bins = np.array([each.bins for each in self.columns])
        return FLOOR * np.sqrt((bins - 1) / (8 * math.log(2) * rows)), np.full(self.left.shape[1], FLOOR / rows**0.5)

    @cached_property
    def own(self) -> Floats:
        """The evidence of each window and column (m, columns), by the windows that it does not overlap."""
        span = self.profile.span
        windows = moderation.count_disjoint(len(self.distances), span)
        mean, deviation = _of_others(self.distances, span)
        off = (self.distances - mean) / np.maximum(deviation, self.floors[0])
        by_distance = moderation.weigh_new_values(off, windows, span)
        _, usual = _of_others(self.left, span, mean=0.0)  # what is left is 0 on average
        by_left = self._by_left(self.left, usual, windows, self._unrelated(self.profile.joint.outside, len(self.left)))
        usual, deviation = _of_others(self.relations, span)
        loosened = relation.measure_loosening(self.relations, usual, np.maximum(deviation, self._floor(self.relations)))
        by_relation = moderation.weigh_new_values(loosened, windows, span)
        return np.maximum(by_distance, np.maximum(self._to_columns(by_left), self._to_columns(by_relation)))

    def _unrelated(self, deviations: Any, windows: int) -> Floats:
        """Unknown in the profile of an older version: then no variance is moderated."""
        known = self.with_terms and len(deviations)
        return np.array(deviations).reshape(windows, -1) if known else np.zeros((windows, self.left.shape[1]))

    def _by_left(self, left: Floats, usual: Floats, windows: Floats, unrelated: Floats) -> Floats:
        """The evidence of what is left of windows (n, k), whose usual deviations (n, k) come from so many (n)."""
        degrees = moderation.degrees_of_freedom(windows, self.profile.span)
        variances, degrees = moderation.pool_variances(usual**2, degrees, unrelated**2)
        pairs = zip(left, np.maximum(np.sqrt(variances), self.floors[1]), strict=True)
        return moderation.weigh_deviations(
            np.array([self._blamed(*pair) for pair in pairs]).reshape(left.shape), degrees
        )

    def _floor(self, of_terms: Floats) -> Floats:
        """A mean and a Fisher transform have the same spread, of sampling alone."""
        return self.floors[1][:1] if of_terms.shape[1] else np.zeros(0)

    def _to_columns(self, of_terms: Floats) -> Floats:
        """Of each column's terms the largest (m, terms) → (m, columns)."""
        found = np.full((len(of_terms), len(self.columns)), -math.inf)
        for i in range(of_terms.shape[1]):
            place = self.profile.joint.terms[i].column
            found[:, place] = np.maximum(found[:, place], of_terms[:, i])
        return found

    def loosened(self, relations: Floats) -> Floats:
        """The evidence that a new window's terms go less with the others than usual (k)."""
        if not relations.size or not self.relations.size:
            return np.zeros(0)
        deviation = np.maximum(self.relations.std(axis=0), self._floor(self.relations))
        off = relation.measure_loosening(relations, self.relations.mean(axis=0), deviation)
        return moderation.weigh_new_values(off, np.array(self.windows), self.profile.span)

    def score(self, distances: Floats, left: Floats, loosened: Floats) -> Floats:
        """A new window's evidence by column, by all windows of the history."""
        off = (distances - self.distances.mean(axis=0)) / np.maximum(self.distances.std(axis=0), self.floors[0])
        found = moderation.weigh_new_values(off, np.array(self.windows), self.profile.span)
        if self.with_terms:
            usual, windows = np.sqrt((self.left**2).mean(axis=0)), np.array([self.windows])
            unrelated = self._unrelated(self.profile.joint.unrelated, 1)
            by_left = self._by_left(left[None], usual[None], windows, unrelated)
            found = np.maximum(found, self._to_columns(by_left)[0])
            found = np.maximum(found, self._to_columns(loosened[None])[0])
        return np.asarray(found)

    def _blamed(self, left: Floats, usual: Floats) -> Floats:
        """What is left of each term, in deviations, without what is there only because another term moved: where one
        alone moves, all that go with it seem off, but none by more of its own deviations. The largest off is taken out
        together with its share in the others, until none is off (matching pursuit: Mallat and Zhang 1993)."""
        inverse, blamed = np.asarray(self.profile.joint.inverse), np.abs(left) / usual
        root, rest = np.sqrt(np.diag(inverse)), left.copy()
        off = np.abs(rest) / usual > PLAIN
        found = np.where(off, 0.0, blamed)
        while off.any():
            place = int(np.argmax(np.where(off, np.abs(rest), 0)))
            found[place] = abs(rest[place]) / usual[place]
            rest = rest - rest[place] * inverse[:, place] / (root[place] * root)
            off = (np.abs(rest) / usual > PLAIN) & (found == 0)
        return np.where(found > 0, found, np.minimum(np.abs(rest) / usual, PLAIN))

    @cached_property
    def thresholds(self) -> Floats:
        """Of each column's own evidence."""
        return np.array([self._threshold(column) for column in self.own.T])

    @cached_property
    def threshold(self) -> float:
        """Of the dataset's signal."""
        return self._threshold(self.signal(self.own))

    def signal(self, evidence: Floats) -> Floats:
        """The dataset's signal of evidence by column (..., columns)."""
        return np.asarray((evidence + np.log(self.weights)).max(axis=-1))

    def _threshold(self, found: Floats) -> float:
        """What a new window exceeds with probability `share`: the quantile of the history's windows. Beyond what their
        number tells, the tail of evidence is taken to be exponential."""
        told = max(self.share, 1 / (self.windows + 1))
        return float(np.quantile(found, 1 - told, method="higher")) + math.log(told / self.share)


def _of_others(found: Floats, span: int, mean: float | None = None) -> tuple[Floats, Floats]:
    """For each row (m, ...) the mean of the rows that it does not overlap, and their deviation from it, or from `mean`:
    where all rows sum to nothing, the mean of the others is the row itself with its sign turned."""
    sums, squares = (np.concatenate([np.zeros_like(found[:1]), np.cumsum(each, axis=0)]) for each in (found, found**2))
    places = np.arange(len(found))
    low, high = np.maximum(places - span + 1, 0), np.minimum(places + span, len(found))
    count = np.maximum(len(found) - (high - low), 1)[:, None]
    means = (sums[-1] - sums[high] + sums[low]) / count if mean is None else np.full_like(found, mean)
    square = (squares[-1] - squares[high] + squares[low]) / count
    return means, np.sqrt(np.maximum(square - means**2, 0))


# --- a window ------------------------------------------------------------------------------------------------------


def compare(profile: Profile, table: "pa.Table", times: "NDArray[np.datetime64]", *, settings: Drift) -> Comparison:
    """A window's rows (n), in the order of time, against the history of the model that serves."""
    usual = History(profile, settings, profile.columns, with_terms=True)
    table, gone = _as_known(profile, table)
    units = _units(profile, times)
    if usual.windows < ENOUGH or not len(units):
        return Comparison((), 0.0, math.inf, len(units), usual.windows, gone)
    empty = [i for i, name in enumerate(profile.names) if table[name].null_count == table.num_rows]
    terms = profile.joint.standardise(table, profile.names)
    left = profile.joint.leave(terms, units, empty=empty)
    relations = np.zeros(0) if empty else profile.joint.relate(terms, units)  # those with an empty one are no fault
    return _found(usual, table, units, left, relations, gone=gone)


def compare_scores(profile: Profile, scores: Floats, times: "NDArray[np.datetime64]", *, settings: Drift) -> Comparison:
    """A window's predictions, (n,) or (n, classes), against those of rows that the model had not seen."""
    import pyarrow as pa

    usual = History(profile, settings, profile.scores, with_terms=False)
    parts = [scores] if scores.ndim == 1 else [scores[:, i] for i in range(len(profile.scores))]
    columns = {each.name: part for each, part in zip(profile.scores, parts, strict=False)}
    units = _units(profile, times)
    if usual.windows < ENOUGH or not len(units):
        return Comparison((), 0.0, math.inf, len(units), usual.windows)
    return _found(usual, pa.table(columns), units, np.zeros(0), np.zeros(0), gone=())


def _units(profile: Profile, times: "NDArray[np.datetime64]") -> Codes:
    """Of a window that is one unit there are no parts, wherever it begins."""
    return number_units(times, profile.unit) if profile.span > 1 else np.zeros(len(times), dtype=np.int64)


def unknown(rows: int) -> Comparison:
    """Of a window whose model has no profile: it is held against nothing."""
    return Comparison((), 0.0, math.inf, rows, 0.0)


def _as_known(profile: Profile, table: "pa.Table") -> tuple["pa.Table", tuple[str, ...]]:
    """The table with every column of the history: one that is gone, or of another type, is missing in every row."""
    import pyarrow as pa

    gone = tuple(each.name for each in profile.columns if not _fits(each, table))
    kept = table.select([each.name for each in profile.columns if each.name not in gone])
    kinds = {each.name: pa.float64() if each.kind == "number" else pa.string() for each in profile.columns}
    for name in gone:
        kept = kept.append_column(name, pa.nulls(table.num_rows, kinds[name]))
    return kept, gone


def _fits(column: Column, table: "pa.Table") -> bool:
    try:
        column.assign_bins(table[column.name].slice(0, 1))
    except (KeyError, ValueError):
        return False
    return True


def _found(
    usual: History,
    table: "pa.Table",
    units: Codes,
    left: Floats,
    relations: Floats,
    *,
    gone: tuple[str, ...],
) -> Comparison:
    columns = usual.columns
    now = [each.window_shares(table[each.name], units) for each in columns]
    then = [to_shares(np.array(each.counts)) for each in columns]
    distances = np.array([float(jensen_shannon(*each)) for each in zip(now, then, strict=True)])
    there = np.array([each.name not in gone for each in columns])
    loosened = usual.loosened(relations)
    evidence = np.where(there, usual.score(distances, left, loosened), 0.0)  # what is gone is told as a fault
    weighted = evidence + np.log(usual.weights)
    moved = tuple(
        ColumnDrift(
            each.name,
            score=_deviations(evidence[i]),
            threshold=_deviations(usual.thresholds[i]),
            evidence=float(weighted[i]),
            distance=float(distances[i]),
            usual=float(usual.distances[:, i].mean()),
            change=_parted(usual, i, relations, loosened, evidence[i]) or _told(each, then[i], now[i]),
            faults=tuple(_faults(each, table[each.name])) if there[i] else (),
        )
        for i, each in enumerate(columns)
    )
    return Comparison(moved, float(weighted.max()), usual.threshold, len(units), usual.windows, gone)


def _deviations(evidence: float) -> float:
    return math.sqrt(2 * max(evidence, 0.0))


def _parted(usual: History, column: int, relations: Floats, loosened: Floats, evidence: float) -> str | None:
    """The phrase for a column that goes less with the others than it did, where that is what its evidence comes of."""
    terms = [i for i in range(len(loosened)) if usual.profile.joint.terms[i].column == column]
    term = max(terms, key=lambda i: float(loosened[i]), default=None)
    if term is None or loosened[term] < max(evidence - 1e-9, PLAIN**2 / 2):
        return None
    before, now = np.tanh(usual.relations[:, term].mean()), np.tanh(relations[term])
    return f"correlation with what the other columns say of it {before:.2f} → {now:.2f}"


def _told(column: Column, before: Floats, now: Floats) -> str:
    """Where a column was and is: the middle of a number, or the level whose share changed most."""
    if column.kind == "number":
        median = f"median about {_middle(column, before):.4g} → {_middle(column, now):.4g}"
        lost = f", missing {before[-1]:.1%} → {now[-1]:.1%}" if abs(now[-1] - before[-1]) > SLACK else ""
        return median + lost
    place = int(np.argmax(np.abs(now - before)))
    return f"{[*column.levels, 'other levels', 'new levels', 'missing'][place]} {before[place]:.1%} → {now[place]:.1%}"


def _middle(column: Column, shares: Floats) -> float:
    """The median, as well as the bins tell it; NaN where all is missing."""
    there = shares[:-1] / max(float(shares[:-1].sum()), 1e-12)
    place = int(np.searchsorted(np.cumsum(there), 0.5))
    if not there.any():
        return math.nan
    low, high = (column.edges[min(max(each, 0), len(column.edges) - 1)] for each in (place - 1, place))
    inside = (0.5 - float(there[:place].sum())) / max(float(there[min(place, len(there) - 1)]), 1e-12)
    return low + (high - low) * min(max(inside, 0.0), 1.0)


def _faults(column: Column, values: Any) -> Iterator[str]:
    for name, share, worst in zip(QUALITY, column.measure_quality(values), column.worst, strict=True):
        if share > worst + SLACK:
            yield f"{share:.1%} {name}, at most {worst:.1%} in any window of its history"


# --- signals -------------------------------------------------------------------------------------------------------


def signals(
    data: Comparison,
    scores: Comparison,
    *,
    version: int,
    since: datetime,
    until: datetime,
    whole: bool = True,
    min_rows: int = 0,
) -> list[Signal]:
    """Drift of the data and of the predictions, and the data's quality, in since <= event_time < until.

    `whole`: rows could come from all of the window; one that was hardly covered alarms about nothing, nor does one of
    fewer rows than `min_rows`, which is policy.min_rows.
    """
    told: dict[str, Any] = {"window_begin": since, "window_end": until, "version": version, "rows": data.rows}
    partial = "" if whole else "too little of the window is journalled to tell."
    if data.rows < min_rows:
        partial = f"{data.rows:,} rows are fewer than policy.min_rows ({min_rows:,}), which turns this signal off."
    return [_drift(data, told, partial=partial), _prediction(scores, told, partial=partial), _quality(data, told)]


def _drift(found: Comparison, told: Mapping[str, Any], *, partial: str) -> Signal:
    why = _unmeasured(found, partial=partial)
    detail = {"columns": [_row(each) for each in sorted(found.columns, key=lambda each: -each.evidence)]}
    if why:
        return Signal("drift", alarm=False, message=f"Drift: {why}", detail=detail, **told)
    names = [f"{each.name} ({each.change}; {each.score:.1f} deviations)" for each in found.moved[:SHOWN]]
    more = f" and {len(found.moved) - SHOWN} more" if len(found.moved) > SHOWN else ""
    moved = f"moved: {', '.join(names)}{more}" if names else "no column moved by itself"
    said = f"Drift signal {found.signal:.2f}, the threshold {found.threshold:.2f}; {moved}."
    return Signal(
        "drift", alarm=found.alarm, message=said, value=found.signal, reference=found.threshold, detail=detail, **told
    )


def _prediction(found: Comparison, told: Mapping[str, Any], *, partial: str) -> Signal:
    if why := _unmeasured(found, partial=partial):
        return Signal("prediction", alarm=False, message=f"Predictions: {why}", **told)
    top = max(found.columns, key=lambda each: each.evidence)
    off = f"{top.score:.1f} deviations of the holdout's windows, the threshold {top.threshold:.1f}"
    said = f"Predictions: {top.change}; {off}."
    return Signal("prediction", alarm=found.alarm, message=said, value=found.signal, reference=found.threshold, **told)


def _unmeasured(found: Comparison, *, partial: str) -> str | None:
    if not found.rows:
        return "no rows in the window."
    if not found.windows:
        return "no history of this version is kept, or less than a window of it; the next promotion brings its own."
    if found.windows < ENOUGH:
        return f"the history holds {found.windows:.1f} windows of monitor.window, and a threshold needs {ENOUGH}."
    return partial or None


def _quality(found: Comparison, told: Mapping[str, Any]) -> Signal:
    faults = [f"{each.name}: {', '.join(each.faults)}" for each in found.faulty]
    faults += [f"{name} is gone, or holds another type" for name in found.gone]
    quiet = "nothing missing, new or out of range beyond its history" if found.columns else "no column was looked at"
    said = f"Quality: {'; '.join(faults[:SHOWN]) or quiet}."
    return Signal(
        "quality",
        alarm=bool(faults),
        message=said,
        value=float(len(faults)) if found.columns or faults else None,
        reference=0.0,
        detail={"faults": faults},
        **told,
    )


def _row(moved: ColumnDrift) -> dict[str, Any]:
    kept = {name: value for name, value in asdict(moved).items() if name != "faults"}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in kept.items()} | {
        "alarm": moved.alarm
    }


# --- root cause ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cause:
    """A column's part in where the scores went. `shift`: of its mean SHAP value, in units of the margin."""

    name: str
    shift: float
    moved: float  # deviations, as drift tells it
    change: str


@dataclass(frozen=True)
class Slice:
    """A group of rows with its mean loss at promotion and now."""

    name: str
    value: str
    rows: int
    then: float
    now: float


def causes(twin: Model, now: "pa.Table", profile: Profile, found: Comparison) -> list[Cause]:
    """What each column's move did to the scores, the largest first: the mean SHAP value of these rows less that of the
    holdout. Of several classes, the class that moved most."""
    shift = twin.contributions(now).mean(axis=0) - np.array(profile.contributions)
    by_feature = shift if shift.ndim == 1 else shift[np.argmax(np.abs(shift).sum(axis=1))]
    by_name = {each.name: each for each in found.columns}
    names = twin.spec.names
    order = np.argsort(-np.abs(by_feature), kind="stable")
    listed = [(names[i], float(by_feature[i]), by_name.get(names[i])) for i in order]
    return [Cause(name, shift, of.score if of else 0.0, of.change if of else "") for name, shift, of in listed]


def slices(
    then: Mapping[str, NDArray[Any]],
    losses_then: Floats,
    now: Mapping[str, NDArray[Any]],
    losses_now: Floats,
    *,
    rows: int,
) -> list[Slice]:
    """The groups of at least so many rows now, those that lost most first."""
    found = [
        Slice(name, str(value), int(inside.sum()), float(losses_then[before].mean()), float(losses_now[inside].mean()))
        for name in sorted(then.keys() & now.keys())
        for value in sorted({each for each in now[name].tolist() if each is not None}, key=str)
        if (inside := now[name] == value).sum() >= rows and (before := then[name] == value).any()
    ]
    return sorted(found, key=lambda each: each.then - each.now)


# --- the report ----------------------------------------------------------------------------------------------------


def report(
    found: Comparison,
    then: "pa.Table",
    now: "pa.Table",
    *,
    said: Comparison | None = None,
    until: datetime,
    html: Path,
    workspace: Path | None = None,
    project: str = "evergreen",
) -> Path:
    """Evidently's drift report of two samples, as HTML that opens offline, and as a snapshot in a workspace that
    `evidently ui` serves. Its scores and thresholds are ours, of all rows: the samples are only drawn. A column that is
    empty in one of them is left out: Evidently refuses it."""
    _quietly()
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    listed = [*(each for each in found.columns if each.name not in found.gone), *(said.columns if said else ())]
    columns = [each for each in listed if _holds(then, each.name) and _holds(now, each.name)]
    kinds = {each.name: _is_text(then, each.name) for each in columns}
    definition = DataDefinition(
        numerical_columns=[name for name, text in kinds.items() if not text],
        categorical_columns=[name for name, text in kinds.items() if text],
    )
    data = [Dataset.from_pandas(_frame(each, kinds), data_definition=definition) for each in (now, then)]
    thresholds = {each.name: round(each.threshold, 4) for each in columns}
    preset = DataDriftPreset(
        columns=list(kinds),
        method=_told_by(columns),
        per_column_threshold=thresholds,
        drift_share=_share(found, columns),
    )
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # it divides by the deviation of a constant column
        warnings.simplefilter("ignore")
        drawn = Report([preset], include_tests=True)
        snapshot = drawn.run(*data, timestamp=until, name=f"drift to {until:%Y-%m-%d %H:%M}")
    _publish(snapshot, html)
    if workspace:
        _keep(snapshot, workspace, project, until)
    return html


def _share(found: Comparison, columns: Sequence[ColumnDrift]) -> float:
    """Evidently counts columns to tell whether the dataset drifted: the share at which it says what our signal says."""
    share = sum(each.alarm for each in columns) / max(len(columns), 1)
    return share if found.alarm else 1 + (share == 1)


def _quietly() -> None:
    import os

    os.environ.setdefault("DO_NOT_TRACK", "true")


def _holds(table: "pa.Table", name: str) -> bool:
    return name in table.column_names and table[name].null_count < table.num_rows


def _is_text(table: "pa.Table", name: str) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(table.schema.field(name).type))


def _frame(table: "pa.Table", kinds: Mapping[str, bool]) -> Any:
    """What pandas makes of the columns. Evidently puts texts into its page as they are: `</script>` would end it."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    held = {name: table[name].cast(pa.string()) for name, text in kinds.items() if text}
    texts = {name: pc.replace_substring(each, "<", "‹").to_pandas().astype(object) for name, each in held.items()}
    numbers = {name: as_numbers(table[name]) for name, text in kinds.items() if not text}
    return pd.DataFrame(texts | numbers)


def _told_by(columns: Sequence[ColumnDrift]) -> str:
    """A drift method for Evidently that tells the scores which are known already."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    scores = {each.name: each.score for each in columns}

    def told(_then: Any, now: Any, _kind: Any, threshold: float) -> tuple[float, bool]:
        return scores[now.name], scores[now.name] > threshold

    types = [ColumnType.Numerical, ColumnType.Categorical]
    register_stattest(StatTest("calibrated", "deviations from its own history", types, 3.0), told)
    return "calibrated"


def _publish(snapshot: Any, html: Path) -> None:
    html.parent.mkdir(parents=True, exist_ok=True)
    new = html.with_suffix(f".{uuid.uuid4().hex[:6]}.new")
    snapshot.save_html(str(new))
    new.replace(html)
    others = sorted(set(html.parent.glob("*.html")) - {html})  # what was just drawn stays, however old its window
    for old in others[: max(len(others) - KEPT + 1, 0)]:
        old.unlink(missing_ok=True)


def _keep(snapshot: Any, workspace: Path, project: str, until: datetime) -> None:
    """Into the workspace, in place of an earlier one of the same window: its id is the window's."""
    from evidently.ui.workspace import Workspace

    held = Workspace.create(str(workspace))
    mine = next(iter(held.search_project(project)), None) or held.create_project(project)
    held.state.write_snapshot(mine.id, uuid.uuid5(mine.id, until.isoformat()), snapshot.to_snapshot_model())
    listed = sorted((workspace / str(mine.id) / "snapshots").glob("*.json"), key=lambda path: path.stat().st_mtime)
    for old in listed[:-SNAPSHOTS]:
        held.state.delete_snapshot(mine.id, uuid.UUID(old.stem))
