"""A source that does not deliver is replaced by its named fallback, in sight of all, or the stage fails."""

import json
import logging
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.data.manifest import RawManifest
from tasks.data.sources import copies, download, fetch
from tasks.data.sources.scheme import DeliveryError
from tests.conftest import Made
from tests.tasks.data.faulty import Fault, File, Web, serve


@pytest.fixture
def web(made: Made, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server that has the made orders."""
    monkeypatch.setattr(download, "WAIT_S", 0.01)
    with serve() as web:
        web.files["/orders.csv"] = File((made.folder / "source" / "orders.csv").read_bytes())
        made.raw["sources"]["orders"]["address"] = web.address + "/orders.csv"
        yield web


def ingest(made: Made) -> RawManifest:
    made.run("ingest", p=made.params())
    return RawManifest.read(made.folder / "data" / "raw")


def test_a_table_from_the_web_is_that_of_the_file(made: Made, web: Web) -> None:
    remote = ingest(made).tables["orders"]
    made.raw["sources"]["orders"]["address"] = "source/orders.csv"
    local = ingest(made).tables["orders"]
    assert remote.fingerprint == local.fingerprint
    assert remote.periods == local.periods
    assert remote.fallback is local.fallback is None
    assert len(web.requests) == 1


def test_a_rehearsal_asks_no_source_and_takes_what_came_last(
    made: Made, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fetch.LAST_COPIES, "1")
    with pytest.raises(DeliveryError, match="has not been fetched on this machine yet"):
        ingest(made)
    monkeypatch.delenv(fetch.LAST_COPIES)
    came = ingest(made)
    web.files["/orders.csv"] = File(b"another table")
    monkeypatch.setenv(fetch.LAST_COPIES, "1")
    assert ingest(made) == came
    assert len(web.requests) == 1


def test_a_second_address_is_used_and_said(made: Made, web: Web, caplog: pytest.LogCaptureFixture) -> None:
    made.raw["sources"]["orders"]["fallback"] = "source/orders.csv"
    web.faults = [Fault(status=404)]
    table = ingest(made).tables["orders"]
    assert table.fallback == "source/orders.csv"
    assert table.address == web.address + "/orders.csv"
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.endswith("answers with 404 Not Found. Correct the address. Its fallback is used: source/orders.csv")
    assert ingest(made).tables["orders"].fallback is None  # it delivers again


def test_the_last_good_copy_is_used_until_it_is_too_old(
    made: Made, web: Web, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made.raw["sources"]["orders"] |= {"fallback": "last", "max_age": "2d"}
    web.faults = [Fault(status=404)]
    with pytest.raises(DeliveryError, match=r"404 .*\. Nor does its fallback deliver: this machine has no good copy"):
        ingest(made)
    good = ingest(made).tables["orders"]
    web.faults = [Fault(status=503)] * 5
    table = ingest(made).tables["orders"]
    assert table.fallback is not None
    assert table.fallback.startswith("the last good copy, of 20")
    assert table.fingerprint == good.fingerprint
    assert "Its fallback is used: the last good copy" in caplog.text

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]  # noqa: ARG003
            return datetime.now(UTC) + timedelta(days=2, seconds=1)

    monkeypatch.setattr(copies, "datetime", Later)
    web.faults = [Fault(status=404)]
    with pytest.raises(DeliveryError, match=r"the last good copy is of 20.* UTC, older than max_age"):
        ingest(made)


def test_a_copy_that_the_source_has_just_said_to_be_all_is_as_good_as_new(made: Made, web: Web, tmp_path: Path) -> None:
    ingest(made)
    (delivery,) = (tmp_path / "home" / "sources").glob("*/delivery.json")
    old = json.loads(delivery.read_text()) | {"checked": (datetime.now(UTC) - timedelta(days=9)).isoformat()}
    delivery.write_text(json.dumps(old))
    ingest(made)
    assert web.asked("if-none-match")[1] is not None
    assert datetime.fromisoformat(json.loads(delivery.read_text())["checked"]) > datetime.now(UTC) - timedelta(hours=1)


def test_files_that_are_gone_have_a_fallback_too(made: Made) -> None:
    shutil.copy(made.folder / "source" / "orders.csv", made.folder / "second.csv")
    made.raw["sources"]["orders"]["fallback"] = "second.csv"
    (made.folder / "source" / "orders.csv").unlink()
    assert ingest(made).tables["orders"].fallback == "second.csv"
    (made.folder / "second.csv").unlink()
    with pytest.raises(DeliveryError, match=r"orders\.csv does not exist .*Nor does its fallback deliver: second\.csv"):
        ingest(made)


def test_a_setting_that_is_wrong_is_no_reason_for_a_fallback(
    made: Made, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKEN_OF_MINE", raising=False)
    made.raw["sources"]["orders"] |= {"fallback": "source/orders.csv", "headers": {"X-Key": "TOKEN_OF_MINE"}}
    with pytest.raises(ValueError, match="TOKEN_OF_MINE, which is not set"):
        ingest(made)
    assert web.requests == []


def test_how_a_source_is_fetched_changes_nothing_of_its_rows(made: Made, web: Web) -> None:
    before = ingest(made).model_dump()
    made.raw["sources"]["orders"] |= {"timeout": "1m", "fallback": "last", "max_age": "1d"}
    assert ingest(made).model_dump() == before
    assert web.asked("if-none-match")[1] is not None
