"""outcomes: which outcome a prediction has, from the journal's rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from tasks.serving.journal import Journal

EARLY = timedelta(days=7)  # the API files an outcome when it arrives, which a clock may place before its row's event


@dataclass(frozen=True)
class Outcomes:
    """The latest label of each prediction, and of each row for all of its predictions."""

    by_prediction: Mapping[str, Any]
    by_subject: Mapping[str, Any]

    def label_of(self, entry: str, subject: str) -> Any:
        """The label of a prediction, told for itself or for its row; None where there is none yet."""
        return self.by_prediction.get(entry, self.by_subject.get(subject))

    def labels_of(self, predictions: pa.Table) -> list[Any]:
        """The same of each of the journal's rows."""
        if not predictions.num_rows:
            return []
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
    if not rows.num_rows:
        return []
    columns = ["entry", "prediction", "subject", "label", "made_at"]
    return sorted(rows.select(columns).to_pylist(), key=lambda row: row["made_at"])
