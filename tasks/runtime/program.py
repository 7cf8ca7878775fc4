"""The program of a stage as a process: its lines as they come, its CPU time, and why it failed."""

import contextvars
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from tasks import log

TAIL_LINES = 200  # of a stage that are kept for its error
PROGRESS_INTERVAL_S = 15.0  # between two lines of progress where there is no terminal to draw a bar on


class Program:
    """A stage's command as a process: its lines, its CPU seconds, and why it failed."""

    def __init__(self, stage: str, on_line: Callable[[str], None] | None) -> None:
        self.stage = stage
        self.ran = False
        self.cpu = 0.0
        self.failure = ""
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._on_line = on_line or _to_stderr
        self._progress_at = time.monotonic()

    def run(self, executable: str, command: str, **popen: Any) -> int:
        """Run the command to its end.

        Args:
            executable: the shell, where the command needs one.
            popen: what else `subprocess.Popen` takes; `env` is needed.

        Returns:
            The exit status.
        """
        self.ran = True
        argv = _split_command(command, executable, path=popen["env"].get("PATH"))
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **popen
        )
        assert process.stdout is not None
        context = contextvars.copy_context()  # a flow's logger knows its run by it
        reader = threading.Thread(target=context.run, args=(self._read, process.stdout.fileno()), daemon=True)
        reader.start()
        try:
            status = self._wait(process)
        except BaseException:  # Ctrl-C, a cancelled run: what it writes, it writes under temporary names
            process.kill()
            self._wait(process)
            raise
        finally:
            reader.join(timeout=10)  # a grandchild may hold the pipe open
            if not reader.is_alive():
                process.stdout.close()
        if status:
            self.failure = explain_failure(self.stage, status, list(self._lines))
        return status

    def _wait(self, process: "subprocess.Popen[bytes]") -> int:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu += usage.ru_utime + usage.ru_stime
        return process.returncode

    def _read(self, pipe: int) -> None:
        """A bar's states end with a carriage return, lines with a new line."""
        rest = b""
        while chunk := os.read(pipe, 65536):
            *pieces, rest = re.split(rb"(?<=[\r\n])", rest + chunk)
            for piece in pieces:
                self._take(piece.decode(errors="replace"))
        self._take(rest.decode(errors="replace") + "\n")

    def _take(self, piece: str) -> None:
        text, is_progress = piece.rstrip(), piece.endswith("\r")
        if text and not is_progress:
            self._lines.append(text)
            self._pass_on(text)
        elif text and sys.stderr.isatty():
            print(f"\r{text}\x1b[K\r", end="", file=sys.stderr, flush=True)
        elif text and time.monotonic() - self._progress_at > PROGRESS_INTERVAL_S:
            self._progress_at = time.monotonic()
            self._pass_on(text)

    def _pass_on(self, text: str) -> None:
        """A listener that fails must not stop the reading: the program would block on a full pipe for ever."""
        try:
            self._on_line(text)
        except Exception:
            log.exception("the listener to %s failed; its lines go to stderr", self.stage)
            self._on_line = _to_stderr


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _split_command(command: str, executable: str, *, path: str | None) -> list[str]:
    """Without a shell where none is needed: some shells stay between, and a stage dies with its parent only."""
    if re.fullmatch(r"[\w@%+:,./ -]+", command) and shutil.which(command.split()[0], path=path):
        return shlex.split(command)
    return [executable, "-c", command]


def explain_failure(stage: str, status: int, lines: list[str]) -> str:
    """Why a program failed: its own error, from the line that names it, else its last lines."""
    named = [at for at, line in enumerate(lines) if re.match(r"(\w+: )?[\w.]*(Error|Exception)\b", line)]
    shown = [line.removeprefix(f"{stage}: ") for line in lines[named[-1] if named else -5 :]]
    end = _describe_signal(status) or ("" if named else f"ended with exit status {status}")
    return "\n".join([end, *shown] if end else shown)


def _describe_signal(status: int) -> str:
    """The signal that ended a program, if one did. A shell reports it as 128 plus its number."""
    number = -status if status < 0 else status - 128
    if number not in set(signal.Signals):
        return ""
    name = signal.Signals(number).name
    why = {"SIGKILL": " (by hand, or because memory ran out)", "SIGINT": " (Ctrl-C)"}.get(name, "")
    return f"ended by {name}{why}"
