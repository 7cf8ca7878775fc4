"""make up: how soon the worker takes up a retrain that is wanted, and what all of it takes of memory when idle."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

from infra.up import descendants
from tests.benchmarks.place import Bench, Checkout
from tests.benchmarks.row import Row, benchmark, row, seconds

LATENCY = "event emitted → retrain's first line, worker idle, in seconds"
MEMORY = "make up, idle: resident memory of all processes ÷ 1.7 GiB"
LIMIT = 1.7 * 1024  # MiB
IDLE = 30  # seconds until what starting took is over
WAIT = 120


@benchmark(LATENCY, MEMORY)
def event(bench: Bench) -> list[Row]:
    """Each retrain is cancelled as soon as it has begun."""
    with standing(bench.checkout()) as (api, process, took):
        time.sleep(IDLE)
        sizes = memory(process.pid)
        waited = [latency(api) for _ in range(bench.times(3))]
    whole, shared = (sum(size[kind] for size in sizes) for kind in ("Rss", "Pss"))
    detail = f"{whole:.0f} MiB, {shared:.0f} with what is shared counted once; ready after {took:.0f} s"
    return [
        row(LATENCY, over=waited, under=[1.0], bar=10, detail=seconds(waited)),
        row(MEMORY, over=[whole], under=[LIMIT], bar=1, detail=detail),
    ]


@contextmanager
def standing(place: Checkout) -> Iterator[tuple[str, "subprocess.Popen[str]", float]]:
    """All parts on free ports; Prefect's API, the supervisor, and how long the start took."""
    command = [sys.executable, "-m", "infra.up", *(f"--{name}-port=0" for name in ("prefect", "mlflow", "evidently"))]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=place.root, env=place.env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = next((line for line in process.stdout if line.startswith("ready")), "")
        if not line:
            raise RuntimeError(f"make up did not come up; see {place.home / 'logs'}")
        yield line.partition("Prefect ")[2].split()[0] + "/api", process, time.monotonic() - began
    finally:
        process.terminate()
        process.wait()


def memory(root: int) -> list[dict[str, float]]:
    """Of a process and all below it: MiB by kind."""
    return [_memory(pid) for pid in (root, *descendants(root))]


def _memory(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines)}


def latency(api: str) -> float:
    decision = uuid4().hex
    emitted = datetime.now(UTC)
    wanted = {
        "id": str(uuid4()),
        "occurred": emitted.isoformat(),
        "event": "evergreen.retrain.wanted",
        "resource": {"prefect.resource.id": "evergreen.model.late-flights"},
        "payload": {"as_of": "2013-05-01T00:00:00", "decision": decision, "reason": "bench"},
    }
    ask(api, "events", [wanted])
    run = until(api, decision, "start_time")
    ask(api, f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
    until(api, decision, "end_time")
    return (datetime.fromisoformat(run["start_time"]) - emitted).total_seconds()


def until(api: str, decision: str, moment: str) -> dict[str, Any]:
    """The run that answers a decision, once it has begun or ended."""
    for _ in range(WAIT * 10):
        for run in ask(api, "flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"}):
            if run["parameters"].get("decision") == decision and run[moment]:
                return dict(run)
        time.sleep(0.1)
    raise TimeoutError(f"no retrain with a {moment} within {WAIT} s")


def ask(api: str, path: str, body: Any) -> Any:
    request = Request(f"{api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or "null")
