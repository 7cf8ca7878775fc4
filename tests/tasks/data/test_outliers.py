"""Rows that lie far from all others in time, through ingest and clean: they are put aside with their reason, and they
move neither "now" nor a single other byte. Scheduled rows wait."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import BEGIN, Made, tree

World = Callable[..., Made]
DAYS = 40
END = BEGIN + timedelta(days=DAYS)
LONE = ["2031-06-01 12:00:00", "1970-01-01 00:00:00"]


@pytest.fixture
def made(make_world: World) -> Made:
    return make_world(days=DAYS, per_day=12)


def add_orders(made: Made, times: list[str], *, delay: str = "20") -> None:
    with (made.folder / "source/orders.csv").open("a") as stream:
        for number, placed in enumerate(times, start=90_000):
            stream.write(f"{number},{placed},person1@example.org,north,10,1,{delay}\n")


def manifest(made: Made) -> dict[str, Any]:
    return dict(json.loads((made.folder / "data/raw/manifest.json").read_text()))


def held(made: Made) -> list[dict[str, Any]]:
    files = sorted((made.folder / "data/quarantine/orders").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def good(made: Made) -> dict[str, bytes]:
    """The rows that later stages read; a period's file without rows counts for nothing."""
    found = tree(made.folder / "data/clean")
    return {name: data for name, data in found.items() if pq.read_table(pa.BufferReader(data)).num_rows}


@pytest.mark.parametrize(
    ("unit", "as_of"),
    [
        ("month", None),
        ("month", END.isoformat()),
        ("month", (BEGIN + timedelta(days=20)).isoformat()),
        ("day", (BEGIN + timedelta(days=20)).isoformat()),
    ],
)
def test_a_lone_row_is_quarantined_with_its_reason_and_changes_nothing_else(
    made: Made, unit: str, as_of: str | None
) -> None:
    p = made.params(**{"clock.as_of": as_of, "ingest.period": unit})
    made.run("ingest", "clean", p=p)
    now, before = manifest(made)["as_of"], good(made)
    add_orders(made, LONE)
    made.run("ingest", "clean", p=p)
    assert manifest(made)["as_of"] == now
    assert good(made) == before
    aside = {row["number"]: row for row in held(made)}
    assert set(aside) == {"90000", "90001"}
    for number, placed in zip(("90000", "90001"), LONE, strict=True):
        row = aside[number]
        assert row["reason"].startswith(f"event_time {placed} is an outlier in time: the other rows lie between 2024-")
        assert row["event_time"] == datetime.fromisoformat(placed)
    quality = json.loads((made.folder / "reports/quality.json").read_text())["tables"]["orders"]
    assert quality["by_rule"] == {"time: outlier": 2}


def test_the_row_is_back_in_its_place_when_its_date_is_mended(made: Made) -> None:
    p = made.params(**{"clock.as_of": None})
    add_orders(made, ["2031-02-03 12:00:00"])
    made.run("ingest", "clean", p=p)
    source = made.folder / "source/orders.csv"
    source.write_text(source.read_text().replace("2031-02-03", "2024-02-03"))
    made.run("ingest", "clean", p=p)
    february = pq.read_table(made.folder / "data/clean/orders/2024-02.parquet")
    assert 90_000 in february["number"].to_pylist()
    assert held(made) == []


def test_an_outcome_of_another_century_is_an_outlier_too(made: Made) -> None:
    known_at = (
        "CASE WHEN number = 7 THEN TIMESTAMP '2031-01-01' WHEN delay IS NOT NULL THEN placed + to_minutes(60) END"
    )
    made.run("ingest", "clean", p=made.params(**{"clock.as_of": None, "sources.orders.known_at": known_at}))
    assert datetime.fromisoformat(manifest(made)["as_of"]) <= END + timedelta(hours=1)
    (row,) = held(made)
    assert row["reason"].startswith("known_at 2031-01-01 00:00:00 is an outlier in time")


@pytest.mark.parametrize("days", [3, 60])
def test_a_dense_block_of_scheduled_rows_does_not_move_now(made: Made, days: int) -> None:
    p = made.params(**{"clock.as_of": None})
    made.run("ingest", "clean", p=p)
    now, before = manifest(made)["as_of"], good(made)
    add_orders(made, [str(END + timedelta(hours=3 + 2 * i)) for i in range(12 * days)], delay="NA")
    made.run("ingest", "clean", p=p)
    assert manifest(made)["as_of"] == now
    assert good(made) == before
    assert held(made) == []


def test_a_row_of_another_table_may_lie_as_far_off_as_it_likes(made: Made) -> None:
    """Such as the price that has been valid since ever: only the spine's rows tell the time."""
    source = made.folder / "source/traffic.parquet"
    table = pq.read_table(source)
    row = {"store": ["north"], "measured_at": [datetime(1970, 1, 1)], "jam": [1.0]}
    pq.write_table(pa.concat_tables([pa.table(row, table.schema), table]), source)
    made.run("ingest", "clean", p=made.params(**{"clock.as_of": None}))
    assert pq.read_table(made.folder / "data/clean/traffic/1970-01.parquet").num_rows == 1


def test_the_manifest_tells_the_latest_as_of_that_the_rows_allow(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    made.run("ingest", p=made.params(**{"clock.as_of": "2031-01-01"}))
    limit = datetime.fromisoformat(manifest(made)["limit"])
    assert END < limit < END + timedelta(days=2)
    assert "clock.as_of is 2031-01-01 00:00:00, but the rows of orders end at 2024-02-" in caplog.text


def test_with_a_step_the_clock_stops_where_the_rows_end(made: Made) -> None:
    made.run("ingest", p=made.params(**{"clock.as_of": "2031-01-01", "clock.step": "7d"}))
    assert datetime.fromisoformat(manifest(made)["as_of"]) < END + timedelta(days=1)
