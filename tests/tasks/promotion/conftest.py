"""A model's registry on a real MLflow database, and what a run is made of."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks import params
from tasks.promotion import interval
from tasks.promotion.registry import Registry, open_registry
from tasks.promotion.runs import Bundle, Dataset
from tasks.training.model import Model, import_xgboost, make_spec
from tests.registries import place_tables
from tests.tasks.promotion.holdouts import Days

AS_OF = datetime(2013, 7, 1)
BETTER = {"outcome": "PROMOTE", "reasons": ["It is better."], "gain": 0.01}
FEATURES = ({"name": "size", "kind": "number"}, {"name": "store", "kind": "category"})
TRIALS = tuple(
    {"number": i, "state": "COMPLETE", "value": 1 / (i + 1), "params": {"eta": i / 10}, "rounds": 10} for i in range(5)
)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all. Each test has experiments and a model of its own."""
    return place_tables(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def registry(store: str, request: pytest.FixtureRequest) -> Registry:
    name = request.node.name
    return open_registry(params.Registry(model=name, experiment=name, top_trials=2), uri=store)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A trained model and everything else that a run holds."""
    folder = tmp_path_factory.mktemp("made")
    model, table = small_model()
    for name in ("model.ubj", "twin.ubj"):
        (folder / name).write_bytes(model.to_bytes())
    (folder / "files" / "reports").mkdir(parents=True)
    (folder / "files" / "dvc.lock").write_text("stages: {}\n")
    (folder / "files" / "reports" / "metrics.json").write_text("{}")
    return {
        "name": "2013-07-01 · 3f2a91c",
        "note": "A **run**.",
        "params": {f"tune.{i:03}": i for i in range(120)},  # more than one call takes
        "metrics": {"log_loss": 0.4},
        "counts": {"constant.log_loss": 0.5},
        "tags": {"evergreen.commit": "3f2a91c"},
        "datasets": [Dataset("features", "training", "dvc://data/features@abc", "a" * 32 + ".dir", 100, FEATURES)],
        "trials": [*TRIALS, {"number": 5, "state": "PRUNED", "value": None, "params": {"eta": 0.9}, "rounds": None}],
        "files": folder / "files",
        "bundle": Bundle(folder / "model.ubj", folder / "twin.ubj", FEATURES, table.slice(0, 3)),
    }


def small_model() -> tuple[Model, pa.Table]:
    rng = np.random.default_rng(0)
    table = pa.table({"size": rng.normal(size=90), "store": pa.array(rng.choice(["north", "south"], 90).tolist())})
    label = (rng.random(90) < 0.4).astype(float)
    spec = make_spec(table, label, task="binary")
    xgb = import_xgboost()
    data = xgb.QuantileDMatrix(spec.encode(table), label)
    return Model(xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 5), spec), table


@pytest.fixture(scope="module")
def more_replicates() -> Iterator[None]:
    """More than in the other tests, and fewer than the real gate takes: there are thousands of verdicts here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interval, "REPLICATES", 1000)
        yield


@pytest.fixture(scope="module")
def days() -> Days:
    return Days(np.random.default_rng(0))
