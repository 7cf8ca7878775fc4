"""A registry and a journal for each test of champions, predecessors and challengers."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks import params
from tasks.promotion import registry
from tasks.serving.journal import Journal
from tasks.serving.journal_log import LocalLogs
from tests.registries import place_tables

if TYPE_CHECKING:
    from tests.tasks.monitoring.test_predecessor import Shop


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all. Each test has an experiment and a model of its own."""
    return place_tables(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def shop(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> "Shop":
    from tests.tasks.monitoring.test_predecessor import Shop  # it trains models, which other tests of the folder spare

    name = request.node.name
    known = registry.open_registry(params.Registry(model=name, experiment=name, top_trials=0), uri=store)
    return Shop(known, Journal(LocalLogs(tmp_path / "logs"), str(tmp_path / "parquet")), tmp_path)
