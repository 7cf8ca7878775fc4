"""What a model's history looked like, and how far windows of that history lay from the rest of it; written by evaluate.

A window of the monitor's length is slid over the history, a day at a time, and compared with what is left. So each
column has a sample of the distances that it shows when nothing is wrong, with the season, the weather and whatever else
makes its days alike; monitoring/drift.py compares a new window with it. A window counts its days alike, and leaves out
the most extreme of a week at either end: a shift lasts, a storm or a holiday does not. Two distances a column:

- its own distribution: the Jensen-Shannon distance of binned shares (Lin 1991; base 2, 0 to 1);
- its mean given all other columns: what a linear regression on them leaves, in standard deviations of what it leaves.
  A season moves columns together; a column that moves alone breaks its relation to the others, and shows here.

Nothing here decides what is an alarm. Pure numpy and Arrow: neither pandas nor Evidently is imported.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.params import Drift
from tasks.training import moderation, relation, windows
from tasks.training.windows import Codes, Floats

if TYPE_CHECKING:
    import pyarrow as pa

DAY = timedelta(days=1)
INDICATORS = 8  # levels of a category that take part in the regressions
RIDGE = 0.005  # on correlations: a column that others give exactly is taken to leave that much of itself
CLIP = 0.002  # of a number's rows at each end are taken for the nearest of the rest, in the regressions
FEWEST = 5  # rows in a window, on average, of a level that takes part: a rarer one is there or not, as chance has it
LATTICE = 3000  # a number with no more values than this may be recorded in steps: a value between them is new
HALF = 0.5  # of the units that a window usually has rows in, or it is no evidence
STEPS = 0.1  # it is not, where a window of its history holds so large a share of values that are nowhere else
SCORE = "_score"  # no feature begins so


@dataclass(frozen=True)
class Column:
    """How one column is binned, the history's counts by bin, and the distances of the history's windows.

    Bins of a number: below the history, between `edges`, above it, missing. Of a category: each of `levels`, the other
    known ones, new ones, missing. `known`: all levels; all values of a number that comes in steps, or nothing.
    `worst`: the largest shares of missing, new and out of range in any window.
    """

    name: str
    kind: Literal["number", "category"]
    edges: tuple[float, ...]
    levels: tuple[str, ...]
    known: tuple[Any, ...]
    counts: tuple[int, ...]
    history: tuple[float, ...] = ()
    worst: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def bins(self) -> int:
        return len(self.edges) + 2 if self.kind == "number" else len(self.levels) + 3

    def place(self, column: Any) -> Codes:
        """The bin of each value (n). A value of another type raises ValueError."""
        import pyarrow as pa

        try:
            return self._number(numbers(column)) if self.kind == "number" else self._category(column)
        except (pa.ArrowException, TypeError):
            found = getattr(column, "type", type(column).__name__)
            raise ValueError(
                f"the column {self.name} must be a {self.kind}, but it holds other values ({found})"
            ) from None

    def _number(self, values: Floats) -> Codes:
        codes = np.searchsorted(np.asarray(self.edges), values, side="right")
        return np.where(np.isnan(values), self.bins - 1, codes)

    def _category(self, column: Any) -> Codes:
        import pyarrow as pa
        import pyarrow.compute as pc

        texts = whole(column).cast(pa.string())
        top = pc.index_in(texts, value_set=pa.array(self.levels, pa.string())).fill_null(-1).to_numpy()
        known = pc.is_in(texts, value_set=pa.array(self.known, pa.string())).to_numpy(zero_copy_only=False)
        missing = texts.is_null().to_numpy(zero_copy_only=False)
        other = np.where(known, len(self.levels), len(self.levels) + 1)
        return np.where(missing, self.bins - 1, np.where(top >= 0, top, other)).astype(np.int64)

    def new(self, column: Any) -> NDArray[np.bool_]:
        """Which values the history does not hold at all (n)."""
        if self.kind == "category":
            return np.asarray(self._category(column) == self.bins - 2)
        values = numbers(column)
        return ~(np.isnan(values) | np.isin(values, self.known)) if self.known else np.zeros(len(values), dtype=bool)

    def quality(self, column: Any) -> Floats:
        """The shares of missing, new and out-of-range values (3)."""
        codes, rows = self.place(column), max(len(column), 1)
        outside = ((codes == 0) | (codes == self.bins - 2)).sum() if self.kind == "number" else 0
        return np.array([(codes == self.bins - 1).sum(), self.new(column).sum(), outside]) / rows


@dataclass(frozen=True)
class Joint:
    """The history's columns together: numbers, and indicators of the commonest levels, as k standardised terms.

    `inverse` (k, k) is the inverse of their correlations; `history` (windows, k) what the regressions left, and
    `relations` (windows, k) how far each term went with the others (training/relation.py). `unrelated` (k): the
    deviation of what they would leave if units had nothing to do with each other; `outside` (windows, k): the same, of
    the units outside of each window (moderation.py). A profile of an older evergreen lacks the last three.
    """

    column: tuple[int, ...]  # the column that a term is of
    level: tuple[str | None, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    inverse: tuple[tuple[float, ...], ...]
    history: tuple[tuple[float, ...], ...] = ()
    relations: tuple[tuple[float, ...], ...] = ()
    unrelated: tuple[float, ...] = ()
    outside: tuple[tuple[float, ...], ...] = ()

    def terms(self, table: "pa.Table", names: Sequence[str]) -> NDArray[np.float32]:
        """Rows (n) → (n, k). A missing number stands at the centre: that it is missing shows elsewhere."""
        found = np.empty((table.num_rows, len(self.column)), dtype=np.float32)
        for i, (place, level) in enumerate(zip(self.column, self.level, strict=True)):
            values = _term(table[names[place]], level)
            values = np.nan_to_num(np.clip(values, self.low[i], self.high[i]), nan=self.centre[i])
            found[:, i] = (values - self.centre[i]) / self.scale[i]
        return found

    def left(self, terms: NDArray[np.float32], units: Codes, *, empty: Sequence[int] = ()) -> Floats:
        """A window's terms (n, k), and the unit of each row → what the regressions leave of them (k). Columns that are
        `empty` are taken to have moved as the others say: else those that go with them would seem to move alone."""
        sums = np.zeros((int(units.max()) + 1, terms.shape[1]))
        np.add.at(sums, units, terms)
        means, inverse = _means(sums, np.bincount(units).astype(float)), np.asarray(self.inverse)
        if (away := np.isin(self.column, empty)).any():
            by_others = inverse[np.ix_(~away, away)] @ np.linalg.inv(inverse[np.ix_(away, away)])
            means[:, away] = -means[:, ~away] @ by_others
        return left(means, inverse)

    def relation(self, terms: NDArray[np.float32], units: Codes) -> Floats:
        """A window's terms (n, k), and the unit of each row → how far each term goes with the others (k)."""
        sums, products = _sums(terms, units)
        by = relation.slopes(np.asarray(self.inverse))
        return relation.agreement(sums, products, np.bincount(units).astype(float), by)


@dataclass(frozen=True)
class Profile:
    """The rows that a model was made of, as its drift is measured against them. `unit`: what windows are slid by."""

    until: datetime
    window: timedelta
    unit: timedelta
    rows: int
    columns: tuple[Column, ...]
    weights: tuple[float, ...]  # each column's share of the model's importance
    joint: Joint
    scores: tuple[Column, ...]  # the predictions, of rows that the model had not seen
    contributions: tuple[
        Any, ...
    ] = ()  # the twin's mean SHAP values on the holdout, in its spec's order; by class first
    labelled: float | None = (
        None  # the least share of mature rows with a label in any window (tasks/training/labels.py)
    )

    @cached_property
    def names(self) -> list[str]:
        return [each.name for each in self.columns]

    @property
    def span(self) -> int:
        """Units in a window."""
        return max(round(self.window / self.unit), 1)

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=_plain, separators=(",", ":"))

    @staticmethod
    def load(path: Path) -> "Profile":
        """Raises ValueError where there is none: a version that an older evergreen made."""
        try:
            raw = json.loads(path.read_text())
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: run the evaluate stage, which writes it") from None
        return Profile(
            until=datetime.fromisoformat(raw["until"]),
            window=timedelta(seconds=raw["window"]),
            unit=timedelta(seconds=raw["unit"]),
            rows=raw["rows"],
            columns=tuple(Column(**_tuples(each)) for each in raw["columns"]),
            weights=tuple(raw["weights"]),
            joint=Joint(**_tuples(raw["joint"])),
            scores=tuple(Column(**_tuples(each)) for each in raw["scores"]),
            contributions=_frozen(raw["contributions"]),
            labelled=raw.get("labelled"),
        )


def _plain(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value.isoformat()


def _tuples(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _frozen(value) for name, value in raw.items()}


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


# --- making one ----------------------------------------------------------------------------------------------------


def profile(
    table: "pa.Table",
    times: "NDArray[np.datetime64]",
    *,
    importance: Mapping[str, float],
    contributions: Floats,
    scores: Mapping[str, Floats],
    score_times: "NDArray[np.datetime64]",
    until: datetime,
    window: timedelta,
    settings: Drift,
    labelled: float | None = None,
) -> Profile:
    """Of feature rows (n) in the order of time, and of predictions of rows that their model had not seen."""
    unit = DAY if window % DAY == timedelta(0) else window
    names = sorted(table.column_names)
    span = max(round(window / unit), 1)
    days = without_pauses(units(times, unit), span)
    columns = tuple(_calibrated(_column(name, table[name], settings), table[name], days, span) for name in names)
    joint = _joint(table, columns, days, span)
    score_days = without_pauses(units(score_times, unit), span)
    found = {name: _arrow(each) for name, each in scores.items()}
    said = tuple(_calibrated(_column(name, each, settings), each, score_days, span) for name, each in found.items())
    total = sum(importance.get(name, 0.0) for name in names) or 1.0
    weights = tuple(round(importance.get(name, 0.0) / total, 6) for name in names)
    parts = _frozen(np.vectorize(lambda value: float(f"{value:.6g}"))(contributions).tolist())
    return Profile(until, window, unit, len(times), columns, weights, joint, said, parts, labelled)


def score_columns(found: Floats, classes: Sequence[Any]) -> dict[str, Floats]:
    """Predictions as columns: one, or one a class."""
    if found.ndim == 1:
        return {SCORE: found}
    return {f"{SCORE} {each}": found[:, i] for i, each in enumerate(classes)}


def evenly(rows: int, size: int) -> NDArray[np.intp]:
    """At most `size` places among so many rows, drawn evenly."""
    return np.unique(np.linspace(0, max(rows - 1, 0), min(size, rows)).astype(np.intp))


def whole(column: Any) -> Any:
    """One Arrow array."""
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column


def numbers(column: Any) -> Floats:
    """As float64, NaN where there is nothing. Text raises TypeError: it is not cast, a retyped column must show."""
    import pyarrow as pa

    held = whole(column)
    if pa.types.is_string(held.type) or pa.types.is_large_string(held.type):
        raise TypeError("it holds text")
    values: Floats = held.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values


def _arrow(values: Floats) -> Any:
    import pyarrow as pa

    return pa.array(np.asarray(values, dtype=np.float64))


def units(times: "NDArray[np.datetime64]", unit: timedelta) -> Codes:
    """The number of each row's unit since the first (n)."""
    if not len(times):
        return np.zeros(0, dtype=np.int64)
    number = times.astype("datetime64[us]").astype(np.int64) // int(unit / timedelta(microseconds=1))
    found: Codes = number - number[0]
    return found


def without_pauses(units: Codes, span: int) -> Codes:
    """The same units (n, sorted) with each pause of more than `span` units cut to so many. The windows that hold rows
    stay as they are, and there are no more than `span` empty ones in a pause, however long it is."""
    steps = np.diff(units, prepend=units[:1])
    return np.asarray(np.cumsum(np.minimum(steps, span + 1)), dtype=np.int64)


def counted(units: Codes, span: int) -> NDArray[np.bool_]:
    """Which windows of the history (windows) are evidence: those with rows in at least half as many units as usual. A
    window without rows is none, and one with its first day after a pause tells little of a window."""
    if not len(units):
        return np.zeros(0, dtype=bool)
    there = _windows((np.bincount(units) > 0).astype(np.int64), span)
    usual = np.median(there[there > 0]) if (there > 0).any() else 1
    return np.asarray((there > 0) & (there >= HALF * usual))


def _column(name: str, column: Any, settings: Drift) -> Column:
    import pyarrow as pa

    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return _category(name, column, settings.levels) if text else _number(name, column, settings.bins)


def _number(name: str, column: Any, bins: int) -> Column:
    values = numbers(column)
    there = values[~np.isnan(values)]
    inner = np.quantile(there, np.linspace(0, 1, bins + 1)[1:-1]) if len(there) else np.zeros(0)
    low, high = (there.min(), np.nextafter(there.max(), math.inf)) if len(there) else (0.0, 0.0)
    edges = tuple(float(each) for each in np.unique([low, *inner, high]))
    values = np.unique(there)
    known = tuple(values.tolist()) if len(values) <= min(LATTICE, len(there) / 20) else ()
    return _counted(Column(name, "number", edges, (), known, ()), column)


def _category(name: str, column: Any, levels: int) -> Column:
    import pyarrow.compute as pc

    found = pc.value_counts(whole(column).drop_null()).to_pylist()
    order = [each["values"] for each in sorted(found, key=lambda each: (-each["counts"], each["values"]))]
    return _counted(Column(name, "category", (), tuple(order[:levels]), tuple(sorted(order)), ()), column)


def _counted(column: Column, values: Any) -> Column:
    counts = np.bincount(column.place(values), minlength=column.bins)
    return replace(column, counts=tuple(counts.tolist()))


def _calibrated(column: Column, values: Any, days: Codes, span: int) -> Column:
    """With the distance of each window of the history from the rest of it, and the windows' worst shares."""
    codes = column.place(values)
    by_unit = _by_unit(codes, days, column.bins)
    rest = np.asarray(column.counts) - _windows(by_unit, span)
    groups, _ = _among(column, values)
    alone = windows.alone(groups, codes, days, span=span, bins=column.bins)
    inside, beyond = windows.sliding(by_unit, span).copy(), np.zeros(len(rest))
    if column.kind == "category":
        inside = _moved(inside, alone, column.bins - 2)
    else:
        below, above = windows.beyond(numbers(values), codes, days, span=span, bins=column.bins)
        inside = _moved(_moved(inside, below, 0), above, column.bins - 2)
        beyond = (below + above).sum(axis=(1, 2))
    there = counted(days, span)
    history = distance(windows.trimmed_mean(shares(inside, axis=1)), shares(rest))[there]
    rows = np.maximum(inside.sum(axis=(1, 2)), 1)
    counts = (inside[:, -1].sum(axis=1), alone.sum(axis=(1, 2)), beyond)
    worst = np.array([(count / rows)[there].max(initial=0.0) for count in counts])
    if column.kind == "number" and worst[1] > STEPS:
        column = replace(column, known=())
        worst[1] = 0.0
    return replace(column, history=_six(history), worst=_six(worst))


def _moved(counts: Codes, some: Codes, place: int) -> Codes:
    """Windows' counts by bin and unit (windows, bins, span), with `some` of them in the bin at `place`."""
    counts = counts - some
    counts[:, place] += some.sum(axis=1)
    return counts


def window_shares(column: Column, values: Any, units: Codes) -> Floats:
    """The shares by bin (bins) of one window's rows, each of a unit from 0 on."""
    by_unit = _by_unit(column.place(values), units, column.bins)
    return np.asarray(trimmed(shares(by_unit), len(by_unit))[0])


def _by_unit(codes: Codes, days: Codes, bins: int) -> Codes:
    """Counts by unit and bin (units, bins)."""
    units = int(days[-1]) + 1 if len(days) else 0
    return np.bincount(days * bins + codes, minlength=units * bins).reshape(units, bins)


def _windows(by_unit: NDArray[Any], span: int) -> NDArray[Any]:
    """Sums over each `span` units in a row (units, ...) → (windows, ...)."""
    total = np.concatenate([np.zeros_like(by_unit[:1]), np.cumsum(by_unit, axis=0)])
    return np.asarray(total[span:] - total[:-span])


def trimmed(by_unit: Floats, span: int) -> Floats:
    """The trimmed mean of each `span` units in a row (units, ...) → (windows, ...)."""
    return windows.trimmed_mean(windows.sliding(by_unit, span))


def shares(counts: NDArray[Any], axis: int = -1) -> Floats:
    """Counts by bin, along this axis, as shares; NaN where there are no rows."""
    total = counts.sum(axis=axis, keepdims=True)
    return np.asarray(np.where(total > 0, counts / np.maximum(total, 1), np.nan))


def distance(found: Floats, history: Floats) -> Floats:
    """The Jensen-Shannon distance of shares by bin (..., bins); 0 where either has no rows."""
    p, q = (each / np.maximum(each.sum(axis=-1, keepdims=True), 1e-12) for each in (found, history))
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p / middle), 0) + np.where(q > 0, q * np.log2(q / middle), 0)
    there = (p.sum(axis=-1) > 0) & (q.sum(axis=-1) > 0)
    return np.asarray(np.where(there, np.sqrt(np.maximum(terms.sum(axis=-1) / 2, 0)), 0))


def _among(column: Column, values: Any) -> tuple[Codes, int]:
    """Each value's place among the known ones, -1 for none; and how many there are."""
    count = max(len(column.known), 1)
    if column.kind == "category":
        codes = replace(column, levels=column.known).place(values)
        return np.where(codes < len(column.known), codes, -1), count
    held = numbers(values)
    if not column.known:
        return np.full(len(held), -1), count
    return np.where(np.isnan(held), -1, np.minimum(np.searchsorted(column.known, held), count - 1)), count


# --- the regressions -----------------------------------------------------------------------------------------------


def _term(column: Any, level: str | None) -> Floats:
    """A number as it is; of a category, 1 where it is `level`."""
    if level is None:
        return numbers(column)
    import pyarrow as pa
    import pyarrow.compute as pc

    same = pc.equal(whole(column).cast(pa.string()), level).fill_null(False)
    return np.asarray(same.to_numpy(zero_copy_only=False), dtype=np.float64)


def _joint(table: "pa.Table", columns: Sequence[Column], days: Codes, span: int) -> Joint:
    names = [each.name for each in columns]
    least = FEWEST * ((int(days[-1]) + 1 if len(days) else 0) / span)
    wanted = [(i, level) for i, each in enumerate(columns) for level in _levels(each, least)]
    scaled = [(i, level, *_scaling(_term(table[names[i]], level))) for i, level in wanted]
    start = _terms([each for each in scaled if each[-1] > 0])
    terms = start.terms(table, names)
    sums, products = _sums(terms, days)
    pairs = list(_left_out(sums, products, days, span))
    history = tuple(_six(pair[0]) for pair in pairs)
    relations = tuple(map(_six, relation.filled(np.array([pair[1] for pair in pairs]))))
    inverse = _inverse(products.sum(axis=0), sums.sum(axis=0), len(days))
    by_unit = _means(sums, np.bincount(days).astype(float)) - sums.sum(axis=0) / max(len(days), 1)
    unrelated, outside = moderation.unrelated(_standardised(by_unit, inverse), span)
    return replace(
        start,
        inverse=tuple(map(_six, inverse)),
        history=history,
        relations=relations,
        unrelated=_six(unrelated),
        outside=tuple(map(_six, outside[counted(days, span)])),
    )


def _terms(scaled: Sequence[tuple[Any, ...]]) -> Joint:
    column, level, low, high, centre, scale = zip(*scaled, strict=True) if scaled else ((),) * 6
    return Joint(column, level, low, high, centre, scale, inverse=())


def _levels(column: Column, least: float) -> tuple[str | None, ...]:
    """Those of at least so many rows. A category that takes two values has one indicator."""
    if column.kind == "number":
        return (None,)
    common = [level for level, count in zip(column.levels, column.counts, strict=False) if count >= least]
    return tuple(common[: min(INDICATORS, max(len(column.levels) - 1, 1))])


def _scaling(values: Floats) -> tuple[float, float, float, float]:
    """Where a term is clipped, its centre and its deviation. Deviation 0: it is the same everywhere."""
    there = values[~np.isnan(values)]
    if not len(there):
        return 0.0, 0.0, 0.0, 0.0
    low, high = np.quantile(there, [CLIP, 1 - CLIP])
    if low == high:
        low, high = there.min(), there.max()
    held = np.clip(there, low, high)
    return float(low), float(high), float(held.mean()), float(held.std())


def _sums(terms: NDArray[np.float32], days: Codes) -> tuple[Floats, Floats]:
    """Of each unit: the sums of the terms (units, k) and of their products (units, k, k)."""
    from threadpoolctl import threadpool_limits

    units, k = (int(days[-1]) + 1 if len(days) else 0), terms.shape[1]
    starts = np.searchsorted(days, np.arange(units + 1))
    sums, products = np.zeros((units, k)), np.zeros((units, k, k))
    with threadpool_limits(1):  # for so small a product more threads only wait, and their sums end in other digits
        for i in range(units):
            part = terms[starts[i] : starts[i + 1]].astype(np.float64)
            sums[i], products[i] = part.sum(axis=0), part.T @ part
    return sums, products


def _left_out(sums: Floats, products: Floats, days: Codes, span: int) -> Iterator[tuple[Floats, Floats]]:
    """Of each window: what the rest's regressions leave of it (k), and how far it goes with them (k)."""
    rows = np.bincount(days, minlength=len(sums)).astype(float) if len(days) else np.zeros(0)
    all_rows, all_sums, all_products = rows.sum(), sums.sum(axis=0), products.sum(axis=0)
    for i in np.flatnonzero(counted(days, span)).tolist():
        inside = slice(i, i + span)
        rest, rest_sums = all_rows - rows[inside].sum(), all_sums - sums[inside].sum(axis=0)
        inverse = _inverse(all_products - products[inside].sum(axis=0), rest_sums, rest)
        rest_means = rest_sums / max(rest, 1)
        together = relation.agreement(sums[inside], products[inside], rows[inside], relation.slopes(inverse))
        yield left(_means(sums[inside], rows[inside]) - rest_means, inverse), together


def _means(sums: Floats, rows: Floats) -> Floats:
    """Of each unit (units, k); NaN where it has no rows."""
    return np.asarray(np.where(rows[:, None] > 0, sums / np.maximum(rows[:, None], 1), np.nan))


def left(shifts: Floats, inverse: Floats) -> Floats:
    """Shifts of a window's units (units, k) → what the other terms do not explain of them, in deviations of it (k)."""
    return np.asarray(trimmed(_standardised(shifts, inverse), len(shifts))[0]) if len(inverse) else np.zeros(0)


def _standardised(shifts: Floats, inverse: Floats) -> Floats:
    """What the other terms do not explain of each unit's shifts (units, k), in deviations of it."""
    return np.asarray(shifts @ inverse / np.sqrt(np.diag(inverse)))


def _inverse(products: Floats, sums: Floats, rows: float) -> Floats:
    """The inverse of the terms' covariances, which are all but correlations, with a ridge."""
    mean = sums / max(rows, 1)
    covariance = products / max(rows, 1) - np.outer(mean, mean)
    return np.asarray(np.linalg.inv(covariance + RIDGE * np.eye(len(mean)))) if len(mean) else np.zeros((0, 0))


def _six(values: Any) -> Any:
    """Six digits: the rest is the machine's."""
    return tuple(float(f"{value:.6g}") for value in np.asarray(values, dtype=np.float64).tolist())
