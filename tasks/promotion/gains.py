"""gains: the gain of each day or week and what was sure of it then, as a verdict's picture shows them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

MOST_POINTS = 104


@dataclass(frozen=True)
class Course:
    """Gains a row, oldest first.

    Attributes:
        unit: what each is of: a block of gate.block, or a week.
        what: what a gain is, as a part of a sentence.
        begins: when each begins, in event time.
        bounds: what the mean gain up to the end of each surely exceeded; None where too little was there to tell. Empty
            where only the whole was looked at.
    """

    unit: Literal["block", "week"]
    what: str
    begins: Sequence[datetime]
    gains: Sequence[float]
    bounds: Sequence[float | None] = ()

    def to_dict(self) -> dict[str, Any]:
        """As a verdict's figure: the newest points, and few digits, since it stands in the ledger."""
        return {
            "unit": self.unit,
            "what": self.what,
            "begins": [begin.isoformat(timespec="hours") for begin in self.begins[-MOST_POINTS:]],
            "gains": [_round(gain) for gain in self.gains[-MOST_POINTS:]],
            "bounds": [None if bound is None else _round(bound) for bound in self.bounds[-MOST_POINTS:]],
        }

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> "Course":
        begins = [datetime.fromisoformat(text) for text in raw["begins"]]
        return Course(raw["unit"], raw["what"], begins, raw["gains"], raw["bounds"])


def _round(value: float) -> float:
    return float(f"{value:.4g}")
