"""stream_messages: a Kafka message, the row or the fault in it, and the message that is sent because of it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from tasks.params import Params
from tasks.serving import messages
from tasks.serving.consistency import ConsistencyChecker
from tasks.serving.schema import make_entry
from tasks.serving.tables import Refused, hide_personal_data, pii_key_of, subjects_of

REPORTED_FAULTS = 20  # of a row at most
Headers = tuple[tuple[str, bytes | None], ...]
Partition = tuple[str, int]  # a topic and the number of one of its partitions
Fault = dict[str, Any]  # as in the API's 422: type, loc, msg; never the value, which may be personal


@dataclass(frozen=True)
class KafkaMessage:
    """A message as it came."""

    topic: str
    number: int  # of the partition
    offset: int
    timestamp: int  # milliseconds
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    @property
    def partition(self) -> Partition:
        return self.topic, self.number

    @property
    def source(self) -> str:
        return f"{self.topic}/{self.number}/{self.offset}"

    @property
    def digest(self) -> str:
        """Of this message and no other. The source alone would not do: a topic that is made again counts from 0."""
        data = f"{self.source}/{self.timestamp}/".encode() + (self.value or b"")
        return hashlib.blake2b(data, digest_size=8).hexdigest()

    def origin_headers(self) -> Headers:
        """The headers of a reply: the message's own, and where it came from."""
        origin = {"topic": self.topic, "partition": self.number, "offset": self.offset}
        return (*self.headers, *((f"evergreen.{name}", str(value).encode()) for name, value in origin.items()))


@dataclass(frozen=True)
class StreamRow:
    """A message whose row fits the contract, with its personal data hidden."""

    message: KafkaMessage
    row: Mapping[str, Any]
    subject: str

    @property
    def entry(self) -> str:
        """The name of its prediction, whatever version or state makes it: made twice, the journal has it once."""
        return make_entry(self.subject, self.message.digest)


@dataclass(frozen=True)
class DeadLetter:
    """A message that cannot be answered, and why."""

    message: KafkaMessage
    faults: list[Fault]

    def reply(self, topic: str) -> "Reply":
        """The message as it came, with the reason in a header."""
        reason = ("evergreen.reason", json.dumps(self.faults).encode())
        message = self.message
        return Reply(message.source, topic, message.key, message.value, (*message.origin_headers(), reason))


@dataclass(frozen=True)
class Reply:
    """What is sent because of a message."""

    source: str
    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers

    def without_value(self) -> "Reply":
        """For a topic that has no room for the value: the headers say where the message is."""
        ours = tuple(header for header in self.headers if header[0].startswith("evergreen."))
        return replace(self, value=None, headers=(*ours, ("evergreen.left_out", b"the value, which is too long")))


@dataclass(frozen=True)
class RowReader:
    """Messages → rows."""

    p: Params
    kind: type[BaseModel]
    pii_key: bytes
    checker: ConsistencyChecker | None

    @staticmethod
    def of(p: Params) -> "RowReader":
        return RowReader(p, messages.row_of(p), pii_key_of(p), ConsistencyChecker.of(p))

    def read(self, message: KafkaMessage) -> StreamRow | DeadLetter:
        value, limit = message.value or b"", int(self.p.serving.megabytes * 1e6)
        if len(value) > limit:
            return DeadLetter(
                message, [make_fault("too_long", [], f"a row may have {limit:,} bytes (serving.megabytes)")]
            )
        try:
            row = self.kind.model_validate_json(value).model_dump(by_alias=True)
            if self.checker:
                self.checker.check([row])
        except ValidationError as error:
            faults = error.errors(include_context=False, include_url=False, include_input=False)[:REPORTED_FAULTS]
            return DeadLetter(message, [make_fault(fault["type"], fault["loc"], fault["msg"]) for fault in faults])
        except Refused as error:
            return DeadLetter(message, [make_fault("contract", [error.name], error.rule)])
        (hidden,) = hide_personal_data(self.p, [row], self.pii_key)
        has_key = self.p.contract[self.p.spine.table].key
        subject = subjects_of(self.p, [hidden])[0] if has_key else make_entry(message.source, message.timestamp)
        return StreamRow(message, hidden, subject)


def make_fault(kind: str, loc: Iterable[int | str], msg: str) -> Fault:
    """Of bounded length: it goes into a header, and a field may have any name."""
    return {"type": kind, "loc": [str(part)[:100] for part in loc], "msg": msg[:300]}
