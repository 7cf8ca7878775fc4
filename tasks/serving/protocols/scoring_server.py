"""scoring_server: the protocol of `mlflow models serve`, which is SageMaker's too: /invocations, /ping and /version.

    curl 127.0.0.1:8080/invocations --json '{"dataframe_records": [{"distance": 631, "carrier": "EV"}]}'

A body has one of dataframe_split, dataframe_records, instances and inputs, and may have `params`, of which `reasons` is
known. Source: the documentation of MLflow's inference server, "Accepted data formats".
"""

from typing import Any

from pydantic import BaseModel

from tasks.serving.handler import Answers, Columns
from tasks.serving.messages import Reason
from tasks.serving.protocols.questions import MisfitError, name_columns

ROWS: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "description": "objects of names and values, or lists with a value for each feature",
    "items": {"anyOf": [{"type": "object"}, {"type": "array"}]},
}
SPLIT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "columns": {"type": "array", "items": {"type": "string"}},
        "index": {"type": "array"},
        "data": {"type": "array", "minItems": 1, "items": {"type": "array"}},
    },
    "required": ["columns", "data"],
}
INPUTS: dict[str, Any] = {"anyOf": [ROWS, {"type": "object", "additionalProperties": True}]}
BODY: dict[str, Any] = {  # for OpenAPI
    "type": "object",
    "properties": {
        "dataframe_split": SPLIT,
        "dataframe_records": ROWS,
        "instances": ROWS,
        "inputs": INPUTS,
        "params": {"type": "object", "properties": {"reasons": {"type": "integer", "minimum": 0, "maximum": 100}}},
    },
}
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def read_columns(body: Any, names: list[str]) -> tuple[Columns, Any]:
    """A body → its columns, and how many reasons it asks for.

    Args:
        names: the model's features, for rows without names.

    Raises:
        MisfitError: it is none of the four forms.
    """
    forms = [form for form in FORMS if isinstance(body, dict) and form in body]
    if len(forms) != 1:
        raise MisfitError(f"the body must be an object with one of {', '.join(FORMS)}, but has {forms or 'none'}")
    extra = body.get("params") or {}
    if not isinstance(extra, dict) or not extra.keys() <= {"reasons"}:
        raise MisfitError(f"params may have reasons, a whole number, and nothing else, but got {str(extra)[:100]}")
    return _read_form(forms[0], body[forms[0]], names), extra.get("reasons", 0)


def _read_form(form: str, value: Any, names: list[str]) -> Columns:
    if form == "dataframe_split":
        return _read_split(value)
    if form == "inputs" and isinstance(value, dict):
        if any(isinstance(values, list) for values in value.values()):
            return _check_lengths(value)
        return {name: [values] for name, values in value.items()}  # one row
    if not isinstance(value, list):
        raise MisfitError(f"{form} must be a list of rows{', or an object of columns' * (form == 'inputs')}")
    return name_columns(value, names)


def _read_split(value: Any) -> Columns:
    names, rows = (value.get("columns"), value.get("data")) if isinstance(value, dict) else (None, None)
    if not isinstance(names, list) or not isinstance(rows, list) or not all(isinstance(name, str) for name in names):
        raise MisfitError(
            "dataframe_split must be an object with `columns`, a list of names, and `data`, a list of rows"
        )
    if len(set(names)) < len(names):
        raise MisfitError("the columns of dataframe_split must have different names")
    for place, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            raise MisfitError(
                f"row {place} of dataframe_split must be a list of {len(names)} values, one for each column"
            )
    if not rows:
        raise MisfitError("a request must have one row at least, but it has none")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _check_lengths(columns: dict[str, Any]) -> Columns:
    lengths = {name: len(values) if isinstance(values, list) else None for name, values in columns.items()}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        raise MisfitError(f"the columns of inputs must be lists of one length, but have {str(lengths)[:200]}")
    return columns


def write_answers(version: int, answers: Answers) -> dict[str, Any]:
    """The scores as MLflow's server sends them, and beside them what an outcome is sent with.

    `predictions` is what `mlflow.pyfunc`'s predict gives for the same rows; of several classes it has names."""
    body: dict[str, Any] = {
        "predictions": [answer["score"] for answer in answers],
        "ids": [answer["id"] for answer in answers],
        "decisions": [answer["decision"] for answer in answers],
        "version": version,
    }
    for name in ("stale", "reasons"):
        if any(name in answer for answer in answers):
            body[name] = [answer.get(name) for answer in answers]
    return body


class Invocation(BaseModel):
    """A response, for OpenAPI."""

    predictions: list[float | dict[str, float]]
    ids: list[str]
    decisions: list[bool | str | float | None]
    version: int
    stale: list[bool | None] | None = None
    reasons: list[list[Reason]] | None = None


class Fault(BaseModel):
    """An error, for OpenAPI."""

    error_code: str
    message: str


def write_error(message: str) -> dict[str, Any]:
    """As MLflow's server says what is wrong."""
    return {"error_code": "BAD_REQUEST", "message": message}
