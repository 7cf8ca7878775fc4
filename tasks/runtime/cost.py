"""cost: the CPU seconds that the parts of a run took, kept beside DVC's own files and outside of every output.

    <project>/.dvc/tmp/cost/<part>.json    of this run
    <home>/cost/<stage>.json               of the last run in which the stage's program ran: by it `plan` reckons

A part is a stage, or what comes after the stages, such as the judging. A stage that DVC took from its cache did not run
and has no file. Threads and ended children count. Wall time would not do: a run that waits for its turn costs nothing.
How long a person waits is another question, so that the home has wall time, and that of each period that was made.
"""

import contextlib
import json
import resource
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
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


# --- what the last runs took, for plans -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Past:
    """What a stage took when its program ran last.

    Attributes:
        wall: seconds.
        size: what it grows with, in any unit: the trials of a search; 1 where nothing does.
        made: seconds by period, such as `orders/2024-01`: of the last run that made it.
        last: the periods that this run made.
    """

    wall: float
    size: float = 1.0
    made: Mapping[str, float] = field(default_factory=dict)
    last: tuple[str, ...] = ()

    @property
    def fixed(self) -> float:
        """The seconds that were not spent on a period."""
        return max(self.wall - sum(self.made[name] for name in self.last), 0.0)


def note_made(targets: Iterable[Path], seconds: float) -> None:
    """Keep what a period took to make, by its first file in this project, the working folder; also in workers of the
    engine. Files elsewhere are passing."""
    paths = [path for path in targets if not path.is_absolute()]
    if paths and Path(".dvc").is_dir():
        with contextlib.suppress(OSError):
            _made_file(Path()).parent.mkdir(parents=True, exist_ok=True)
            with _made_file(Path()).open("a", encoding="utf-8") as file:
                file.write(f"{paths[0]} {seconds:.4f}\n")  # a short line: those of other processes stay apart


def name_period(path: Path) -> str:
    """A period's file as people see it: `orders/2024-01`."""
    return f"{path.parent.name}/{path.stem}"


def read_made(root: Path) -> list[tuple[Path, float]]:
    """The files of periods that were made in a project, in the order in which they were, with their seconds."""
    try:
        lines = _made_file(root).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    pairs = [line.rpartition(" ") for line in lines]
    return [(Path(name), float(seconds)) for name, _, seconds in pairs]


def keep(home: Path, stage: str, wall: float, made: Iterable[tuple[Path, float]], *, size: float = 1.0) -> None:
    """Keep in the home what a stage's program has taken."""
    pairs = {name_period(path): seconds for path, seconds in made}
    before = read_past(home, stage)
    past = Past(round(wall, 3), size, {**(before.made if before else {}), **pairs}, tuple(pairs))
    with contextlib.suppress(OSError):  # no run fails for it
        files.publish_json(_past_file(home, stage), asdict(past))


def read_past(home: Path, stage: str) -> Past | None:
    """What a stage took last; None where no run of it is known here."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(_past_file(home, stage).read_text(encoding="utf-8"))
        return Past(content["wall"], content["size"], content["made"], tuple(content["last"]))
    return None


def _made_file(root: Path) -> Path:
    return _folder(root) / "made.txt"


def _past_file(home: Path, stage: str) -> Path:
    return home / "cost" / f"{stage}.json"


# --- money -----------------------------------------------------------------------------------------------------------


def list_metrics(parts: Mapping[str, float], cpu_price: float) -> dict[str, float]:
    """CPU seconds and money as metrics of an MLflow run: of all parts, and the seconds of each."""
    whole = {"cpu_s": round(sum(parts.values()), 2), "cost": float(f"{price(parts, cpu_price):.4g}")}
    return whole | {f"{PART}{part}": seconds for part, seconds in parts.items()}


def price(parts: Mapping[str, float], cpu_price: float) -> float:
    """What the parts cost, at so much an hour of one CPU."""
    return sum(parts.values()) / HOUR_S * cpu_price


def _folder(root: Path) -> Path:
    return root / ".dvc" / "tmp" / "cost"
