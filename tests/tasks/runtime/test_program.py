"""tasks.runtime.program: a stage's lines as they come, and why it failed."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.runtime.pipeline import StageFailed, run_stage
from tests.tasks.runtime.conftest import with_stage


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
