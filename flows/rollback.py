"""rollback: the alias goes back to the version that served before the champion, and the ledger says why.

    python -m flows.rollback --reason "it is slow"
    python -m flows.rollback --to 3

What was taken down is never promoted again. A rollback waits for no retrain: one that is under way finds another
champion at its end and holds its candidate. Whether to roll back is not decided here.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from prefect import flow, runtime
from pydantic import Field

from flows import cli, forms, runs
from tasks import params
from tasks.data import state
from tasks.monitoring import monitor
from tasks.promotion import changes
from tasks.promotion.registry import open_registry
from tasks.runtime import clock
from tasks.serving.journal import open_journal


@dataclass(frozen=True)
class RolledBack:
    """What serves now, and what was taken down for it."""

    serves: int
    down: int | None
    as_of: datetime
    reason: str


@forms.hide_from_form("champion", "decision")
@flow(name="rollback", flow_run_name="rollback {reason}")
def rollback(
    *,
    to: Annotated[int | None, Field(ge=1)] = None,
    reason: str = "by hand",
    as_of: datetime | None = None,
    champion: Annotated[int | None, Field(ge=1)] = None,
    decision: str | None = None,
    force: bool = False,
) -> RolledBack:
    """Give the alias back, and tell what serves now.

    Args:
        to: The version to go back to. Empty: the champion before this one.
        reason: Why; it names the run and goes into the ledger.
        as_of: Event time "now", in UTC, such as 2013-07-01T00:00:00Z. Empty: the clock of params.yaml.
        champion: Take down this version only. Empty: whatever serves.
        decision: The id of the decision that this run answers.
        force: On: take an as_of beyond what was journalled, or ahead of the clock, as it is.
    """
    p = params.load()
    if as_of:
        check_as_of(p, params.to_utc(as_of), force=force)
    moment = params.to_utc(as_of or clock.now(p.clock) or state.read_event_now() or datetime.now(UTC))
    done = move_back(
        p, to, champion, reason=reason, as_of=moment, decision=decision or f"rollback-{runtime.flow_run.id}"
    )
    runs.publish(describe(done), key="rollback", description=f"as of {done.as_of}")
    return done


@runs.retried("check as_of")
def check_as_of(p: params.Params, as_of: datetime, *, force: bool) -> None:
    monitor.refuse_beyond(p, open_journal(p.journal), as_of, force=force)


@runs.retried("move back")
def move_back(
    p: params.Params, to: int | None, champion: int | None, *, reason: str, as_of: datetime, decision: str
) -> RolledBack:
    """The registry's own lock is enough: it is held for as long as the alias moves, and no longer. Cut off and tried
    again, it is the same rollback: the decision names it."""
    registry = open_registry(p.registry)
    now = changes.rollback(registry, decision=decision, as_of=as_of, reasons=[reason], to=to, champion=champion)
    (entry,) = (one for one in registry.read_ledger() if (one.mark, one.decision) == ("rolled back", decision))
    return RolledBack(now.number, entry.champion, entry.as_of, reason)


def describe(done: RolledBack) -> str:
    """The rollback as a person reads it."""
    head = f"# Version {done.serves} serves (as of {done.as_of:%Y-%m-%d %H:%M})"
    return f"{head}\n\n- Version {done.down} was taken down, and is never promoted again.\n- Why: {done.reason}\n"


if __name__ == "__main__":
    cli.run("rollback")
