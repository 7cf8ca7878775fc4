"""tasks.runtime.pipeline when processes are killed or interrupted, run side by side, or the disk is full."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tasks import params
from tasks.promotion import gc
from tasks.runtime import locks, pipeline, workspaces
from tasks.runtime.pipeline import StageFailed, run_stage
from tasks.runtime.workspaces import open_workspace
from tests.faults import forks
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

PROJECT = Path(__file__).parents[2]
ORDER = ("first", "second")
PRELUDE = "import os, pathlib, signal, sys, time\nfrom tasks.runtime.stage import die_with_parent\ndie_with_parent()\n"
FILES = {
    # The program's mark is in its arguments, so that a test finds it among all processes.
    "dvc.yaml": """
stages:
  first: {cmd: "python first.py ${mark}", deps: [first.py], params: [hangs, full, meeting], outs: [data/first]}
  second: {cmd: python second.py, deps: [second.py, data/first], outs: [data/second]}
""",
    "params.yaml": "mark: none\nhangs: false\nfull: false\nmeeting: null\n",
    "first.py": PRELUDE
    + """
import yaml
p = yaml.safe_load(open("params.yaml"))
folder = pathlib.Path("data/first")
folder.mkdir(parents=True)
for number in range(20):
    new = folder / f".{number}.new"
    new.write_bytes(bytes([number]) * (2_000_000 if p["full"] else 20_000))
    new.rename(folder / f"{number}.bin")
    if p["hangs"] and number == 9:
        signal.pause()  # and says nothing: a closed pipe would end it, too
    if p["meeting"] and number == 9:  # three runs are in their middle at once
        pathlib.Path(p["meeting"], str(os.getpid())).touch()
        while len(os.listdir(p["meeting"])) < 3:
            time.sleep(0.01)
""",
    "second.py": PRELUDE
    + """
files = sorted(pathlib.Path("data/first").iterdir())
pathlib.Path("data/second").write_bytes(b"".join(file.read_bytes() for file in files))
""",
    ".dvc/config": '[core]\n    analytics = false\n[cache]\n    type = "hardlink,copy"\n',
}
RUN = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(PROJECT)!r})
from tests.faults.test_pipeline_faults import run
run(Path(sys.argv[1]), sys.argv[2], force=bool(sys.argv[3:]))
"""


def run(checkout: Path, overrides: str, *, force: bool) -> None:
    with open_workspace(checkout, overrides=json.loads(overrides)) as space:
        for name in ORDER:
            run_stage(space.root, name, env=space.env, force=force)
        print(json.dumps(pipeline.read_lock(space.root)["stages"]["second"]["outs"]), flush=True)


def run_until(pipe: Connection, checkout: Path, changes: int) -> None:
    """In a child: a run of both stages, which is killed with its stage when it has changed the file system so often."""
    os.setsid()
    changed = forks.kill_after(changes, lambda: os.killpg(0, signal.SIGKILL))
    run(checkout, "{}", force=True)
    pipe.send(changed())


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("EVERGREEN_HOME", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    return made(tmp_path / "checkout")


def made(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def start(checkout: Path, overrides: str = "{}", *more: str) -> "subprocess.Popen[str]":
    """A run in a process of its own, as the leader of a group of its own."""
    command = [sys.executable, "-c", RUN, str(checkout), overrides, *more]
    heeding = signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts with & would ignore it, for good
    try:
        return subprocess.Popen(command, start_new_session=True, stdout=-1, stderr=-1, text=True)
    finally:
        signal.signal(signal.SIGINT, heeding)


def hanging(mark: str) -> str:
    """Overrides for a stage that stops in its middle."""
    return json.dumps({"mark": mark, "hangs": True})


def running(mark: str) -> list[int]:
    pids = subprocess.run(["pgrep", "-f", f"first.py {mark}"], capture_output=True, text=True).stdout
    return [int(pid) for pid in pids.split()]


def is_in_its_middle(checkout: Path) -> bool:
    return bool(list((params.home(checkout) / "workspaces").glob("*/data/first/9.bin")))


def expected() -> list[dict[str, object]]:
    content = b"".join(bytes([number]) * 20_000 for number in sorted(range(20), key=str))
    return [{"path": "data/second", "hash": "md5", "md5": hashlib.md5(content).hexdigest(), "size": len(content)}]


def is_clean(checkout: Path) -> None:
    """The next run is right, nothing is left of the one before, and each object is what its name says."""
    with open_workspace(checkout) as space:
        for name in ORDER:
            run_stage(space.root, name, env=space.env)
        assert pipeline.read_lock(space.root)["stages"]["second"]["outs"] == expected()
    assert broken(checkout / ".dvc" / "cache") == []
    left = [
        path for path in (params.home(checkout) / "workspaces").iterdir() if not (path / workspaces.KEPT_MARK).exists()
    ]
    assert left == []


def broken(cache: Path) -> list[Path]:
    """Objects that are under their final name and are not what it says. Leftovers under temporary names do no harm."""
    files = [path for path in (cache / "files" / "md5").rglob("*") if path.is_file()]
    whole = [path for path in files if len(path.name.removesuffix(".dir")) == 30 and "." not in path.stem]
    names = {path: (path.parent.name + path.name).removesuffix(".dir") for path in whole}
    return [path for path, name in names.items() if hashlib.md5(path.read_bytes()).hexdigest() != name]


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_stage_dies_with_its_flow_and_the_next_run_starts_clean(
    checkout: Path, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", shell)
    mark = f"killed{os.getpid()}{Path(shell).name}"
    flow = start(checkout, hanging(mark))
    wait_until(lambda: is_in_its_middle(checkout))
    assert running(mark)
    flow.kill()
    flow.communicate(timeout=60)
    wait_until(lambda: not running(mark))
    is_clean(checkout)


def test_ctrl_c_ends_the_run_and_its_stage_and_the_next_run_starts_clean(checkout: Path) -> None:
    mark = f"interrupted{os.getpid()}"
    flow = start(checkout, hanging(mark))
    wait_until(lambda: is_in_its_middle(checkout))
    os.killpg(flow.pid, signal.SIGINT)
    flow.communicate(timeout=60)
    assert not running(mark)
    assert not list((params.home(checkout) / "workspaces").iterdir())
    is_clean(checkout)


def test_an_exception_from_a_signal_handler_ends_the_stage(checkout: Path) -> None:
    mark = f"cancelled{os.getpid()}"

    def cancel(*_: object) -> None:
        raise SystemExit("cancelled")

    def interrupt() -> None:
        wait_until(lambda: is_in_its_middle(checkout))
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, cancel)
    watcher = threading.Thread(target=interrupt)
    watcher.start()
    try:
        with pytest.raises(SystemExit), open_workspace(checkout, overrides=json.loads(hanging(mark))) as space:
            run_stage(space.root, "first", env=space.env)
    finally:
        watcher.join()
        signal.signal(signal.SIGALRM, before)
    assert not running(mark)
    is_clean(checkout)


@pytest.fixture(scope="module")
def changes_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often a whole run changes the file system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("EVERGREEN_HOME", raising=False)
        patch.setenv("PYTHONPATH", str(PROJECT))
        with forks.forked(run_until, made(tmp_path_factory.mktemp("whole")), 1_000_000) as child:
            return int(child.receive())


@pytest.mark.parametrize("share", [0, 0.2, 0.4, 0.6, 0.8, 0.95])
def test_a_run_that_is_killed_at_any_moment_leaves_nothing_half_done(
    checkout: Path, share: float, changes_of_a_run: int
) -> None:
    with forks.forked(run_until, checkout, int(share * changes_of_a_run)) as child:
        assert child.wait() == -signal.SIGKILL
    is_clean(checkout)


def test_two_runs_of_the_same_stages_side_by_side_make_the_same(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "meeting").mkdir()
    overrides = json.dumps({"meeting": str(tmp_path / "meeting")})
    flows = [start(checkout, overrides, "force") for _ in range(3)]
    outputs = [flow.communicate(timeout=120) for flow in flows]
    assert [flow.returncode for flow in flows] == [0, 0, 0], outputs
    assert len({out.splitlines()[-1] for out, _ in outputs}) == 1
    is_clean(checkout)


def test_the_lock_of_a_killed_run_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    program = (
        "import pathlib, signal; from tasks.runtime.locks import take_turn\n"
        f"with take_turn(pathlib.Path({str(tmp_path)!r})): print('mine', flush=True); signal.pause()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "mine\n"
    with pytest.raises(TimeoutError, match=f"process {holder.pid}"), locks.take_turn(tmp_path, timeout=0.1):
        pass
    holder.kill()
    holder.communicate()
    with locks.take_turn(tmp_path, timeout=60):
        pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    size = ["-t", "tmpfs", "-o", "size=12m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(["mount", *size], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_while_a_stage_writes_fails_it_by_name_and_leaves_no_half_file(
    small_disk: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(small_disk / "home"))
    with (
        pytest.raises(StageFailed, match=r"first: OSError: .* No space left on device"),
        open_workspace(checkout, overrides={"full": True}) as space,
    ):
        run_stage(space.root, "first", env=space.env)
    sizes = {path.stat().st_size for path in (space.root / "data" / "first").glob("*.bin")}
    assert sizes == {2_000_000}
    workspaces.remove_abandoned(params.home(checkout), failures=0)
    is_clean(checkout)


def test_a_disk_that_fills_while_outputs_are_kept_fails_and_leaves_no_half_object(
    small_disk: Path, checkout: Path
) -> None:
    cache = small_disk / "cache"
    (checkout / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {cache}\n")
    with (
        pytest.raises(StageFailed, match=r"could not keep .* No space left"),
        open_workspace(checkout, overrides={"full": True}) as space,
    ):
        run_stage(space.root, "first", env=space.env)
    assert broken(cache) == []
    gc.free(checkout, dry=False, days=0)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    is_clean(checkout)


def test_a_limit_on_the_size_of_files_fails_the_stage_with_its_own_error(checkout: Path) -> None:
    text = FILES["first.py"].replace(
        "import yaml", "import resource, signal, yaml\nresource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"
    )
    (checkout / "first.py").write_text(text)
    with pytest.raises(StageFailed, match=r"first: OSError: .* File too large"), open_workspace(checkout) as space:
        run_stage(space.root, "first", env=space.env)
    assert not list((space.root / "data" / "first").glob("*.bin"))
    (checkout / "first.py").write_text(FILES["first.py"])
    is_clean(checkout)
