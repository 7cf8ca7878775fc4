"""A trained model: an XGBoost booster that carries its features, categories, calibration and threshold inside itself.

One .ubj file is the whole model, without pickle. A category that training has not seen becomes a missing value before
XGBoost sees it. Nothing here trains, reads feature files or knows a registry: whoever scores needs this module alone.

XGBoost reads a torn file until it runs out of memory and then takes the process with it. So a hash follows the model in
its file (XGBoost reads past it), and nothing reaches XGBoost that does not match it.

This file travels with the model into MLflow (tasks/promotion/pyfunc.py runs it there), so it imports nothing of tasks.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import TypeAdapter

Floats = NDArray[np.floating[Any]]
Task = Literal["binary", "multiclass", "regression"]
# The booster's attributes. The spec is JSON; a field with a default may be added, anything else raises the version.
SPEC_ATTRIBUTE, FORMAT_ATTRIBUTE = "evergreen", "evergreen.format"
FORMAT, OFFSET_FORMAT = "model/1", "model/2"  # a reader of 1 alone would leave the offset out
SEAL = b"\nevergreen sha256 "


@dataclass(frozen=True)
class Feature:
    name: str
    kind: Literal["number", "category"]


@dataclass(frozen=True)
class Spec:
    """What a booster alone does not know. It travels as JSON in the booster's attributes."""

    task: Task
    features: tuple[Feature, ...]
    categories: dict[str, tuple[str, ...]]  # a category's place here is its code
    classes: tuple[Any, ...] = ()  # the label that each column of probabilities stands for
    native: bool = False  # XGBoost splits codes as categories, not as numbers
    coef: tuple[tuple[float, ...], ...] = ()  # calibration: softmax or sigmoid of margins @ coef.T + intercept
    intercept: tuple[float, ...] = ()
    threshold: float | None = None  # binary: a probability at or above it counts as positive
    until: str | None = None  # training saw nothing that was known at or after this
    center: float = 0.0  # regression: XGBoost, which computes in float32, learns (label - offset - center) / scale
    scale: float = 1.0
    offset: str | None = None  # regression: a feature that is taken from the label, and added to what the booster says
    offset_else: float = 0.0  # its value in rows that have none: the median of the labels
    shares: tuple[float, ...] = ()  # of each class's rows, those that training drew; the intercept corrects for them

    @property
    def names(self) -> list[str]:
        return [feature.name for feature in self.features]

    def without(self, names: Sequence[str]) -> "Spec":
        """The spec of a model that does not see these features."""
        features = tuple(feature for feature in self.features if feature.name not in names)
        categories = {name: texts for name, texts in self.categories.items() if name not in names}
        return replace(self, features=features, categories=categories)

    @property
    def types(self) -> list[str] | None:
        """XGBoost's feature types, when codes are to be split as categories."""
        return ["c" if one.kind == "category" else "float" for one in self.features] if self.native else None

    def encode(self, table: pa.Table) -> NDArray[np.float32]:
        """Feature rows (n) → matrix (n, features) in the model's order. Raises ValueError for a missing column."""
        there = table.column_names  # a new list at each call
        if missing := [name for name in self.names if name not in there]:
            raise ValueError(f"the model needs the features {missing}, but the rows have {there}")
        matrix = np.empty((table.num_rows, len(self.features)), dtype=np.float32)
        for i, feature in enumerate(self.features):
            values = column = table[feature.name]
            try:
                if feature.kind == "category":
                    text = column if pa.types.is_string(column.type) else column.cast(pa.string())
                    values = pc.index_in(text, value_set=self._known[feature.name])
                floats = values if pa.types.is_float32(values.type) else values.cast(pa.float32(), safe=False)
            except pa.ArrowException:  # its sentence would show a row's value
                raise ValueError(
                    f"the feature {feature.name} must be a {feature.kind}, but it holds other values ({column.type})"
                ) from None
            matrix[:, i] = floats.to_numpy(zero_copy_only=False)
        return matrix

    @cached_property
    def _known(self) -> dict[str, Any]:
        """The categories as Arrow has them, made once: for one row, making them took longest."""
        return {name: pa.array(values, pa.string()) for name, values in self.categories.items()}

    @cached_property
    def codes(self) -> dict[str, dict[str, int]]:
        """Of each feature its categories' codes; none for a number."""
        return {name: {text: i for i, text in enumerate(self.categories.get(name, ()))} for name in self.names}

    @cached_property
    def plan(self) -> tuple[tuple[str, str, dict[str, int]], ...]:
        """Of each feature its name, its kind and its categories' codes: what it takes to encode a row."""
        return tuple((feature.name, feature.kind, self.codes[feature.name]) for feature in self.features)

    def encode_label(self, label: NDArray[Any]) -> NDArray[np.float64]:
        """Labels (n) → what predictions are compared with: 0/1, the class's number, or the value; NaN without one."""
        if self.task != "multiclass":
            return label.astype(np.float64)
        codes = np.full(len(label), np.nan)
        for code, value in enumerate(self.classes):
            codes[label == value] = code
        return codes

    @property
    def middle(self) -> float:
        """The median of a number's labels."""
        return self.offset_else if self.offset else self.center

    @cached_property
    def _offset_place(self) -> int:
        return self.names.index(str(self.offset))

    def find_offset(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """The offset (n) of rows as `encode` makes them (n, features); zero where the spec has none."""
        if self.offset is None:
            return np.zeros(len(matrix))
        return self.fill_offset(matrix[:, self._offset_place])

    def fill_offset(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Values of the offset's feature (n), as they are in the matrix → the offsets."""
        return np.where(np.isfinite(values), values.astype(np.float64), self.offset_else)

    def scale_label(self, label: NDArray[Any], offset: Floats | float = 0.0) -> NDArray[np.float32]:
        """Labels (n) and their offsets → what a booster of this spec trains on."""
        values = self.encode_label(label)
        values -= offset
        values -= self.center
        values /= self.scale
        return values.astype(np.float32)

    def unscale(self, values: Floats, offset: Floats | float = 0.0) -> NDArray[np.float64]:
        """What such a booster predicts of a number (n) → values of the label."""
        return values.astype(np.float64) * self.scale + self.center + offset


@dataclass(frozen=True)
class Model:
    """A booster and its spec. `predict` is all that a caller needs."""

    booster: Any
    spec: Spec

    def margins(self, table: pa.Table) -> Floats:
        """Raw scores before calibration: (n,), or (n, classes) for multiclass."""
        return self._find_margins(self.spec.encode(table))

    def predict(self, table: pa.Table) -> Floats:
        """Calibrated probabilities, (n,) of the positive class or (n, classes); the value (n,) for regression."""
        return self.predict_matrix(self.spec.encode(table))

    def predict_matrix(self, matrix: NDArray[np.float32]) -> Floats:
        """The same of rows that `spec.encode` has made a matrix of."""
        return self.from_margins(self._find_margins(matrix), self.spec.find_offset(matrix))

    def contributions(self, table: pa.Table) -> Floats:
        """SHAP values (Lundberg et al. 2020) of feature rows (n), in units of the margin, or of a number's label:
        (n, features), or by class (n, classes, features). Exact, and so slow: about 3 ms a row for a few hundred deep
        trees. The offset's feature also has what its value adds to the labels' median."""
        spec = self.spec
        matrix = spec.encode(table)
        data = import_xgboost().DMatrix(
            matrix, feature_names=spec.names, feature_types=spec.types, enable_categorical=spec.native
        )
        values = np.asarray(self.booster.predict(data, pred_contribs=True))[..., :-1] * np.float32(spec.scale)
        if spec.offset is not None:
            values[:, spec._offset_place] += spec.find_offset(matrix) - spec.offset_else
        return values

    def _find_margins(self, matrix: NDArray[np.float32]) -> Floats:
        return np.asarray(self.booster.inplace_predict(matrix, predict_type="margin"))

    def from_margins(self, margins: Floats, offset: Floats | float = 0.0) -> Floats:
        """Raw scores (n), or (n, classes), and a number's offsets (n) → what `predict` gives."""
        if self.spec.task == "regression":
            return self.spec.unscale(margins, offset)
        if self.spec.task == "binary":
            slope, shift = (self.spec.coef[0][0], self.spec.intercept[0]) if self.spec.coef else (1.0, 0.0)
            positive: Floats = np.exp(-np.logaddexp(0, -(margins.astype(np.float64) * slope + shift)))
            return positive
        scores = margins.astype(np.float64)
        if self.spec.coef:
            scores = scores @ self._coef.T + np.asarray(self.spec.intercept)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))

    @cached_property
    def _coef(self) -> Floats:
        return np.asarray(self.spec.coef)

    def with_spec(self, **changes: Any) -> "Model":
        return Model(self.booster, replace(self.spec, **changes))

    def to_bytes(self) -> bytes:
        """The model file: the same model gives the same bytes."""
        spec = json.dumps(asdict(self.spec), sort_keys=True)
        mark = OFFSET_FORMAT if self.spec.offset else FORMAT
        self.booster.set_attr(**{SPEC_ATTRIBUTE: spec, FORMAT_ATTRIBUTE: mark})
        return _sealed(bytes(self.booster.save_raw("ubj")))

    def write(self, path: Path) -> None:
        path.write_bytes(self.to_bytes())

    @staticmethod
    def load(path: Path | str) -> "Model":
        """Raises ValueError when the file is no whole model of this project, or of another version."""
        return Model.from_bytes(Path(path).read_bytes(), path)

    def __reduce__(self) -> Any:
        """As the model file, so that a model that another process has made is the same to the last bit."""
        return Model.from_bytes, (self.to_bytes(), "a model that was sent")

    @staticmethod
    def from_bytes(data: bytes, path: Path | str) -> "Model":
        """A model file's bytes as a model; `path` is for errors."""
        raw, _, _ = data.rpartition(SEAL)
        if data != _sealed(raw):
            raise ValueError(
                f"{path} is no whole model of this project: it was torn, or made elsewhere. "
                "Copy it again, or train it with tasks.training.train."
            )
        booster = import_xgboost().Booster(model_file=bytearray(raw))
        if (mark := booster.attr(FORMAT_ATTRIBUTE)) not in (FORMAT, OFFSET_FORMAT):
            raise ValueError(
                f"{path} is in format {mark or 'unknown'}, but this evergreen reads {FORMAT} and {OFFSET_FORMAT}. "
                "Use the evergreen that wrote it, or begin a new home: set EVERGREEN_HOME to an empty folder and train "
                "again."
            )
        return Model(booster, TypeAdapter(Spec).validate_json(booster.attr(SPEC_ATTRIBUTE)))


def _sealed(raw: bytes) -> bytes:
    return raw + SEAL + hashlib.sha256(raw).hexdigest().encode()


def make_spec(table: pa.Table, label: NDArray[Any], *, task: Task, native: bool = False) -> Spec:
    """The spec that training rows call for: text columns are categories, the rest numbers. Sorted, so it is stable.

    Raises ValueError for a target with one class, and for a label that does not fit the task.
    """
    columns = [(name, pa.types.is_string(table.schema.field(name).type)) for name in sorted(table.column_names)]
    features = tuple(Feature(name, "category" if text else "number") for name, text in columns)
    spec = Spec(task, features, {}, classes=find_classes(label, task=task), native=native)
    if task == "regression":
        center, scale = find_center(label)
        spec = replace(spec, center=center, scale=scale)
    return replace(spec, categories=find_categories(table, spec))


def find_center(label: NDArray[Any]) -> tuple[float, float]:
    """A label's median and its spread around it, to train on (label - center) / scale.

    The median is one of the labels and the scale a power of two: the same labels with an offset, or in other units,
    give the same numbers to the last bit, and so the same trees. XGBoost computes in float32, which has seven digits,
    and makes no split that gains less than 1e-6: 1e9 + delay and delay / 1e6 were constants to it.
    """
    values = label[is_labelled(label)].astype(np.float64)
    if not len(values):
        return 0.0, 1.0
    middle = (len(values) - 1) // 2
    center = float(np.partition(values, middle)[middle])
    spread = float(np.sqrt(np.mean(np.square(values - center))))
    return center, 2.0 ** round(np.log2(spread)) if spread > 0 else 1.0


def find_categories(table: pa.Table, spec: Spec) -> dict[str, tuple[str, ...]]:
    """What the category features of these rows hold, sorted."""
    names = [feature.name for feature in spec.features if feature.kind == "category"]
    return {name: tuple(sorted(pc.unique(table[name].drop_null()).to_pylist())) for name in names}


def find_classes(label: NDArray[Any], *, task: Task) -> tuple[Any, ...]:
    """The classes among the labels that are there, in order; none for regression."""
    if task != "multiclass" and label.dtype == object:
        raise ValueError(f"label.task {task} needs a label that is a number, but label.expression gives text")
    if task == "regression":
        return ()
    classes = list_labels(label)
    if task == "binary" and not set(classes) <= {0.0, 1.0}:
        raise ValueError(f"label.task binary needs a label that is true or false, but it holds {classes[:5]}")
    if len(classes) < 2:
        raise ValueError(
            f"a target needs two classes at least, but the training rows hold only {classes}. "
            "Check label.expression, or give training a longer period."
        )
    return tuple(classes)


def list_labels(label: NDArray[Any]) -> list[Any]:
    """The different labels that are there, in order."""
    unique = pc.unique(pa.array(label, from_pandas=True)).drop_null()
    return sorted(set(unique.to_pylist()))  # a set, since Arrow tells 0.0 from -0.0


def is_labelled(label: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a label is there: not NaN, or not None for text."""
    return np.array([value is not None for value in label], dtype=bool) if label.dtype == object else ~np.isnan(label)


def import_xgboost() -> ModuleType:
    """xgboost without scikit-learn: 0.8 s to import, not 3.5. A process that has scikit-learn already keeps it.

    Its threads sleep while they wait for each other. Spinning, OpenMP's default, made training 20 times slower here
    as soon as anything else wanted one of two cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "xgboost" in sys.modules or "sklearn" in sys.modules:
        import xgboost as found

        return found
    sys.modules["sklearn"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        import xgboost as found
    finally:
        sys.modules.pop("sklearn", None)  # threads that train side by side may both have come here
    return found


def weigh_classes(codes: Floats, classes: Sequence[Any], strength: float) -> NDArray[np.float32]:
    """A weight per class: (n / (classes * its rows)) ** strength. 0: none; 1: every class weighs the same in all."""
    return weigh_counts(np.bincount(codes.astype(int), minlength=len(classes)), strength)


def weigh_counts(counts: NDArray[Any], strength: float) -> NDArray[np.float32]:
    """The same by how many rows each class has."""
    return np.asarray((counts.sum() / (len(counts) * np.maximum(counts, 1))) ** strength, dtype=np.float32)


def weigh_rows(codes: Floats, classes: Sequence[Any], strength: float) -> NDArray[np.float32]:
    """The weight of each row's class."""
    return np.asarray(weigh_classes(codes, classes, strength)[codes.astype(int)])
