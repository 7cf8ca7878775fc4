"""metrics: what /metrics tells Prometheus, of one process, or of all that share a port.

Several processes keep their figures in files of one folder, PROMETHEUS_MULTIPROC_DIR, which tasks/serving/__main__.py
makes anew at each start; whichever is asked adds them up. Counts of a process that died stay, its gauges go.
"""

import contextlib
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
TENTHS = tuple(i / 10 for i in range(1, 11))
KINDS = {401: "key", 403: "scope", 404: "path", 405: "method", 413: "size", 422: "row", 503: "busy"}
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
    age: Gauge
    looked: Gauge
    _told: dict[tuple[str, int], Callable[[float], None]] = field(default_factory=dict)
    _rows: dict[int, Callable[[float], None]] = field(default_factory=dict)

    @staticmethod
    def begin() -> "Metrics":
        kept = CollectorRegistry()
        histogram = partial(Histogram, registry=kept)
        counter = partial(Counter, registry=kept)
        gauge = partial(Gauge, registry=kept, multiprocess_mode="livemostrecent")  # of the process that is asked
        return Metrics(
            kept,
            requests=counter("evergreen_requests", "answers", ["path", "status"]),
            seconds=histogram("evergreen_request_seconds", "until the answer", ["path"], buckets=SECONDS),
            errors=counter("evergreen_errors", "answers that are none, by what was wrong", ["kind"]),
            predictions=counter("evergreen_predictions", "rows predicted", ["version"]),
            scores=histogram("evergreen_score", "probabilities of the positive class", buckets=TENTHS),
            outcomes=counter("evergreen_outcomes", "outcomes taken"),
            version=gauge("evergreen_version", "the version that serves"),
            age=gauge("evergreen_state_age_seconds", "since the state was published"),
            looked=gauge("evergreen_registry_age_seconds", "since the registry was last found and copied from"),
        )

    def answered(self, path: str, status: int, seconds: float) -> None:
        tell = self._told.get((path, status))
        if tell is None:  # labels() takes a lock and builds texts: once for each of the few paths and statuses
            tell = self._told[path, status] = self._tells(path, status)
        tell(seconds)

    def _tells(self, path: str, status: int) -> Callable[[float], None]:
        count, observe = self.requests.labels(path, str(status)).inc, self.seconds.labels(path).observe
        error = self.errors.labels(kind_of(status)).inc if status >= 400 else None

        def tell(seconds: float) -> None:
            count()
            observe(seconds)
            if error:
                error()

        return tell

    def predicted(self, version: int, count: int, scores: Iterable[float]) -> None:
        if version not in self._rows:
            self._rows[version] = self.predictions.labels(str(version)).inc
        self._rows[version](count)
        _observe(self.scores, list(scores))

    def text(self) -> bytes:
        """What this process counted, or what all did."""
        if not (folder := shared()):
            return generate_latest(self.registry)
        _forget_dead(folder)
        together = CollectorRegistry()
        MultiProcessCollector(together, path=str(folder))  # type: ignore[no-untyped-call]
        return generate_latest(together)


def kind_of(status: int) -> str:
    return KINDS.get(status, "fault" if status >= 500 else "request")


def shared() -> Path | None:
    """The folder of the processes that share a port; None where there is one process."""
    return Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None


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
    """A gauge of a process that is no more would be told for ever."""
    found = {int(named[1]) for path in folder.glob("gauge_live*.db") if (named := GAUGE_FILE.fullmatch(path.name))}
    for pid in found:
        if not _lives(pid):
            with contextlib.suppress(FileNotFoundError):  # another process was asked at the same time
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
