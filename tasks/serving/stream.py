"""stream: answers rows from a Kafka topic as the API does, to another topic and to the journal.

    python -m tasks.serving.stream

A message is one row, as POST /v1/predict takes it. A batch is journalled, then its answers are sent, then its offsets
are committed: whatever ends the process in between, each message is answered at least once. A prediction is named for
its message. So a prediction that is in the journal is sent again as it is, and not made again; where another home's
process makes it, it has the same id, and the journal shows an id once. A row that cannot be answered goes, as it came,
to a topic of its own with the reason. The topics must exist, and an answer may be sent twice.
"""

import argparse
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from prometheus_client import start_http_server

from tasks import log, params
from tasks.serving import journal, journal_writer, kafka, predict, registry_mirror
from tasks.serving.active import Active
from tasks.serving.journal import Journal
from tasks.serving.messages import make_fault
from tasks.serving.metrics import StreamMetrics
from tasks.serving.stream_messages import (
    Answer,
    Answerer,
    DeadLetter,
    KafkaMessage,
    Partition,
    RowReader,
    StreamRow,
    by_entry,
)

BATCH_MESSAGES = 500
BATCH_WAIT_S = 0.05  # for a batch to fill
LOOK_S = 0.5  # between looks for a newer version or state
RETRY_S = 1.0  # before a batch is done again
LATEST_YEAR = 2200  # Tables.check refuses later rows
Ask = Callable[[Sequence[StreamRow]], list[predict.Answered]]


@dataclass
class Recovery:
    """Of a partition whose messages another process may have journalled without committing them."""

    until: float  # from this offset on no process has seen the messages
    left: int  # after so many more messages that the journal lacks, it lacks the rest too


@dataclass
class Stream:
    """One process's share of the topic. Not for two threads at once."""

    p: params.Params
    active: Active
    journal: Journal
    metrics: StreamMetrics
    reader: RowReader
    stop: threading.Event
    recoveries: dict[Partition, Recovery] = field(default_factory=dict)  # of each partition that is this process's
    answerable: StreamRow | None = None  # the last row that was answered
    written: int = 0

    def __post_init__(self) -> None:
        self.client = kafka.KafkaClient(
            self.p, on_assign=self._take_over, on_revoke=self._give_up, on_statistics=self.metrics.read_statistics
        )

    def run(self) -> None:
        self.client.subscribe()
        try:
            while not self.stop.is_set():
                self.answer_batch()
        finally:
            self.client.close()
            self.journal.close()

    def answer_batch(self) -> None:
        """A batch, whole or not at all: after an error it is done again, as if the process had died of it."""
        messages = self.client.receive(BATCH_MESSAGES, BATCH_WAIT_S)
        # Each message once, of the partitions that are still this process's.
        received = [*{message.source: message for message in messages if message.partition in self.recoveries}.values()]
        if not received:
            return
        began = time.perf_counter()
        try:
            self._answer(received)
        except Exception as error:
            if kafka.is_fatal(error):
                raise
            self.client.warn(type(error).__name__, "a batch is done again after: %s", error)
            self.metrics.failed.inc()
            self._rewind(received)
            self.stop.wait(RETRY_S)
        else:
            self.metrics.seconds.observe(time.perf_counter() - began)

    def _answer(self, received: Sequence[KafkaMessage]) -> None:
        champion, tables = self.active.champion, self.active.tables
        assert champion is not None  # nothing is received before they are there
        assert tables is not None
        answerer = Answerer(champion, self.active.challenger, tables)
        read = [self.reader.read(message) for message in received]
        rows = [row for row in read if isinstance(row, StreamRow)]
        journalled = self._find_journalled(rows, answerer)
        fit, refused = answerer.refuse_unanswerable([row for row in rows if row.entry not in journalled])
        made, failed = self._answer_rows(answerer.answer, fit)
        self._write(made, [shadow for _, shadow in answerer.plan(fit).shadows()])
        answers = journalled | {entry: answer for answered in made for entry, answer in by_entry(answered).items()}
        dead = [*(letter for letter in read if isinstance(letter, DeadLetter)), *refused, *failed]
        topics = self.p.serving.stream
        replies = [row.reply(topics.predictions, answers[row.entry]) for row in rows if row.entry in answers]
        self.client.send([*replies, *(letter.reply(topics.dead) for letter in dead)])
        self.client.commit(received)
        self.metrics.again.inc(len(journalled))
        for letter in dead:
            self.metrics.dead.labels(letter.faults[0]["type"]).inc()

    def _answer_rows(self, ask: Ask, rows: Sequence[StreamRow]) -> tuple[list[predict.Answered], list[DeadLetter]]:
        """All at once; where that fails one by one, to find the row that it fails for."""
        if not rows:
            return [], []
        try:
            answers = ask(rows)
        except Exception as error:
            return self._answer_one_by_one(ask, rows, error)
        self.answerable = rows[-1]
        return answers, []

    def _answer_one_by_one(
        self, ask: Ask, rows: Sequence[StreamRow], error: Exception
    ) -> tuple[list[predict.Answered], list[DeadLetter]]:
        """A row is to blame only where another row is answered just before. Else the champion or the state fails, and
        no row may be given up for that."""
        answers: list[predict.Answered] = []
        failed = [row for row in rows if not self._can_answer(ask, row, answers)]
        if self.answerable is None:
            raise error
        ask([self.answerable])
        failed = [row for row in failed if not self._can_answer(ask, row, answers)]
        name = type(error).__name__
        log.warning("%s rows pass the contract, but the champion cannot answer them: %s", len(failed), name)
        rule = f"it passes the contract, but the champion cannot answer it: {name}"
        return answers, [DeadLetter(row.message, [make_fault("failed", [], rule)]) for row in failed]

    def _can_answer(self, ask: Ask, row: StreamRow, answers: list[predict.Answered]) -> bool:
        try:
            answers += ask([row])
        except Exception:
            return False
        self.answerable = row
        return True

    def _write(self, answers: Sequence[predict.Answered], shadows: Sequence[predict.Answered]) -> None:
        """All rows are on disk when this returns, or none."""
        if not answers:
            return
        rows = pa.concat_tables([answered.rows for answered in (*answers, *shadows)], promote_options="permissive")
        self.journal.append("predictions", rows)
        for answered in answers:
            self.metrics.rows.labels(str(answered.version)).inc(len(answered.entries))
        self.written += rows.nbytes
        if self.written > journal_writer.LOG_BYTES:
            self.written = 0
            self.journal.close()  # the next append begins another log, and this one can be compacted

    # --- after another process

    def _find_journalled(self, rows: Sequence[StreamRow], answerer: Answerer) -> dict[str, Answer]:
        """The answers to rows that a process journalled and did not commit."""
        doubtful = [row for row in rows if self._may_be_journalled(row)]
        if not doubtful:
            return {}
        times, entries = [row.row["event_time"] for row in doubtful], {row.entry for row in doubtful}
        columns = ("entry", "event_time", "version", "score", "stale")
        journalled = self.journal.read(
            "predictions", since=min(times), until=max(times) + predict.TICK, columns=columns
        )
        if journalled.num_rows:
            journalled = journalled.filter([entry in entries for entry in journalled["entry"].to_pylist()])
        answers = answerer.restore(journalled, self.active.home) if journalled.num_rows else {}
        for row in doubtful:
            recovery = self.recoveries[row.message.partition]
            recovery.left = BATCH_MESSAGES if row.entry in answers else recovery.left - 1
        return answers

    def _may_be_journalled(self, row: StreamRow) -> bool:
        recovery = self.recoveries[row.message.partition]
        return row.message.offset < recovery.until and recovery.left > 0 and row.row["event_time"].year < LATEST_YEAR

    def _rewind(self, received: Sequence[KafkaMessage]) -> None:
        """The batch is done again; what of it is in the journal by now is found there."""
        for message in received:
            until = max(self.recoveries[message.partition].until, message.offset + 1)
            self.recoveries[message.partition] = Recovery(until, BATCH_MESSAGES)
        if not self.client.rewind(received):
            self.recoveries.clear()

    def _take_over(self, ends: Mapping[Partition, float]) -> None:
        self.recoveries |= {partition: Recovery(end, BATCH_MESSAGES) for partition, end in ends.items()}

    def _give_up(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            self.recoveries.pop(partition, None)
            self.metrics.forget_partition(partition)


def run(p: params.Params, home: Path, stop: threading.Event) -> None:
    """Answer until `stop` is set. Raises ValueError where no broker is named."""
    if p.serving.stream.bootstrap is None:
        raise ValueError("serving.stream.bootstrap is null, so there is no stream: set it to host:port in params.yaml")
    active = Active(home)
    metrics = StreamMetrics(active)
    server, _ = start_http_server(p.serving.stream.port, "127.0.0.1", metrics.registry)
    try:
        _renew(active, p)
        if not active.is_ready():
            log.warning("no champion or no state yet: the rows wait for the retrain and score flows")
        threading.Thread(target=_watch, args=[active, p, stop], name="renew", daemon=True).start()
        while not (active.is_ready() or stop.is_set()):
            stop.wait(LOOK_S)
        if not stop.is_set():
            Stream(p, active, journal.open_journal(p.journal, home=home), metrics, RowReader(p), stop).run()
    finally:
        stop.set()
        server.shutdown()
        server.server_close()


def _watch(active: Active, p: params.Params, stop: threading.Event) -> None:
    while not stop.wait(LOOK_S):
        _renew(active, p)


def _renew(active: Active, p: params.Params) -> None:
    for change in active.renew(p):
        log.info("%s", change)


def main() -> None:
    p = params.load()
    parser = argparse.ArgumentParser(prog="python -m tasks.serving.stream", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=p.serving.stream.port, help="of /metrics (serving.stream.port)")
    parser.add_argument("--no-mirror", action="store_true", help="an API of the same home copies the versions")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="stream: %(message)s")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a batch's rows are few
    settings = p.serving.stream.model_copy(update={"port": arguments.port})
    p = p.model_copy(update={"serving": p.serving.model_copy(update={"stream": settings})})
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if not arguments.no_mirror:
        mirror = threading.Thread(
            target=registry_mirror.watch, args=[p, params.home(), stop], name="mirror", daemon=True
        )
        mirror.start()
    run(p, params.home(), stop)


if __name__ == "__main__":
    main()
