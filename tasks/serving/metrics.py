"""metrics: what /metrics reports to Prometheus: of the API, one process or all that share a port, and of the stream.

A new metric is an attribute of Metrics or StreamMetrics, and a call where its value is known (README.md shows the
places). Several processes of the API keep their values in files of one folder,
PROMETHEUS_MULTIPROC_DIR, which tasks/serving/__main__.py makes at each start; the process that is asked adds them up.
Counts of a process that died stay, its gauges go.
"""

import contextlib
import json
import os
import re
from bisect import bisect_left
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from tasks.serving.active import Active

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
BATCH_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)  # of the stream
TENTHS = tuple(i / 10 for i in range(1, 11))
CAUSES = {401: "key", 403: "scope", 404: "path", 405: "method", 413: "size", 422: "row", 503: "busy"}
GAUGE_FILE = re.compile(r"gauge_live.*_(\d+)\.db")


class Metrics:
    """Of the API."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry, multiprocess_mode="livemostrecent")  # of the asked process
        self.requests = counter("evergreen_requests", "Requests, by path and status.", ["path", "status"])
        self.seconds = histogram("evergreen_request_seconds", "Seconds until the answer.", ["path"], buckets=SECONDS)
        self.errors = counter("evergreen_errors", "Failed requests, by cause.", ["kind"])
        self.predictions = counter("evergreen_predictions", "Predicted rows, by model version.", ["version"])
        self.scores = histogram("evergreen_score", "Predicted probability of the positive class.", buckets=TENTHS)
        self.outcomes = counter("evergreen_outcomes", "Accepted outcomes.")
        self.version = gauge("evergreen_version", "Number of the model version that serves.")
        self.state_age = gauge("evergreen_state_age_seconds", "Seconds since the state was published.")
        self.registry_age = gauge("evergreen_registry_age_seconds", "Seconds since the registry was last read.")
        self._labelled: dict[tuple[str, int], tuple[Counter, Histogram, Counter | None]] = {}
        self._row_counters: dict[int, Counter] = {}

    def count_request(self, path: str, status: int, seconds: float) -> None:
        if (path, status) not in self._labelled:  # labels() takes a lock and builds texts: once for the few of these
            errors = self.errors.labels(cause_of(status)) if status >= 400 else None
            self._labelled[path, status] = self.requests.labels(path, str(status)), self.seconds.labels(path), errors
        requests, histogram, errors = self._labelled[path, status]
        requests.inc()
        histogram.observe(seconds)
        if errors:
            errors.inc()

    def count_predictions(self, version: int, count: int, scores: Iterable[float]) -> None:
        if version not in self._row_counters:
            self._row_counters[version] = self.predictions.labels(str(version))
        self._row_counters[version].inc(count)
        _observe(self.scores, list(scores))

    def text(self) -> bytes:
        """What this process counted, or what all of them did."""
        folder = os.environ.get(FOLDER)
        if not folder:
            return generate_latest(self.registry)
        _forget_dead(Path(folder))
        together = CollectorRegistry()
        MultiProcessCollector(together, path=folder)  # type: ignore[no-untyped-call]
        return generate_latest(together)


def cause_of(status: int) -> str:
    return CAUSES.get(status, "fault" if status >= 500 else "request")


def _observe(histogram: Histogram, values: list[float]) -> None:
    """The same as observe() of each, at the cost of a few: a request may have a thousand rows."""
    if len(values) < len(TENTHS):
        for value in values:
            histogram.observe(value)
        return
    counts = [0] * (len(TENTHS) + 1)
    for value in values:
        counts[bisect_left(TENTHS, value)] += 1
    for bucket, count in zip(histogram._buckets, counts, strict=True):
        if count:
            bucket.inc(count)
    histogram._sum.inc(sum(values))


def _forget_dead(folder: Path) -> None:
    """The gauge of a process that has ended would be reported for ever."""
    for pid in {int(match[1]) for path in folder.glob("gauge_live*.db") if (match := GAUGE_FILE.fullmatch(path.name))}:
        try:
            os.kill(pid, 0)
        except PermissionError:  # it lives, and is another user's
            continue
        except ProcessLookupError:
            with contextlib.suppress(FileNotFoundError):  # another process was asked at the same time
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


class StreamMetrics:
    """Of one process of the stream."""

    def __init__(self, active: Active) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        gauge("evergreen_version", "Number of the model version that serves.").set_function(
            lambda: active.champion.number if active.champion else 0
        )
        gauge("evergreen_state_age_seconds", "Seconds since the state was published.").set_function(
            lambda: active.tables.state.age().total_seconds() if active.tables else float("nan")
        )
        self.rows = counter("evergreen_stream_rows", "Predicted rows, by model version.", ["version"])
        self.again = counter("evergreen_stream_again", "Rows that were in the journal already and were sent again.")
        self.dead = counter("evergreen_stream_dead", "Rows that could not be answered, by the broken rule.", ["rule"])
        self.failed = counter("evergreen_stream_failed", "Batches that failed and were done again.")
        self.seconds = Histogram(
            "evergreen_stream_batch_seconds", "Seconds for a batch.", buckets=BATCH_SECONDS, registry=self.registry
        )
        self.lag = gauge("evergreen_stream_lag", "Messages that wait, by partition.", ["topic", "partition"])
        self.up = gauge("evergreen_stream_up", "1 if a broker can be reached, else 0.")

    def read_statistics(self, statistics: str) -> None:
        """librdkafka's own figures, as JSON, every other second."""
        figures = json.loads(statistics)
        self.up.set(any(broker["state"] == "UP" for broker in figures["brokers"].values()))
        for topic, details in figures["topics"].items():
            for number, partition in details["partitions"].items():
                if partition["consumer_lag"] >= 0:
                    self.lag.labels(topic, number).set(partition["consumer_lag"])

    def forget_partition(self, partition: tuple[str, int]) -> None:
        with contextlib.suppress(KeyError):
            self.lag.remove(partition[0], str(partition[1]))
