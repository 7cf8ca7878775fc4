"""stream_answers: the stream's rows → answers, as the API answers such rows, but named for their messages."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import log
from tasks.params import Params
from tasks.serving import predict, traffic, versions
from tasks.serving.predict import Answered
from tasks.serving.stream_messages import DeadLetter, StreamRow, make_fault
from tasks.serving.tables import Refused, Tables
from tasks.serving.traffic import Part
from tasks.serving.versions import Champion
from tasks.training.model import Spec

Answer = dict[str, Any]  # as it is sent


@dataclass(frozen=True)
class Answerer:
    """The versions and the state that answer one batch."""

    p: Params
    champion: Champion
    challenger: Champion | None
    tables: Tables

    def refuse_unanswerable(self, rows: Sequence[StreamRow]) -> tuple[list[StreamRow], list[DeadLetter]]:
        """The rows that the state can answer, and those that it refuses."""
        with contextlib.suppress(Refused):
            self.tables.check(self.champion, [row.row for row in rows])
            return list(rows), []
        fit, dead = [], []
        for row in rows:
            try:
                self.tables.check(self.champion, [row.row])
                fit.append(row)
            except Refused as error:
                dead.append(DeadLetter(row.message, [make_fault("contract", [error.name], error.rule)]))
        return fit, dead

    def answer(self, rows: Sequence[StreamRow]) -> list[Answered]:
        """Each row by the arm that it falls to; where the challenger cannot answer, the champion does."""
        answers = []
        for part in self._parts(rows):
            if not part.is_shadow:
                try:
                    answers.append(self._answer(part, rows))
                except Exception:
                    if part.version is self.champion:
                        raise
                    log.warning("the challenger cannot answer, so the champion does", exc_info=True)
                    answers.append(self._answer(Part(self.champion, part.places, "champion"), rows))
        return answers

    def score_shadows(self, rows: Sequence[StreamRow]) -> list[pa.Table]:
        """The journal's rows of what is sent to nobody. It may fail, and then there are none."""
        try:
            return [self._answer(part, rows).rows for part in self._parts(rows) if part.is_shadow]
        except Exception:
            log.warning("the challenger cannot score what the champion has answered", exc_info=True)
            return []

    def _parts(self, rows: Sequence[StreamRow]) -> list[Part]:
        return traffic.split(self.p, self.champion, self.challenger, [row.row for row in rows])

    def _answer(self, part: Part, rows: Sequence[StreamRow]) -> Answered:
        chosen = [rows[i] for i in part.places]
        plain = [row.row for row in chosen]
        names = self.p.contract[self.p.spine.table].key
        return predict.answer(
            part.version,
            self.tables.features(part.version, plain),
            by="stream",
            arm=part.arm,
            subjects=[row.subject for row in chosen],
            times=[row["event_time"] for row in plain],
            keys={name: [row[name] for row in plain] for name in names},
            stale=self.tables.stale(part.version, plain),
            entries=None if part.is_shadow else [row.entry for row in chosen],
            sources=None if part.is_shadow else [row.message.source for row in chosen],
        )

    def restore(self, rows: pa.Table, home: Path) -> dict[str, Answer]:
        """What was answered, by entry, from the journal's rows of it. Without its version's model the decision is
        missing."""
        answers: dict[str, Answer] = {}
        for version in sorted(set(rows["version"].to_pylist())):
            part = rows.filter(np.asarray(rows["version"]) == version)
            entries, scores = part["entry"].to_pylist(), part["score"].to_pylist()
            if spec := self._spec_of(version, home):
                stale = part["stale"].to_pylist()
                answers |= by_entry(Answered(version, entries, np.array(scores), part, spec, stale))
            else:
                pairs = zip(entries, scores, strict=True)
                answers |= {
                    entry: {"version": version, "id": entry, "score": score, "decision": None} for entry, score in pairs
                }
        return answers

    def _spec_of(self, version: int, home: Path) -> Spec | None:
        if version == self.champion.number:
            return self.champion.model.spec
        with contextlib.suppress(OSError, ValueError):
            return versions.load_version(home, version).model.spec
        return None


def by_entry(answered: Answered) -> dict[str, Answer]:
    return {answer["id"]: answer for answer in answered.to_dicts()}
