"""What the engine spreads, timed in a process of its own, as a benchmark wants it.

    python -m tests.benchmarks.engine_timed periods | cuts | candidates | tune | start

In the folder that it is started in, with stage.cluster as params.yaml there says. Prints the seconds that the work took
once the processes had started, those that their start took, and the hash of what was made. And the seconds of CPU on
the longest way through: this process's and the busiest worker's. What else the machine does counts little there.
"""

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import psutil

from tasks import params
from tasks.data import featurerows, features, featuresql, manifest, periods
from tasks.params import Params, Recipe
from tasks.promotion.evidence import Fits
from tasks.replay import ahead, history
from tasks.runtime import engine
from tasks.training import tune
from tasks.training.trials import Tuned

DRAWN = {"max_depth": 5, "eta": 0.15, "subsample": 0.8, "max_bin": 64}
ROUNDS = 60
WEEK = timedelta(weeks=1)
TOLD = {".ubj", ".parquet"}  # what does not tell of seconds


def make_periods(p: Params, into: Path) -> None:
    features.build(p, p.paths.clean, into / "features", featuresql.SQL.read_text())


def make_cuts(p: Params, into: Path) -> None:
    rows = featurerows.read_rows(p.paths.features)
    tuned = Tuned(DRAWN, ROUNDS, None, "logloss", None, 0, 0, "recipe")
    fits = Fits.open(into, p, tuned, rows)
    fits.fit(fits.list_missing(manifest.FeaturesManifest.read(p.paths.features).as_of, most=12))


def make_candidates(p: Params, into: Path) -> None:
    """Of eight weeks; their recipe is given."""
    p = history.reduce_search(p.model_copy(update={"tune": p.tune.model_copy(update={"recipe": recipe()})}))
    past = history.History(p, p.paths.features.absolute(), featuresql.SQL.read_text(), (into / "shelf").absolute())
    works = [ahead.Work(history.Training(moment, moment), moment) for moment in list_weeks(past.as_of)]
    alone = p.model_copy(update={"stage": p.stage.model_copy(update={"cluster": None})})
    engine.map_ordered(ahead.make, replace(past, p=alone), works, p)


def list_weeks(as_of: datetime) -> list[datetime]:
    return [as_of - place * WEEK for place in range(8)]


def recipe() -> Recipe:
    return Recipe(params=DRAWN, rounds=ROUNDS)


def make_search(p: Params, into: Path) -> None:
    for folder in (p.paths.features,):
        shutil.copytree(folder, into / folder)
    tune.tune(p, into, home=into / "home")


PARTS: dict[str, Callable[[Params, Path], None]] = {
    "periods": make_periods,
    "cuts": make_cuts,
    "candidates": make_candidates,
    "tune": make_search,
    "start": lambda _p, _into: None,
}


def hash_made(folder: Path) -> str:
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in TOLD or path.name == "tuned.json"]
    return periods.hash_inputs([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths])


def read_way() -> float:
    """CPU seconds of this process, and of its busiest worker."""
    children = [sum(child.cpu_times()[:2]) for child in psutil.Process().children()]
    return time.process_time() + max(children, default=0.0)


def main(part: str) -> None:
    p, began = params.load(Path("params.yaml")), time.perf_counter()
    engine.start(p)
    started, before = time.perf_counter(), read_way()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        PARTS[part](p, Path(folder))
        took, way = time.perf_counter() - started, read_way() - before
        timed = {"seconds": took, "way": way, "start": started - began, "made": hash_made(Path(folder))}
        print(json.dumps(timed))


if __name__ == "__main__":
    main(sys.argv[1])
