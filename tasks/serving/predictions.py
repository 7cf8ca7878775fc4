"""predictions: for readers of the journal: which predictions count, their features, and the outcome of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.serving.journal import Journal
from tasks.serving.schema import FEATURE
from tasks.training.model import Spec

EARLY = timedelta(days=7)  # the API files an outcome when it arrives, which a clock may place before its row's event


def select_version(rows: pa.Table, number: int) -> pa.Table:
    """Those of one version of the model."""
    return rows.filter(pc.equal(rows["version"], number))


def drop_stale(rows: pa.Table) -> pa.Table:
    """Without the answers of a state that was too old for their rows: their features lack what was known."""
    return rows.filter(~_is_stale(rows))


def drop_superseded(rows: pa.Table) -> pa.Table:
    """Without the stale answers to rows that were predicted again since: such a row counts once, with its features."""
    stale = _is_stale(rows)
    if not stale.any():
        return rows
    subjects = np.array(rows["subject"].to_pylist())
    return rows.filter(~(stale & np.isin(subjects, subjects[~stale])))


def _is_stale(rows: pa.Table) -> NDArray[np.bool_]:
    return np.array(rows["stale"].to_pylist(), dtype=bool)


def last_of_each_subject(rows: pa.Table) -> pa.Table:
    """Of several predictions of one row, which the API may have been asked for, the last that was made."""
    subjects, times = rows["subject"].to_pylist(), rows["made_at"].to_pylist()
    last = {subjects[place]: place for place in sorted(range(rows.num_rows), key=times.__getitem__)}
    return rows.take(pa.array(sorted(last.values()), pa.int64()))


def features_of(rows: pa.Table, spec: Spec) -> pa.Table:
    """A model's features as the journal's rows hold them; one that was not journalled is missing."""
    types = {"number": pa.float64(), "category": pa.string()}
    columns = {feature.name: (f"{FEATURE}{feature.name}", types[feature.kind]) for feature in spec.features}
    return pa.table({name: _typed(column, kind, rows) for name, (column, kind) in columns.items()})


def _typed(name: str, kind: pa.DataType, rows: pa.Table) -> Any:
    """A column that another version journalled as text is read as numbers again, or is missing."""
    if name not in rows.column_names:
        return pa.nulls(rows.num_rows, kind)
    if pa.types.is_floating(kind) and not pa.types.is_string(rows[name].type):
        return rows[name]
    try:
        return rows[name].cast(kind)
    except pa.ArrowInvalid:
        return pa.nulls(rows.num_rows, kind)


@dataclass(frozen=True)
class Outcomes:
    """The latest label of each prediction, and of each row for all of its predictions."""

    by_prediction: Mapping[str, Any]
    by_subject: Mapping[str, Any]

    def label_of(self, entry: str, subject: str) -> Any:
        """The label of a prediction, given for itself or for its row; None where there is none yet."""
        return self.by_prediction.get(entry, self.by_subject.get(subject))

    def labels_of(self, predictions: pa.Table) -> list[Any]:
        """The same of each of the journal's rows."""
        return list(map(self.label_of, predictions["entry"].to_pylist(), predictions["subject"].to_pylist()))


def read_outcomes(journal: Journal, *, since: datetime) -> pa.Table:
    """The outcomes of predictions with event_time >= since, and others: they may arrive at any time after."""
    return journal.read("outcomes", since=max(since, datetime.min + EARLY) - EARLY)


def latest_outcomes(rows: pa.Table) -> Outcomes:
    """Of several outcomes of one prediction or row, the one that was journalled last."""
    ordered = in_order(rows)
    by = {name: {row[name]: row["label"] for row in ordered if row[name]} for name in ("prediction", "subject")}
    return Outcomes(by["prediction"], by["subject"])


def in_order(rows: pa.Table) -> list[dict[str, Any]]:
    """Outcomes in the order in which they were journalled."""
    columns = ["entry", "prediction", "subject", "label", "made_at"]
    return sorted(rows.select(columns).to_pylist(), key=lambda row: row["made_at"])
