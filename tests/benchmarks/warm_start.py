"""Ways to bring a model up to date, week by week after it was made: what each loses on the next week, and its CPU.

    python -m tests.benchmarks.warm_start ../hotels 250 2016-12-01 2017-02-01

In a checkout whose features are made up to a later as_of: with a recipe of so many rounds, champions of these days, and
for each every second of the twelve weeks that follow. Prints a line for each way.
"""

import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks import params
from tasks.data import featurerows
from tasks.data.featurerows import Rows
from tasks.params import Params
from tasks.promotion.contest import row_losses
from tasks.training import fitting, matrices, model, split, train, warm
from tasks.training.matrices import Encoded
from tasks.training.model import Model, Spec
from tasks.training.trials import Tuned

WEEK = timedelta(weeks=1)
WEEKS = range(2, 13, 2)  # after a champion was made
EVERY = "13w"  # train.warm
RECENT = 8 * WEEK
DRAWN: dict[str, Any] = {
    "max_depth": 6,
    "eta": 0.08,
    "min_child_weight": 8,
    "subsample": 0.7,
    "colsample_bytree": 0.7,
    "lambda": 1,
    "gamma": 0.5,
    "max_bin": 256,
}


@dataclass
class Champion:
    """A champion of a day, and where ways that go on from their own last model have come to."""

    p: Params
    rows: Rows
    tuned: Tuned
    day: datetime

    def __post_init__(self) -> None:
        self.chains: dict[str, tuple[Model, datetime]] = {}

    @cached_property
    def model(self) -> Model:
        return train.fit(self.take_seen(self.day), self.tuned, self.p, threads=1)

    def take_seen(self, cut: datetime, since: datetime | None = None) -> Rows:
        seen = fitting.take_training(self.rows, cut, self.p).load()
        return seen.take(seen.event_time >= np.datetime64(since - self.p.label.deadline)) if since else seen

    def refit(self, now: datetime, *, every: str | None = None, seed: int = 0) -> Model:
        settings = self.p.train.model_copy(update={"warm": params.parse_duration(every) if every else None})
        p = self.p.model_copy(update={"train": settings})
        return train.fit(self.take_seen(now), self.tuned, p, seed=seed, threads=1)

    def add_rounds(self, base: Model, rows: Rows, share: float, *, slower: float = 1) -> Model:
        """So many more of the recipe's rounds, on these rows."""
        if not len(rows):
            return base
        spec, rounds = with_new_categories(base, rows), max(1, round(self.tuned.rounds * share))
        settings = self._settings(spec) | {"eta": self.tuned.params["eta"] / slower, "seed": 1}
        data = Encoded(spec, rows).bin(self.tuned.params, threads=1, memory=math.inf)
        return Model(model.import_xgboost().train(settings, data, rounds, xgb_model=base.booster), spec)

    def refresh_leaves(self, rows: Rows) -> Model:
        """The champion's trees, with the values of their leaves from these rows."""
        spec, xgb = with_new_categories(self.model, rows), model.import_xgboost()
        data = xgb.DMatrix(
            spec.encode(rows.table),
            label=spec.scale_label(rows.label),
            feature_names=spec.names,
            feature_types=spec.types,
            enable_categorical=spec.native,
            nthread=1,
        )
        settings = {name: value for name, value in self._settings(spec).items() if name != "tree_method"}
        settings |= {"process_type": "update", "updater": "refresh", "verbosity": 0, "subsample": 1}
        return Model(xgb.train(settings, data, self.tuned.rounds, xgb_model=self.model.booster), spec)

    def go_on(self, name: str, now: datetime, make: Callable[[Model, datetime], Model]) -> Model:
        """What a way makes of its own last model and the day of that."""
        made = make(*self.chains.get(name, (self.model, self.day)))
        self.chains[name] = made, now
        return made

    def _settings(self, spec: Spec) -> dict[str, Any]:
        return fitting.to_booster_params(self.tuned.params, self.p, classes=len(spec.classes)) | {"nthread": 1}


def with_new_categories(base: Model, rows: Rows) -> Spec:
    now = matrices.find_categories(rows, base.spec)
    categories = {
        name: (*texts, *(text for text in now[name] if text not in set(texts)))
        for name, texts in base.spec.categories.items()
    }
    return replace(base.spec, categories=categories)


def list_ways(champion: Champion, now: datetime) -> Mapping[str, Callable[[], Model]]:
    seen, since, share = champion.take_seen, champion.day, warm.LAST_SHARE
    add, go_on = champion.add_rounds, champion.go_on
    return {
        "the champion": lambda: champion.model,
        "refit": lambda: champion.refit(now),
        "refit, another seed": lambda: champion.refit(now, seed=1),
        f"train.warm: {EVERY}": lambda: champion.refit(now, every=EVERY),
        "+ 20 % of the rounds, all rows": lambda: add(champion.model, seen(now), share),
        "+ 20 %, newer rows": lambda: add(champion.model, seen(now, since), share),
        "+ 20 %, newer rows, eta / 4": lambda: add(champion.model, seen(now, since), share, slower=4),
        "+ 20 %, 8 weeks": lambda: add(champion.model, seen(now, now - RECENT), share),
        "+ 5 % each time, all rows": lambda: go_on("all", now, lambda base, _: add(base, seen(now), 0.05)),
        "+ 5 % each time, newer rows": lambda: go_on("new", now, lambda base, day: add(base, seen(now, day), 0.05)),
        "leaves, all rows": lambda: champion.refresh_leaves(seen(now)),
        "leaves, 8 weeks": lambda: champion.refresh_leaves(seen(now, now - RECENT)),
    }


def measure(champion: Champion) -> dict[str, list[tuple[float, float, float]]]:
    """By way and week: the mean loss on the week's rows, the seconds of CPU, and the model's megabytes."""
    p, measured = champion.p, defaultdict(list)
    champion.model  # noqa: B018 (its fit is no week's)
    for now in (champion.day + week * WEEK for week in WEEKS):
        inside = split.select_between(champion.rows.event_time, now, now + WEEK)
        unseen = champion.rows.take(inside & model.is_labelled(champion.rows.label))
        for name, make in list_ways(champion, now).items() if len(unseen) else ():
            began = time.process_time()
            made = make()
            spent = time.process_time() - began
            known = unseen.take(~np.isnan(made.spec.encode_label(unseen.label)))
            codes: NDArray[np.float64] = made.spec.encode_label(known.label)
            losses = row_losses(codes, made.predict(known.table), metric=p.gate.metric)
            measured[name].append((float(losses.mean()), spent, len(made.to_bytes()) / 1e6))
    return measured


def main() -> None:
    folder, rounds, days = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    p = params.load(folder / "params.yaml")
    rows, tuned = featurerows.read_rows(folder / p.paths.features), Tuned(DRAWN, rounds, None, "", None, 0, 0, "recipe")
    results: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for day in days:
        champion = Champion(p, rows, tuned, datetime.fromisoformat(day))
        for name, weeks in measure(champion).items():
            results[name] += weeks
    refits = np.array(results["refit"])
    stale = np.array(results["the champion"])[:, 0]
    print(f"{len(refits)} weeks; loss: mean squared error or log loss; gain: of the refit over the champion")
    for name, weeks in results.items():
        loss, cpu, size = np.array(weeks).T
        worse = loss - refits[:, 0]
        error = worse.std(ddof=1) / np.sqrt(len(worse))
        kept = (stale - loss).mean() / (stale - refits[:, 0]).mean()
        print(
            f"{name:32} loss {loss.mean():.5g}, less the refit's {worse.mean():+.3g} ± {error:.2g}; gain {kept:4.0%}; "
            f"CPU {cpu.mean():.2f} s, {cpu.mean() / refits[:, 1].mean():4.0%}; {size.max():.2f} MB"
        )


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        os.environ["EVERGREEN_HOME"] = scratch  # the bases are made anew
        main()
