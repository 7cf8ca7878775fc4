"""What a person sees of the demo: its first lines come at once, and logs go to a file. The loop itself runs in
`make demo`, which is too long for a test; tests/flows/test_loop.py runs it on a made project."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIVERT = """
import logging, os, sys
from pathlib import Path
from flows.demo import divert_output
with divert_output(Path(sys.argv[1])) as screen:
    print("printed")
    os.system("echo by a child; echo an error of a child >&2")
    screen.lines.print("a line")
    with screen.show_progress(1):
        logging.getLogger("prefect.task_runs").error("Finished in state Completed()")
print("after")
"""


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_what_the_flows_and_their_programs_print_goes_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "demo.log"
    done = run(DIVERT, str(log))
    assert (done.returncode, done.stdout, done.stderr) == (0, "a line\nafter\n", "")
    assert set(log.read_text().splitlines()) == {
        "printed",
        "by a child",
        "an error of a child",
    }


def test_an_error_is_told_on_the_terminal_again(tmp_path: Path) -> None:
    failing = DIVERT.partition("    print(")[0] + "    raise ValueError('what went wrong')"
    done = run(failing, str(tmp_path / "demo.log"))
    assert "what went wrong" in done.stderr


def test_the_first_lines_come_before_anything_slow_is_imported() -> None:
    done = run("import sys, flows.demo; assert not {'prefect', 'mlflow', 'pandas', 'numpy'} & sys.modules.keys()")
    assert done.returncode == 0, done.stderr
