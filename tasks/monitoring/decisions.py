"""decisions: what the journal and the ledger say → the policy's decision, and the answer to those that nobody answers.

A decision is asked for in the journal and answered in the ledger. One whose runs all end before their first line (a
module that cannot be imported, a parameter that the flow does not know, no worker) is answered here, as a fault: it was
asked for `policy.attempts` times more than once, and each time `monitor.patience` has passed. No event is sent here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tasks.monitoring import monitor, policy
from tasks.monitoring.policy import NO_VERSION, Decision
from tasks.params import Params, spell
from tasks.promotion import gate, judge, ledger
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Registry, Version
from tasks.serving.journal import Journal


@dataclass(frozen=True)
class Request:
    """A decision to retrain as the journal has it; `times` and `last` by the clock on the wall."""

    decision: str
    version: int
    as_of: datetime
    times: int
    last: datetime


def decide(
    p: Params,
    *,
    journal: Journal,
    registry: Registry,
    champion: Version,
    as_of: datetime,
    busy: bool = False,
    down: bool = False,
    replaced_by: int | None = None,
) -> Decision:
    """The policy's answer to all signals of the champion.

    Args:
        busy: Whether a retrain is under way in this home.
        down: Whether this champion was taken down just now.
        replaced_by: The challenger that was promoted in its place just now.
    """
    entries = registry.ledger()
    answered, unmade = ledger.find_answered(entries), ledger.find_empty_answers(entries)
    # What is later than this moment may come from a clock that has been mended since: it counts for nothing.
    early = judge.explain_wait(p, registry, champion, as_of, limit=as_of)
    return policy.decide(
        list(monitor.signals(journal)),
        as_of=as_of,
        version=champion.number,
        policy=p.policy,
        retrains=ledger.find_retrains(entries),
        asked=monitor.asked(journal, answered=answered, p=p),
        pending=pending(journal, answered=answered, p=p, busy=busy),
        unmade=[line.decision for line in unmade],
        refusal=_rest(unmade) or early,
        down=down,
        replaced_by=replaced_by,
    )


def decide_first(p: Params, *, journal: Journal, registry: Registry, as_of: datetime, busy: bool = False) -> Decision:
    """Whether to ask for a first model, where no version serves."""
    entries = registry.ledger()
    answered, unmade = ledger.find_answered(entries), ledger.find_empty_answers(entries)
    retrains = ledger.find_retrains(entries)
    last = max((moment for moment in retrains if moment <= as_of), default=None)
    running = "A retrain is under way: its model may be the first." if busy else None
    return policy.decide_first(
        as_of=as_of,
        policy=p.policy,
        retrains=retrains,
        asked=monitor.asked(journal, answered=answered, p=p),
        pending=pending(journal, answered=answered, p=p, busy=busy),
        unmade=[line.decision for line in unmade],
        refusal=running or _rest(unmade) or gate.explain_backoff(last, as_of, p.gate),
    )


def pending(journal: Journal, *, answered: set[str], p: Params, busy: bool) -> list[str]:
    """The decisions that wait for their answer: while a retrain is under way, however long they have waited."""
    if busy:
        return [request.decision for request in read_open(journal, answered=answered)]
    return monitor.pending(journal, answered=answered, p=p)


def _rest(unmade: Sequence[Entry]) -> str | None:
    faults = [_on_the_wall(line.made_at) for line in unmade if line.is_fault and line.made_at]
    return policy.rest_after_faults(faults, _now())


def faults_lately(lines: Sequence[Entry]) -> list[Entry]:
    """The retrains that failed in the last 30 days of the clock on the wall."""
    since = _now() - policy.MONTH
    return [line for line in lines if line.is_fault and line.made_at and _on_the_wall(line.made_at) > since]


def _on_the_wall(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


# --- decisions that nobody answers ---------------------------------------------------------------------------------


def answer_abandoned(p: Params, *, journal: Journal, registry: Registry) -> list[Entry]:
    """Answer the decisions that no run will answer any more; the new lines of the ledger.

    The caller makes sure that no retrain is under way.
    """
    requests = read_open(journal, answered=ledger.find_answered(registry.ledger()))
    most, patience = p.policy.attempts + 1, monitor.patience(p)
    return [
        registry.append(_answer(request, is_newest=place == 0, patience=patience))
        for place, request in enumerate(reversed(find_abandoned(requests, now=_now(), most=most, patience=patience)))
    ]


def read_open(journal: Journal, *, answered: set[str]) -> list[Request]:
    """The decisions to retrain of the last 30 days that have no answer, by when they were last asked for."""
    rows = [row for row in monitor.wanted(journal, since=_now() - policy.MONTH) if row["id"] not in answered]
    rows.sort(key=lambda row: row["made_at"])
    counts, last = Counter(row["id"] for row in rows), {row["id"]: row for row in rows}
    requests = [
        Request(decision, row["version"], row["as_of"], counts[decision], row["made_at"])
        for decision, row in last.items()
    ]
    return sorted(requests, key=lambda request: request.last)


def find_abandoned(requests: list[Request], *, now: datetime, most: int, patience: timedelta) -> list[Request]:
    """All of these open decisions, or none: they are asked for one after the other, and count together.

    Args:
        most: How often a retrain is asked for before its decision is answered as a fault.
        patience: How long each may take to be answered.
    """
    if not requests:
        return []
    silence = now - max(request.last for request in requests)
    asked = sum(request.times for request in requests)
    gone = silence >= patience * most  # its alarms have ended, so nobody asks again
    return requests if gone or (asked >= most and silence >= patience) else []


def _answer(request: Request, *, is_newest: bool, patience: timedelta) -> Entry:
    """The newest is the fault; what it came after is no further fault."""
    champion = None if request.version == NO_VERSION else request.version
    times = "once" if request.times == 1 else f"{request.times} times"
    reason = (
        f"No attempt began: a retrain was asked for {times}, last at {request.last:%Y-%m-%d %H:%M} UTC, and none "
        f"answered within {spell(patience)}. See in the Prefect UI why the runs of `retrain` ended before their first "
        "line (a module that cannot be imported, a parameter that the flow does not know), or whether a worker runs."
    )
    return Entry(
        "verdict",
        request.decision,
        request.as_of,
        champion=champion,
        outcome="HOLD",
        reasons=(reason,),
        counts_as_look=False,
        failed=is_newest,
    )
