"""A small project of three stages, in git, with DVC."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.runtime.pipeline import run_stage
from tasks.runtime.workspaces import Workspace

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
