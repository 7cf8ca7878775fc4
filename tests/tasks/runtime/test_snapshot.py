"""tasks.runtime.snapshot: code travels to a machine without git, and is that of its commit."""

import os
from pathlib import Path

import pytest

from tasks.runtime import code, snapshot
from tasks.runtime.store import Store
from tasks.runtime.workspaces import open_workspace
from tests.tasks.runtime.conftest import FILES, commit, content, git, run_all, write


def travel(checkout: Path, shared: Store, target: Path) -> Path:
    """A machine without git: the code as the store has it, and nothing else."""
    target.mkdir()
    name = code.save_code(checkout, shared)
    for file in shared.list_names(name):
        path = target / file.removeprefix(f"{name}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shared.read(file))
    return target


def test_a_run_without_git_has_the_commit_and_makes_the_same(checkout: Path, shared: Store, tmp_path: Path) -> None:
    with open_workspace(checkout) as space:
        assert run_all(space)[0] == "ran"
        made = {name: content(space.root / name) for name in ("data", "models", "reports")}
        head = space.commit
    other = travel(checkout, shared, tmp_path / "other")
    assert not (other / ".git").exists()
    assert code.find_commit_and_patch(other) == (head, b"")
    with open_workspace(other) as space:
        assert (space.commit, space.diff) == (head, None)
        run_all(space)
        assert {name: content(space.root / name) for name in made} == made
        assert not (space.root / snapshot.LIST).exists()


def test_edits_that_are_not_committed_do_not_travel(checkout: Path, shared: Store) -> None:
    write(checkout, {"train.py": FILES["train.py"] + "# edited\n", "new.py": "x = 1\n"})
    with pytest.raises(ValueError, match=r"must be committed to travel .*\(new\.py, train\.py\)\. Commit them"):
        code.save_code(checkout, shared)
    assert shared.list_names(snapshot.FOLDER) == []


def test_code_without_a_commit_does_not_travel(tmp_path: Path, shared: Store) -> None:
    write(tmp_path / "plain", FILES)
    with pytest.raises(ValueError, match="has no commit"):
        code.save_code(tmp_path / "plain", shared)


@pytest.mark.parametrize("edit", [lambda path: path.write_text("edited"), Path.unlink])
def test_code_that_was_edited_on_the_way_is_refused(
    checkout: Path, shared: Store, tmp_path: Path, edit: object
) -> None:
    other = travel(checkout, shared, tmp_path / "other")
    edit(other / "train.py")  # type: ignore[operator]
    with (
        pytest.raises(ValueError, match=r"must be that of its commit .*train\.py.*Edit a clone, commit"),
        open_workspace(other),
    ):
        pass


def test_the_lock_travels_along(checkout: Path, shared: Store, tmp_path: Path) -> None:
    (checkout / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    other = travel(checkout, shared, tmp_path / "other")
    assert (other / "dvc.lock").read_text() == "schema: '2.0'\nstages: {}\n"


def test_code_that_is_deployed_twice_is_stored_once(checkout: Path, shared: Store) -> None:
    first = code.save_code(checkout, shared)
    names = shared.list_names(first)
    assert code.save_code(checkout, shared) == first
    assert shared.list_names(first) == names


def test_a_deploy_that_was_killed_before_the_list_is_finished_by_the_next(
    checkout: Path, shared: Store, tmp_path: Path
) -> None:
    (checkout / "dvc.lock").write_text("stages: {}\n")
    name = code.save_code(checkout, shared)
    shared.remove(f"{name}/{snapshot.LIST}")
    (checkout / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")  # something was run meanwhile
    other = travel(checkout, shared, tmp_path / "other")
    assert (other / "dvc.lock").read_text() == "schema: '2.0'\nstages: {}\n"
    assert snapshot.read_snapshot(other)


def test_a_program_can_be_executed_where_it_arrives(checkout: Path, shared: Store, tmp_path: Path) -> None:
    (checkout / "run.sh").write_text("#!/bin/sh\n")
    (checkout / "run.sh").chmod(0o755)
    commit(checkout)
    other = travel(checkout, shared, tmp_path / "other")
    with open_workspace(other) as space:
        assert os.access(space.root / "run.sh", os.X_OK)
        assert not os.access(space.root / "train.py", os.X_OK)


def test_an_older_commit_is_found_in_the_store(
    checkout: Path, shared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = git(checkout, "rev-parse", "HEAD").strip()
    code.save_code(checkout, shared)
    write(checkout, {"train.py": FILES["train.py"] + "# newer\n"})
    commit(checkout)
    other = travel(checkout, shared, tmp_path / "other")
    with open_workspace(other, commit=old) as space:
        assert (space.root / "train.py").read_text() == FILES["train.py"]
    monkeypatch.delenv("EVERGREEN_STORE")
    with pytest.raises(ValueError, match=r"the code of commit .* is not known here"), open_workspace(other, commit=old):
        pass
