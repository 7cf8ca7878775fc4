"""questions: what a request of any protocol asks: columns of raw rows, or of ready features.

A request with an event_time asks for raw rows, whose features the server makes; no feature has this name. Any other
sends features that are ready.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from tasks.serving import messages, predict
from tasks.serving.handler import Answers, Columns, Handler
from tasks.serving.tables import Refused

EVENT_TIME = "event_time"
WHOLE = {"INTEGER", "BIGINT"}
M = TypeVar("M", bound=BaseModel)


class MisfitError(ValueError):
    """A body that breaks a rule of its protocol, or a row that breaks one of the contract. The text names both."""


def parse_json(body: bytes) -> Any:
    """A body's JSON. Python's clients write NaN for what is missing, which JSON does not have: it is read as null.

    Raises MisfitError for what is no JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            return _drop_nan(from_json(body))
        except ValueError as error:
            raise MisfitError(f"the body must be JSON, but it is not: {str(error)[:200]}") from None


def _drop_nan(value: Any) -> Any:
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, dict):
        return {name: _drop_nan(item) for name, item in value.items()}
    return list(map(_drop_nan, value)) if isinstance(value, list) else value


def name_columns(rows: Sequence[Any], names: Sequence[str]) -> Columns:
    """Rows as a protocol sends them → columns.

    Args:
        rows: objects of names and values; or lists with a value for each feature, in the model's order.
        names: the model's features.

    Raises:
        MisfitError: a row is neither, or has another number of values.
    """
    if not rows:
        raise MisfitError("a request must have one row at least, but it has none")
    if all(isinstance(row, dict) for row in rows):
        return predict.columns_of(rows)
    for place, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            raise MisfitError(
                f"row {place} must be an object of names and values, as all others, or a list of {len(names)} values, "
                f"one for each feature: {', '.join(names)}"
            )
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


async def answer(handler: Handler, columns: Columns, *, reasons: Any = 0) -> tuple[int, Answers]:
    """The champion's number and the answers, in the order of the rows.

    Raises:
        MisfitError: a row breaks the contract, or a feature does not fit the model.
    """
    try:
        if EVENT_TIME in columns:
            rows = [_spell_row(handler, row) for row in predict.rows_of(columns)]
            body = orjson.dumps({"rows": rows, "reasons": reasons})
            asked = _check(handler.messages.rows.model_validate_json, body).model_dump(by_alias=True)
            return await handler.predict_rows(asked["rows"], reasons=asked["reasons"])
        ready: Any = _check(handler.messages.features.model_validate, {"inputs": columns, "reasons": reasons})
        return await handler.predict_features(None, ready.inputs, reasons=ready.reasons)
    except Refused as error:
        raise MisfitError(f"row {error.row}, {error.name}: {error.rule}") from None


def _check(validate: Any, body: Any) -> Any:
    try:
        return validate(body)
    except ValidationError as error:
        raise MisfitError(describe_faults(messages.list_faults(error))) from None


def describe_faults(faults: Sequence[messages.Fault]) -> str:
    """Faults in a line: of each its place and the rule."""
    return "; ".join(f"{' '.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)


def _spell_row(handler: Handler, row: Mapping[str, Any]) -> dict[str, Any]:
    """A data frame makes 3.0 of a 3 where its column lacks a value: of a whole number's column that is 3."""
    rules = handler.p.contract[handler.p.spine.table].columns
    return {
        name: int(value)
        if isinstance(value, float) and value.is_integer() and name in rules and rules[name].type in WHOLE
        else value
        for name, value in row.items()
    }
