"""canary: a version is tried beside the champion, until the monitor finds which of them is better.

    python -m flows.canary --begin 3 --reason "fewer features"
    python -m flows.canary --begin 7f3c09...    (an MLflow run that nobody promoted)
    python -m flows.canary --end
    python -m flows.canary --accept

How the API tries it is said by serving.challenger in params.yaml. The monitor promotes it when the gate's rule would,
and takes it away for ever when it is surely worse; with `gate.approval: required` a person accepts the promotion by the
last of these. Nothing is compared here.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows import cli
from flows.network import NETWORK
from tasks import params
from tasks.data import state
from tasks.monitoring import canary as work
from tasks.monitoring import monitor
from tasks.monitoring.signal import read_signals
from tasks.monitoring.window import read_newest
from tasks.params import Params
from tasks.promotion import changes, registry
from tasks.promotion.registry import Registry
from tasks.runtime import clock
from tasks.serving import journal
from tasks.serving.journal import Journal


@dataclass(frozen=True)
class Tried:
    """Who serves, and who is tried beside it from now on."""

    serves: int | None
    challenger: int | None
    as_of: datetime
    said: str


@flow(name="canary", flow_run_name="canary {reason}")
def canary(
    *,
    begin: str | None = None,
    end: bool = False,
    accept: bool = False,
    reason: str = "by hand",
    as_of: datetime | None = None,
    force: bool = False,
) -> Tried:
    """Begin a canary, end it, or accept its challenger, and tell who is tried now. Ask for one of the three.

    Args:
        begin: The version to put up beside the champion, or the id of an MLflow run.
        end: On: take the challenger away. It may be put up again.
        accept: On: promote the challenger that the monitor found fit for it.
        reason: Why; it names the run and goes into the ledger.
        as_of: Event time "now", in UTC. Empty: the newest that is journalled.
        force: On: take an as_of beyond what was journalled, or ahead of the clock, as it is.
    """
    if (begin is not None) + end + accept != 1:
        raise ValueError("ask for one of the three: begin (a version or a run), end, or accept")
    p = params.load()
    known, kept, moment = opened(p, as_of, force=force)
    if begin is not None:
        said = begun(known, begin, reason=reason, as_of=moment, decision=f"begin-{flow_run.id}")
    elif end:
        said = ended(known, reason=reason, as_of=moment, decision=f"end-{flow_run.id}")
    else:
        said = accepted(known, kept, as_of=moment)
    return publish(known, said, moment)


@task(name="open", task_run_name="open", cache_policy=NO_CACHE, **NETWORK)
def opened(p: Params, as_of: datetime | None, *, force: bool) -> tuple[Registry, Journal, datetime]:
    """The registry, the journal, and event time "now"."""
    known, kept = registry.open_registry(p.registry), journal.open_journal(p.journal)
    if as_of:
        monitor.refuse_beyond(p, kept, params.to_utc(as_of), force=force)
    newest = read_newest(kept, now=state.read_event_now())
    return known, kept, params.to_utc(as_of or newest or clock.now(p.clock) or datetime.now(UTC))


@task(name="begin", task_run_name="begin", cache_policy=NO_CACHE, **NETWORK)
def begun(known: Registry, wanted: str, *, reason: str, as_of: datetime, decision: str) -> str:
    """A number is a version; anything else is a run."""
    over = work.settle(known, as_of=as_of).over  # what serves by now must not stand in the way
    asked = int(wanted) if wanted.isdecimal() else wanted
    found = changes.put_up(known, asked, decision=decision, as_of=as_of, reasons=[reason])
    said = f"Version {found.number} is put up: {reason}"
    return f"{work.explain_end(over)} {said}" if over else said


@task(name="end", task_run_name="end", cache_policy=NO_CACHE, **NETWORK)
def ended(known: Registry, *, reason: str, as_of: datetime, decision: str) -> str:
    line = changes.take_away(known, decision=decision, as_of=as_of, reasons=[reason])
    return f"Version {line.version} was taken away: {reason}" if line else "No challenger was up."


@task(name="accept", task_run_name="accept", cache_policy=NO_CACHE, **NETWORK)
def accepted(known: Registry, kept: Journal, *, as_of: datetime) -> str:
    """The person whom gate.approval asks for: what the monitor found is done. What was done already, and was cut off
    before it could say so, is told."""
    found, serving = work.settle(known, as_of=as_of), known.champion()
    if over := found.over or (None if found.on else work.find_last_winner(known)):
        return work.explain_end(over)
    look = work.find_pending(read_signals(kept), serving.number, found.on) if found.on and serving else None
    if look is None or not work.is_promotion(look) or (done := work.carry_out(known, look, as_of=as_of)) is None:
        raise ValueError("the monitor has found no challenger that may be promoted: wait for it")
    return f"Version {done.version} is promoted. {look.message}"


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE, **NETWORK)
def publish(known: Registry, said: str, as_of: datetime) -> Tried:
    serving, up = known.champion(), known.challenger()
    done = Tried(serving.number if serving else None, up.number if up else None, as_of, said)
    create_markdown_artifact(describe(done), key="canary", description=f"as of {as_of}")
    get_run_logger().info("%s", describe(done))
    return done


def describe(done: Tried) -> str:
    """The canary as a person reads it."""
    serves = f"Version {done.serves} serves" if done.serves else "No version serves"
    beside = f"version {done.challenger} is tried beside it" if done.challenger else "no challenger is up"
    head = f"# {serves}, {beside} (as of {done.as_of:%Y-%m-%d %H:%M})"
    return f"{head}\n\n- {done.said}\n"


if __name__ == "__main__":
    cli.run("canary")
