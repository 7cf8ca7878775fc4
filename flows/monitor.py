"""monitor: measure the newest window, decide whether to retrain, and say so by an event.

    python -m flows.monitor

The event is `evergreen.retrain.wanted`; its payload has the decision's id and as_of. What starts a retrain on it is a
deployment's trigger: nothing is trained here.
"""

import argparse
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.runtime import flow_run
from pydantic import Field

from tasks import journal, params, pipeline, policy, registry
from tasks import monitor as work
from tasks.journal import Journal
from tasks.params import Params
from tasks.policy import Decision, Signal
from tasks.registry import Registry, Version

WANTED = "evergreen.retrain.wanted"


@dataclass(frozen=True)
class Monitored:
    """The signals of the newest window, and what was decided. None where no champion serves yet."""

    as_of: datetime
    signals: tuple[Signal, ...]
    decision: Decision | None


def named() -> str:
    """The run's name in the UI: the flow's, and its as_of when somebody gave one."""
    as_of = flow_run.parameters.get("as_of")
    return f"monitor {str(as_of)[:10]}" if as_of else "monitor"


@flow(name="monitor", flow_run_name=named)
def monitor(
    as_of: Annotated[
        datetime | None, Field(description="event time 'now'; empty: the newest that is journalled")
    ] = None,
) -> Monitored:
    """Signals of the window that ends at as_of, the policy's decision on all signals so far, and the event."""
    p = params.load()
    with pipeline.only_run(params.home(), name="monitor", say=get_run_logger().info):
        kept = journal.open_journal(p.journal)
        try:
            done = watched(p, kept, params.in_utc(as_of) if as_of else None)
        finally:
            kept.close()
    _publish(done)
    return done


@task(name="watch", task_run_name="watch", cache_policy=NO_CACHE)
def watched(p: Params, kept: Journal, as_of: datetime | None) -> Monitored:
    """Measure, decide, say so, and keep it."""
    known = registry.open_registry(p.registry)
    champion = known.champion()
    moment = as_of or work.newest(kept) or (champion and champion.as_of) or datetime.now()
    if champion is None:
        get_run_logger().warning("no champion serves yet: there is nothing to watch. Run the retrain flow first.")
        return Monitored(moment, (), None)
    found = work.measure(p, journal=kept, registry=known, champion=champion, as_of=moment)
    decision = decided(p, kept, known, champion, moment)
    if decision.retrains:
        _want(p, decision)  # before it is kept: a kill between them asks twice, with one id, and not never
    work.keep(decision, kept)
    kept.compact()
    return Monitored(moment, tuple(found), decision)


def decided(p: Params, kept: Journal, known: Registry, champion: Version, as_of: datetime) -> Decision:
    """The policy's answer to everything that was measured and done so far."""
    verdicts = [entry.as_of for entry in known.ledger() if entry.mark in ("verdict", "intent")]
    return policy.decide(
        list(work.signals(kept)),
        as_of=as_of,
        version=champion.number,
        policy=p.policy,
        retrains=verdicts,
        asked=work.asked(kept),
    )


def _want(p: Params, decision: Decision) -> None:
    emit_event(
        WANTED,
        resource={"prefect.resource.id": f"evergreen.model.{p.registry.model}"},
        payload={"decision": decision.id, "as_of": decision.as_of.isoformat(), "reason": f"decision {decision.id}"},
    )


def _publish(done: Monitored) -> None:
    create_markdown_artifact(_told(done), key="decision", description=f"as of {done.as_of}")
    rows = [{"signal": each.kind, "alarm": each.alarm, "said": each.said} for each in done.signals]
    if rows:
        create_table_artifact(rows, key="signals", description=f"as of {done.as_of}")
    get_run_logger().info("%s", _told(done))


def _told(done: Monitored) -> str:
    if done.decision is None:
        return "No champion serves yet: there is nothing to watch. Run the retrain flow first."
    head = f"# {done.decision.action} (as of {done.as_of}, decision {done.decision.id})"
    return "\n".join([head, "", *(f"- {reason}" for reason in done.decision.reasons)])


def main() -> None:
    """The same from a terminal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--as-of", type=datetime.fromisoformat, help="event time 'now', such as 2013-07-01")
    print(_told(monitor(as_of=parser.parse_args().as_of)))


if __name__ == "__main__":
    main()
