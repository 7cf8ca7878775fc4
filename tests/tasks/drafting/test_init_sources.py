"""`evergreen init` on a database and a bucket, and on a table with rows that came twice."""

from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import duckdb
import psycopg
import pytest

from tasks.drafting import init
from tests.conftest import Made
from tests.tasks.drafting.tables import read_draft, read_features, write_lines, write_orders

THREE_DAYS = timedelta(days=3)


@pytest.fixture
def shop(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a database with the table public.web_orders."""
    parts = urlsplit(postgres_url)
    monkeypatch.setenv("SHOP_PASSWORD", parts.password or "")
    monkeypatch.delenv("PGPASSWORD", raising=False)
    with duckdb.connect() as con:
        file = str(write_orders(tmp_path / "orders.csv"))
        rows = con.execute("FROM read_csv($1, timestampformat='%m/%d/%Y %I:%M %p')", [file]).fetchall()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS web_orders")
        connection.execute(
            "CREATE TABLE web_orders (order_id INTEGER, ordered TIMESTAMP, store TEXT, amount NUMERIC(10, 2), "
            "contact TEXT, returned INTEGER, refund NUMERIC(10, 2))"
        )
        connection.cursor().executemany("INSERT INTO web_orders VALUES (%s, %s, %s, %s, %s, %s, %s)", rows)
    return f"postgresql://{parts.username}@{parts.hostname}:{parts.port}{parts.path}"


def test_a_draft_of_a_query_makes_features(checkout: Made, shop: str) -> None:
    query = "public.web_orders"
    init.main(shop, query=query, password="SHOP_PASSWORD", watermark="order_id", label="returned", delay=THREE_DAYS)
    draft = read_draft(checkout.folder)
    assert list(draft["sources"]) == ["web_orders"]
    asked = {name: draft["sources"]["web_orders"][name] for name in ("address", "query", "watermark", "password")}
    assert asked == {"address": shop, "query": query, "watermark": "order_id", "password": "SHOP_PASSWORD"}
    assert draft["contract"]["web_orders"]["key"] == ["order_id"]
    assert draft["registry"]["model"] == "web_orders"
    checkout.run("ingest", "clean", "features")
    assert len(read_features(checkout.folder)) == 2400


def test_a_draft_of_a_select_is_named_by_its_database(checkout: Made, shop: str) -> None:
    query = "SELECT order_id, ordered, store, amount, returned FROM web_orders WHERE store <> 'west'"
    init.main(shop, query=query, password="SHOP_PASSWORD", label="returned")
    draft = read_draft(checkout.folder)
    assert list(draft["sources"]) == [urlsplit(shop).path.strip("/")]
    assert "contact" not in next(iter(draft["contract"].values()))["columns"]


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("postgresql://me@127.0.0.1/shop", {}, "query goes with an address of postgresql://"),
        ("postgresql://me:secret@127.0.0.1/shop", {"query": "orders"}, "an address must hold no password"),
        ("orders.csv", {"query": "orders"}, "query goes with an address of postgresql://"),
    ],
)
def test_what_does_not_go_together_is_named_before_anything_is_asked(
    table: str, options: dict[str, str], message: str, checkout: Made
) -> None:
    before = (checkout.folder / "params.yaml").read_bytes()
    with pytest.raises(ValueError, match=message) as raised:
        init.main(table, **options)  # type: ignore[arg-type]
    assert "secret" not in str(raised.value)
    assert (checkout.folder / "params.yaml").read_bytes() == before


def test_a_draft_of_a_bucket_makes_features(checkout: Made, bucket: str, tmp_path: Path) -> None:
    whole = write_orders(tmp_path / "orders.csv").read_text().splitlines()
    name, prefix = urlsplit(bucket).netloc, urlsplit(bucket).path.strip("/")
    for number, part in enumerate((whole[1:1200], whole[1200:])):
        body = "\n".join([whole[0], *part]) + "\n"
        boto3.client("s3").put_object(Bucket=name, Key=f"{prefix}/orders-{number}.csv", Body=body.encode())
    init.main(f"{bucket}/orders-*.csv", label="returned", delay=THREE_DAYS)
    draft = read_draft(checkout.folder)
    assert draft["sources"]["orders"]["address"] == f"{bucket}/orders-*.csv"
    checkout.run("ingest", "clean", "features")
    assert len(read_features(checkout.folder)) == 2400


def test_rows_that_came_twice_leave_the_key_what_it_is(checkout: Made, tmp_path: Path) -> None:
    lines = write_orders(tmp_path / "orders.csv").read_text().splitlines()
    write_lines(tmp_path / "orders.csv", lines[0], [*lines[1:], lines[7], lines[9]])
    init.main(str(tmp_path / "orders.csv"), label="returned", delay=THREE_DAYS)
    assert read_draft(checkout.folder)["contract"]["orders"]["key"] == ["order_id"]
    checkout.run("ingest", "clean", "features")
    assert len(read_features(checkout.folder)) == 2400


def test_where_no_column_tells_rows_apart_a_person_is_asked(
    checkout: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = write_orders(tmp_path / "orders.csv").read_text().splitlines()
    cut = [line.split(",") for line in lines]
    rows = [",".join([fields[1].split(" ")[0], fields[2], fields[5]]) for fields in cut]
    write_lines(tmp_path / "orders.csv", rows[0], rows[1:])
    init.main(str(tmp_path / "orders.csv"), label="returned")
    assert read_draft(checkout.folder)["contract"]["orders"]["key"] == []
    printed = capsys.readouterr().out
    assert printed.index("What the table does not tell") < printed.index("--key")
