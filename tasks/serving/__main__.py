"""The API's processes on one port, and the mirror that brings them new champions.

python -m tasks.serving
"""

import argparse
import logging
import os
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from tasks import log, params
from tasks.serving import address, keys, protocol

MIRROR = (sys.executable, "-m", "tasks.serving.registry_mirror")
PAUSE = 5.0  # seconds until a mirror that ended is begun anew
LOOK = 0.5  # seconds between looks whether it lives


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tasks.serving", description=__doc__)
    for name in (address.HOST, address.PORT, address.WORKERS):
        field = name.rpartition("_")[2].lower()
        parser.add_argument(f"--{field}", dest=name, help=f"by default {name}, else serving.{field} of params.yaml")
    flags = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    os.environ.update(flags)  # which the processes of the workers read, too
    p = address.read_address(params.load(), os.environ)
    logging.basicConfig(level=logging.INFO, format="serving: %(message)s")
    keys.read_keys(p.serving)  # before anything listens
    check_certificate(p.serving)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a request's rows are few, and requests are many
    with keep_mirror(), share_metrics(p.serving.workers):
        uvicorn.run(
            "tasks.serving.app:app",
            factory=True,
            host=p.serving.host,
            port=p.serving.port,
            workers=p.serving.workers,
            access_log=False,
            server_header=False,
            http=protocol.BoundedHeaders,
            ws="none",
            ssl_certfile=p.serving.certificate,
            ssl_keyfile=p.serving.certificate_key,
            timeout_graceful_shutdown=10,
        )


def check_certificate(settings: params.Serving) -> None:
    """Raises ValueError for files that are no certificate and its key."""
    if settings.certificate:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.certificate, settings.certificate_key)
        except OSError as error:
            raise ValueError(
                "serving.certificate and serving.certificate_key must name PEM files of a certificate and its key, but "
                f"{settings.certificate} and {settings.certificate_key} cannot be used: {error}"
            ) from None


@contextmanager
def keep_mirror(command: Sequence[str] | None = None, pause: float = PAUSE) -> Iterator[None]:
    """While a mirror runs: in a process of its own, for importing and asking MLflow would hold up the answers. One that
    ends is begun anew. It learns its parent's id by its command: what it asks for itself, after seconds of imports, may
    be another's, where the parent died meanwhile."""
    command = command or (*MIRROR, "--parent", str(os.getpid()))
    stop = threading.Event()
    thread = threading.Thread(target=_restart, args=[command, pause, stop], name="mirror")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _restart(command: Sequence[str], pause: float, stop: threading.Event) -> None:
    """Run the command again whenever it ends, until `stop` is set."""
    while not stop.is_set():
        try:
            with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
                while process.poll() is None and not stop.wait(LOOK):
                    pass
                process.terminate()  # one that has ended is left alone
                reason = f"exit status {process.wait()}"
        except OSError as error:
            reason = str(error)
        if not stop.is_set():
            log.warning(
                "the mirror ended (%s): it is begun anew in %g s, and the last champion serves on", reason, pause
            )
            stop.wait(pause)


@contextmanager
def share_metrics(workers: int) -> Iterator[None]:
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
