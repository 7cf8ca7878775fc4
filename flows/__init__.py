"""When and whether: the only place that knows Prefect.

Its telemetry is off unless somebody turns it on, a run without a server gives the one that Prefect starts for it more
than its 20 seconds, and a server that is away for minutes is asked again: set before prefect is imported, for those who
come without make too.

A run's heartbeats and the automation that misses them (flows/automations.py) must agree, so the interval is set here
alone: in this process, whatever its environment says, and in the job variables of each deployment (flows/deploy.py).
"""

import os

from flows.orphans import outlive_worker

HEARTBEAT_S = 30  # the shortest that Prefect allows; its own default is 180
HEARTBEAT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}
PATIENCE = {"PREFECT_CLIENT_MAX_RETRIES": "7"}  # waits of 2, 4, 8 ... s: four minutes; Prefect's own 5 are one minute

for _name, _value in (
    ("DO_NOT_TRACK", "true"),
    ("PREFECT_SERVER_ANALYTICS_ENABLED", "false"),
    ("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120"),
    *PATIENCE.items(),
):
    os.environ.setdefault(_name, _value)
os.environ.update(HEARTBEAT)
outlive_worker()
