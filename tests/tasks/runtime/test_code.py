"""tasks.runtime.code: the code of a run, and its patch from the commit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.runtime import code
from tasks.runtime.workspaces import open_workspace
from tests.tasks.runtime.conftest import FILES, commit, content, git, run_all, shared, write

Edit = Callable[[Path], object]


def test_a_run_leaves_the_checkout_its_index_and_its_repository_as_they_were(checkout: Path) -> None:
    write(checkout, {"train.py": FILES["train.py"] + "# edited\n", "new.py": "x = 1\n", "staged.py": "y = 1\n"})
    git(checkout, "add", "staged.py")
    before = content(checkout)
    with open_workspace(checkout, overrides={"train.trials": 1}) as space:
        run_all(space)
    after = content(checkout)
    assert {name: after[name] for name in after if not shared(name)} == before


def test_uncommitted_edits_travel_along_and_their_patch_gives_them_back(checkout: Path, tmp_path: Path) -> None:
    write(checkout, {"train.py": FILES["train.py"] + "# edited\n", "sub/new.py": "x = 1\n", "ignored.log": "no"})
    (checkout / "report.py").unlink()
    (checkout / "binary").write_bytes(bytes(range(256)))
    git(checkout, "add", "binary")
    (checkout / ".git" / "info" / "exclude").write_text("*.log\n")
    with open_workspace(checkout) as space:
        assert space.diff is not None
        assert space.diff is not None
        (tmp_path / "saved").write_bytes(space.diff.read_bytes())
        code = {name: text for name, text in content(space.root).items() if not name.startswith(".dvc/")}
    assert code["sub/new.py"] == b"x = 1\n"
    assert not {"ignored.log", "report.py"} & code.keys()
    git(checkout, "checkout", "-q", "--", ".")
    with open_workspace(checkout, commit=space.commit, patch=tmp_path / "saved") as again:
        assert code.items() <= content(again.root).items()


def test_of_untracked_files_only_code_travels_and_the_rest_is_named_once(
    checkout: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = {"new.py": "x = 1\n", "tasks/more.sql": "SELECT 1\n", "small.json": "{}"}
    others = {".env": "PASSWORD=x", ".env.json": "{}", "people.csv": "ada", "big.json": " " * 1_000_001, "notes.md": ""}
    write(checkout, {**code, **others})
    with open_workspace(checkout) as space:
        assert code.keys() <= content(space.root).keys()
        assert not others.keys() & content(space.root).keys()
        assert space.diff is not None
        patch = space.diff.read_text()
    assert all(f"b/{name}" in patch for name in code)
    assert not any(name in patch for name in others)
    assert [line for line in caplog.messages if "left out" in line] == [
        "5 files that git does not track are no code and are left out of the run and of its patch "
        "(.env, .env.json, big.json, ...). Data belongs outside the checkout or under an ignored path; "
        "what the code needs beside it, `git add` brings in"
    ]


def test_untracked_data_alone_makes_no_run_dirty(checkout: Path) -> None:
    write(checkout, {"people.csv": "ada"})
    with open_workspace(checkout) as space:
        assert space.diff is None


def test_the_code_of_a_checkout_is_what_a_workspace_of_it_says(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD").strip()
    write(checkout, {"dvc.lock": "schema: '2.0'\nstages: {}\n"})
    assert code.find_commit_and_patch(checkout) == (head, b"")
    write(checkout, {"train.py": FILES["train.py"] + "# edited\n", "new.py": "x = 1\n"})
    with open_workspace(checkout) as space:
        assert space.diff is not None
        assert code.find_commit_and_patch(checkout) == (head, space.diff.read_bytes())
    without_git(checkout)
    assert code.find_commit_and_patch(checkout) == (code.UNKNOWN, b"")


def test_the_patch_is_the_same_whatever_the_users_git_is_set_to(checkout: Path, tmp_path: Path) -> None:
    write(checkout, {".gitattributes": "*.py diff=odd\n"})
    commit(checkout)
    write(checkout, {"train.py": FILES["train.py"] + "# edited\n", "sub/new.py": "x = 1\n"})
    (checkout / "report.py").rename(checkout / "told.py")
    expected = code.find_commit_and_patch(checkout)
    odd = {
        "diff.noprefix": "true",
        "diff.mnemonicPrefix": "true",
        "diff.context": "0",
        "diff.renames": "copies",
        "diff.external": "false",
        "diff.odd.textconv": "wc -c",
        "diff.odd.command": "false",
        "color.ui": "always",
        "core.abbrev": "4",
    }
    for name, value in odd.items():
        git(checkout, "config", name, value)
    assert code.find_commit_and_patch(checkout) == expected
    (tmp_path / "saved").write_bytes(expected[1])
    with open_workspace(checkout, commit=expected[0], patch=tmp_path / "saved") as again:
        assert (again.root / "train.py").read_text() == FILES["train.py"] + "# edited\n"
        assert (again.root / "told.py").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_stage_is_told_where_the_checkout_is(checkout: Path, fresh: bool) -> None:
    with open_workspace(checkout, fresh=fresh) as space:
        assert space.env["EVERGREEN_CHECKOUT"] == str(checkout)


def test_a_clean_checkout_has_no_patch_even_after_dvc_repro(checkout: Path) -> None:
    write(checkout, {"dvc.lock": "schema: '2.0'\nstages: {}\n"})
    with open_workspace(checkout) as space:
        assert space.diff is None
        assert (space.root / "dvc.lock").exists()
        assert space.commit == git(checkout, "rev-parse", "HEAD").strip()


def test_a_commit_gives_the_code_of_that_commit(checkout: Path) -> None:
    first = git(checkout, "rev-parse", "HEAD").strip()
    write(checkout, {"train.py": "raise SystemExit(1)\n"})
    commit(checkout)
    with open_workspace(checkout, commit=first[:10]) as space:
        assert space.commit == first
        assert (space.root / "train.py").read_text() == FILES["train.py"]


def test_a_commit_that_is_not_there_is_an_error_that_names_it(checkout: Path) -> None:
    with pytest.raises(ValueError, match="deadbeef"), open_workspace(checkout, commit="deadbeef"):
        pass
    assert not list((checkout / ".evergreen" / "workspaces").iterdir())


def test_a_project_in_a_folder_of_a_repository_takes_that_folder(checkout: Path) -> None:
    write(checkout / "part", FILES)
    with open_workspace(checkout / "part") as space:
        assert (space.root / "train.py").exists()
        assert not (space.root / "part").exists()
        assert space.diff is not None
        assert "b/train.py" in space.diff.read_text()


def without_git(checkout: Path) -> None:
    (checkout / ".git").rename(checkout.parent / "git")


def without_commits(checkout: Path) -> None:
    without_git(checkout)
    git(checkout, "init", "-q")


def without_dvc(checkout: Path) -> None:
    without_git(checkout)
    (checkout / ".dvc").rename(checkout.parent / "dvc")


def ignored_by_a_repository_around_it(checkout: Path) -> None:
    without_git(checkout)
    git(checkout.parent, "init", "-q")
    write(checkout.parent, {".gitignore": "checkout/\n"})


@pytest.mark.parametrize("edit", [without_git, without_commits, without_dvc, ignored_by_a_repository_around_it])
def test_a_run_needs_no_commit(checkout: Path, edit: Edit) -> None:
    write(checkout, {"data/raw/old.txt": "made before"})
    edit(checkout)
    with open_workspace(checkout) as space:
        assert space.commit == code.UNKNOWN
        assert (space.diff is not None) == (edit is without_commits)
        assert not (space.root / "data").exists()
        assert run_all(space) == ["ran", "ran", "ran"]


def test_the_patch_of_a_repository_without_commits_holds_all_its_code(checkout: Path, tmp_path: Path) -> None:
    without_commits(checkout)
    with open_workspace(checkout) as space:
        assert space.diff is not None
        (tmp_path / "saved").write_bytes(space.diff.read_bytes())
    with open_workspace(checkout, commit=code.UNKNOWN, patch=tmp_path / "saved") as again:
        assert run_all(again) == ["ran", "ran", "ran"]
