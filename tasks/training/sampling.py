"""train.undersample: a share of the most frequent class's rows is learnt from, and all rows of the others.

Which rows is decided by a hash of each row's key and event time: the same on each machine and in each run, whatever the
order of the rows or which others there are. Of a table without a key, all features are the key.

A model of such rows says too seldom that a row is of the frequent class: its odds against each other class are `share`
times the true ones, exactly (Elkan 2001, theorem 2). So log(share) is taken out of that class's margin again, before
calibration (train.py), and the shares are recorded in the model (`Spec.shares`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.data.storedrows import AnyRows
from tasks.training.model import Spec

Hashes = NDArray[np.uint64]
MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # of splitmix64 (Steele et al. 2014)


def find_shares(label: NDArray[Any], spec: Spec, share: float | None) -> tuple[float, ...]:
    """Of each class, the share of its rows that training draws; none where all are drawn."""
    if share is None or not spec.classes:
        return ()
    codes = spec.encode_label(label)
    counts = np.bincount(codes[~np.isnan(codes)].astype(int), minlength=len(spec.classes))
    return tuple(share if code == counts.argmax() else 1.0 for code in range(len(counts)))


def draw_rows(rows: AnyRows, spec: Spec, shares: Sequence[float]) -> AnyRows:
    """The rows that training draws by these shares of their classes. Raises ValueError where a class has none."""
    if not shares:
        return rows
    codes = spec.encode_label(rows.label)
    is_known = ~np.isnan(codes)
    codes = np.where(is_known, codes, 0).astype(int)
    limits = np.array([share * 2.0**64 if share < 1 else np.inf for share in shares])
    drawn = is_known & (hash_keys(rows).astype(np.float64) < limits[codes])
    for code in np.setdiff1d(codes[is_known], codes[drawn]):
        raise ValueError(
            f"train.undersample {shares[code]:g} draws none of the {int((codes[is_known] == code).sum())} rows of the "
            f"class {spec.classes[code]!r}: raise it, or set it to null"
        )
    return rows.take(drawn)


def hash_keys(rows: AnyRows) -> Hashes:
    """Of each row (n) a number below 2**64, by its key and event time alone."""
    hashes = _mix(rows.event_time.astype("datetime64[us]").astype(np.int64).view(np.uint64))
    for values in _read_keys(rows):
        hashes = _mix(hashes ^ _hash_texts(values))
    return hashes


def _read_keys(rows: AnyRows) -> Iterator[pa.ChunkedArray]:
    keys = rows.keys
    if keys is not None and keys.num_columns:
        yield from (keys[name] for name in sorted(keys.column_names))
    else:
        yield from (rows.read_column(name) for name in sorted(rows.schema.names))


def _hash_texts(values: pa.ChunkedArray) -> Hashes:
    """By how the values are written, each once."""
    texts = values.cast(pa.string()).combine_chunks()
    unique = pc.unique(texts)
    digests = [hashlib.blake2b((text or "").encode(), digest_size=8).digest() for text in unique.to_pylist()]
    numbers = np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
    return np.asarray(numbers[pc.index_in(texts, value_set=unique).to_numpy(zero_copy_only=False)])


def _mix(numbers: Hashes) -> Hashes:
    """The finaliser of splitmix64: each bit depends on all."""
    first, second = MULTIPLIERS
    numbers = (numbers ^ (numbers >> np.uint64(30))) * first
    numbers = (numbers ^ (numbers >> np.uint64(27))) * second
    return numbers ^ (numbers >> np.uint64(31))
