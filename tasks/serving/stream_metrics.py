"""stream_metrics: what the stream's /metrics reports to Prometheus."""

import contextlib
import json
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tasks.serving.active import Active
from tasks.serving.stream_messages import Partition

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


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
                "evergreen_stream_batch_seconds", "Seconds for a batch.", buckets=SECONDS, registry=registry
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

    def forget_partition(self, partition: Partition) -> None:
        with contextlib.suppress(KeyError):
            self.lag.remove(partition[0], str(partition[1]))
