"""tuning: trials a minute against a plain loop of fits, and that the faster one finds no worse a model."""

import json
import shutil
from statistics import median
from typing import Any

from tests.benchmarks.place import Bench, Checkout
from tests.benchmarks.row import Row, benchmark, row

NAME = "tuning: trials a minute ÷ a plain loop of XGBClassifier.fit"
NEAR = 0.001  # of log loss
SEED = 20130101


@benchmark(NAME)
def against_a_plain_loop(bench: Bench) -> list[Row]:
    """Both from the features on disk to the best score, imports left out; trials, not time, end both."""
    place, trials = bench.featured, 4 if bench.quick else 24
    ours, theirs = [], []
    for turn in range(bench.times(2)):
        place.set(tune={"trials": trials, "budget": "2h", "seed": SEED + turn})
        ours.append(tuned(place))
        theirs.append(place.run("tests.benchmarks.plain_search").output)
    worse = median(one["score"] - other["score"] for one, other in zip(ours, theirs, strict=True))
    over, under = ([60 * trials / item["seconds"] for item in runs] for runs in (ours, theirs))
    pruned = median(item["pruned"] for item in ours)
    detail = (
        f"{trials} trials: {median(over):.1f} and {median(under):.1f} a minute, {pruned:.0f} of ours pruned; "
        f"best log loss {scores(ours)} and {scores(theirs)}: {'' if worse <= NEAR else 'NOT '}within {NEAR} or better"
    )
    return [row(NAME, over=over, under=under, bar=3, sense="at least", detail=detail, sound=worse <= NEAR)]


def tuned(place: Checkout) -> dict[str, Any]:
    """tasks.training.tune without what it remembers of an earlier search."""
    shutil.rmtree(place.home / "studies", ignore_errors=True)
    result = place.run("tests.benchmarks.stage_timed", "tune").output
    made = json.loads((place.root / "models/tuned.json").read_text())
    return {**result, "score": made["score"], "pruned": made["pruned"]}


def scores(runs: list[dict[str, Any]]) -> str:
    return ", ".join(f"{one['score']:.4f}" for one in runs)
