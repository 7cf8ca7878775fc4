"""The API's processes on one port, and the keeper that brings them new champions.

python -m tasks.serving
"""

import argparse
import logging
import os
import threading

import uvicorn

from tasks import params
from tasks.serving import keeper, keys


def main() -> None:
    p = params.load()
    parser = argparse.ArgumentParser(prog="python -m tasks.serving", description=__doc__)
    parser.add_argument("--port", type=int, default=p.serving.port, help=f"{p.serving.port} (serving.port)")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="serving: %(message)s")
    keys.read(p.serving)  # before anything listens
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a request's rows are few, and requests are many
    stop = threading.Event()
    thread = threading.Thread(target=keeper.watch, args=[p, params.home(), stop], name="keeper", daemon=True)
    thread.start()
    try:
        uvicorn.run(
            "tasks.serving.app:app",
            factory=True,
            host=p.serving.host,
            port=asked.port,
            workers=p.serving.workers,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=10,
        )
    finally:
        stop.set()


if __name__ == "__main__":
    main()
