"""A checkout may lie under a folder of any letters: the workspace, its stages and DVC's cache work there."""

import os
import subprocess
from pathlib import Path

import pytest

from tasks.runtime import pipeline, project, workspaces
from tests.tasks.runtime.conftest import FILES, commit, git, write

NAMES = (
    "josé",
    "日本",
    "a b",
    "it's",
    'say "so"',
    "100%",
    "n#1",
    "br[1]",
    "a*b?",
    "a;b&c",
    "back\\slash",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_workspace_works_under_a_folder_of_any_letters(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVERGREEN_HOME", raising=False)
    checkout = tmp_path / name
    checkout.mkdir()
    write(checkout, FILES)
    git(checkout, "init", "-q")
    commit(checkout)
    for status in ("ran", "cached"):
        with workspaces.open_workspace(checkout) as space:
            assert Path(project.find_cache(space.root)) == Path(project.find_cache(checkout))
            assert pipeline.run_stage(space.root, "ingest", env=space.env, on_line=lambda _: None).status == "ran"
            done = pipeline.run_stage(space.root, "train", env=space.env, on_line=lambda _: None)
            assert done.status == status


@pytest.mark.parametrize("name", ["{x}", "a}b", "%(home)s"])
def test_a_path_that_dvc_cannot_hold_is_refused_before_anything_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVERGREEN_HOME", raising=False)
    checkout = tmp_path / name
    write(checkout, FILES)
    with pytest.raises(ValueError, match="path of DVC's cache must hold no"), workspaces.open_workspace(checkout):
        pass
    assert workspaces.list_workspaces(checkout / ".evergreen") == []


def test_a_file_that_git_leaves_out_of_archives_is_in_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout's .gitattributes are about what is published, not about what runs."""
    monkeypatch.delenv("EVERGREEN_HOME", raising=False)
    write(tmp_path, {**FILES, ".gitattributes": "train.py export-ignore\nreport.py export-subst\n"})
    (tmp_path / "report.py").write_text("# $Format:%H$\n" + FILES["report.py"])
    os.symlink("train.py", tmp_path / "again.py")
    (tmp_path / "report.py").chmod(0o755)
    git(tmp_path, "init", "-q")
    revision = commit(tmp_path)
    names = subprocess.run(["git", "ls-files"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    for wanted in (None, revision):
        with workspaces.open_workspace(tmp_path, commit=wanted) as space:
            assert [name for name in names.split() if not (space.root / name).exists()] == []
            assert (space.root / "report.py").read_bytes() == (tmp_path / "report.py").read_bytes()
            assert os.access(space.root / "report.py", os.X_OK)
            assert (space.root / "again.py").is_symlink()
