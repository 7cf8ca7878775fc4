"""The loop itself: what the retrain flow costs beside its stages, and what it costs when nothing has changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from infra.servers import run_prefect
from tests.benchmarks.place import Bench, Checkout, Ran, environment
from tests.benchmarks.row import Row, benchmark, row, seconds

OVERHEAD = "loop overhead: the retrain flow ÷ the same stage functions in one plain script"
UNCHANGED = "nothing changed: second retrain ÷ first"
TRIALS = 30  # about a minute of tuning on 2 cores


@benchmark(OVERHEAD)
def loop(bench: Bench) -> list[Row]:
    """Each in an empty checkout and home, as a program from start to end; the Prefect server runs already."""
    first, plain = [], []
    with server(bench.checkout()) as address:
        for _ in range(bench.times(2)):
            first.append(retrain(empty(bench), address).seconds)
            plain.append(empty(bench).run("tests.benchmarks.plain_loop"))
    whole, parts = [one.seconds for one in plain], [one.output for one in plain]
    stages = ", ".join(f"{name} {median(part[name] for part in parts):.1f}" for name in parts[0])
    cost = f"{seconds(first)}; plain {seconds(whole)}: {stages}; aim 1.15"
    return [row(OVERHEAD, over=first, under=whole, bar=1.35, detail=cost)]


@benchmark(UNCHANGED)
def unchanged(bench: Bench) -> list[Row]:
    """A search of 12 trials in an empty home, and the same again: each a new process; Prefect's server alone runs."""
    as_of = ("--as-of", "2013-05-01" if bench.quick else "2013-07-01", "--trials", "3" if bench.quick else "12")
    with server(bench.checkout()) as address:
        place = bench.checkout()
        first = retrain(place, address, *as_of)
        again = [retrain(place, address, *as_of) for _ in range(bench.times(5))]
    walls, cpus = [one.seconds for one in again], [one.cpu for one in again]
    detail = f"{seconds(walls)} after {first.seconds:.1f}; CPU {seconds(cpus)} after {first.cpu:.1f}"
    return [row(UNCHANGED, over=walls, under=[first.seconds], bar=0.05, detail=detail)]


def empty(bench: Bench) -> Checkout:
    """At the as_of of params.yaml; the trials, not the budget, end the search."""
    tune = {"trials": 3 if bench.quick else TRIALS, "budget": "2h"}
    return bench.checkout(tune=tune, **({"clock": {"as_of": "2013-05-01"}} if bench.quick else {}))


def retrain(place: Checkout, address: str, *arguments: str) -> Ran:
    return place.run("flows.retrain", *arguments, PREFECT_API_URL=address)


@contextmanager
def server(place: Checkout) -> Iterator[str]:
    """The demo's server, with a home that is no run's."""
    with environment(place.env), run_prefect() as address:
        yield address
