"""Rows for the journal in tests: only what a test is about is given, and the rest is filled in."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.serving.schema import COLUMNS, Kind

NOON = datetime(2024, 1, 1, 12)
FILLED: Mapping[str, Any] = {
    "by": "batch",
    "arm": "champion",
    "version": 1,
    "stale": False,
    "score": 0.5,
    "made_at": NOON,
    "event_time": NOON,
    "known_at": NOON,
    "prediction": None,
    "label": 1.0,
}


def predictions(entries: Sequence[str], **columns: Any) -> pa.Table:
    """The subject of a row is its entry, unless the test gives it."""
    return _rows("predictions", entries, {"subject": entries, **columns})


def outcomes(entries: Sequence[str], **columns: Any) -> pa.Table:
    return _rows("outcomes", entries, {"subject": [None] * len(entries), **columns})


def _rows(kind: Kind, entries: Sequence[str], columns: Mapping[str, Any]) -> pa.Table:
    given = {"entry": entries, **columns}
    types = {name: None if alias == "any" else pa.type_for_alias(alias) for name, alias in COLUMNS[kind].items()}
    filled = {name: FILLED[name] for name in types if name not in given}
    return pa.table(
        {name: _column(value, types.get(name), len(entries)) for name, value in {**filled, **given}.items()}
    )


def _column(value: Any, kind: Any, count: int) -> Any:
    if isinstance(value, pa.ChunkedArray | pa.Array):
        return value
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        value = [value] * count
    return pa.array(value, kind)
