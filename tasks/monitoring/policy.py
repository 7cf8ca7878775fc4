"""policy: the signals so far → refresh, search or wait, with the reasons and an id. Pure: nothing is read or started.

A refresh fits the champion's recipe to newer rows; a search looks for a new recipe. The policy has three wishes, the
most urgent first:

1. An alarm that lasts: in several windows in a row, on enough rows. A refresh answers it. A search does where the loss
   alarms although the champion was refreshed.
2. `policy.search_every` has passed since the last search.
3. Age costs the champion's recipe more than a refresh costs, or nobody has measured lately what it costs.

A search that has become due lets one refresh go first: its recipe seldom wins at its first look, and at most looks a
refresh helps at once.

What obstacles.py names stands against each of them. Where no version serves, a first model is asked for.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from tasks.monitoring.obstacles import (
    Retrains,
    explain_age,
    explain_budget,
    explain_cool_down,
    explain_joining,
    explain_money,
    explain_price,
)
from tasks.monitoring.signal import Signal
from tasks.params import Policy, RetrainKind, SignalKind, spell

NO_VERSION = 0  # of a decision on a first model
# Kept evidence that ends so long ago no longer says what age costs: a refresh measures it again. It ends with a week
# whose labels are due: within the week that follows it is not yet stale.
STALE_EVIDENCE = timedelta(days=10)


@dataclass(frozen=True)
class Decision:
    """`id` names the cause: a retrain that is asked for again for the same cause has the same id."""

    action: Literal["retrain", "wait"]
    id: str
    as_of: datetime
    version: int
    reasons: tuple[str, ...]
    kind: RetrainKind = "search"
    asked_by: tuple[SignalKind, ...] = ()  # none: of a first model, or after policy.search_every

    @property
    def retrains(self) -> bool:
        return self.action == "retrain"

    @property
    def name(self) -> str:
        """What is done, as a person reads it: wait, refresh or search."""
        return self.kind if self.retrains else "wait"


@dataclass(frozen=True)
class Wish:
    """A retrain that something speaks for; `obstacle` is why it may not be now."""

    kind: RetrainKind
    cause: str
    reasons: tuple[str, ...]
    obstacle: str | None
    asked_by: tuple[SignalKind, ...] = ()


def decide(
    signals: Sequence[Signal],
    retrains: Retrains,
    *,
    as_of: datetime,
    version: int,
    policy: Policy,
    departure: str | None = None,
) -> Decision:
    """Decide from the signals of the champion.

    Args:
        signals: Of any version and time; those of the champion up to as_of count.
        version: The champion's number.
        departure: How this champion went just now, if it did: `was taken down`.
    """
    windows = {kind: _select_windows(signals, kind, version, as_of) for kind in policy.signals}
    ages = windows.pop("freshness", None)
    evidence = {  # what is left out is neither an alarm nor quiet: alarms on both sides of a pause are in a row
        kind: [window for window in listed if window.is_measured and window.rows >= policy.min_rows]
        for kind, listed in windows.items()
    }
    alarms = {kind: listed for kind, listed in evidence.items() if _persists(listed, policy)}
    wishes = [
        *_wish_for_alarms(alarms, retrains, version, as_of, policy),
        *_order_by_turn(
            list(_wish_for_search(retrains, as_of, policy)),
            list(_wish_for_freshness(ages, retrains, version, as_of, policy)),
            retrains,
            as_of,
            policy,
        ),
        *_wish_for_contender(retrains, as_of, policy),
    ]
    if not wishes:
        quiet = [_explain_quiet(kind, windows[kind], evidence[kind], policy) for kind in windows]
        quiet += [] if ages is None else [_explain_freshness(ages)]
        return Decision("wait", _name_cause(version, {}, retrains, as_of), as_of, version, tuple(quiet))
    if departure:
        gone = f"Version {version} {departure} just now: what it did wrong is no reason to replace what serves now."
        wishes = [replace(wish, obstacle=gone) for wish in wishes]
    wish = next((wish for wish in wishes if wish.obstacle is None), wishes[0])
    return _conclude(wish, as_of, version)


def decide_first(retrains: Retrains, *, as_of: datetime, policy: Policy) -> Decision:
    """Whether to ask for a first model, where no version serves. It needs no alarm, and it has no cool-down: the gate's
    back-off, in `retrains.refusal`, says when the next candidate is judged."""
    cause = _hash(["first", str(retrains.last(as_of)), *retrains.unmade])
    obstacle = (
        explain_joining(cause, retrains)
        or retrains.refusal
        or explain_budget(as_of, policy, retrains)
        or explain_money("search", policy, retrains.costs)
    )
    wish = Wish("search", cause, ("No version serves: a first model is wanted.",), obstacle)
    return _conclude(wish, as_of, NO_VERSION)


def _conclude(wish: Wish, as_of: datetime, version: int) -> Decision:
    if wish.obstacle:
        return Decision("wait", wish.cause, as_of, version, (wish.obstacle, *wish.reasons), wish.kind, wish.asked_by)
    return Decision("retrain", wish.cause, as_of, version, wish.reasons, wish.kind, wish.asked_by)


# --- the wishes ----------------------------------------------------------------------------------------------------


def _wish_for_alarms(
    alarms: Mapping[SignalKind, Sequence[Signal]], retrains: Retrains, version: int, as_of: datetime, policy: Policy
) -> Iterator[Wish]:
    if not alarms:
        return
    cause = _name_cause(version, alarms, retrains, as_of)
    reasons = tuple(listed[-1].message for listed in alarms.values())
    kind: RetrainKind = "refresh"
    losses = alarms.get("performance")
    if losses and retrains.has_refreshed_since(_first_alarm(losses).window_begin, as_of):
        kind = "search"
        reasons = ("A refresh has not brought the loss back: a new recipe is wanted.", *reasons)
    obstacle = (
        explain_joining(cause, retrains)
        or explain_cool_down(as_of, policy, retrains.last_search(as_of))
        or (explain_budget(as_of, policy, retrains) if kind == "search" else None)
        or retrains.refusal
        or (explain_age(as_of, policy, retrains.last(as_of)) if kind == "refresh" else None)
        or explain_money(kind, policy, retrains.costs)
    )
    yield Wish(kind, cause, reasons, obstacle, tuple(alarms))


def _wish_for_search(retrains: Retrains, as_of: datetime, policy: Policy) -> Iterator[Wish]:
    last = retrains.last_search(as_of)
    if policy.search_every is None or last is None or as_of < last + policy.search_every:
        return
    cause = _hash(["search", str(last), *retrains.unmade])
    reason = f"The last search was at {last}, and policy.search_every ({spell(policy.search_every)}) has passed."
    obstacle = explain_joining(cause, retrains) or retrains.refusal or explain_money("search", policy, retrains.costs)
    yield Wish("search", cause, (reason,), obstacle)


def _order_by_turn(
    searches: list[Wish], refreshes: list[Wish], retrains: Retrains, as_of: datetime, policy: Policy
) -> list[Wish]:
    """The search first, where a refresh was judged since it is due."""
    last = retrains.last_search(as_of)
    if last and policy.search_every and retrains.has_refreshed_since(last + policy.search_every, as_of):
        return searches + refreshes
    return refreshes + searches


def _wish_for_freshness(
    windows: Sequence[Signal] | None, retrains: Retrains, version: int, as_of: datetime, policy: Policy
) -> Iterator[Wish]:
    """A refresh where age surely costs something, or where nobody has measured lately what it costs."""
    if not windows:
        return
    newest, last = windows[-1], retrains.last(as_of)
    until = newest.detail.get("evidence_until")
    is_stale = until is None or as_of - datetime.fromisoformat(until) >= STALE_EVIDENCE
    if not newest.alarm and not is_stale:
        return
    why = () if newest.alarm else ("What age costs was not measured lately: a refresh measures it.",)
    cause = _hash([version, "freshness", str(last), *retrains.unmade])
    obstacle = (
        explain_joining(cause, retrains)
        or explain_age(as_of, policy, last)
        or retrains.refusal
        or (explain_price(newest, policy, retrains.costs) if newest.alarm else None)
        or explain_money("refresh", policy, retrains.costs)
    )
    yield Wish("refresh", cause, (*why, newest.message), obstacle, ("freshness",))


def _wish_for_contender(retrains: Retrains, as_of: datetime, policy: Policy) -> Iterator[Wish]:
    """The next look at a recipe that is in the race, as often as a refresh may be asked for."""
    last = retrains.raced
    if last is None or as_of < last + policy.refresh_every:
        return
    cause = _hash(["contender", str(last), *retrains.unmade])
    reason = f"A contender was looked at last at {last}; its race goes on after policy.refresh_every."
    obstacle = (
        explain_joining(cause, retrains) or retrains.refusal or explain_money("contender", policy, retrains.costs)
    )
    yield Wish("contender", cause, (reason,), obstacle)


def _select_windows(signals: Sequence[Signal], kind: SignalKind, version: int, as_of: datetime) -> list[Signal]:
    """A kind's signals of this champion up to now, oldest first; of a window that was measured twice, the last."""
    windows = {
        signal.window_end: signal
        for signal in signals
        if (signal.kind, signal.version) == (kind, version) and signal.window_end <= as_of
    }
    return [windows[end] for end in sorted(windows)]


def _persists(evidence: Sequence[Signal], policy: Policy) -> bool:
    newest = _select_apart(evidence, policy.windows)
    return len(newest) == policy.windows and all(window.alarm for window in newest)


def _select_apart(evidence: Sequence[Signal], count: int) -> list[Signal]:
    """The newest window and those before it, so many, that do not overlap: a week seen every hour is one window."""
    chosen: list[Signal] = []
    for window in reversed(evidence):
        if len(chosen) < count and (not chosen or window.window_end <= chosen[-1].window_begin):
            chosen.append(window)
    return chosen


def _explain_quiet(kind: str, windows: Sequence[Signal], evidence: Sequence[Signal], policy: Policy) -> str:
    if not windows:
        return f"{kind}: nothing measured yet."
    last = windows[-1]
    if not last.is_measured:
        reason = "the newest window is no evidence"
    elif last.rows < policy.min_rows:
        alarm = "an alarm" if last.alarm else "no alarm"
        reason = f"{alarm} on {last.rows:,} rows, and policy.min_rows is {policy.min_rows:,}"
    elif not last.alarm:
        reason = "no alarm"
    else:
        begin = _first_alarm(evidence).window_end
        count = len([window for window in _select_apart(evidence, policy.windows) if window.window_end >= begin])
        reason = f"alarms in {count} of the {policy.windows} windows in a row that policy.windows asks for"
    return f"{kind}: {reason}. {last.message}"


def _explain_freshness(windows: Sequence[Signal]) -> str:
    return f"freshness: no alarm. {windows[-1].message}" if windows else "freshness: nothing measured yet."


# --- the causes ----------------------------------------------------------------------------------------------------


def _name_cause(
    version: int, alarms: Mapping[SignalKind, Sequence[Signal]], retrains: Retrains, as_of: datetime
) -> str:
    """The same as long as the same alarms of the same champion go on and no answer has come between.

    Alarms that outlast a retrain which changed nothing are a new cause, for the cool-down to hold back; those that
    outlast one which failed are a new cause too, since the ledger has answered the old one.
    """
    began = {kind: _first_alarm(evidence).window_end.isoformat() for kind, evidence in alarms.items()}
    return _hash([version, began, str(retrains.last(as_of)), *retrains.unmade])


def _hash(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _first_alarm(evidence: Sequence[Signal]) -> Signal:
    """The first window of the alarms in a row that the newest window ends."""
    quiet = [place for place, window in enumerate(evidence) if not window.alarm]
    return evidence[quiet[-1] + 1 if quiet else 0]
