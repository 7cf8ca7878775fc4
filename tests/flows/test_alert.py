"""Alerts through a real Prefect block to a real webhook: one a cause, none lost, and no flow fails for them."""

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prefect import flow

from flows import people
from flows.score import tell_stale
from tasks.params import Monitor, Params
from tasks.serving.journal import Journal
from tasks.serving.journal_log import LocalLogs
from tests.tasks import small
from tests.tasks.data import test_freshness
from tests.waiting import PATIENCE_S

BLOCK = "custom-webhook/ops"


@dataclass
class Receiver:
    """A webhook that keeps what it is sent, or answers that it is broken."""

    port: int = 0
    got: list[dict[str, str]] = field(default_factory=list)
    requests: int = 0
    fails: int = 0
    free: threading.Event = field(default_factory=threading.Event)  # it answers nobody before


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Whoever waits too long hangs up; that is no news."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.free.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.requests += 1
            receiver.free.wait(PATIENCE_S)
            if receiver.requests <= receiver.fails:
                self.send_response(503)
            else:
                receiver.got.append(body)
                self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    one = Journal(LocalLogs(tmp_path / "logs"), str(tmp_path / "parquet"))
    yield one
    one.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "DELAYS", [0.1, 0.1, 0.1])


def settings(block: str | None = BLOCK) -> Params:
    return small.settings().model_copy(update={"monitor": Monitor(alerts=block)})


def save_block(port: int) -> None:
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    template = {"title": "{{subject}}", "text": "{{body}}"}
    url = f"http://127.0.0.1:{port}/alerts"
    CustomWebhookNotificationBlock(name="ops", url=url, json_data=template, timeout=5).save("ops", overwrite=True)


@flow(name="alerting")
def tell(causes: list[str], journal: Journal, p: Params) -> list[bool]:
    """As the flows do: in a run."""
    return [people.alert(f"About {cause}", "It drifts.", cause=cause, journal=journal, p=p) for cause in causes]


pytestmark = pytest.mark.usefixtures("prefect_server")


def test_a_cause_is_told_once_and_two_are_told_twice(receiver: Receiver, journal: Journal) -> None:
    save_block(receiver.port)
    assert tell(["drift", "drift", "loss"], journal, settings()) == [True, False, True]
    assert receiver.got == [{"title": f"About {cause}", "text": "It drifts."} for cause in ("drift", "loss")]
    rows = journal.read("alerts").to_pylist()
    assert [(row["cause"], row["subject"]) for row in rows] == [("drift", "About drift"), ("loss", "About loss")]


def test_a_later_run_does_not_tell_it_again(receiver: Receiver, journal: Journal) -> None:
    save_block(receiver.port)
    assert tell(["drift"], journal, settings()) == [True]
    journal.close()
    assert journal.compact() == 1
    assert tell(["drift"], Journal(journal.logs, journal.address), settings()) == [False]
    assert len(receiver.got) == 1


@flow(name="staleness")
def look(p: Params, root: Path, now: datetime) -> None:
    """As a tick of score does."""
    tell_stale(p, root, now)


def test_a_table_that_breaks_its_promise_is_told_once_for_each_newest_row(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    save_block(receiver.port)
    p, newest = settings(), datetime(2024, 1, 20)
    promised = {"fresh_within": timedelta(days=1)}
    orders = p.sources["orders"].model_copy(update=promised)
    p = p.model_copy(update={"sources": {**p.sources, "orders": orders}})
    for end, days in ((newest, 0), (newest, 2), (newest, 3), (newest + timedelta(days=1), 3)):
        test_freshness.manifest(p, end).write(tmp_path / p.paths.raw)
        look(p, tmp_path, newest + timedelta(days=days))
    assert [message["title"] for message in receiver.got] == [
        f"evergreen: the table orders of {p.registry.model} is stale"
    ] * 2


def test_a_receiver_that_stumbles_is_tried_again(receiver: Receiver, journal: Journal) -> None:
    receiver.fails = 3
    save_block(receiver.port)
    assert tell(["drift"], journal, settings()) == [True]
    assert (receiver.requests, len(receiver.got)) == (4, 1)


def test_what_could_not_be_delivered_is_told_by_the_next_run(
    receiver: Receiver, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.fails = 4
    save_block(receiver.port)
    assert tell(["drift"], journal, settings()) == [False]
    assert receiver.got == []
    assert journal.read("alerts").num_rows == 0
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any("not delivered by custom-webhook/ops" in error and "It drifts." in error for error in errors)
    assert tell(["drift"], journal, settings()) == [True]
    assert len(receiver.got) == 1


def test_a_receiver_that_never_answers_holds_nobody_up(
    receiver: Receiver, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "LIMIT", 0.5)
    receiver.free.clear()
    save_block(receiver.port)
    assert tell(["drift"], journal, settings()) == [False]
    assert not receiver.got
    receiver.free.set()
    assert journal.read("alerts").num_rows == 0


def test_a_block_that_would_keep_quiet_about_a_failure_does_not(receiver: Receiver, journal: Journal) -> None:
    from prefect.blocks.notifications import SlackWebhook

    receiver.fails = 4
    SlackWebhook(url=f"json://127.0.0.1:{receiver.port}/").save("ops", overwrite=True)
    p = settings("slack-webhook/ops")
    assert [tell(["drift"], journal, p) for _ in range(2)] == [[False], [True]]
    assert [message["title"] for message in receiver.got] == ["About drift"]


def test_a_block_that_does_not_exist_fails_no_flow(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    assert tell(["drift"], journal, settings("slack-webhook/nobody")) == [False]
    assert "slack-webhook/nobody" in caplog.text
    assert journal.read("alerts").num_rows == 0


def test_without_a_block_the_log_is_told_once(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    assert tell(["drift", "drift"], journal, settings(None)) == [True, False]
    (warned,) = (
        record for record in caplog.records if record.levelno == logging.WARNING and "drift" in record.getMessage()
    )
    assert warned.getMessage() == "About drift\nIt drifts."
