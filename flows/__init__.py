"""When and whether: the only place that knows Prefect.

Its telemetry is off unless somebody turns it on, and a run without a server gives the one that Prefect starts for it
more than its 20 seconds: set before prefect is imported, for those who come without make too.
"""

import os

for _name, _value in (
    ("DO_NOT_TRACK", "true"),
    ("PREFECT_SERVER_ANALYTICS_ENABLED", "false"),
    ("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120"),
):
    os.environ.setdefault(_name, _value)
