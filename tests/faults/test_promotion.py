"""A promotion, rollback or record that is killed at any write; processes that begin at once; a server that dies."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra import servers
from tasks import params
from tasks.promotion import changes, ledger
from tasks.promotion.registry import Registry, open_registry
from tasks.promotion.runs import Bundle
from tasks.training.model import Model, import_xgboost, make_spec
from tests.faults import forks
from tests.registries import place_tables
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

AS_OF = datetime(2013, 7, 1)
VERDICT = {"outcome": "PROMOTE", "reasons": ["It is better."]}
SETTINGS = params.Registry(model="m", experiment="e", top_trials=1)
WRITES = 13  # of a promotion, first to last: the three marks are three writes each
BACK_WRITES = 5  # of a rollback: a mark, the alias, a mark, and a mark is two writes


class Dying:
    """MLflow's client, which kills its process before it has done one write more than so many."""

    def __init__(self, client: Any, writes: int) -> None:
        self.client, self.left = client, writes

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        return self._counted(method) if name.startswith(("create_", "set_", "log_")) else method

    def _counted(self, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                forks.kill_this_process()
            self.left -= 1
            return method(*args, **kwargs)

        return call


def act(pipe: Connection, name: str, uri: str, writes: int, made: Path | None) -> None:
    """In a child: open the registry, wait for a word, then promote, go back or log a run, until so many writes."""
    known = open_registry(SETTINGS, uri=uri)
    known = replace(known, tracking=replace(known.tracking, client=Dying(known.tracking.client, writes)))
    pipe.send("ready")
    pipe.recv()
    if name == "log":
        assert made
        pipe.send(known.runs.log("r1", **everything(made)))
    else:
        pipe.send({"promote": promote, "rollback": back}[name](known).number)


@dataclass(frozen=True)
class Store:
    folder: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    def copy(self, target: Path) -> "Store":
        return Store(shutil.copytree(self.folder, target))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a run: a small model, and one artifact."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    table, label = pa.table({"size": rng.normal(size=60)}), (rng.random(60) < 0.5).astype(float)
    spec, xgb = make_spec(table, label, task="binary"), import_xgboost()
    data = xgb.QuantileDMatrix(spec.encode(table), label)
    model = Model(xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 2), spec)
    for name in ("model.ubj", "twin.ubj"):
        (folder / name).write_bytes(model.to_bytes())
    (folder / "files").mkdir()
    (folder / "files" / "dvc.lock").write_text("stages: {}\n")
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, made: Path) -> Store:
    """A store with one recorded run."""
    store = Store(tmp_path_factory.mktemp("recorded"))
    place_tables(store.folder)
    open_registry(SETTINGS, uri=store.uri).runs.log("r1", **everything(made))
    return store


def everything(made: Path) -> dict[str, Any]:
    features = ({"name": "size", "kind": "number"},)
    return {
        "name": "a run",
        "note": "",
        "params": {"a": 1},
        "metrics": {"log_loss": 0.4},
        "counts": {},
        "tags": {},
        "datasets": [],
        "trials": [{"number": 0, "state": "COMPLETE", "value": 0.4, "params": {"eta": 0.1}, "rounds": None}],
        "files": made / "files",
        "bundle": Bundle(made / "model.ubj", made / "twin.ubj", features, pa.table({"size": [0.5]})),
    }


def promote(known: Registry) -> Any:
    run_id = known.runs.find("r1")
    assert run_id
    return changes.promote(known, run_id, decision="d1", verdict=VERDICT, as_of=AS_OF, tags={})


def back(known: Registry) -> Any:
    return changes.rollback(known, decision="b1", as_of=AS_OF, reasons=["It was worse."])


@contextlib.contextmanager
def child(name: str, store: Store, writes: int, made: Path | None = None) -> Iterator[forks.Child]:
    """Another process, with its registry open, waiting for a word."""
    with forks.forked(act, name, store.uri, writes, made) as one:
        assert one.receive() == "ready"
        yield one


def end(one: forks.Child) -> int:
    """Let it act: its exit status."""
    one.pipe.send("go")
    return one.wait()


def whole(known: Registry) -> None:
    """One version, which is the champion; each mark once; nothing left running."""
    assert [version.number for version in known.list_versions()] == [1]
    assert known.find_champion() == known.read_version(1)
    runs = known.tracking.client.search_runs([known.ledger_experiment])
    assert sorted(run.data.tags["evergreen.mark"] for run in runs) == ["alias moved", "done", "intent"]
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.parametrize("writes", range(WRITES))
def test_a_promotion_that_is_killed_is_finished_by_the_next_start(writes: int, recorded: Store, tmp_path: Path) -> None:
    store = recorded.copy(tmp_path / "store")
    with child("promote", store, writes) as one:
        assert end(one) == -signal.SIGKILL
    known = open_registry(SETTINGS, uri=store.uri)
    began = bool(known.read_ledger())
    changes.finish_open(known)
    if began:
        whole(known)
    assert promote(known).number == 1  # and whoever asks again gets the same
    changes.finish_open(known)
    whole(known)


def test_a_promotion_has_that_many_writes(recorded: Store, tmp_path: Path) -> None:
    store = recorded.copy(tmp_path / "store")
    with child("promote", store, WRITES) as one:
        assert (end(one), one.receive()) == (0, 1)


def two_at_once(name: str, store: Store) -> list[int]:
    """The versions that two processes come to which set out together."""
    with child(name, store, 99) as one, child(name, store, 99) as two:
        for process in (one, two):
            process.pipe.send("go")
        return [process.receive() for process in (one, two)]


def test_one_decision_in_two_processes_is_one_version(recorded: Store, tmp_path: Path) -> None:
    store = recorded.copy(tmp_path / "store")
    assert two_at_once("promote", store) == [1, 1]
    whole(open_registry(SETTINGS, uri=store.uri))


# --- rollback


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, made: Path, recorded: Store) -> Store:
    """A store with two champions, one after the other."""
    store = recorded.copy(tmp_path_factory.mktemp("twice") / "store")
    known = open_registry(SETTINGS, uri=store.uri)
    promote(known)
    again(known, made, "r2", "d2")
    return store


def again(known: Registry, made: Path, record: str, decision: str) -> Any:
    run_id = known.runs.log(record, **everything(made))
    return changes.promote(known, run_id, decision=decision, verdict=VERDICT, as_of=AS_OF, tags={})


def gone_back(known: Registry) -> None:
    """Version 1 serves, version 2 was taken down once; nothing left open or running."""
    assert known.find_champion() == known.read_version(1)
    assert ledger.find_rolled_back(known.read_ledger()) == {2}
    runs = known.tracking.client.search_runs([known.ledger_experiment], "tags.`evergreen.decision` = 'b1'")
    assert sorted(run.data.tags["evergreen.mark"] for run in runs) == ["rollback", "rolled back"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert changes.finish_open(known) == []


def killed(store: Store, writes: int) -> Registry:
    """The registry after a rollback that was killed before this write."""
    with child("rollback", store, writes) as one:
        assert end(one) == -signal.SIGKILL
    return open_registry(SETTINGS, uri=store.uri)


@pytest.mark.parametrize("writes", range(BACK_WRITES))
def test_a_rollback_that_is_killed_is_finished_by_the_next_start(writes: int, twice: Store, tmp_path: Path) -> None:
    known = killed(twice.copy(tmp_path / "store"), writes)
    began = any(line.mark == "rollback" for line in known.read_ledger())
    changes.finish_open(known)
    if began:
        gone_back(known)
    assert back(known).number == 1  # and whoever asks again gets the same
    gone_back(known)


@pytest.mark.parametrize("writes", range(BACK_WRITES))
def test_a_promotion_after_a_rollback_that_was_killed_serves(
    writes: int, made: Path, twice: Store, tmp_path: Path
) -> None:
    known = killed(twice.copy(tmp_path / "store"), writes)
    moved = known.find_champion() == known.read_version(1)
    assert again(known, made, "r3", "d3").number == 3
    changes.finish_open(known)
    assert known.find_champion() == known.read_version(3)
    down = {2} if moved else set()  # what the new champion overtook was not done at all
    assert ledger.find_rolled_back(known.read_ledger()) == down
    assert changes.finish_open(known) == []


def test_a_rollback_has_that_many_writes(twice: Store, tmp_path: Path) -> None:
    with child("rollback", twice.copy(tmp_path / "store"), BACK_WRITES) as one:
        assert (end(one), one.receive()) == (0, 1)


def test_one_rollback_in_two_processes_goes_back_once(made: Path, twice: Store, tmp_path: Path) -> None:
    store = twice.copy(tmp_path / "store")
    again(open_registry(SETTINGS, uri=store.uri), made, "r3", "d3")
    assert two_at_once("rollback", store) == [2, 2]
    assert ledger.find_rolled_back(open_registry(SETTINGS, uri=store.uri).read_ledger()) == {3}


# --- a record


@pytest.mark.parametrize("writes", [1, 3, 6, 10])
def test_a_record_that_is_killed_is_absent_until_the_next_makes_it_whole(
    writes: int, made: Path, recorded: Store, tmp_path: Path
) -> None:
    store = recorded.copy(tmp_path / "store")
    known = open_registry(SETTINGS, uri=store.uri)
    whole_run = known.runs.find("r1")
    assert whole_run
    known.tracking.client.delete_run(whole_run)
    with child("log", store, writes, made) as one:
        assert end(one) == -signal.SIGKILL
    assert known.runs.find("r1") is None
    run_id = known.runs.log("r1", **everything(made))
    runs = known.tracking.client.search_runs([known.runs.experiment], "tags.`evergreen.record` = 'r1'")
    assert {run.info.run_id: run.info.status for run in runs if run.info.run_id == run_id} == {run_id: "FINISHED"}
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]


def test_processes_that_open_a_fresh_store_at_once_all_get_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "fresh")
    with contextlib.ExitStack() as stack:
        begun = [stack.enter_context(forks.forked(act, "promote", store.uri, 99, None)) for _ in range(3)]
        assert [one.receive() for one in begun] == ["ready"] * 3
    assert open_registry(SETTINGS, uri=store.uri).list_versions() == []


# --- a server ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real one: a worker, a database, and files that only it can write."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "up"),
    ]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (
        (tmp_path / "server.log").open("wb") as out,
        subprocess.Popen(
            command, env=os.environ | quiet, cwd=tmp_path, stdout=out, stderr=out, start_new_session=True
        ) as process,
    ):
        try:
            wait_until(servers.answers(f"http://127.0.0.1:{port}/health"), log=tmp_path / "server.log")
            yield f"http://127.0.0.1:{port}", process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.timeout(120)  # of its own accord mlflow asks a server that is gone for over four minutes
def test_all_of_it_works_through_a_server_and_its_death_is_named(
    server: tuple[str, subprocess.Popen[bytes]], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, process = server
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    known = open_registry(SETTINGS, uri=uri)
    run_id = known.runs.log("r1", **everything(made))
    assert known.runs.log("r1", **everything(made)) == run_id
    version = promote(known)
    whole(known)
    assert (
        known.runs.fetch(version.run_id, "model.ubj", tmp_path / "got").read_bytes()
        == (made / "model.ubj").read_bytes()
    )
    assert known.runs.fetch(version.run_id, "dvc.lock", tmp_path / "got").read_text() == "stages: {}\n"
    with pytest.raises(ValueError, match="has no artifact 'poem'"):
        known.runs.fetch(version.run_id, "poem", tmp_path / "got")
    with pytest.raises(ValueError, match="has no version 2"):
        known.read_version(2)
    assert known.tracking.find_link(run_id).startswith(f"{uri}/#/experiments/")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ConnectionError, match=f"{uri} does not answer"):
        known.find_champion()
