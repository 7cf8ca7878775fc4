"""A value means the same whatever stands around it: beside it in its file, and in the files beside that."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data import loading
from tasks.data.loading import Delivery
from tasks.data.sources import fetch
from tasks.params import Column, Source

Load = Callable[..., tuple[Delivery, list[tuple[Any, ...]]]]
TYPES = ["VARCHAR", "INTEGER", "BIGINT", "DOUBLE", "BOOLEAN", "DATE", "TIMESTAMP"]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """The files' contents, in order, and the columns with their types → what came, and the raw rows."""
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'America/New_York'")  # nothing may depend on it

        def load(*contents: Any, columns: dict[str, Any], **settings: Any) -> tuple[Delivery, list[tuple[Any, ...]]]:
            for i, content in enumerate(contents):
                if isinstance(content, pa.Table):
                    pq.write_table(content, tmp_path / f"part{i}.parquet")
                else:
                    (tmp_path / f"part{i}.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
            address = f"{tmp_path}/part*"
            wanted = {name: kind if isinstance(kind, Column) else Column(type=kind) for name, kind in columns.items()}
            source = Source(address=address, **settings)
            found = loading.load_table(con, fetch.fetch_files(address), source, wanted, "arrived")
            sql = "SELECT * EXCLUDE (blank, file, start) FROM arrived WHERE NOT blank ORDER BY rowid"
            return found, con.execute(sql).fetchall()

        yield load


def column(*values: Any, kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"k": pa.array(values, kind)})


@pytest.mark.parametrize("kind", TYPES)
def test_nan_is_missing_in_every_type_also_where_parquet_statistics_leave_it_out(load: Load, kind: str) -> None:
    table = pa.table({"k": pa.array(np.array([1.0, np.nan]))})  # from numpy: NaN stays NaN
    _, rows = load(table, columns={"k": kind})
    assert [row[0] is None for row in rows] == [False, True]


@pytest.mark.parametrize("text", ["nan", "NaN"])
def test_a_nan_that_a_csv_spells_out_is_missing_unless_the_column_is_text(load: Load, text: str) -> None:
    _, rows = load(f"x,s\n{text},{text}\n", columns={"x": "DOUBLE", "s": "VARCHAR"})
    assert rows == [(None, text)]


def test_whole_floats_are_the_same_text_as_the_integers_of_another_file(load: Load) -> None:
    _, rows = load(column(123, 7), column(8.0, None, 7.5, -0.0), columns={"k": "VARCHAR"})
    assert rows == [("123",), ("7",), ("8",), (None,), ("7.5",), ("0",)]


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (12345678901234568.0, pa.float64(), "12345678901234568"),
        (1e20, pa.float64(), "100000000000000000000"),
        (0.1, pa.float64(), "0.1"),
        (Decimal("7.50"), pa.decimal128(10, 2), "7.5"),
        (Decimal("700.00"), pa.decimal128(10, 2), "700"),
        (Decimal("700"), pa.decimal128(10, 0), "700"),
        (True, pa.bool_(), "true"),
        (b"ada", pa.binary(), "ada"),
        (b"\xff\xfe", pa.binary(), r"\xFF\xFE"),
        (date(2024, 1, 2), pa.date32(), "2024-01-02"),
        (datetime(2024, 1, 2, 3, tzinfo=UTC), pa.timestamp("us", "UTC"), "2024-01-02 03:00:00+00"),
    ],
)
def test_a_value_of_any_type_has_one_text(load: Load, value: Any, kind: pa.DataType, text: str) -> None:
    assert load(column(value, kind=kind), columns={"k": "VARCHAR"})[1] == [(text,)]


def test_integers_beyond_the_reach_of_a_float_stay_exact_beside_a_file_of_floats(load: Load) -> None:
    _, rows = load(column(9007199254740993, 7), column(8.0, None), columns={"k": "BIGINT"})
    assert [row[0] for row in rows] == ["9007199254740993", "7", "8", None]


def test_a_column_keeps_its_type_where_every_file_has_one_that_the_contract_holds(load: Load) -> None:
    _, rows = load(column(1, kind=pa.int16()), column(2, kind=pa.int32()), columns={"k": "BIGINT"})
    assert rows == [(1,), (2,)]


def test_nulls_stand_for_missing_in_numbers_too(load: Load) -> None:
    _, rows = load(column(-200.0, 1.5), columns={"k": "DOUBLE"}, nulls=["-200"])
    assert rows == [(None,), (1.5,)]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (",ts,x\n0,t1,a\n1,t2,b\n", [("t1", "a"), ("t2", "b")]),
        ("ts,x,\nt1,a,\n", [("t1", "a")]),
        ("ts,x\nt1,a\r\nt2,b\nt3,c\r\n", [("t1", "a"), ("t2", "b"), ("t3", "c")]),
        ("ts,x\rt1,a\rt2,b\r", [("t1", "a"), ("t2", "b")]),
        ('ts,x\r\nt1,"a\nb"\r\n', [("t1", "a\nb")]),
        ('ts,x\n\nt1, "q"\n', [("t1", "q")]),
        ('"a,b,c";ts;x\n1;t1;a\n', [("t1", "a")]),
        ("ts,ID,id,x\nt1,1,2,a\n", [("t1", "a")]),
        ("ts,x\nt1,a,\n\n", [("t1", "a")]),
    ],
    ids=["index", "trailing", "mixed ends", "old Mac", "end in quotes", "blank", "quoted names", "two cases", "extra"],
)
def test_csv_files_as_programs_write_them(load: Load, text: str, rows: list[Any]) -> None:
    assert load(text, columns={"ts": "VARCHAR", "x": "VARCHAR"})[1] == rows


def test_the_exact_name_wins_over_one_in_another_case(load: Load) -> None:
    assert load("ID,id\na,b\n", columns={"id": "VARCHAR"})[1] == [("b",)]
    assert load(pa.table({"ID": ["a"], "id": ["b"]}), columns={"ID": "VARCHAR"})[1][-1] == ("a",)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_wholly_empty_lines_are_counted_and_a_row_of_missing_values_is_none(load: Load, ends: str) -> None:
    lines = ["a;b;;", "1;2;;", "", ";;;", " ; ;;", "NA;NA;;", "3;4;;", ""]
    found, rows = load(ends.join(lines), columns={"a": "VARCHAR", "b": "VARCHAR"}, nulls=["NA"])
    assert rows == [("1", "2"), (None, None), ("3", "4")]
    assert (found.rows, found.empty) == (6, 3)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "latin-1"])
def test_another_encoding_is_a_setting_of_the_source(load: Load, encoding: str) -> None:
    text = "ts,x\nt1,é\n"
    assert load(text.encode(encoding), columns={"ts": "VARCHAR", "x": "VARCHAR"}, encoding=encoding)[1] == [("t1", "é")]
    with pytest.raises(ValueError, match="set the source's `encoding"):
        load(text.encode(encoding), columns={"ts": "VARCHAR", "x": "VARCHAR"})


def test_a_column_that_a_file_lacks_is_told_by_file(load: Load) -> None:
    found, rows = load("a,b\n1,2\n", "a\n3\n", columns={"a": "VARCHAR", "b": "VARCHAR"})
    assert rows == [("1", "2"), ("3", None)]
    assert found.lacking == {1: ["b"]}


@pytest.mark.parametrize("second", ["ada@example.org,secret\n", "\n\nada@example.org,secret\n"])
def test_a_file_without_the_header_is_refused_by_its_name_and_its_first_row_is_not_shown(
    load: Load, second: str
) -> None:
    with pytest.raises(ValueError, match=r"part1\.csv names none of the columns .*must be the header") as caught:
        load("name,word\nbob,x\n", second, columns={"name": "VARCHAR", "word": "VARCHAR"})
    assert "ada" not in str(caught.value)


def test_a_column_that_no_file_has_is_refused_with_the_nearest_name(load: Load) -> None:
    with pytest.raises(ValueError, match=r"lacks the column `Store` \(did you mean `store`\?\)"):
        load("store,x\na,1\n", columns={"x": "VARCHAR", "Store": "VARCHAR"})


def test_a_column_may_have_had_another_name(load: Load) -> None:
    shop = Column(type="VARCHAR", alias=("shop", "branch"))
    delivery, rows = load("shop,x\na,1\n", "x,store\n2,b\n", "branch\nc\n", columns={"store": shop, "x": "VARCHAR"})
    assert rows == [("a", "1"), ("b", "2"), ("c", None)]
    assert (delivery.lacking, delivery.unread) == ({2: ["x"]}, [])


def test_an_alias_beside_the_name_itself_is_another_column_and_two_aliases_are_refused(load: Load) -> None:
    columns = {"store": Column(type="VARCHAR", alias=("shop", "branch"))}
    delivery, rows = load("shop,store\na,b\n", columns=columns)
    assert (rows, delivery.unread) == ([("b",)], ["shop"])
    with pytest.raises(ValueError, match="names the column store more than once"):
        load("shop,branch\na,b\n", columns=columns)


def test_a_column_that_may_be_absent_is_empty_where_no_file_has_it(load: Load) -> None:
    columns = {"a": "VARCHAR", "b": Column(type="DOUBLE", absent="empty")}
    delivery, rows = load("a\n1\n", "a\n2\n", columns=columns)
    assert rows == [("1", None), ("2", None)]
    assert delivery.lacking == {0: ["b"], 1: ["b"]}


def test_a_column_that_the_contract_does_not_name_is_not_read_and_told(load: Load) -> None:
    delivery, _ = load("a,b\n1,2\n", "c,a\n3,4\n", columns={"a": "VARCHAR"})
    assert delivery.unread == ["b", "c"]


def test_rows_stand_in_the_order_in_which_they_were_delivered(load: Load) -> None:
    big = "a,b\n" + "".join(f"{i},{'x' * 20}\n" for i in range(150_000))
    _, rows = load(big, "a,b\n150000,y\n", columns={"a": "VARCHAR"})
    assert [int(row[0]) for row in rows] == list(range(150_001))


def test_rows_of_a_file_that_is_rewritten_are_not_lost_where_a_line_is_too_long(load: Load) -> None:
    half = "x" * 1_200_000
    with pytest.raises(ValueError, match=r"part0\.csv cannot be read as a table: a line may have 2,000,000 characters"):
        load(f"a,b\r\n1,2\n{half},{half}\n", columns={"a": "VARCHAR", "b": "VARCHAR"})


def test_rows_keep_their_order_whatever_stands_for_a_missing_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two rows with one key the later wins. DuckDB reads the groups of a file side by side."""
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    with pq.ParquetWriter(tmp_path / "t.parquet", pa.schema([("n", pa.string())])) as writer:
        for group in range(20):
            writer.write_table(pa.table({"n": [str(group * 5000 + i) for i in range(5000)]}))
    source = Source(address=str(tmp_path / "t.parquet"), nulls=["NA", "none", "-"])
    for _ in range(5):
        with duckdb.connect(config={"threads": 4}) as con:
            loading.load_table(con, fetch.fetch_files(source.address), source, {"n": Column(type="INTEGER")}, "arrived")
            rows = con.execute("SELECT v0 FROM arrived ORDER BY rowid").fetchall()
        assert [int(row[0]) for row in rows] == list(range(100_000))
