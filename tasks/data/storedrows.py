"""Feature rows that are larger than memory: they stay in their files, and each question reads what it needs.

A column of all rows is read at once, and held no longer than it is wanted; what holds all features is one block of rows
at a time. `open_rows` chooses by stage.memory. Training, tune and evaluate take either kind (`AnyRows`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.data import featurerows
from tasks.data.featurerows import EVENT_TIME, KNOWN_AT, LABEL, Rows

Mask = NDArray[np.bool_]
NUMBER_BYTES, TEXT_BYTES = 8, 24  # of a value in memory, about
ENCODED_BYTES = 4  # of a value in the matrix that a model learns from


@dataclass(frozen=True)
class StoredRows:
    """Feature rows in their files, in the order of time. It is asked what `Rows` are asked.

    Attributes:
        paths: files that the features stage has written.
        chosen: which of the files' rows these are.
    """

    paths: tuple[Path, ...]
    chosen: Mask

    @cached_property
    def _length(self) -> int:
        return int(self.chosen.sum())

    def __len__(self) -> int:
        return self._length

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the features."""
        schema = pq.read_schema(self.paths[0]).remove_metadata()
        return pa.schema([schema.field(name) for name in featurerows.list_features(schema)])

    @property
    def event_time(self) -> NDArray[np.datetime64]:
        """Read at each call, as are `known_at` and `label`."""
        return self._read_array(EVENT_TIME, pa.ChunkedArray.to_numpy)

    @property
    def known_at(self) -> NDArray[np.datetime64]:
        return self._read_array(KNOWN_AT, pa.ChunkedArray.to_numpy)

    @property
    def label(self) -> NDArray[Any]:
        return self._read_array(LABEL, featurerows.read_label)

    @property
    def keys(self) -> pa.Table:
        """The spine's key columns, read at each call."""
        schema = pq.read_schema(self.paths[0]).remove_metadata()
        names = [name for name in schema.names if name.startswith(featurerows.KEY)]
        tables = [schema.empty_table().select(names), *self._read_files(names)]
        return pa.concat_tables(tables).rename_columns([name.removeprefix(featurerows.KEY) for name in names])

    def take(self, mask: Mask) -> "StoredRows":
        chosen = self.chosen.copy()
        chosen[self.chosen] = mask
        return StoredRows(self.paths, chosen)

    def slice(self, begin: int, end: int) -> "StoredRows":
        """The rows at begin <= place < end."""
        places = np.arange(len(self))
        return self.take((places >= begin) & (places < end))

    def weigh(self) -> int:
        """The bytes that they take in memory, about: as they are, and as a model learns from them."""
        return len(self) * _weigh_row(pq.read_schema(self.paths[0]))

    def load(self) -> Rows:
        """All of them in memory."""
        tables = [block for block in self._read_files(None) if block.num_rows]
        return featurerows.split_table(pa.concat_tables(tables or [pq.read_schema(self.paths[0]).empty_table()]))

    def read_column(self, name: str) -> pa.ChunkedArray:
        """One feature (n)."""
        chunks = [chunk for block in self._read_files([name]) for chunk in block[name].chunks]
        return pa.chunked_array(chunks, self.schema.field(name).type)

    def read_blocks(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Their features, a block of rows at a time.

        Args:
            columns: the features that are wanted; None: all.
        """
        return _cut_blocks(self._read_files(self.schema.names if columns is None else columns))

    def _read_array(self, name: str, convert: Callable[[pa.ChunkedArray], NDArray[Any]]) -> NDArray[Any]:
        """A column of the files (n), which is in memory once."""
        empty = convert(pq.read_schema(self.paths[0]).empty_table()[name])
        values, first = np.empty(len(self), empty.dtype), 0
        for block in self._read_files([name]):
            values[first : first + block.num_rows] = convert(block[name])
            first += block.num_rows
        return values

    def _read_files(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """The files' columns, of these rows alone. Groups of rows that hold none of them are not read."""
        first = 0
        for path in self.paths:
            with pq.ParquetFile(path, memory_map=False) as file:
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    mask, first = self.chosen[first : first + rows], first + rows
                    if mask.any():
                        yield from _read_group(file, group, columns, mask)


AnyRows = Rows | StoredRows


def _read_group(file: pq.ParquetFile, group: int, columns: Sequence[str] | None, mask: Mask) -> Iterator[pa.Table]:
    first = 0
    for batch in file.iter_batches(featurerows.BLOCK_ROWS, row_groups=[group], columns=columns, use_threads=False):
        part, first = mask[first : first + batch.num_rows], first + batch.num_rows
        if part.any():
            table = pa.Table.from_batches([batch])
            yield table if part.all() else table.filter(part)


def _cut_blocks(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows as blocks of one length, whatever files they come from, but for the last."""
    waiting, rows = list[pa.Table](), 0
    for table in tables:
        waiting, rows = [*waiting, table], rows + table.num_rows
        while rows >= featurerows.BLOCK_ROWS:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, featurerows.BLOCK_ROWS).combine_chunks()
            waiting, rows = [joined.slice(featurerows.BLOCK_ROWS)], rows - featurerows.BLOCK_ROWS
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()


def open_rows(features: Path, *, memory: float) -> AnyRows:
    """The feature rows of a folder: in memory where they take so many bytes at most, about, else in their files."""
    paths = tuple(featurerows.list_paths(features))
    rows = sum(pq.read_metadata(path).num_rows for path in paths)
    stored = StoredRows(paths, np.ones(rows, dtype=bool))
    return featurerows.read_rows(features) if stored.weigh() <= memory else stored


def write_rows(rows: AnyRows, folder: Path) -> StoredRows:
    """Rows as rows in files: of those in memory, one is written to the folder. It holds no keys."""
    if isinstance(rows, StoredRows):
        return rows
    times = {EVENT_TIME: pa.array(rows.event_time), KNOWN_AT: pa.array(rows.known_at)}
    table = pa.table({**times, LABEL: pa.array(rows.label, from_pandas=True)})
    for name in rows.table.column_names:
        table = table.append_column(rows.schema.field(name), rows.table[name])
    pq.write_table(table, path := folder / "rows.parquet", row_group_size=featurerows.BLOCK_ROWS)
    return StoredRows((path,), np.ones(len(rows), dtype=bool))


def _weigh_row(schema: pa.Schema) -> int:
    """The bytes that a row takes in memory, about: as it is, and as a model learns from it."""
    there = sum(TEXT_BYTES if pa.types.is_string(field.type) else NUMBER_BYTES for field in schema)
    return there + ENCODED_BYTES * len(featurerows.list_features(schema))
