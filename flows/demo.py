"""demo: the tour. The whole loop on the real flights, in a few minutes and one page.

    evergreen demo

A first model must beat the baselines. Then months go by: the champion scores what arrived, outcomes come late, the
monitor measures each week and decides, a refresh meets the gate, and the fresher model is compared with the one before
it. The flows are called one after another here; under `evergreen up` schedules and an event start them. One
Prefect server is started for all, since each run without a server would start its own, and stopped at the end. What the
runs leave behind stays in .evergreen, for the UIs; what they log goes to a file there. The steps are in tour.py.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich import progress
from rich.console import Console

from flows import cli
from infra.servers import run_prefect
from tasks import params

FIRST = datetime(2013, 4, 15)  # as_of of the first model
STEPS = 4


def demo() -> None:
    """Live through months of real flights: a first model ages, a refresh is promoted, and the fresher model serves."""
    log = params.home() / "logs" / "demo.log"
    console = Console(highlight=False)
    console.print("[bold]evergreen[/] keeps a model fresh: will a flight from New York arrive 15 minutes late or more?")
    console.print(f"{STEPS} steps, about three minutes. What the flows log goes to {log}", soft_wrap=True)
    with divert_output(log) as screen, run_prefect() as address:
        os.environ["PREFECT_API_URL"] = address  # before prefect is imported
        from flows import tour

        tour.Tour(screen).run()


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
        elapsed = progress.TimeElapsedColumn()
        columns = (progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.BarColumn(), elapsed)
        logger, is_hidden = logging.getLogger("prefect.task_runs"), not self.bars.is_terminal
        with progress.Progress(*columns, console=self.bars, transient=True, disable=is_hidden) as bars:
            handler = _Advance(bars, steps)
            logger.addHandler(handler)
            try:
                yield
            finally:
                logger.removeHandler(handler)


class _Advance(logging.Handler):
    """Moves a bar on by what tasks log."""

    def __init__(self, bars: progress.Progress, steps: int) -> None:
        super().__init__()
        self.bars = bars
        self.bar = bars.add_task("begin", total=steps)

    def emit(self, record: logging.LogRecord) -> None:
        is_end = record.getMessage().startswith("Finished in state")
        self.bars.update(self.bar, description=f"{getattr(record, 'task_run_name', ''):<20}", advance=int(is_end))


if __name__ == "__main__":
    cli.run("demo")
