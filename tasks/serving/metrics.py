"""metrics: what /metrics reports to Prometheus: of the API, one process or all that share a port, and of the stream.

A new metric is a field of Metrics or StreamMetrics, made where the others are, and a call where its value is known
(README.md shows the places). Several processes of the API keep their values in files of one folder,
PROMETHEUS_MULTIPROC_DIR, which tasks/serving/__main__.py makes at each start; the process that is asked adds them up.
Counts of a process that died stay, its gauges go.
"""

import contextlib
import json
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Metrics:
    registry: CollectorRegistry
    requests: Counter
    seconds: Histogram
    errors: Counter
    predictions: Counter
    scores: Histogram
    outcomes: Counter
    version: Gauge
    state_age: Gauge
    registry_age: Gauge
    _reporters: dict[tuple[str, int], Callable[[float], None]] = field(default_factory=dict)
    _row_counters: dict[int, Callable[[float], None]] = field(default_factory=dict)

    @staticmethod
    def begin() -> "Metrics":
        registry = CollectorRegistry()
        histogram = partial(Histogram, registry=registry)
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry, multiprocess_mode="livemostrecent")  # of the process that is asked
        return Metrics(
            registry,
            requests=counter("evergreen_requests", "Requests, by path and status.", ["path", "status"]),
            seconds=histogram("evergreen_request_seconds", "Seconds until the answer.", ["path"], buckets=SECONDS),
            errors=counter("evergreen_errors", "Failed requests, by cause.", ["kind"]),
            predictions=counter("evergreen_predictions", "Predicted rows, by model version.", ["version"]),
            scores=histogram("evergreen_score", "Predicted probability of the positive class.", buckets=TENTHS),
            outcomes=counter("evergreen_outcomes", "Accepted outcomes."),
            version=gauge("evergreen_version", "Number of the model version that serves."),
            state_age=gauge("evergreen_state_age_seconds", "Seconds since the state was published."),
            registry_age=gauge("evergreen_registry_age_seconds", "Seconds since the registry was last read."),
        )

    def count_request(self, path: str, status: int, seconds: float) -> None:
        report = self._reporters.get((path, status))
        if report is None:  # labels() takes a lock and builds texts: once for each of the few paths and statuses
            report = self._reporters[path, status] = self._make_reporter(path, status)
        report(seconds)

    def _make_reporter(self, path: str, status: int) -> Callable[[float], None]:
        count, observe = self.requests.labels(path, str(status)).inc, self.seconds.labels(path).observe
        count_error = self.errors.labels(cause_of(status)).inc if status >= 400 else None

        def report(seconds: float) -> None:
            count()
            observe(seconds)
            if count_error:
                count_error()

        return report

    def count_predictions(self, version: int, count: int, scores: Iterable[float]) -> None:
        if version not in self._row_counters:
            self._row_counters[version] = self.predictions.labels(str(version)).inc
        self._row_counters[version](count)
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
        if not _lives(pid):
            with contextlib.suppress(FileNotFoundError):  # another process was asked at the same time
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


@dataclass(frozen=True)
class StreamMetrics:
    registry: CollectorRegistry
    rows: Counter
    again: Counter
    dead: Counter
    failed: Counter
    seconds: Histogram
    lag: Gauge
    up: Gauge

    @staticmethod
    def of(active: Active) -> "StreamMetrics":
        registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        gauge("evergreen_version", "Number of the model version that serves.").set_function(
            lambda: active.champion.number if active.champion else 0
        )
        gauge("evergreen_state_age_seconds", "Seconds since the state was published.").set_function(
            lambda: active.tables.state.age().total_seconds() if active.tables else float("nan")
        )
        return StreamMetrics(
            registry,
            rows=counter("evergreen_stream_rows", "Predicted rows, by model version.", ["version"]),
            again=counter("evergreen_stream_again", "Rows that were in the journal already and were sent again."),
            dead=counter("evergreen_stream_dead", "Rows that could not be answered, by the broken rule.", ["rule"]),
            failed=counter("evergreen_stream_failed", "Batches that failed and were done again."),
            seconds=Histogram(
                "evergreen_stream_batch_seconds", "Seconds for a batch.", buckets=BATCH_SECONDS, registry=registry
            ),
            lag=gauge("evergreen_stream_lag", "Messages that wait, by partition.", ["topic", "partition"]),
            up=gauge("evergreen_stream_up", "1 if a broker can be reached, else 0."),
        )

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
