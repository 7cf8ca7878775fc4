"""rollback: the alias goes back to the version that served before the champion, and the ledger says why.

    python -m flows.rollback --reason "it is slow"
    python -m flows.rollback --to 3

What was taken down is never promoted again. A rollback waits for no retrain: one that is under way finds another
champion at its end and holds its candidate. Whether to roll back is not decided here.
"""

import argparse
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from tasks import clock, params, registry
from tasks.registry import Registry


@dataclass(frozen=True)
class RolledBack:
    """What serves now, and what was taken down for it."""

    serves: int
    down: int | None
    as_of: datetime
    reason: str


@flow(name="rollback", flow_run_name="rollback {reason}")
def rollback(
    to: Annotated[int | None, Field(ge=1, description="the version to go back to; empty: the champion before")] = None,
    reason: Annotated[str, Field(description="why; it names the run and goes into the ledger")] = "by hand",
    as_of: Annotated[datetime | None, Field(description="event time 'now'; empty: the clock's")] = None,
    champion: Annotated[
        int | None, Field(ge=1, description="take down this version only; empty: whatever serves")
    ] = None,
    decision: Annotated[str | None, Field(description="the id of the decision that this run answers")] = None,
) -> RolledBack:
    """Give the alias back, and tell what serves now."""
    p = params.load()
    moment = params.in_utc(as_of or clock.now(p.clock) or datetime.now(UTC))
    known = registry.open_registry(p.registry)
    done = moved_back(known, to, champion, reason=reason, as_of=moment, decision=decision or f"rollback-{flow_run.id}")
    _publish(done)
    return done


@task(name="move back", task_run_name="move back", cache_policy=NO_CACHE)
def moved_back(
    known: Registry, to: int | None, champion: int | None, *, reason: str, as_of: datetime, decision: str
) -> RolledBack:
    """The registry's own lock is enough: it is held for as long as the alias moves, and no longer."""
    now = known.rollback(decision=decision, as_of=as_of, reasons=[reason], to=to, champion=champion)
    (line,) = (line for line in known.ledger() if (line.mark, line.decision) == ("rolled back", decision))
    return RolledBack(now.number, line.champion, line.as_of, reason)


def _publish(done: RolledBack) -> None:
    create_markdown_artifact(told(done), key="rollback", description=f"as of {done.as_of}")
    get_run_logger().info("%s", told(done))


def told(done: RolledBack) -> str:
    """The rollback as a person reads it."""
    head = f"# Version {done.serves} serves (as of {done.as_of:%Y-%m-%d %H:%M})"
    return f"{head}\n\n- Version {done.down} was taken down, and is never promoted again.\n- Why: {done.reason}\n"


def main() -> None:
    """The same from a terminal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=int, help="the version to go back to; without it, the champion before this one")
    parser.add_argument("--reason", default="by hand", help="why; it goes into the ledger")
    asked = parser.parse_args()
    print(told(rollback(to=asked.to, reason=asked.reason)))


if __name__ == "__main__":
    main()
