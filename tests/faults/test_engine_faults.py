"""dvc.lock and every byte are the same in threads and in processes, also with what is killed at ten places."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import raw_params
from tests.faults import strikes
from tests.faults.spread_rest import CANDIDATES, FITS
from tests.faults.strikes import PLACES, Result, Victim
from tests.flows.conftest import DAYS, make_checkout

SOME = ("build_period", "fit_trial", "Maker.fit_plain")  # a scheduler and its workers take seconds to start again
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # many minutes: each kill is waited for


def settings() -> dict[str, Any]:
    """A table whose stages take seconds, with each kind of item that the engine has."""
    raw = raw_params("binary", DAYS)
    raw["split"] |= {"holdout": "7d", "fold": "4d", "folds": 2}
    raw["tune"] |= {"parallel": 2, "budget": "2h", "rows": 500, "rounds": 20, "finalists": 2, "halvings": 1}
    raw["evaluate"]["baselines"] = ["constant"]
    raw["stage"]["threads"] = 2
    return raw


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_checkout(folder, settings())
    return folder


def run_on(base: Path, cluster: str | None, victim: Victim | None = None, places: Sequence[str] = PLACES) -> Result:
    folder = base.parent / f"{base.name}-{victim or 'nobody'}"
    shutil.copytree(base, folder)
    return strikes.run(folder, cluster, victim=victim, places=places)


@pytest.fixture(scope="module")
def in_threads(base: Path) -> Result:
    return run_on(base, None)


@pytest.mark.parametrize(("cluster", "victim", "places"), [("local:2", "worker", PLACES), ("tcp", "scheduler", SOME)])
def test_kills_change_no_byte(
    base: Path, in_threads: Result, cluster: str, victim: Victim, places: Sequence[str]
) -> None:
    struck = run_on(base, cluster, victim, places)
    assert [strike.place for strike in struck.strikes] == list(places)
    assert struck.list_differences(in_threads) == []


def test_a_run_makes_what_is_compared(in_threads: Result) -> None:
    outs = [out["path"] for stage in yaml.safe_load(in_threads.lock)["stages"].values() for out in stage["outs"]]
    assert {"data/clean", "data/features", "models/tuned.json", "models/twin.ubj", "reports/metrics.json"} <= {*outs}
    assert sum(name.startswith("evidence/") and name.endswith("model.ubj") for name in in_threads.rest) == FITS
    assert (
        sum(name.startswith("shelf/") and name.endswith("models/model.ubj") for name in in_threads.rest) == CANDIDATES
    )
