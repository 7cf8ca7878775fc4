"""ticks: a run that a schedule starts while the one before it is under way ends at once, as Cancelled.

The next tick does what this one leaves. A run that somebody asks for waits its turn instead.
"""

from typing import Any

from prefect.context import FlowRunContext
from prefect.states import Cancelled

from tasks import params, pipeline


def skip_if_busy(name: str) -> Any:
    """The state for a scheduled run of a flow that is under way to return, which Prefect then ends it in; None: go
    on."""
    if is_scheduled() and pipeline.is_run_under_way(params.home(), name=name):
        return Cancelled(message=f"another run of {name} is under way: the next tick does what this one leaves")
    return None


def is_scheduled() -> bool:
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.auto_scheduled)
