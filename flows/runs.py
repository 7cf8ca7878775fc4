"""runs: what all flows share: what is tried again, what goes on after an error, and which scheduled runs are skipped.

A task that asks MLflow, the Prefect API or a remote journal is `@retried("its name")`: it is tried again while nobody
answers for some minutes. So is one that makes artifacts, since Prefect's own client gives up when its first connection
is refused. Errors that would come again, such as a ValueError, are not tried again.

A run that a schedule starts while the one before it is under way ends at once, as Skipped; the next tick does what this
one leaves. A run that somebody asks for waits its turn instead. Skipped is a name of the type Completed: a state of the
type Cancelled ends the run's process with a traceback and status 1, which a pool of containers takes for a failed job
and starts again.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

from prefect import Task, artifacts, cache_policies, events, get_client, get_run_logger, runtime, task
from prefect.context import FlowRunContext
from prefect.states import Completed

from tasks import log, params
from tasks.runtime import locks, stage

SKIPPED = "Skipped"
P = ParamSpec("P")
T = TypeVar("T")


def may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a service may have been away, or its database locked."""
    return not isinstance(state.result(raise_on_failure=False), (ValueError, TypeError, LookupError))


def retried(name: str, **options: Any) -> Callable[[Callable[P, T]], Task[P, T]]:
    """A decorator: the function becomes a task of this name, and is tried again while a service is away."""
    waits = list(stage.WAITS_S)
    again = {"retries": len(waits), "retry_delay_seconds": waits, "retry_condition_fn": may_pass, **options}
    return task(name=name, task_run_name=name, cache_policy=cache_policies.NO_CACHE, **again)


@contextlib.contextmanager
def pass_on_logs() -> Iterator[None]:
    """Show what `tasks` logs in this block, in any thread, in this run's log. Prefect shows its own loggers' alone."""
    logger = get_run_logger()

    class Passer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logger.log(record.levelno, "%s", record.getMessage())

    passer, level, propagates = Passer(), log.level, log.propagate
    log.addHandler(passer)
    log.setLevel(logging.INFO)
    log.propagate = False  # else a warning appears twice in a terminal
    try:
        yield
    finally:
        log.removeHandler(passer)
        log.setLevel(level)
        log.propagate = propagates


@retried("publish")
def publish(page: str, *, key: str, description: str | None = None) -> None:
    """Show a page of Markdown beside the run in the Prefect UI, and in its log."""
    artifacts.create_markdown_artifact(page, key=key, description=description)
    get_run_logger().info("%s", page)


def send_event(name: str, *, resource: str, payload: Mapping[str, str]) -> None:
    """Send an event. Raises if the Prefect API does not take it; Prefect's own `emit_event` would lose it silently."""
    source = events.Resource({"prefect.resource.id": resource})
    event = events.Event(event=name, resource=source, payload=dict(payload))
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")])


class Steps:
    """Runs independent steps. An error is logged and the next step runs; the first error is raised at the end."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def run(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Run a step. Returns its result, or None if it failed."""
        try:
            return step(*args, **kwargs)
        except Exception as error:
            name = getattr(step, "name", None) or getattr(step, "__name__", str(step))
            get_run_logger().error("%s: %s: %s (the other steps go on)", name, type(error).__name__, error)
            self.errors.append(error)
            return None

    def raise_first(self) -> None:
        if self.errors:
            raise self.errors[0]


def name_tick() -> str:
    """The run's name in the UI: the flow's, and its as_of when somebody gave one."""
    as_of = runtime.flow_run.parameters.get("as_of")
    return f"{runtime.flow_run.flow_name} {str(as_of)[:10]}" if as_of else str(runtime.flow_run.flow_name)


def skip_if_busy(name: str) -> Any:
    """The state that a scheduled run returns if another run of its flow is under way; None to go on."""
    context = FlowRunContext.get()
    is_scheduled = context and context.flow_run and context.flow_run.auto_scheduled
    if is_scheduled and locks.is_run_under_way(params.home(), name=name):
        message = f"another run of {name} is under way: the next tick does what this one leaves"
        return Completed(name=SKIPPED, message=message)
    return None
