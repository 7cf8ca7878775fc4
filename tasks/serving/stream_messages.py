"""stream_messages: a Kafka message, the row or the fault in it, its answer, and the message that is sent because of it.

Rows are answered as the API answers them, but their predictions are named for their messages.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from tasks import log, params
from tasks.serving import consistency, messages, predict, schema, traffic, versions
from tasks.serving.tables import Refused, Tables, hide_personal_data, pii_key_of, subjects_of
from tasks.training.model import Spec

Headers = tuple[tuple[str, bytes | None], ...]
Answer = dict[str, Any]  # as it is sent
Partition = tuple[str, int]  # a topic and the number of one of its partitions


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
        return schema.make_entry(self.subject, self.message.digest)

    def reply(self, topic: str, answer: Answer) -> "Reply":
        message = self.message
        return Reply(message.source, topic, message.key, json.dumps(answer).encode(), message.origin_headers())


@dataclass(frozen=True)
class DeadLetter:
    """A message that cannot be answered, and why."""

    message: KafkaMessage
    faults: list[messages.Fault]

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


class RowReader:
    """Messages → rows."""

    def __init__(self, p: params.Params) -> None:
        self.p, self.kind, self.pii_key = p, messages.row_of(p), pii_key_of(p)
        self.checker = consistency.ConsistencyChecker.of(p)

    def read(self, message: KafkaMessage) -> StreamRow | DeadLetter:
        value = message.value or b""
        if len(value) > messages.MOST_BYTES:
            fault = messages.make_fault("too_long", [], f"a row may have {messages.MOST_BYTES:,} bytes")
            return DeadLetter(message, [fault])
        try:
            row = self.kind.model_validate_json(value).model_dump(by_alias=True)
            if self.checker:
                self.checker.check([row])
        except ValidationError as error:
            return DeadLetter(message, messages.list_faults(error))
        except Refused as error:
            return DeadLetter(message, [messages.make_fault("contract", [error.name], error.rule)])
        (hidden,) = hide_personal_data(self.p, [row], self.pii_key)
        has_key = self.p.contract[self.p.spine.table].key
        subject = subjects_of(self.p, [hidden])[0] if has_key else schema.make_entry(message.source, message.timestamp)
        return StreamRow(message, hidden, subject)


@dataclass(frozen=True)
class Answerer:
    """The versions and the state that answer one batch."""

    champion: versions.Champion
    challenger: versions.Champion | None
    tables: Tables

    def refuse_unanswerable(self, rows: Sequence[StreamRow]) -> tuple[list[StreamRow], list[DeadLetter]]:
        """The rows that the state can answer, and those that it refuses."""
        fit, dead = [], []
        for row in rows:
            try:
                self.tables.check(self.champion, [row.row])
                fit.append(row)
            except Refused as error:
                dead.append(DeadLetter(row.message, [messages.make_fault("contract", [error.name], error.rule)]))
        return fit, dead

    def plan(self, rows: Sequence[StreamRow]) -> traffic.Job:
        """Each row by the arm that it falls to, and the challenger's scores in the shadow."""
        return traffic.plan_rows(
            self.tables,
            self.champion,
            self.challenger,
            [row.row for row in rows],
            by="stream",
            subjects=[row.subject for row in rows],
            entries=[row.entry for row in rows],
            sources=[row.message.source for row in rows],
            report_failure=_report_failure,
        )

    def answer(self, rows: Sequence[StreamRow]) -> list[predict.Answered]:
        return [answered for _, answered in self.plan(rows).answers()]

    def restore(self, rows: pa.Table, home: Path) -> dict[str, Answer]:
        """What was answered, by entry, from the journal's rows of it. Without its version's model the decision is
        missing."""
        specs = {version: self._spec_of(version, home) for version in set(rows["version"].to_pylist())}
        answers: dict[str, Answer] = {}
        for row in rows.to_pylist():
            version, entry, score = row["version"], row["entry"], row["score"]
            if spec := specs[version]:
                answers |= by_entry(predict.Answered(version, [entry], np.array([score]), rows, spec, [row["stale"]]))
            else:
                answers[entry] = {"version": version, "id": entry, "score": score, "decision": None}
        return answers

    def _spec_of(self, version: int, home: Path) -> Spec | None:
        if version == self.champion.number:
            return self.champion.model.spec
        with contextlib.suppress(OSError, ValueError):
            return versions.load_version(home, version).model.spec
        return None


def _report_failure(arm: str, error: Exception) -> None:
    """Never the error's text: it may hold a value of the row."""
    log.warning("the challenger's answers as %s fail: %s", arm, type(error).__name__)


def by_entry(answered: predict.Answered) -> dict[str, Answer]:
    return {answer["id"]: answer for answer in answered.to_dicts()}
