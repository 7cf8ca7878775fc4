"""promotion.tracking: addresses, and a server that is away."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tasks import params
from tasks.promotion import tracking
from tasks.promotion.registry import Registry, open_registry


@pytest.mark.parametrize("listening", [False, True], ids=["a closed port", "a server that never answers"])
def test_a_silent_server_is_named_before_mlflow_waits_for_it(
    listening: bool, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mlflow's own client would ask it for minutes."""
    assert registry  # mlflow is imported
    monkeypatch.setattr("mlflow.MlflowClient", never)
    assert tracking.PROBE_TIMEOUT_S <= 10
    settings = params.Registry(model="m", experiment="e")
    with (
        taken_port(listening) as port,
        pytest.raises(ConnectionError, match=rf"MLflow server at http://127\.0\.0\.1:{port} does not answer"),
    ):
        open_registry(settings, uri=f"http://somebody:secret@127.0.0.1:{port}")


def never(*_: object) -> None:
    raise AssertionError("mlflow's client was asked")


def test_a_server_that_stops_answering_is_named(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with taken_port(listening=False) as port:
        uri = f"http://127.0.0.1:{port}"
        gone = replace(registry, tracking=replace(registry.tracking, client=MlflowClient(uri), uri=uri))
        for ask in (gone.find_champion, gone.read_ledger, lambda: gone.runs.find("r1"), lambda: gone.read_version(1)):
            with pytest.raises(ConnectionError, match="MLFLOW_TRACKING_URI"):
                ask()


@contextlib.contextmanager
def taken_port(listening: bool) -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if listening:
            taken.listen()
        yield taken.getsockname()[1]


def test_no_password_is_shown() -> None:
    assert tracking.hide_password("https://me:secret@mlflow.example/x") == "https://mlflow.example/x"
    assert tracking.hide_password("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_the_address_is_the_environments_or_the_homes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    assert tracking.find_address() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking.find_address() == "http://mlflow:5000"


def test_importing_the_registry_does_not_import_mlflow() -> None:
    code = "import sys; from tasks.promotion import registry; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_opening_turns_telemetry_off_and_leaves_what_was_set(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    open_registry(params.Registry(model="m", experiment="e"), uri=store)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"


def test_a_deleted_experiment_is_named(registry: Registry, store: str) -> None:
    registry.tracking.client.delete_experiment(registry.runs.experiment)
    with pytest.raises(ValueError, match="was deleted: restore it"):
        open_registry(params.Registry(model=registry.model, experiment=registry.model), uri=store)
