"""A program leaves as Python's own exit does: with its status, its output, its exit functions and its threads' work."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, threading, time
from tasks.runtime import leaving
atexit.register(lambda: print("exit function"))
def work():
    time.sleep(0.2)
    print("thread")
def program():
    threading.Thread(target=work).start()
    print("program")
    {end}
leaving.leave_after(program)
"""


def run(end: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", PROGRAM.format(end=end)], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [
        ("pass", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('why')", 1, "why\n"),
        ("raise ValueError('why')", 1, "ValueError: why\n"),
    ],
)
def test_the_status_the_output_the_threads_and_the_exit_functions_are_those_of_any_program(
    end: str, status: int, error: str
) -> None:
    done = run(end)
    assert (done.returncode, done.stdout) == (status, "program\nthread\nexit function\n")
    assert done.stderr.endswith(error)
    assert bool(done.stderr) == bool(error)
