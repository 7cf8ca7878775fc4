"""The feature rows that the stage writes: their columns, and how to read them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.data import periods

META = ("_event_time", "_known_at", "_label")  # columns beside the features
KEY = "_key_"  # begins the names of the spine's key columns


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
        return Rows(
            self.table.filter(mask),
            self.event_time[mask],
            self.known_at[mask],
            self.label[mask],
            None if self.keys is None else self.keys.filter(mask),
        )

    def __reduce__(self) -> Any:
        """Arrow forgets how many rows a table without columns has when it travels."""
        has_none = self.keys is not None and not self.keys.num_columns
        return _restore, (self.table, self.event_time, self.known_at, self.label, has_none or self.keys)


def _restore(
    table: pa.Table,
    event_time: NDArray[np.datetime64],
    known_at: NDArray[np.datetime64],
    label: NDArray[Any],
    keys: pa.Table | bool | None,
) -> Rows:
    return Rows(table, event_time, known_at, label, table.select([]) if keys is True else keys)


def read_rows(features: Path) -> Rows:
    """All the feature rows of a folder that the features stage has written."""
    parts = [pq.read_table(path) for _, path in periods.list_files(features)]
    if not parts:
        raise ValueError(f"{features} holds no feature rows: run the stages before this one (dvc repro)")
    table = pa.concat_tables(parts)
    event_time, known_at, label = (table[name] for name in META)
    if pa.types.is_boolean(label.type):
        label = label.cast(pa.int8())
    if not pa.types.is_string(label.type):
        label = label.cast(pa.float64())
    keys = table.select([name for name in table.column_names if name.startswith(KEY)])
    keys = keys.rename_columns([name.removeprefix(KEY) for name in keys.column_names])
    return Rows(
        table.select([name for name in table.column_names if not name.startswith("_")]),
        event_time.to_numpy(),
        known_at.to_numpy(),
        label.to_numpy(),
        keys,
    )
