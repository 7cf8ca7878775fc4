"""tasks.runtime.remote: what one machine has made, another takes from the DVC remote."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.runtime import pipeline, project, remote, store
from tasks.runtime.pipeline import run_stage
from tasks.runtime.remote import RemoteFailed
from tasks.runtime.workspaces import Workspace, open_workspace
from tests.tasks.runtime.conftest import ORDER, commit, content, dvc, git, objects, run_all

CLOSED = "http://127.0.0.1:9"


@pytest.fixture
def shared_checkout(checkout: Path, tmp_path: Path) -> Path:
    """A checkout whose default remote is a folder."""
    dvc(checkout, "remote", "add", "-d", "storage", str(tmp_path / "storage"))
    commit(checkout)
    return checkout


@pytest.fixture
def s3_checkout(checkout: Path, tmp_path: Path, s3: str) -> Path:
    """A checkout whose default remote is a bucket."""
    dvc(checkout, "remote", "add", "-d", "storage", f"s3://evergreen/{tmp_path.name}")
    dvc(checkout, "remote", "modify", "storage", "endpointurl", s3)
    commit(checkout)
    return checkout


@pytest.fixture
def store_checkout(checkout: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout without a remote, where the machines share a store."""
    monkeypatch.setenv(store.VARIABLE, bucket)
    return checkout


def run_and_push(space: Workspace) -> None:
    for name in ORDER:
        run_stage(space.root, name, env=space.env, on_line=lambda _: None)
        remote.push_outputs(space.root, name)


def clone(checkout: Path, target: Path) -> Path:
    """Another machine: the code, an empty cache and an empty home."""
    git(checkout, "clone", "-q", str(checkout), str(target))
    return target


@pytest.mark.parametrize("kind", ["shared_checkout", "s3_checkout", "store_checkout"])
def test_a_machine_with_an_empty_disk_takes_what_another_has_made(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    shared_checkout: Path = request.getfixturevalue(kind)
    with open_workspace(shared_checkout) as space:
        run_and_push(space)
        made = {name: content(space.root / name) for name in ("data", "models", "reports")}
        lock = pipeline.read_lock(space.root)
    with open_workspace(clone(shared_checkout, tmp_path / "other")) as space:
        assert run_all(space) == ["ran", "cached", "cached"]  # ingest alone is always run
        assert {name: content(space.root / name) for name in made} == made
        assert pipeline.read_lock(space.root) == lock
        assert remote.push_outputs(space.root) == 0  # all of it is there


def test_a_machine_takes_no_more_than_its_stage_needs(shared_checkout: Path, tmp_path: Path) -> None:
    for as_of in ("2013-06-01", "2013-06-08", "2013-07-01"):
        with open_workspace(shared_checkout, overrides={"clock.as_of": as_of}) as space:
            run_and_push(space)
    other = clone(shared_checkout, tmp_path / "other")
    with open_workspace(other) as space:
        run_stage(space.root, "ingest", env=space.env)
        before = objects(other)
        assert run_stage(space.root, "train", env=space.env).status == "cached"
        model = {(space.root / name).read_bytes() for name in ("models/model.txt", "reports/metrics.json")}
    came = objects(other) - before
    assert {path.read_bytes() for path in came if "files" in path.parts} == model
    assert sum("runs" in path.parts for path in came) == 1


def test_what_the_remote_has_is_not_sent_again(shared_checkout: Path) -> None:
    with open_workspace(shared_checkout) as space:
        run_all(space)
        assert remote.push_outputs(space.root) > 5
        assert remote.push_outputs(space.root) == 0


PUSHER = """
import os, signal, sys
from dvc_objects.fs import generic
from pathlib import Path
from tasks.runtime import remote
step, left = sys.argv[2], int(sys.argv[3])
holder = {"note": (generic, "copy"), "outputs": (remote, "_find_notes")}[step]
whole = getattr(*holder)
def dying(*args, **more):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args, **more)
setattr(*holder, dying)
remote.push_outputs(Path(sys.argv[1]))
"""


@pytest.mark.parametrize(("step", "call"), [("outputs", 1), ("note", 1), ("note", 2)])
def test_a_push_that_is_killed_between_outputs_and_notes_is_finished_by_the_next(
    step: str, call: int, shared_checkout: Path, tmp_path: Path
) -> None:
    """Outputs go first: a note in the remote never names what is not there."""
    root = Path(__file__).parents[3]
    with open_workspace(shared_checkout) as space:
        run_all(space)
        made = {name: content(space.root / name) for name in ("models", "reports")}
        command = [sys.executable, "-c", PUSHER, str(space.root), step, str(call)]
        killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with open_workspace(clone(shared_checkout, tmp_path / "between")) as other:
            assert "ran" in run_all(other)[1:]
            assert {name: content(other.root / name) for name in made} == made
        assert remote.push_outputs(space.root) > 0  # the notes that are missing
    with open_workspace(clone(shared_checkout, tmp_path / "after")) as other:
        assert run_all(other)[1:] == ["cached", "cached"]
        assert {name: content(other.root / name) for name in made} == made


def test_a_fresh_workspace_takes_nothing_from_the_remote(shared_checkout: Path) -> None:
    with open_workspace(shared_checkout) as space:
        run_and_push(space)
    with open_workspace(shared_checkout, fresh=True) as space:
        assert project.find_remote(space.root) is None
        assert run_all(space) == ["ran", "ran", "ran"]


def test_a_damaged_file_of_the_remote_is_not_taken(shared_checkout: Path, tmp_path: Path) -> None:
    with open_workspace(shared_checkout) as space:
        run_and_push(space)
        made = content(space.root / "models")
    for path in (tmp_path / "storage" / "files").rglob("*"):
        if path.is_file() and path.read_bytes() == made["model.txt"]:
            path.chmod(0o644)
            path.write_bytes(b"other bytes")
    other = clone(shared_checkout, tmp_path / "other")
    with open_workspace(other) as space:
        assert run_all(space)[:2] == ["ran", "ran"]
        assert content(space.root / "models") == made


def test_where_the_remote_is_away_stages_run_and_a_push_names_it(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "made")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "made")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    dvc(checkout, "remote", "add", "-d", "storage", "s3://evergreen/away")
    dvc(checkout, "remote", "modify", "storage", "endpointurl", CLOSED)
    with open_workspace(checkout) as space:
        assert run_all(space) == ["ran", "ran", "ran"]
        with pytest.raises(
            RemoteFailed, match=r"the DVC remote s3://evergreen/away did not take the outputs: .*127.0.0.1:9"
        ):
            remote.push_outputs(space.root)
        for path in objects(checkout):
            path.unlink()
        shutil.rmtree(space.root / "models")
        assert run_all(space) == ["ran", "ran", "unchanged"]


def test_what_a_lock_names_comes_back_or_is_named(shared_checkout: Path, tmp_path: Path) -> None:
    with open_workspace(shared_checkout) as space:
        run_and_push(space)
        made, lock = content(space.root / "models"), (space.root / "dvc.lock").read_text()
    other = clone(shared_checkout, tmp_path / "other")
    with open_workspace(other) as space:
        (space.root / "dvc.lock").write_text(lock)
        remote.pull_outputs(space.root)
        assert content(space.root / "models") == made
        (space.root / "dvc.lock").write_text(lock.replace(hash_of(lock, "models/model.txt"), "ab" * 16))
        with pytest.raises(
            RemoteFailed, match=r"neither DVC's cache nor its remote .* has models/model.txt, reports/table.csv"
        ):
            remote.pull_outputs(space.root)


def test_without_a_remote_the_cache_must_have_it(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
        remote.pull_outputs(space.root)
        lock = (space.root / "dvc.lock").read_text()
        (space.root / "dvc.lock").write_text(lock.replace(hash_of(lock, "models/model.txt"), "ab" * 16))
        with pytest.raises(
            ValueError, match=r"DVC's cache lacks models/model.txt, reports/table.csv, and no remote is set"
        ):
            remote.pull_outputs(space.root)


def hash_of(lock: str, path: str) -> str:
    lines = lock.splitlines()
    after = lines[lines.index(f"    - path: {path}") :]
    return next(line.split()[-1] for line in after if line.strip().startswith("md5:"))
