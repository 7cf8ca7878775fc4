"""tasks.promotion.record: one MLflow run for each state of dvc.lock, with all that leads back to the bytes."""

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tasks import params
from tasks.data.manifest import FeatureColumn, FeaturesManifest, RawManifest, RawTable
from tasks.params import Params
from tasks.promotion import record, registry
from tasks.promotion.registry import Registry
from tasks.runtime import code
from tests.programs import PROGRAMS
from tests.registries import place_tables

PROJECT = Path(__file__).parents[3]
STAGES = ("ingest", "clean", "features", "tune", "train", "evaluate")
LOCK: dict[str, Any] = {
    "schema": "2.0",
    "stages": {
        **{name: {"cmd": f"python -m {PROGRAMS[name]}", "outs": []} for name in STAGES},
        "record": {"cmd": "python -m tasks.promotion.record", "outs": [{"path": "reports/record.json", "md5": "0"}]},
    },
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return place_tables(tmp_path_factory.mktemp("record"))


@pytest.fixture
def in_store(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records go to the module's store; what the environment says of a flow's workspace is unsaid."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    for name in [name for name in os.environ if name.startswith("EVERGREEN_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest, in_store: None) -> Path:  # noqa: ARG001
    """A checkout after `dvc repro`, written by hand, with an experiment of its own."""
    raw = yaml.safe_load((PROJECT / "params.yaml").read_text())
    raw["registry"] |= {"model": request.node.name, "experiment": request.node.name}
    raw["sources"]["orders"] = {"address": "package://p/orders.csv"}
    raw["contract"]["orders"] = {"columns": {"size": {"type": "INTEGER"}, "email": {"type": "VARCHAR", "pii": True}}}
    raw["tune"]["space"] = {"eta": {"low": 0.04, "high": 0.25, "log": True}, "max_bin": {"choice": [64, 256]}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    shutil.copy(PROJECT / "dvc.yaml", tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "features.sql").write_text("SELECT 1\n")
    write_outputs(tmp_path)
    write_lock(tmp_path, with_outputs(tmp_path))
    return tmp_path


def write_outputs(folder: Path) -> None:
    orders = RawTable(
        address="package://p/orders.csv",
        fingerprint="f" * 64,
        rows=12,
        periods={"2013-06": 12},
        files=["orders.csv"],
        read=12,
        empty=0,
        later=0,
        lacking={},
    )
    as_of = datetime(2013, 7, 1)
    for path in ("data/raw", "data/features"):
        (folder / path).mkdir(parents=True)
    RawManifest(as_of=as_of, limit=as_of, pii_key_id="k1", tables={"orders": orders}).write(folder / "data" / "raw")
    FeaturesManifest(
        as_of=as_of,
        columns=[FeatureColumn(name="size", kind="number"), FeatureColumn(name="store", kind="category")],
        rows=10,
        labelled=9,
        begin="2013-01-01 00:00:00",
        end="2013-07-01 00:00:00",
    ).write(folder / "data" / "features")
    scores = {"log_loss": 0.41, "auc": 0.75}
    files: dict[str, Any] = {
        "models/tuned.json": tuned(),
        "reports/trials.json": {
            "format": "trials/1",
            "trials": [{"number": 0, "state": "COMPLETE", "value": 0.4, "params": {"eta": 0.1}, "rounds": 50}],
        },
        "reports/metrics.json": {**scores, "rows": 4, "constant.log_loss": 0.6},
        "reports/leaderboard.json": [{"model": "candidate", **scores}, {"model": "constant", "log_loss": 0.6}],
        "reports/slices.json": [],
        "reports/quality.json": {"tables": {"orders": {"rows": 12, "bad": 2, "by_rule": {}}}},
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    table = pa.table({"_label": [1.0, 0.0], "size": pa.array([3, None], pa.int32()), "store": ["north", None]})
    pq.write_table(table, folder / "data" / "features" / "2013-06.parquet")
    pq.write_table(table, folder / "reports" / "holdout.parquet")
    pq.write_table(table.select(["size", "store"]), folder / "reports" / "reference.parquet")
    for name in ("model.ubj", "twin.ubj"):
        (folder / "models" / name).write_bytes(b"a model")
    (folder / "models" / "twins").mkdir()


def tuned() -> dict[str, Any]:
    found = {"params": {"eta": 0.1}, "rounds": 50, "score": 0.4}
    return {**found, "trial": 0, "trials": 1, "pruned": 0, "ended_by": "trials"}


def with_outputs(folder: Path) -> dict[str, Any]:
    """LOCK, with the hashes of what lies in the folder."""
    lock = copy.deepcopy(LOCK)
    for stage, path in (("features", "data/features"), ("evaluate", "reports/holdout.parquet")):
        files = sorted((folder / path).rglob("*.parquet")) or [folder / path]
        md5 = hashlib.md5(b"".join(file.read_bytes() for file in files)).hexdigest()
        lock["stages"][stage]["outs"].append({"path": path, "md5": md5})
    return lock


def write_lock(folder: Path, lock: dict[str, Any]) -> None:
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))


def p_of(folder: Path) -> Params:
    return params.load(folder / "params.yaml")


def run_of(folder: Path, found: str) -> Any:
    known = opened(folder)
    run_id = known.runs.find(found)
    assert run_id
    return known.tracking.client.get_run(run_id)


def opened(folder: Path) -> Registry:
    return registry.open_registry(p_of(folder).registry)


# --- the hash


def test_the_hash_is_of_every_stage_before_record_and_nothing_else(folder: Path) -> None:
    before = record.hash_entries(record.read_entries(folder))
    lock = with_outputs(folder)
    write_lock(folder, {"stages": dict(reversed(lock["stages"].items())), "schema": "2.0"})
    assert record.hash_entries(record.read_entries(folder)) == before
    lock["stages"]["record"]["outs"] = []
    lock["stages"]["a stage of old"] = {}
    write_lock(folder, lock)
    assert record.hash_entries(record.read_entries(folder)) == before
    lock["stages"]["tune"]["params"] = {"params.yaml": {"tune.trials": 7}}
    write_lock(folder, lock)
    assert record.hash_entries(record.read_entries(folder)) != before


def test_without_a_lock_it_says_what_to_run(folder: Path) -> None:
    (folder / "dvc.lock").unlink()
    with pytest.raises(ValueError, match=r"dvc\.lock is missing.*`dvc repro`"):
        record.record(p_of(folder), folder)


def test_a_stage_that_was_not_run_is_named(folder: Path) -> None:
    lock = with_outputs(folder)
    del lock["stages"]["evaluate"]
    write_lock(folder, lock)
    with pytest.raises(ValueError, match="has no entry for evaluate: run `dvc repro`"):
        record.record(p_of(folder), folder)


def test_an_output_that_is_missing_is_named(folder: Path) -> None:
    (folder / "reports" / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"metrics\.json is missing: run `dvc repro`"):
        record.record(p_of(folder), folder)


def test_dvc_has_written_the_lock_of_the_stages_before_when_record_runs(tmp_path: Path) -> None:
    """Run, restored from the run-cache, or always run: the hash in the stage is the hash that the flow finds after."""
    show = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from tasks.promotion import record; "
    show += "from pathlib import Path; Path('record.txt').write_text(record.hash_entries(record.read_entries(Path())))"
    (tmp_path / "show.py").write_text(show)
    first = {"cmd": "cp given first.txt", "always_changed": True, "deps": ["given"], "outs": ["first.txt"]}
    second = {"cmd": "cp first.txt second.txt", "deps": ["first.txt"], "outs": ["second.txt"]}
    last = {"cmd": f"{sys.executable} show.py", "deps": ["given", "first.txt", "second.txt"], "outs": ["record.txt"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"first": first, "second": second, "record": last}}))
    dvc(tmp_path, "init", "--no-scm", "-q")
    seen = []
    for given in ("one", "two", "one"):  # the third is restored from the run-cache
        (tmp_path / "given").write_text(given)
        dvc(tmp_path, "repro", "-q")
        seen.append((tmp_path / "record.txt").read_text())
        assert seen[-1] == record.hash_entries(record.read_entries(tmp_path))
    assert seen[0] == seen[2] != seen[1]


def dvc(folder: Path, *args: str) -> None:
    quiet = {"DVC_NO_ANALYTICS": "1"}
    subprocess.run([sys.executable, "-m", "dvc", *args], cwd=folder, check=True, env=os.environ | quiet)


def test_the_record_stage_depends_on_everything_before_it() -> None:
    """Else DVC would skip it, or restore an old one, while the lock that its run is of has changed."""
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    last = stages.pop("record")
    outputs = {
        name_of(out)
        for stage in stages.values()
        for kind in ("outs", "metrics", "plots")
        for out in stage.get(kind, [])
    }
    read = {dep for stage in stages.values() for dep in stage["deps"]}
    covered = {dep for dep in read if any(dep.startswith(f"{out}/") for out in outputs)}
    assert sorted((outputs | read) - covered - set(last["deps"])) == []
    told = {param for stage in stages.values() for param in stage["params"]}
    assert sorted(param for param in told if not {param, param.split(".")[0]} & set(last["params"])) == []


def name_of(output: Any) -> str:
    return output if isinstance(output, str) else str(next(iter(output)))


# --- the run


def test_recording_twice_gives_one_run_and_the_same_bytes(folder: Path) -> None:
    found = record.record(p_of(folder), folder)
    target = folder / "reports" / "record.json"
    bytes_before, run_id = target.read_bytes(), run_of(folder, found).info.run_id
    assert json.loads(bytes_before) == {"record": found}
    assert record.record(p_of(folder), folder) == found
    assert (target.read_bytes(), run_of(folder, found).info.run_id) == (bytes_before, run_id)
    known = opened(folder)
    assert len(known.tracking.client.search_runs([known.runs.experiment], "tags.`evergreen.record` LIKE '%'")) == 1


def test_a_restored_result_is_recorded_by_whoever_asks_next(folder: Path) -> None:
    """DVC restores record.json where the run is not: the flow calls record again, and the file stays as it is."""
    found = record.hash_entries(record.read_entries(folder))
    (folder / "reports" / "record.json").write_text(f'{{"record":"{found}"}}')
    assert record.record(p_of(folder), folder) == found
    assert (folder / "reports" / "record.json").read_text() == f'{{"record":"{found}"}}'
    assert run_of(folder, found).info.status == "FINISHED"


def test_the_run_says_in_plain_names_what_came_out(folder: Path) -> None:
    data = run_of(folder, record.record(p_of(folder), folder)).data
    assert data.metrics["log_loss"] == 0.41
    assert data.metrics["constant.log_loss"] == 0.6
    assert (data.metrics["rows.read"], data.metrics["rows.quarantined"]) == (12, 2)
    assert data.params["best.eta"] == "0.1"
    assert data.params["label.task"] == "binary"
    assert data.params["tune.space"] == "eta 0.04 to 0.25 log; max_bin 64|256"
    assert not [name for name in data.params if name.startswith(("contract", "sources"))]
    assert "| candidate | 0.4100 | 0.7500 |" in data.tags["mlflow.note.content"]


def test_data_is_recorded_by_address_and_hash(folder: Path) -> None:
    run = run_of(folder, record.record(p_of(folder), folder))
    found = {
        each.dataset.name: (json.loads(each.dataset.source)["uri"], each.tags[0].value)
        for each in run.inputs.dataset_inputs
    }
    md5 = hashlib.md5((folder / "data" / "features" / "2013-06.parquet").read_bytes()).hexdigest()
    assert found["orders"] == ("package://p/orders.csv", "source")
    assert found["features"] == (f"dvc://data/features@{md5}", "training")
    assert found["holdout"][1] == "evaluation"


def test_the_artifacts_are_what_another_run_would_need(folder: Path, tmp_path: Path) -> None:
    known = opened(folder)
    run_id = known.runs.find(record.record(p_of(folder), folder))
    assert run_id
    for name in ("params.yaml", "dvc.lock", "tasks/features.sql", "reports/metrics.json", "models/tuned.json"):
        there = {"tasks/features.sql": "features.sql", "models/tuned.json": "reports/tuned.json"}.get(name, name)
        assert known.runs.fetch(run_id, there, tmp_path / "got").read_bytes() == (folder / name).read_bytes()
    assert known.runs.fetch(run_id, "model.ubj", tmp_path / "got").read_bytes() == b"a model"
    assert list(known.runs.fetch(run_id, "twins", tmp_path / "got").glob("*.ubj")) == []
    assert known.runs.fetch(run_id, "pictures/search.png", tmp_path / "got").stat().st_size > 1000


# --- where it came from


def test_the_flow_tells_the_lineage(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = tmp_path / "edits.patch"
    patch.write_bytes(b"+ a line\n")
    told = {"COMMIT": "3f2a91c" + "0" * 33, "DIRTY": "true", "DIFF": str(patch), "FLOW_RUN": "run-1"}
    for name, value in told.items():
        monkeypatch.setenv(f"EVERGREEN_{name}", value)
    (folder / "requirements.lock").write_text("numpy==2\n")
    known = opened(folder)
    run = run_of(folder, record.record(p_of(folder), folder))
    tags = run.data.tags
    assert run.info.run_name == "2013-07-01 · 3f2a91c+"
    assert (tags["evergreen.commit"], tags["evergreen.dirty"]) == (told["COMMIT"], "true")
    assert (tags["evergreen.flow_run"], tags["evergreen.pii_key_id"]) == ("run-1", "k1")
    assert tags["evergreen.environment"] == hashlib.sha256(b"numpy==2\n").hexdigest()
    assert (tags["evergreen.as_of"], tags["evergreen.data.rows"]) == ("2013-07-01T00:00:00", "10")
    assert known.runs.fetch(run.info.run_id, "uncommitted.patch", tmp_path / "got").read_bytes() == b"+ a line\n"


def test_a_checkout_asks_git(folder: Path, tmp_path: Path) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for args in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *args], cwd=folder, check=True)
    (folder / "tasks" / "features.sql").write_text("SELECT 2\n")
    run = run_of(folder, record.record(p_of(folder), folder))
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    assert run.data.tags["evergreen.commit"] == head.stdout.strip()
    assert run.data.tags["evergreen.dirty"] == "true"
    assert "+SELECT 2" in opened(folder).runs.fetch(run.info.run_id, "uncommitted.patch", tmp_path / "got").read_text()


def test_an_edit_of_the_same_size_in_the_second_of_the_commit_is_seen(folder: Path) -> None:
    """Git compares seconds, and reads a file anew where the index is no younger than it."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    edited, second = folder / "tasks" / "features.sql", (1_700_000_000, 1_700_000_000)
    os.utime(edited, second)
    for args in (
        ["init", "-q"],
        ["config", "core.trustctime", "false"],
        ["add", "."],
        [*identity, "commit", "-qm", "a"],
    ):
        subprocess.run(["git", *args], cwd=folder, check=True)
    edited.write_text("SELECT 2\n")
    for path in (edited, folder / ".git" / "index"):
        os.utime(path, second)
    assert b"+SELECT 2" in code.find_commit_and_patch(folder)[1]


def test_new_code_is_in_the_patch_and_a_lock_alone_makes_no_run_dirty(folder: Path, tmp_path: Path) -> None:
    """After `dvc repro`: what leads back to the code must do so without the flow, too."""
    (folder / "dvc.lock").rename(tmp_path / "lock")
    (folder / ".gitignore").write_text("/data/\n/models/\n/reports/\n/got/\n/lock\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for args in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *args], cwd=folder, check=True)
    (tmp_path / "lock").rename(folder / "dvc.lock")
    clean = run_of(folder, record.record(p_of(folder), folder))
    assert clean.data.tags["evergreen.dirty"] == "false"

    lock = with_outputs(folder)
    lock["stages"]["tune"]["params"] = {"params.yaml": {"tune.trials": 7}}
    write_lock(folder, lock)
    (folder / "tasks" / "extra.sql").write_text("SELECT 3\n")
    edited = run_of(folder, record.record(p_of(folder), folder))
    assert edited.data.tags["evergreen.dirty"] == "true"
    patch = opened(folder).runs.fetch(edited.info.run_id, "uncommitted.patch", tmp_path / "got").read_text()
    assert "+SELECT 3" in patch
    assert "dvc.lock" not in patch


def test_without_git_the_commit_is_unknown(folder: Path) -> None:
    found = record.record(p_of(folder), folder)
    run = run_of(folder, found)
    assert run.data.tags["evergreen.commit"] == "unknown"
    assert run.info.run_name == f"2013-07-01 · {found[:7]}"


# --- after the real stages


def test_what_the_stages_really_write_is_recorded(
    make_world: Callable[..., Any], store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = make_world("multiclass", days=45, per_day=60)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    p = made.run(*STAGES)
    shutil.copy(PROJECT / "dvc.yaml", made.folder)
    write_lock(made.folder, with_outputs(made.folder))
    known = registry.open_registry(p.registry)
    run_id = known.runs.find(record.record(p, made.folder))
    assert run_id
    data = known.tracking.client.get_run(run_id).data
    assert data.metrics["log_loss"] < data.metrics["constant.log_loss"]
    pictures = known.runs.fetch(run_id, "pictures", tmp_path / "got")
    assert {path.stem for path in pictures.iterdir()} >= {"search", "roc", "calibration", "importance"}
    assert len(list(known.runs.fetch(run_id, "twins", tmp_path / "got").glob("*.ubj"))) == p.train.seeds - 1
