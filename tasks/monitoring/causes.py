"""causes: which columns moved the scores, and which groups of rows lost most. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.monitoring.drift import Comparison
from tasks.training.model import Floats, Model
from tasks.training.profile import Profile


@dataclass(frozen=True)
class Cause:
    """A column's part in where the scores went. `shift`: of its mean SHAP value, in units of the margin."""

    name: str
    shift: float
    score: float  # how far the column moved, in deviations
    change: str


@dataclass(frozen=True)
class Slice:
    """A group of rows with its mean loss at promotion and now."""

    name: str
    value: str
    rows: int
    loss_then: float
    loss_now: float


def find_causes(twin: Model, table: pa.Table, profile: Profile, comparison: Comparison) -> list[Cause]:
    """What each column's move did to the scores, the largest first: the mean SHAP value of these rows less that of the
    holdout. Of several classes, the class that moved most."""
    shift = twin.contributions(table).mean(axis=0) - np.array(profile.contributions)
    by_feature = shift if shift.ndim == 1 else shift[np.argmax(np.abs(shift).sum(axis=1))]
    by_name = {column.name: column for column in comparison.columns}
    causes = []
    for place in np.argsort(-np.abs(by_feature), kind="stable"):
        name = twin.spec.names[place]
        column = by_name.get(name)
        score, change = (column.score, column.change) if column else (0.0, "")
        causes.append(Cause(name, float(by_feature[place]), score, change))
    return causes


def find_slices(
    then: Mapping[str, NDArray[Any]],
    losses_then: Floats,
    now: Mapping[str, NDArray[Any]],
    losses_now: Floats,
    *,
    min_rows: int,
) -> list[Slice]:
    """The groups of at least `min_rows` rows now, those that lost most first."""
    slices = [
        Slice(name, str(value), int(inside.sum()), float(losses_then[before].mean()), float(losses_now[inside].mean()))
        for name in sorted(then.keys() & now.keys())
        for value in sorted({value for value in now[name].tolist() if value is not None}, key=str)
        if (inside := now[name] == value).sum() >= min_rows and (before := then[name] == value).any()
    ]
    return sorted(slices, key=lambda group: group.loss_then - group.loss_now)
