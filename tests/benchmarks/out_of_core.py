"""Tables that memory does not hold: what training takes of it, and whether the models are the same."""

import hashlib
from typing import Any

from tests.benchmarks.place import YEAR, Bench, Checkout
from tests.benchmarks.row import Row, benchmark
from tests.programs import PROGRAMS

LARGE = "out of core: training on 100 × the year's rows: most memory beyond the base ÷ the matrix in memory"
SAME = "out of core: models that differ between rows in memory, an iterator, external memory"
TIMES, ROUNDS = 100, 20
SAME_TIMES, SAME_ROUNDS = 4, 60
WAYS = {"in memory": "16GB", "an iterator": "400MB", "external memory": "50MB"}  # stage.memory


@benchmark(LARGE)
def train_large(bench: Bench) -> list[Row]:
    place = enlarge(bench, 2 if bench.quick else TIMES, memory="10MB" if bench.quick else "1GB")
    result = train(place, ROUNDS)
    extra = result["peak"] - result["base"]
    detail = (
        f"{result['rows']:,} rows of {result['matrix'] / result['rows'] / 4:.0f} features: {extra / 1e9:.2f} of "
        f"{result['matrix'] / 1e9:.2f} GB, base {result['base'] / 1e6:.0f} MB; the whole stage of {ROUNDS} rounds took "
        f"{result['seconds'] / 60:.0f} minutes, {result['cpu'] / 60:.0f} of CPU"
    )
    sound = result["kind"] == "StoredRows"
    return [Row(LARGE, extra / result["matrix"], 0.35, command(LARGE), detail, sound=sound)]


@benchmark(SAME)
def compare_ways(bench: Bench) -> list[Row]:
    place = enlarge(bench, 1 if bench.quick else SAME_TIMES)
    models, measured = [], []
    for way, memory in WAYS.items():
        place.set(stage={"memory": memory})
        result = train(place, SAME_ROUNDS)
        models.append(hash_models(place))
        extra = (result["peak"] - result["base"]) / result["matrix"]
        measured.append(f"{way} {extra:.2f} of the matrix, {result['cpu']:.0f} s of CPU")
    differ = sum(len({made[name] for made in models}) > 1 for name in models[0])
    detail = f"{len(models[0])} models of {result['rows']:,} rows; most memory beyond the base: {'; '.join(measured)}"
    return [Row(SAME, float(differ), 0, command(SAME), detail, sound=len(models[0]) > 1)]


def enlarge(bench: Bench, times: int, **stage: Any) -> Checkout:
    """The year's features, each row so many times with numbers that differ a little."""
    place = bench.checkout(clock={"as_of": "2013-05-01" if bench.quick else YEAR}, stage=stage)
    for name in ("ingest", "clean", "features"):
        place.run(PROGRAMS[name])
    place.run("tests.benchmarks.out_of_core_timed", "enlarge", str(times))
    return place


def train(place: Checkout, rounds: int) -> dict[str, Any]:
    result: dict[str, Any] = place.run("tests.benchmarks.out_of_core_timed", "train", str(rounds)).output
    return result


def hash_models(place: Checkout) -> dict[str, str]:
    folder = place.root / "models"
    paths = sorted(folder.rglob("*.ubj"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def command(name: str) -> str:
    return f'.venv/bin/python -m tests.benchmarks "{name}"'
