"""predict: rows of features → answers, the journal's rows of them, and the reasons for them.

Features come as an Arrow table, from features.sql, or as columns of plain values, as somebody sent them. Of a few rows
Arrow and a call of XGBoost cost more than anything else: so plain columns become the matrix at once, and plain rows of
the journal.
"""

import contextlib
import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import repeat
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.serving import schema, tables, versions
from tasks.serving.margins import find_margins
from tasks.serving.plainrows import PlainRows, table_of
from tasks.training.model import Feature, Floats, Spec

TICK, EPOCH = timedelta(microseconds=1), datetime(1970, 1, 1)
FEW = 64  # rows that are scored and journalled in a way that suits one
LONGEST = 1000  # characters of a text
LARGEST = 10**308  # of a whole number: a larger one is no float
LARGEST_SINGLE = 3e38  # below what a float32 holds
PLAIN = frozenset({int, float, bool, type(None)})
TEXT = frozenset({str, type(None)})


@dataclass(frozen=True)
class Answered:
    """Predictions of n rows: what is sent, and the journal's rows of them."""

    version: int
    entries: list[str]
    scores: Floats
    record: pa.Table | PlainRows
    spec: Spec
    stale: Sequence[bool] = ()  # whether the state was too old for each row; empty where it was not

    @property
    def rows(self) -> pa.Table:
        """The journal's rows, in Arrow."""
        return table_of(self.record)

    def to_dicts(self) -> list[dict[str, Any]]:
        """The answers as they are sent."""
        rows = zip(self.entries, plain_scores(self.scores, self.spec), decide(self.scores, self.spec), strict=True)
        answers = [
            {"id": entry, "version": self.version, "score": score, "decision": decision}
            for entry, score, decision in rows
        ]
        for place in np.flatnonzero(self.stale):
            answers[place]["stale"] = True
        return answers


def plain_scores(scores: Floats, spec: Spec) -> list[Any]:
    """Each row's score as JSON takes it: a number, or a number for each class."""
    rows: list[Any] = scores.tolist()
    if spec.task != "multiclass":
        return rows
    names = [*map(str, spec.classes)]
    return [dict(zip(names, row, strict=True)) for row in rows]


def decide(scores: Floats, spec: Spec) -> list[Any]:
    """Each row's decision: positive at the threshold, or the likeliest class; None for a number."""
    if spec.task == "multiclass":
        return [spec.classes[place] for place in np.argmax(scores, axis=1)]
    if spec.task == "regression":
        return [None] * len(scores)
    decisions: list[Any] = (scores >= (0.5 if spec.threshold is None else spec.threshold)).tolist()
    return decisions


def answer(
    champion: versions.Champion,
    table: pa.Table,
    *,
    by: schema.By,
    arm: schema.Arm = "champion",
    subjects: Sequence[str],
    times: Sequence[datetime],
    keys: Mapping[str, Sequence[Any]],
    stale: Sequence[bool] = (),
    entries: list[str] | None = None,
    sources: Sequence[str] = (),
) -> Answered:
    """Predict rows of features.

    Args:
        subjects: what each row is about; `times` are the event times, `keys` the columns of the spine table's key.
        stale: whether the state was too old for each row; `score` predicts such rows again.
        entries: the rows' names in the journal. By default the same version gives the same row with the same features
            the same name, and in the shadow another: promoted, it may answer that row.
        sources: where each row came from, if the journal should say so.

    Raises:
        ValueError: the features do not fit the model.
    """
    matrix = champion.model.spec.encode(table)
    if not entries:
        key = f"{champion.number}{' shadow' if arm == schema.SHADOW else ''}".encode()
        parts = zip(subjects, times, matrix, strict=True)
        entries = [
            hashlib.blake2b(f"{subject} {moment}".encode() + row.tobytes(), digest_size=16, key=key).hexdigest()
            for subject, moment, row in parts
        ]
    columns = {name: table[name] for name in champion.model.spec.names}
    return _answered(champion, matrix, columns, entries, by, arm, subjects, times, keys, stale, sources)


def answer_columns(
    champion: versions.Champion,
    sent: Mapping[str, Sequence[Any]],
    *,
    by: schema.By,
    arm: schema.Arm = "champion",
    subjects: Sequence[str],
    at: datetime,
) -> Answered:
    """Predict columns of plain values, one for each subject; what is not sent is missing. No other row has these
    subjects.

    Raises:
        Refused: the model cannot take a value.
    """
    spec, count = champion.model.spec, len(subjects)
    matrix = encoded(spec, sent, count)
    entries = [schema.make_entry(subject, champion.number) for subject in subjects]
    if count <= FEW:
        return _answer_few(champion, matrix, sent, entries, by, arm, subjects, at)
    columns = {feature.name: _column(feature, matrix[:, i], sent) for i, feature in enumerate(spec.features)}
    return _answered(champion, matrix, columns, entries, by, arm, subjects, [at] * count, {}, (), ())


def _answer_few(
    champion: versions.Champion,
    matrix: NDArray[np.float32],
    sent: Mapping[str, Sequence[Any]],
    entries: list[str],
    by: schema.By,
    arm: schema.Arm,
    subjects: Sequence[str],
    at: datetime,
) -> Answered:
    """What `_answered` makes of the same rows, without Arrow."""
    spec, count = champion.model.spec, len(entries)
    scores = _score(champion, matrix)
    numbers = matrix.T.tolist()
    features = [
        numbers[i] if feature.kind == "number" else sent.get(feature.name) or [None] * count
        for i, feature in enumerate(spec.features)
    ]
    times = [to_microseconds(at)] * count, [to_microseconds(datetime.now(UTC).replace(tzinfo=None))] * count
    whose = [by] * count, [arm] * count, [champion.number] * count, [False] * count
    columns = [entries, *times, subjects, *whose, scores.tolist(), *features]
    return Answered(champion.number, entries, scores, PlainRows(champion.journal_schema, columns), spec)


def _score(champion: versions.Champion, matrix: NDArray[np.float32]) -> Floats:
    """`predict_matrix`, faster for a few rows."""
    model = champion.model
    if len(matrix) > FEW:
        return model.predict_matrix(matrix).astype(np.float64)
    scores = model.from_margins(find_margins(model.booster, matrix), model.spec.find_offset(matrix))
    return scores.astype(np.float64, copy=False)


def to_microseconds(moment: datetime) -> int:
    """Since 1970, of a naive UTC timestamp."""
    return (moment - EPOCH) // TICK


def _column(feature: Feature, codes: Floats, sent: Mapping[str, Sequence[Any]]) -> Any:
    if feature.kind == "number":
        return pa.array(codes, from_pandas=True)  # what is no number is missing
    return pa.array(sent[feature.name], pa.string()) if feature.name in sent else pa.nulls(len(codes), pa.string())


def _answered(
    champion: versions.Champion,
    matrix: NDArray[np.float32],
    columns: Mapping[str, Any],
    entries: list[str],
    by: schema.By,
    arm: schema.Arm,
    subjects: Sequence[str],
    times: Sequence[datetime],
    keys: Mapping[str, Sequence[Any]],
    stale: Sequence[bool],
    sources: Sequence[str],
) -> Answered:
    scores, count = _score(champion, matrix), len(entries)
    rows = {
        "entry": pa.array(entries, pa.string()),
        "event_time": timestamps(times),
        "made_at": timestamps([datetime.now(UTC).replace(tzinfo=None)] * count),
        "subject": pa.array(subjects, pa.string()),
        "by": pa.repeat(by, count),
        "arm": pa.repeat(arm, count),
        "version": pa.repeat(champion.number, count),
        "stale": pa.array(stale, pa.bool_()) if len(stale) else pa.repeat(False, count),
        "score": score_column(scores),
        **({schema.SOURCE: pa.array(sources, pa.string())} if sources else {}),
        **{f"{schema.KEY}{name}": pa.array(values) for name, values in keys.items()},
        **{f"{schema.FEATURE}{name}": values for name, values in columns.items()},
    }
    return Answered(champion.number, entries, scores, pa.table(rows), champion.model.spec, stale)


def score_column(scores: Floats) -> pa.Array:
    """A number for each row, or a list of a probability for each class."""
    return pa.array(scores.tolist(), pa.float64() if scores.ndim == 1 else pa.list_(pa.float64()))


def timestamps(times: Sequence[datetime]) -> pa.Array:
    """Moments as an Arrow column. Where all are the same, one conversion is enough: each costs microseconds."""
    kind = pa.timestamp("us")
    alike = len(times) > 1 and times.count(times[0]) == len(times)
    return pa.repeat(pa.scalar(times[0], kind), len(times)) if alike else pa.array(times, kind)


# --- plain values --------------------------------------------------------------------------------------------------


def refuse_unknown(spec: Spec, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises Refused for the first name that is no feature: before there is a column for each that somebody made up."""
    for place, row in enumerate(rows):
        if not row.keys() <= spec.codes.keys():
            _refuse_unknown(place, next(name for name in row if name not in spec.codes))


def _refuse_unknown(row: int, name: str) -> NoReturn:
    raise tables.Refused(row, name[:100], "is no feature of this model")


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows → columns; a name that a row lacks is missing there."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def encoded(spec: Spec, sent: Mapping[str, Sequence[Any]], count: int) -> NDArray[np.float32]:
    """Columns of plain values → matrix (count, features), as spec.encode makes it of a table.

    Raises Refused for a name or a value that the model cannot take.
    """
    if not sent.keys() <= spec.codes.keys():
        name = next(name for name in sent if name not in spec.codes)
        _refuse_unknown(next((place for place, value in enumerate(sent[name]) if value is not None), 0), name)
    if count == 1 and (row := _encode_row(spec, sent)) is not None:
        return row
    matrix = np.full((count, len(spec.features)), np.nan, dtype=np.float32)
    with np.errstate(over="ignore"):
        for i, feature in enumerate(spec.features):
            if feature.name in sent:
                values, codes = sent[feature.name], spec.codes[feature.name]
                is_text = feature.kind == "category"
                matrix[:, i] = encode_texts(feature, values, codes) if is_text else encode_numbers(feature, values)
    matrix[~np.isfinite(matrix)] = np.nan  # as features.sql: what is not finite is missing
    return matrix


def _encode_row(spec: Spec, sent: Mapping[str, Sequence[Any]]) -> NDArray[np.float32] | None:
    """A matrix of one row, several times as fast. None where a value asks for a closer look."""
    values: list[float] = []
    for name, kind, codes in spec.plan:
        value = sent[name][0] if name in sent else None
        if value is None:
            values.append(math.nan)
        elif kind == "category":
            if type(value) is not str or len(value) > LONGEST:
                return None
            values.append(codes.get(value, math.nan))
        elif (type(value) is float or type(value) is int) and -LARGEST_SINGLE < value < LARGEST_SINGLE:
            values.append(value)
        else:
            return None
    return np.array([values], np.float32)


def encode_texts(feature: Feature, values: Sequence[Any], codes: Mapping[str, int]) -> NDArray[np.float32]:
    """The code of each text; NaN for one that is missing or unknown."""
    if not set(map(type, values)) <= TEXT or any(len(value) > LONGEST for value in set(values) if value):
        raise _refused(feature, values)
    return np.fromiter(map(codes.get, values, repeat(np.nan)), np.float32, len(values))


def encode_numbers(feature: Feature, values: Sequence[Any]) -> "array[float] | NDArray[np.float32]":
    """`array` takes a column of numbers several times as fast as NumPy, and refuses anything else."""
    with contextlib.suppress(OverflowError):
        try:
            return array("d", values)
        except TypeError:  # something is missing, or is no number
            if set(map(type, values)) <= PLAIN:
                return np.array(values, dtype=np.float32)
    raise _refused(feature, values)


def _refused(feature: Feature, values: Sequence[Any]) -> tables.Refused:
    """The first of these that is to blame."""
    place = next(place for place, value in enumerate(values) if not _fits(feature, value))
    rules = {"category": f"must be a category of {LONGEST:,} characters at most", "number": "must be a number"}
    return tables.Refused(place, feature.name, rules[feature.kind])


def _fits(feature: Feature, value: Any) -> bool:
    if feature.kind == "category":
        return type(value) in TEXT and len(value or "") <= LONGEST
    return type(value) in PLAIN and not (type(value) is int and abs(value) > LARGEST)


# --- reasons -------------------------------------------------------------------------------------------------------


def reasons(champion: versions.Champion, rows: pa.Table, most: int) -> list[list[dict[str, Any]]]:
    """Of each of the journal's rows, the features that moved its score most, the strongest first: by SHAP, in units of
    the margin (log-odds for probabilities), of the likeliest class where there are several."""
    spec = champion.model.spec
    table = pa.table({name: rows[f"{schema.FEATURE}{name}"] for name in spec.names})
    parts = champion.model.contributions(table)
    if parts.ndim == 3:
        likeliest = np.argmax(np.asarray(rows["score"].to_pylist()), axis=1)
        parts = parts[np.arange(len(parts)), likeliest]
    return [_strongest(spec.names, part, row, most) for part, row in zip(parts, table.to_pylist(), strict=True)]


def _strongest(names: Sequence[str], part: Floats, row: Mapping[str, Any], most: int) -> list[dict[str, Any]]:
    order = np.argsort(-np.abs(part), kind="stable")[:most]
    return [{"feature": names[i], "value": row[names[i]], "effect": float(part[i])} for i in order]
