"""When and whether: the only place that knows Prefect.

Its telemetry is off unless somebody turns it on: set before prefect is imported, for those who come without make too.
"""

import os

for _name, _value in (("DO_NOT_TRACK", "true"), ("PREFECT_SERVER_ANALYTICS_ENABLED", "false")):
    os.environ.setdefault(_name, _value)
