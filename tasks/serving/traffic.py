"""traffic: which version answers which row while a challenger is up, and the answers of both.

Shadow: the champion answers every row, and the challenger's scores of the same rows are journalled beside them, for
the monitor alone. Share: the challenger answers some rows. A keyed hash of the columns that serving.challenger.sticky
names chooses them, so it needs no memory: a customer stays with one arm over requests, processes and restarts, a larger
share keeps the customers of a smaller one, and another challenger gets other customers. flows/canary.py says which
version is up.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks.params import Params
from tasks.serving import predict, schema, versions
from tasks.serving.tables import Tables

HASHES = 2**64


@dataclass(frozen=True)
class Part:
    """The rows at these places, which `version` scores and which are journalled with this arm."""

    version: versions.Champion
    places: Sequence[int]
    arm: schema.Arm

    @property
    def is_shadow(self) -> bool:
        """Nobody's answer: it may come after the answer was sent, and its failure harms nobody."""
        return self.arm == schema.SHADOW


@dataclass(frozen=True)
class Job:
    """Rows that are answered together: which version answers which of them, and how."""

    champion: versions.Champion
    parts: Sequence[Part]
    ask: Callable[[Part], predict.Answered]
    report_failure: Callable[[str, Exception], None]

    def answers(self) -> list[tuple[Part, predict.Answered]]:
        return [self._answer(part) for part in self.parts if not part.is_shadow]

    def _answer(self, part: Part) -> tuple[Part, predict.Answered]:
        """Where a challenger cannot answer, the champion does."""
        try:
            return part, self.ask(part)
        except Exception as error:
            if part.version is self.champion:
                raise
            self.report_failure("challenger", error)
            part = replace(part, version=self.champion, arm="champion")
            return part, self.ask(part)

    def shadows(self) -> list[tuple[Part, predict.Answered]]:
        """What nobody waits for: a failure is reported, and harms nobody."""
        scored = []
        for part in self.parts:
            if part.is_shadow:
                try:
                    scored.append((part, self.ask(part)))
                except Exception as error:
                    self.report_failure("shadow", error)
        return scored


def plan_rows(
    tables: Tables,
    champion: versions.Champion,
    challenger: versions.Champion | None,
    rows: Sequence[Mapping[str, Any]],
    *,
    by: schema.By,
    subjects: Sequence[str],
    report_failure: Callable[[str, Exception], None],
    entries: Sequence[str] = (),
    sources: Sequence[str] = (),
) -> Job:
    """Raw rows, to be answered by features that are made of these tables.

    Args:
        entries: the names of the rows' predictions and `sources` where the rows came from, both not of a shadow's; by
            default they are as predict.answer makes them.
    """
    p = tables.p
    names = p.contract[p.spine.table].key

    def ask(part: Part) -> predict.Answered:
        chosen, sent = [rows[i] for i in part.places], [] if part.is_shadow else part.places
        return predict.answer(
            part.version,
            tables.features(part.version, chosen),
            by=by,
            arm=part.arm,
            subjects=[subjects[i] for i in part.places],
            times=[row["event_time"] for row in chosen],
            keys={name: [row[name] for row in chosen] for name in names},
            stale=tables.stale(champion, chosen),
            entries=[entries[i] for i in sent] if entries else [],
            sources=[sources[i] for i in sent] if sources else [],
        )

    return Job(champion, split(p, champion, challenger, rows), ask, report_failure)


def split(
    p: Params, champion: versions.Champion, challenger: versions.Champion | None, rows: Sequence[Mapping[str, Any]]
) -> list[Part]:
    """Each row is in exactly one part that is no shadow. The parts of a request share its subjects, so that the monitor
    finds the scores of both arms for a row."""
    places, settings = range(len(rows)), p.serving.challenger
    if challenger is None or challenger.number == champion.number or settings.mode == "none":
        return [Part(champion, places, "champion")]
    if settings.mode == "shadow":
        return [Part(champion, places, "champion"), Part(challenger, places, "shadow")]
    taken = takes([sticky_of(p, row) for row in rows], settings.share, by=challenger.number)
    parts = [
        Part(champion, [i for i in places if not taken[i]], "champion"),
        Part(challenger, [i for i in places if taken[i]], "challenger"),
    ]
    return [part for part in parts if part.places]


def takes(sticky: Sequence[str], share: float, *, by: int = 0) -> list[bool]:
    """Whether the challenger `by` answers each row: a fixed share of all texts, and a text always alike."""
    key = f"arm {by}".encode()
    digests = [hashlib.blake2b(text.encode(), digest_size=8, key=key).digest() for text in sticky]
    return [int.from_bytes(digest, "big") < share * HASHES for digest in digests]


def sticky_of(p: Params, row: Mapping[str, Any]) -> str:
    """What keeps a row with its arm. A row with none of these columns, as ready features may be, uses all it has."""
    names = p.serving.challenger.sticky or p.contract[p.spine.table].key
    values = {name: row[name] for name in names if name in row} or dict(sorted(row.items()))
    return "\x1f".join(f"{name}={value}" for name, value in values.items())


def fits(champion: versions.Champion, challenger: versions.Champion | None) -> versions.Champion | None:
    """The challenger, if it needs only features that the champion has; else None, and it is left out."""
    if challenger is None:
        return None
    return challenger if set(challenger.model.spec.features) <= set(champion.model.spec.features) else None
