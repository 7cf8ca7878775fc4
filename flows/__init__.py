"""When and whether: the only place that knows Prefect.

Its telemetry is off unless somebody turns it on, a run without a server gives the one that Prefect starts for it more
than its 20 seconds, and a server that is away for minutes is asked again: set before prefect is imported, for those who
come without make too.
The heartbeats' interval is infra's, whatever the environment says: the automation that misses them relies on it.
"""

import os

from flows.orphans import outlive_worker
from infra import HEARTBEAT, PATIENCE

for _name, _value in (
    ("DO_NOT_TRACK", "true"),
    ("PREFECT_SERVER_ANALYTICS_ENABLED", "false"),
    ("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120"),
    *PATIENCE.items(),
):
    os.environ.setdefault(_name, _value)
os.environ.update(HEARTBEAT)
outlive_worker()
