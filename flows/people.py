"""people: a person is told of an event, once for each cause, or asked whether a candidate may serve.

An alert goes by the Prefect notification block that monitor.alerts names, or into the log. A delivered one is recorded
in the journal, so that a cause which lasts over many runs is told once. One that could not be delivered is not
recorded: the next run tries again, and no flow fails for it. A kill between delivery and record sends it twice. Which
events deserve an alert is decided by the callers.

With gate.approval `required`, a run that would promote pauses and stays alive; its page in the Prefect UI shows the
verdict and asks for a decision and a note. When nobody decides within gate.approval_within, the candidate is held.
Without a Prefect server there is no page to decide on.
"""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from prefect import artifacts, cache_policies, exceptions, get_client, get_run_logger, pause_flow_run, runtime, task
from prefect.blocks import core, notifications  # noqa: F401 (a server keeps a block's kind by name: this makes them known)
from prefect.client.schemas.responses import SetStateStatus
from prefect.input import RunInput
from pydantic import Field

from flows.runs import retried
from tasks import params
from tasks.promotion.page import render_verdict
from tasks.promotion.verdict import Outcome, Verdict
from tasks.serving.journal import Journal, open_journal
from tasks.serving.schema import make_entry

DELAYS = [1.0, 2.0, 4.0]  # seconds before the first, second and third time that an alert is tried again
LIMIT = 20.0  # seconds for one try; most blocks' own limits are shorter
POLL = 2  # seconds between looks whether somebody has decided
MARGIN = timedelta(minutes=5)  # Prefect fails a run whose pause runs out: ours ends before


# --- told ----------------------------------------------------------------------------------------------------------


def tell(p: params.Params, subject: str, body: str, *, cause: str) -> None:
    """`alert`, for a caller that has no journal open."""
    with contextlib.closing(open_journal(p.journal)) as journal:
        alert(subject, body, cause=cause, journal=journal, p=p)


def alert(subject: str, body: str, *, cause: str, journal: Journal, p: params.Params) -> bool:
    """Notify a person. Returns whether it was delivered now: not if `cause` was told before or delivery failed."""
    entry = make_entry("alert", cause)
    before = journal.read("alerts", columns=["entry", "event_time"])
    was_told = before.num_rows and entry in before["entry"].to_pylist()
    if was_told or not deliver(subject, body, p.monitor.alerts):
        return False
    now = pa.array([datetime.now(UTC).replace(tzinfo=None)], pa.timestamp("us"))
    texts = {"entry": [entry], "cause": [cause], "subject": [subject], "body": [body]}
    journal.append("alerts", pa.table({**texts, "event_time": now, "made_at": now}))
    return True


def deliver(subject: str, body: str, block: str | None) -> bool:
    logger = get_run_logger()
    if block is None:
        logger.warning("%s\n%s", subject, body)
        return True
    try:
        tried_again = task(
            name=f"alert by {block}",
            cache_policy=cache_policies.NO_CACHE,
            retries=len(DELAYS),
            retry_delay_seconds=DELAYS,
        )
        tried_again(send)(subject, body, by=core.Block.load(block))
    except Exception as error:  # a faulty block must not end the flow
        logger.error("%s\n%s\n(not delivered by %s: %s; the next run tries again)", subject, body, block, error)
        return False
    return True


def send(subject: str, body: str, *, by: Any) -> None:
    """Send it by a block, in a thread that is abandoned when nobody answers: Prefect's own time limit of a task would
    wait for the socket."""
    answer: Future[None] = Future()

    def notify() -> None:
        try:
            with by.raise_on_failure():  # without it, most blocks keep quiet about what they could not deliver
                answer.set_result(by.notify(body, subject))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=copy_context().run, args=[notify], daemon=True).start()
    try:
        answer.result(timeout=LIMIT)
    except TimeoutError:
        raise TimeoutError(f"no answer within {LIMIT} s") from None


# --- asked ---------------------------------------------------------------------------------------------------------


class Approval(RunInput):
    """The form in the UI."""

    approve: bool = Field(description="on: the candidate is promoted; off: it is refused")
    note: str = Field("", description="who decided, and why: it goes into the ledger")


def ask_approval(verdict: Verdict, settings: params.Gate) -> Verdict:
    """Ask a person about a verdict that promotes, if gate.approval says so. Returns the verdict as decided.

    Another outcome keeps the same figures: the gate has looked, so later looks need stronger evidence.
    """
    if settings.approval == "none" or not verdict.promotes:
        return verdict
    publish_verdict(verdict)  # where the Prefect API is away, the pause waits for it too
    answer = wait_for_answer(verdict, settings.approval_within)
    outcome: Outcome = "HOLD"
    if answer is None:
        reason = f"Nobody decided within gate.approval_within ({params.spell(settings.approval_within)})."
    else:
        outcome, did = ("PROMOTE", "approved") if answer.approve else ("REJECT", "refused")
        reason = f"A person {did} it: {answer.note or 'no note'}."
    get_run_logger().info("%s: %s", outcome, reason)
    return replace(verdict, outcome=outcome, reasons=(reason, *verdict.reasons))


@retried("publish")
def publish_verdict(verdict: Verdict) -> None:
    page = render_verdict(verdict)
    artifacts.create_markdown_artifact(page, key="verdict", description="waits for a person's approval")


def wait_for_answer(verdict: Verdict, within: timedelta) -> Approval | None:
    """Pause until a person has answered. None when time ran out."""
    question = f"**Promote this candidate?** Nobody's answer within {params.spell(within)} holds it."
    text = f"{render_verdict(verdict)}\n{question}"
    with _deadline(within) as time_out:
        try:
            answer = pause_flow_run(
                wait_for_input=Approval.with_initial_data(description=text, approve=False),
                timeout=round((within + MARGIN).total_seconds()),
                poll_interval=POLL,
            )
        except exceptions.FlowPauseTimeout:  # the server could not be reached when our time was up
            return None
    return None if time_out.is_set() else answer


@contextlib.contextmanager
def _deadline(within: timedelta) -> Iterator[threading.Event]:
    """Resume this run, as refused, when the time is up: Prefect would fail a run whose pause runs out. Yields an event
    that is then set."""
    time_out, run_id = threading.Event(), runtime.flow_run.id

    def resume() -> None:
        with get_client(sync_client=True) as client:
            answer = client.resume_flow_run(run_id, run_input={"approve": False, "note": "nobody decided"})
        if answer.status == SetStateStatus.ACCEPT:  # else somebody was faster
            time_out.set()

    timer = threading.Timer(within.total_seconds(), copy_context().run, [resume])
    timer.daemon = True
    timer.start()
    try:
        yield time_out
    finally:
        timer.cancel()
        timer.join()  # it may be about to say that it was the one who resumed
