"""What a person has said of a table, the guesses that fill the rest, and how both are put into words."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from tasks.params import Task

Kind = Literal["series", "events"]


@dataclass(frozen=True)
class Wishes:
    """The options of `evergreen init`; empty is to be guessed.

    Attributes:
        delay: from a row's event to its outcome.
        entity: the columns whose values lags are taken over.
        known: columns that are known when a prediction is asked, though the guess is otherwise.
        change: of a series, predict the change since the newest known value, not the value.
        outcome: columns that become known with the label, though the guess is otherwise.
    """

    time: str | None = None
    label: str | None = None
    task: Task | None = None
    known_at: str | None = None
    delay: timedelta | None = None
    lead: timedelta = timedelta(0)
    kind: Kind | None = None
    key: tuple[str, ...] = ()
    entity: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    outcome: tuple[str, ...] = ()
    model: str | None = None
    change: bool = False


@dataclass(frozen=True)
class Guess:
    """One thing that was decided: what, the value, why, and how to say otherwise.

    Attributes:
        setting: as in params.yaml, or what it is in words.
        change: the flag, or what to edit; empty where nobody needs to.
        is_open: nothing in the table tells it: a person must know.
    """

    setting: str
    value: str
    why: str
    change: str = ""
    is_open: bool = False


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names as a sentence has them; of many the first."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
