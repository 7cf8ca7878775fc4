"""A small made world for tests: a project folder with sources, params.yaml and features.sql, and nothing outside it.

`made` is that world; `make_world(task=..., days=..., ...)` makes others. Orders (timed, late outcomes, a person's
address) are joined with traffic (timed) and customers (static). The rows come from one seed: the same call gives the
same bytes.
"""

import copy
import functools
import gc
import importlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pytest
import yaml
from hypothesis import settings

from infra import postgres, s3
from tasks import params
from tasks.params import Params
from tasks.promotion import interval
from tasks.runtime import locks, store
from tests import servers
from tests.programs import PROGRAMS

# The same command gives the same result, on a busy machine too.
settings.register_profile("evergreen", derandomize=True, database=None, deadline=None)
settings.load_profile("evergreen")

Task = Literal["binary", "multiclass", "regression"]
BEGIN = datetime(2024, 1, 1)
KEY = "a key for the tests"
STAGES = ("ingest", "clean", "features", "tune", "train", "evaluate", "record")
STORES = ("north", "south", "west")
LABELS: dict[Task, str] = {
    "binary": "delay >= 30",
    "multiclass": "CASE WHEN delay < 20 THEN 'early' WHEN delay < 40 THEN 'fair' ELSE 'late' END",
    "regression": "delay",
}

FEATURES_SQL = """\
WITH asked AS (
    SELECT *, event_time - getvariable('lead') AS asked_at FROM spine
),
timeline AS (
    SELECT NULL AS row_id, known_at AS moment, store, delay FROM orders WHERE delay IS NOT NULL
    UNION ALL
    SELECT row_id, asked_at, store, NULL FROM asked
),
recent AS (
    SELECT row_id,
        sum(delay) OVER day / count(delay) OVER day AS store_delay_1d,
        count(delay) OVER day AS store_orders_1d
    FROM timeline
    WINDOW day AS (PARTITION BY store ORDER BY moment RANGE BETWEEN INTERVAL 1 DAY PRECEDING AND CURRENT ROW)
),
roads AS (
    SELECT row_id, jam FROM asked ASOF JOIN traffic ON asked.store = traffic.store AND asked_at >= traffic.known_at
)
SELECT asked.row_id, asked.store, asked.amount, asked.distance, hour(asked.event_time) AS hour,
    customers.segment, customers.age, roads.jam, recent.store_delay_1d, recent.store_orders_1d
FROM asked
JOIN recent ON recent.row_id = asked.row_id
LEFT JOIN roads ON roads.row_id = asked.row_id
LEFT JOIN customers ON customers.email = asked.email
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that the last that one of xdist's workers begins is a short one."""
    items.sort(key=_turn)


# The first takes nothing from what is made once for all flows, which the second begins to make meanwhile.
LONG = (
    "test_retrain",
    "test_worker_faults",
    "test_loop",
    "test_plan",
    "test_network_faults",
    "test_plain_server",
    "test_monitor_faults",
)


def _turn(item: pytest.Item) -> int:
    """The longest by name, then what needs a Prefect server, a notebook, or processes of its own, then the rest."""
    if item.path.stem in LONG:
        return LONG.index(item.path.stem)
    long = item.path.stem == "test_notebooks" or item.path.parent.name in ("flows", "faults", "serving")
    return len(LONG) if long else len(LONG) + 1


def pytest_sessionfinish() -> None:
    """DuckDB's binding complains at exit of connections that the collector has not come round to yet."""
    gc.collect()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    with servers.open_folder() as folder, servers.run_postgres(folder) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres_server: postgres.Server) -> str:
    """postgresql://user:password@127.0.0.1:port/evergreen"""
    return postgres_server.url("evergreen")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[s3.Server]:
    with servers.open_folder() as folder, servers.run_s3(folder) as server:
        yield server


@pytest.fixture
def s3_store(s3_server: s3.Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """s3://evergreen/…, a place of this test's own; the environment leads boto3 there."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    store._connect.cache_clear()
    return f"s3://{servers.BUCKET}/{uuid4().hex}"


@dataclass(frozen=True)
class Made:
    """A made project: `folder` holds params.yaml, tasks/features.sql and source/; `raw` is what params.yaml says."""

    folder: Path
    raw: dict[str, Any]
    monkeypatch: pytest.MonkeyPatch

    def params(self, **overrides: Any) -> Params:
        """Its params; `made.params(**{"tune.trials": 3})` with another value, which goes into params.yaml too."""
        raw = copy.deepcopy(self.raw)
        for name, value in overrides.items():
            *sections, key = name.split(".")
            inner = raw
            for section in sections:
                inner = inner[section]
            inner[key] = value
        write_params(raw, self.folder)
        return params.load(self.folder / "params.yaml")

    def run(self, *stages: str, p: Params | None = None) -> Params:
        """Run stage functions in its folder, in the order given, with `p` or what its params say now."""
        p = p or params.load(self.folder / "params.yaml")
        self.monkeypatch.chdir(self.folder)
        for name in stages:
            getattr(importlib.import_module(PROGRAMS[name]), name)(p)
        return p


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes: two equal trees hold the same."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_params(raw: dict[str, Any], folder: Path) -> Path:
    """Write params.yaml into a folder."""
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


@pytest.fixture(autouse=True, scope="session")
def few_replicates() -> Iterator[None]:
    """Made worlds are small: with as many replicates as the real gate takes, its deepest tails hold back nearly all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interval, "REPLICATES", 500)
        yield


@pytest.fixture
def make_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Made]:
    """make_world(task="binary", days=60, per_day=80, seed=0, folder="world") → Made, with a home of its own."""
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "periods"))
    monkeypatch.setenv("EVERGREEN_PII_KEY", KEY)

    def make(task: Task = "binary", *, days: int = 60, per_day: int = 80, seed: int = 0, folder: str = "world") -> Made:
        made = Made(tmp_path / folder, raw_params(task, days), monkeypatch)
        (made.folder / "tasks").mkdir(parents=True)
        (made.folder / "tasks" / "features.sql").write_text(FEATURES_SQL)
        write_sources(made.folder / "source", days=days, per_day=per_day, seed=seed)
        write_params(made.raw, made.folder)
        return made

    return make


@pytest.fixture
def made(make_world: Callable[..., Made]) -> Made:
    """Sixty days of orders, a binary label, a working folder of its own."""
    return make_world()


@pytest.fixture(autouse=True)
def no_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """One test's store that does not answer is not another's."""
    monkeypatch.setattr(store, "_away_until", -math.inf)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server (moto's) with the bucket evergreen, and made credentials for it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "made")
        patch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        address = f"http://{host}:{port}"
        location = {"LocationConstraint": "eu-central-1"}
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="evergreen", CreateBucketConfiguration=location)
        yield address
    server.stop()


@pytest.fixture
def bucket(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty place in a bucket, which boto3 finds by the variables."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    store._connect.cache_clear()
    return f"s3://evergreen/{tmp_path.name}"


@pytest.fixture(params=["folder", "s3"])
def shared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> store.Store:
    """The store that EVERGREEN_STORE names: a folder, and a bucket on an S3 server."""
    address = request.getfixturevalue("bucket") if request.param == "s3" else str(tmp_path / "store")
    monkeypatch.setenv(store.VARIABLE, address)
    return store.open_store(address)


@pytest.fixture
def team(shared: store.Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> store.Store:
    """The store of a team, and what its locks need."""
    if isinstance(shared, store.S3Store):
        monkeypatch.setenv(locks.VARIABLE, request.getfixturevalue("postgres_url"))
    return shared


def write_sources(folder: Path, *, days: int, per_day: int, seed: int = 0) -> None:
    """orders.csv, traffic.parquet and customers.csv: a delay depends on the store's jam, the distance and the hour."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _draw_sources(days, per_day, seed).items():
        (folder / name).write_bytes(content)


@functools.cache
def _draw_sources(days: int, per_day: int, seed: int) -> dict[str, bytes]:
    """The files by name. Many tests have the same, and to draw them takes as long as a stage."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    people = [f"person{i}@example.org" for i in range(200)]
    segments, ages = rng.choice(["new", "loyal", "trade"], len(people)), rng.integers(18, 90, len(people))
    hours = [BEGIN + timedelta(hours=hour) for hour in range(24 * days)]
    jams = {store: _walk(rng, len(hours)) for store in STORES}
    rows = [(store, at, round(float(jams[store][i]), 3)) for i, at in enumerate(hours) for store in STORES]
    names, traffic = ("store", "measured_at", "jam"), io.BytesIO()
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), traffic)
    return {
        "customers.csv": _csv(["email,segment,age", *map(_line, people, segments, ages)]),
        "traffic.parquet": traffic.getvalue(),
        "orders.csv": _csv([_ORDERS, *_orders(rng, days, per_day, people, jams)]),
    }


_ORDERS = "number,placed,email,store,amount,distance,delay"


def _orders(
    rng: np.random.Generator, days: int, per_day: int, people: list[str], jams: dict[str, np.ndarray]
) -> list[str]:
    minutes = np.sort(rng.integers(0, days * 1440, days * per_day))
    lines = []
    for number, minute in enumerate(minutes.tolist()):
        store, distance = STORES[rng.integers(3)], round(float(rng.uniform(0.5, 12)), 1)
        delay = int(max(0, rng.normal(_mean_delay(store, minute, distance, jams[store][minute // 60]), 6)))
        shown = "NA" if rng.random() < 0.03 else delay  # an order that is never delivered
        placed = BEGIN + timedelta(minutes=minute)
        amount = round(float(rng.lognormal(3, 0.6)), 2)
        lines.append(_line(number, placed, rng.choice(people), store, amount, distance, shown))
    return lines


def _mean_delay(store: str, minute: int, distance: float, jam: float) -> float:
    """Full of steps and crossings, so that trees beat a straight line."""
    rush = 16 <= minute // 60 % 24 < 20 and store != "north"
    far = distance > 7 if store == "south" else distance < 3
    return 12 + 12 * (jam > 1) + 12 * rush + 12 * far + (12 if far and rush else 0)


def _walk(rng: np.random.Generator, steps: int) -> np.ndarray:
    """A slow walk between 0 and 2: what was so an hour ago is nearly so now."""
    level, levels = 1.0, np.empty(steps)
    for i, push in enumerate(rng.normal(0, 0.15, steps)):
        level = min(max(level + push + 0.02 * (1 - level), 0.0), 2.0)
        levels[i] = level
    return levels


def _line(*values: Any) -> str:
    return ",".join(str(value) for value in values)


def _csv(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def raw_params(task: Task, days: int) -> dict[str, Any]:
    """params.yaml of the made world. Small enough for a test: every stage takes a second or so."""
    return {
        "clock": {"as_of": (BEGIN + timedelta(days=days)).isoformat()},
        "sources": {
            "customers": {"address": "source/customers.csv"},
            "traffic": {"address": "source/traffic.parquet", "event_time": "measured_at"},
            "orders": {
                "address": "source/orders.csv",
                "nulls": ["NA"],
                "event_time": "placed",
                "known_at": "CASE WHEN delay IS NOT NULL THEN placed + to_minutes(60 + delay) END",
            },
        },
        "contract": {
            "customers": {
                "key": ["email"],
                "columns": {
                    "email": {"type": "VARCHAR", "required": True, "pii": True},
                    "segment": {"type": "VARCHAR", "allowed": ["new", "loyal", "trade"]},
                    "age": {"type": "INTEGER", "min": 0, "max": 130},
                },
            },
            "traffic": {
                "key": ["store", "measured_at"],
                "columns": {
                    "store": {"type": "VARCHAR", "required": True},
                    "measured_at": {"type": "TIMESTAMP", "required": True},
                    "jam": {"type": "DOUBLE", "min": 0, "max": 2},
                },
            },
            "orders": {
                "key": ["number"],
                "columns": {
                    "number": {"type": "INTEGER", "required": True},
                    "placed": {"type": "TIMESTAMP", "required": True},
                    "email": {"type": "VARCHAR", "pii": True, "references": "customers.email"},
                    "store": {"type": "VARCHAR", "required": True, "allowed": list(STORES)},
                    "amount": {"type": "DOUBLE", "min": 0},
                    "distance": {"type": "DOUBLE", "min": 0, "max": 100},
                    "delay": {"type": "INTEGER", "min": 0, "max": 1000, "outcome": True},
                },
            },
        },
        "ingest": {"period": "month", "pii_key_id": None},
        "clean": {"max_bad_share": 0.02},
        "spine": {"table": "orders", "columns": ["number", "email", "store", "amount", "distance"]},
        "label": {"task": task, "expression": LABELS[task], "deadline": "1d"},
        "features": {"lead": "1h", "lookback": "3d", "leak_probes": 1},
        "split": {"holdout": "14d", "folds": 2, "fold": "7d", "window": None},
        "tune": {
            "trials": 4,
            "budget": "30s",
            "rounds": 60,
            "patience": 8,
            "seed": 7,
            "space": {
                "max_depth": {"low": 2, "high": 5, "integer": True},
                "eta": {"low": 0.1, "high": 0.4, "log": True},
                "class_weight": {"low": 0.0, "high": 0.2},
                "max_bin": {"choice": [32, 64]},
            },
        },
        "train": {
            "refit": True,
            "seeds": 2,
            "calibration": "sigmoid",
            "categories": "coded",
            "device": "cpu",
            "offset": None,
            "undersample": None,
        },
        "evaluate": {
            "costs": {"false_positive": 1, "false_negative": 2},
            "slices": ["store"],
            "slice_rows": 50,
            "baselines": ["constant", "linear", "forest"],
        },
        "gate": {
            "metric": "rmse" if task == "regression" else "log_loss",
            "min_rows": 300,
            "min_blocks": 7,
            "slice_tolerance": 0.5 if task == "regression" else 0.05,
        },
        "registry": {"model": "made", "experiment": "made", "top_trials": 2},
        "monitor": {"window": "7d"},
        "drift": {"false_alarms": 0.25},
        "stage": {"threads": 1, "memory": "1GB", "limits": dict.fromkeys(STAGES, "5m")},
        "paths": {
            "raw": "data/raw",
            "clean": "data/clean",
            "quarantine": "data/quarantine",
            "features": "data/features",
            "models": "models",
            "reports": "reports",
        },
    }
