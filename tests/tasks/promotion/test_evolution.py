"""Each difference between the data of two versions is one line, and what is the same is none."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from tasks.data.manifest import RawManifest, RawTable
from tasks.params import Column
from tasks.promotion import evolution
from tests.tasks import small

TABLE = {
    "address": "source/orders.csv",
    "fingerprint": "f",
    "rows": 1,
    "periods": {},
    "files": ["orders.csv"],
    "read": 1,
    "empty": 0,
    "later": 0,
    "lacking": {},
}


def side(change: Callable[[dict[str, Any]], None] | None = None, **table: Any) -> evolution.Side:
    """The made world, its columns of `orders` changed, and what its source delivered."""
    p = small.settings()
    columns = {name: column.model_dump() for name, column in p.contract["orders"].columns.items()}
    if change:
        change(columns)
    orders = p.contract["orders"].model_copy(update={"columns": {k: Column(**v) for k, v in columns.items()}})
    raw = RawTable(**{**TABLE, **table})
    manifest = RawManifest(
        as_of=datetime(2024, 1, 1), limit=datetime(2024, 1, 1), pii_key_id=None, tables={"orders": raw}
    )
    return evolution.Side(p.model_copy(update={"contract": {**p.contract, "orders": orders}}), manifest)


def describe(before: evolution.Side, after: evolution.Side) -> list[tuple[str, str]]:
    changes = evolution.list_changes(before, after)
    assert {change.table for change in changes} <= {"orders"}
    return [(change.column, change.change) for change in changes]


def test_nothing_is_said_of_what_is_the_same() -> None:
    assert describe(side(), side()) == []


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (lambda columns: columns.update(tip={"type": "DOUBLE"}), [("tip", "new in the contract")]),
        (lambda columns: columns.pop("amount"), [("amount", "no longer in the contract")]),
        (lambda columns: columns["delay"].update(type="DOUBLE"), [("delay", "widened from INTEGER to DOUBLE")]),
        (lambda columns: columns["amount"].update(type="INTEGER"), [("amount", "narrowed from DOUBLE to INTEGER")]),
        (lambda columns: columns["distance"].update(max=50), [("distance", "max was 100.0, and is 50.0")]),
        (lambda columns: columns["distance"].update(max=None), [("distance", "max was 100.0, and is none")]),
        (lambda columns: columns["store"].update(alias=("shop",)), [("store", "may be called shop too")]),
    ],
)
def test_a_change_of_the_contract_is_one_line(
    change: Callable[[dict[str, Any]], None], lines: list[tuple[str, str]]
) -> None:
    assert describe(side(), side(change)) == lines


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ({}, {"unread": ["tip"]}, [("tip", "new in the files, and not read")]),
        ({"unread": ["tip"]}, {}, [("tip", "no longer among what is not read")]),
        ({}, {"lacking": {"orders.csv": ["amount"]}}, [("amount", "files lack it now")]),
        ({}, {"address": "s3://b/x.csv"}, [("", "its address was source/orders.csv, and is s3://b/x.csv")]),
    ],
)
def test_a_change_of_what_the_source_delivers_is_one_line(
    before: dict[str, Any], after: dict[str, Any], lines: list[tuple[str, str]]
) -> None:
    assert describe(side(**before), side(**after)) == lines


def test_a_table_that_came_or_went_is_one_line() -> None:
    both, one = side(), side()
    left = one.p.model_copy(update={"contract": {k: v for k, v in one.p.contract.items() if k != "traffic"}})
    without = evolution.Side(left, one.raw)
    assert [change.change for change in evolution.list_changes(both, without)] == ["the table is gone"]
    assert [change.change for change in evolution.list_changes(without, both)] == ["a new table"]
