"""How a test waits: for what can be asked, and with an end that only a broken run comes to."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 120.0


def wait_until(
    ask: Callable[[], T | None], seconds: float = PATIENCE_S, *, log: Path | None = None, every: float = 0.02
) -> T:
    """The first true answer. Raises AssertionError, with the end of the log, when none comes in so many seconds."""
    end = time.monotonic() + seconds
    while not (answer := ask()):
        text = log.read_text(errors="replace")[-3000:] if log else ""
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {ask.__qualname__}\n{text}"
        time.sleep(every)
    return answer
