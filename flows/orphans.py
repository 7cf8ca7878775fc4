"""orphans: a run survives the death of its worker.

A worker reads what its runs print. When it is killed, the next print of a run fails and would end a healthy run. So the
output pipes are watched: one that nobody reads any more is replaced by /dev/null. Logs still reach the server.
"""

import os
import select
import threading
from collections.abc import Mapping

RUN = "PREFECT__FLOW_RUN_ID"  # what a worker sets for the processes of its runs
OUTPUTS = (1, 2)  # file descriptors of stdout and stderr


def outlive_worker(environment: Mapping[str, str] = os.environ) -> None:
    """Do so in a process that a worker started. In a terminal, a closed pipe (`| head`) is meant to end the program."""
    if RUN in environment:
        threading.Thread(target=_watch, name="outlive worker", daemon=True).start()


def _watch() -> None:
    """Sleep until a pipe loses its reader, and replace it."""
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
