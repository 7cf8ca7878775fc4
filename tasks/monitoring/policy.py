"""policy: the signals so far → retrain or wait, with the reasons and an id. Pure: nothing is read, written or started.

A signal must alarm in several windows in a row, on enough rows, before it counts; a retrain is not asked for twice for
one cause, nor again within the cool-down, nor oftener than the budget allows. A retrain that failed made no candidate:
it costs neither, and the next one waits `rest_after_faults`. Where no version serves, a first model is asked for.
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
FIRST_REST = timedelta(hours=6)  # of the clock on the wall, after a retrain that failed; twice as long after each more
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


def decide(
    signals: Sequence[Signal],
    *,
    as_of: datetime,
    version: int,
    policy: Policy,
    retrains: Sequence[datetime] = (),
    asked: Sequence[str] = (),
    pending: Sequence[str] = (),
    unmade: Sequence[str] = (),
    refusal: str | None = None,
    down: bool = False,
    replaced_by: int | None = None,
) -> Decision:
    """From the signals of the champion `version`, the event times of the retrains so far, the causes asked for, and
    those of them that wait for their answer. `unmade`: the decisions that were answered without a candidate since the
    last one was made; `refusal`: why a retrain that is asked for now would come to nothing. `down`: this champion was
    taken down just now; `replaced_by`: the challenger that was promoted in its place."""
    last = max((each for each in retrains if each <= as_of), default=None)
    windows = {kind: _windows(signals, kind, version, as_of) for kind in policy.signals}
    evidence = {kind: _evidence(listed, policy) for kind, listed in windows.items()}
    alarmed = {kind: listed for kind, listed in evidence.items() if _persists(listed, policy)}
    cause = _cause(version, alarmed, last, unmade)
    if not alarmed:
        quiet = tuple(_why_quiet(kind, windows[kind], evidence[kind], policy) for kind in windows)
        return Decision("wait", cause, as_of, version, quiet)
    why = tuple(found[-1].message for found in alarmed.values())
    held = _gone(version, down=down, replaced_by=replaced_by) or _joins(cause, asked, pending)
    held = held or _held_back(as_of, policy, last, retrains) or ((refusal,) if refusal else ())
    return Decision("wait" if held else "retrain", cause, as_of, version, (*held, *why))


def decide_first(
    *,
    as_of: datetime,
    policy: Policy,
    retrains: Sequence[datetime] = (),
    asked: Sequence[str] = (),
    pending: Sequence[str] = (),
    unmade: Sequence[str] = (),
    refusal: str | None = None,
) -> Decision:
    """Where no version serves: whether to ask for a first model. It needs no alarm, and it has no cool-down: the gate's
    back-off, in `refusal`, says when the next candidate is looked at. The other arguments are those of `decide`."""
    last = max((moment for moment in retrains if moment <= as_of), default=None)
    cause = _hash(["first", str(last), *unmade])
    held = _joins(cause, asked, pending) or ((refusal,) if refusal else ()) or _over_budget(as_of, policy, retrains)
    why = "No version serves: a first model is wanted."
    return Decision("wait" if held else "retrain", cause, as_of, NO_VERSION, (*held, why))


def rest_after_faults(faults: Sequence[datetime], now: datetime) -> str | None:
    """Why no retrain is asked for yet, by the clock on the wall: the last ones failed.

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


def _windows(signals: Sequence[Signal], kind: SignalKind, version: int, as_of: datetime) -> list[Signal]:
    """A kind's signals of this champion up to now, oldest first; of a window that was measured twice, the last."""
    windows = {
        signal.window_end: signal
        for signal in signals
        if (signal.kind, signal.version) == (kind, version) and signal.window_end <= as_of
    }
    return [windows[end] for end in sorted(windows)]


def _evidence(windows: Sequence[Signal], policy: Policy) -> list[Signal]:
    """Those that tell something, on enough rows. The others are neither alarms nor quiet: alarms on both sides of a
    pause are in a row."""
    return [window for window in windows if window.is_measured and window.rows >= policy.min_rows]


def _persists(evidence: Sequence[Signal], policy: Policy) -> bool:
    newest = _apart(evidence, policy.windows)
    return len(newest) == policy.windows and all(window.alarm for window in newest)


def _apart(found: Sequence[Signal], count: int) -> list[Signal]:
    """The newest window and those before it, so many, that do not overlap: a week seen every hour is one window."""
    chosen: list[Signal] = []
    for each in reversed(found):
        if len(chosen) < count and (not chosen or each.window_end <= chosen[-1].window_begin):
            chosen.append(each)
    return chosen


def _why_quiet(kind: str, windows: Sequence[Signal], evidence: Sequence[Signal], policy: Policy) -> str:
    if not windows:
        return f"{kind}: nothing measured yet."
    last = windows[-1]
    if not last.is_measured:
        return f"{kind}: the newest window is no evidence. {last.message}"
    if last.rows < policy.min_rows:
        what = "an alarm" if last.alarm else "no alarm"
        return f"{kind}: {what} on {last.rows:,} rows, and policy.min_rows is {policy.min_rows:,}. {last.message}"
    if not last.alarm:
        return f"{kind}: no alarm. {last.message}"
    row = len([window for window in _apart(evidence, policy.windows) if window.window_end >= _began(evidence)])
    return (
        f"{kind}: alarms in {row} of the {policy.windows} windows in a row that policy.windows asks for. {last.message}"
    )


def _gone(version: int, *, down: bool, replaced_by: int | None) -> tuple[str, ...]:
    if not down and replaced_by is None:
        return ()
    how = "was taken down" if down else f"gave way to version {replaced_by}, its challenger,"
    return (f"Version {version} {how} just now: what it did wrong is no reason to replace what serves now.",)


def _joins(cause: str, asked: Sequence[str], pending: Sequence[str]) -> tuple[str, ...]:
    """One retrain at a time: whatever alarms meanwhile, its model will be of the same rows."""
    if cause in asked:
        return ("A retrain was asked for already for this cause.",)
    if pending:
        return (f"The retrain of decision {pending[-1]} is not answered yet: this cause joins it.",)
    return ()


def _held_back(as_of: datetime, policy: Policy, last: datetime | None, retrains: Sequence[datetime]) -> tuple[str, ...]:
    """Why an alarm starts nothing now."""
    if last is not None and as_of < (until := last + policy.cool_down):
        return (f"The last retrain was at {last}; policy.cool_down ({spell(policy.cool_down)}) ends {until}.",)
    return _over_budget(as_of, policy, retrains)


def _over_budget(as_of: datetime, policy: Policy, retrains: Sequence[datetime]) -> tuple[str, ...]:
    recent = [moment for moment in retrains if as_of - MONTH < moment <= as_of]
    if len(recent) >= policy.budget:
        return (f"{len(recent)} retrains in the last 30 days, and policy.budget is {policy.budget}.",)
    return ()


def _cause(
    version: int, alarmed: Mapping[SignalKind, Sequence[Signal]], last: datetime | None, unmade: Sequence[str]
) -> str:
    """The same as long as the same alarms of the same champion go on and no answer has come between: alarms that
    outlast a retrain which changed nothing are a new cause, for the cool-down to hold back; those that outlast one
    which failed are a new cause too, since the ledger has answered the old one."""
    began = {kind: _began(found).isoformat() for kind, found in alarmed.items()}
    return _hash([version, began, str(last), *unmade])


def _hash(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _began(found: Sequence[Signal]) -> datetime:
    """The first of the alarms in a row that the newest window ends."""
    quiet = [place for place, each in enumerate(found) if not each.alarm]
    return found[quiet[-1] + 1 if quiet else 0].window_end
