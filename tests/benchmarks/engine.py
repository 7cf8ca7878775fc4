"""The engine: what two processes save over one, with one thread each, on the default data."""

import os
from statistics import median

from tests.benchmarks.place import Bench, Checkout
from tests.benchmarks.row import Row, benchmark, row, seconds

PERIODS = "engine: periods, one process ÷ two"
CUTS = "engine: past cuts of the evidence, one process ÷ two"
CANDIDATES = "engine: the replay's candidates, one process ÷ two"
TUNE = "engine: tune, one process ÷ two"
SEARCH = {"trials": 16, "parallel": 4, "budget": "2h", "finalists": 4}


@benchmark(PERIODS)
def spread_periods(bench: Bench) -> list[Row]:
    return [measure(bench, bench.cleaned, PERIODS, "periods", bar=1.7)]


@benchmark(CUTS)
def spread_cuts(bench: Bench) -> list[Row]:
    return [measure(bench, bench.featured, CUTS, "cuts", bar=1.7)]


@benchmark(CANDIDATES)
def spread_candidates(bench: Bench) -> list[Row]:
    return [measure(bench, bench.featured, CANDIDATES, "candidates", bar=1.7)]


@benchmark(TUNE)
def spread_trials(bench: Bench) -> list[Row]:
    """Four trials at a time on both sides: the slower of two would keep the other process waiting."""
    return [measure(bench, bench.featured, TUNE, "tune", bar=1.6, **SEARCH | ({"trials": 4} if bench.quick else {}))]


def measure(bench: Bench, base: Checkout, name: str, part: str, *, bar: float, **tune: object) -> Row:
    """In turn, so that what else the machine does slows both alike."""
    sides = [bench.copy(base) for _ in range(2)]
    for count, place in enumerate(sides, start=1):
        place.set(stage={"threads": 1, "cluster": f"local:{count}"}, **({"tune": tune} if tune else {}))
    runs: list[list[dict[str, float]]] = [[], []]
    load = [os.getloadavg()[0]]
    for _ in range(bench.times(3)):
        for place, outputs in zip(sides, runs, strict=True):
            place.empty_periods()
            outputs.append(place.run("tests.benchmarks.engine_timed", part).output)
            load.append(os.getloadavg()[0])
    one, two = ([output["seconds"] for output in outputs] for outputs in runs)
    same = len({output["made"] for outputs in runs for output in outputs}) == 1
    ways = [median(output["way"] for output in outputs) for outputs in runs]
    starts = [output["start"] for output in runs[1]]
    detail = (
        f"{seconds(one)} and {seconds(two)}, by CPU on the longest way {ways[0]:.1f} ÷ {ways[1]:.1f} = "
        f"{ways[0] / ways[1]:.2f}; {median(starts):.1f} s for two processes to start; "
        f"{'the same bytes' if same else 'OTHER BYTES'}; load {min(load):.1f} to {max(load):.1f}"
    )
    return row(name, over=one, under=two, bar=bar, detail=detail, sense="at least", sound=same)
