"""ingest, clean and features when they are killed in their middle, when the disk is full, and when work hangs hard."""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.runtime import stage
from tests.conftest import Made, tree
from tests.faults import forks
from tests.programs import PROGRAMS

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]
STAGES = ("ingest", "clean", "features")
OUTPUTS = {"ingest": ["data/raw"], "clean": ["data/clean", "data/quarantine", "reports"], "features": ["data/features"]}


@pytest.fixture
def made(make_world: Callable[..., Made]) -> Made:
    made = make_world(days=15, per_day=12)
    made.raw["ingest"]["period"] = "day"
    made.params()
    return made


def start(made: Made, name: str, before: str = "") -> "subprocess.Popen[bytes]":
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{before}\nfrom tasks.data import {name}\n"
    script += f"from tasks.runtime import stage\nstage.main({name!r}, {name}.{name})"
    return subprocess.Popen([sys.executable, "-c", script], cwd=made.folder, stderr=subprocess.PIPE)


def outputs(made: Made, name: str) -> dict[str, bytes]:
    trees = {folder: tree(made.folder / folder) for folder in OUTPUTS[name]}
    return {f"{folder}/{path}": content for folder, files in trees.items() for path, content in files.items()}


def whole(folder: Path) -> None:
    """Every file that has its final name can be read to its end."""
    for path in folder.rglob("*.parquet"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            assert pq.read_table(path).num_columns > 0


@pytest.fixture
def unbroken(made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, dict[str, bytes]]:
    """What each stage writes when nothing goes wrong; its periods are in a cache of their own."""
    with monkeypatch.context() as patch:
        patch.setenv("EVERGREEN_PERIODS", str(tmp_path / "unbroken"))
        made.run(*STAGES)
    return {name: outputs(made, name) for name in STAGES}


def run_until(_pipe: Connection, folder: Path, name: str, changes: int) -> None:
    """In a child: a stage's program, which is killed when it has changed the file system so often."""
    os.chdir(folder)
    work = getattr(importlib.import_module(PROGRAMS[name]), name)
    forks.kill_after(changes)
    stage.main(name, work)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_is_killed_anywhere_leaves_whole_files_and_the_next_run_ends_as_if_nothing_had_been(
    made: Made, unbroken: dict[str, dict[str, bytes]], name: str
) -> None:
    """Killed after no change to the file system, one, three, seven and so on, until it comes to its end."""
    changes, kills, status = 0, 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        with forks.forked(run_until, made.folder, name, changes) as child:
            status = child.wait()
        whole(made.folder)
        whole(Path(os.environ["EVERGREEN_PERIODS"]))
        kills += 1
        changes = 2 * changes + 1
    assert status == 0
    assert kills > 4
    assert outputs(made, name) == unbroken[name]


@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_is_told_in_words_and_leaves_no_half_file(
    made: Made, unbroken: dict[str, dict[str, bytes]], name: str
) -> None:
    """The limit on a file's size stands in for the full disk."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))"
    program = start(made, name, limit)
    _, errors = program.communicate(timeout=120)
    assert program.returncode == 1
    assert b"OSError: [Errno 27]" in errors
    assert b"File too large" in errors
    whole(made.folder)
    assert not [path for path in tree(Path(os.environ["EVERGREEN_PERIODS"])) if "/.new-" in path]
    program = start(made, name)
    program.communicate(timeout=120)
    assert program.returncode == 0
    assert outputs(made, name) == unbroken[name]


def test_a_stage_that_hangs_too_hard_to_speak_is_ended_all_the_same(made: Made) -> None:
    """The interpreter's lock is held all the time: no thread of this program can run, or say what happened."""
    made.raw["stage"]["limits"]["ingest"] = "0.5s"
    made.params()
    hang = "from tasks.runtime import stage\nimport ctypes\ndef work(p): ctypes.PyDLL(None).sleep(100)\n"
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{hang}stage.main('ingest', work)"
    program = subprocess.Popen([sys.executable, "-c", script], cwd=made.folder, stderr=subprocess.PIPE)
    _, errors = program.communicate(timeout=90)  # before the hundred seconds are over
    assert program.returncode != 0
    assert b"Timeout" in errors
    assert b"in work" in errors


def test_two_ingests_at_once_make_the_same_cache(made: Made, unbroken: dict[str, dict[str, bytes]]) -> None:
    """Two checkouts share a cache; neither sees the other's half-made periods."""
    import shutil

    other = Made(made.folder.with_name("other"), made.raw, made.monkeypatch)
    shutil.copytree(made.folder, other.folder)
    both = [start(one, "ingest") for one in (made, other)]
    assert [program.communicate(timeout=120) and program.returncode for program in both] == [0, 0]
    assert outputs(made, "ingest") == outputs(other, "ingest") == unbroken["ingest"]
    whole(Path(os.environ["EVERGREEN_PERIODS"]))
