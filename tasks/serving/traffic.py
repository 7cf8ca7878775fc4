"""arms: who answers a row while a challenger is up, and what the journal is told of it. Pure.

Shadow: the champion answers every row, and the challenger's scores of the same rows are journalled beside them, for
the monitor alone. Share: the challenger answers some of them. Which ones is a keyed hash of what serving.challenger's
`sticky` names, so it needs no memory: a customer stays with one arm over requests, processes and restarts, a larger
share keeps whom a smaller one had, and another challenger meets other customers. Which version is up is said by
flows/canary.py.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tasks.params import Params
from tasks.serving.journal import ARM
from tasks.serving.versions import Champion

if TYPE_CHECKING:
    import pyarrow as pa

Arm = Literal["champion", "challenger", "shadow"]
REACH = 2**64


@dataclass(frozen=True)
class Part:
    """The rows at these places are scored by this version and journalled as this arm. What is not `returned` is
    nobody's answer: it may come after the answer was sent, and may fail without anybody's noticing."""

    by: Champion
    places: Sequence[int]
    arm: Arm
    returned: bool


def split(p: Params, champion: Champion, challenger: Champion | None, rows: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Each row is returned by exactly one part. The parts of a request share its subjects, so that the monitor finds
    what both arms said of a row."""
    everything, settings = range(len(rows)), p.serving.challenger
    if challenger is None or challenger.number == champion.number or settings.mode == "none":
        return [Part(champion, everything, "champion", True)]
    if settings.mode == "shadow":
        return [Part(champion, everything, "champion", True), Part(challenger, everything, "shadow", False)]
    taken = takes([sticky_of(p, row) for row in rows], settings.share, by=challenger.number)
    mine, theirs = ([i for i in everything if taken[i] is which] for which in (False, True))
    parts = [Part(champion, mine, "champion", True), Part(challenger, theirs, "challenger", True)]
    return [part for part in parts if part.places]


def takes(sticky: Sequence[str], share: float, *, by: int = 0) -> list[bool]:
    """Of each row, whether the challenger `by` answers it: of all texts so large a share, and a text always alike."""
    key = f"arm {by}".encode()
    return [_place(text, key) < share * REACH for text in sticky]


def _place(text: str, key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "big")


def sticky_of(p: Params, row: Mapping[str, Any]) -> str:
    """What keeps a row with its arm. One that has none of these columns, as ready features may, goes by all it has."""
    names = p.serving.challenger.sticky or p.contract[p.spine.table].key
    told = {name: row[name] for name in names if name in row} or dict(sorted(row.items()))
    return "\x1f".join(f"{name}={value}" for name, value in told.items())


def fits(champion: Champion, challenger: Champion | None) -> Champion | None:
    """The challenger, where rows of the champion's features are all that it needs; else None: it is left out."""
    wanted = set(challenger.model.spec.features) if challenger else set()
    return challenger if wanted <= set(champion.model.spec.features) else None


def marked(rows: "pa.Table", arm: Arm) -> "pa.Table":
    """The journal's rows, with who answered them."""
    import pyarrow as pa

    return rows.append_column(ARM, pa.array([arm] * rows.num_rows, pa.string()))
