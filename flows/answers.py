"""answers: the ledger's entry for a decision whose retrain gives no verdict: answered before, too early, or failed.

Every decision gets an answer, whatever ends its retrain. A crashed retrain gets another attempt (flows/deploy.py);
if no attempt gets this far, the monitor answers (tasks/monitoring/decisions.py).
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect import get_run_logger, runtime

from flows import people, runs
from tasks import params
from tasks.data import state
from tasks.promotion import changes, judge, ledger
from tasks.promotion.registry import Registry, open_registry
from tasks.promotion.verdict import hold
from tasks.runtime import clock, cost, pipeline


@dataclass(frozen=True)
class Asked:
    """A retrain that somebody asked for.

    Attributes:
        decision: the id of the decision that it answers.
        root: its workspace; None before it has one.
    """

    decision: str | None
    kind: params.RetrainKind
    root: Path | None

    def read_costs(self) -> dict[str, float]:
        """CPU seconds that it took so far, by part."""
        return cost.read(self.root) if self.root else {}


@runs.retried("is it answered")
def is_answered(p: params.Params, decision: str) -> bool:
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


def answer_fault(p: params.Params, asked: Asked, as_of: datetime | None, error: Exception) -> None:
    """Answer the decision of a run that fails. If the ledger cannot be reached either, the monitor asks again."""
    if isinstance(error, (pipeline.StageFailed, clock.AheadError)):
        reason = f"No candidate could be made: {error}"
    else:
        reason = (
            f"The retrain ended before its verdict ({type(error).__name__}: {error}). See its log in the Prefect UI, "
            "mend that, and start it by hand; the monitor asks for it again later."
        )
    try:
        give_up(p, asked, as_of, reason)
    except Exception as failure:
        get_run_logger().error("decision %s is not answered: %s: %s", asked.decision, type(failure).__name__, failure)


@runs.retried("give up")
def give_up(p: params.Params, asked: Asked, as_of: datetime | None, reason: str) -> None:
    """Answer a decision whose retrain failed, or it would be asked for again, at full cost, for ever. The failure costs
    no cool-down and no budget. The policy pauses after it, and a person is told. `as_of` is None until ingest has found
    it."""
    registry = open_registry(p.registry)
    finish_open(registry)  # a promotion that was begun is the answer
    if asked.decision in ledger.find_answered(registry.read_ledger()):
        return
    moment = as_of or state.read_event_now() or params.to_utc(datetime.now(UTC))
    _hold(p, registry, asked, moment, reason, failed=True)
    subject = f"evergreen: a retrain of {p.registry.model} failed"
    people.tell(p, subject, reason, cause=f"failed {asked.decision}")


@runs.retried("is it too early")
def is_too_early(p: params.Params, asked: Asked, as_of: datetime, limit: datetime | None = None) -> bool:
    """Whether the gate would judge no candidate yet; the ledger then says why. Asked as soon as ingest has run and
    there is anything to make; before that, where a decision is answered at a known time, for which the registry is open
    already. `limit` is the end of the data, if it is known."""
    registry = open_registry(p.registry)
    as_of = params.to_utc(as_of)
    # What is later than this run may come from a clock that has been mended: the gate can tell, which knows the data.
    reason = judge.explain_wait(p, registry, registry.find_champion(), as_of, limit=limit or as_of)
    if reason is None:
        return False
    get_run_logger().warning("HOLD, and nothing was trained: %s", reason)
    _hold(p, registry, asked, as_of, reason)
    return True


def _hold(
    p: params.Params, registry: Registry, asked: Asked, as_of: datetime, reason: str, *, failed: bool = False
) -> None:
    """Write into the ledger that nothing was judged, why, and what was spent."""
    serving, parts = registry.find_champion(), asked.read_costs()
    spent = cost.list_metrics(parts, p.policy.cpu_price)
    registry.append(
        ledger.Entry(
            "verdict",
            asked.decision or f"retrain-{runtime.flow_run.id}",
            as_of,
            champion=serving.number if serving else None,
            outcome="HOLD",
            reasons=(reason,),
            counts_as_look=False,
            failed=failed,
            cpu=spent["cpu_s"],
            verdict=hold(reason, kind=asked.kind, cpu_s=spent["cpu_s"], cost=spent["cost"], cpu=parts).to_dict(),
        )
    )
