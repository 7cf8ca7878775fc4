"""The rows of a query come whole, in one snapshot, and only the newer ones of them again, or the stage says why not."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import psycopg
import pytest

from infra import postgres
from tasks.data import loading
from tasks.data.sources import download, fetch
from tasks.data.sources.scheme import DeliveryError
from tasks.params import Column, Source
from tests.conftest import Made, tree
from tests.tasks.data.faulty import Relay
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "WAIT_S", 0.01)
    return tmp_path / "home"


class Shop:
    """A database with a table of orders."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url, parts = url, urlsplit(url)
        self.address = f"postgresql://{parts.username}@{parts.hostname}:{parts.port}{parts.path}"
        monkeypatch.setenv("PGPASSWORD", parts.password or "")

    def run(self, *statements: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)  # type: ignore[arg-type]

    def fetch(self, query: str = "orders", **settings: Any) -> fetch.Fetched:
        source = Source(address=self.address, query=query, **settings)
        return fetch.fetch_files(source.address, source)

    def rows(self, query: str = "orders", **settings: Any) -> list[Any]:
        """What comes, in its order."""
        return read(self.fetch(query, **settings))


def read(fetched: fetch.Fetched) -> list[Any]:
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        return [row for file in fetched.files for row in con.execute(f"FROM read_parquet('{file}')").fetchall()]


@pytest.fixture
def shop(postgres_server: postgres.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    shop = Shop(postgres_server.url("evergreen"), monkeypatch)
    shop.run(
        "DROP TABLE IF EXISTS orders",
        "CREATE TABLE orders (number INTEGER, amount NUMERIC(10, 2), updated TIMESTAMPTZ)",
        "INSERT INTO orders SELECT i, i * 1.25, TIMESTAMPTZ '2024-01-01+00' + i * INTERVAL '1 minute' "
        "FROM generate_series(1, 1000) AS i",
    )
    yield shop
    shop.run("DROP TABLE orders")


def numbers(rows: list[Any]) -> list[int]:
    return [row[0] for row in rows]


def test_a_table_and_a_query_are_read_whole(shop: Shop) -> None:
    assert numbers(shop.rows()) == list(range(1, 1001))
    assert numbers(shop.rows("SELECT number FROM orders WHERE number > 990;")) == list(range(991, 1001))
    assert numbers(shop.rows("SELECT number FROM orders ORDER BY number DESC LIMIT 3 -- of all")) == [1000, 999, 998]


def test_the_same_rows_are_the_same_bytes_whatever_their_order(shop: Shop) -> None:
    whole, newer = shop.fetch().fingerprint, shop.fetch(watermark="updated").fingerprint
    shop.run("CREATE TABLE again AS SELECT * FROM orders ORDER BY amount DESC", "DROP TABLE orders")
    shop.run("ALTER TABLE again RENAME TO orders")
    assert shop.fetch().fingerprint == whole
    assert shop.fetch(watermark="updated").fingerprint == newer


def watch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queries that are sent from now on."""
    from tasks.data.sources import database

    queries, inner = [], database._read

    def watched(url: str, query: str, *rest: Any) -> None:
        queries.append(query)
        inner(url, query, *rest)

    monkeypatch.setattr(database, "_read", watched)
    return queries


def test_only_rows_from_the_watermark_on_are_read_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = watch(monkeypatch)
    before = shop.rows(watermark="updated", overlap="10m")
    shop.run(
        "INSERT INTO orders VALUES (1001, 1, '2024-01-01 16:41+00'), (1002, 2, '2024-01-01 16:35+00'), (1003, 3, NULL)",
        "DELETE FROM orders WHERE number IN (5, 999)",
    )
    after = shop.rows(watermark="updated", overlap="10m")
    assert "WHERE" not in queries[0]
    assert """"updated" >= TIMESTAMPTZ '2024-01-01 16:30:00+00:00' OR "updated" IS NULL""" in queries[1]
    assert numbers(before) == list(range(1, 1001))
    # 1002 came late and 999 is gone; that 5 is gone lies below what is read again
    assert numbers(after) == [*range(1, 996), 1002, *range(996, 999), 1000, 1001, 1003]
    assert len(shop.rows(watermark="updated", overlap="10m")) == len(after)  # rows without one come once
    assert shop.fetch(watermark="updated", overlap="10m") == shop.fetch(watermark="updated", overlap="10m")


def test_of_a_row_that_was_updated_the_newer_one_comes_later(shop: Shop) -> None:
    shop.fetch(watermark="updated", overlap="1m")
    shop.run("UPDATE orders SET amount = 0, updated = '2024-01-02+00' WHERE number = 7")
    rows = shop.rows(watermark="updated", overlap="1m")
    assert [row[1] for row in rows if row[0] == 7] == ["8.75", "0.00"]


def test_many_fetches_end_where_one_does(shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for day in range(2, 6):
        shop.run(
            f"INSERT INTO orders SELECT i + {day}000, i, TIMESTAMPTZ '2024-01-0{day}+00' + i * INTERVAL '1 minute' "
            "FROM generate_series(1, 300) AS i"
        )
        by_and_by = shop.rows(watermark="updated")
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "other"))
    assert shop.rows(watermark="updated") == by_and_by
    assert len(by_and_by) == 2200


def test_another_query_is_read_from_the_beginning(shop: Shop) -> None:
    shop.fetch(watermark="updated")
    shop.run("DELETE FROM orders WHERE number = 5")
    assert 5 in numbers(shop.rows(watermark="updated"))
    assert 5 not in numbers(shop.rows("SELECT * FROM orders -- anew", watermark="updated"))


@pytest.mark.parametrize(
    ("column", "overlap", "above"),
    [("number", 10, "990"), ("number", None, "0"), ("day", "1h", "DATE '2024-01-02'"), ("plain", "1h", "TIMESTAMP '")],
)
def test_a_watermark_is_a_time_or_a_number(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, column: str, overlap: Any, above: str
) -> None:
    queries = watch(monkeypatch)
    query = "SELECT number, DATE '2024-01-03' AS day, updated::timestamp AS plain FROM orders"
    shop.fetch(query, watermark=column, overlap=overlap)
    assert len(shop.rows(query, watermark=column, overlap=overlap)) == 1000
    assert f'"{column}" >= {above}' in queries[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"watermark": "updatde"}, r"updatde is not among \['amount', 'number', 'updated'\]"),
        ({"watermark": "amount"}, "amount is of type VARCHAR"),
        ({"watermark": "updated", "overlap": 5}, "overlap must be a length of time, such as 1h, as updated is of type"),
        ({"watermark": "number", "overlap": "1h"}, "overlap must be a whole number, as number is of type INTEGER"),
    ],
)
def test_a_watermark_that_is_none_is_named(shop: Shop, settings: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        shop.fetch(**settings)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("nonesuch", r'relation "nonesuch" does not exist\. Correct the address, `query`'),
        ("SELECT nmber FROM orders", 'column "nmber" does not exist'),
        ("selec number", "syntax error"),
        ("DELETE FROM orders RETURNING number", "read-only|COPY"),
        ("SELECT 'ada@example.org'::int", "its query fails with SQLSTATE 22P02. Run it by hand"),
        ("SELECT 1 / (number - 900) FROM orders", "fails with SQLSTATE 22012|its query failed for a row"),
        ("SELECT * FROM orders WHERE number > 5000", "its query gives no rows"),
        ("SELECT number::money AS price FROM orders", r'the column price is of type money.*"price"::text'),
        ("SELECT updated - updated AS age FROM orders", "the column age is of type interval"),
        ("SELECT ARRAY[number] AS many FROM orders", "the column many is of type _int4"),
    ],
)
def test_a_query_that_cannot_be_a_table_is_named_without_a_value(shop: Shop, query: str, said: str) -> None:
    with pytest.raises(DeliveryError, match=said) as caught:
        shop.fetch(query)
    assert "ada@" not in str(caught.value)
    assert len(shop.rows()) == 1000


def test_values_are_read_as_they_are_in_the_database(shop: Shop) -> None:
    query = """
        SELECT 12345678901234567.25::numeric AS n, 'NaN'::numeric AS nan, '{"a": 1}'::json AS js, 'x'::char(1) AS c,
            'a511d781-c9da-47ef-98f6-70ad9fd47d15'::uuid AS u, TRUE AS b, 1.5::real AS r, NULL::text AS none,
            TIMESTAMPTZ '2024-01-01 12:00+02' AS tz, TIMESTAMP '2024-01-01 12:00' AS ts, DATE '2024-01-01' AS d
    """
    types = {
        "n": "VARCHAR",
        "nan": "DOUBLE",
        "js": "VARCHAR",
        "c": "VARCHAR",
        "u": "VARCHAR",
        "b": "BOOLEAN",
        "r": "DOUBLE",
        "none": "VARCHAR",
        "tz": "VARCHAR",
        "ts": "TIMESTAMP",
        "d": "DATE",
    }
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        wanted = {name: Column(type=kind) for name, kind in types.items()}  # type: ignore[arg-type]
        source = Source(address=shop.address, query=query)
        loading.load_table(con, fetch.fetch_files(source.address, source), source, wanted, "arrived")
        ((*values,),) = con.execute("SELECT * EXCLUDE (blank, file, start) FROM arrived").fetchall()
    assert [str(value) for value in values] == [
        "12345678901234567.25",
        "None",
        '{"a": 1}',
        "x",
        "a511d781-c9da-47ef-98f6-70ad9fd47d15",
        "True",
        "1.5",
        "None",
        "2024-01-01 10:00:00+00",
        "2024-01-01 12:00:00",
        "2024-01-01",
    ]


def test_who_may_not_read_is_told_and_no_password_is_shown(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PGPASSWORD", "a-wrong-secret")
    with pytest.raises(DeliveryError, match=r"password authentication failed .* Correct the address") as caught:
        shop.fetch()
    assert "a-wrong-secret" not in str(caught.value) + caplog.text
    with pytest.raises(ValueError, match="read from the environment variable SHOP_PASSWORD, which is not set"):
        shop.fetch(password="SHOP_PASSWORD")
    monkeypatch.setenv("SHOP_PASSWORD", urlsplit(shop.url).password or "")
    assert len(shop.rows(password="SHOP_PASSWORD")) == 1000


def test_a_database_that_is_away_is_asked_again_then_the_last_copy_is_used(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shop.fetch(watermark="updated", fallback="last", max_age="1d")
    port = urlsplit(shop.url).port
    monkeypatch.setattr(shop, "address", shop.address.replace(f":{port}/", ":9/"))
    with pytest.raises(DeliveryError, match=r"does not answer .*Connection refused.* after 5 tries"):
        shop.fetch(watermark="updated")
    with pytest.raises(DeliveryError, match="no good copy"):
        shop.fetch(watermark="updated", fallback="last", max_age="1d")  # another address
    monkeypatch.undo()
    assert before.fallback is None


def test_a_query_that_takes_too_long_is_left(shop: Shop) -> None:
    with pytest.raises(DeliveryError, match=r"within its timeout.*\. Raise the source's `timeout`"):
        shop.fetch("SELECT number, pg_sleep(60)::text FROM orders", timeout="2s")


def test_a_connection_that_is_cut_while_rows_come_is_made_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    relay = Relay(urlsplit(shop.url).port or 0)
    monkeypatch.setattr(shop, "address", shop.address.replace(f":{relay.target}/", f":{relay.port}/"))
    relay.cuts = [3_000_000, 20_000_000]
    rows = shop.rows("SELECT i, repeat('x', 1000) AS filler FROM generate_series(1, 50000) AS i")
    assert numbers(rows) == list(range(1, 50_001))
    assert relay.cuts == []
    relay.close()


FETCH = """
import sys
from tasks.data.sources import fetch
from tasks.params import Source
source = Source(address=sys.argv[1], query=sys.argv[2], watermark="number", overlap=10)
fetch.fetch_files(source.address, source)
"""


@pytest.mark.faults
def test_a_read_that_is_killed_changes_nothing_of_the_last_delivery(shop: Shop, home: Path) -> None:
    query = "SELECT number, CASE WHEN number = 1005 THEN pg_sleep(600) END::text AS pause FROM orders"
    settings = {"watermark": "number", "overlap": 10}
    before = shop.fetch(query, **settings)
    shop.run("INSERT INTO orders SELECT i, 0, now() FROM generate_series(1001, 1010) AS i")
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    program = subprocess.Popen([sys.executable, "-c", FETCH, shop.address, query], env=env)
    try:
        wait_until(lambda: is_asleep(shop))
    finally:
        program.kill()
        program.communicate()
    shop.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    assert numbers(read(before)) == list(range(1, 1001))
    shop.run("DELETE FROM orders WHERE number = 1005")
    assert numbers(shop.rows(query, **settings)) == [*range(1, 1005), *range(1006, 1011)]
    assert [path for path in home.glob("sources/*/parts/*") if path.is_file()] == []


def is_asleep(shop: Shop) -> bool:
    with psycopg.connect(shop.url) as connection:
        rows = connection.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'").fetchall()
    return bool(rows)


def test_a_table_of_a_database_is_that_of_its_file_and_an_updated_row_is_one_row(made: Made, shop: Shop) -> None:
    made.run("ingest", "clean")
    before = tree(made.folder / "data" / "clean")
    lines = (made.folder / "source" / "orders.csv").read_text().splitlines()[1:]
    values = [
        "(" + ", ".join(f"'{value}'" if value != "NA" else "NULL" for value in line.split(",")) + ")" for line in lines
    ]
    shop.run(
        "DROP TABLE orders",
        "CREATE TABLE orders (number INTEGER, placed TIMESTAMP, email TEXT, store TEXT, amount NUMERIC, "
        "distance FLOAT8, delay INTEGER, updated TIMESTAMP)",
        f"INSERT INTO orders VALUES {', '.join(values)}",
        "UPDATE orders SET updated = placed",
    )
    made.raw["sources"]["orders"] |= {"address": shop.address, "query": "orders", "watermark": "updated"}
    made.run("ingest", "clean", p=made.params())
    assert tree(made.folder / "data" / "clean") == before
    shop.run("UPDATE orders SET amount = 77.25, updated = '2024-03-02' WHERE number = 7")
    made.run("ingest", "clean", p=made.params())
    files = str(made.folder / "data" / "clean" / "orders" / "*.parquet")
    amounts = duckdb.sql(f"SELECT amount FROM read_parquet('{files}') WHERE number = 7").fetchall()
    assert amounts == [(77.25,)]
    assert len(duckdb.sql(f"SELECT 1 FROM read_parquet('{files}')").fetchall()) == len(lines)
