"""Retrain and score when MLflow goes away between their stages and the registry, and comes back."""

import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flows import retrain as flow
from flows import score as scoring
from tasks import params
from tasks.promotion import registry
from tests.conftest import KEY
from tests.faults.conftest import Server
from tests.flows.conftest import made_once as made_once
from tests.flows.conftest import make_checkout, project_params

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600), pytest.mark.usefixtures("prefect_server")]
LATER = datetime(2024, 3, 8)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, server: Server, made_once: Path) -> Iterator[Path]:
    """What its stages make is in the cache: here they are over when the server goes away."""
    folder = tmp_path_factory.mktemp("checkout")
    make_checkout(folder, project_params())
    shutil.copytree(made_once / "checkout" / ".dvc" / "cache", folder / ".dvc" / "cache")
    shutil.copytree(made_once / "home" / "periods", folder / ".evergreen" / "periods")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EVERGREEN_HOME", str(folder / ".evergreen"))
        patch.setenv("EVERGREEN_PII_KEY", KEY)
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        yield folder


def away_before(task: Any, server: Server, threads: list[threading.Timer]) -> Callable[..., Any]:
    """The same task, on a server that has just gone and comes back in a few seconds."""

    def call(*args: Any, **kwargs: Any) -> Any:
        server.stop()
        threads.append(threading.Timer(4, server.start))
        threads[-1].start()
        return task(*args, **kwargs)

    return call


@pytest.mark.parametrize("name", ["record_run", "close_same", "judge_candidate", "carry_out"])
def test_a_retrain_whose_server_goes_away_after_the_stages_has_its_verdict(
    name: str, checkout: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checkout.exists()
    threads: list[threading.Timer] = []
    if name in ("judge_candidate", "carry_out"):  # nothing has changed, and the gate is asked all the same
        monkeypatch.setattr(flow, "close_same", lambda *_: None)
    monkeypatch.setattr(flow, name, away_before(getattr(flow, name), server, threads))
    done = flow.retrain(decision=f"away before {name}")
    threads[0].join()
    assert done
    known = registry.open_registry(params.load().registry)
    marks = [line.mark for line in known.read_ledger() if line.decision == f"away before {name}"]
    assert marks == (["intent", "alias moved", "done"] if done.version else ["verdict"])


def test_a_score_whose_server_goes_away_predicts_all_the_same(
    checkout: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checkout.exists()
    threads: list[threading.Timer] = []
    monkeypatch.setattr(scoring, "journal_predictions", away_before(scoring.journal_predictions, server, threads))
    done = scoring.score(as_of=LATER)
    threads[0].join()
    assert done.version == 1
    assert done.predictions > 0


def test_a_server_that_lost_the_experiments_is_no_empty_registry(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    settings = params.Registry(model="lost", experiment="lost")
    known = registry.open_registry(settings, uri=server.uri)
    registry.open_registry(settings, uri=server.uri)
    known.tracking.client.rename_experiment(known.ledger_experiment, "elsewhere")
    with pytest.raises(ValueError, match=rf"registry at {server.uri} holds them no more, but .* lost, lost-ledger"):
        registry.open_registry(settings, uri=server.uri)
    (tmp_path / "registry.json").unlink()
    assert registry.open_registry(settings, uri=server.uri).read_ledger() == []
