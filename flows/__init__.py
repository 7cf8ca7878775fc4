"""When and whether: the only package that imports Prefect.

These defaults are set before prefect is imported. Telemetry is off. A run without a server waits 120 seconds, not 20,
for the one that Prefect starts. A server that is away for minutes is asked again. The interval of heartbeats is
infra's, whatever the environment says, since an automation counts on it.
"""

import os

from flows.orphans import outlive_worker
from infra import HEARTBEAT, PATIENCE
from tasks import TELEMETRY_OFF

for _name, _value in (
    *TELEMETRY_OFF.items(),
    ("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120"),
    *PATIENCE.items(),
):
    os.environ.setdefault(_name, _value)
os.environ.update(HEARTBEAT)
outlive_worker()
