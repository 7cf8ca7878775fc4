"""The API's processes on one port, and the keeper that brings them new champions.

python -m tasks.serving
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from tasks import params
from tasks.serving import keys


def main() -> None:
    p = params.load()
    parser = argparse.ArgumentParser(prog="python -m tasks.serving", description=__doc__)
    parser.add_argument("--port", type=int, default=p.serving.port, help=f"{p.serving.port} (serving.port)")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="serving: %(message)s")
    keys.read(p.serving)  # before anything listens
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a request's rows are few, and requests are many
    with kept(), one_metrics(p.serving.workers):
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


@contextmanager
def kept() -> Iterator[None]:
    """While a keeper runs: in a process of its own, for importing and asking MLflow would hold up the answers."""
    process = subprocess.Popen([sys.executable, "-m", "tasks.serving.keeper"], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def one_metrics(workers: int) -> Iterator[None]:
    """Where several processes keep what /metrics tells of them together: a folder of this start's own.

    Set before prometheus_client is imported, which looks for it then."""
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    if workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="evergreen-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        yield


if __name__ == "__main__":
    main()
