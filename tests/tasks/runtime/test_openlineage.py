"""tasks.runtime.openlineage: events as the specification has them, to a real receiver, which never holds up a run."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import jsonschema
import pytest

from tasks.runtime import openlineage
from tasks.runtime.openlineage import Dataset, Job, make_event, make_facet, open_events

FACETS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["_producer", "_schemaURL"],
        "properties": {name: {"type": "string", "format": "uri"} for name in ("_producer", "_schemaURL")},
    },
}
NAMED = {
    "type": "object",
    "required": ["namespace", "name"],
    "properties": {"namespace": {"type": "string"}, "name": {"type": "string"}, "facets": FACETS},
}
EVENT = {  # what https://openlineage.io/spec/2-0-2/OpenLineage.json asks of a RunEvent
    "type": "object",
    "required": ["eventTime", "producer", "schemaURL", "run", "job"],
    "properties": {
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "eventTime": {"type": "string", "format": "date-time"},
        "producer": {"type": "string", "format": "uri"},
        "schemaURL": {"type": "string", "format": "uri"},
        "run": {
            "type": "object",
            "required": ["runId"],
            "properties": {"runId": {"type": "string", "format": "uuid"}, "facets": FACETS},
        },
        "job": NAMED,
        "inputs": {"type": "array", "items": NAMED},
        "outputs": {"type": "array", "items": NAMED},
    },
}


def check_event(event: Any) -> None:
    jsonschema.validate(event, EVENT, format_checker=jsonschema.FormatChecker())


@contextmanager
def receive(status: int = 201, *, wait_s: float = 0.0) -> Iterator[tuple[str, list[Any], list[str | None]]]:
    """A receiver: its address, the events that it has got, and the keys that came with them."""
    events: list[Any] = []
    keys: list[str | None] = []
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            ended.wait(wait_s)
            events.append(json.loads(body) | {"path": self.path})
            keys.append(self.headers.get("Authorization"))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", events, keys
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (openlineage.URL, openlineage.ENDPOINT, openlineage.KEY, openlineage.NAMESPACE, openlineage.DISABLED):
        monkeypatch.delenv(name, raising=False)


def watch(*, fails: bool = False, describe: Callable[[], Any] = lambda: ([Dataset("file", "/a")], [])) -> None:
    with open_events() as events, events.watch(Job("m.clean", (str(uuid4()), "m.retrain")), str(uuid4()), describe):
        if fails:
            raise ValueError("no such column")


def test_a_run_is_told_by_its_start_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with receive() as (address, events, keys):
        monkeypatch.setenv(openlineage.URL, address + "/")
        monkeypatch.setenv(openlineage.KEY, "a-key")
        watch()
    assert [event["eventType"] for event in events] == ["START", "COMPLETE"]
    assert {event["path"] for event in events} == {"/api/v1/lineage"}
    assert set(keys) == {"Bearer a-key"}
    assert events[0]["run"]["runId"] == events[1]["run"]["runId"]
    for event in events:
        check_event(event)


def test_a_failure_is_told_with_its_reason_and_stays_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with receive() as (address, events, _):
        monkeypatch.setenv(openlineage.URL, address)
        monkeypatch.setenv(openlineage.NAMESPACE, "team")
        with pytest.raises(ValueError, match="no such column"):
            watch(fails=True)
    assert [event["eventType"] for event in events] == ["START", "FAIL"]
    assert events[1]["run"]["facets"]["errorMessage"]["message"] == "no such column"
    assert events[1]["job"]["namespace"] == "team"
    check_event(events[1])


def test_a_receiver_that_refuses_or_is_not_there_fails_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with receive(500) as (address, events, _):
        monkeypatch.setenv(openlineage.URL, address)
        watch()
        assert len(events) == 2
        assert "has not got 2 of 2 events of this run (HTTPError: HTTP Error 500" in caplog.text
    caplog.clear()
    watch()  # nobody listens there any more
    assert "has not got 2 of 2 events of this run (URLError" in caplog.text


def test_a_slow_receiver_holds_up_the_end_of_a_run_so_long_at_most(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The receiver answers when the test ends: a run that waited for it would never end."""
    monkeypatch.setattr(openlineage, "POST_S", 600.0)
    with receive(wait_s=600.0) as (address, events, _):
        monkeypatch.setenv(openlineage.URL, address)
        with open_events() as opened:
            with opened.watch(Job("m.clean"), str(uuid4()), lambda: ([], [])):
                pass
            opened.close(0.1)
            assert events == []
            assert "has not got 2 of 2 events" in caplog.text
            monkeypatch.setattr(opened, "receiver", None)


def test_a_description_that_fails_fails_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with receive() as (address, events, _):
        monkeypatch.setenv(openlineage.URL, address)
        watch(describe=lambda: 1 / 0)
    assert events == []
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("disabled", [True, False])
def test_without_an_address_nothing_is_described(disabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if disabled:
        monkeypatch.setenv(openlineage.URL, "http://127.0.0.1:9")
        monkeypatch.setenv(openlineage.DISABLED, "true")
    watch(describe=lambda: pytest.fail("it was asked"))


def test_an_address_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(openlineage.URL, "marquez:5000")
    watch()
    assert "OPENLINEAGE_URL must begin with http:// or https://, but is 'marquez:5000'" in caplog.text


def test_an_event_is_what_the_specification_asks() -> None:
    facet = make_facet("SchemaDatasetFacet", "1-2-0", fields=[{"name": "a"}])
    event = make_event(
        "START",
        Job("m.clean"),
        str(uuid4()),
        datetime.now(UTC),
        namespace="n",
        outputs=[Dataset("n", "m.clean.a", {"schema": facet})],
    )
    check_event(event)
    with pytest.raises(jsonschema.ValidationError):
        check_event(event | {"eventType": "ENDED"})


def test_events_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with receive() as (address, events, _):
        monkeypatch.setenv(openlineage.URL, address)
        with open_events() as opened:
            for number in range(20):
                with opened.watch(Job(f"m.{number}"), str(uuid4()), lambda: ([], [])):
                    time.sleep(0)
    assert [event["job"]["name"] for event in events] == [f"m.{number}" for number in range(20) for _ in range(2)]
