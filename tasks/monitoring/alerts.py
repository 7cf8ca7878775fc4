"""alerts: what a person should hear of, each cause once. Pure; flows/people.py sends them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.monitoring import canary, decisions, predecessor
from tasks.monitoring.signal import Signal, name_cause
from tasks.promotion.ledger import Entry


@dataclass(frozen=True)
class Alert:
    """`cause` tells two alerts apart: what was sent for it once is not sent again."""

    subject: str
    body: str
    cause: str


def list_alerts(
    model: str,
    signals: Sequence[Signal],
    *,
    history: Sequence[Signal],
    requests: Sequence[decisions.Request],
    entries: Sequence[Entry],
) -> Iterator[Alert]:
    """Also what an earlier run decided, and was ended before it could say so.

    Args:
        model: The registered model's name.
        signals: Of the newest window.
        history: All signals so far.
        requests: The decisions to retrain.
        entries: The ledger.
    """
    for signal in signals:
        if signal.is_warning and signal.kind != "challenger":  # what came of that is below
            cause = name_cause(history, signal)
            yield Alert(f"evergreen: {signal.kind} of {model}", signal.message, cause)
    for request in decisions.select_recent(requests):
        if request.asked_by != "freshness":  # such a refresh is routine
            yield Alert(f"evergreen: a retrain of {model} is wanted", request.reasons, request.decision)
    for entry in decisions.list_recent_faults(entries):
        subject = f"evergreen: a retrain of {model} failed"
        yield Alert(subject, "\n".join(entry.reasons), f"failed {entry.decision}")
    for entry in canary.list_ended(entries):
        promoted = entry.outcome == "PROMOTE"
        end = "was promoted" if promoted else "was taken away: it is never put up or promoted again"
        subject = f"evergreen: the challenger of {model}, version {entry.version}, {end}"
        yield Alert(subject, "\n".join(entry.reasons), f"canary {entry.decision}")
    for entry in predecessor.list_rollbacks(entries):
        subject = f"evergreen: version {entry.champion} of {model} was taken down"
        body = "\n".join([*entry.reasons, f"Version {entry.version} serves again."])
        yield Alert(subject, body, f"down {entry.champion}")


def ask_approval(model: str, look: Signal) -> Alert:
    """That a challenger has won, where a person has to approve a promotion."""
    body = f"To promote it: python -m flows.canary --accept\n{look.message}"
    subject = f"evergreen: a challenger of {model} waits for approval"
    return Alert(subject, body, f"approve {canary.decision_id(look)}")
