"""orphans: a run outlives its worker.

A worker reads what its runs print. When it is killed, whatever a run prints next fails, in rich, in DVC or wherever it
is printed, and a healthy run ends. So the pipes are watched: one that nobody reads any more gives way to nowhere.
What a run says still reaches the server.
"""

import os
import select
import threading
from collections.abc import Mapping

RUN = "PREFECT__FLOW_RUN_ID"  # what a worker sets for the processes of its runs
OUTPUTS = (1, 2)  # file descriptors of stdout and stderr


def outlive_worker(environment: Mapping[str, str] = os.environ) -> None:
    """For a process that a worker has started. In a terminal a closed pipe, as of `| head`, is meant as an end."""
    if RUN in environment:
        threading.Thread(target=_watch, name="outlive worker", daemon=True).start()


def _watch() -> None:
    """The system tells at once of a pipe whose reader has gone; until then this thread sleeps."""
    poll = select.poll()
    for output in OUTPUTS:
        poll.register(output, 0)
    left = set(OUTPUTS)
    while left:
        for output, _ in poll.poll():
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output)
            os.close(nowhere)
            poll.unregister(output)
            left.discard(output)
