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

from prefect import flow, runtime

from flows import cli, runs
from tasks import params
from tasks.data import state
from tasks.monitoring import canary as work
from tasks.monitoring import monitor, signal, window
from tasks.promotion import changes
from tasks.promotion.registry import Registry, open_registry
from tasks.runtime import clock
from tasks.serving.journal import Journal, open_journal


@dataclass(frozen=True)
class Tried:
    """Who serves, and who is tried beside it from now on."""

    serves: int | None
    challenger: int | None
    as_of: datetime
    message: str


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
    registry, journal, moment = open_stores(p, as_of, force=force)
    if begin is not None:
        message = begin_canary(registry, begin, reason=reason, as_of=moment, decision=f"begin-{runtime.flow_run.id}")
    elif end:
        message = end_canary(registry, reason=reason, as_of=moment, decision=f"end-{runtime.flow_run.id}")
    else:
        message = accept_challenger(registry, journal, as_of=moment)
    done = find_tried(registry, message, moment)
    runs.publish(describe(done), key="canary", description=f"as of {moment}")
    return done


@runs.retried("open")
def open_stores(p: params.Params, as_of: datetime | None, *, force: bool) -> tuple[Registry, Journal, datetime]:
    """The registry, the journal, and event time "now"."""
    registry, journal = open_registry(p.registry), open_journal(p.journal)
    if as_of:
        monitor.refuse_beyond(p, journal, params.to_utc(as_of), force=force)
    newest = window.read_newest(journal, now=state.read_event_now())
    return registry, journal, params.to_utc(as_of or newest or clock.now(p.clock) or datetime.now(UTC))


@runs.retried("begin")
def begin_canary(registry: Registry, candidate: str, *, reason: str, as_of: datetime, decision: str) -> str:
    """Put a candidate up. A number is a version; anything else is a run."""
    over = work.settle(registry, as_of=as_of).over  # what serves by now must not stand in the way
    number_or_run = int(candidate) if candidate.isdecimal() else candidate
    challenger = changes.put_up(registry, number_or_run, decision=decision, as_of=as_of, reasons=[reason])
    message = f"Version {challenger.number} is put up: {reason}"
    return f"{work.explain_end(over)} {message}" if over else message


@runs.retried("end")
def end_canary(registry: Registry, *, reason: str, as_of: datetime, decision: str) -> str:
    """Take the challenger away."""
    entry = changes.take_away(registry, decision=decision, as_of=as_of, reasons=[reason])
    return f"Version {entry.version} was taken away: {reason}" if entry else "No challenger was up."


@runs.retried("accept")
def accept_challenger(registry: Registry, journal: Journal, *, as_of: datetime) -> str:
    """Promote the challenger that the monitor found better, for the person whom gate.approval asks for. One that was
    promoted already, by a run that was cut off before it could say so, is told of."""
    settled, serving = work.settle(registry, as_of=as_of), registry.find_champion()
    if over := settled.over or (None if settled.on else work.find_last_winner(registry)):
        return work.explain_end(over)
    look = (
        work.find_pending(signal.read_signals(journal), serving.number, settled.on) if settled.on and serving else None
    )
    if look is None or not work.is_promotion(look) or (done := work.carry_out(registry, look, as_of=as_of)) is None:
        raise ValueError("the monitor has found no challenger that may be promoted: wait for it")
    return f"Version {done.version} is promoted. {look.message}"


@runs.retried("look")
def find_tried(registry: Registry, message: str, as_of: datetime) -> Tried:
    """Who serves, and who is tried beside it."""
    serving, challenger = registry.find_champion(), registry.find_challenger()
    return Tried(serving.number if serving else None, challenger.number if challenger else None, as_of, message)


def describe(done: Tried) -> str:
    """The canary as a person reads it."""
    serves = f"Version {done.serves} serves" if done.serves else "No version serves"
    beside = f"version {done.challenger} is tried beside it" if done.challenger else "no challenger is up"
    head = f"# {serves}, {beside} (as of {done.as_of:%Y-%m-%d %H:%M})"
    return f"{head}\n\n- {done.message}\n"


if __name__ == "__main__":
    cli.run("canary")
