"""ticks: a run that a schedule starts while the one before it is under way ends at once, as Skipped.

The next tick does what this one leaves. A run that somebody asks for waits its turn instead. Skipped is a name of the
type Completed: a state of the type Cancelled ends the run's process with a traceback and status 1, which a pool of
containers takes for a failed job and starts again.
"""

from typing import Any

from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Completed

from tasks import params
from tasks.runtime import locks

SKIPPED = "Skipped"


def name_tick() -> str:
    """The run's name in the UI: the flow's, and its as_of when somebody gave one."""
    as_of = flow_run.parameters.get("as_of")
    return f"{flow_run.flow_name} {str(as_of)[:10]}" if as_of else str(flow_run.flow_name)


def skip_if_busy(name: str) -> Any:
    """The state that a scheduled run returns if another run of its flow is under way; None to go on."""
    if is_scheduled() and locks.is_run_under_way(params.home(), name=name):
        message = f"another run of {name} is under way: the next tick does what this one leaves"
        return Completed(name=SKIPPED, message=message)
    return None


def is_scheduled() -> bool:
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.auto_scheduled)
