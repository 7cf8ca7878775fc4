"""A run goes on when nobody reads what it prints any more: its worker has died."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(writer)
sys.setswitchinterval(1000)  # the thread that waits for the reader's end gets no turn, as on a busy machine
import flows
from prefect.logging import get_logger
from prefect.logging.configuration import setup_logging
setup_logging()
get_logger("run").warning("somebody reads this")
os.close(reader)
for _ in range(3):
    get_logger("run").warning("nobody reads this")
print("at its end", flush=True)
"""


def test_a_line_that_nobody_reads_any_more_does_not_end_a_run(tmp_path: Path) -> None:
    env = {**os.environ, "PREFECT__FLOW_RUN_ID": "run-1", "PREFECT_HOME": str(tmp_path)}
    quiet = {"PREFECT_LOGGING_TO_API_ENABLED": "false"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env={**env, **quiet}, stdout=subprocess.PIPE, timeout=120)
    assert (done.returncode, done.stdout) == (0, b"at its end\n")


def test_a_line_that_nobody_reads_ends_a_program_that_a_person_has_started(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PREFECT__FLOW_RUN_ID"}
    env |= {"PREFECT_HOME": str(tmp_path), "PREFECT_LOGGING_TO_API_ENABLED": "false"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, stdout=subprocess.PIPE, timeout=120)
    assert (done.returncode, done.stdout) == (1, b"")
