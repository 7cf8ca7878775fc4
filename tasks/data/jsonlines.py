"""jsonlines: JSON lines as Parquet files of texts, which DuckDB reads.

A line is an object, and its keys are the columns, in the order in which they first come. A value is the text that
stands in the file: 1.10 stays 1.10, whatever Python or DuckDB would make of it. A nested value is its JSON. Empty lines
are no rows. No message shows a value.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import csvtext

SUFFIXES = (".jsonl", ".ndjson")
ROWS = 20_000  # in memory at once


def convert(file: Path, folder: Path, encoding: str = "utf-8") -> tuple[tuple[str, ...], list[Path]]:
    """Write the rows of a file to `folder`, as columns c0, c1, ...

    Returns:
        The columns' names, and Parquet files in order: where a line brings a new column, a new file begins.

    Raises:
        ValueError: a line is no JSON object; names the line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places: dict[str, int] = {}
    files: list[Path] = []
    writer: pq.ParquetWriter | None = None
    for rows in _read_rows(file, encoding):
        width = len(places)
        for row in rows:
            for name in row:
                places.setdefault(name, len(places))
        if writer is None or len(places) > width:
            if writer:
                writer.close()
            files.append(folder / f"{len(files):06}.parquet")
            writer = pq.ParquetWriter(files[-1], pa.schema([(f"c{i}", pa.string()) for i in places.values()]))
        columns = [pa.array([row.get(name) for row in rows], pa.string()) for name in places]
        writer.write_table(pa.table(columns, writer.schema))
    if writer:
        writer.close()
    return tuple(places), files


def _read_rows(file: Path, encoding: str) -> Iterator[list[dict[str, str | None]]]:
    rows: list[dict[str, str | None]] = []
    try:
        with file.open(encoding=csvtext.CODECS.get(encoding, encoding), newline="\n") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                if (row := read_row(line)) is None:
                    raise ValueError(f"line {number} is no JSON object. Mend the line, or export the table again")
                rows.append(row)
                if len(rows) == ROWS:
                    yield rows
                    rows = []
    except UnicodeError:
        raise ValueError(csvtext.explain_bytes(file, encoding)) from None
    if rows:
        yield rows


def read_row(line: str | bytes) -> dict[str, str | None] | None:
    """An object's values as texts; None for a text that is no JSON object."""
    try:
        row = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
        if not isinstance(row, dict):
            return None
        nested = json.loads(line) if any(isinstance(value, dict | list) for value in row.values()) else {}
    except (ValueError, RecursionError):
        return None
    return {name: _text_of(value, nested.get(name)) for name, value in row.items()}


def _text_of(value: Any, nested: Any) -> str | None:
    if isinstance(value, dict | list):
        return json.dumps(nested, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if value is None else str(value)
