"""rowfiles: rows as a Parquet file, a row group of them in memory at a time. The same rows give the same bytes."""

from pathlib import Path
from typing import Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import arrays

GROUP_ROWS = 15 * 2048  # of a row group: whole vectors of DuckDB


class RowWriter:
    """Writes batches of rows, of any size, in their order. A file that got none is not written."""

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._path, self._waiting, self._count = path, list[pa.RecordBatch](), 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def add(self, batch: pa.RecordBatch) -> None:
        if self._writer is None:
            # Of numbers and times a dictionary takes longer, and is larger once compressed.
            texts = [field.name for field in batch.schema if pa.types.is_string(field.type)]
            self._writer = pq.ParquetWriter(self._path, batch.schema, compression="zstd", use_dictionary=texts)
        self._waiting.append(batch)
        self._count += batch.num_rows
        self.rows += batch.num_rows
        while self._count >= GROUP_ROWS:
            table = self._take()
            self._writer.write_table(table.slice(0, GROUP_ROWS), GROUP_ROWS)
            self._waiting = table.slice(GROUP_ROWS).to_batches()
            self._count = table.num_rows - GROUP_ROWS

    def _take(self) -> pa.Table:
        """What waits, in one piece: how it came in batches must not show in the file."""
        table, self._waiting, self._count = pa.Table.from_batches(self._waiting).combine_chunks(), [], 0
        return table

    def __exit__(self, kind: object, *_: object) -> None:
        if self._writer is None:
            return
        try:
            if kind is None and (self._count or not self.rows):
                self._writer.write_table(self._take(), GROUP_ROWS)
        finally:
            self._writer.close()


def write_rows(con: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Write a query's rows in their order."""
    reader = con.sql(query).to_arrow_reader(GROUP_ROWS)
    with RowWriter(path) as writer:
        writer.add(arrays.make_empty(reader.schema))
        for batch in reader:
            writer.add(batch)
