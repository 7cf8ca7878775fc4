"""openlineage: what a run does, as events of OpenLineage, to the receiver that OPENLINEAGE_URL names.

    OPENLINEAGE_URL=http://127.0.0.1:5000 evergreen retrain      (such as Marquez)

The variables are those of OpenLineage's own client: OPENLINEAGE_URL, OPENLINEAGE_ENDPOINT (api/v1/lineage),
OPENLINEAGE_API_KEY, OPENLINEAGE_NAMESPACE (evergreen), OPENLINEAGE_DISABLED. That client is not used: it would bring
libraries of its own, and send in the run's time. Here a thread beside the run sends, in order. A receiver that refuses,
is slow or is gone fails no run, and delays its end by FLUSH_S at most; the log says how many events it did not get.
"""

import contextlib
import json
import os
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from tasks import log

URL, ENDPOINT, KEY = "OPENLINEAGE_URL", "OPENLINEAGE_ENDPOINT", "OPENLINEAGE_API_KEY"
NAMESPACE, DISABLED = "OPENLINEAGE_NAMESPACE", "OPENLINEAGE_DISABLED"
USUAL_ENDPOINT, USUAL_NAMESPACE = "api/v1/lineage", "evergreen"
PRODUCER = "urn:evergreen"
SPEC = "https://openlineage.io/spec"
POST_S = 5.0  # for one event, between two signs of life of the receiver
FLUSH_S = 5.0  # for the events that are not sent yet when a run ends
EventType = Literal["START", "COMPLETE", "FAIL"]
Facets = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Dataset:
    """A table, file or topic, by OpenLineage's own rules for names."""

    namespace: str
    name: str
    facets: Facets = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"namespace": self.namespace, "name": self.name, "facets": dict(self.facets)}


@dataclass(frozen=True)
class Job:
    """What runs, and the run that it is a part of: its id, and its job's name."""

    name: str
    parent: tuple[str, str] | None = None


# What a job reads and what it makes; asked in the thread that sends, since tracing columns takes its time.
Describe = Callable[[], tuple[Sequence[Dataset], Sequence[Dataset]]]


# --- events ----------------------------------------------------------------------------------------------------------


def make_facet(name: str, version: str, **fields: Any) -> dict[str, Any]:
    """A facet of the specification, such as make_facet("SchemaDatasetFacet", "1-2-0", fields=[...])."""
    return {"_producer": PRODUCER, "_schemaURL": f"{SPEC}/facets/{version}/{name}.json#/$defs/{name}", **fields}


def make_event(
    kind: EventType,
    job: Job,
    run_id: str,
    moment: datetime,
    *,
    namespace: str,
    inputs: Sequence[Dataset] = (),
    outputs: Sequence[Dataset] = (),
    error: str | None = None,
) -> dict[str, Any]:
    """An event of a run, as the specification has it.

    Args:
        run_id: a UUID.
        moment: with a zone.
        error: why the run failed, in words.
    """
    run: dict[str, Any] = {}
    if job.parent:
        parent = {"run": {"runId": job.parent[0]}, "job": {"namespace": namespace, "name": job.parent[1]}}
        run["parent"] = make_facet("ParentRunFacet", "1-2-0", **parent)
    if error:
        run["errorMessage"] = make_facet("ErrorMessageRunFacet", "1-0-1", message=error, programmingLanguage="PYTHON")
    kind_of_job = {"processingType": "BATCH", "integration": "EVERGREEN", "jobType": "TASK"}
    return {
        "eventType": kind,
        "eventTime": moment.isoformat(),
        "producer": PRODUCER,
        "schemaURL": f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": run_id, "facets": run},
        "job": {
            "namespace": namespace,
            "name": job.name,
            "facets": {"jobType": make_facet("JobTypeJobFacet", "2-0-4", **kind_of_job)},
        },
        "inputs": [dataset.to_dict() for dataset in inputs],
        "outputs": [dataset.to_dict() for dataset in outputs],
    }


# --- sending ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Receiver:
    address: str
    key: str | None
    namespace: str


def find_receiver() -> Receiver | None:
    """The receiver that the environment names, if it does. Raises ValueError for an address that is none."""
    url = os.environ.get(URL, "").strip()
    if not url or os.environ.get(DISABLED, "").lower() == "true":
        return None
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{URL} must begin with http:// or https://, but is {url!r}. Correct it, or unset it.")
    address = f"{url.rstrip('/')}/{os.environ.get(ENDPOINT, USUAL_ENDPOINT).lstrip('/')}"
    return Receiver(address, os.environ.get(KEY) or None, os.environ.get(NAMESPACE) or USUAL_NAMESPACE)


class Events:
    """The events of a run on their way to a receiver. Without one, nothing is made and nothing is sent."""

    def __init__(self, receiver: Receiver | None) -> None:
        self.receiver = receiver
        self._queue: queue.SimpleQueue[Callable[[], dict[str, Any]] | None] = queue.SimpleQueue()
        self._sent = self._asked = 0
        self._fault = "no answer yet"
        self._thread = threading.Thread(target=self._send_all, name="openlineage", daemon=True)
        if receiver:
            self._thread.start()

    @contextlib.contextmanager
    def watch(self, job: Job, run_id: str, describe: Describe) -> Iterator[None]:
        """START now, and COMPLETE or FAIL when the block ends."""
        self._put("START", job, run_id, describe)
        try:
            yield
        except Exception as error:
            self._put("FAIL", job, run_id, describe, error=f"{error}")
            raise
        except BaseException as error:
            self._put("FAIL", job, run_id, describe, error=type(error).__name__)
            raise
        self._put("COMPLETE", job, run_id, describe)

    def close(self, wait_s: float = FLUSH_S) -> None:
        """Wait for what is not sent yet, so long at most, and say what was not delivered."""
        if self.receiver is None:
            return
        self._queue.put(None)
        self._thread.join(wait_s)
        if self._sent < self._asked:
            log.warning(
                "%s has not got %d of %d events of this run (%s). The run goes on without.",
                self.receiver.address,
                self._asked - self._sent,
                self._asked,
                self._fault,
            )

    def _put(self, kind: EventType, job: Job, run_id: str, describe: Describe, *, error: str | None = None) -> None:
        if self.receiver is None:
            return
        self._asked += 1
        moment, namespace = datetime.now(UTC), self.receiver.namespace

        def make() -> dict[str, Any]:
            inputs, outputs = describe()
            return make_event(
                kind, job, run_id, moment, namespace=namespace, inputs=inputs, outputs=outputs, error=error
            )

        self._queue.put(make)

    def _send_all(self) -> None:
        while make := self._queue.get():
            try:
                self._post(json.dumps(make()).encode())
                self._sent += 1
            except Exception as error:  # of whatever kind: no run fails for it
                self._fault = f"{type(error).__name__}: {error}"

    def _post(self, body: bytes) -> None:
        assert self.receiver is not None
        request = urllib.request.Request(self.receiver.address, body, {"Content-Type": "application/json"})
        if self.receiver.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.receiver.key}")
        with _OPENER.open(request, timeout=POST_S) as answer:
            answer.read()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A receiver that leads elsewhere is a wrong address: the events would lose their body on the way."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


@contextlib.contextmanager
def open_events() -> Iterator[Events]:
    """The events of a run, sent to where the environment says, if it does."""
    try:
        events = Events(find_receiver())
    except ValueError as error:
        log.warning("no events are sent: %s", error)
        events = Events(None)
    try:
        yield events
    finally:
        events.close()
