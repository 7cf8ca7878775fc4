"""A source of many files: each is read once, by itself, and the rows are the same as if all came in one."""

import csv
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data import loading, rowfiles
from tests.conftest import Made, tree

World = Callable[..., Made]


@pytest.fixture
def split(make_world: World) -> Made:
    """The orders of 60 days in three files, January's in two of them."""
    made = make_world(days=60, per_day=8)
    rows = read_orders(made)
    (made.folder / "source/orders.csv").unlink()
    for name, part in (("a", rows[:100]), ("b", rows[100:300]), ("c", rows[300:])):
        write_orders(made, name, part)
    made.raw["sources"]["orders"]["address"] = "source/orders-*.csv"
    return made


def read_orders(made: Made) -> list[dict[str, str]]:
    with (made.folder / "source/orders.csv").open() as stream:
        return list(csv.DictReader(stream))


def write_orders(made: Made, name: str, rows: list[dict[str, str]]) -> None:
    with (made.folder / f"source/orders-{name}.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def raw(made: Made, table: str = "orders") -> dict[str, bytes]:
    return tree(made.folder / "data/raw" / table)


def watch_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    names = list[str]()
    load = loading.SourceFiles.load

    def watch(self: loading.SourceFiles, con: Any, places: Any, into: str) -> None:
        names.extend(self.names[place] for place in places)
        load(self, con, places, into)

    monkeypatch.setattr("tasks.data.loading.SourceFiles.load", watch)
    return names


def test_rows_are_the_same_in_one_file_and_in_many(make_world: World, split: Made) -> None:
    split.run("ingest", p=split.params())
    whole = make_world(days=60, per_day=8, folder="whole")
    whole.run("ingest")
    assert len(raw(split)) == 2
    assert raw(split) == raw(whole)


def test_threads_change_no_byte(split: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    split.run("ingest", "clean", p=split.params(**{"stage.threads": 1}))
    first = tree(split.folder / "data")
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "empty"))
    split.run("ingest", "clean", p=split.params(**{"stage.threads": 3}))
    assert tree(split.folder / "data") == first


def test_a_file_is_read_once_and_a_new_one_makes_just_its_periods_anew(
    split: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    split.run("ingest", p=split.params())
    before, names = raw(split), watch_reads(monkeypatch)
    late = {"number": "99999", "placed": "2024-01-20 10:00:00", "email": "person1@example.org", "store": "north"}
    write_orders(split, "late", [{**late, "amount": "20.0", "distance": "2.0", "delay": "5"}])
    split.run("ingest")
    assert names == ["orders-late.csv"]
    after = raw(split)
    assert [name for name in after if after[name] != before[name]] == ["2024-01.parquet"]
    numbers = pq.read_table(split.folder / "data/raw/orders/2024-01.parquet")["number"].to_pylist()
    assert "99999" in numbers


def test_a_file_that_is_gone_takes_its_rows_along_and_costs_no_reading(
    split: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    split.raw["sources"]["orders"]["max_drop"] = 1
    split.run("ingest", p=split.params())
    before, names = raw(split), watch_reads(monkeypatch)
    (split.folder / "source/orders-a.csv").unlink()
    split.run("ingest")
    assert names == []
    assert raw(split)["2024-02.parquet"] == before["2024-02.parquet"]
    assert len(pq.read_table(split.folder / "data/raw/orders")) == 480 - 100


def test_a_window_function_sees_the_rows_of_all_files(make_world: World, split: Made) -> None:
    whole = make_world(days=60, per_day=8, folder="whole")
    for made in (split, whole):
        made.raw["sources"]["orders"]["derive"] = {"since": "number - lag(number) OVER (ORDER BY number)"}
        made.raw["contract"]["orders"]["columns"]["since"] = {"type": "INTEGER"}
        made.run("ingest", p=made.params())
    since = pq.read_table(split.folder / "data/raw/orders")["since"]
    assert since.null_count == 1
    assert raw(split) == raw(whole)


def test_what_fails_for_a_row_depends_on_no_other_row(make_world: World, split: Made) -> None:
    """An expression that makes no column is computed, too: a row for which it fails goes to quarantine."""
    whole = make_world(days=60, per_day=8, folder="whole")
    for made in (split, whole):
        made.raw["sources"]["orders"]["derive"] = {"helper": "CAST(nullif(store, 'south') AS INTEGER)"}
        made.run("ingest", p=made.params())
    table = pq.read_table(split.folder / "data/raw/orders", columns=["store", "_fault"]).to_pylist()
    assert all((row["_fault"] is None) == (row["store"] == "south") for row in table)
    assert raw(split) == raw(whole)


def test_another_table_that_no_expression_uses_changes_nothing_of_this_one(
    split: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    split.run("ingest", p=split.params())
    names = watch_reads(monkeypatch)
    path = split.folder / "source/customers.csv"
    path.write_text(path.read_text() + "person999@example.org,new,30\n")
    split.run("ingest")
    assert names == ["customers.csv"]


@pytest.mark.parametrize("sizes", [[300_000], [1] * 7 + [299_993], [122_880, 177_120], [0, 150_000, 0, 150_000]])
def test_batches_do_not_show_in_a_file(sizes: list[int], tmp_path: Path) -> None:
    table = pa.table({"n": range(300_000), "text": [f"row {i % 1000}" for i in range(300_000)]})
    batch = table.combine_chunks().to_batches()[0]
    with rowfiles.RowWriter(tmp_path / "expected.parquet") as writer:
        writer.add(batch)
    with rowfiles.RowWriter(tmp_path / "cut.parquet") as writer:
        place = 0
        for size in sizes:
            writer.add(batch.slice(place, size))
            place += size
    assert (tmp_path / "cut.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()
    written = pq.ParquetFile(tmp_path / "cut.parquet")
    assert written.read().equals(table)
    assert [written.metadata.row_group(i).num_rows for i in range(10)] == [*[30_720] * 9, 23_520]


def test_good_rows_stay_in_their_order_in_a_large_period(made_large: Made) -> None:
    made_large.run("ingest", "clean", p=made_large.params())
    (path,) = (made_large.folder / "data/clean/orders").glob("*.parquet")
    (held,) = (made_large.folder / "data/quarantine/orders").glob("*.parquet")
    good, bad = pq.read_table(path), pq.read_table(held)
    assert (len(good), len(bad)) == (199_000, 1_000)
    times = good["event_time"].to_pylist()
    assert times == sorted(times)
    assert set(bad["reason"].to_pylist()) == {"amount -1.0 is below 0"}


def test_rows_that_are_read_where_they_lie_are_those_of_a_loaded_file(
    made_large: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = made_large.folder / "source/orders.parquet"
    table = pq.read_table(source)
    source.unlink()
    for i, rows in enumerate((table.slice(0, 80_000), table.slice(80_000, 90_000), table.slice(170_000))):
        pq.write_table(rows, source.with_name(f"orders-{i}.parquet"), row_group_size=30_000)
    made_large.raw["sources"]["orders"]["address"] = "source/orders-*.parquet"
    made_large.run("ingest", p=made_large.params(**{"stage.threads": 3}))
    in_place = raw(made_large)
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "empty"))
    monkeypatch.setattr("tasks.data.loading.SourceFiles.view", lambda *_: False)
    made_large.run("ingest", p=made_large.params(**{"stage.threads": 1}))
    assert raw(made_large) == in_place


def test_a_column_may_be_called_as_duckdb_calls_the_place_of_a_row(made_large: Made) -> None:
    made_large.run("ingest", p=made_large.params())
    before = raw(made_large)
    source = made_large.folder / "source/orders.parquet"
    table = pq.read_table(source)
    pq.write_table(table.append_column("file_row_number", table["number"]), source)
    made_large.run("ingest", p=made_large.params())
    assert raw(made_large) == before


def test_a_parquet_file_with_damaged_bytes_is_named(made_large: Made) -> None:
    source = made_large.folder / "source/orders.parquet"
    content = bytearray(source.read_bytes())
    content[1_000:3_000] = bytes(2_000)  # of its first column; its end, which says what is in it, is whole
    source.write_bytes(content)
    with pytest.raises(ValueError, match=r"orders\.parquet cannot be read as a table: its bytes are damaged"):
        made_large.run("ingest", p=made_large.params())


@pytest.fixture
def made_large(make_world: World) -> Made:
    """200,000 orders of one month, one in two hundred of them bad."""
    made = make_world(days=60, per_day=8)
    count, begin = 200_000, int(datetime(2024, 1, 2).timestamp())
    rows = {
        "number": pa.array(range(count), pa.int64()),
        "placed": pa.array([(begin + 10 * i) * 1_000_000 for i in range(count)], pa.timestamp("us")),
        "email": [f"person{i % 200}@example.org" for i in range(count)],
        "store": [("north", "south", "west")[i % 3] for i in range(count)],
        "amount": [-1.0 if i % 200 == 7 else 10.5 for i in range(count)],
        "distance": [2.5] * count,
        "delay": pa.array([i % 60 for i in range(count)], pa.int32()),
    }
    pq.write_table(pa.table(rows), made.folder / "source/orders.parquet")
    made.raw["sources"]["orders"]["address"] = "source/orders.parquet"
    made.raw["contract"]["orders"]["columns"]["amount"]["min"] = 0
    made.raw["clock"]["as_of"] = "2024-03-01"
    return made
