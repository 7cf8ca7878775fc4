"""network: tasks are tried again while MLflow, the Prefect API or a remote journal does not answer for some minutes.

A task that asks one of them takes `**NETWORK`. So does one that makes artifacts, since Prefect's own client gives up
when its first connection is refused. Errors that would come again, such as a ValueError, are not tried again.
"""

from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.events import Event
from prefect.events.schemas.events import Resource

from tasks.runtime import stage

WAITS = list(stage.WAITS_S)
P = ParamSpec("P")
T = TypeVar("T")


def may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a service may have been away, or its database locked."""
    return not isinstance(state.result(raise_on_failure=False), (ValueError, TypeError, LookupError))


NETWORK: dict[str, Any] = {"retries": len(WAITS), "retry_delay_seconds": WAITS, "retry_condition_fn": may_pass}


def send_event(name: str, *, resource: str, payload: Mapping[str, str]) -> None:
    """Send an event. Raises if the Prefect API does not take it; Prefect's own `emit_event` would lose it silently."""
    event = Event(event=name, resource=Resource({"prefect.resource.id": resource}), payload=dict(payload))
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
