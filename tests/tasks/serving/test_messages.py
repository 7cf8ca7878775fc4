"""A row that the API is asked about is mended as clean mends a table's rows."""

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.serving import messages
from tests.tasks import small

STORE = {"type": "VARCHAR", "required": True, "text": ["trim", "upper"]}
ROW = {"event_time": "2024-01-05T10:00:00Z", "number": 1}


def read(rules: dict[str, Any], value: Any) -> Any:
    """What the API makes of a value of the column `store` with these rules."""
    p = small.settings()
    orders = p.contract[p.spine.table]
    column = type(orders.columns["store"]).model_validate(rules)
    changed = orders.model_copy(update={"columns": {**orders.columns, "store": column}})
    kind = messages.row_of(p.model_copy(update={"contract": {**p.contract, p.spine.table: changed}}))
    names = {field.alias for field in kind.model_fields.values()}
    row = {name: text for name, text in {**ROW, "store": value}.items() if name in names}
    return kind.model_validate(row, strict=False).model_dump(by_alias=True)["store"]


@pytest.mark.parametrize(
    ("rules", "value", "mended"),
    [
        (STORE, " straße ", "STRAẞE"),
        ({"type": "VARCHAR", "text": ["trim"]}, "   ", None),
        ({"type": "VARCHAR", "text": ["lower"], "allowed": ["red"]}, "RED", "red"),
        ({"type": "INTEGER", "min": 1, "max": 5, "outside": "clip"}, 9, 5),
        ({"type": "DOUBLE", "max": 5.5, "outside": "empty"}, 9.0, None),
        ({"type": "DOUBLE", "max": 5.5, "outside": "keep"}, 9.0, 9.0),
        ({"type": "DOUBLE", "max": 5.5, "outside": "clip"}, None, None),
    ],
)
def test_a_value_is_mended_as_in_a_table(rules: dict[str, Any], value: Any, mended: Any) -> None:
    assert read(rules, value) == mended


@pytest.mark.parametrize(
    ("rules", "value"),
    [
        (STORE, "  "),
        (STORE, None),
        (STORE, 3),
        ({"type": "VARCHAR", "text": ["lower"], "allowed": ["red"]}, "BLUE"),
        ({"type": "INTEGER", "min": 1, "max": 5}, 9),
        ({"type": "INTEGER", "min": 1, "max": 5, "outside": "clip"}, "x"),
    ],
)
def test_what_clean_puts_aside_is_refused(rules: dict[str, Any], value: Any) -> None:
    with pytest.raises(ValidationError):
        read(rules, value)
