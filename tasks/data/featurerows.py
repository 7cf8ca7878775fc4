"""The feature rows that the stage writes: their columns, and how to read them into memory.

storedrows.py has those of a table that is larger than memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.data import periods
from tasks.params.values import suggest

EVENT_TIME, KNOWN_AT, LABEL = META = ("_event_time", "_known_at", "_label")  # columns beside the features
KEY = "_key_"  # begins the names of the spine's key columns
BLOCK_ROWS = 1 << 17  # with all their features, in a block


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

    @property
    def schema(self) -> pa.Schema:
        """Of the features."""
        return self.table.schema

    def take(self, mask: NDArray[np.bool_]) -> "Rows":
        return Rows(
            self.table.filter(mask),
            self.event_time[mask],
            self.known_at[mask],
            self.label[mask],
            None if self.keys is None else self.keys.filter(mask),
        )

    def slice(self, begin: int, end: int) -> "Rows":
        """The rows at begin <= place < end."""
        part, count = slice(begin, end), max(end - begin, 0)
        keys = None if self.keys is None else self.keys.slice(begin, count)
        return Rows(self.table.slice(begin, count), self.event_time[part], self.known_at[part], self.label[part], keys)

    def load(self) -> "Rows":
        """They are in memory."""
        return self

    def read_column(self, name: str) -> pa.ChunkedArray:
        """One feature (n)."""
        return self.table[name]

    def read_blocks(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Their features, a block of rows at a time.

        Args:
            columns: the features that are wanted; None: all.
        """
        table = self.table if columns is None else self.table.select(columns)
        return (table.slice(first, BLOCK_ROWS) for first in range(0, len(self), BLOCK_ROWS))

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


def list_paths(features: Path) -> list[Path]:
    """The files of a folder that the features stage has written, oldest first. Raises ValueError where it has none."""
    paths = [path for _, path in periods.list_files(features)]
    if not paths:
        raise ValueError(f"{features} holds no feature rows: run the stages before this one (dvc repro)")
    return paths


def read_rows(features: Path) -> Rows:
    """All the feature rows of a folder that the features stage has written."""
    return split_table(pa.concat_tables([pq.read_table(path) for path in list_paths(features)]))


def split_table(table: pa.Table) -> Rows:
    """What the files hold as rows: features, keys, and the columns beside them."""
    keys = table.select([name for name in table.column_names if name.startswith(KEY)])
    keys = keys.rename_columns([name.removeprefix(KEY) for name in keys.column_names])
    return Rows(
        table.select(list_features(table.schema)),
        table[EVENT_TIME].to_numpy(),
        table[KNOWN_AT].to_numpy(),
        read_label(table[LABEL]),
        keys,
    )


def list_features(schema: pa.Schema) -> list[str]:
    """The names of a file's features."""
    return [name for name in schema.names if not name.startswith("_")]


def read_label(column: pa.ChunkedArray) -> NDArray[Any]:
    """Labels as `Rows` have them (n): text, or float64."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if not pa.types.is_string(column.type):
        column = column.cast(pa.float64())
    labels: NDArray[Any] = column.to_numpy()
    return labels


def check_offset(offset: str, numbers: Sequence[str]) -> None:
    """Raises ValueError where train.offset is none of these features, which are numbers."""
    if offset not in numbers:
        raise ValueError(
            f"train.offset must be a feature that is a number, but {offset!r} is none{suggest(offset, numbers)}: mend "
            "the setting, or add the column to features.sql"
        )
