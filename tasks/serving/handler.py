"""handler: answers the API's requests: features, scores, the journal, the response.

Requests of one moment are answered together (microbatch.py): a call of DuckDB or of XGBoost costs as much for one row
as for dozens. Everything in a batch is answered by one champion and from one state.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, TypeVar
from uuid import uuid4

import pyarrow as pa
from fastapi import HTTPException

from tasks import log, params
from tasks.serving import consistency, journal_writer, microbatch, predict, schema, traffic, versions
from tasks.serving.active import Active
from tasks.serving.keys import Keys
from tasks.serving.messages import Messages
from tasks.serving.metrics import Metrics
from tasks.serving.tables import Refused, Tables, hide_personal_data, pii_key_of, subjects_of

SMALL_ROWS = 32  # a request with more rows is a batch of its own, apart from the event loop
BATCH_ROWS = 64  # rows of requests that are answered together
REASON_ROWS = 16  # whose reasons are found before other requests have their turn
OUTCOME_VALUES, MORE_VALUES = 3, 1000  # of an outcome; and of a request beside its rows
Row = Mapping[str, Any]
Columns = Mapping[str, Sequence[Any]]
Answers = list[dict[str, Any]]
Answered = list[tuple[traffic.Part, predict.Answered]]
T = TypeVar("T")


@dataclass
class Asked:
    """The raw rows of a request. What is given up is not journalled as answered."""

    rows: Sequence[Row]
    given_up: bool = False


@dataclass(frozen=True)
class Response:
    """The answers in the order of the rows."""

    champion: int
    answers: Answers
    written: "asyncio.Future[None]"

    def slice(self, begin: int, end: int) -> "Response":
        return Response(self.champion, self.answers[begin:end], self.written)


@dataclass
class Handler:
    """Of one process, for one event loop."""

    p: params.Params
    keys: Keys
    active: Active
    writer: journal_writer.JournalWriter
    messages: Messages
    metrics: Metrics
    busy: int = 0

    def __post_init__(self) -> None:
        self.raw: microbatch.MicroBatches[Asked, Response] = microbatch.MicroBatches(
            self._answer_raw, most=BATCH_ROWS, size=lambda asked: len(asked.rows)
        )
        self.ready: microbatch.MicroBatches[Sequence[Row], Response] = microbatch.MicroBatches(
            self._answer_ready, most=BATCH_ROWS, size=len
        )
        self._shadow: asyncio.Task[None] | None = None
        # One thread for all that is large: more would take the event loop's turn, and large requests come in turn.
        self._apart = ThreadPoolExecutor(1, "large")

    async def close(self) -> None:
        """Returns when everything that has begun is done and on disk."""
        await self.raw.close()
        await self.ready.close()
        await self._wait_for_shadow()
        await self.writer.close()
        self._apart.shutdown()

    async def run_apart(self, work: Callable[..., T], *args: Any) -> T:
        """What would hold up other requests, in its turn. Given up, it does not begin."""
        return await asyncio.get_running_loop().run_in_executor(self._apart, work, *args)

    def most_values(self) -> int:
        """Of a request's JSON: more are no request. A row is an object, and a form may number it."""
        features = len(self.active.champion.model.spec.names) if self.active.champion else 0
        columns = max(features, len(self.p.contract[self.p.spine.table].columns), OUTCOME_VALUES)
        return self.p.serving.rows * (columns + 3) + MORE_VALUES

    async def _wait_for_shadow(self) -> None:
        """The waiting request may be cancelled; the shadow goes on."""
        while self._shadow and not self._shadow.done():
            await asyncio.wait({self._shadow})

    @cached_property
    def pii_key(self) -> bytes:
        return pii_key_of(self.p)

    @cached_property
    def checker(self) -> consistency.ConsistencyChecker | None:
        return consistency.ConsistencyChecker.of(self.p)

    def champion(self) -> versions.Champion:
        if self.active.champion is None:
            raise _unavailable("no champion serves yet: run the retrain flow")
        return self.active.champion

    def tables(self) -> Tables:
        if self.active.tables is None:
            raise _unavailable("no state is published yet: run the score flow")
        return self.active.tables

    def event_now(self) -> datetime:
        """The time of the events; this machine's, where no state says it."""
        return self.active.event_now() or datetime.now(UTC).replace(tzinfo=None)

    # --- the requests

    async def predict_rows(self, rows: Sequence[Row], *, reasons: int = 0) -> tuple[int, Answers]:
        """Raw rows that fit the contract → the champion's number and the answers. Raises Refused."""
        if reasons or len(rows) > SMALL_ROWS:
            return await self._answer_apart(partial(self._raw_answers, rows), len(rows), reasons)
        asked = Asked(rows)
        try:
            return await self._respond(await self.raw.ask(asked))
        except asyncio.CancelledError:
            asked.given_up = True
            raise

    async def predict_features(
        self, rows: Sequence[Row] | None, inputs: Columns | None, *, reasons: int = 0
    ) -> tuple[int, Answers]:
        """Ready features, as rows or as columns. Raises Refused."""
        count = len(next(iter(inputs.values()))) if inputs is not None else len(rows or [])
        if inputs is not None and count <= SMALL_ROWS:
            rows = predict.rows_of(inputs)
        if rows is not None and count <= SMALL_ROWS and not reasons:
            predict.refuse_unknown(self.champion().model.spec, rows)
            return await self._respond(await self.ready.ask(rows))
        return await self._answer_apart(partial(self._ready_answers, rows, inputs), count, reasons)

    async def _answer_apart(
        self, answer: Callable[[], tuple[traffic.Job, Answered]], count: int, reasons: int
    ) -> tuple[int, Answers]:
        """A request that is no part of a batch. It is journalled when all its work is done, unless it was given up."""
        most = self.p.serving.reasons
        if reasons and count > most:
            rule = f"a request may ask for the reasons of {most:,} rows (serving.reasons), but this has {count:,}: "
            raise Refused(most, "reasons", f"{rule}send it in parts, or ask for none")
        job, answered = await self.run_apart(answer)
        why = await self._find_reasons(answered, count, reasons) if reasons else []
        champion, answers = await self._respond(await self._finish(job, answered))
        return champion, [
            {**one, "reasons": found} for one, found in zip(answers, why, strict=True)
        ] if why else answers

    async def _find_reasons(self, answered: Answered, count: int, most: int) -> list[Any]:
        """Of each row. Other requests come between, and what was given up ends."""
        reasons: list[Any] = [None] * count
        for part, one in answered:
            for begin in range(0, len(part.places), REASON_ROWS):
                rows = one.rows.slice(begin, REASON_ROWS)
                some = await self.run_apart(predict.reasons, part.version, rows, most)
                for place, row in zip(part.places[begin:], some, strict=False):
                    reasons[place] = row
        return reasons

    async def accept_outcomes(self, outcomes: Sequence[Any]) -> None:
        """Outcomes, into the journal. Raises Refused for one that is known in the future."""
        limit = self.event_now() + self.p.serving.stale  # a state may be that much older than what is known
        for place, outcome in enumerate(outcomes):
            if outcome.known_at and outcome.known_at > limit:
                rule = f"must not be after {limit:%Y-%m-%d %H:%M:%S}, the time of the events and serving.stale"
                raise Refused(place, "known_at", f"{rule}: send an outcome when it is known")
        for kind in (str, float):  # a class is a text or a number, and a column has one type
            if chosen := [outcome for outcome in outcomes if isinstance(_label_of(outcome), kind)]:
                await self._wait_for(self.writer.write("outcomes", self._outcome_rows(chosen)))
        self.metrics.outcomes.inc(len(outcomes))

    async def _wait_for(self, written: Awaitable[None]) -> None:
        """Raises what becomes a 503: a full disk loses nothing that was acknowledged, and may have room soon."""
        try:
            await written
        except OSError as error:
            self.metrics.errors.labels("journal").inc()
            log.error("the journal cannot be written: %s", error)
            raise _unavailable("the journal cannot be written") from None

    async def _respond(self, response: Response) -> tuple[int, Answers]:
        """Journalled, and only then sent."""
        await self._wait_for(asyncio.shield(response.written))
        return response.champion, response.answers

    # --- batches

    async def _answer_raw(self, batch: list[Asked]) -> list[Response]:
        job, answers = await asyncio.to_thread(self._raw_answers, [row for asked in batch for row in asked.rows])
        wanted = [not asked.given_up for asked in batch for _ in asked.rows]
        return _split(await self._finish(job, answers, wanted), [asked.rows for asked in batch])

    async def _answer_ready(self, batch: list[Sequence[Row]]) -> list[Response]:
        rows = [row for request in batch for row in request]
        job = self._ready_job(predict.columns_of(rows), rows)
        return _split(await self._finish(job, job.answers()), batch)

    def _raw_answers(self, asked: Sequence[Row]) -> tuple[traffic.Job, Answered]:
        champion, tables = self.champion(), self.tables()
        if not tables.prepare(champion):
            raise _unavailable(
                f"the features of version {champion.number} cannot be made of the published state: run the score flow"
            )
        if self.checker:
            self.checker.check(asked)
        rows = hide_personal_data(self.p, asked, self.pii_key)
        tables.check(champion, rows)
        has_key = self.p.contract[self.p.spine.table].key
        subjects = subjects_of(self.p, rows) if has_key else [uuid4().hex for _ in rows]
        job = traffic.plan_rows(
            tables,
            champion,
            self.active.challenger,
            rows,
            by="api",
            subjects=subjects,
            report_failure=self._report_failure,
        )
        return job, job.answers()

    def _report_failure(self, kind: str, error: Exception) -> None:
        """Never the error's text: it may hold a value of the row."""
        self.metrics.errors.labels(kind).inc()
        number = self.active.challenger.number if self.active.challenger else None
        log.warning("version %s, the challenger, could not answer: %s", number, type(error).__name__)

    def _ready_answers(self, rows: Sequence[Row] | None, inputs: Columns | None) -> tuple[traffic.Job, Answered]:
        predict.refuse_unknown(self.champion().model.spec, rows or [])
        job = self._ready_job(inputs or predict.columns_of(rows or []), rows)
        return job, job.answers()

    def _ready_job(self, columns: Columns, rows: Sequence[Row] | None) -> traffic.Job:
        champion = self.champion()
        challenger = traffic.fits(champion, self.active.challenger)
        count = len(next(iter(columns.values()))) if columns else len(rows or [])
        at = self.event_now()
        request = uuid4().hex

        def ask(part: traffic.Part) -> predict.Answered:
            codes = part.version.model.spec.codes
            sent = {name: values for name, values in columns.items() if part.version is champion or name in codes}
            if len(part.places) < count:
                sent = {name: [values[i] for i in part.places] for name, values in sent.items()}
            subjects = [f"{request}{i:04x}" for i in part.places]
            return predict.answer_columns(part.version, sent, by="api", arm=part.arm, subjects=subjects, at=at)

        if challenger is None:
            parts = [traffic.Part(champion, range(count), "champion")]
        else:
            parts = traffic.split(self.p, champion, challenger, rows or predict.rows_of(columns))
        return traffic.Job(champion, parts, ask, self._report_failure)

    async def _finish(self, job: traffic.Job, answers: Answered, wanted: Sequence[bool] = ()) -> Response:
        """Begin to write the answers and to score the shadow; the answers in the order of the rows.

        Args:
            wanted: whether each row is still asked for; by default all are.
        """
        written = asyncio.ensure_future(self._write(answers, wanted))
        if any(part.is_shadow for part in job.parts):
            await self._wait_for_shadow()  # one at a time: requests that outrun the shadow are slowed
            self._shadow = asyncio.create_task(self._write_shadow(job, wanted))
        sent: list[Any] = [None] * sum(len(part.places) for part, _ in answers)
        for part, answered in answers:
            for row, answer in zip(part.places, answered.to_dicts(), strict=True):
                sent[row] = answer
        return Response(job.champion.number, sent, written)

    async def _write(self, answers: Answered, wanted: Sequence[bool] = ()) -> None:
        for part, answered in answers:
            rows, scores = answered.record, answered.scores
            if not all(wanted):
                places = [place for place, row in enumerate(part.places) if wanted[row]]
                rows, scores = answered.rows.take(pa.array(places, pa.int64())), scores[places]
            await self.writer.write("predictions", rows)
            if not part.is_shadow:
                is_binary = answered.spec.task == "binary"
                self.metrics.count_predictions(answered.version, len(scores), scores.tolist() if is_binary else ())

    async def _write_shadow(self, job: traffic.Job, wanted: Sequence[bool]) -> None:
        try:
            await self._write(await asyncio.to_thread(job.shadows), wanted)
        except OSError as error:
            log.warning("the challenger's scores in the shadow could not be journalled: %s", error)

    def _outcome_rows(self, outcomes: Sequence[Any]) -> pa.Table:
        now, count = datetime.now(UTC).replace(tzinfo=None), len(outcomes)
        event_now = self.event_now()
        labels = [_label_of(outcome) for outcome in outcomes]
        entries = [schema.make_entry(outcome.id, label, now) for outcome, label in zip(outcomes, labels, strict=True)]
        columns = {
            "entry": pa.array(entries, pa.string()),
            "event_time": predict.timestamps([event_now] * count),
            "made_at": predict.timestamps([now] * count),
            "prediction": pa.array([outcome.id for outcome in outcomes], pa.string()),
            "subject": pa.nulls(count, pa.string()),
            "label": labels,
            "known_at": predict.timestamps([outcome.known_at or event_now for outcome in outcomes]),
        }
        return pa.table(columns)


def _unavailable(detail: str) -> HTTPException:
    return HTTPException(503, detail, {"Retry-After": "5"})


def _label_of(outcome: Any) -> str | float:
    return outcome.label if isinstance(outcome.label, str) else float(outcome.label)


def _split(response: Response, batch: list[Sequence[Row]]) -> list[Response]:
    ends = list(accumulate(map(len, batch)))
    return [response.slice(end - len(rows), end) for end, rows in zip(ends, batch, strict=True)]
