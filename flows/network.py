"""network: which tasks are tried again, and how often: those that ask MLflow, which may be away for a moment.

Nothing else is: what is wrong in itself would fail again.
"""

from typing import Any

WAITS = [2, 10, 30]  # seconds before the first, second and third time that it is tried again


def may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Whether MLflow may have been away, or its database locked."""
    return not isinstance(state.result(raise_on_failure=False), (ValueError, TypeError, LookupError))


NETWORK: dict[str, Any] = {"retries": len(WAITS), "retry_delay_seconds": WAITS, "retry_condition_fn": may_pass}
