"""arrays: columns of Arrow as arrays of numpy, and back. pyarrow's own conversions import pandas, which takes 0.3 s."""

from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Number = TypeVar("Number", np.float64, np.int64)


def make_empty(schema: pa.Schema) -> pa.RecordBatch:
    """No rows of these columns."""
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def read_flags(column: pa.Array) -> Flags:
    """The values of a BOOLEAN column (n); False where they are missing."""
    flags = _read_bits(column.buffers()[1], column)
    return flags & _find_present(column) if column.null_count else flags


def make_flags(flags: Flags) -> pa.BooleanArray:
    bits = pa.py_buffer(np.packbits(flags, bitorder="little"))
    return pa.BooleanArray.from_buffers(pa.bool_(), len(flags), [None, bits])


def read_floats(column: pa.Array) -> NDArray[np.float64]:
    """The values of a column of numbers (n); NaN where they are missing."""
    column = column.cast(pa.float64())
    values = _read_words(column, np.dtype(np.float64))
    return np.where(_find_present(column), values, np.nan) if column.null_count else values


def read_times(column: pa.Array) -> NDArray[np.datetime64]:
    """The values of a column of TIMESTAMPs (n), in microseconds; NaT where they are missing."""
    values = _read_words(column, np.dtype(np.int64)).view("datetime64[us]")
    return np.where(_find_present(column), values, np.datetime64("NaT", "us")) if column.null_count else values


def read_whole(column: pa.Array) -> NDArray[np.int64]:
    """The values of a column of BIGINTs (n). None may be missing."""
    if column.null_count:
        raise ValueError("a column that is read as whole numbers must have a value in each row")
    return _read_words(column, np.dtype(np.int64))


def _read_words(column: pa.Array, kind: np.dtype[Number]) -> NDArray[Number]:
    buffer = column.buffers()[1]
    if buffer is None or not len(column):
        return np.zeros(len(column), kind)
    return np.frombuffer(buffer, kind, len(column), column.offset * kind.itemsize)


def _find_present(column: pa.Array) -> Flags:
    return _read_bits(column.buffers()[0], column)


def _read_bits(buffer: pa.Buffer | None, column: pa.Array) -> Flags:
    if buffer is None or not len(column):
        return np.zeros(len(column), bool)
    bits = np.unpackbits(np.frombuffer(buffer, np.uint8), count=column.offset + len(column), bitorder="little")
    return bits[column.offset :].view(bool)
