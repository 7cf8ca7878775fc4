"""topic: kafka://broker:port,broker:port/topic, whose messages are JSON objects, a row each.

What has been read is kept as JSON lines, together with the offset of the next message of each partition: a fetch reads
from there to where the topic ends now, and both appear at once or not at all. Then the offsets are committed to the
consumer group, for people to see the lag; no fetch relies on that. The broker forgets old messages, so what is kept is
all there is of them.

Each row also has kafka_partition, kafka_offset and kafka_time. Messages that are no JSON objects are left out, and a
warning counts them.
"""

import contextlib
import gzip
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import log
from tasks.data import jsonlines
from tasks.data.sources import copies
from tasks.data.sources.download import Limit, retry
from tasks.data.sources.scheme import DeliveryError, PassingError
from tasks.params import Source

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

ANSWER_TIMEOUT_S, SILENCE_S = 10.0, 30.0  # for a question to a broker, and for the next message
FILES = 64  # of one topic, beyond which they become one
BATCH = 1000  # messages at once
FINAL = (  # the names of KafkaErrors that another try does not mend
    "_AUTHENTICATION",
    "SASL_AUTHENTICATION_FAILED",
    "TOPIC_AUTHORIZATION_FAILED",
    "GROUP_AUTHORIZATION_FAILED",
    "UNKNOWN_TOPIC_OR_PART",
    "_UNKNOWN_TOPIC",
    "_SSL",
)
Offsets = dict[int, int]  # by partition: that of the next message to read


class TopicRows:
    """The messages of a Kafka topic, from the first that it had when it was first asked."""

    def fetch(self, address: str, source: Source) -> list[Path]:
        limit = Limit.begin(source.timeout, address)
        _read_password(source)
        with copies.open_copies(address, source) as shelf:
            before = shelf.read()
            if before is None and (shelf.folder / copies.NAME).exists():
                raise DeliveryError(
                    f"{address}: what was kept of it in {shelf.folder} is damaged. Bring the folder back, or remove it "
                    "to begin with the messages that the topic still has"
                )
            state: Mapping[str, Any] = before.state if before else {"offsets": {}, "count": 0}
            offsets = {int(number): offset for number, offset in state["offsets"].items()}
            new = shelf.part_of("new")
            ends = retry(lambda: _read(address, source, offsets, new, limit), limit)
            delivered, count = before.copies if before else (), state["count"]
            if new.stat().st_size:
                delivered, count = (*delivered, shelf.keep(new, f"{count:06}.jsonl.gz", {})), count + 1
            if not delivered:
                raise DeliveryError(f"{address} has no messages yet")
            if len(delivered) > FILES:
                delivered = (_merge(shelf, delivered),)
            paths = shelf.publish(delivered, {"offsets": ends, "count": count})
            _commit(address, source, ends)  # also where nothing is new: a broker forgets old offsets too
            return paths


def _merge(shelf: copies.Copies, delivered: tuple[copies.Copy, ...]) -> copies.Copy:
    """All files as one: gzip goes on where another begins."""
    part = shelf.part_of("merged")
    with part.open("wb") as whole:
        for copy in delivered:
            with (shelf.folder / copy.path).open("rb") as file:
                shutil.copyfileobj(file, whole)
    return shelf.keep(part, delivered[-1].name, {})


def _read(address: str, source: Source, offsets: Offsets, target: Path, limit: Limit) -> Offsets:
    """Write the rows from the offsets to the topic's end, a partition after the other. Returns the next offsets."""
    limit.check()
    parts: dict[int, Path] = {}
    dropped = 0
    with _open_consumer(address, source) as (consumer, topic), contextlib.ExitStack() as stack:
        starts, highs = _find_ends(consumer, topic, address, offsets)
        ends, files = dict(starts), {}
        for number, message in _consume(consumer, topic, starts, highs, ends, limit):
            if number not in files:
                parts[number] = target.with_name(f"{target.name}.{number}")
                raw = stack.enter_context(parts[number].open("wb"))
                files[number] = stack.enter_context(
                    gzip.GzipFile("", "wb", 1, raw, mtime=0)
                )  # the same bytes each time
            line = _make_line(message)
            dropped += line is None
            files[number].write(line or b"")
    with target.open("wb") as whole:
        for number in sorted(parts):
            with parts[number].open("rb") as part:
                shutil.copyfileobj(part, whole)
    if dropped:
        log.warning("%s: %s new messages are no JSON objects, and are no rows", address, f"{dropped:,}")
    return ends


def _find_ends(consumer: "Consumer", topic: str, address: str, offsets: Offsets) -> tuple[Offsets, Offsets]:
    """By partition, where to begin and where the topic ends now. Raises DeliveryError where messages have been lost."""
    from confluent_kafka import KafkaException, TopicPartition

    entry = consumer.list_topics(topic, timeout=ANSWER_TIMEOUT_S).topics[topic]
    if entry.error:
        raise KafkaException(entry.error)
    starts, highs = {}, {}
    for number in sorted({*entry.partitions, *offsets}):
        low, high = 0, 0
        if number in entry.partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=ANSWER_TIMEOUT_S)
        starts[number], highs[number] = offsets.get(number, low), high
        if not low <= starts[number] <= high:
            raise DeliveryError(
                f"{address}: partition {number} has the messages {low:,} to {high - 1:,}, but the next to read is "
                f"{starts[number]:,}: messages are lost, or the topic was made anew. Read it before it "
                f"forgets. To begin with what it has, remove {copies.folder_of(address)}"
            )
        if number not in offsets and low:
            log.warning("%s: partition %s begins at message %s, and has forgotten those before", address, number, low)
    return starts, highs


def _consume(
    consumer: "Consumer", topic: str, starts: Offsets, highs: Offsets, ends: Offsets, limit: Limit
) -> Iterator[tuple[int, "Message"]]:
    """The messages up to the ends, with their partitions; notes in `ends` how far it has come."""
    from confluent_kafka import KafkaError, KafkaException, TopicPartition

    waiting = {number for number, start in starts.items() if start < highs[number]}
    consumer.assign([TopicPartition(topic, number, starts[number]) for number in sorted(waiting)])
    heard = time.monotonic()
    while waiting:
        limit.check()
        messages = consumer.consume(BATCH, 0.2)
        if messages:
            heard = time.monotonic()
        elif time.monotonic() - heard > SILENCE_S:
            raise PassingError(f"{limit.address} has sent nothing for {SILENCE_S:.0f} s")
        for message in messages:
            number, offset, error = int(message.partition() or 0), int(message.offset() or 0), message.error()
            if error and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            if number not in waiting:
                continue  # it came after the end was looked up
            if error is None and offset < highs[number]:
                ends[number] = offset + 1
                yield number, message
            # The end may be a message that is none: a mark of a transaction, or one that was compacted away.
            if error or offset + 1 >= highs[number]:
                ends[number] = min(max(ends[number], offset if error else 0), highs[number])
                waiting.discard(number)


def _make_line(message: "Message") -> bytes | None:
    """A message as a line; None for one that is no JSON object."""
    try:
        text = (message.value() or b"").decode().strip()
    except UnicodeError:
        return None
    if jsonlines.read_row(text) is None:
        return None
    kind, milliseconds = message.timestamp()
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds") if kind else None
    place = f'"kafka_partition": {message.partition()}, "kafka_offset": {message.offset()}, '
    place += f'"kafka_time": "{moment}"' if moment else '"kafka_time": null'
    rest = text[1:].replace("\n", " ").replace("\r", " ").lstrip()  # as text they are escaped: these stand between
    return ("{" + place + ("" if rest == "}" else ", ") + rest + "\n").encode()


def _commit(address: str, source: Source, ends: Offsets) -> None:
    from confluent_kafka import KafkaException, TopicPartition

    try:
        with _open_consumer(address, source) as (consumer, topic):
            places = [TopicPartition(topic, number, offset) for number, offset in ends.items()]
            consumer.commit(offsets=places, asynchronous=False)
    except (KafkaException, DeliveryError) as error:
        log.warning("%s: the offsets are not committed to the group %s: %s", address, source.group, error)


def _read_password(source: Source) -> Mapping[str, str]:
    if source.password is None:
        return {}
    if not os.environ.get(source.password):
        raise ValueError(
            f"{source.shown}: its password is read from the environment variable {source.password}, which is not set. "
            "Set it where the stage runs."
        )
    return {"sasl.password": os.environ[source.password]}


@contextlib.contextmanager
def _open_consumer(address: str, source: Source) -> Iterator[tuple["Consumer", str]]:
    """A client that joins no group, and the topic. Raises Kafka's errors as what they mean for a fetch."""
    from confluent_kafka import Consumer, KafkaException

    brokers, _, topic = address.removeprefix("kafka://").partition("/")
    reported: list[Any] = []
    settings: dict[str, Any] = {
        "log_level": 2,
        "auto.offset.reset": "error",
        **source.client,
        **_read_password(source),
        "bootstrap.servers": brokers,
        "group.id": source.group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
        "error_cb": reported.append,
    }
    try:
        consumer = Consumer(settings)
    except KafkaException as error:
        raise ValueError(f"{address}: client is not as librdkafka has it: {error.args[0].str()}. Correct it.") from None
    try:
        yield consumer, topic
    except KafkaException as error:
        first = next((one for one in [error.args[0], *reported] if one.name() in FINAL), None)
        if first:
            raise DeliveryError(
                f"{address} cannot be read: {first.str()}. Correct the address, `client` or `password`"
            ) from None
        raise PassingError(f"{address} does not answer ({error.args[0].str()})") from None
    finally:
        consumer.close()
