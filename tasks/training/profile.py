"""profile.json: what a model's history looked like, and how far windows of it lay from the rest; evaluate writes it.

A window of the monitor's length slides over the history and is compared with what is left. So each column has a sample
of the distances that it shows when nothing is wrong, with the season, the weather and whatever else makes its days
alike; tasks/monitoring/drift.py compares a new window with it. Nothing here decides what is an alarm.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter

from tasks.data.storedrows import AnyRows
from tasks.runtime.files import Format
from tasks.training import digits, windows
from tasks.training.columns import Column, profile_column
from tasks.training.joint import Joint, profile_joint
from tasks.training.labels import EarlyLabels
from tasks.training.windows import Floats, Times

FORMAT = Format("profile", 1)
SCORE_COLUMN = "_score"  # no feature begins so


@dataclass(frozen=True)
class Profile:
    """The rows that a model was made of, as its drift is measured against them.

    Args:
        until: the end of the history.
        unit: by how much windows slide.
        weights: each column's share of the model's importance.
        scores: the predictions, of rows that the model had not seen.
        contributions: the twin's mean SHAP values on the holdout, in its spec's order; by class first.
        labelled: the least share of mature rows with a label in any window (labels.py).
        early_labels: the same, of rows well before their deadline.
    """

    until: datetime
    window: timedelta
    unit: timedelta
    rows: int
    columns: tuple[Column, ...]
    weights: tuple[float, ...]
    joint: Joint
    scores: tuple[Column, ...]
    contributions: tuple[float, ...] | tuple[tuple[float, ...], ...] = ()
    labelled: float | None = None
    early_labels: EarlyLabels | None = None
    __pydantic_config__ = ConfigDict(ser_json_timedelta="float")  # the file has lengths of time in seconds

    @cached_property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def span(self) -> int:
        """Units in a window."""
        return windows.units_in(self.window)

    def to_json(self) -> str:
        content = TypeAdapter(Profile).dump_python(self, mode="json")
        return json.dumps({"format": FORMAT.mark} | content, separators=(",", ":"))

    @staticmethod
    def load(path: Path) -> "Profile":
        """Raises ValueError where there is none, and for a file in another format."""
        if not path.exists():
            raise ValueError(f"{path} is missing: run the evaluate stage, which writes it")
        raw = json.loads(path.read_text())
        FORMAT.check(raw.pop("format", None), path)
        return TypeAdapter(Profile).validate_python(raw)


def build_profile(
    rows: AnyRows,
    *,
    names: Sequence[str] | None = None,
    importance: Mapping[str, float],
    contributions: Floats,
    scores: Mapping[str, Floats],
    score_times: Times,
    until: datetime,
    window: timedelta,
    labelled: float | None = None,
    early_labels: EarlyLabels | None = None,
) -> Profile:
    """The profile of a history.

    Args:
        rows: the history's (n); one column of all of them is in memory at a time.
        names: of the features that the model sees; None: all.
        importance: of each feature to the model.
        scores: predictions of rows that the model had not seen (m), by the column's name.
        score_times: of each of those rows (m).
    """
    unit, span = windows.choose_unit(window), windows.units_in(window)
    names = sorted(rows.schema.names if names is None else names)
    units = windows.shorten_pauses(windows.number_units(rows.event_time, unit), span)
    columns = tuple(profile_column(name, rows.read_column(name), units, span) for name in names)
    score_units = windows.shorten_pauses(windows.number_units(score_times, unit), span)
    arrays = {name: pa.array(np.asarray(values, dtype=np.float64)) for name, values in scores.items()}
    total = sum(importance.get(name, 0.0) for name in names) or 1.0
    return Profile(
        until=until,
        window=window,
        unit=unit,
        rows=len(rows),
        columns=columns,
        weights=tuple(round(importance.get(name, 0.0) / total, 6) for name in names),
        joint=profile_joint(rows, columns, units, span),
        scores=tuple(profile_column(name, array, score_units, span) for name, array in arrays.items()),
        contributions=digits.to_tuples(contributions),
        labelled=labelled,
        early_labels=early_labels,
    )


def to_score_columns(predictions: Floats, classes: Sequence[Any]) -> dict[str, Floats]:
    """Predictions (n,) or (n, classes) as columns: one, or one a class."""
    if predictions.ndim == 1:
        return {SCORE_COLUMN: predictions}
    return {f"{SCORE_COLUMN} {name}": predictions[:, i] for i, name in enumerate(classes)}


def draw_evenly(rows: int, size: int) -> NDArray[np.intp]:
    """At most `size` places among so many rows, drawn evenly."""
    return np.unique(np.linspace(0, max(rows - 1, 0), min(size, rows)).astype(np.intp))
