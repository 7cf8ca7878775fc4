"""screen: what a person sees of flows that run for minutes in this process: lines and a progress bar, and no logs."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def divert_output(log: Path) -> "Iterator[Screen]":
    """While the block lasts, whatever this process and its children print goes to a file. Yields what still reaches
    the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    outputs = (sys.stdout, sys.stderr)
    for output in outputs:
        output.flush()
    before = [os.dup(descriptor) for descriptor in (1, 2)]
    with log.open("wb") as sink, os.fdopen(before[0], "w") as lines, os.fdopen(before[1], "w") as bars:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield Screen(Console(file=lines), Console(file=bars))
        finally:
            for descriptor, output in zip((1, 2), outputs, strict=True):
                output.flush()
                os.dup2(before[descriptor - 1], descriptor)


@dataclass(frozen=True)
class Screen:
    lines: Console
    bars: Console

    @contextmanager
    def show_progress(self, steps: int) -> Iterator[None]:
        """On a terminal, a bar of the Prefect tasks that finish while the block lasts; `steps` are expected."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        logger = logging.getLogger("prefect.task_runs")
        with Progress(*columns, console=self.bars, transient=True, disable=not self.bars.is_terminal) as progress:
            handler = _Advance(progress, steps)
            logger.addHandler(handler)
            try:
                yield
            finally:
                logger.removeHandler(handler)


class _Advance(logging.Handler):
    """Moves a bar on by what tasks log."""

    def __init__(self, progress: Progress, steps: int) -> None:
        super().__init__()
        self.progress = progress
        self.bar = progress.add_task("begin", total=steps)

    def emit(self, record: logging.LogRecord) -> None:
        finished = record.getMessage().startswith("Finished in state")
        name = getattr(record, "task_run_name", "")
        self.progress.update(self.bar, description=f"{name:<20}", advance=int(finished))
