"""stream: rows from a Kafka topic, answered as the API answers them, to another topic and to the journal.

    python -m tasks.serving.stream

A message is one row, as POST /v1/predict takes it. A batch is journalled, then its answers are sent, then its offsets
are committed: whatever ends the process in between, each message is answered at least once. A prediction is named for
its message, so done again it is the same: what the journal holds is sent again as it stands there and not made again.
Another home's process gives it the same id, and the journal shows an id once. A row that cannot be answered goes, as it
came, to a topic of its own with the reason. Nothing here makes topics, or undoes that an answer may be sent twice.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from pydantic import BaseModel, ValidationError

from tasks import log, params
from tasks.data import contract
from tasks.params import Params
from tasks.serving import journal, messages, predict, registry_mirror, tables, traffic, versions
from tasks.serving.active import Active
from tasks.serving.consistency import ConsistencyChecker
from tasks.serving.journal import Journal
from tasks.serving.journal_writer import ROLL
from tasks.serving.predict import EPOCH, TICK, Answered
from tasks.serving.tables import Refused, Tables
from tasks.serving.versions import Champion
from tasks.training.model import Spec

if TYPE_CHECKING:
    import pyarrow as pa

LOOK = 0.5  # seconds between looks whether there is something newer
PAUSE = 1.0  # seconds before a batch is done again
MINUTE = 60.0
FAULTS = 20  # of a row are told at most
LATEST = 2200  # the year in which Tables.check ends
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
Headers = tuple[tuple[str, bytes | None], ...]
Place = tuple[str, int]  # a topic and a partition of it
Fault = dict[str, Any]  # as the API's 422 tells it: type, loc, msg; never the value, which may be personal
Told = dict[str, Any]
Ask = Callable[[Sequence["Asked"]], list[Answered]]


# --- what comes and what goes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Letter:
    """A message as it came."""

    topic: str
    partition: int
    offset: int
    moment: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    @staticmethod
    def of(message: Message) -> "Letter":
        place = str(message.topic()), int(message.partition() or 0), int(message.offset() or 0)
        headers: Any = message.headers() or ()
        return Letter(*place, message.timestamp()[1], message.key(), message.value(), tuple(headers))

    @property
    def place(self) -> Place:
        return self.topic, self.partition

    @property
    def source(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def name(self) -> str:
        """Of this message and no other. A topic that is made anew counts its offsets from 0 again, so they alone would
        not do."""
        told = f"{self.source}/{self.moment}/".encode() + (self.value or b"")
        return hashlib.blake2b(told, digest_size=8).hexdigest()

    def came_from(self) -> Headers:
        told = {"topic": self.topic, "partition": self.partition, "offset": self.offset}
        return (*self.headers, *((f"evergreen.{name}", str(value).encode()) for name, value in told.items()))


@dataclass(frozen=True)
class Asked:
    """A message whose row fits the contract, its personal data hidden."""

    letter: Letter
    row: Mapping[str, Any]
    subject: str

    @property
    def entry(self) -> str:
        """The prediction's id. It reads as one of predict.answer, but neither the version nor the state is in it."""
        return f"{self.subject}.{self.letter.name}.{(self.row['event_time'] - EPOCH) // TICK:x}"


@dataclass(frozen=True)
class Dead:
    """A message that cannot be answered, and why."""

    letter: Letter
    faults: list[Fault]


@dataclass(frozen=True)
class Out:
    """What is sent because of a message."""

    source: str
    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(frozen=True)
class Reader:
    """Messages → rows."""

    p: Params
    kind: type[BaseModel]
    pii_key: bytes
    checker: ConsistencyChecker | None = None

    @staticmethod
    def of(p: Params) -> "Reader":
        pii = any(column.pii for column in p.contract[p.spine.table].columns.values())
        return Reader(p, messages.row_of(p), contract.load_pii_key() if pii else b"", ConsistencyChecker.of(p))

    def read(self, letter: Letter) -> Asked | Dead:
        value, most = letter.value or b"", int(self.p.serving.megabytes * 1e6)
        if len(value) > most:
            return Dead(letter, [_fault("too_long", [], f"a row may have {most:,} bytes (serving.megabytes)")])
        try:
            row = self.kind.model_validate_json(value).model_dump(by_alias=True)
        except ValidationError as error:
            return Dead(letter, _faults(error))
        try:
            if self.checker:
                self.checker.check([row])
        except Refused as error:
            return Dead(letter, [_fault("contract", [error.name], error.rule)])
        (hidden,) = tables.hide_personal_data(self.p, [row], self.pii_key)
        keyed = self.p.contract[self.p.spine.table].key
        subject = tables.subjects_of(self.p, [hidden])[0] if keyed else journal.entry_of(letter.source, letter.moment)
        return Asked(letter, hidden, subject)


def _faults(error: ValidationError) -> list[Fault]:
    found = error.errors(include_context=False, include_url=False, include_input=False)
    return [_fault(each["type"], each["loc"], each["msg"]) for each in found[:FAULTS]]


def _fault(kind: str, loc: Iterable[int | str], msg: str) -> Fault:
    """Of bounded length: it goes into a header, and a field may have any name."""
    return {"type": kind, "loc": [str(part)[:100] for part in loc], "msg": msg[:300]}


def answers(
    p: Params, champion: Champion, challenger: Champion | None, tables: Tables, asked: Sequence[Asked]
) -> list[Answered]:
    """As the API answers such rows, by the arm that each falls to, but named for their messages."""
    parts = [part for part in traffic.split(p, champion, challenger, [each.row for each in asked]) if part.returned]
    found = []
    for part in parts:
        mine = [asked[i] for i in part.places]
        try:
            found.append(_named(_answer(p, part.by, tables, mine), mine, part.arm if challenger else None))
        except Exception:
            if part.by is champion:
                raise
            log.warning("the challenger cannot answer, so the champion does", exc_info=True)
            found.append(_named(_answer(p, champion, tables, mine), mine, "champion"))
    return found


def shadows(
    p: Params, champion: Champion, challenger: Champion | None, tables: Tables, asked: Sequence[Asked]
) -> list["pa.Table"]:
    """The journal's rows of what is nobody's answer. It may fail, and then there are none."""
    parts = [part for part in traffic.split(p, champion, challenger, [each.row for each in asked]) if not part.returned]
    try:
        told = [(part, _answer(p, part.by, tables, [asked[i] for i in part.places], shadow=True)) for part in parts]
    except Exception:
        log.warning("the challenger cannot score what the champion has answered", exc_info=True)
        return []
    return [traffic.marked(found.rows, part.arm) for part, found in told]


def _answer(p: Params, by: Champion, tables: Tables, asked: Sequence[Asked], *, shadow: bool = False) -> Answered:
    rows = [each.row for each in asked]
    keys = {name: [row[name] for row in rows] for name in p.contract[p.spine.table].key}
    subjects, times = [each.subject for each in asked], [row["event_time"] for row in rows]
    found = tables.features(by, rows)
    stale = tables.stale(by, rows)
    return predict.answer(by, found, subjects=subjects, times=times, keys=keys, shadow=shadow, stale=stale)


def _named(found: Answered, asked: Sequence[Asked], arm: traffic.Arm | None) -> Answered:
    """For their messages; and where they came from is kept, and while a challenger is up, who answered."""
    import pyarrow as pa

    ids = [each.entry for each in asked]
    rows = found.rows.set_column(found.rows.column_names.index("entry"), "entry", pa.array(ids, pa.string()))
    rows = rows.append_column("source", pa.array([each.letter.source for each in asked], pa.string()))
    return replace(found, ids=ids, rows=traffic.marked(rows, arm) if arm else rows)


def told_of(found: Answered) -> dict[str, Told]:
    return {each["id"]: {"version": found.version, **each} for each in found.told()}


def kept_told(rows: "pa.Table", spec_of: Callable[[int], Spec | None]) -> dict[str, Told]:
    """What was told, from the journal's rows of it. Without its version's model the decision is not known again."""
    found: dict[str, Told] = {}
    for version in sorted(set(rows["version"].to_pylist())):
        part = rows.filter(np.asarray(rows["version"]) == version)
        ids, scores, spec = part["entry"].to_pylist(), part["score"].to_pylist(), spec_of(version)
        if spec:
            stale = (
                [value is True for value in part[journal.STALE].to_pylist()]
                if journal.STALE in part.column_names
                else ()
            )
            found |= told_of(Answered(version, ids, np.array(scores), part, spec, stale))
        else:
            parts = zip(ids, scores, strict=True)
            found |= {name: {"version": version, "id": name, "score": score, "decision": None} for name, score in parts}
    return found


# --- what /metrics tells -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metrics:
    registry: CollectorRegistry
    rows: Counter
    again: Counter
    dead: Counter
    failed: Counter
    seconds: Histogram
    lag: Gauge
    up: Gauge

    @staticmethod
    def of(now: Active) -> "Metrics":
        kept = CollectorRegistry()
        counter, gauge = partial(Counter, registry=kept), partial(Gauge, registry=kept)
        gauge("evergreen_version", "the version that serves").set_function(
            lambda: now.champion.number if now.champion else 0
        )
        gauge("evergreen_state_age_seconds", "since the state was published").set_function(
            lambda: now.tables.state.age().total_seconds() if now.tables else float("nan")
        )
        return Metrics(
            kept,
            rows=counter("evergreen_stream_rows", "rows predicted", ["version"]),
            again=counter("evergreen_stream_again", "rows that the journal held already, sent again"),
            dead=counter("evergreen_stream_dead", "rows that could not be answered", ["rule"]),
            failed=counter("evergreen_stream_failed", "batches that had to be done again"),
            seconds=Histogram("evergreen_stream_batch_seconds", "of a batch", buckets=SECONDS, registry=kept),
            lag=gauge("evergreen_stream_lag", "messages that wait", ["topic", "partition"]),
            up=gauge("evergreen_stream_up", "whether a broker can be reached"),
        )

    def heard(self, statistics: str) -> None:
        """librdkafka's own figures, every other second."""
        told = json.loads(statistics)
        self.up.set(any(broker["state"] == "UP" for broker in told["brokers"].values()))
        for topic, found in told["topics"].items():
            for partition, each in found["partitions"].items():
                if each["consumer_lag"] >= 0:
                    self.lag.labels(topic, partition).set(each["consumer_lag"])

    def left(self, place: Place) -> None:
        with contextlib.suppress(KeyError):
            self.lag.remove(place[0], str(place[1]))


# --- the stream ----------------------------------------------------------------------------------------------------


@dataclass
class Doubt:
    """Of a partition: somebody's batch may be in the journal that was never committed."""

    until: float  # from this offset on nobody has seen its messages
    left: int  # so many more that are not in the journal, and the rest is not either


@dataclass
class Stream:
    """One process's share of the topic. Not for two threads at once."""

    p: Params
    now: Active
    journal: Journal
    metrics: Metrics
    reader: Reader
    stop: threading.Event
    doubts: dict[Place, Doubt] = field(default_factory=dict)  # of each partition that is this process's
    sent: set[str] = field(default_factory=set)  # of batches that are not through: what need not be sent again
    said: dict[str, float] = field(default_factory=dict)  # what was said, and when
    witness: Asked | None = None  # the last row that was answered
    written: int = 0

    def __post_init__(self) -> None:
        self.settings = self.p.serving.stream
        self.producer = Producer(_producing(self.p))
        self.consumer = Consumer(
            _consuming(self.p) | {"stats_cb": self.metrics.heard, "error_cb": self._heard, "on_commit": self._committed}
        )

    def run(self) -> None:
        self.consumer.subscribe([self.settings.rows], on_assign=self._take_over, on_revoke=self._give_up)
        try:
            while not self.stop.is_set():
                self.turn()
        finally:
            self._close()

    def turn(self) -> None:
        """A batch, whole or not at all: what goes wrong is done again, as if the process had died of it."""
        letters = self._arrived()
        if not letters:
            return
        began = time.perf_counter()
        try:
            self._handle(letters)
        except Exception as error:
            if _is_fatal(error):
                raise
            self._say(type(error).__name__, "a batch is done again after: %s", error)
            self.metrics.failed.inc()
            self._rewind(letters)
            self.stop.wait(PAUSE)
        else:
            self.metrics.seconds.observe(time.perf_counter() - began)

    def _arrived(self) -> list[Letter]:
        found: dict[str, Letter] = {}
        for message in self.consumer.consume(self.settings.batch, self.settings.wait.total_seconds()):
            if error := message.error():
                self._heard(error)
                continue
            letter = Letter.of(message)
            if letter.place in self.doubts:  # it may have been given to another one meanwhile
                found[letter.source] = letter
        return list(found.values())

    def _handle(self, letters: Sequence[Letter]) -> None:
        champion, tables = self.now.champion, self.now.tables
        assert champion is not None  # nothing is taken before they are there
        assert tables is not None
        read = [self.reader.read(each) for each in letters]
        asked = [each for each in read if isinstance(each, Asked)]
        known = self._journalled(asked, champion)
        new = [each for each in asked if each.entry not in known]
        fit, refused = checked(champion, tables, new)
        ask = partial(answers, self.p, champion, self.now.challenger, tables)
        made, failed = self._answered(ask, fit)
        self._keep(made, shadows(self.p, champion, self.now.challenger, tables, fit))
        told = known | {name: each for found in made for name, each in told_of(found).items()}
        dead = [*(each for each in read if isinstance(each, Dead)), *refused, *failed]
        self._send([*self._answers(asked, told), *map(self._dead, dead)])
        self._done(letters)
        self.metrics.again.inc(len(known))
        for each in dead:
            self.metrics.dead.labels(each.faults[0]["type"]).inc()

    def _answered(self, ask: Ask, asked: Sequence[Asked]) -> tuple[list[Answered], list[Dead]]:
        """All at once; where that fails, one by one, to find the row that it fails for."""
        if not asked:
            return [], []
        try:
            found = ask(asked)
        except Exception as error:
            return self._one_by_one(ask, asked, error)
        self.witness = asked[-1]
        return found, []

    def _one_by_one(self, ask: Ask, asked: Sequence[Asked], error: Exception) -> tuple[list[Answered], list[Dead]]:
        """A row is to blame only where another is answered just before: else it is the champion or the state that
        cannot, and no row may be given up for that."""
        found: list[Answered] = []
        failed = [each for each in asked if not self._asked_alone(ask, each, found)]
        if self.witness is None:
            raise error
        ask([self.witness])
        dead = [each for each in failed if not self._asked_alone(ask, each, found)]
        log.warning(
            "%s rows pass the contract, but the champion cannot answer them: %s", len(dead), type(error).__name__
        )
        rule = f"it passes the contract, but the champion cannot answer it: {type(error).__name__}"
        return found, [Dead(each.letter, [_fault("failed", [], rule)]) for each in dead]

    def _asked_alone(self, ask: Ask, asked: Asked, found: list[Answered]) -> bool:
        try:
            found += ask([asked])
        except Exception:
            return False
        self.witness = asked
        return True

    def _keep(self, made: Sequence[Answered], more: "Sequence[pa.Table]" = ()) -> None:
        """On disk when this returns, all or none of it."""
        import pyarrow as pa

        if not made:
            return
        rows = pa.concat_tables([*(each.rows for each in made), *more], promote_options="permissive")
        self.journal.append("predictions", rows)
        for each in made:
            self.metrics.rows.labels(str(each.version)).inc(len(each.ids))
        self.written += rows.nbytes
        if self.written > ROLL:
            self.written = 0
            self.journal.close()  # the next append begins another, and this one can be compacted

    # --- what the journal holds already

    def _journalled(self, asked: Sequence[Asked], champion: Champion) -> dict[str, Told]:
        """Of these, what somebody answered who did not come to commit it."""
        doubted = [each for each in asked if self._is_doubted(each)]
        if not doubted:
            return {}
        times = [each.row["event_time"] for each in doubted]
        columns = ("entry", "event_time", "version", "score", journal.STALE)
        rows = self.journal.read("predictions", since=min(times), until=max(times) + TICK, columns=columns)
        entries = {each.entry for each in doubted}
        there = rows.filter([name in entries for name in rows["entry"].to_pylist()]) if rows.num_rows else rows
        found = kept_told(there, partial(self._spec, champion)) if there.num_rows else {}
        for each in doubted:
            doubt = self.doubts[each.letter.place]
            doubt.left = self.settings.batch if each.entry in found else doubt.left - 1
        return found

    def _is_doubted(self, asked: Asked) -> bool:
        doubt = self.doubts[asked.letter.place]
        return asked.letter.offset < doubt.until and doubt.left > 0 and asked.row["event_time"].year < LATEST

    def _spec(self, champion: Champion, version: int) -> Spec | None:
        if version == champion.number:
            return champion.model.spec
        with contextlib.suppress(OSError, ValueError):
            return versions.load_version(self.now.home, version).model.spec
        return None

    # --- what is sent

    def _answers(self, asked: Sequence[Asked], told: Mapping[str, Told]) -> Iterator[Out]:
        for each in asked:
            if each.entry in told:
                of, value = each.letter, json.dumps(told[each.entry]).encode()
                yield Out(of.source, self.settings.predictions, of.key, value, of.came_from())

    def _dead(self, dead: Dead) -> Out:
        reason = ("evergreen.reason", json.dumps(dead.faults).encode())
        of = dead.letter
        return Out(of.source, self.settings.dead, of.key, of.value, (*of.came_from(), reason))

    def _send(self, outs: Sequence[Out]) -> None:
        """Return when the broker has them all; else raise what it says. Each is reported on within serving.within."""
        wrong: list[KafkaError] = []
        for out in outs:
            if out.source not in self.sent:
                self._produce(out, wrong)
        while len(self.producer):
            self.producer.flush(LOOK)
        if wrong:
            raise KafkaException(wrong[0])

    def _produce(self, out: Out, wrong: list[KafkaError]) -> None:
        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is None:
                self.sent.add(out.source)
            elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE and out.value is not None:
                self._produce(_without_value(out), wrong)
            else:
                wrong.append(error)

        headers: list[tuple[str, str | bytes | None]] = [*out.headers]
        try:
            self.producer.produce(out.topic, out.value, out.key, headers=headers, on_delivery=delivered)
        except KafkaException as error:  # longer than this client sends
            if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE or out.value is None:
                raise
            self._produce(_without_value(out), wrong)

    def _done(self, letters: Sequence[Letter]) -> None:
        """Their offsets are committed: at once if the broker answers, else as soon as it does."""
        self.sent.difference_update(each.source for each in letters)
        ends = _edge(letters, max)
        with contextlib.suppress(KafkaException):  # no longer this one's: the next one finds them in the journal
            self.consumer.store_offsets(offsets=[TopicPartition(*place, offset + 1) for place, offset in ends.items()])
            self.consumer.commit(asynchronous=True)

    def _rewind(self, letters: Sequence[Letter]) -> None:
        """To be done again. What of it is in the journal by now will be found there."""
        ends = _edge(letters, max)
        try:
            for place, offset in _edge(letters, min).items():
                self.doubts[place] = Doubt(max(self.doubts[place].until, ends[place] + 1), self.settings.batch)
                self.consumer.seek(TopicPartition(*place, offset))
        except KafkaException as error:  # what cannot go back must not go on: begin where the broker says
            self._say("seek", "the partitions are asked for anew: %s", error)
            self.consumer.unsubscribe()
            self.doubts.clear()
            self.consumer.subscribe([self.settings.rows], on_assign=self._take_over, on_revoke=self._give_up)

    # --- what the client reports, from within consume

    def _take_over(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        until = _high(self.consumer, partitions)
        for each, high in zip(partitions, until, strict=True):
            self.doubts[each.topic, each.partition] = Doubt(high, self.settings.batch)
        log.info("partitions %s of %s", sorted(each.partition for each in partitions), self.settings.rows)

    def _give_up(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            self.doubts.pop((each.topic, each.partition), None)
            self.metrics.left((each.topic, each.partition))

    def _heard(self, error: KafkaError) -> None:
        if error.fatal():
            raise KafkaException(error)
        self._say(error.name(), "Kafka: %s", error.str())

    def _committed(self, error: KafkaError | None, _partitions: list[TopicPartition]) -> None:
        if error:
            self._say(error.name(), "the offsets are not committed yet: %s", error.str())

    def _say(self, what: str, text: str, *values: Any) -> None:
        """Once a minute: a broker that is away is tried twenty times a second."""
        if time.monotonic() - self.said.get(what, -MINUTE) >= MINUTE:
            self.said[what] = time.monotonic()
            log.warning(text, *values)

    def _close(self) -> None:
        """A broker that is away would be waited for: all there is to lose is that answers are sent again."""
        closing = threading.Thread(target=self.consumer.close, name="close", daemon=True)
        closing.start()
        closing.join(self.p.serving.within.total_seconds())
        self.journal.close()


def checked(champion: Champion, tables: Tables, asked: Sequence[Asked]) -> tuple[list[Asked], list[Dead]]:
    """Those that the state can answer, and those that it refuses."""
    with contextlib.suppress(Refused):
        tables.check(champion, [each.row for each in asked])
        return list(asked), []
    fit, dead = [], []
    for each in asked:
        try:
            tables.check(champion, [each.row])
            fit.append(each)
        except Refused as error:
            dead.append(Dead(each.letter, [_fault("contract", [error.name], error.rule)]))
    return fit, dead


def _without_value(out: Out) -> Out:
    """What a topic has no room for stays where it is, and the headers say where that is."""
    ours = tuple(each for each in out.headers if each[0].startswith("evergreen."))
    return replace(out, value=None, headers=(*ours, ("evergreen.left_out", b"the value, which is too long")))


def _edge(letters: Iterable[Letter], pick: Callable[[int, int], int]) -> dict[Place, int]:
    """The first or the last offset of each partition."""
    found: dict[Place, int] = {}
    for each in letters:
        found[each.place] = pick(found.get(each.place, each.offset), each.offset)
    return found


def _high(consumer: Consumer, partitions: Sequence[TopicPartition]) -> list[float]:
    """Where each ends now; endless where the broker does not say."""
    try:
        return [consumer.get_watermark_offsets(each, timeout=2)[1] for each in partitions]
    except KafkaException:
        return [float("inf")] * len(partitions)


def _is_fatal(error: Exception) -> bool:
    """A client that has said so never works again."""
    return isinstance(error, KafkaException) and bool(error.args[0].fatal())


# --- the clients ---------------------------------------------------------------------------------------------------


def _client(p: Params) -> dict[str, Any]:
    """librdkafka is left to say what it has to say by its callbacks: its own log repeats itself."""
    password = os.environ.get("EVERGREEN_KAFKA_PASSWORD")
    secret = {"sasl.password": password} if password else {}
    return {"log_level": 2, **p.serving.stream.client, "bootstrap.servers": p.serving.stream.bootstrap, **secret}


def _consuming(p: Params) -> dict[str, Any]:
    """What is stored is committed, in the background too; only what is through is stored."""
    ours = {"group.id": p.serving.stream.group, "enable.auto.commit": True, "enable.auto.offset.store": False}
    return {
        "auto.offset.reset": "earliest",
        "auto.commit.interval.ms": 1000,
        "statistics.interval.ms": 2000,
        **_client(p),
        **ours,
    }


def _producing(p: Params) -> dict[str, Any]:
    """In order, and not twice within one life of the client. The broker says what is too long for a topic."""
    within = int(p.serving.within.total_seconds() * 1000)
    told = {"enable.idempotence": True, "message.max.bytes": 10_000_000, "linger.ms": 5}
    return {**told, **_client(p), "message.timeout.ms": within}


# --- the process ---------------------------------------------------------------------------------------------------


def run(p: Params, home: Path, stop: threading.Event) -> None:
    """Until somebody says stop. Raises ValueError where no broker is named."""
    if p.serving.stream.bootstrap is None:
        raise ValueError("serving.stream.bootstrap is null, so there is no stream: set it to host:port in params.yaml")
    now = Active(home)
    metrics = Metrics.of(now)
    server, _ = start_http_server(p.serving.stream.port, "127.0.0.1", metrics.registry)
    try:
        if _wait(now, p, stop):
            threading.Thread(target=_watch, args=[now, p, stop], name="renew", daemon=True).start()
            Stream(p, now, journal.open_journal(p.journal, home=home), metrics, Reader.of(p), stop).run()
    finally:
        stop.set()
        server.shutdown()
        server.server_close()


def _wait(now: Active, p: Params, stop: threading.Event) -> bool:
    """Nothing is taken from the topic before it can be answered. Whether it can."""
    said = False
    while not stop.is_set():
        _renew(now, p)
        if now.champion and now.tables:
            return True
        if not said:
            log.warning("no champion or no state yet: the rows wait for the retrain and score flows")
        said = True
        stop.wait(LOOK)
    return False


def _watch(now: Active, p: Params, stop: threading.Event) -> None:
    while not stop.wait(LOOK):
        _renew(now, p)


def _renew(now: Active, p: Params) -> None:
    try:
        for said in now.renew(p):
            log.info("%s", said)
    except Exception:  # whatever it is, what answers must go on
        log.exception("what is newer cannot be looked for")


def main() -> None:
    p = params.load()
    parser = argparse.ArgumentParser(prog="python -m tasks.serving.stream", description=__doc__.partition("\n")[0])
    parser.add_argument("--bootstrap", default=p.serving.stream.bootstrap, help="host:port (serving.stream.bootstrap)")
    parser.add_argument("--port", type=int, default=p.serving.stream.port, help="of /metrics (serving.stream.port)")
    parser.add_argument("--no-mirror", action="store_true", help="an API of the same home brings the champions")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="stream: %(message)s")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a batch's rows are few
    settings = p.serving.stream.model_copy(update={"bootstrap": asked.bootstrap, "port": asked.port})
    p = p.model_copy(update={"serving": p.serving.model_copy(update={"stream": settings})})
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    if not asked.no_mirror:
        threading.Thread(
            target=registry_mirror.watch, args=[p, params.home(), stop], name="mirror", daemon=True
        ).start()
    run(p, params.home(), stop)


if __name__ == "__main__":
    main()
