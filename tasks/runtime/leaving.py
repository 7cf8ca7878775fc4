"""leaving: a program's end without taking apart what it has imported, a fifth of the time of importing it."""

import atexit
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

_status: int | None = None  # with which this program leaves


def leave(status: int) -> NoReturn:
    """What sys.exit does in a main thread: other threads end, exit functions run, what was printed is written."""
    global _status
    _status = status
    sys.exit(status)


def leave_after(program: Callable[[], None]) -> NoReturn:
    """Run a program, and leave with its status. An error that it raises is Python's to show."""
    try:
        program()
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        leave(end.code or 0)
    leave(0)


@atexit.register  # early, so that it runs after what the libraries register
def _end() -> None:
    if _status is None:
        return
    logging.shutdown()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # to a closed pipe: Python knows what to say
        return
    os._exit(_status)
