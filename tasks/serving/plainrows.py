"""plainrows: a few of the journal's rows as plain values. Arrow columns of one row cost more than to score it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import orjson
import pyarrow as pa


@dataclass(frozen=True)
class PlainRows:
    """Rows of a schema, by column. A time is in microseconds since 1970, and what is missing is None or NaN."""

    schema: pa.Schema
    columns: Sequence[Sequence[Any]]

    @property
    def num_rows(self) -> int:
        return len(self.columns[0])

    @cached_property
    def table(self) -> pa.Table:
        """The same rows in Arrow."""
        arrays = [
            pa.array(values, field.type, from_pandas=True)
            for field, values in zip(self.schema, self.columns, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def to_bytes(self) -> bytes:
        """The columns as JSON. A number has so many digits that it is read as the same number; NaN becomes null."""
        return orjson.dumps(self.columns)

    @classmethod
    def from_bytes(cls, schema: pa.Schema, data: bytes) -> Self:
        """What `to_bytes` made of rows with this schema."""
        return cls(schema, orjson.loads(data))


def table_of(rows: pa.Table | PlainRows) -> pa.Table:
    """Rows of either kind in Arrow."""
    return rows.table if isinstance(rows, PlainRows) else rows
