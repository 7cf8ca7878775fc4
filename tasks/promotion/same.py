"""same: a retrain that made what serves already. Nothing is judged; the ledger says so, and MLflow shows its cost.

Importing mlflow takes as long as all else that is left of such a retrain. So this is a program beside the flow: it
imports mlflow while the flow finds out that nothing has changed, and is asked once. A retrain that has something to
judge does not ask it. The program is the flow's own: it dies with it, and what passes between them is pickled.

The program is without pandas and what comes with it, as mlflow-skinny is: mlflow would import them, and use none here.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from tasks import log, params
from tasks.params import RetrainKind
from tasks.promotion import ledger, outcome, tracking
from tasks.promotion.registry import Version, open_registry
from tasks.promotion.verdict import Verdict, hold_same
from tasks.runtime import cost, leaving, stage

UNUSED = ("numpy", "pandas", "pyarrow", "scipy")  # for tables as arguments, which nobody gives here


@dataclass(frozen=True)
class Made:
    """What the stages of a retrain left in a workspace, all of it taken from earlier runs.

    Attributes:
        record: The hash of all of it.
        parts: CPU seconds that the retrain took, by part.
    """

    root: Path
    record: str
    as_of: datetime
    decision: str
    kind: RetrainKind
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Closed:
    """A retrain with nothing to judge: its entry is in the ledger. The links are for a person."""

    record: str
    run_id: str
    as_of: str
    champion: Version
    verdict: Verdict
    links: outcome.Links


def close(made: Made) -> Closed | None:
    """Close a retrain that made what serves. None, and nothing is written, where it made anything else, or a promotion
    or rollback was cut off: then the gate is asked."""
    p, began = params.load(made.root / "params.yaml"), cost.read_usage()
    registry = open_registry(p.registry)
    with registry.tracking.lock:  # no rollback may come between the question who serves and the answer
        champion, run_id = registry.find_champion(), registry.runs.find(made.record)
        if champion is None or champion.record != made.record or run_id is None:
            return None
        if ledger.find_unfinished(registry.read_ledger()):
            return None
        parts = {**made.parts, outcome.JUDGE: cost.read_usage() - began}
        verdict = outcome.add_costs(hold_same(champion.number), parts, made.kind, cpu_price=p.policy.cpu_price)
        outcome.add_verdict(registry.runs, run_id, verdict, cpu_price=p.policy.cpu_price)
        number = champion.number
        outcome.append_verdict(registry, verdict, run_id, decision=made.decision, as_of=made.as_of, champion=number)
    links = outcome.find_links(registry, run_id, verdict)
    return Closed(made.record, run_id, made.as_of.isoformat(), champion, verdict, links)


class Closer:
    """The program, as the flow sees it."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def close(self, made: Made) -> Closed | None:
        """What `close` returns there; None too where that fails, so that whoever asks goes on as if it were not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(made, self._process.stdin)
            self._process.stdin.close()
            answer = pickle.load(self._process.stdout)
        except Exception as error:  # whatever ended it, the gate can be asked
            log.warning("the program beside the retrain gave no answer (%s: %s)", type(error).__name__, error)
            return None
        return answer if isinstance(answer, Closed) else None

    def stop(self) -> None:
        """End the program. It holds 200 MB, and nothing will be asked of it."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self._process.wait()


@contextlib.contextmanager
def start() -> Iterator[Closer]:
    """The program, while the block lasts; it begins to import at once."""
    command = [sys.executable, "-c", "from tasks.promotion import same; same.main()"]  # so that its classes are ours
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    closer = Closer(process)
    try:
        yield closer
    finally:
        closer.stop()


def answer_once(requests: BinaryIO, answers: BinaryIO) -> None:
    """Read what was made, close it, and write what came of it."""
    tracking.load_stores()
    try:
        made = pickle.load(requests)
    except EOFError:  # the flow had something to judge
        return
    closed: Closed | None = None
    try:
        closed = close(made)
    except Exception as error:
        log.warning("%s: %s", type(error).__name__, error)
    pickle.dump(closed, answers)
    answers.flush()


def main() -> None:
    stage.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the flow, and the flow this
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    for name in UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it fails, as where it is not installed
    answer_once(sys.stdin.buffer, answers)
    leaving.leave(0)
