"""What a search leaves: models/tuned.json, the best parameters, and reports/trials.json, all trials.

tune writes both; train and the gate read the first, record reads the second. A field may be added; one that goes, or
means something else, raises the format's version.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from tasks.runtime import files

TUNED = files.Format("tuned", 1)
TRIALS = files.Format("trials", 1)


@dataclass(frozen=True)
class Tuned:
    """The best trial of a search, or a recipe that was given.

    Args:
        params: XGBoost's parameters, and class_weight.
        rounds: boosting rounds.
        score: the mean loss of the folds' validation rows; None of a recipe that was given.
        metric: XGBoost's name of that loss.
        trial: the best trial's number.
        trials, pruned: how many there were, and how many of them were pruned.
        ended_by: "trials"; "budget" or "cpu" where tune.budget or tune.cpu ended the search; "recipe" where there
            was none.
        preferred: with tune.small the choice between loss and size (smallest.py).
        dropped: features that earned nothing on the folds, and that the recipe leaves out.
    """

    params: dict[str, Any]
    rounds: int
    score: float | None
    metric: str
    trial: int | None
    trials: int
    pruned: int
    ended_by: str
    preferred: dict[str, float] | None = None
    dropped: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        files.publish_json(path, {"format": TUNED.mark} | asdict(self))

    @staticmethod
    def load(path: Path) -> "Tuned":
        """Raises ValueError for a file in another format."""
        raw = json.loads(path.read_text())
        TUNED.check(raw.pop("format", None), path)
        return Tuned(**raw)


class Trial(TypedDict):
    """A trial, without anything of the clock. `final`: the score and rounds of a finalist on all rows."""

    number: int
    state: str  # COMPLETE | PRUNED
    value: float | None  # None: pruned
    params: dict[str, Any]
    rounds: int | None
    steps: dict[str, float]  # the score by step
    final: NotRequired[dict[str, Any] | None]
    size: NotRequired[float | None]  # of its models, in bytes, with tune.small


def write_trials(path: Path, trials: Sequence[Trial]) -> None:
    files.publish_json(path, {"format": TRIALS.mark, "trials": trials})


def read_trials(path: Path) -> list[Trial]:
    """Raises ValueError for a file in another format."""
    raw = json.loads(path.read_text())
    TRIALS.check(raw.get("format") if isinstance(raw, dict) else None, path)
    trials: list[Trial] = raw["trials"]
    return trials
