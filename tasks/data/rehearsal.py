"""rehearsal: ingest and clean as they would run now, in a folder of their own that is removed, for `evergreen plan`.

    python -m tasks.data.rehearsal        in that folder

What comes out of ingest and clean decides which periods of features have to be computed, and only their work tells.
Both take from the cache of periods what it has; what they make is gone with the folder. Features are not computed: that
the cache lacks a period of them is known beforehand.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks import params
from tasks.data import clean, deliveries, features, featuresql, ingest, periods
from tasks.data.sources import fetch
from tasks.params import Params
from tasks.runtime import cost, engine, locks, store

RESULT = "rehearsed.json"
CODE = "EVERGREEN_CODE"  # where the checkout's features.sql is


@dataclass(frozen=True)
class Rehearsed:
    """What ingest and clean came to.

    Attributes:
        folder: where their outputs are, while the block lasts.
        seconds: by stage.
        made: by stage, the periods that its program would make; others are in the cache.
        periods: by stage, all periods.
        failed: the stage that fails, and why; nothing after it is known.
    """

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    made: dict[str, list[str]] = field(default_factory=dict)
    periods: dict[str, list[str]] = field(default_factory=dict)
    failed: tuple[str, str] | None = None


@contextlib.contextmanager
def rehearse(checkout: Path, settings: Path) -> Iterator[Rehearsed]:
    """Rehearse a checkout's ingest and clean by the params.yaml at `settings`.

    Sources elsewhere are not asked: what was fetched last stands for them. Where that is nothing, ingest fails.
    """
    with tempfile.TemporaryDirectory(prefix="evergreen-plan-") as scratch:
        folder, home = Path(scratch), params.home(checkout)
        (folder / ".dvc").mkdir()
        shutil.copyfile(settings, folder / "params.yaml")
        _mirror_home(home, folder / "home")
        env = os.environ | {
            "EVERGREEN_HOME": str(folder / "home"),
            "EVERGREEN_PERIODS": str(folder / "periods"),
            "EVERGREEN_CHECKOUT": str(checkout),
            CODE: str(checkout),
            fetch.LAST_COPIES: "1",
            store.VARIABLE: "",
            locks.VARIABLE: "",
            "PYTHONPATH": str(checkout),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        _mirror_periods(periods.find_cache(checkout), folder / "periods")
        command = [sys.executable, "-m", "tasks.data.rehearsal"]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        if done.returncode or not (folder / RESULT).exists():
            raise RuntimeError(f"the rehearsal of ingest and clean has failed: {done.stderr.strip()[-2000:]}")
        content = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        failed = tuple(content.pop("failed") or ()) or None
        yield Rehearsed(folder, failed=failed, **content)


def _mirror_home(home: Path, mirror: Path) -> None:
    """What ingest reads in a home: the key of the pseudonyms, what came last, and what was fetched."""
    mirror.mkdir(mode=0o700)
    if (home / "pii.key").exists():
        shutil.copy2(home / "pii.key", mirror)
    for name in (deliveries.ROWS, deliveries.SETTLED):
        if (home / name).is_dir():
            shutil.copytree(home / name, mirror / name)
    if (home / "sources").is_dir():
        (mirror / "sources").symlink_to((home / "sources").resolve())


def _mirror_periods(cache: Path, mirror: Path) -> None:
    """The entries of a cache by links to their files: what is added to the mirror, or touched there, is not in it."""
    for entry in cache.glob("??/*"):
        target = mirror / entry.parent.name / entry.name
        target.mkdir(parents=True)
        for path in entry.rglob("*"):
            if path.is_file():
                (target / path.relative_to(entry)).parent.mkdir(parents=True, exist_ok=True)
                (target / path.relative_to(entry)).symlink_to(path.resolve())


# --- in the folder ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Run ingest and clean here, and write what came of them to a file."""
    p, name = params.load(), ""
    p = p.model_copy(update={"stage": p.stage.model_copy(update={"cluster": None})})  # which shares no such folder
    result: dict[str, Any] = {"seconds": {}, "made": {}, "periods": {}, "failed": None}
    try:
        for name, act in (("ingest", ingest.ingest), ("clean", clean.clean)):
            began, before = time.monotonic(), len(cost.read_made(Path()))
            act(p)
            result["seconds"][name] = time.monotonic() - began
            result["made"][name] = [cost.name_period(path) for path, _ in cost.read_made(Path())[before:]]
        result["periods"]["clean"] = sorted(map(cost.name_period, p.paths.clean.glob("*/*.parquet")))
        name = "features"
        result["periods"][name], result["made"][name] = find_missing_features(p)
    except (ValueError, OSError, MemoryError) as error:
        result["failed"] = [name, str(error)]
    Path(RESULT).write_text(json.dumps(result), encoding="utf-8")


def find_missing_features(p: Params) -> tuple[list[str], list[str]]:
    """The periods of the features, and those that the cache lacks. Raises ValueError for SQL that may not run."""
    sql = (Path(os.environ[CODE]) / featuresql.SQL).read_text(encoding="utf-8")
    featuresql.check_sql(p, sql)
    tables = features.open_tables(p, p.paths.clean)
    build = features.Build(engine.divide(p), tables, sql, p.paths.features)
    spans = [period for period, _ in tables.timed[p.spine.table]]
    names = {period: f"{p.paths.features.name}/{period.name}" for period in spans}
    return list(names.values()), [names[one] for one in spans if not periods.is_made(build.open_job(one).key)]


if __name__ == "__main__":
    main()
