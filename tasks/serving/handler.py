"""desk: what a process needs to answer, and the answering: features, scores, the journal, and what is told.

Requests of a moment are answered together (batch.py): a call of DuckDB or of XGBoost costs as much for one row as for
dozens. All that a batch answers is of one champion and of one state.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fastapi import HTTPException

from tasks import log
from tasks.data import contract
from tasks.params import Params
from tasks.serving import journal, predict, traffic
from tasks.serving.active import Active
from tasks.serving.consistency import ConsistencyChecker
from tasks.serving.journal_writer import JournalWriter
from tasks.serving.keys import Keys
from tasks.serving.messages import Messages
from tasks.serving.metrics import Metrics
from tasks.serving.microbatch import MicroBatches
from tasks.serving.predict import Answered
from tasks.serving.tables import Tables, hide_personal_data, subjects_of
from tasks.serving.traffic import Part
from tasks.serving.versions import Champion

if TYPE_CHECKING:
    import pyarrow as pa

SMALL = 32  # rows: more of them are a batch of their own, apart from the event loop
MOST = 64  # rows of requests that are answered together
Row = Mapping[str, Any]
Columns = Mapping[str, Sequence[Any]]
Told = list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """Rows that are answered together: who answers which of them, and how."""

    by: Champion
    count: int
    parts: list[Part]
    ask: Callable[[Part], Answered]
    failed: Callable[[str, Exception], None]

    @property
    def marked(self) -> bool:
        """Whether the journal must be told who answered: a row without it is the champion's."""
        return any(part.arm != "champion" for part in self.parts)

    def answers(self) -> "list[tuple[Part, Answered]]":
        return [self._answer(part) for part in self.parts if part.returned]

    def _answer(self, part: Part) -> "tuple[Part, Answered]":
        """A challenger that cannot answer is nobody's trouble: the champion does."""
        if part.by is self.by:
            return part, self.ask(part)
        try:
            return part, self.ask(part)
        except Exception as error:
            self.failed("challenger", error)
            instead = replace(part, by=self.by, arm="champion")
            return instead, self.ask(instead)

    def shadows(self) -> "list[tuple[Part, Answered]]":
        """What nobody waits for, and whose failure is told but is nobody's."""
        found = []
        for part in self.parts:
            if not part.returned:
                try:
                    found.append((part, self.ask(part)))
                except Exception as error:
                    self.failed("shadow", error)
        return found


@dataclass(frozen=True)
class Found:
    """What was made of rows: what is told of each, and which answer that is from, at which place."""

    champion: int
    told: Told
    origin: "list[tuple[Part, Answered, int]]"
    written: "asyncio.Future[None]"

    def slice(self, begin: int, end: int) -> "Found":
        return Found(self.champion, self.told[begin:end], self.origin[begin:end], self.written)


@dataclass
class Handler:
    """Of one process, for one event loop."""

    p: Params
    keys: Keys
    live: Active
    book: JournalWriter
    messages: Messages
    metrics: Metrics
    busy: int = 0

    def __post_init__(self) -> None:
        self.raw: MicroBatches[Sequence[Row], Found] = MicroBatches(self._of_raw, most=MOST, size=len)
        self.ready: MicroBatches[Sequence[Row], Found] = MicroBatches(self._of_ready, most=MOST, size=len)
        self._shadow: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """When what was begun is done and on disk."""
        await self.raw.close()
        await self.ready.close()
        await self._shadow_done()
        await self.book.close()

    async def _shadow_done(self) -> None:
        """Whoever waits for it may be cancelled, and it goes on."""
        while self._shadow and not self._shadow.done():
            await asyncio.wait({self._shadow})

    @cached_property
    def pii_key(self) -> bytes:
        """Read once, not for each request; nothing where the rows have no personal data."""
        pii = any(column.pii for column in self.p.contract[self.p.spine.table].columns.values())
        return contract.load_pii_key() if pii else b""

    @cached_property
    def checker(self) -> ConsistencyChecker | None:
        return ConsistencyChecker.of(self.p)

    def champion(self) -> Champion:
        if self.live.champion is None:
            raise HTTPException(503, "no champion serves yet: run the retrain flow", {"Retry-After": "5"})
        return self.live.champion

    def tables(self) -> Tables:
        if self.live.tables is None:
            raise HTTPException(503, "no state is published yet: run the score flow", {"Retry-After": "5"})
        return self.live.tables

    # --- what may be asked

    async def of_rows(self, rows: Sequence[Row], *, reasons: int = 0) -> tuple[int, Told]:
        """Raw rows that fit the contract → the champion's number and what is told of each. Raises Refused."""
        return await self._told(await self.raw.ask(rows), reasons)

    async def of_features(
        self, rows: Sequence[Row] | None, inputs: Columns | None, *, reasons: int = 0
    ) -> tuple[int, Told]:
        """Ready features, as rows or as columns. Raises Refused."""
        if inputs is not None and len(next(iter(inputs.values()))) <= SMALL:
            rows = predict.rows_of(inputs)
        predict.refuse_unknown(self.champion().model.spec, rows or [])
        if rows is not None and len(rows) <= SMALL:
            return await self._told(await self.ready.ask(rows), reasons)
        job = self._ready_job(inputs or predict.columns_of(rows or []), rows)
        return await self._told(await self._finish(job, await asyncio.to_thread(job.answers)), reasons)

    async def came(self, asked: Sequence[Any]) -> None:
        """Outcomes, into the journal."""
        for kind in (str, float):  # a class is a text or a number, and a column has one type
            if mine := [each for each in asked if isinstance(_label(each), kind)]:
                await self._kept(self.book.write("outcomes", self._outcomes(mine)))
        self.metrics.outcomes.inc(len(asked))

    async def _kept(self, written: Awaitable[None]) -> None:
        """Raises what becomes a 503: a full disk loses nothing that was acknowledged, and may have room soon."""
        try:
            await written
        except OSError as error:
            self.metrics.errors.labels("journal").inc()
            log.error("the journal cannot be written: %s", error)
            raise HTTPException(503, "the journal cannot be written", {"Retry-After": "5"}) from None

    async def _told(self, found: Found, reasons: int) -> tuple[int, Told]:
        """Journalled, and only then told."""
        await self._kept(asyncio.shield(found.written))
        if reasons:
            why = await asyncio.to_thread(_reasons, found, reasons)
            return found.champion, [{**told, "reasons": each} for told, each in zip(found.told, why, strict=True)]
        return found.champion, found.told

    # --- batches

    async def _of_raw(self, batch: list[Sequence[Row]]) -> list[Found]:
        job, answers = await asyncio.to_thread(self._raw_answers, [row for rows in batch for row in rows])
        return _split(await self._finish(job, answers), batch)

    async def _of_ready(self, batch: list[Sequence[Row]]) -> list[Found]:
        rows = [row for each in batch for row in each]
        job = self._ready_job(predict.columns_of(rows), rows)
        return _split(await self._finish(job, job.answers()), batch)

    def _raw_answers(self, asked: Sequence[Row]) -> "tuple[Job, list[tuple[Part, Answered]]]":
        champion, tables = self.champion(), self.tables()
        if not tables.prepare(champion):
            why = f"the features of version {champion.number} cannot be made of the published state: run the score flow"
            raise HTTPException(503, why, {"Retry-After": "5"})
        if self.checker:
            self.checker.check(asked)
        rows = hide_personal_data(self.p, asked, self.pii_key)
        tables.check(champion, rows)
        names = self.p.contract[self.p.spine.table].key
        subjects = subjects_of(self.p, rows) if names else [uuid4().hex for _ in rows]

        def ask(part: Part) -> Answered:
            mine = rows if len(part.places) == len(rows) else [rows[i] for i in part.places]
            return predict.answer(
                part.by,
                tables.features(part.by, mine),
                subjects=[subjects[i] for i in part.places],
                shadow=not part.returned,
                times=[row["event_time"] for row in mine],
                keys={name: [row[name] for row in mine] for name in names},
                stale=tables.stale(champion, mine),
            )

        parts = traffic.split(self.p, champion, self.live.challenger, rows)
        job = Job(champion, len(rows), parts, ask, self._failed)
        return job, job.answers()

    def _failed(self, kind: str, error: Exception) -> None:
        """Never the error's text: it may hold a value of the row."""
        self.metrics.errors.labels(kind).inc()
        log.warning("version %s, the challenger, could not answer: %s", self._challenging(), type(error).__name__)

    def _challenging(self) -> int | None:
        return self.live.challenger.number if self.live.challenger else None

    def _ready_job(self, columns: Columns, rows: Sequence[Row] | None) -> Job:
        champion = self.champion()
        challenger = traffic.fits(champion, self.live.challenger)
        count = len(next(iter(columns.values()))) if columns else len(rows or [])
        at = self.live.event_now() or datetime.now(UTC).replace(tzinfo=None)
        request = uuid4().hex

        def ask(part: Part) -> Answered:
            known = part.by.model.spec.codes
            mine = {name: each for name, each in columns.items() if part.by is champion or name in known}
            if len(part.places) < count:
                mine = {name: [each[i] for i in part.places] for name, each in mine.items()}
            return predict.answer_columns(part.by, mine, subjects=[f"{request}{i:04x}" for i in part.places], at=at)

        if challenger is None:
            return Job(champion, count, [Part(champion, range(count), "champion", True)], ask, self._failed)
        parts = traffic.split(self.p, champion, challenger, rows or predict.rows_of(columns))
        return Job(champion, count, parts, ask, self._failed)

    async def _finish(self, job: Job, answers: "list[tuple[Part, Answered]]") -> Found:
        """Have it written, and what goes on in the shadow done; the answers in the order of the rows."""
        written = asyncio.ensure_future(self._write(answers, marked=job.marked))
        if any(not part.returned for part in job.parts):
            await self._shadow_done()  # one at a time: who asks more than the shadow can take is slowed
            self._shadow = asyncio.create_task(self._in_the_shadow(job))
        told: list[Any] = [None] * job.count
        origin: list[Any] = [None] * job.count
        for part, found in answers:
            for place, (row, each) in enumerate(zip(part.places, found.told(), strict=True)):
                told[row], origin[row] = each, (part, found, place)
        return Found(job.by.number, told, origin, written)

    async def _write(self, answers: "list[tuple[Part, Answered]]", *, marked: bool) -> None:
        for part, found in answers:
            await self.book.write("predictions", traffic.marked(found.rows, part.arm) if marked else found.rows)
            if part.returned:
                scores = found.scores.tolist() if found.spec.task == "binary" else ()
                self.metrics.predicted(found.version, len(found.ids), scores)

    async def _in_the_shadow(self, job: Job) -> None:
        try:
            await self._write(await asyncio.to_thread(job.shadows), marked=True)
        except OSError as error:
            log.warning("what the challenger said in the shadow could not be journalled: %s", error)

    def _outcomes(self, asked: Sequence[Any]) -> "pa.Table":
        import pyarrow as pa

        now = datetime.now(UTC).replace(tzinfo=None)
        event_now = self.live.event_now() or now
        labels = list(map(_label, asked))
        known = [each.known_at or event_now for each in asked]
        times = [predict.event_time_of(each.id) or event_now for each in asked]
        told = {
            "entry": [journal.entry_of(each.id, label, now) for each, label in zip(asked, labels, strict=True)],
            "of": [each.id for each in asked],
            "label": labels,
            "known_at": pa.array(known, pa.timestamp("us")),
            "made_at": pa.array([now] * len(asked), pa.timestamp("us")),
            "event_time": pa.array(times, pa.timestamp("us")),
        }
        return pa.table(told)


def _label(asked: Any) -> str | float:
    return asked.label if isinstance(asked.label, str) else float(asked.label)


def _split(found: Found, batch: list[Sequence[Row]]) -> list[Found]:
    ends = list(accumulate(map(len, batch)))
    return [found.slice(end - len(rows), end) for end, rows in zip(ends, batch, strict=True)]


def _reasons(found: Found, most: int) -> list[Told]:
    return [predict.reasons(part.by, answered.rows.slice(place, 1), most)[0] for part, answered, place in found.origin]
