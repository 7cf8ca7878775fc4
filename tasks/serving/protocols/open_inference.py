"""open_inference: the Open Inference Protocol (v2), which KServe, Triton, MLServer and others speak: tensors by name.

    curl 127.0.0.1:8080/v2/models/<model>/infer --json '{"inputs": [
      {"name": "distance", "datatype": "FP64", "shape": [1], "data": [631]},
      {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["EV"]}]}'

Each column is a tensor of shape [n] or [n, 1]. Where all features are numbers, one tensor of shape [n, features] has
them in the model's order. The answers are tensors, too: `score`, `decision`, `id`, `version`, `stale`, and `reasons` as
JSON where the request's parameters ask for them. Tensors in binary are little-endian, after a JSON header whose length
is in the HTTP header Inference-Header-Content-Length. Sources: the protocol's "Inference Protocol REST", and Triton's
"Binary Tensor Data Extension".
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.serving import messages
from tasks.serving.handler import Answers, Columns
from tasks.serving.protocols.questions import MisfitError, describe_faults
from tasks.training.model import Spec

HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ["binary_tensor_data"]
TEXT = "BYTES"
DTYPES: Mapping[str, str] = {
    "BOOL": "?",
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
OUTPUTS: Mapping[str, str] = {
    "score": "FP64",
    "decision": TEXT,  # BOOL of a binary label; a number has none
    "id": TEXT,
    "version": "INT64",
    "stale": "BOOL",
    "reasons": TEXT,
}


class _Part(BaseModel):
    """Other fields are let pass: servers add parameters of their own."""

    model_config = ConfigDict(frozen=True)


class Input(_Part):
    """A tensor of the request. `data` is row-major, flat or nested; in binary it follows the header."""

    name: str
    datatype: Datatype
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class Output(_Part):
    """A tensor that the request asks for."""

    name: str
    parameters: dict[str, Any] = {}


class Inference(_Part):
    """The body of a request."""

    inputs: list[Input]
    outputs: list[Output] | None = None
    id: str | None = None
    parameters: dict[str, Any] = {}

    @property
    def reasons(self) -> Any:
        return self.parameters.get("reasons", 0)


def read_request(header: Any) -> Inference:
    """The body's JSON as a request. Raises MisfitError."""
    try:
        return Inference.model_validate(header)
    except ValidationError as error:
        raise MisfitError(describe_faults(messages.list_faults(error))) from None


def split_body(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """A body → its JSON, and the binary tensors after it. Raises MisfitError for a length that it does not have."""
    if header_length is None:
        return body, memoryview(b"")
    if not header_length.isascii() or not header_length.isdigit() or int(header_length) > len(body):
        raise MisfitError(
            f"{HEADER_LENGTH} must be the length of the JSON in front of the tensors, at most {len(body)}, but is "
            f"{header_length[:20]!r}"
        )
    end = int(header_length)
    return body[:end], memoryview(body)[end:]


def read_columns(asked: Inference, raw: memoryview, spec: Spec) -> Columns:
    """The tensors of a request → its columns.

    Args:
        raw: the binary tensors, in the order of the inputs.
        spec: of the model: it says what the columns of a matrix are.

    Raises:
        MisfitError: a tensor does not fit its shape or datatype, or the tensors are not of one length.
    """
    columns: dict[str, Sequence[Any]] = {}
    if not asked.inputs:
        raise MisfitError("inputs must have one tensor at least, but it has none")
    for tensor in asked.inputs:
        values, raw = _read_tensor(tensor, raw)
        if tensor.name in columns:
            raise MisfitError(f"inputs must have different names, but {tensor.name!r} comes twice")
        columns[tensor.name] = values
    if raw:
        raise MisfitError(f"{len(raw)} bytes follow the last tensor: each binary one needs its binary_data_size")
    (first, *_) = asked.inputs
    if len(asked.inputs) == 1 and len(first.shape) == 2 and first.shape[1] != 1:
        return _split_matrix(first, columns[first.name], spec)
    for tensor in asked.inputs:
        if not (len(tensor.shape) == 1 or tensor.shape[1:] == [1]):
            raise MisfitError(f"input {tensor.name} must have the shape [n] or [n, 1], but has {tensor.shape}")
    if len({len(values) for values in columns.values()}) > 1 or not len(columns[first.name]):
        lengths = {name: len(values) for name, values in columns.items()}
        raise MisfitError(f"all inputs must have one number of rows, one at least, but have {str(lengths)[:200]}")
    return columns


def _split_matrix(tensor: Input, values: Sequence[Any], spec: Spec) -> Columns:
    texts = [feature.name for feature in spec.features if feature.kind == "category"]
    width = len(spec.features)
    if texts or tensor.shape[1] != width or not values:
        raise MisfitError(
            f"one tensor for all features must have the shape [n, {width}], and all features must be numbers; but "
            f"input {tensor.name} has {tensor.shape}, and the categories are {texts}. Send a tensor for each feature."
        )
    return {feature.name: values[i::width] for i, feature in enumerate(spec.features)}


def _read_tensor(tensor: Input, raw: memoryview) -> tuple[list[Any], memoryview]:
    """A tensor's values in a flat list, and the bytes that follow it."""
    if any(size < 0 for size in tensor.shape):
        raise MisfitError(f"input {tensor.name} must have a shape of sizes from 0 on, but has {tensor.shape}")
    count = math.prod(tensor.shape)
    size = tensor.parameters.get("binary_data_size")
    if (size is None) == (tensor.data is None):
        raise MisfitError(f"input {tensor.name} must have either data or parameters.binary_data_size")
    if size is None:
        values = _flatten(tensor.data)
        _check_values(tensor, values)
    else:
        if type(size) is not int or not 0 <= size <= len(raw):
            raise MisfitError(f"input {tensor.name} has binary_data_size {size!r}, but {len(raw)} bytes are left")
        values = read_binary(tensor.name, tensor.datatype, raw[:size])
        raw = raw[size:]
    if len(values) != count:
        raise MisfitError(
            f"input {tensor.name} of shape {tensor.shape} must have {count} values, but has {len(values)}"
        )
    return values, raw


def _flatten(data: Any) -> list[Any]:
    while any(isinstance(item, list) for item in data):
        data = [value for item in data for value in (item if isinstance(item, list) else [item])]
    return list(data)


def _check_values(tensor: Input, values: Sequence[Any]) -> None:
    """null stands for what is missing in any tensor."""
    kinds: tuple[type, ...] = (float, int)
    if tensor.datatype == TEXT:
        kinds = (str,)
    elif tensor.datatype == "BOOL":
        kinds = (bool,)
    elif not tensor.datatype.startswith("FP"):
        kinds = (int,)
    if not set(map(type, values)) <= {*kinds, type(None)}:
        place = next(place for place, value in enumerate(values) if type(value) not in {*kinds, type(None)})
        raise MisfitError(f"input {tensor.name} must hold {tensor.datatype}, but its value {place} is none")


def read_binary(name: str, datatype: str, raw: "memoryview | bytes") -> list[Any]:
    """The values of a binary tensor. NaN stands for what is missing.

    Raises:
        MisfitError: the bytes are no whole number of values, or a text is no UTF-8.
    """
    if datatype == TEXT:
        return _read_texts(name, bytes(raw))
    dtype = np.dtype(DTYPES[datatype])
    if len(raw) % dtype.itemsize:
        raise MisfitError(f"input {name} must have {dtype.itemsize} bytes for each value, but has {len(raw)} in all")
    values: list[Any] = np.frombuffer(raw, dtype).tolist()
    return values


def _read_texts(name: str, raw: bytes) -> list[str]:
    """Each text after its length, in four bytes."""
    texts, place = list[str](), 0
    while place < len(raw):
        end = place + 4 + int.from_bytes(raw[place : place + 4], "little")
        if place + 4 > len(raw) or end > len(raw):
            raise MisfitError(
                f"input {name} must have texts that are as long as they say, but text {len(texts)} is cut"
            )
        try:
            texts.append(raw[place + 4 : end].decode())
        except UnicodeDecodeError:
            raise MisfitError(f"input {name} must have texts in UTF-8, but text {len(texts)} is none") from None
        place = end
    return texts


# --- answers ---------------------------------------------------------------------------------------------------------


class Inferred(BaseModel):
    """A response, for OpenAPI."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[dict[str, Any]]


class Fault(BaseModel):
    """An error, for OpenAPI."""

    error: str


Tensor = dict[str, Any]  # name, datatype, shape, data: flat


def write_tensors(answers: Answers, spec: Spec, wanted: Sequence[Output] | None) -> list[Tensor]:
    """The answers as tensors.

    Args:
        spec: of the model: the order of the classes.
        wanted: what the request asks for. None: all that there is.

    Raises:
        MisfitError: there is no such tensor.
    """
    count = [len(answers)]
    values: dict[str, tuple[list[int], list[Any]]] = {
        "score": _flatten_scores(answers, spec),
        "id": (count, [answer["id"] for answer in answers]),
        "version": (count, [answer["version"] for answer in answers]),
        "stale": (count, [answer.get("stale", False) for answer in answers]),
    }
    if spec.task != "regression":
        decisions = [answer["decision"] for answer in answers]
        values["decision"] = (count, decisions if spec.task == "binary" else list(map(str, decisions)))
    if "reasons" in answers[0]:
        values["reasons"] = (count, [orjson.dumps(answer["reasons"]).decode() for answer in answers])
    names = list(values) if wanted is None else [output.name for output in wanted]
    if unknown := [name for name in names if name not in values]:
        raise MisfitError(f"outputs must be of {', '.join(values)}, but got {str(unknown)[:200]}")
    return [
        {"name": name, "datatype": _datatype_of(name, spec), "shape": values[name][0], "data": values[name][1]}
        for name in names
    ]


def _flatten_scores(answers: Answers, spec: Spec) -> tuple[list[int], list[float]]:
    if spec.task != "multiclass":
        return [len(answers)], [answer["score"] for answer in answers]
    scores = [score for answer in answers for score in answer["score"].values()]
    return [len(answers), len(spec.classes)], scores


def _datatype_of(name: str, spec: Spec) -> str:
    return "BOOL" if name == "decision" and spec.task == "binary" else OUTPUTS[name]


def write_binary(tensor: Tensor) -> bytes:
    """A tensor's values as bytes."""
    if tensor["datatype"] == TEXT:
        texts = [text.encode() for text in tensor["data"]]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return np.array(tensor["data"], DTYPES[tensor["datatype"]]).tobytes()


def write_body(asked: Inference, model: str, version: int, tensors: Sequence[Tensor]) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON where binary tensors follow it."""
    binary = _choose_binary(asked)
    outputs, tail = [], []
    for tensor in tensors:
        if tensor["name"] in binary:
            raw = write_binary(tensor)
            tail.append(raw)
            head = {name: value for name, value in tensor.items() if name != "data"}
            outputs.append({**head, "parameters": {"binary_data_size": len(raw)}})
        else:
            outputs.append(tensor)
    header = {"model_name": model, "model_version": str(version), "outputs": outputs}
    if asked.id is not None:
        header["id"] = asked.id
    body = orjson.dumps(header)
    return (body, None) if not tail else (b"".join([body, *tail]), len(body))


EVERY = frozenset(OUTPUTS)


def _choose_binary(asked: Inference) -> frozenset[str]:
    """The names of the outputs that are wanted in binary."""
    default = asked.parameters.get("binary_data_output") is True
    if asked.outputs is None:
        return EVERY if default else frozenset()
    return frozenset(output.name for output in asked.outputs if output.parameters.get("binary_data", default) is True)


# --- metadata --------------------------------------------------------------------------------------------------------


def describe_model(model: str, version: int, spec: Spec) -> dict[str, Any]:
    """What the protocol says of a model: its tensors. The inputs are the features; raw rows may be sent as well."""
    inputs = [
        {"name": feature.name, "datatype": TEXT if feature.kind == "category" else "FP64", "shape": [-1]}
        for feature in spec.features
    ]
    names = [name for name in OUTPUTS if not (name == "decision" and spec.task == "regression")]
    outputs = [
        {"name": name, "datatype": _datatype_of(name, spec), "shape": [-1, len(spec.classes)] if wide else [-1]}
        for name in names
        for wide in [name == "score" and spec.task == "multiclass"]
    ]
    return {
        "name": model,
        "versions": [str(version)],
        "platform": "xgboost",
        "inputs": inputs,
        "outputs": outputs,
    }
