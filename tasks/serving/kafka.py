"""kafka: messages from one topic and to others, by confluent_kafka, which tasks/data/sources/topic.py imports too.

What is consumed is committed only by `commit`; what is sent is reported on before `send` returns.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from tasks import log, params
from tasks.serving.stream_messages import KafkaMessage, Partition, Reply

FLUSH_S = 0.5
WARN_AGAIN_S = 60.0


class KafkaClient:
    """A member of the consumer group, and a producer. Not for two threads at once.

    Args:
        on_assign: called with the partitions that became this client's, and the offset where each ends now: infinite
            where the broker does not say.
        on_revoke: called with the partitions that are no longer this client's.
        on_statistics: called with librdkafka's own figures.
    """

    def __init__(
        self,
        p: params.Params,
        *,
        on_assign: Callable[[Mapping[Partition, float]], None],
        on_revoke: Callable[[list[Partition]], None],
        on_statistics: Callable[[str], None],
    ) -> None:
        self.p, self.settings = p, p.serving.stream
        self.on_assign, self.on_revoke = on_assign, on_revoke
        self.sent: set[str] = set()  # sources of uncommitted messages whose replies the broker has
        self.warned: dict[str, float] = {}  # when each warning was last logged
        self.producer = Producer(producer_settings(p))
        callbacks = {"stats_cb": on_statistics, "error_cb": self._report_error, "on_commit": self._report_commit}
        self.consumer = Consumer(consumer_settings(p) | callbacks)

    def subscribe(self) -> None:
        self.consumer.subscribe([self.settings.rows], on_assign=self._assign, on_revoke=self._revoke)

    def receive(self, count: int, wait_s: float) -> list[KafkaMessage]:
        """Up to `count` messages, within this time."""
        received = []
        for message in self.consumer.consume(count, wait_s):
            if error := message.error():
                self._report_error(error)
            else:
                received.append(read_message(message))
        return received

    def send(self, replies: Iterable[Reply]) -> None:
        """Returns when the broker has them all; else raises its error. Each is reported on within serving.within."""
        errors: list[KafkaError] = []
        for reply in replies:
            if reply.source not in self.sent:
                self._produce(reply, errors)
        while len(self.producer):
            self.producer.flush(FLUSH_S)
        if errors:
            raise KafkaException(errors[0])

    def _produce(self, reply: Reply, errors: list[KafkaError]) -> None:
        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is None:
                self.sent.add(reply.source)
            elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE and reply.value is not None:
                self._produce(reply.without_value(), errors)
            else:
                errors.append(error)

        headers: list[tuple[str, str | bytes | None]] = [*reply.headers]
        try:
            self.producer.produce(reply.topic, reply.value, reply.key, headers=headers, on_delivery=delivered)
        except KafkaException as error:  # longer than this client sends
            if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE or reply.value is None:
                raise
            self._produce(reply.without_value(), errors)

    def commit(self, received: Sequence[KafkaMessage]) -> None:
        """Commit the offsets: at once if the broker answers, else as soon as it does."""
        self.sent.difference_update(message.source for message in received)
        ends = [TopicPartition(*partition, last + 1) for partition, (_, last) in offsets_of(received).items()]
        with contextlib.suppress(KafkaException):  # no longer ours: the next client finds the rows in the journal
            self.consumer.store_offsets(offsets=ends)
            self.consumer.commit(asynchronous=True)

    def rewind(self, received: Sequence[KafkaMessage]) -> bool:
        """Go back to the first of these messages; False where that fails and the partitions are asked for again."""
        try:
            for partition, (first, _) in offsets_of(received).items():
                self.consumer.seek(TopicPartition(*partition, first))
        except KafkaException as error:  # what cannot go back must not go on: begin where the broker says
            self.warn("seek", "the partitions are asked for again: %s", error)
            self.consumer.unsubscribe()
            self.subscribe()
            return False
        return True

    def close(self) -> None:
        """Without waiting long for a broker that is away: all there is to lose is that replies are sent again."""
        closing = threading.Thread(target=self.consumer.close, name="close", daemon=True)
        closing.start()
        closing.join(self.p.serving.within.total_seconds())

    def warn(self, topic: str, text: str, *values: Any) -> None:
        """Once a minute for each topic: a broker that is away is tried twenty times a second."""
        if time.monotonic() - self.warned.get(topic, -WARN_AGAIN_S) >= WARN_AGAIN_S:
            self.warned[topic] = time.monotonic()
            log.warning(text, *values)

    # --- callbacks of the client, from within `receive`

    def _assign(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            ends: list[float] = [self.consumer.get_watermark_offsets(part, timeout=2)[1] for part in partitions]
        except KafkaException:
            ends = [float("inf")] * len(partitions)
        self.on_assign({(part.topic, part.partition): end for part, end in zip(partitions, ends, strict=True)})
        log.info("partitions %s of %s", sorted(part.partition for part in partitions), self.settings.rows)

    def _revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.on_revoke([(part.topic, part.partition) for part in partitions])

    def _report_error(self, error: KafkaError) -> None:
        if error.fatal():
            raise KafkaException(error)
        self.warn(error.name(), "Kafka: %s", error.str())

    def _report_commit(self, error: KafkaError | None, _partitions: list[TopicPartition]) -> None:
        if error:
            self.warn(error.name(), "the offsets are not committed yet: %s", error.str())


def read_message(message: Message) -> KafkaMessage:
    headers: Any = message.headers() or ()
    place = str(message.topic()), int(message.partition() or 0), int(message.offset() or 0)
    return KafkaMessage(*place, message.timestamp()[1], message.key(), message.value(), tuple(headers))


def offsets_of(received: Iterable[KafkaMessage]) -> dict[Partition, tuple[int, int]]:
    """The first and the last offset in each partition."""
    offsets: dict[Partition, tuple[int, int]] = {}
    for message in received:
        first, last = offsets.get(message.partition, (message.offset, message.offset))
        offsets[message.partition] = min(first, message.offset), max(last, message.offset)
    return offsets


def is_fatal(error: Exception) -> bool:
    """A client with such an error never works again."""
    return isinstance(error, KafkaException) and bool(error.args[0].fatal())


def client_settings(p: params.Params) -> dict[str, Any]:
    """librdkafka reports through its callbacks: its own log repeats itself, so it is quiet."""
    password = os.environ.get("EVERGREEN_KAFKA_PASSWORD")
    secret = {"sasl.password": password} if password else {}
    return {"log_level": 2, **p.serving.stream.client, "bootstrap.servers": p.serving.stream.bootstrap, **secret}


def consumer_settings(p: params.Params) -> dict[str, Any]:
    """Stored offsets are committed, in the background too; only those of answered messages are stored."""
    ours = {"group.id": p.serving.stream.group, "enable.auto.commit": True, "enable.auto.offset.store": False}
    return {
        "auto.offset.reset": "earliest",
        "auto.commit.interval.ms": 1000,
        "statistics.interval.ms": 2000,
        **client_settings(p),
        **ours,
    }


def producer_settings(p: params.Params) -> dict[str, Any]:
    """In order, and not twice within one life of the client. The broker says what is too long for a topic."""
    within_ms = int(p.serving.within.total_seconds() * 1000)
    defaults = {"enable.idempotence": True, "message.max.bytes": 10_000_000, "linger.ms": 5}
    return {**defaults, **client_settings(p), "message.timeout.ms": within_ms}
