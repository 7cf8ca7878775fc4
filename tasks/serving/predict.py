"""predict: rows of features → answers, and the journal's rows of them."""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.model import Floats, Spec
from tasks.serving.live import Champion, Refused

if TYPE_CHECKING:
    import pyarrow as pa

EPOCH, TICK = datetime(1970, 1, 1), timedelta(microseconds=1)


@dataclass(frozen=True)
class Answered:
    """Of n rows: what is sent, and what is journalled before that."""

    version: int
    ids: list[str]
    scores: Floats
    rows: "pa.Table"
    spec: Spec

    def told(self) -> list[dict[str, Any]]:
        return [
            {"id": name, **_told(score, self.spec)} for name, score in zip(self.ids, self.scores.tolist(), strict=True)
        ]


def _told(score: Any, spec: Spec) -> dict[str, Any]:
    if spec.task == "multiclass":
        likeliest = spec.classes[int(np.argmax(score))]
        return {"score": dict(zip(map(str, spec.classes), score, strict=True)), "decision": likeliest}
    if spec.task == "regression":
        return {"score": score, "decision": None}
    return {"score": score, "decision": score >= (spec.threshold if spec.threshold is not None else 0.5)}


def answer(
    champion: Champion,
    table: "pa.Table",
    *,
    subjects: Sequence[str],
    times: Sequence[datetime],
    keys: Mapping[str, Sequence[Any]],
) -> Answered:
    """`subjects` name what the rows are about, at these event times. Raises ValueError for features that do not fit."""
    import pyarrow as pa

    spec = champion.model.spec
    scores = champion.model.predict(table).astype(np.float64)
    matrix = spec.encode(table)
    parts = zip(subjects, matrix, times, strict=True)
    ids = [_id(subject, champion.number, row, at) for subject, row, at in parts]
    count, now = len(ids), datetime.now(UTC).replace(tzinfo=None)
    kind = pa.float64() if scores.ndim == 1 else pa.list_(pa.float64())
    rows = {
        "entry": pa.array(ids, pa.string()),
        "made_at": pa.array([now] * count, pa.timestamp("us")),
        "version": pa.array([champion.number] * count, pa.int64()),
        "event_time": pa.array(times, pa.timestamp("us")),
        "score": pa.array(scores.tolist(), kind),
        **{f"key_{name}": pa.array(values) for name, values in keys.items()},
        **{f"x_{name}": table[name] for name in spec.names},
    }
    return Answered(champion.number, ids, scores, pa.table(rows), spec)


def _id(subject: str, version: int, row: Floats, at: datetime) -> str:
    """Asked again with the same features, of the same version, it is the same prediction; else it is another of the
    same subject (tasks.journal.subject). It tells its event time, for an outcome is kept beside it."""
    told = hashlib.blake2b(row.tobytes(), digest_size=8, key=str(version).encode()).hexdigest()
    return f"{subject}.{told}.{(at - EPOCH) // TICK:x}"


def event_time_of(name: str) -> datetime | None:
    """The event time of the prediction of this id; None for an id that is none of ours."""
    with contextlib.suppress(ValueError, OverflowError):
        _, told, at = name.split(".")
        return EPOCH + int(at, 16) * TICK if len(told) == 16 else None
    return None


def table_of(spec: Spec, rows: Sequence[Mapping[str, Any]]) -> "pa.Table":
    """Rows as they were sent → feature columns. Raises Refused for a name or a value that the model cannot take."""
    import pyarrow as pa

    kinds = {each.name: each.kind for each in spec.features}
    for place, row in enumerate(rows):
        for name, value in row.items():
            if name not in kinds:
                raise Refused(place, name, "is no feature of this model")
            if value is not None and isinstance(value, str) != (kinds[name] == "category"):
                raise Refused(place, name, f"must be a {kinds[name]}")
    types = {"number": pa.float32(), "category": pa.string()}
    return pa.table({name: pa.array([row.get(name) for row in rows], types[kind]) for name, kind in kinds.items()})
