"""A checkout with a champion on real flights and its state, and the servers over it: ours, and MLflow's own.

Each server is one process, on a free port of 127.0.0.1, of the same registered version.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from flows import demo
from infra.servers import free_port
from tasks import params
from tasks.serving import versions
from tasks.training.model import Model
from tests.benchmarks.loop import server as prefect
from tests.benchmarks.place import Bench, Checkout
from tests.programs import PROGRAMS

START = 60.0  # seconds that a server may take until it answers
SEARCH = {"trials": 6, "budget": "80s", "rows": 20_000, "finalists": 2}  # the demo's


@dataclass(frozen=True)
class Server:
    address: str
    process: "subprocess.Popen[bytes]"


@cache
def stand(bench: Bench) -> Checkout:
    """Made once for all rows of a run: the demo's first retrain, whose model beats the baselines, and its features."""
    place = bench.checkout(clock={"as_of": f"{demo.FIRST:%Y-%m-%d}"}, tune=SEARCH)
    with prefect(place) as address:
        place.run("flows.retrain", PREFECT_API_URL=address)
    for stage in ("ingest", "clean", "features"):
        place.run(PROGRAMS[stage])
    with ours(place):  # the champion is then in the local copy
        pass
    return place


def champion(place: Checkout) -> tuple[int, Path]:
    """The number that the API serves, and the folder of its files."""
    number = versions.served_number(place.home)
    assert number is not None
    return number, versions.folder(place.home) / str(number)


def model(place: Checkout) -> Model:
    return Model.load(champion(place)[1] / "model.ubj")


@contextmanager
def ours(place: Checkout, module: str = "tasks.serving") -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", module, "--port", str(port)]
    with _standing(command, place, f"http://127.0.0.1:{port}", ready="/ready") as server:
        yield server


@contextmanager
def peer(place: Checkout) -> Iterator[Server]:
    """`mlflow models serve` of the champion: the pyfunc that every registered version carries."""
    port, name = free_port(), params.load(place.root / "params.yaml").registry.model
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{name}@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with _standing(command, place, f"http://127.0.0.1:{port}", ready="/ping") as server:
        yield server


@contextmanager
def _standing(command: list[str], place: Checkout, address: str, *, ready: str) -> Iterator[Server]:
    """A server in a group of its own, killed at the end: MLflow's command starts uvicorn as another process."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = place.env | {"PATH": tools, "MLFLOW_TRACKING_URI": f"sqlite:///{place.home / 'mlflow.db'}"}
    log = place.root / f"{ready.strip('/')}.log"
    with log.open("ab") as output:
        one = subprocess.Popen(command, cwd=place.root, env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait(one, address + ready, log)
        yield Server(address, one)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.wait()


def _wait(one: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end = time.monotonic() + START
    while one.poll() is None and time.monotonic() < end:
        with suppress(URLError, ConnectionError, TimeoutError), urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer:\n{log.read_text()[-3000:]}")
