"""policies: the retrain policies by name, the moments at which they decide, and whether a past can be walked."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from tasks.data.storedrows import AnyRows
from tasks.params import Params, RetrainKind, SignalKind, parse_duration, spell

NEVER = "never"
DEFAULT = "default"
BY_SIGNALS: dict[str, tuple[SignalKind, ...]] = {
    "drift": ("drift",),
    "performance": ("performance",),
    "both": ("performance", "drift"),
}
MEASURED: tuple[SignalKind, ...] = ("freshness", "performance", "drift")  # the signals that replay knows


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

    def spread_dates(self, number: int, last: datetime) -> tuple[datetime, ...]:
        """So many moments from the first to the last one that is not after `last`, evenly; all where there are fewer.

        A walk needs a decision: the last moment of the grid is none.
        """
        listed = [moment for moment in self.starts[:-1] if moment <= last] or self.starts[:1]
        if number >= len(listed):
            return tuple(listed)
        places = [round(i * (len(listed) - 1) / max(number - 1, 1)) for i in range(number)]
        return tuple(listed[place] for place in places)


@dataclass(frozen=True)
class Rule:
    """A policy: after so long, at these moments, or by signals as the section `policy` has it; else never.

    Attributes:
        kind: of the retrains that come after so long or at these moments.
        signals: None: it looks at none.
        is_gated: Off: what was trained serves, whatever the gate would say.
    """

    name: str
    kind: RetrainKind = "search"
    every: timedelta | None = None
    moments: tuple[datetime, ...] = ()
    signals: tuple[SignalKind, ...] | None = None
    is_gated: bool = True


def check_policy(name: str) -> str:
    """The name of a policy. Raises ValueError for an unknown one."""
    fixed = "|".join([NEVER, DEFAULT, *BY_SIGNALS])
    if not re.fullmatch(rf"{fixed}|(every|refresh|ungated):[1-9]\d*[hdw]|spaced:[1-9]\d*", name):
        lengths = ["every:<length> such as every:28d", "refresh:<length>", "ungated:<length>", "spaced:<number>"]
        names = ", ".join([NEVER, DEFAULT, *BY_SIGNALS, *lengths])
        raise ValueError(f"a policy must be one of {names}, but got {name!r}. Mend replay.policies, or --policies.")
    return name


def parse_rule(name: str, grid: Grid, p: Params) -> Rule:
    """The policy of a name, over the grid of its walk."""
    kind, _, value = check_policy(name).partition(":")
    if kind == "every":
        return Rule(name, every=parse_duration(value))
    if kind in ("refresh", "ungated"):
        return Rule(name, "refresh", every=parse_duration(value), is_gated=kind == "refresh")
    if kind == "spaced":
        return Rule(name, moments=_space_evenly(int(value), grid))
    if kind == DEFAULT:
        return Rule(name, signals=tuple(signal for signal in p.policy.signals if signal in MEASURED))
    return Rule(name, signals=BY_SIGNALS.get(name))


def _space_evenly(number: int, grid: Grid) -> tuple[datetime, ...]:
    later = grid.starts[1:]
    if number > len(later):
        raise ValueError(f"`spaced <= {len(later)}` must hold, the moments of the grid, but got spaced:{number}")
    places = [round((i + 1) * len(grid.starts) / (number + 1)) - 1 for i in range(number)]
    return tuple(later[place] for place in places)


def list_moments(rule: Rule, grid: Grid, anchor: Grid | None = None) -> list[datetime]:
    """When a policy that looks at no signal retrains, over the grid of its walk.

    Args:
        anchor: the grid of the first of all dates. Lengths count from there, so that dates share what is trained.
    """
    if rule.every is None:
        return list(rule.moments)
    listed, last = list[datetime](), (anchor or grid).since
    for moment in (anchor or grid).starts[1:]:
        if moment - last >= rule.every:
            listed.append(moment)
            last = moment
    return [moment for moment in listed if moment > grid.since]


# --- the period ----------------------------------------------------------------------------------------------------


def find_earliest(rows: AnyRows, p: Params) -> datetime:
    """The first midnight at which history has room for a holdout and the folds before it."""
    least = rows.event_time[0].astype("datetime64[us]").item() + _room(p)
    midnight: datetime = least.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return midnight


def _room(p: Params) -> timedelta:
    return p.split.holdout + p.split.folds * p.split.fold + 3 * p.label.deadline


def check_period(rows: AnyRows, p: Params, grid: Grid) -> None:
    """Raises ValueError, with the way out, for a period that cannot be walked."""
    times = rows.event_time
    first, newest = (times[place].astype("datetime64[us]").item() for place in (0, -1))
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
