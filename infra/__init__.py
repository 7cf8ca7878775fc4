"""Where the project runs: what starts its servers on this machine, images, dashboards; and what these must agree on.

A run's heartbeats and the automation that misses them (flows/deploy.py) must agree, so the interval is set once,
here: for this process (flows/__init__.py), for servers and workers (servers.py), and in the job variables of each
deployment (flows/deploy.py).
"""

HEARTBEAT_S = 30  # the shortest that Prefect allows; its own default is 180
HEARTBEAT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}
PATIENCE = {"PREFECT_CLIENT_MAX_RETRIES": "7"}  # waits of 2, 4, 8 ... s: four minutes; Prefect's own 5 are one minute
