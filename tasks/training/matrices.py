"""Rows as a model's spec encodes them, and XGBoost's binned matrices of them.

A booster that learns from a matrix is the same to the last bit, whichever way it is made:

    rows in memory                              one array is encoded and binned
    rows in their files (storedrows.py)         blocks are, one after the other
    the same, where the encoded matrix would    blocks are, and what is binned lies on disk: XGBoost reads it
    take more than stage.memory                 a page at a time, in each level of each tree
"""

import contextlib
import ctypes
import secrets
import shutil
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.data import featurerows
from tasks.data.featurerows import Rows
from tasks.data.storedrows import ENCODED_BYTES, AnyRows
from tasks.params import Params
from tasks.runtime import stage
from tasks.training import model
from tasks.training.model import Spec

PASSED = "passed.f32"  # the encoded rows, between XGBoost's passes
MAX_BIN = 256  # where tune.space names none: XGBoost's own
Matrix = NDArray[np.float32]  # encoded rows (n, features)


def make_spec(rows: AnyRows, p: Params, *, dropped: Sequence[str] = ()) -> Spec:
    """The spec that training rows call for. Raises ValueError as `model.make_spec` does, and for an offset that is no
    number of the features.

    Args:
        dropped: features that the recipe leaves out.
    """
    native = p.train.categories == "native"
    spec = model.make_spec(rows.schema.empty_table(), rows.label, task=p.label.task, native=native)
    spec = spec.without(dropped)
    spec = replace(spec, categories=find_categories(rows, spec))
    if p.train.offset is None:
        return spec
    featurerows.check_offset(p.train.offset, [one.name for one in rows.schema if not pa.types.is_string(one.type)])
    return center_label(replace(spec, offset=p.train.offset, offset_else=spec.center), rows)


def center_label(spec: Spec, rows: AnyRows) -> Spec:
    """The spec of a number with the centre and the scale of these rows' labels, less their offsets. Raises ValueError
    where no row with a label has an offset."""
    above = rows.label - (_read_offset(rows, spec.offset) if spec.offset else 0.0)
    if spec.offset and not np.isfinite(above).any():
        raise ValueError(
            f"train.offset {spec.offset!r} is missing in each of the {len(rows)} rows: take another feature"
        )
    center, scale = model.find_center(np.where(np.isfinite(above), above, np.nan))
    return replace(spec, center=center, scale=scale)


def find_offset(rows: AnyRows, spec: Spec) -> model.Floats | float:
    """The offsets of rows (n); zero where the spec has none."""
    return spec.fill_offset(_read_offset(rows, spec.offset)) if spec.offset else 0.0


def has_offset(rows: AnyRows, spec: Spec) -> NDArray[np.bool_]:
    """Which rows (n) can teach: not those whose offset is missing, since nothing tells what their labels lie above."""
    return np.isfinite(_read_offset(rows, spec.offset)) if spec.offset else np.ones(len(rows), dtype=bool)


def _read_offset(rows: AnyRows, name: str) -> NDArray[np.float32]:
    """A number (n) as it is in the matrix, so that what is learnt and what is predicted have the same digits."""
    values: NDArray[np.float32] = rows.read_column(name).cast(pa.float32(), safe=False).to_numpy()
    return values


def find_categories(rows: AnyRows, spec: Spec) -> dict[str, tuple[str, ...]]:
    """What the category features of these rows hold, sorted."""
    levels: dict[str, set[str]] = {feature.name: set() for feature in spec.features if feature.kind == "category"}
    if levels:
        for block in rows.read_blocks(list(levels)):
            for name, known in levels.items():
                known.update(pc.unique(block[name].drop_null()).to_pylist())
    return {name: tuple(sorted(known)) for name, known in levels.items()}


@dataclass(frozen=True)
class Encoded:
    """Rows (n) as a booster of the spec learns from them."""

    spec: Spec
    rows: AnyRows

    @property
    def label(self) -> NDArray[np.float32]:
        """Of each row (n)."""
        return self.spec.scale_label(self.rows.label, find_offset(self.rows, self.spec))

    @property
    def weight(self) -> NDArray[np.float32] | None:
        """Of each row (n): 0 where it cannot teach, else 1; None where all can."""
        return has_offset(self.rows, self.spec).astype(np.float32) if self.spec.offset else None

    def head(self, count: int) -> "Encoded":
        """The oldest rows, so many."""
        return Encoded(self.spec, self.rows.slice(0, count))

    def read_blocks(self) -> Iterator[Matrix]:
        """All rows in their order: at once where they are in memory."""
        if isinstance(self.rows, Rows):
            yield self._matrix
        else:
            yield from map(self.spec.encode, self.rows.read_blocks())

    @cached_property
    def _matrix(self) -> Matrix:
        return self.spec.encode(self.rows.load().table)

    def bin(self, drawn: dict[str, Any], *, threads: int, memory: float, ref: Any = None) -> Any:
        """XGBoost's binned matrix of the rows, with their labels.

        Args:
            drawn: a trial's parameters; max_bin counts here.
            memory: the bytes that the encoded matrix may take; a larger one is binned on disk.
            ref: the training rows' matrix, whose bins validation rows take.
        """
        data = self._bin_rows(drawn, threads=threads, memory=memory, ref=ref)
        if (weight := self.weight) is not None:
            data.set_weight(weight)  # here, since weights that XGBoost has while it bins would move the bins
        return data

    def _bin_rows(self, drawn: dict[str, Any], *, threads: int, memory: float, ref: Any) -> Any:
        xgb = model.import_xgboost()
        settings = {"max_bin": int(drawn.get("max_bin", MAX_BIN)), "nthread": threads, "ref": ref}
        settings |= {"enable_categorical": self.spec.native}
        if isinstance(self.rows, Rows):
            return xgb.QuantileDMatrix(self._matrix, label=self.label, **self._describe(), **settings)
        folder = stage.spill_folder(Path.cwd()) / f"matrix-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        is_small = len(self.rows) * len(self.spec.features) * ENCODED_BYTES <= memory
        make = xgb.QuantileDMatrix if is_small else xgb.ExtMemQuantileDMatrix
        try:
            data = make(_make_iterator(self, folder, cached=not is_small), **settings)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(data, shutil.rmtree, folder, ignore_errors=True)
        (folder / PASSED).unlink(missing_ok=True)
        _give_back_memory()
        data.set_label(self.label)
        return data

    def _describe(self) -> dict[str, Any]:
        return {"feature_names": self.spec.names, "feature_types": self.spec.types}


def _make_iterator(encoded: Encoded, folder: Path, *, cached: bool) -> Any:
    """XGBoost's iterator over blocks of rows. `cached`: what it bins lies in the folder."""
    passed = folder / PASSED

    class Blocks(model.import_xgboost().DataIter):  # type: ignore[misc]  # its class is known at run time
        def __init__(self) -> None:
            self._left: Iterator[Matrix] = iter(())
            self._is_passed = False
            super().__init__(cache_prefix=str(folder / "page") if cached else None, release_data=True)

        def reset(self) -> None:
            self._left = _read_again(passed, len(encoded.spec.features)) if self._is_passed else self._pass_first()

        def _pass_first(self) -> Iterator[Matrix]:
            """XGBoost passes four times: what the first has encoded is read again from one file."""
            with passed.open("wb") as stream:
                for block in encoded.read_blocks():
                    block.tofile(stream)
                    yield block
            self._is_passed = True

        def next(self, input_data: Any) -> bool:
            block = next(self._left, None)
            if block is not None:
                input_data(data=block, **encoded._describe())
            return block is not None

    return Blocks()


def _give_back_memory() -> None:
    """What reading and binning have freed, but Arrow and the C library keep: a long fit follows."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)


def _read_again(path: Path, features: int) -> Iterator[Matrix]:
    with path.open("rb") as stream:
        while len(block := np.fromfile(stream, np.float32, featurerows.BLOCK_ROWS * features)):
            yield block.reshape(-1, features)
