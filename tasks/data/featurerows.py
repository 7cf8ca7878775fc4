"""The feature rows that the stage writes: their columns, and how to read them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.data import periods

META = ("_event_time", "_known_at", "_label")
KEY = "_key_"


def _stored(path: Path) -> pa.Table:
    """The features of a period's file, without the columns that stand beside them."""
    table = pq.read_table(path)
    return table.select([name for name in table.column_names if not name.startswith("_")])


def _beside(meta: pa.Table, found: pa.Table) -> pa.Table:

    return pa.table({name: table[name] for table in (meta, found) for name in table.column_names})


@dataclass(frozen=True)
class Rows:
    """Feature rows in the order of time. `label` is NaN where a row has none; a class label keeps its own type.

    `keys` are the spine's key columns, for those who must name a row.
    """

    table: pa.Table
    event_time: NDArray[np.datetime64]
    known_at: NDArray[np.datetime64]
    label: NDArray[Any]
    keys: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.event_time)

    def take(self, mask: NDArray[np.bool_]) -> "Rows":
        keys = None if self.keys is None else self.keys.filter(mask)
        return Rows(self.table.filter(mask), self.event_time[mask], self.known_at[mask], self.label[mask], keys)


def read_rows(features: Path) -> Rows:
    """All the feature rows of a folder that this stage has written."""
    parts = [pq.read_table(path) for _, path in periods.list_files(features)]
    if not parts:
        raise ValueError(f"{features} holds no feature rows: run the stages before this one (dvc repro)")
    table = pa.concat_tables(parts)
    names = [name for name in table.column_names if not name.startswith("_")]
    event_time, known_at = (table[name].to_numpy() for name in META[:2])
    keys = table.select([name for name in table.column_names if name.startswith(KEY)])
    keys = keys.rename_columns([name.removeprefix(KEY) for name in keys.column_names])
    return Rows(table.select(names), event_time, known_at, _labels(table["_label"]), keys)


def _labels(column: Any) -> NDArray[Any]:
    """Numbers and booleans as float64 with NaN; text as objects with None."""
    if pa.types.is_string(column.type):
        labels: NDArray[Any] = column.to_numpy()
        return labels
    return column.cast(pa.int8() if pa.types.is_boolean(column.type) else column.type).cast(pa.float64()).to_numpy()  # type: ignore[no-any-return]
