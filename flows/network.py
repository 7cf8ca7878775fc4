"""network: which tasks are tried again, and how often: those that ask MLflow, which may be away for some minutes.

Nothing else is: what is wrong in itself would fail again.
"""

from typing import Any

from tasks import stage

WAITS = list(stage.WAITS_S)


def may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Whether MLflow may have been away, or its database locked."""
    return not isinstance(state.result(raise_on_failure=False), (ValueError, TypeError, LookupError))


NETWORK: dict[str, Any] = {"retries": len(WAITS), "retry_delay_seconds": WAITS, "retry_condition_fn": may_pass}
