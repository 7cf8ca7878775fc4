"""decisions: what the journal and the ledger hold → the policy's decision, and the answer to those that nobody answers.

A decision is asked for in the journal and answered in the ledger. One whose runs all end before their first line (a
module that cannot be imported, a parameter that the flow does not know, no worker) is answered here, as a fault: after
`policy.attempts` requests more than one, each left without an answer for `patience`. No event is sent here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import get_args

import pyarrow as pa

from tasks.monitoring import obstacles, policy
from tasks.monitoring.signal import read_signals
from tasks.params import Params, RetrainKind, spell
from tasks.promotion import gate, judge, ledger
from tasks.promotion.registry import Registry, Version
from tasks.runtime.files import Format
from tasks.serving.journal import Journal
from tasks.serving.schema import make_entry

FORMAT = Format("decision", 1)  # of the journal's rows; a new column that is read by row.get keeps the version
SCHEMA = pa.schema(
    {
        "format": pa.string(),
        "entry": pa.string(),
        "event_time": pa.timestamp("us"),
        "made_at": pa.timestamp("us"),
        "action": pa.string(),
        "kind": pa.string(),  # of rows without it: search
        "asked_by": pa.string(),
        "id": pa.string(),
        "as_of": pa.timestamp("us"),
        "version": pa.int64(),
        "reasons": pa.string(),
    }
)
PATIENCE = timedelta(hours=6)  # by the wall clock: a decision that nobody answered for so long is asked for again


@dataclass(frozen=True)
class Request:
    """A decision to retrain as the journal has it; `last` is when it was last asked for, by the wall clock."""

    decision: str
    version: int
    as_of: datetime
    times: int
    last: datetime
    reasons: str
    kind: RetrainKind
    asked_by: str  # kinds of signals


def append_decision(journal: Journal, decision: policy.Decision) -> None:
    """To wait, once for each cause and time; to retrain, as often as it is asked for."""
    now = _now()
    entry = make_entry(decision.id, decision.as_of, now if decision.retrains else decision.action)
    row = {"format": FORMAT.mark, "entry": entry, "event_time": decision.as_of, "made_at": now}
    row = asdict(decision) | row | {"reasons": " ".join(decision.reasons), "asked_by": " ".join(decision.asked_by)}
    journal.append("decisions", pa.Table.from_pylist([row], schema=SCHEMA))


def read_requests(journal: Journal) -> list[Request]:
    """All decisions to retrain, by when they were last asked for.

    Raises:
        ValueError: a row is in another format.
    """
    rows = sorted(journal.read("decisions").to_pylist(), key=lambda row: row["made_at"])
    for mark in {row.get("format") for row in rows}:
        FORMAT.check(mark, "a decision in the journal")
    rows = [row for row in rows if row["action"] == "retrain"]
    counts, last = Counter(row["id"] for row in rows), {row["id"]: row for row in rows}
    requests = [
        Request(
            decision,
            row["version"],
            row["as_of"],
            counts[decision],
            row["made_at"],
            row["reasons"],
            row.get("kind") or "search",
            row.get("asked_by") or "",
        )
        for decision, row in last.items()
    ]
    return sorted(requests, key=lambda request: request.last)


def select_recent(requests: Sequence[Request]) -> list[Request]:
    """Those of the last 30 days by the wall clock."""
    return [request for request in requests if request.last > _now() - obstacles.MONTH]


def select_pending(requests: Sequence[Request], *, answered: set[str], p: Params, busy: bool = False) -> list[Request]:
    """The recent ones that wait for their answer: while a retrain is under way, however long they have waited; else
    those asked for so lately that an answer may be under way. What waits longer is asked for again."""
    since = datetime.min if busy else _now() - patience(p)
    return [request for request in select_recent(requests) if request.last > since and request.decision not in answered]


def select_asked(requests: Sequence[Request], *, answered: set[str], p: Params) -> list[Request]:
    """Those that were answered, or may be about to be."""
    pending = select_pending(requests, answered=answered, p=p)
    return [request for request in requests if request.decision in answered or request in pending]


def patience(p: Params) -> timedelta:
    """How long a decision waits for its answer before it is asked for again, by the wall clock."""
    return max(PATIENCE, p.gate.approval_within if p.gate.approval == "required" else timedelta(0))


def decide(
    p: Params,
    *,
    journal: Journal,
    registry: Registry,
    champion: Version,
    as_of: datetime,
    busy: bool = False,
    departure: str | None = None,
) -> policy.Decision:
    """The policy's answer to all signals of the champion.

    Args:
        busy: Whether a retrain is under way in this home.
        departure: How this champion went just now, if it did: `was taken down`.
    """
    # What is later than this moment may come from a clock that has been mended since: it counts for nothing.
    early = judge.explain_wait(p, registry, champion, as_of, limit=as_of)
    retrains = read_retrains(p, journal, registry, as_of=as_of, busy=busy)
    return policy.decide(
        read_signals(journal),
        replace(retrains, refusal=retrains.refusal or early),
        as_of=as_of,
        version=champion.number,
        policy=p.policy,
        departure=departure,
    )


def decide_first(
    p: Params, *, journal: Journal, registry: Registry, as_of: datetime, busy: bool = False
) -> policy.Decision:
    """Whether to ask for a first model, where no version serves."""
    retrains = read_retrains(p, journal, registry, as_of=as_of, busy=busy)
    refusal = retrains.refusal or gate.explain_backoff(retrains.last(as_of), as_of, p.gate)
    running = "A retrain is under way: its model may be the first." if busy else None
    retrains = replace(retrains, refusal=running or refusal)
    return policy.decide_first(retrains, as_of=as_of, policy=p.policy)


def read_retrains(
    p: Params, journal: Journal, registry: Registry, *, as_of: datetime, busy: bool
) -> obstacles.Retrains:
    """What was asked for and answered so far, what it took, and whether the last ones failed."""
    entries, requests = registry.read_ledger(), read_requests(journal)
    answered, unmade = ledger.find_answered(entries), ledger.find_empty_answers(entries)
    faults = [_on_wall_clock(line.made_at) for line in unmade if line.is_fault and line.made_at]
    return obstacles.Retrains(
        made=ledger.find_retrains(entries),
        searched=ledger.find_retrains(entries, "search"),
        asked=[request.decision for request in select_asked(requests, answered=answered, p=p)],
        pending=[request.decision for request in select_pending(requests, answered=answered, p=p, busy=busy)],
        unmade=[line.decision for line in unmade],
        refusal=obstacles.explain_rest(faults, _now()),
        costs=measure_costs(entries, as_of),
        raced=contender.as_of if (contender := ledger.find_contender(entries)) else None,
    )


def measure_costs(entries: Sequence[ledger.Entry], as_of: datetime) -> obstacles.Costs:
    """What retrains took, by the ledger."""
    last = {kind: ledger.find_last_cost(entries, kind) for kind in get_args(RetrainKind)}
    spent = ledger.sum_cpu(entries, as_of - obstacles.MONTH, as_of)
    return obstacles.Costs({kind: cpu for kind, cpu in last.items() if cpu is not None}, spent)


def list_recent_faults(lines: Sequence[ledger.Entry]) -> list[ledger.Entry]:
    """The retrains that failed in the last 30 days by the wall clock."""
    since = _now() - obstacles.MONTH
    return [line for line in lines if line.is_fault and line.made_at and _on_wall_clock(line.made_at) > since]


def _on_wall_clock(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


# --- decisions that nobody answers ---------------------------------------------------------------------------------


def answer_abandoned(p: Params, *, journal: Journal, registry: Registry) -> list[ledger.Entry]:
    """Answer the decisions that no run will answer any more; the new lines of the ledger.

    The caller makes sure that no retrain is under way.
    """
    requests = read_open(journal, answered=ledger.find_answered(registry.read_ledger()))
    abandoned = find_abandoned(requests, now=_now(), most=p.policy.attempts + 1, patience=patience(p))
    return [
        registry.append(_answer(request, is_newest=place == 0, patience=patience(p)))
        for place, request in enumerate(reversed(abandoned))
    ]


def read_open(journal: Journal, *, answered: set[str]) -> list[Request]:
    """The decisions to retrain of the last 30 days that have no answer, by when they were last asked for."""
    return [request for request in select_recent(read_requests(journal)) if request.decision not in answered]


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
    has_ended = silence >= patience * most  # its alarms have ended, so nobody asks again
    return requests if has_ended or (asked >= most and silence >= patience) else []


def _answer(request: Request, *, is_newest: bool, patience: timedelta) -> ledger.Entry:
    """The newest is the fault; what it came after is no further fault."""
    times = "once" if request.times == 1 else f"{request.times} times"
    reason = (
        f"No attempt began: a retrain was asked for {times}, last at {request.last:%Y-%m-%d %H:%M} UTC, and none "
        f"answered within {spell(patience)}. See in the Prefect UI why the runs of `retrain` ended before their first "
        "line (a module that cannot be imported, a parameter that the flow does not know), or whether a worker runs."
    )
    return ledger.Entry(
        "verdict",
        request.decision,
        request.as_of,
        champion=None if request.version == policy.NO_VERSION else request.version,
        outcome="HOLD",
        reasons=(reason,),
        counts_as_look=False,
        failed=is_newest,
    )
