"""When and whether: the only package that imports Prefect.

These defaults are set before prefect is imported. Telemetry is off. A run without a server waits 120 seconds, not 20,
for the one that Prefect starts. A server that is away for minutes is asked again. The interval of heartbeats is
infra's, whatever the environment says, since an automation counts on it.

A run survives the death of its worker. A worker reads what its runs print; when it is killed, the next print of a run
fails, and rich, which prints the logs, ends the program. So each output that nobody reads any more is replaced by
/dev/null: by a thread that waits for it, or by rich where it comes first. Logs still reach the server. In a terminal,
a closed pipe (`| head`) is meant to end the program.
"""

import os
import select
import threading

from rich.console import Console

from infra import HEARTBEAT, PATIENCE
from tasks import TELEMETRY_OFF

OUTPUTS = (1, 2)


def _outlive_reader(output: int, timeout_ms: int | None = None) -> None:
    """Sleep until a pipe loses its reader, and replace it."""
    poll = select.poll()
    poll.register(output, 0)
    if poll.poll(timeout_ms):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output)
        os.close(nowhere)


def _outlive_readers(_: Console) -> None:
    """What rich does on a broken pipe, in place of SystemExit. The thread may not have had its turn yet."""
    for output in OUTPUTS:
        _outlive_reader(output, timeout_ms=0)


_defaults = {**TELEMETRY_OFF, "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120", **PATIENCE}
os.environ.update({**_defaults, **os.environ, **HEARTBEAT})
if "PREFECT__FLOW_RUN_ID" in os.environ:  # a worker has started this process
    Console.on_broken_pipe = _outlive_readers  # type: ignore[assignment, method-assign]
    for _output in OUTPUTS:
        threading.Thread(target=_outlive_reader, args=[_output], name="outlive reader", daemon=True).start()
