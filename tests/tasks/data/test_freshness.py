"""A table that promises to be fresh is told when it is not, and each run says how far its tables reach."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from tasks.data import freshness
from tasks.data.manifest import RawManifest
from tasks.params import Params, Source
from tests.conftest import BEGIN, Made
from tests.tasks import small

NEWEST = datetime(2024, 1, 20, 10)


@pytest.fixture
def made_params() -> Params:
    return small.settings()


@pytest.fixture
def made(make_world: Callable[..., Made]) -> Made:
    return make_world(days=30, per_day=4)


def promise(p: Params, **lengths: str) -> Params:
    sources = {
        name: Source.model_validate({**source.model_dump(), "fresh_within": lengths.get(name)})
        for name, source in p.sources.items()
    }
    return p.model_copy(update={"sources": sources})


def manifest(p: Params, newest: datetime | None) -> RawManifest:
    table = {"address": "a", "fingerprint": "f", "rows": 1, "periods": {}, "files": [], "read": 1, "empty": 0}
    tables = {name: {**table, "later": 0, "lacking": {}, "newest": newest} for name in p.sources}
    return RawManifest.model_validate({"as_of": NEWEST, "limit": NEWEST, "pii_key_id": None, "tables": tables})


@pytest.mark.parametrize(("hours", "stale"), [(0, False), (24, False), (25, True)])
def test_a_table_is_stale_beyond_what_it_promises(made_params: Params, hours: int, stale: bool) -> None:
    p = promise(made_params, orders="1d")
    stale_tables = list(freshness.find_stale(p, manifest(p, NEWEST), NEWEST + timedelta(hours=hours)))
    assert [one.table for one in stale_tables] == ["orders"] * stale
    sentence = "promises a row at most 1d old, but its newest row is of 2024-01-20 10:00:00, 1 day"
    assert all(sentence in one.message for one in stale_tables)


def test_a_table_without_rows_is_stale_and_one_without_a_promise_never(made_params: Params) -> None:
    p = promise(made_params, traffic="1h")
    (stale,) = freshness.find_stale(p, manifest(p, None), NEWEST)
    assert "it has no row" in stale.message
    assert list(freshness.find_stale(made_params, manifest(p, None), NEWEST)) == []


def test_the_cause_is_the_same_until_a_newer_row_comes(made_params: Params) -> None:
    p = promise(made_params, orders="1d")
    causes = [
        stale.cause
        for newest, now in ((NEWEST, 3), (NEWEST, 4), (NEWEST + timedelta(hours=1), 4))
        for stale in freshness.find_stale(p, manifest(p, newest), NEWEST + timedelta(days=now))
    ]
    assert causes[0] == causes[1] != causes[2]


def test_a_static_table_cannot_promise_to_be_fresh() -> None:
    with pytest.raises(ValueError, match="it needs event_time"):
        Source(address="a.csv", fresh_within="1d")  # type: ignore[arg-type]


def test_ingest_says_how_far_each_table_reaches(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="evergreen")
    as_of = BEGIN + timedelta(days=10)
    made.run("ingest", p=made.params(**{"clock.as_of": as_of.isoformat()}))
    tables = RawManifest.read(made.folder / "data" / "raw").tables
    assert tables["customers"].newest is None
    for name in ("orders", "traffic"):
        newest = tables[name].newest
        assert newest is not None
        assert as_of - timedelta(days=1) < newest <= as_of
    (line,) = [record.getMessage() for record in caplog.records if "reaches: " in record.getMessage()]
    assert "orders to 2024-" in line
