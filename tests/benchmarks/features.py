"""features: against pandas on the real year, and how time and memory grow with the number of periods."""

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.benchmarks import made_flights
from tests.benchmarks.place import Bench, Checkout
from tests.benchmarks.row import Row, benchmark, row, seconds

PANDAS = "features: the SQL ÷ the same features in plain pandas"
TIME = "features: 10 × the periods ÷ 1 ×: time"
MEMORY = "features: 10 × the periods ÷ 1 ×: peak memory"
TOLERANCE = 1e-4


@benchmark(PANDAS)
def against_pandas(bench: Bench) -> list[Row]:
    """The SQL and pandas do the same work here: clean Parquet → feature Parquet, the year at once, imports left out.

    What the stage adds (periods with their look-backs, the checks for leaks, the cache) is in the detail.
    """
    place = bench.cleaned
    stage, sql, pandas = [], [], []
    for _ in range(bench.times(5)):
        stage.append(build(place)["seconds"])
        sql.append(place.run("tests.benchmarks.stage_timed", "sql").output["seconds"])
        pandas.append(place.run("tests.benchmarks.plain_features", "data/clean", "plain.parquet").output["seconds"])
    odd = [name for made in ("sql.parquet", "data/features") for name in differences(place.root, made, "plain.parquet")]
    detail = (
        f"from clean to feature Parquet, the year at once: {seconds(sql)}; pandas {seconds(pandas)}; "
        + (f"NOT EQUAL in {', '.join(dict.fromkeys(odd))}" if odd else "every value equal")
        + f"; the stage, by period and with its checks: {seconds(stage)}, {median(stage) / median(pandas):.2f} × pandas"
    )
    return [row(PANDAS, over=sql, under=pandas, bar=1.3, detail=detail, sound=not odd)]


def build(place: Checkout) -> Any:
    """features.build with an empty period cache → its seconds and its peak of memory."""
    place.empty_periods()
    return place.run("tests.benchmarks.stage_timed", "features").output


def differences(root: Path, ours: str, theirs: str) -> list[str]:
    """The features that are not the same in every row; NULL and NaN are the same."""
    left, right = pq.read_table(root / ours), pq.read_table(root / theirs)
    made = [name for name in left.column_names if not name.startswith("_")]
    if left.num_rows != right.num_rows:
        return [f"the number of rows: {left.num_rows} and {right.num_rows}"]
    unknown = sorted({*made} ^ {*right.column_names})
    return unknown + [name for name in made if name not in unknown and not equal(left[name], right[name])]


def equal(left: Any, right: Any) -> bool:
    if pa.types.is_string(left.type):
        return bool(pc.fill_null(left, "").equals(pc.fill_null(right.cast(pa.string()), "")))
    one, other = (item.cast(pa.float64()).to_numpy() for item in (left, right))
    return bool(np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))


@benchmark(TIME, MEMORY)
def growth(bench: Bench) -> list[Row]:
    """Made flights, equally dense. Without the leak probes: so many for each would hide what a period costs."""
    rows, months = (2_000, 3) if bench.quick else (20_000, 3)
    many, few = (made(bench, months=one, rows=rows) for one in (10 * months, months))
    over, under = [], []
    for _ in range(bench.times(3)):
        over.append(build(many))
        under.append(build(few))
    return [grown(TIME, "seconds", over, under, bar=12), grown(MEMORY, "megabytes", over, under, bar=1.5)]


def made(bench: Bench, *, months: int, rows: int) -> Checkout:
    place = bench.checkout(features={"leak_probes": 0})
    made_flights.of(place.root, months=months, rows=rows)
    return place


def grown(name: str, unit: str, over: list[Any], under: list[Any], *, bar: float) -> Row:
    large, small = ([one[unit] for one in runs] for runs in (over, under))
    detail = f"made flights, equally dense: {median(large):.1f} and {median(small):.1f} {unit}"
    return row(name, over=large, under=small, bar=bar, detail=detail)
