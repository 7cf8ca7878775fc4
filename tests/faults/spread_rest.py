"""What the engine spreads besides the stages: past fits of their recipe, and the replay's candidates.

    python -m tests.faults.spread_rest FOLDER

In a checkout in which the stages have run, into that folder, with stage.cluster as params.yaml there says.
"""

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from tasks import params
from tasks.data import featurerows, featuresql, manifest
from tasks.params import Params, Recipe
from tasks.promotion.evidence import Fits
from tasks.replay import ahead, history
from tasks.runtime import engine
from tasks.training.trials import Tuned

FITS, CANDIDATES = 4, 2
WEEK = timedelta(weeks=1)


def make_fits(p: Params, tuned: Tuned, into: Path) -> None:
    rows = featurerows.read_rows(p.paths.features)
    fits = Fits.open(into / "evidence" / "recipe", p, tuned, rows)
    if fits.collect(manifest.FeaturesManifest.read(p.paths.features).as_of, most=FITS) is None:
        raise ValueError("there are no past fits of so short a table")


def make_candidates(p: Params, tuned: Tuned, into: Path) -> None:
    tune = p.tune.model_copy(update={"recipe": Recipe(params=tuned.params, rounds=tuned.rounds)})
    p = history.reduce_search(p.model_copy(update={"tune": tune}))
    past = history.History(p, p.paths.features.absolute(), featuresql.SQL.read_text(), (into / "shelf").absolute())
    moments = [past.as_of - place * WEEK for place in range(CANDIDATES)]
    works = [ahead.Work(history.Training(moment, moment), moment) for moment in moments]
    alone = p.model_copy(update={"stage": p.stage.model_copy(update={"cluster": None, "threads": 1})})
    engine.map_ordered(ahead.make, replace(past, p=alone), works, p, threads=1)
    if len(list(past.shelf.glob("*/tuned.json")) + list(past.shelf.glob("*/models/tuned.json"))) != CANDIDATES:
        raise ValueError(f"not all of the {CANDIDATES} candidates are on the shelf")


def main(into: Path) -> None:
    p = params.load()
    tuned = Tuned.load(p.paths.models / "tuned.json")
    make_fits(p, tuned, into)
    make_candidates(p, tuned, into)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
