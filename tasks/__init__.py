"""What is done to the data, in the order it passes through: plain functions that know nothing of Prefect.

Importing this package, as every program of the project does, exempts this machine's own addresses from proxies, and
has Python look for garbage less often: importing the libraries makes a million objects, and hardly one is garbage.
"""

import gc
import logging
import os
from collections.abc import MutableMapping

log = logging.getLogger("evergreen")  # of every module here
TELEMETRY_OFF = {  # the libraries' own switches; the Makefile and the image have the same (tests/test_infra.py)
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
}
GARBAGE_THRESHOLD = 20_000  # new objects before a look; with Python's own, 700, the looks take a sixth of all imports
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def exempt_loopback(environment: MutableMapping[str, str]) -> None:
    """Add this machine's own addresses to NO_PROXY where a proxy is set: a proxy elsewhere cannot reach them.

    Both spellings get the union of both, since some libraries read the one and some prefer the other.
    """
    proxies = [name for name, value in environment.items() if value and name.lower().endswith("_proxy")]
    if not [name for name in proxies if name.lower() != "no_proxy"]:
        return
    written = ",".join(environment.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    hosts = dict.fromkeys([*(host.strip() for host in written.split(",") if host.strip()), *LOOPBACK])
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = "*" if "*" in hosts else ",".join(hosts)


exempt_loopback(os.environ)
gc.set_threshold(GARBAGE_THRESHOLD)
