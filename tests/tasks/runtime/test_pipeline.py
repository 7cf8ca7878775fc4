"""runtime.pipeline on a small project: workspaces, stages, what a failing stage says, one run at a time, and gc."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tasks import params
from tasks.promotion import gc
from tasks.runtime import code, locks, overrides, pipeline, workspaces
from tasks.runtime.pipeline import StageFailed, run_stage
from tasks.runtime.workspaces import Workspace, open_workspace
from tests.waiting import wait_until

FILES = {
    "dvc.yaml": """
stages:
  report: {cmd: python report.py, deps: [models/model.txt, report.py], outs: [reports/table.csv]}
  train:
    cmd: python train.py
    deps: [data/raw, train.py]
    params: [train]
    outs: [models/model.txt]
    metrics: [reports/metrics.json]
  ingest: {cmd: python ingest.py, always_changed: true, deps: [ingest.py], params: [clock], outs: [data/raw]}
""",
    "params.yaml": """\
clock:   # now
  as_of: "2013-07-01"     # the date of it
train:
  rate: 0.1  # of learning
  trials: 20
""",
    "ingest.py": """
import pathlib, yaml
folder = pathlib.Path("data/raw")
folder.mkdir(parents=True)
as_of = yaml.safe_load(open("params.yaml"))["clock"]["as_of"]
for month in range(3):
    (folder / f"{month}.txt").write_text(f"{as_of} {month}\\n" * 1000)
print("three months")
""",
    "train.py": """
import json, pathlib
import yaml
p = yaml.safe_load(open("params.yaml"))["train"]
for folder in ("models", "reports"):
    pathlib.Path(folder).mkdir(exist_ok=True)
size = sum(len(f.read_text()) for f in pathlib.Path("data/raw").iterdir())
pathlib.Path("models/model.txt").write_text(f"{p} {size}")
pathlib.Path("reports/metrics.json").write_text(json.dumps({"size": size}))
""",
    "report.py": """
import pathlib
pathlib.Path("reports").mkdir(exist_ok=True)
pathlib.Path("reports/table.csv").write_text(pathlib.Path("models/model.txt").read_text())
""",
    ".gitignore": "/data\n/models\n/reports\n.evergreen/\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".dvc/config": '[core]\n    analytics = false\n[cache]\n    type = "hardlink,copy"\n',
    ".dvcignore": ".evergreen/\n",
}
ORDER = ["ingest", "train", "report"]
Edit = Callable[[Path], object]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def git(where: Path, *args: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(["git", *who, *args], cwd=where, check=True, capture_output=True, text=True).stdout


def commit(where: Path) -> str:
    git(where, "add", "-A")
    git(where, "commit", "-qm", "now")
    return git(where, "rev-parse", "HEAD").strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("EVERGREEN_HOME", raising=False)
    folder = tmp_path / "checkout"
    folder.mkdir()
    write(folder, FILES)
    git(folder, "init", "-q")
    commit(folder)
    return folder


def run_all(space: Workspace) -> list[str]:
    return [run_stage(space.root, name, env=space.env, on_line=lambda _: None).status for name in ORDER]


def with_stage(folder: Path, program: str, *, cmd: str = "python it.py") -> Path:
    """A project of one stage, `it`, in no git."""
    write(folder, {"dvc.yaml": yaml.safe_dump({"stages": {"it": {"cmd": cmd, "deps": ["it.py"], "outs": ["out"]}}})})
    write(folder, {"it.py": program, ".dvc/config": "[core]\n    no_scm = true\n    analytics = false\n"})
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def shared(path: str) -> bool:
    return path.startswith((".evergreen", ".dvc/cache", ".dvc/tmp"))


def objects(checkout: Path) -> set[Path]:
    return {path for path in (checkout / ".dvc" / "cache").rglob("*") if path.is_file()}


def dvc(checkout: Path, *args: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "dvc", *args]
    done = subprocess.run(command, cwd=checkout, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the graph and the caches --------------------------------------------------------------------------------------


def test_stages_come_after_what_they_need(checkout: Path) -> None:
    expected = {"ingest": (), "train": ("ingest",), "report": ("train",)}
    assert list(pipeline.list_stages(checkout).items()) == list(expected.items())


def test_dvc_repro_takes_what_a_workspace_made_and_has_the_same_hashes(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        assert run_all(space) == ["ran", "ran", "ran"]
        made = pipeline.read_lock(space.root)
    said = dvc(checkout, "repro")
    assert said.count("is cached - skipping run") == 2  # ingest alone is always run
    assert pipeline.read_lock(checkout) == made


def test_a_workspace_takes_what_dvc_repro_made_and_has_the_same_hashes(checkout: Path) -> None:
    dvc(checkout, "repro")
    (checkout / "dvc.lock").rename(checkout / "elsewhere")
    with open_workspace(checkout) as space:
        assert run_all(space) == ["ran", "cached", "cached"]
        assert pipeline.read_lock(space.root) == yaml.safe_load((checkout / "elsewhere").read_text())


def test_a_stage_whose_outputs_are_there_is_unchanged(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
        assert run_all(space) == ["ran", "unchanged", "unchanged"]


def test_a_changed_parameter_runs_the_stages_that_use_it_and_no_others(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
    with open_workspace(checkout, overrides={"train.trials": 5}) as space:
        assert run_all(space) == ["ran", "ran", "ran"]
    with open_workspace(checkout) as space:
        assert run_all(space) == ["ran", "cached", "cached"]


def test_a_fresh_workspace_uses_nothing_made_before_and_leaves_nothing(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
        made = pipeline.read_lock(space.root)
    before = objects(checkout)
    write(params.home(checkout), {"pii.key": "k", "studies/a.log": "trials"})
    with open_workspace(checkout, fresh=True) as space:
        assert run_all(space) == ["ran", "ran", "ran"]
        assert pipeline.read_lock(space.root) == made
        assert content(Path(space.env["EVERGREEN_HOME"])) == {"pii.key": b"k"}
        own = {name: folder for name, folder in space.env.items() if name != "EVERGREEN_CHECKOUT"}
        assert all(Path(folder).is_relative_to(space.root) for folder in own.values())
    assert objects(checkout) == before


def test_force_runs_a_stage_that_has_not_changed(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
        assert run_stage(space.root, "train", env=space.env, force=True).status == "ran"


def test_outputs_are_links_of_the_cache_and_making_them_anew_leaves_it_whole(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
        model = space.root / "models" / "model.txt"
        assert model.stat().st_nlink > 1
        assert model.stat().st_mode & 0o222 == 0
    with open_workspace(checkout, overrides={"train.rate": 0.5}) as space:
        run_stage(space.root, "ingest", env=space.env)
        run_stage(space.root, "train", env=space.env)
    assert broken(checkout) == []


def flip(path: Path) -> None:
    """64 bytes of a file in place, with its size, mode and time as they were."""
    before, held = path.stat(), bytearray(path.read_bytes())
    middle = len(held) // 2
    held[middle : middle + 64] = bytes(byte ^ 1 for byte in held[middle : middle + 64])
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(held)
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"")
    path.chmod(0o444)


def rename_in_listing(path: Path) -> None:
    """A folder's listing that is sound JSON of another folder."""
    text = path.read_text().replace("1.txt", "9.txt")
    path.chmod(0o644)
    path.write_text(text)
    path.chmod(0o444)


def outputs(root: Path) -> dict[str, dict[str, bytes]]:
    return {name: content(root / name) for name in ("data", "models", "reports")}


def cached_as(checkout: Path, out: str) -> list[Path]:
    """The objects of an output: the file's, or those of the folder's files and its listing."""
    hashes = {
        entry["path"]: entry["md5"]
        for stage in pipeline.read_lock(checkout)["stages"].values()
        for entry in stage["outs"]
    }
    name = hashes[out]
    listing = checkout / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]
    if not name.endswith(".dir"):
        return [listing]
    inside = [entry["md5"] for entry in json.loads(listing.read_text())]
    return [*(listing.parents[1] / each[:2] / each[2:] for each in inside), listing]


@pytest.mark.parametrize("locked", [True, False], ids=["by the lock", "by the run cache"])
@pytest.mark.parametrize(
    ("out", "place", "spoil", "statuses"),
    [
        ("data/raw", 0, flip, ["ran", "cached", "cached"]),
        ("data/raw", -1, flip, ["ran", "cached", "cached"]),
        ("data/raw", -1, truncate, ["ran", "cached", "cached"]),
        ("data/raw", -1, rename_in_listing, ["ran", "cached", "cached"]),
        ("models/model.txt", 0, flip, ["cached", "ran", "cached"]),
        ("reports/metrics.json", 0, truncate, ["cached", "ran", "cached"]),
    ],
)
def test_a_cached_output_with_other_bytes_is_made_again_and_that_is_logged(
    checkout: Path,
    caplog: pytest.LogCaptureFixture,
    out: str,
    place: int,
    spoil: Callable[[Path], None],
    statuses: list[str],
    locked: bool,
) -> None:
    write(checkout, {"dvc.yaml": FILES["dvc.yaml"].replace("always_changed: true, ", "")})
    with open_workspace(checkout) as space:
        run_all(space)
        made = outputs(space.root)
        (checkout / "dvc.lock").write_bytes((space.root / "dvc.lock").read_bytes())
    spoil(cached_as(checkout, out)[place])
    if not locked:
        (checkout / "dvc.lock").unlink()
    with open_workspace(checkout) as space:
        assert run_all(space) == statuses
        assert outputs(space.root) == made
    assert "DVC's cache held other bytes than dvc.lock names" in caplog.text
    assert broken(checkout) == []


def test_a_stage_that_runs_again_is_not_given_what_the_cache_holds_of_it(checkout: Path) -> None:
    """Its output has the hash of a cached file with other bytes: DVC would link that file into its place."""
    with open_workspace(checkout) as space:
        run_all(space)
        whole = (space.root / "models" / "model.txt").read_bytes()
        (checkout / "dvc.lock").write_bytes((space.root / "dvc.lock").read_bytes())
    flip(cached_as(checkout, "models/model.txt")[0])
    (checkout / "dvc.lock").unlink()
    write(checkout, {"train.py": FILES["train.py"] + "# the same in other words"})
    with open_workspace(checkout) as space:
        run_all(space)
        assert (space.root / "models" / "model.txt").read_bytes() == whole


def broken(checkout: Path) -> list[Path]:
    """Objects of the cache whose content is not what their name says."""
    files = [path for path in (checkout / ".dvc" / "cache" / "files" / "md5").rglob("*") if path.is_file()]
    names = {path: (path.parent.name + path.name).removesuffix(".dir") for path in files}
    return [path for path, name in names.items() if hashlib.md5(path.read_bytes()).hexdigest() != name]


def test_a_remote_that_is_given_by_a_relative_path_is_the_same_from_a_workspace(checkout: Path) -> None:
    from dvc.config import Config

    text = '[remote "store"]\n    url = ../../store\n'
    write(checkout, {".dvc/config": FILES[".dvc/config"] + text, ".dvc/config.local": '[remote "store"]\n  jobs = 3\n'})
    with open_workspace(checkout) as space:
        remote = Config(str(space.root / ".dvc")).read()["remote"]["store"]
    assert Path(remote["url"]).resolve() == checkout.parent / "store"
    assert int(remote["jobs"]) == 3


# --- the code ------------------------------------------------------------------------------------------------------


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
        assert space.dirty
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
        assert not space.dirty


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
        assert not space.dirty
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
        assert space.dirty == (edit is without_commits)
        assert not (space.root / "data").exists()
        assert run_all(space) == ["ran", "ran", "ran"]


def test_the_patch_of_a_repository_without_commits_holds_all_its_code(checkout: Path, tmp_path: Path) -> None:
    without_commits(checkout)
    with open_workspace(checkout) as space:
        assert space.diff is not None
        (tmp_path / "saved").write_bytes(space.diff.read_bytes())
    with open_workspace(checkout, commit=code.UNKNOWN, patch=tmp_path / "saved") as again:
        assert run_all(again) == ["ran", "ran", "ran"]


# --- its parameters ------------------------------------------------------------------------------------------------


def test_an_override_keeps_the_comments_and_every_other_value(checkout: Path) -> None:
    with open_workspace(checkout, overrides={"train.trials": 5, "clock.as_of": "2013-08-01T00:00:00"}) as space:
        text = (space.root / "params.yaml").read_text().replace("'", '"')
    assert text == FILES["params.yaml"].replace("trials: 20", "trials: 5").replace("07-01", "08-01")


@pytest.mark.parametrize("same", ["2013-07-01T00:00:00", "2013-07-01 00:00", "2013-07-01T02:00:00+02:00"])
def test_the_same_moment_in_another_spelling_changes_nothing(checkout: Path, same: str) -> None:
    with open_workspace(checkout, overrides={"clock.as_of": same}) as space:
        assert (space.root / "params.yaml").read_text() == FILES["params.yaml"]


def test_an_unknown_key_is_an_error_that_names_the_nearest_and_leaves_nothing(checkout: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"`train.trails` is no key .* Did you mean `train.trials`"),
        open_workspace(checkout, overrides={"train.trails": 5}),
    ):
        pass
    assert not list((checkout / ".evergreen" / "workspaces").iterdir())


def test_a_key_that_the_file_leaves_at_its_default_is_put_in(checkout: Path) -> None:
    """The last: of a section that is not in the file."""
    path = checkout / "params.yaml"
    path.write_text(FILES["params.yaml"] + "\n# the search\ntune:\n  budget: 1m   # at most\n\n# the end\n")
    overrides.override_params(path, {"tune.trials": 5, "clock.step": "7d", "journal.address": "s3://journal"})
    text = path.read_text()
    assert yaml.safe_load(text) == {
        "clock": {"as_of": "2013-07-01", "step": "7d"},
        "train": {"rate": 0.1, "trials": 20},
        "tune": {"budget": "1m", "trials": 5},
        "journal": {"address": "s3://journal"},
    }
    assert "# the search\ntune:\n  trials: 5\n  budget: 1m   # at most\n" in text
    with pytest.raises(ValueError, match=r"`tune.trails` is no key .* Did you mean `tune.trials`"):
        overrides.override_params(path, {"tune.trails": 5})


# --- a workspace's life --------------------------------------------------------------------------------------------


def test_a_workspace_goes_after_success_and_stays_when_asked(checkout: Path) -> None:
    with open_workspace(checkout) as gone:
        pass
    with open_workspace(checkout, keep=True) as kept:
        pass
    assert not gone.root.exists()
    assert kept.root.exists()


def test_only_the_newest_failures_stay_for_a_look(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(f"{number:06x}" for number in range(9))
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    failed = []
    for number in range(5):
        with contextlib.suppress(RuntimeError), open_workspace(checkout) as space:
            failed.append(space.root)
            raise RuntimeError(f"boom {number}")
    workspaces.remove_abandoned(params.home(checkout), failures=2)
    assert [root.exists() for root in failed] == [False, False, False, True, True]
    assert (failed[-1] / workspaces.KEPT_MARK).read_text() == "RuntimeError: boom 4\n"


def test_a_sweep_takes_what_has_no_owner_and_never_what_has_one(checkout: Path) -> None:
    shared_state = params.home(checkout)
    with open_workspace(checkout) as living:
        dead = shared_state / "workspaces" / "20010101-000000-abcdef"
        half = shared_state / "workspaces" / ".20010101-000000-fedcba"
        for root in (dead, half):
            write(root, {"data/x": "x"})
        assert sorted(workspaces.remove_abandoned(shared_state)) == sorted([dead, half])
        assert living.root.exists()
    assert not list((shared_state / "workspaces").iterdir())


# --- a stage -------------------------------------------------------------------------------------------------------


def test_lines_come_while_the_stage_runs_and_a_bar_is_no_line(tmp_path: Path) -> None:
    program = """
import os, sys, time
print("first", flush=True)
while not os.path.exists("heard"):
    time.sleep(0.01)
for i in range(5):
    sys.stderr.write(f"\\r{i}0%"); sys.stderr.flush()
sys.stderr.write("\\n")
print("last", file=sys.stderr)
open("out", "w").write("x")
"""
    heard: list[str] = []

    def hear(line: str) -> None:
        heard.append(line)
        (tmp_path / "heard").touch()  # the stage goes on when its first line has come

    run = run_stage(with_stage(tmp_path, program), "it", on_line=hear)
    assert heard == ["first", "40%", "last"]
    assert run.status == "ran"
    assert run.wall > run.cpu > 0


def test_a_listener_that_fails_does_not_stop_the_stage(tmp_path: Path) -> None:
    program = "for i in range(20_000): print('a line that fills the pipe')\nopen('out', 'w').write('x')"

    def fail(_: str) -> None:
        raise RuntimeError("no listener")

    assert run_stage(with_stage(tmp_path, program), "it", on_line=fail).status == "ran"


def test_a_stage_runs_from_a_thread_as_well(tmp_path: Path) -> None:
    project = with_stage(tmp_path, "open('out', 'w').write('x')")
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: run_stage(project, "it").status, range(2)))
    assert runs == ["ran", "unchanged"]


def test_a_stage_has_our_python_and_the_given_environment(tmp_path: Path) -> None:
    program = 'import os, sys; open("out", "w").write(f"{sys.executable} {os.environ[\'EVERGREEN_HOME\']}")'
    run_stage(with_stage(tmp_path, program), "it", env={"EVERGREEN_HOME": "/somewhere"})
    assert (tmp_path / "out").read_text() == f"{Path(sys.executable).parent}/python /somewhere"


def test_a_command_that_needs_a_shell_gets_one(tmp_path: Path) -> None:
    run_stage(with_stage(tmp_path, "print(1)", cmd="python it.py > part && mv part out"), "it")
    assert (tmp_path / "out").read_text() == "1\n"


FAILURES = {
    "its own error": (
        "import logging; logging.basicConfig(format='it: %(message)s', level='INFO'); log = logging.getLogger()\n"
        "log.info('begun'); log.error('ValueError: no rows\\nin the file'); raise SystemExit(1)",
        "it: ValueError: no rows\nin the file",
    ),
    "a traceback": ("import nowhere", "it: ModuleNotFoundError: No module named 'nowhere'"),
    "no error": ("print('almost'); raise SystemExit(3)", "it: ended with exit status 3\nalmost"),
    "nothing at all": ("raise SystemExit(3)", "it: ended with exit status 3"),
    "a signal": (
        "import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
        "it: ended by SIGKILL (by hand, or because memory ran out)\nso far",
    ),
    "a missing output": ("", "it: OutputDoesNotExistError: output 'out' does not exist"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_stage_says_why_in_its_own_words(tmp_path: Path, case: str) -> None:
    program, message = FAILURES[case]
    with pytest.raises(StageFailed) as caught:
        run_stage(with_stage(tmp_path, program), "it")
    assert str(caught.value) == message


def test_a_signal_that_a_shell_reports_is_named_too(tmp_path: Path) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    with pytest.raises(StageFailed, match="ended by SIGTERM"):
        run_stage(with_stage(tmp_path, program, cmd="python it.py; exit $?"), "it")


def test_a_stage_that_is_not_there_is_an_error_that_names_it(checkout: Path) -> None:
    with pytest.raises(StageFailed, match="'missing' not found"):
        run_stage(checkout, "missing")


def test_a_failed_stage_leaves_the_working_directory_as_it_was(tmp_path: Path) -> None:
    before = Path.cwd()
    with pytest.raises(StageFailed):
        run_stage(with_stage(tmp_path, "import nowhere"), "it")
    assert Path.cwd() == before


# --- one run at a time ---------------------------------------------------------------------------------------------


def test_a_second_run_waits_and_says_for_whom(tmp_path: Path) -> None:
    said: list[str] = []
    began = threading.Event()

    def second() -> None:
        with locks.take_turn(tmp_path, say=said.append):
            began.set()

    with locks.take_turn(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        wait_until(lambda: said)
        assert not began.is_set()
    thread.join()
    assert began.is_set()
    assert f"process {os.getpid()}, since 20" in said[0]


def test_waiting_for_a_run_has_an_end_that_names_it(tmp_path: Path) -> None:
    with (
        locks.take_turn(tmp_path),
        pytest.raises(TimeoutError, match=f"process {os.getpid()}"),
        locks.take_turn(tmp_path, timeout=0.1),
    ):
        pass


# --- gc ------------------------------------------------------------------------------------------------------------


def saved_lock(space: Workspace, folder: Path) -> Path:
    write(folder, {"dvc.lock": (space.root / "dvc.lock").read_text(), "dvc.yaml": FILES["dvc.yaml"]})
    return folder


def test_gc_frees_what_no_lock_needs_and_a_dry_run_frees_nothing(checkout: Path, tmp_path: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
        saved_lock(space, checkout)
    with open_workspace(checkout, overrides={"clock.as_of": "2013-08-01"}) as space:
        run_all(space)
        registered = saved_lock(space, tmp_path / "registered")
    needed = objects(checkout)
    with open_workspace(checkout, overrides={"clock.as_of": "2013-09-01", "train.rate": 0.3}) as space:
        run_all(space)
    everything = objects(checkout)
    listed = gc.free(checkout, keep_locks=[registered])
    assert objects(checkout) == everything
    assert gc.free(checkout, keep_locks=[registered], dry=False) == listed
    assert {freed.path for freed in listed} == everything - needed
    assert objects(checkout) == needed
    assert sum(freed.size for freed in listed) >= 3 * len("2013-09-01 0\n") * 1000
    with open_workspace(checkout) as space:
        assert run_all(space) == ["ran", "cached", "cached"]


def test_gc_keeps_what_a_running_workspace_needs(checkout: Path) -> None:
    with open_workspace(checkout) as space:
        run_all(space)
        assert gc.free(checkout, dry=False) == []
    assert {freed.kind for freed in gc.free(checkout)} == {"object", "run"}


def test_gc_frees_left_workspaces_old_studies_candidates_and_periods_that_no_data_is_made_of(checkout: Path) -> None:
    shared_state = params.home(checkout)
    with open_workspace(checkout, keep=True) as left:
        run_all(left)
        saved_lock(left, checkout)
        model = left.root / "models" / "model.txt"
        write(shared_state, {"studies/a.log": "trials", "periods/ab/abc/x.parquet": "unused", "periods/ab/abd/.k": ""})
        write(shared_state, {"replay/candidates/2013-05-01T000000-ab/cost.json": "{}"})
        os.link(model, shared_state / "periods" / "ab" / "abd" / "used.parquet")
    freed = gc.free(checkout, dry=False, days=0)
    assert {(each.kind, each.path.name) for each in freed} == {
        ("workspace", left.root.name),
        ("study", "a.log"),
        ("candidate", "2013-05-01T000000-ab"),
        ("period", "abc"),
    }
    assert not left.root.exists()
    assert gc.free(checkout, dry=False, days=0) == []


def test_gc_leaves_studies_and_periods_that_are_young(checkout: Path) -> None:
    write(params.home(checkout), {"studies/a.log": "trials", "periods/ab/abc/x.parquet": "unused"})
    assert gc.free(checkout) == []


def test_an_object_that_another_run_has_just_put_there_is_not_emptied(tmp_path: Path) -> None:
    """DVC tries to clone a file into its cache first, and empties what is there before it knows whether it can."""
    from dvc_objects.fs import system

    mine, other, cached = (tmp_path / name for name in ("mine", "other", "cached"))
    mine.write_text("same")
    other.write_text("same")
    os.link(other, cached)
    pipeline.clone_apart()
    with pytest.raises(OSError):
        system.reflink(str(mine), str(cached))
    assert (other.read_text(), cached.read_text()) == ("same", "same")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "other", "cached"}
