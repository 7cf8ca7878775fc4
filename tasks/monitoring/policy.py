"""policy: the signals so far → retrain or wait, with the reasons and an id. Pure: nothing is read, written or started.

A signal must alarm in several windows in a row, on enough rows, before it counts. A retrain is not asked for twice for
one cause, nor within the cool-down, nor more often than the budget allows. A retrain that failed made no candidate: it
costs neither, and the next one waits for `explain_rest`. Where no version serves, a first model is asked for.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from tasks.monitoring.signal import Signal
from tasks.params import Policy, SignalKind, spell

MONTH = timedelta(days=30)
FIRST_REST = timedelta(hours=6)  # by the wall clock, after a retrain that failed; twice as long after each more
LONGEST_REST = timedelta(days=7)
NO_VERSION = 0  # of a decision on a first model


@dataclass(frozen=True)
class Decision:
    """`id` names the cause: a retrain that is asked for again for the same cause has the same id."""

    action: Literal["retrain", "wait"]
    id: str
    as_of: datetime
    version: int
    reasons: tuple[str, ...]

    @property
    def retrains(self) -> bool:
        return self.action == "retrain"


@dataclass(frozen=True)
class Retrains:
    """What was asked for and answered so far."""

    made: Sequence[datetime] = ()  # the event times of those that made a candidate
    asked: Sequence[str] = ()  # the decisions that asked for one and were answered, or may be about to be
    pending: Sequence[str] = ()  # those of them that wait for their answer
    unmade: Sequence[str] = ()  # those that were answered without a candidate since the last one was made
    refusal: str | None = None  # why a retrain that is asked for now would come to nothing

    def last(self, as_of: datetime) -> datetime | None:
        return max((moment for moment in self.made if moment <= as_of), default=None)


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
    evidence = {  # what is left out is neither an alarm nor quiet: alarms on both sides of a pause are in a row
        kind: [window for window in listed if window.is_measured and window.rows >= policy.min_rows]
        for kind, listed in windows.items()
    }
    alarms = {kind: listed for kind, listed in evidence.items() if _persists(listed, policy)}
    last = retrains.last(as_of)
    cause = _name_cause(version, alarms, last, retrains.unmade)
    if not alarms:
        quiet = tuple(_explain_quiet(kind, windows[kind], evidence[kind], policy) for kind in windows)
        return Decision("wait", cause, as_of, version, quiet)
    gone = f"Version {version} {departure} just now: what it did wrong is no reason to replace what serves now."
    obstacle = (
        (gone if departure else None)
        or _explain_joining(cause, retrains)
        or _explain_cool_down(as_of, policy, last)
        or _explain_budget(as_of, policy, retrains)
        or retrains.refusal
    )
    return _conclude(cause, as_of, version, obstacle, tuple(listed[-1].message for listed in alarms.values()))


def decide_first(retrains: Retrains, *, as_of: datetime, policy: Policy) -> Decision:
    """Whether to ask for a first model, where no version serves. It needs no alarm, and it has no cool-down: the gate's
    back-off, in `retrains.refusal`, says when the next candidate is judged."""
    cause = _hash(["first", str(retrains.last(as_of)), *retrains.unmade])
    obstacle = _explain_joining(cause, retrains) or retrains.refusal or _explain_budget(as_of, policy, retrains)
    return _conclude(cause, as_of, NO_VERSION, obstacle, ("No version serves: a first model is wanted.",))


def _conclude(cause: str, as_of: datetime, version: int, obstacle: str | None, reasons: tuple[str, ...]) -> Decision:
    if obstacle:
        return Decision("wait", cause, as_of, version, (obstacle, *reasons))
    return Decision("retrain", cause, as_of, version, reasons)


def explain_rest(faults: Sequence[datetime], now: datetime) -> str | None:
    """Why no retrain is asked for yet, by the wall clock: the last ones failed.

    Args:
        faults: When each retrain that failed since a candidate was last made was answered, in any order.
        now: The time on the same clock.
    """
    if not faults:
        return None
    rest = min(FIRST_REST * 2 ** min(len(faults) - 1, 10), LONGEST_REST)
    if now >= (until := max(faults) + rest):
        return None
    count = "The last retrain" if len(faults) == 1 else f"The last {len(faults)} retrains"
    return (
        f"{count} failed, the newest at {max(faults):%Y-%m-%d %H:%M} UTC. The next is asked for {spell(rest)} later, "
        f"from {until:%Y-%m-%d %H:%M} UTC on: mend what the ledger names, or start one by hand."
    )


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
        begin = _first_alarm(evidence)
        count = len([window for window in _select_apart(evidence, policy.windows) if window.window_end >= begin])
        reason = f"alarms in {count} of the {policy.windows} windows in a row that policy.windows asks for"
    return f"{kind}: {reason}. {last.message}"


def _explain_joining(cause: str, retrains: Retrains) -> str | None:
    """One retrain at a time: whatever alarms meanwhile, its model will be of the same rows."""
    if cause in retrains.asked:
        return "A retrain was asked for already for this cause."
    if retrains.pending:
        return f"The retrain of decision {retrains.pending[-1]} is not answered yet: this cause joins it."
    return None


def _explain_cool_down(as_of: datetime, policy: Policy, last: datetime | None) -> str | None:
    if last is not None and as_of < (until := last + policy.cool_down):
        return f"The last retrain was at {last}; policy.cool_down ({spell(policy.cool_down)}) ends {until}."
    return None


def _explain_budget(as_of: datetime, policy: Policy, retrains: Retrains) -> str | None:
    recent = [moment for moment in retrains.made if as_of - MONTH < moment <= as_of]
    if len(recent) >= policy.budget:
        return f"{len(recent)} retrains in the last 30 days, and policy.budget is {policy.budget}."
    return None


def _name_cause(
    version: int, alarms: Mapping[SignalKind, Sequence[Signal]], last: datetime | None, unmade: Sequence[str]
) -> str:
    """The same as long as the same alarms of the same champion go on and no answer has come between.

    Alarms that outlast a retrain which changed nothing are a new cause, for the cool-down to hold back; those that
    outlast one which failed are a new cause too, since the ledger has answered the old one.
    """
    began = {kind: _first_alarm(evidence).isoformat() for kind, evidence in alarms.items()}
    return _hash([version, began, str(last), *unmade])


def _hash(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _first_alarm(evidence: Sequence[Signal]) -> datetime:
    """The end of the first window of the alarms in a row that the newest window ends."""
    quiet = [place for place, window in enumerate(evidence) if not window.alarm]
    return evidence[quiet[-1] + 1 if quiet else 0].window_end
