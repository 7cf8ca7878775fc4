"""approval: with gate.approval `required`, a person decides in the Prefect UI before a candidate serves.

The run pauses and stays alive; its page in the UI shows the verdict and asks for a decision and a note. When nobody
decides within gate.approval_within, the candidate is held. Without a Prefect server there is no page to decide on.
"""

import contextlib
import threading
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import timedelta

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from pydantic import Field

from flows.runs import retried
from tasks import params
from tasks.promotion.verdict import Outcome, Verdict, render_verdict

POLL = 2  # seconds between looks whether somebody has decided
MARGIN = timedelta(minutes=5)  # Prefect fails a run whose pause runs out: ours ends before


class Approval(RunInput):
    """The form in the UI."""

    approve: bool = Field(description="on: the candidate is promoted; off: it is refused")
    note: str = Field("", description="who decided, and why: it goes into the ledger")


def ask_approval(verdict: Verdict, settings: params.Gate) -> Verdict:
    """Ask a person about a verdict that promotes, if gate.approval says so. Returns the verdict as decided."""
    if settings.approval == "none" or not verdict.promotes:
        return verdict
    publish_verdict(verdict)  # where the Prefect API is away, the pause waits for it too
    answer = wait_for_answer(verdict, settings.approval_within)
    if answer is None:
        within = params.spell(settings.approval_within)
        return change_outcome(verdict, "HOLD", f"Nobody decided within gate.approval_within ({within}).")
    if answer.approve:
        return change_outcome(verdict, "PROMOTE", f"A person approved it: {answer.note or 'no note'}.")
    return change_outcome(verdict, "REJECT", f"A person refused it: {answer.note or 'no note'}.")


@retried("publish")
def publish_verdict(verdict: Verdict) -> None:
    create_markdown_artifact(render_verdict(verdict), key="verdict", description="waits for a person's approval")


def change_outcome(verdict: Verdict, outcome: Outcome, reason: str) -> Verdict:
    """Another outcome, with the same figures: the gate has looked, so later looks need stronger evidence."""
    get_run_logger().info("%s: %s", outcome, reason)
    return replace(verdict, outcome=outcome, reasons=(reason, *verdict.reasons))


def wait_for_answer(verdict: Verdict, within: timedelta) -> Approval | None:
    """Pause until a person has answered. None when time ran out."""
    with _deadline(within) as time_out:
        try:
            answer = pause_flow_run(
                wait_for_input=Approval.with_initial_data(description=word_question(verdict, within), approve=False),
                timeout=round((within + MARGIN).total_seconds()),
                poll_interval=POLL,
            )
        except FlowPauseTimeout:  # the server could not be reached when our time was up
            return None
    return None if time_out.passed else answer


def word_question(verdict: Verdict, within: timedelta) -> str:
    return (
        f"{render_verdict(verdict)}\n"
        f"**Promote this candidate?** Nobody's answer within {params.spell(within)} holds it."
    )


@dataclass
class TimeOut:
    passed: bool = False


@contextlib.contextmanager
def _deadline(within: timedelta) -> Iterator[TimeOut]:
    """Resume this run, as refused, when the time is up: Prefect would fail a run whose pause runs out."""
    time_out, run_id = TimeOut(), flow_run.id

    def resume() -> None:
        with get_client(sync_client=True) as client:
            answer = client.resume_flow_run(run_id, run_input={"approve": False, "note": "nobody decided"})
        time_out.passed = answer.status == SetStateStatus.ACCEPT  # else somebody was faster

    timer = threading.Timer(within.total_seconds(), copy_context().run, [resume])
    timer.daemon = True
    timer.start()
    try:
        yield time_out
    finally:
        timer.cancel()
        timer.join()  # it may be about to say that it was the one who resumed
