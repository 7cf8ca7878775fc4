"""A row that gives a column and what it is derived from must not contradict itself."""

import json
from datetime import datetime
from typing import Any

import pytest

from tasks import params
from tasks.serving.consistency import ConsistencyChecker
from tasks.serving.stream_messages import DeadLetter, KafkaMessage, RowReader, StreamRow
from tasks.serving.tables import Refused
from tests.conftest import KEY, raw_params

NOON = datetime(2024, 1, 5, 12)


def checker(**changes: Any) -> ConsistencyChecker | None:
    raw = raw_params("binary", 60)
    orders, source = raw["contract"]["orders"], raw["sources"]["orders"]
    orders["columns"] |= changes.get("columns", {})
    source |= changes.get("source", {})
    raw["spine"]["columns"] += changes.get("spine", [])
    return ConsistencyChecker.of(params.validate(raw))


def row(**values: Any) -> dict[str, Any]:
    return {"event_time": NOON, "number": 1, "email": None, "store": "north", "amount": 2.0, "distance": 3.0} | values


def fault(checker: ConsistencyChecker | None, **values: Any) -> str | None:
    assert checker is not None
    try:
        checker.check([row(placed=NOON), row(**values)])
    except Refused as error:
        return str(error)
    return None


def test_an_event_time_must_be_what_the_contract_derives() -> None:
    placed = checker(spine=["placed"])
    assert fault(placed, placed=NOON) is None
    assert fault(placed, placed=None) is None
    rule = "row 1: event_time: must be what sources.orders.event_time makes of the row's other columns, `placed`"
    assert str(fault(placed, placed=datetime(2024, 1, 5, 13))).startswith(rule)


@pytest.mark.parametrize(
    ("kind", "expression", "right", "wrong"),
    [
        ("VARCHAR", "strptime(day, '%d/%m/%Y') + to_hours(hour)", "05/01/2024", "06/01/2024"),
        ("VARCHAR", "day || ' 12:00'", "2024-01-05", "2024-01-06"),
        ("DATE", "day + to_hours(hour)", datetime(2024, 1, 5).date(), datetime(2024, 1, 4).date()),
    ],
)
def test_a_time_of_texts_dates_and_numbers_is_derived_as_ingest_does(
    kind: str, expression: str, right: Any, wrong: Any
) -> None:
    columns = {"day": {"type": kind}, "hour": {"type": "INTEGER"}}
    asked = checker(columns=columns, source={"event_time": expression}, spine=["day", "hour"])
    assert fault(asked, day=right, hour=12) is None
    assert "event_time: " in str(fault(asked, day=wrong, hour=12))
    assert fault(asked, day=None, hour=12) is None


def test_a_value_for_which_the_expression_fails_contradicts_nothing() -> None:
    columns = {"day": {"type": "VARCHAR"}}
    asked = checker(columns=columns, source={"event_time": "strptime(day, '%Y-%m-%d')"}, spine=["day"])
    assert fault(asked, day="no day") is None


def test_another_derived_column_is_held_to_its_expression_also_through_a_helper() -> None:
    asked = checker(
        columns={"far": {"type": "BOOLEAN"}, "size": {"type": "INTEGER"}},
        source={"derive": {"kilometres": "distance * 1.6", "far": "kilometres > 8", "size": "CAST(amount AS INTEGER)"}},
        spine=["far", "size"],
    )
    assert fault(asked, far=False, size=2) is None
    assert fault(asked, far=None, size=None) is None
    assert "far: must be what sources.orders.derive.far makes" in str(fault(asked, far=True))
    assert "size: " in str(fault(asked, size=3))


def test_what_needs_more_than_the_row_is_not_asked() -> None:
    assert checker() is None  # placed is no column of the spine
    looked_up = "(SELECT min(measured_at) FROM traffic WHERE traffic.store = store)"
    assert checker(columns={"first": {"type": "TIMESTAMP"}}, source={"derive": {"first": looked_up}}) is None
    assert checker(source={"derive": {"store": "lower(store)"}}) is None  # a new value of its own old one


def test_a_message_that_contradicts_itself_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_PII_KEY", KEY)
    raw = raw_params("binary", 60)
    raw["spine"]["columns"].append("placed")
    reader = RowReader(params.validate(raw))

    def read(placed: str) -> StreamRow | DeadLetter:
        sent = row(event_time="2024-01-05T12:00:00", placed=placed)
        return reader.read(KafkaMessage("rows", 0, 0, 0, None, json.dumps(sent).encode()))

    assert isinstance(read("2024-01-05T12:00:00"), StreamRow)
    dead = read("2024-01-05T13:00:00")
    assert isinstance(dead, DeadLetter)
    assert dead.faults[0]["loc"] == ["event_time"]
    assert "13:00" not in json.dumps(dead.faults)
