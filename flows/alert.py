"""alert: notify a person, once for each cause, by the Prefect notification block that monitor.alerts names, or the log.

A delivered alert is recorded in the journal, so that a cause which lasts over many runs is told once. One that could
not be delivered is not recorded: the next run tries again, and no flow fails for it. A kill between delivery and record
sends it twice. Which events deserve an alert is decided by the callers.
"""

from concurrent.futures import Future
from contextvars import copy_context
from datetime import UTC, datetime
from threading import Thread
from typing import Any

from prefect import get_run_logger, task
from prefect.blocks.core import Block
from prefect.cache_policies import NO_CACHE

from tasks.params import Params
from tasks.serving.journal import Journal
from tasks.serving.schema import make_entry

DELAYS = [1.0, 2.0, 4.0]  # seconds before the first, second and third time that it is tried again
LIMIT = 20.0  # seconds for one try; most blocks' own limits are shorter


def alert(subject: str, body: str, *, cause: str, journal: Journal, p: Params) -> bool:
    """Notify a person. Returns whether it was delivered now: not if `cause` was told before or delivery failed."""
    entry = make_entry("alert", cause)
    before = journal.read("alerts", columns=["entry", "event_time"])
    if before.num_rows and entry in before["entry"].to_pylist():
        return False
    if not deliver(subject, body, p.monitor.alerts):
        return False
    record_alert(entry, subject, body, cause, journal)
    return True


def deliver(subject: str, body: str, block: str | None) -> bool:
    if block is None:
        get_run_logger().warning("%s\n%s", subject, body)
        return True
    try:
        retried = send.with_options(name=f"alert by {block}", retries=len(DELAYS), retry_delay_seconds=DELAYS)
        retried(subject, body, by=load_block(block))
    except Exception as error:  # a faulty block must not end the flow
        get_run_logger().error(
            "%s\n%s\n(not delivered by %s: %s; the next run tries again)", subject, body, block, error
        )
        return False
    return True


def load_block(name: str) -> Any:
    import prefect.blocks.notifications  # noqa: F401 (the server keeps a block's kind by name: this makes them known)

    return Block.load(name)


@task(name="alert", cache_policy=NO_CACHE)
def send(subject: str, body: str, *, by: Any) -> None:
    """Send it, as a task that is tried again.

    The thread is abandoned when nobody answers: Prefect's own time limit of a task would wait for the socket.
    """
    answer: Future[None] = Future()
    Thread(target=copy_context().run, args=[_notify, subject, body, by, answer], daemon=True).start()
    try:
        answer.result(timeout=LIMIT)
    except TimeoutError:
        raise TimeoutError(f"no answer within {LIMIT} s") from None


def _notify(subject: str, body: str, by: Any, answer: "Future[None]") -> None:
    try:
        with by.raise_on_failure():  # without it, most blocks keep quiet about what they could not deliver
            answer.set_result(by.notify(body, subject))
    except Exception as error:
        answer.set_exception(error)


def record_alert(entry: str, subject: str, body: str, cause: str, journal: Journal) -> None:
    import pyarrow as pa

    now = pa.array([datetime.now(UTC).replace(tzinfo=None)], pa.timestamp("us"))
    texts = {"entry": [entry], "cause": [cause], "subject": [subject], "body": [body]}
    journal.append("alerts", pa.table({**texts, "event_time": now, "made_at": now}))
