"""The API beside `mlflow models serve`: the same version, the same rows, one process each, on one machine; and alone.

    .venv/bin/python -m tests.benchmarks serving:

What loads them is wrk (apt-get install wrk). The champion is made here, on real flights, once for all these rows. The
peer runs the pyfunc that each version carries; a plain XGBoost flavour of the same booster is no faster in MLflow.
"""

import asyncio
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from flows import demo
from tasks import params
from tasks.serving import journal
from tasks.training.model import Floats
from tests.benchmarks import serving_bodies as bodies
from tests.benchmarks import serving_promotes as promotes
from tests.benchmarks import serving_stand as stands
from tests.benchmarks.loop import server as prefect
from tests.benchmarks.place import Bench, Checkout
from tests.benchmarks.row import Row, benchmark, row
from tests.benchmarks.serving_client import Answer, Client
from tests.benchmarks.serving_load import Load, load
from tests.benchmarks.serving_stand import Server, ours, peer, stand

SINGLE = "serving: requests/s, 1 row, 32 connections: ours ÷ mlflow models serve"
TAIL = "serving: p99 at half of the peer's own maximum rate: ours ÷ mlflow models serve"
MANY = "serving: rows/s, 1,000 rows a request, columnar: ours ÷ mlflow models serve"
RAW = "serving: raw keys, one row: p50 in milliseconds"
BATCH = "serving: batch rows/s, Model.predict ÷ bare inplace_predict"
SWAP = "serving: failed or wrong-version requests in 60 s of full load, 20 promotions"
KILLED = "serving: acknowledged predictions missing after 20 SIGKILLs under load"
COST = "serving: p50 of one row, with the journal ÷ without"
COST_RATE = "serving: requests/s, 32 connections, without the journal ÷ with"
FEATURES, ROWS = "/v1/predict/features", "/v1/predict"
PEER = "/invocations"
CONNECTIONS = 32
FEWER = (1, 4, CONNECTIONS)  # the peer's maximum is the most that it does with any of these
LIVE = 5.0  # seconds that a promotion may take until every process serves it
BATCH_ROWS = 100_000
ASKED_ROWS = 500  # different ones, again and again, while versions change: an old version's answer must not be kept


# --- beside the peer


@benchmark(SINGLE, TAIL, MANY)
def beside(bench: Bench) -> list[Row]:
    """A B A B; the one that is not asked idles."""
    place, seconds = stand(bench), 2 if bench.quick else 10
    with peer(place) as theirs, ours(place) as mine:
        same = agree(place, theirs, mine)
        one = {"peer": bodies.single(place, "dataframe_records"), "ours": bodies.single(place, "rows")}
        urls = {"peer": theirs.address + PEER, "ours": mine.address + FEATURES}
        for name, url in urls.items():
            load(url, one[name], connections=4, seconds=seconds / 2)  # to warm up
        single = turns(bench, urls, one, connections=CONNECTIONS, seconds=seconds)
        most = max(load(urls["peer"], one["peer"], connections=item, seconds=seconds).rate for item in FEWER)
        tail = turns(bench, urls, one, connections=CONNECTIONS, seconds=3 * seconds, rate=most / 2)
        columns = bodies.columnar(place)
        many = turns(bench, urls, dict.fromkeys(urls, columns), connections=1, seconds=seconds)
        more = {name: load(url, columns, connections=4, seconds=seconds).rate for name, url in urls.items()}
    return [
        over_peer(SINGLE, single, "rate", bar=10, sense="at least", detail=describe(single), sound=same),
        over_peer(
            TAIL, tail, "p99", bar=0.2, sense="at most", detail=f"{describe(tail)}, at {most / 2:.0f}/s", sound=same
        ),
        over_peer(
            MANY, many, "rate", bar=3, sense="at least", detail=f"{describe(many)} requests; {four(more)}", sound=same
        ),
    ]


def turns(
    bench: Bench, urls: dict[str, str], requests: dict[str, Path], *, connections: int, **more: Any
) -> dict[str, list[Load]]:
    loads: dict[str, list[Load]] = {name: [] for name in urls}
    for _ in range(bench.times(3)):
        for name, url in urls.items():
            loads[name].append(load(url, requests[name], connections=connections, **more))
    return loads


def over_peer(name: str, loads: dict[str, list[Load]], figure: str, *, bar: float, detail: str, **more: Any) -> Row:
    over, under = ([getattr(one, figure) for one in loads[side]] for side in ("ours", "peer"))
    return row(name, over=over, under=under, bar=bar, detail=detail, **more)


def describe(loads: dict[str, list[Load]]) -> str:
    """'ours 4,100/s (p50 7.1, p99 9.9 ms), peer ...': medians."""
    return ", ".join(f"{name} {of_loads(loads[name])}" for name in sorted(loads))


def of_loads(loads: Sequence[Load]) -> str:
    rate, p50, p99 = (statistics.median(getattr(one, name) for one in loads) for name in ("rate", "p50", "p99"))
    return f"{rate:,.0f}/s (p50 {p50 * 1e3:.1f}, p99 {p99 * 1e3:.1f} ms)"


def four(loads: dict[str, float]) -> str:
    return f"on 4 connections {loads['ours']:.1f} and {loads['peer']:.1f}/s"


def agree(place: Checkout, theirs: Server, mine: Server, *, route: str = PEER, within: float = 1e-9) -> bool:
    """Whether both give the same scores for the same 1,000 rows."""
    (request,) = bodies.some(bodies.columnar(place), 1)
    peers = post(theirs.address + route, request)["predictions"]
    own = [one["score"] for one in post(mine.address + FEATURES, request)["predictions"]]
    return len(peers) == bodies.MANY and bool(np.allclose(peers, own, rtol=0, atol=within))


def post(url: str, body: bytes) -> Any:
    with urlopen(Request(url, body, {"Content-Type": "application/json"}), timeout=60) as answer:
        return json.load(answer)


# --- alone


@benchmark(RAW)
def raw_keys(bench: Bench) -> list[Row]:
    """One flight a request, no flight twice: features.sql makes its features."""
    place, seconds = stand(bench), 2 if bench.quick else 10
    times = bench.times(3)
    warm, *requests, last = bodies.raw(place, times + 2)
    with ours(place) as mine:
        load(mine.address + ROWS, warm, connections=1, seconds=seconds / 2)
        alone = [load(mine.address + ROWS, one, connections=1, seconds=seconds) for one in requests]
        four = load(mine.address + ROWS, last, connections=4, seconds=seconds)
    detail = f"{of_loads(alone)}; on 4 connections {of_loads([four])}; aim 5"
    return [row(RAW, over=[one.p50 * 1e3 for one in alone], under=[1.0], bar=10, detail=detail)]


@benchmark(BATCH)
def batch(bench: Bench) -> list[Row]:
    import pyarrow.parquet as pq

    place = stand(bench)
    table = bodies.ready(place).slice(0, BATCH_ROWS)
    pq.write_table(table, place.root / "batch.parquet")
    file = stands.champion(place)[1] / "model.ubj"
    times = place.run("tests.benchmarks.serving_batch", str(file), "batch.parquet", str(bench.times(7))).output
    rates = [statistics.median(times[name]) for name in ("ours", "bare")]
    detail = f"{rates[0]:,.0f} and {rates[1]:,.0f} rows/s of {table.num_rows:,}; {whole_flow(bench)}"
    return [row(BATCH, over=times["ours"], under=times["bare"], bar=0.5, detail=detail, sense="at least")]


def whole_flow(bench: Bench) -> str:
    """flows.score four weeks later, as a program: sources to journal."""
    place = without_journal(bench.copy(stand(bench)))
    place.set(clock={"as_of": f"{demo.FIRST + timedelta(days=28):%Y-%m-%d}"})
    with prefect(place) as address:
        took = place.run("flows.score", PREFECT_API_URL=address).seconds
    rows = len(journalled(place))
    return f"flows.score four weeks later: {rows:,} rows in {took:.0f} s, {rows / took:,.0f} rows/s, sources to journal"


@benchmark(COST, COST_RATE)
def journal_cost(bench: Bench) -> list[Row]:
    """The same application twice, one with a journal whose write returns at once."""
    place, seconds = stand(bench), 2 if bench.quick else 10
    requests = dict.fromkeys(("with", "without"), bodies.single(place, "rows"))
    with ours(place) as mine, ours(place, "tests.benchmarks.serving_silent") as silent:
        urls = {"with": mine.address + FEATURES, "without": silent.address + FEATURES}
        before = log_bytes(place)
        load(urls["without"], requests["without"], connections=4, seconds=seconds / 2)
        written = log_bytes(place) - before
        load(urls["with"], requests["with"], connections=4, seconds=seconds / 2)
        sound = written == 0 and log_bytes(place) > before
        alone = turns(bench, urls, requests, connections=1, seconds=seconds)
        full = turns(bench, urls, requests, connections=CONNECTIONS, seconds=seconds)
    p50 = {name: [one.p50 for one in alone[name]] for name in alone}
    rate = {name: [one.rate for one in full[name]] for name in full}
    return [
        row(COST, over=p50["with"], under=p50["without"], bar=1.1, detail=describe(alone), sound=sound),
        row(COST_RATE, over=rate["without"], under=rate["with"], bar=1.1, detail=describe(full), sound=sound),
    ]


def without_journal(place: Checkout) -> Checkout:
    shutil.rmtree(place.home / "journal", ignore_errors=True)
    return place


def log_bytes(place: Checkout) -> int:
    return sum(path.stat().st_size for path in (place.home / "journal" / "logs").rglob("*.log"))


def journalled(place: Checkout) -> list[str]:
    predictions = journal.open_journal(params.load(place.root / "params.yaml").journal, home=place.home).read(
        "predictions"
    )
    return predictions["entry"].to_pylist() if predictions.num_rows else []


# --- promotions


@dataclass(frozen=True)
class Served:
    """A version, how far its calibration is from the first one's, and when its promotion began and ended."""

    number: int
    shift: float
    began: float
    ended: float


@benchmark(SWAP)
def swap(bench: Bench) -> list[Row]:
    """Wrong: a version that was not champion at any time from 5 s before the request to its end, or another's score."""
    place, count, seconds = bench.copy(stand(bench)), 4 if bench.quick else 20, 12 if bench.quick else 60
    requests = bodies.some(bodies.single(place, "rows"), ASKED_ROWS)
    first, base = Served(stands.champion(place)[0], 0.0, 0.0, 0.0), stands.model(place)
    with ours(place) as mine, promoter(place, count, seconds) as one:
        client = Client(mine.address + FEATURES, requests)
        served = asyncio.run(ask_while(client, one, seconds))
    versions = [first, *(Served(**item) for item in served)]
    failed = sum(answer.status != 200 for answer in client.answers)
    good = [answer for answer in client.answers if answer.status == 200]
    matrix = base.spec.encode(bodies.ready(place).slice(0, ASKED_ROWS))
    scores = {version.number: promotes.shifted(base, version.shift).predict_matrix(matrix) for version in versions}
    untimely, mixed = faults(good, versions, scores)
    live = [waited for waited in waits(good, versions) if waited is not None]
    detail = (
        f"{failed} failed, {untimely} of a version that could not have answered, {mixed} with another version's score, "
        f"of {len(client.answers):,} ({len(good) / (seconds + LIVE):,.0f}/s); "
        f"{len(live)} of {count} promotions seen live, after {max(live, default=0):.1f} s at most"
    )
    command = f'.venv/bin/python -m tests.benchmarks "{SWAP}"'
    return [Row(SWAP, failed + untimely + mixed, 0, command, detail, sound=len(live) == count and max(live) <= LIVE)]


def promoter(place: Checkout, count: int, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.benchmarks.serving_promotes", str(count), str(seconds)]
    one = subprocess.Popen(
        command, cwd=place.root, env=place.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert one.stdout
    if "made" not in (line.strip() for line in iter(one.stdout.readline, "")):
        raise RuntimeError("the versions to promote could not be made")
    return one


async def ask_while(client: Client, one: "subprocess.Popen[str]", seconds: float) -> list[dict[str, Any]]:
    """Full load from before the first promotion to after the last is live."""
    asking = asyncio.create_task(client.ask(CONNECTIONS))
    output, _ = await asyncio.gather(asyncio.to_thread(one.communicate, "now\n"), asyncio.sleep(seconds + LIVE))
    client.stopped = True
    await asking
    if one.returncode:
        raise RuntimeError(f"the promotions ended with {one.returncode}")
    served: list[dict[str, Any]] = json.loads(output[0].strip().rpartition("\n")[2])
    return served


def faults(answers: Sequence[Answer], versions: Sequence[Served], scores: Mapping[int, Floats]) -> tuple[int, int]:
    """How many answers name a version that could not have answered, and how many another than their score comes of."""
    ends = {one.number: after.ended for one, after in pairwise(versions)}
    begins = {version.number: version.began for version in versions}
    untimely = mixed = 0
    for answer in answers:
        number = answer.body["version"]
        timely = begins.get(number, np.inf) <= answer.ended and answer.began - LIVE <= ends.get(number, np.inf)
        untimely += not timely
        mixed += timely and abs(answer.body["predictions"][0]["score"] - scores[number][answer.of]) >= 1e-9
    return untimely, mixed


def waits(answers: Sequence[Answer], versions: Sequence[Served]) -> list[float | None]:
    """Of each promotion, the seconds until no older version took a request any more; None where it was never seen."""
    seen = {answer.body["version"] for answer in answers}
    older = {one.number: [version.number for version in versions[:place]] for place, one in enumerate(versions)}
    seconds: list[float | None] = []
    for one in versions[1:]:
        last = max(
            (answer.began for answer in answers if answer.body["version"] in older[one.number]), default=one.ended
        )
        seconds.append(max(last - one.ended, 0.0) if one.number in seen else None)
    return seconds


# --- kills


@benchmark(KILLED)
def killed(bench: Bench) -> list[Row]:
    """SIGKILL at a moment that nobody chose; whatever had been acknowledged must be in the journal, once."""
    place, count = without_journal(bench.copy(stand(bench))), 2 if bench.quick else 20
    requests, moments = bodies.some(bodies.single(place, "rows"), bodies.SINGLE), random.Random(1)
    acknowledged: list[str] = []
    for turn in range(count):
        share = requests[turn::count]
        with ours(place) as mine:
            client = Client(mine.address + FEATURES, share)
            asyncio.run(ask_until_killed(client, mine, moments.uniform(0.3, 2.0)))
        good = [answer for answer in client.answers if answer.status == 200]
        acknowledged += [one["id"] for answer in good for one in answer.body["predictions"]]
    entries = journalled(place)
    missing = len(set(acknowledged) - set(entries))
    detail = (
        f"{missing} of {len(acknowledged):,} missing, {len(entries) - len(set(entries))} twice, after {count} kills"
    )
    command = f'.venv/bin/python -m tests.benchmarks "{KILLED}"'
    sound = len(acknowledged) > 50 * count and len(entries) == len(set(entries))
    return [Row(KILLED, missing, 0, command, detail, sound=sound)]


async def ask_until_killed(client: Client, server: Server, seconds: float) -> None:
    asking = asyncio.create_task(client.ask(CONNECTIONS))
    await asyncio.sleep(seconds)
    server.process.send_signal(signal.SIGKILL)
    client.stopped = True
    await asking
