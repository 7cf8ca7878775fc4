"""messages: the API's request and response bodies, as models made of the contract: types, bounds, allowed values.

The rules of the contract that a row alone decides are checked here, as clean checks them in SQL. References to other
tables are checked where the tables are (tables.py).
"""

import math
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from functools import cache, partial
from typing import Annotated, Any, Literal

import duckdb
import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)

from tasks.data import contract
from tasks.data.featuresql import LARGEST_LABEL
from tasks.params import Column, Params, to_utc

BITS = {"INTEGER": 31, "BIGINT": 63}
PLAIN: Mapping[str, Any] = {"VARCHAR": str, "BOOLEAN": bool, "DATE": date}
LONGEST = 1000  # characters of a text
MOST_BYTES = 4_000_000  # of a request, or of a row of the stream: a thousand rows have much less
REPORTED_FAULTS, COUNTED_FAULTS = 20, 2000  # of a message; with more than the second, only their number is reported
Fault = dict[str, Any]  # as in a 422: type, loc, msg; never the value, which may be personal


def _to_utc(moment: datetime) -> datetime:
    try:
        return to_utc(moment)
    except OverflowError:  # of the year 1 or 9999, with an offset that leads out of it
        raise ValueError("a time must lie between the years 1 and 9999 in UTC") from None


Utc = Annotated[datetime, AfterValidator(_to_utc)]


class Message(BaseModel):
    """Strict: "12" is no number. Of JSON, dates and times are texts in ISO 8601."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Ready(Message):
    """Features as rows or as columns, one of the two. MLflow's servers call columns `inputs`."""

    @model_validator(mode="after")
    def _check_columns(self) -> "Ready":
        rows, columns = getattr(self, "rows", None), getattr(self, "inputs", None)
        if (rows is None) == (columns is None) or columns == {}:
            raise ValueError("send either rows or inputs, and of inputs one column at least")
        if columns and len({len(values) for values in columns.values()}) > 1:
            raise ValueError("the columns of inputs must be of one length")
        return self


# predict.py checks a feature, since it knows the model: here any value of JSON may stand.
Value = Annotated[
    Any,
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "boolean"}, {"type": "string", "maxLength": LONGEST}, {"type": "null"}]}
    ),
]
REASONS: Any = (
    Annotated[int, Field(ge=0, le=100)],
    Field(0, description="how many of the features that moved each score most, the strongest first"),
)


def row_of(p: Params) -> type[Message]:
    """A row to predict for: its event time, and the spine's columns."""
    columns = p.contract[p.spine.table].columns
    names = dict.fromkeys([*p.contract[p.spine.table].key, *p.spine.columns])
    when = Field(alias="event_time", description="when the event is; UTC where no zone is given")
    fields: dict[str, Any] = {"at": (Utc, when)}
    fields |= {f"column_{i}": _field_of(name, columns[name]) for i, name in enumerate(names) if name in columns}
    return _make_model("Row", fields)


def _make_model(name: str, fields: dict[str, Any], base: type[Message] = Message) -> type[Message]:
    model: type[Message] = create_model(name, __base__=base, **fields)
    return model


def _field_of(name: str, column: Column) -> tuple[Any, Any]:
    """Under an alias: a column may be called as pydantic calls something of its own.

    What clean mends is mended here too; what it puts into quarantine is refused.
    """
    kind = _type_of(column) if column.required else _type_of(column) | None
    if column.text or (column.type == "VARCHAR" and column.coarsen is not None):
        kind = Annotated[kind, BeforeValidator(partial(_mend, column))]
    elif column.coarsen is not None or column.outside in ("clip", "empty"):
        kind = Annotated[kind, AfterValidator(partial(_mend, column))]
    return (kind, Field(alias=name)) if column.required else (kind, Field(None, alias=name))


def _mend(column: Column, value: Any) -> Any:
    """By the SQL that mends a table's values: there is one rule of how a text is spelled."""
    if not isinstance(value, str if column.type == "VARCHAR" else (int, float, date)):
        return value  # no value, or one of another type, which is refused
    query = f"SELECT {contract.mend_sql(f'CAST($1 AS {column.type})', column)}"
    ((mended,),) = _connect().cursor().execute(query, [value]).fetchall()
    if mended is None and column.required:
        raise ValueError("it is required, and nothing of it is left once it is mended as the contract says")
    return mended


@cache
def _connect() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()


def _type_of(column: Column) -> Any:
    low, high = (column.min, column.max) if column.outside == "quarantine" else (None, None)
    if isinstance(column.coarsen, int) and high is not None and column.type != "VARCHAR":
        above = high + column.coarsen  # all below it is coarsened to the bound itself
        high = math.nextafter(above, -math.inf) if column.type == "DOUBLE" else int(above) - 1
    if column.allowed:
        return Literal[tuple(column.allowed)]
    if column.type == "TIMESTAMP":
        return Utc
    if column.type == "VARCHAR":
        return Annotated[str, Field(max_length=LONGEST)]
    if column.type in BITS:
        edge = 2 ** BITS[column.type]
        low, high = low if low is not None else -edge, high if high is not None else edge - 1
        return Annotated[int, Field(ge=low, le=high)]
    if column.type == "DOUBLE":
        return Annotated[float, Field(ge=low, le=high, allow_inf_nan=False)]
    return PLAIN[column.type]


class Messages:
    """The models of the request bodies. A body that breaks a rule raises pydantic's ValidationError."""

    def __init__(self, p: Params) -> None:
        most = Field(min_length=1, max_length=p.serving.rows)
        self.rows = _make_model("Rows", {"rows": (list[row_of(p)], most), "reasons": REASONS})  # type: ignore[misc]
        ready = {
            "rows": (list[dict[str, Value]] | None, Field(None, min_length=1, max_length=p.serving.rows)),
            "inputs": (dict[str, Annotated[list[Value], most]] | None, None),
            "reasons": REASONS,
        }
        self.features = _make_model("Features", ready, Ready)
        label = {
            "id": (Annotated[str, Field(min_length=1, max_length=100)], Field(description="of the prediction")),
            "label": (_label_type(p), Field(description="what came of it")),
            "known_at": (Utc | None, Field(None, description="when it became known; by default now")),
        }
        outcome = _make_model("Outcome", label)
        self.outcomes = _make_model("Outcomes", {"outcomes": (list[outcome], most)})  # type: ignore[valid-type]


def describe_body(kind: type[BaseModel] | dict[str, Any]) -> dict[str, Any]:
    """What a route takes, for OpenAPI: a message, or its JSON schema. FastAPI does not read the body: so it is checked
    once, and fast."""
    schema = kind if isinstance(kind, dict) else kind.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inline(schema, schema)}}}}


def _inline(part: Any, whole: dict[str, Any]) -> Any:
    """A schema without references into itself."""
    if isinstance(part, dict):
        if "$ref" in part:
            return _inline(whole["$defs"][part["$ref"].rpartition("/")[2]], whole)
        return {name: _inline(value, whole) for name, value in part.items() if name != "$defs"}
    return [_inline(item, whole) for item in part] if isinstance(part, list) else part


def count_values(body: bytes) -> int:
    """How many commas and opening brackets there are in a body of JSON outside of its texts: it has hardly more values.

    To parse a body takes as long as it has values, and nothing else runs meanwhile (Python's lock); to count them, a
    tenth of that, and others run.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    text = np.frombuffer(body, np.uint8)
    is_inside = np.bitwise_xor.accumulate(text == ord('"'))
    return int(np.count_nonzero(((text == ord(",")) | (text == ord("[")) | (text == ord("{"))) & ~is_inside))


def list_faults(error: ValidationError) -> list[Fault]:
    """Where each fault is and which rule it breaks."""
    if error.error_count() > COUNTED_FAULTS:  # to list so many would take longer than to answer
        return [make_fault("faults", ["body"], f"{error.error_count():,} faults: too many to be listed")]
    faults = error.errors(include_context=False, include_url=False, include_input=False)[:REPORTED_FAULTS]
    return [make_fault(fault["type"], fault["loc"], fault["msg"]) for fault in faults]


def make_fault(kind: str, loc: Iterable[int | str], msg: str) -> Fault:
    """Of bounded length: a field may have any name."""
    return {"type": kind, "loc": [part if isinstance(part, int) else part[:100] for part in loc], "msg": msg[:300]}


def _label_type(p: Params) -> Any:
    if p.label.task == "binary":
        return bool
    if p.label.task == "regression":
        return Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST_LABEL, le=LARGEST_LABEL)]
    return Annotated[str, Field(max_length=LONGEST)] | Annotated[float, Field(allow_inf_nan=False)]


class Reason(BaseModel):
    feature: str
    value: bool | float | str | None
    effect: float = Field(description="what it added to the margin: log-odds, where the score is a probability")


class Prediction(BaseModel):
    id: str = Field(description="names this prediction; its outcome is sent with it")
    version: int = Field(description="of the model that answered")
    score: float | dict[str, float] = Field(
        description="the calibrated probability, or one for each class, or the value"
    )
    decision: bool | str | float | None = Field(None, description="positive at the threshold, or the likeliest class")
    stale: bool | None = Field(
        None,
        description="true where the row lies so far ahead of the state that its features miss what happens between",
    )
    reasons: list[Reason] | None = Field(None, description="on request; SHAP values")


class Predictions(BaseModel):
    """In the order of the rows that were sent. `version` is the champion's; a row may have been a challenger's."""

    version: int
    predictions: list[Prediction]


class Accepted(BaseModel):
    accepted: int
