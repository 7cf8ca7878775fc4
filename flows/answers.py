"""answers: the ledger's entry for a decision whose retrain gives no verdict: answered before, too early, or failed.

Every decision gets an answer, whatever ends its retrain. A crashed retrain gets another attempt (flows/automations.py);
if no attempt gets this far, the monitor answers (tasks/monitoring/decisions.py).
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from prefect import get_run_logger
from prefect.runtime import flow_run

from flows.alert import alert
from flows.runs import retried
from tasks import params
from tasks.data import state
from tasks.params import Params
from tasks.promotion import changes, judge, ledger
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Registry, open_registry
from tasks.runtime import clock
from tasks.runtime.pipeline import StageFailed
from tasks.serving.journal import open_journal

Check = Callable[[datetime, datetime | None], None]  # of as_of and the end of the data


@dataclass(frozen=True)
class Asked:
    """The decision that a run answers, and its as_of; None until ingest has found it in the data."""

    decision: str | None
    as_of: datetime | None


class TooEarlyError(Exception):
    """The gate would judge no candidate at this as_of; the ledger says why."""


@retried("is it answered")
def is_answered(p: Params, decision: str) -> bool:
    """Whether the ledger answers a decision: an event may come twice, and a run that crashed after its verdict is run
    again."""
    registry = open_registry(p.registry)
    finish_open(registry)
    if decision not in ledger.find_answered(registry.read_ledger()):
        return False
    get_run_logger().info("decision %s was answered already: see the ledger", decision)
    return True


def finish_open(registry: Registry) -> None:
    for version in changes.finish_open(registry):
        get_run_logger().warning("version %s serves: a killed run had decided that, and left it open", version.number)


def answer_fault(p: Params, asked: Asked, error: Exception) -> None:
    """Answer the decision of a run that fails. If the ledger cannot be reached either, the monitor asks again."""
    if asked.decision is None:
        return
    try:
        give_up(p, asked, _explain(error))
    except Exception as failure:
        get_run_logger().error("decision %s is not answered: %s: %s", asked.decision, type(failure).__name__, failure)


def _explain(error: Exception) -> str:
    if isinstance(error, (StageFailed, clock.AheadError)):
        return f"No candidate could be made: {error}"
    return (
        f"The retrain ended before its verdict ({type(error).__name__}: {error}). See its log in the Prefect UI, mend "
        "that, and start it by hand; the monitor asks for it again later."
    )


@retried("give up")
def give_up(p: Params, asked: Asked, why: str) -> None:
    """Answer a decision whose retrain failed, or it would be asked for again, at full cost, for ever. The failure costs
    no cool-down and no budget. The policy pauses after it, and a person is told."""
    registry = open_registry(p.registry)
    finish_open(registry)  # a promotion that was begun is the answer
    if asked.decision is None or asked.decision in ledger.find_answered(registry.read_ledger()):
        return
    serving = registry.find_champion()
    champion = serving.number if serving else None
    as_of = asked.as_of or state.read_event_now() or params.to_utc(datetime.now(UTC))
    answer = Entry("verdict", asked.decision, as_of, champion=champion, outcome="HOLD", reasons=(why,))
    registry.append(replace(answer, counts_as_look=False, failed=True))
    tell(p, f"evergreen: a retrain of {p.registry.model} failed", why, cause=f"failed {asked.decision}")


@retried("is it too early")
def is_too_early(p: Params, asked: Asked, as_of: datetime, limit: datetime | None = None) -> bool:
    """Whether the gate would judge no candidate yet; the ledger then says why. Asked before the stages run or, without
    clock.as_of, as soon as ingest has found the time. `limit` is the end of the data, if it is known."""
    registry = open_registry(p.registry)
    serving = registry.find_champion()
    as_of = params.to_utc(as_of)
    # What is later than this run may come from a clock that has been mended: the gate can tell, which knows the data.
    reason = judge.explain_wait(p, registry, serving, as_of, limit=limit or as_of)
    if reason is None:
        return False
    get_run_logger().warning("HOLD, and nothing was trained: %s", reason)
    number = serving.number if serving else None
    entry = Entry("verdict", asked.decision or f"retrain-{flow_run.id}", as_of, champion=number, outcome="HOLD")
    registry.append(replace(entry, reasons=(reason,), counts_as_look=False))
    return True


def back_off(p: Params, asked: Asked) -> Check | None:
    """The check to make once ingest has found as_of, before the expensive stages; None if as_of was given."""
    if asked.as_of:
        return None

    def check(as_of: datetime, limit: datetime | None) -> None:
        if is_too_early(p, asked, as_of, limit):
            raise TooEarlyError

    return check


def tell(p: Params, subject: str, body: str, *, cause: str) -> None:
    with closing(open_journal(p.journal)) as journal:
        alert(subject, body, cause=cause, journal=journal, p=p)
