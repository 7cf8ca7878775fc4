"""cost: the CPU seconds that the parts of a run took, kept beside DVC's own files and outside of every output.

    <project>/.dvc/tmp/cost/<part>.json

A part is a stage, or what comes after the stages, such as the judging. A stage that DVC took from its cache did not run
and has no file. Threads and ended children count. Wall time would not do: a run that waits for its turn costs nothing.
"""

import contextlib
import json
import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tasks.runtime import files

FIRST = "ingest"  # DVC runs it in every run, so that what is older is of an earlier run
PART = "cpu."  # and the part: the name of a metric
HOUR_S = 3600.0
_elsewhere: list[float] = []


def begin(root: Path) -> None:
    """Forget what an earlier run in this project took."""
    shutil.rmtree(_folder(root), ignore_errors=True)


def note(root: Path, part: str, seconds: float) -> None:
    """Keep what a part took; another figure for the same part is replaced. Nothing is kept where DVC has no folder."""
    if (root / ".dvc").is_dir():
        with contextlib.suppress(OSError):  # no run fails for it
            files.publish_json(_folder(root) / f"{part}.json", {"cpu": round(seconds, 2)})


def read(root: Path) -> dict[str, float]:
    """CPU seconds by part, in the order in which the parts ended."""
    paths = sorted(_folder(root).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return {path.stem: float(json.loads(path.read_text())["cpu"]) for path in paths}


@contextlib.contextmanager
def measure(root: Path, part: str) -> Iterator[None]:
    """Keep what this process takes in the block as a part's; of a block that fails, what it took until then."""
    began = read_usage()
    try:
        yield
    finally:
        note(root, part, read_usage() - began)


def read_usage() -> float:
    """CPU seconds of this process so far: user and system, with all threads, the children that have ended, and what
    workers of its engine took."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + sum(_elsewhere)


def read_own_usage() -> float:
    """The same without children."""
    return time.process_time() + sum(_elsewhere)


def add_elsewhere(seconds: float) -> None:
    """Count what a worker of this process's engine took: it goes on living, so the kernel does not count it yet."""
    _elsewhere.append(seconds)


def list_metrics(parts: Mapping[str, float], cpu_price: float) -> dict[str, float]:
    """CPU seconds and money as metrics of an MLflow run: of all parts, and the seconds of each."""
    whole = {"cpu_s": round(sum(parts.values()), 2), "cost": float(f"{price(parts, cpu_price):.4g}")}
    return whole | {f"{PART}{part}": seconds for part, seconds in parts.items()}


def price(parts: Mapping[str, float], cpu_price: float) -> float:
    """What the parts cost, at so much an hour of one CPU."""
    return sum(parts.values()) / HOUR_S * cpu_price


def _folder(root: Path) -> Path:
    return root / ".dvc" / "tmp" / "cost"
