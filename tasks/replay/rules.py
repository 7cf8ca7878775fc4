"""rules: when each policy retrains, and the moments at which it may."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from tasks.data.featurerows import Rows
from tasks.params import Params, SignalKind, parse_duration, spell

NEVER = "never"
BY_SIGNALS: dict[str, tuple[SignalKind, ...]] = {
    "drift": ("drift",),
    "performance": ("performance",),
    "both": ("performance", "drift"),
}


@dataclass(frozen=True)
class Grid:
    """The moments of decision, `step` apart; the rows of the last stretch are predicted, and nothing is decided."""

    since: datetime
    until: datetime
    step: timedelta

    @cached_property
    def starts(self) -> list[datetime]:
        count = -((self.since - self.until) // self.step)
        return [self.since + i * self.step for i in range(count)]

    @property
    def stretches(self) -> list[tuple[datetime, datetime]]:
        return list(zip(self.starts, [*self.starts[1:], self.until], strict=True))


@dataclass(frozen=True)
class Rule:
    """A policy: after so long, at these moments, or by these signals as the section `policy` has it; else never."""

    name: str
    every: timedelta | None = None
    moments: tuple[datetime, ...] = ()
    signals: tuple[SignalKind, ...] = ()


def check_policy(name: str) -> str:
    """The name of a policy. Raises ValueError for an unknown one."""
    if not re.fullmatch(rf"{NEVER}|{'|'.join(BY_SIGNALS)}|every:[1-9]\d*[hdw]|spaced:[1-9]\d*", name):
        names = ", ".join([NEVER, *BY_SIGNALS, "every:<length> such as every:28d", "spaced:<number>"])
        raise ValueError(f"a policy must be one of {names}, but got {name!r}. Mend replay.policies, or --policies.")
    return name


def parse_rule(name: str, grid: Grid) -> Rule:
    """The policy of a name. `spaced:3` is three retrains, as evenly over the period as the grid allows."""
    kind, _, value = check_policy(name).partition(":")
    if kind == "every":
        return Rule(name, every=parse_duration(value))
    if kind == "spaced":
        return Rule(name, moments=_space_evenly(int(value), grid))
    return Rule(name, signals=BY_SIGNALS.get(name, ()))


def _space_evenly(number: int, grid: Grid) -> tuple[datetime, ...]:
    later = grid.starts[1:]
    if number > len(later):
        raise ValueError(f"`spaced <= {len(later)}` must hold, the moments of the grid, but got spaced:{number}")
    places = [round((i + 1) * len(grid.starts) / (number + 1)) - 1 for i in range(number)]
    return tuple(later[place] for place in places)


# --- the period ----------------------------------------------------------------------------------------------------


def find_earliest(rows: Rows, p: Params) -> datetime:
    """The first midnight at which history has room for a holdout and the folds before it."""
    least = rows.event_time[0].astype("datetime64[us]").item() + _room(p)
    midnight: datetime = least.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return midnight


def _room(p: Params) -> timedelta:
    return p.split.holdout + p.split.folds * p.split.fold + 3 * p.label.deadline


def check_period(rows: Rows, p: Params, grid: Grid) -> None:
    """Raises ValueError, with the way out, for a period that cannot be walked."""
    first, newest = (rows.event_time[place].astype("datetime64[us]").item() for place in (0, -1))
    if grid.since <= first + _room(p):
        raise ValueError(
            f"history before `since` must have room for split.holdout ({spell(p.split.holdout)}), the folds "
            f"({p.split.folds} of {spell(p.split.fold)}) and three label.deadline ({spell(p.label.deadline)}): with "
            f"rows from {first} on, since must lie after {first + _room(p)}, but got {grid.since}. Begin later, or "
            "shorten split.holdout or split.fold."
        )
    if grid.until <= grid.since + grid.step:
        raise ValueError(
            f"`since + replay.step < until` must hold, or nothing is ever decided, but got since={grid.since}, "
            f"until={grid.until}, step={spell(grid.step)}. Give a longer period, or a shorter replay.step."
        )
    if grid.until > newest + grid.step:
        raise ValueError(
            f"`until` must not lie beyond the data, but the newest row is of {newest}, and got until={grid.until}. "
            "End earlier, or bring newer data."
        )
