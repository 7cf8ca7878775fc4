"""features: against pandas on the real year, and how time and memory grow with the number of periods."""

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.benchmarks import made_flights
from tests.benchmarks.place import Bench, Checkout, Ran
from tests.benchmarks.row import Row, benchmark, row, seconds

PANDAS = "features: the SQL ÷ the same features in plain pandas"
TIME = "features: 10 × the periods ÷ 1 ×: time"
MEMORY = "features: 10 × the periods ÷ 1 ×: peak memory"
TOLERANCE = 1e-4


@benchmark(PANDAS)
def against_pandas(bench: Bench) -> list[Row]:
    """Both from clean Parquet to feature Parquet, imports left out. Ours has the leak probes and the periods in it."""
    place = bench.cleaned
    ours, theirs = [], []
    for _ in range(bench.times(5)):
        ours.append(build(place)["seconds"])
        theirs.append(plain(place))
    odd = differences(place.root / "data/features", place.root / "plain.parquet")
    whole = [each["seconds"] for each in theirs]
    detail = (
        f"from clean to feature Parquet, empty period cache, leak probes and all: {seconds(ours)}; pandas "
        f"{seconds(whole)}, {median(each['compute'] for each in theirs):.1f} s of it computing; "
        + (f"NOT EQUAL in {', '.join(odd)}" if odd else "every value equal")
    )
    return [row(PANDAS, over=ours, under=whole, bar=1.3, detail=detail, sound=not odd)]


def build(place: Checkout) -> Any:
    """features.build with an empty period cache → its seconds and its peak of memory."""
    place.empty_periods()
    return place.run("tests.benchmarks.stage_timed", "features").told


def plain(place: Checkout) -> Any:
    return place.run("tests.benchmarks.plain_features", "data/clean", "plain.parquet").told


def differences(ours: Path, theirs: Path) -> list[str]:
    """The features that are not the same in every row; NULL and NaN are the same."""
    left = pa.concat_tables([pq.read_table(path) for path in sorted(ours.glob("*.parquet"))])
    right = pq.read_table(theirs)
    made = [name for name in left.column_names if not name.startswith("_")]
    if left.num_rows != right.num_rows:
        return [f"the number of rows: {left.num_rows} and {right.num_rows}"]
    unknown = sorted({*made} ^ {*right.column_names})
    return unknown + [name for name in made if name not in unknown and not equal(left[name], right[name])]


def equal(left: Any, right: Any) -> bool:
    if pa.types.is_string(left.type):
        return bool(pc.fill_null(left, "").equals(pc.fill_null(right.cast(pa.string()), "")))
    one, other = (each.cast(pa.float64()).to_numpy() for each in (left, right))
    return bool(np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))


@benchmark(TIME, MEMORY)
def growth(bench: Bench) -> list[Row]:
    """Made flights, equally dense; one leak probe a period, since six for each would hide what a period costs."""
    rows, months = (2_000, 3) if bench.quick else (20_000, 3)
    many, few = (made(bench, months=each, rows=rows) for each in (10 * months, months))
    over, under = [], []
    for _ in range(bench.times(3)):
        over.append(build(many))
        under.append(build(few))
    return [grown(TIME, "seconds", over, under, bar=12), grown(MEMORY, "megabytes", over, under, bar=1.5)]


def made(bench: Bench, *, months: int, rows: int) -> Checkout:
    place = bench.checkout(features={"leak_probes": months})
    made_flights.of(place.root, months=months, rows=rows)
    return place


def grown(name: str, unit: str, over: list[Any], under: list[Any], *, bar: float) -> Row:
    large, small = ([each[unit] for each in found] for found in (over, under))
    detail = f"made flights, equally dense: {median(large):.1f} and {median(small):.1f} {unit}"
    return row(name, over=large, under=small, bar=bar, detail=detail)
