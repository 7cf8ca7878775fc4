"""Of a column that is coarsened nothing finer is written, and expressions, clean tables and the API see one value."""

import csv
import json
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from tasks import params
from tasks.data import contract
from tasks.params import Column
from tasks.serving import messages
from tests.conftest import Made

World = Callable[..., Made]


@pytest.mark.parametrize(
    ("column", "value", "coarse"),
    [
        ({"type": "VARCHAR", "coarsen": 3}, "10115", "101"),
        ({"type": "VARCHAR", "coarsen": 3, "text": ["trim", "lower"]}, "  Berlin", "ber"),
        ({"type": "INTEGER", "coarsen": 10}, "37", 30),
        ({"type": "INTEGER", "coarsen": 10}, "-1", -10),
        ({"type": "BIGINT", "coarsen": 1000}, "123456", 123000),
        ({"type": "DOUBLE", "coarsen": 5}, "12.4", 10.0),
        ({"type": "DOUBLE", "coarsen": 10, "max": 80, "outside": "clip"}, "97.5", 80.0),
        ({"type": "DATE", "coarsen": "year"}, "1987-06-05", date(1987, 1, 1)),
        ({"type": "DATE", "coarsen": "month", "format": "%d.%m.%Y"}, "05.06.1987", date(1987, 6, 1)),
        ({"type": "TIMESTAMP", "coarsen": "hour"}, "2024-02-03 04:05:06", datetime(2024, 2, 3, 4)),
    ],
)
def test_a_value_is_coarse_and_what_is_coarse_stays_as_it_is(column: dict[str, Any], value: str, coarse: Any) -> None:
    rule = Column(**column)
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute("CREATE TABLE t AS SELECT ? AS x", [value])
        once = contract.clean_sql("x", rule)
        assert con.execute(f"SELECT {once} FROM t").fetchall() == [(coarse,)]
        twice = contract.mend_sql(f"({once})", rule)
        assert con.execute(f"SELECT {twice} FROM t").fetchall() == [(coarse,)]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"type": "VARCHAR", "coarsen": "month"}, "coarsen is a number of characters"),
        ({"type": "BOOLEAN", "coarsen": 1}, "coarsen is a number of characters"),
        ({"type": "DATE", "coarsen": 3}, r"one of \('month', 'year'\)"),
        ({"type": "DATE", "coarsen": "hour"}, r"must be one of \('month', 'year'\) for DATE, but got 'hour'"),
        ({"type": "VARCHAR", "coarsen": 3, "pii": True}, "neither pii: true nor references"),
        ({"type": "INTEGER", "coarsen": 10, "min": 18}, r"multiples of coarsen, 10, but got \[18"),
    ],
)
def test_what_cannot_be_coarsened_so_is_refused(column: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Column(**column)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"number": {"coarsen": 10}}, "orders: number tells rows apart"),
        ({"amount": {"coarsen": 10}, "derive": {"amount": "distance * 2"}}, "orders: amount is derived"),
    ],
)
def test_a_key_and_a_derived_column_are_not_coarsened(made: Made, change: dict[str, Any], words: str) -> None:
    made.raw["sources"]["orders"]["derive"] = change.pop("derive", {})
    for name, more in change.items():
        made.raw["contract"]["orders"]["columns"][name] |= more
    with pytest.raises(ValueError, match=words):
        params.validate(made.raw)


@pytest.fixture
def made(make_world: World) -> Made:
    return make_world(days=60, per_day=8)


def everything(folder: Path) -> str:
    return "".join(
        str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text(errors="replace")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_nothing_finer_is_written_and_a_value_that_fits_no_type_is_still_a_fault(made: Made, kind: str) -> None:
    with (made.folder / "source/customers.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for i, row in enumerate(rows):
        row |= {"age": str(23 + i % 60), "zip": f"Z{98765 - i}", "born": f"1987-06-{1 + i % 28:02}"}
    table = pa.Table.from_pylist(rows)
    if kind == "csv":
        rows[0]["born"] = "June 1987"
        with (made.folder / "source/customers.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        table = table.set_column(table.schema.get_field_index("age"), "age", table["age"].cast(pa.int32()))
        table = table.set_column(table.schema.get_field_index("born"), "born", table["born"].cast(pa.date32()))
        pq.write_table(table, made.folder / "source/customers.parquet")
        made.raw["sources"]["customers"]["address"] = "source/customers.parquet"
    columns = made.raw["contract"]["customers"]["columns"]
    columns["age"] |= {"coarsen": 10, "min": 0, "max": 120}
    columns |= {"zip": {"type": "VARCHAR", "coarsen": 2}, "born": {"type": "DATE", "coarsen": "month"}}
    made.run("ingest", "clean", p=made.params(**{"clean.max_bad_share": 0.1}))
    written = everything(made.folder / "data") + everything(made.folder.parent / "periods")
    clean = pq.read_table(made.folder / "data/clean/customers")
    assert set(clean["zip"].to_pylist()) == {"Z9"}
    assert set(clean["born"].to_pylist()) == {date(1987, 6, 1)}
    assert set(clean["age"].to_pylist()) <= {20, 30, 40, 50, 60, 70, 80}
    assert not any(f"Z{98765 - i}" in written for i in range(200))
    assert "1987-06-0" in written or "datetime.date(1987, 6, 1)" in written
    assert not any(f"1987-06-{day:02}" in written for day in range(2, 29))
    held = pq.read_table(made.folder / "data/quarantine/customers")
    assert held["reason"].to_pylist() == (["born (unreadable) is no DATE"] if kind == "csv" else [])


@pytest.mark.parametrize(
    ("column", "asked", "seen"),
    [
        ({"type": "INTEGER", "coarsen": 10, "min": 0, "max": 80}, 89, 80),
        ({"type": "DOUBLE", "coarsen": 10, "max": 80}, 89.5, 80.0),
        ({"type": "VARCHAR", "coarsen": 2, "allowed": ["10", "20"]}, "10115", "10"),
        ({"type": "DATE", "coarsen": "month"}, "2024-05-06", date(2024, 5, 1)),
        ({"type": "TIMESTAMP", "coarsen": "day"}, "2024-05-06T07:08:09Z", datetime(2024, 5, 6)),
    ],
)
def test_the_api_sees_the_same_coarse_value(column: dict[str, Any], asked: Any, seen: Any) -> None:
    kind, field = messages._field_of("x", Column(**column, required=True))
    model = TypeAdapter(messages._make_model("Row", {"x": (kind, field)}))
    assert model.validate_json(json.dumps({"x": asked})).x == seen  # type: ignore[attr-defined]
    if "max" in column:
        with pytest.raises(ValidationError):
            model.validate_json('{"x": 90}')
