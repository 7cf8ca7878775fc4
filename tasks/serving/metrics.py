"""metrics: what /metrics tells Prometheus of one process."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
TENTHS = tuple(i / 10 for i in range(1, 11))


@dataclass(frozen=True)
class Metrics:
    registry: CollectorRegistry
    requests: Counter
    seconds: Histogram
    predictions: Counter
    scores: Histogram
    outcomes: Counter
    version: Gauge
    age: Gauge

    @staticmethod
    def begin() -> "Metrics":
        kept = CollectorRegistry()
        histogram = partial(Histogram, registry=kept)
        counter, gauge = partial(Counter, registry=kept), partial(Gauge, registry=kept)
        return Metrics(
            kept,
            requests=counter("evergreen_requests", "answers", ["path", "status"]),
            seconds=histogram("evergreen_request_seconds", "until the answer", ["path"], buckets=SECONDS),
            predictions=counter("evergreen_predictions", "rows predicted", ["version"]),
            scores=histogram("evergreen_score", "probabilities of the positive class", buckets=TENTHS),
            outcomes=counter("evergreen_outcomes", "outcomes taken"),
            version=gauge("evergreen_version", "the version that serves"),
            age=gauge("evergreen_state_age_seconds", "since the state was published"),
        )

    def answered(self, path: str, status: int, seconds: float) -> None:
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def predicted(self, version: int, count: int, scores: Iterable[float]) -> None:
        self.predictions.labels(str(version)).inc(count)
        for score in scores:
            self.scores.observe(score)

    def text(self) -> bytes:
        return generate_latest(self.registry)
