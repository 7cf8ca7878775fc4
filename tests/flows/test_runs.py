"""What is tried again when the Prefect API is away, against a real server; and steps that do not need each other."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows import runs
from flows.runs import Steps, retried, send_event
from infra.servers import free_port
from tests.flows.conftest import shown

pytestmark = pytest.mark.usefixtures("prefect_server")


class Gate:
    """A port of its own that passes on to the server. While it is shut, the server seems away."""

    def __init__(self) -> None:
        parts = urlsplit(str(PREFECT_API_URL.value()))
        self.target = (str(parts.hostname), int(parts.port or 0))
        self.port, self.failures = free_port(), 0
        self.connections: list[socket.socket] = []
        self.listener: socket.socket | None = None
        self.open()

    def open(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                one, other = listener.accept()[0], socket.create_connection(self.target)
                self.connections += [one, other]
                for pair in ((one, other), (other, one)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    def shut(self) -> None:
        for one in (self.listener, *self.connections):
            with suppress(OSError):
                if one:
                    one.shutdown(socket.SHUT_RDWR)
                    one.close()

    def reopen(self, *state: Any) -> bool:
        """As a task's condition for another try."""
        self.failures += 1
        self.open()
        return runs.may_pass(*state)


def copy(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """The server by way of the gate; Prefect's own client, whose patience is minutes, tries once."""
    one = Gate()
    settings = {PREFECT_API_URL: f"http://127.0.0.1:{one.port}/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(settings):
        yield one
    one.shut()


def test_an_artifact_and_an_event_wait_for_a_prefect_api_that_is_away(gate: Gate) -> None:
    def publish() -> str:
        if not gate.failures:
            gate.shut()
        create_markdown_artifact("It came through.", key="away")
        send_event("evergreen.test", resource="evergreen.model.away", payload={"decision": "d"})
        return "done"

    step = retried("publish", retry_delay_seconds=0.1, retry_condition_fn=lambda *state: gate.reopen(*state))(publish)
    assert flow(name="asking")(lambda: step())() == "done"
    assert gate.failures == 1
    assert shown("away") == ["It came through."]


def test_an_event_that_the_api_does_not_take_is_an_error_and_is_not_lost(gate: Gate) -> None:
    def say() -> str:
        gate.shut()
        try:
            send_event("evergreen.test", resource="evergreen.model.nobody", payload={})
        except httpx.TransportError:
            return "an error"
        finally:
            gate.open()
        return "nobody noticed"

    assert flow(name="saying")(say)() == "an error"


def test_every_step_is_done_and_the_first_error_is_raised_at_the_end() -> None:
    done = []

    def fails(error: Exception) -> None:
        raise error

    @flow(name="steps")
    def walk() -> None:
        steps = Steps()
        assert steps.run(fails, ValueError("the first")) is None
        steps.run(done.append, "between")
        steps.run(fails, KeyError("the second"))
        assert steps.run(str.upper, "last") == "LAST"
        steps.raise_first()

    with pytest.raises(ValueError, match="the first"):
        walk()
    assert done == ["between"]
