"""tune: Optuna searches XGBoost's parameters on expanding folds → models/tuned.json, reports/trials.json.

    python -m tasks.training.tune

Trials run side by side, on matrices that each side bins once. One that falls behind the median of its elders is pruned,
in whichever fold that shows. The search may have fewer rows than there are (tune.rows); then its best trials are fitted
once more on all of them, and the best of these wins.
"""

import json
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import optuna
from tqdm import tqdm

from tasks import log
from tasks.data import feasibility, featurerows, featuresql, manifest
from tasks.params import Params, Recipe
from tasks.runtime import files, stage
from tasks.training import fitting, studies, trials


def tune(p: Params, folder: Path = Path(), *, home: Path | None = None) -> None:
    """Write <models>/tuned.json, <reports>/trials.json and score.json. Raises ValueError where folds have no room.

    Args:
        home: keeps the log from which a killed search goes on; EVERGREEN_HOME where not given.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies.check_space(p)
    source, reports = folder / p.paths.features, folder / p.paths.reports
    as_of = manifest.FeaturesManifest.read(source).as_of
    rows = featurerows.read_rows(source)
    featuresql.check_slices(p.evaluate.slices, rows.table.column_names)  # evaluate needs them, when all is spent
    if p.tune.recipe:
        take_recipe(p, p.tune.recipe, folder)
        return
    folds = fitting.Folds(p, rows, as_of)
    study = optuna.create_study()
    with studies.open_log(p, source, as_of, home=home) as path:
        search = Search(p, folds, study, path)
        ended_by = search.run()
        finals = search.rank_finalists()
    best = finals[0]
    tuned = trials.Tuned(
        params=study.trials[best.number].params,
        rounds=best.rounds,
        score=best.score,
        metric=fitting.METRIC[p.label.task],
        trial=best.number,
        trials=len(study.trials),
        pruned=sum(trial.state.name == "PRUNED" for trial in study.trials),
        ended_by=ended_by,
    )
    tuned.write(folder / p.paths.models / "tuned.json")
    files.publish_json(reports / "score.json", {"score": tuned.score})
    by_number = {final.number: {"score": final.score, "rounds": final.rounds} for final in finals}
    listed = [studies.to_row(trial) for trial in study.trials]
    trials.write_trials(reports / "trials.json", [{**row, "final": by_number.get(row["number"])} for row in listed])
    log.info("%(trials)s trials, %(pruned)s of them pruned; best %(metric)s %(score).5f", asdict(tuned))
    if ended_by != "trials":
        log.warning("tune.%s ended the search after %s of %s trials", ended_by, tuned.trials, p.tune.trials)


def take_recipe(p: Params, recipe: Recipe, folder: Path) -> None:
    """Write what a search would, of a recipe that is given."""
    tuned = trials.Tuned(
        params=dict(recipe.params),
        rounds=recipe.rounds,
        score=None,
        metric=fitting.METRIC[p.label.task],
        trial=None,
        trials=0,
        pruned=0,
        ended_by="recipe",
    )
    tuned.write(folder / p.paths.models / "tuned.json")
    files.publish_json(folder / p.paths.reports / "score.json", {})
    trials.write_trials(folder / p.paths.reports / "trials.json", [])
    log.info("no search: tune.recipe has the parameters and %s rounds", recipe.rounds)


@dataclass(frozen=True, order=True)
class Final:
    """What a trial's parameters come to on all rows; the best is the smallest."""

    score: float
    number: int
    rounds: int


@dataclass(frozen=True)
class Search:
    """A study on folds, and the path of its log."""

    p: Params
    folds: fitting.Folds
    study: optuna.Study
    path: Path

    def run(self) -> str:
        """Runs trials until they, the time or the CPU is spent, at least one; returns "trials", "budget" or "cpu"."""
        tune = self.p.tune
        spent = studies.restore_trials(self.study, self.path, self.p)
        done, mark = len(self.study.trials), time.monotonic()
        # What a killed run took of the CPU is not in its log: all threads, as long as it lasted.
        cpu = spent * tune.parallel * self.p.stage.threads
        with tqdm(total=tune.trials, initial=done, desc="tune", unit="trial", mininterval=1, leave=False) as bar:
            for first in range(done, tune.trials, tune.parallel):
                if first and spent >= tune.budget.total_seconds():
                    return "budget"
                if first and tune.cpu and cpu * (1 + tune.parallel / first) > tune.cpu.total_seconds():
                    return "cpu"
                began = time.process_time()
                numbers = range(first, min(first + tune.parallel, tune.trials))
                self._run_trials(numbers)
                now = time.monotonic()
                mark, seconds = now, now - mark  # with what was written after the trials before
                spent += seconds
                cpu += time.process_time() - began
                rows = [studies.to_row(trial) for trial in self.study.get_trials(deepcopy=False)[first:]]
                studies.append_rows(self.path, [{**row, "seconds": seconds / len(numbers)} for row in rows])
                bar.set_postfix(best=f"{min((trial.value or 0.0 for trial in self._ended()), default=math.nan):.5f}")
                bar.update(len(numbers))
        return "trials"

    def rank_finalists(self) -> list[Final]:
        """The best trials, the best first. After a search on fewer rows these are the best of it, fitted on all rows.

        Fewer rows rank the parameters; their scores, and the rounds they want, belong to the rows that training will
        have. Finalists come after the budget: they cost as many fits of each fold as training does.
        """
        ended = self._ended()
        ranked = sorted(Final(trial.value or 0.0, trial.number, trial.user_attrs["rounds"]) for trial in ended)
        if not ranked:
            raise ValueError("no trial came to an end with a finite score: check label.expression for extreme values")
        if not self.folds.are_thinned or not self.p.tune.finalists:
            return ranked[:1]
        numbers = [final.number for final in ranked[: self.p.tune.finalists]]
        if ended[0].number == 0 and 0 not in numbers:
            numbers.append(0)  # a search on few rows may be misled: it is never worse than its first trial
        path = self.path.with_suffix(".finals.jsonl")
        finals = [Final(**json.loads(line)) for line in studies.read_lines(path)]
        missing = [number for number in numbers if number not in {final.number for final in finals}]
        return sorted([*(final for final in finals if final.number in numbers), *self._fit_finals(missing, path)])

    def _ended(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))

    def _run_trials(self, numbers: Sequence[int]) -> None:
        """Trials side by side: all are drawn, and pruned, by what the trials before them all came to."""
        trials, stop = [self._ask(number) for number in numbers], threading.Event()
        for side, trial in enumerate(trials):
            self.folds.bin_thinned(trial.params, side)  # with all threads, before they are shared out
        works = [partial(self._score, trial, side, stop) for side, trial in enumerate(trials)]
        for trial, score in zip(trials, fitting.run_side_by_side(works, len(works), stop=stop), strict=True):
            self.study.tell(trial, score, state=optuna.trial.TrialState.PRUNED if score is None else None)

    def _ask(self, number: int) -> optuna.trial.Trial:
        self.study.sampler = studies.make_sampler(self.p, number)
        dimensions = self.p.tune.space
        if number == 0:
            self.study.enqueue_trial(studies.make_first_trial(dimensions))
        return self.study.ask({name: studies.to_distribution(dimensions[name]) for name in sorted(dimensions)})

    def _score(self, trial: optuna.trial.Trial, side: int, stop: threading.Event) -> float | None:
        """The mean of the folds' best validation scores, weighted by their rows; None when the trial was pruned."""
        elders = studies.read_curves(self.study)
        parts = self.folds.bin_thinned(trial.params, side)
        watch = partial(studies.watch_trial, trial, elders, self.p, stop)
        try:
            progress, rounds = fitting.fit_folds(trial.params, parts, self.folds.spec, self.p, watch)
        except optuna.TrialPruned:
            return None
        trial.set_user_attr("rounds", rounds)
        return progress.mean

    def _fit_finals(self, numbers: Sequence[int], path: Path) -> list[Final]:
        """Fits these trials on all rows; each is in the log when it has ended."""
        finals: list[Final] = []
        with tqdm(total=len(numbers), desc="finalists", unit="trial", mininterval=1, leave=False) as bar:
            for first in range(0, len(numbers), self.p.tune.parallel):
                some, stop = numbers[first : first + self.p.tune.parallel], threading.Event()
                works = [partial(self._fit_final, number, stop) for number in some]
                ended = fitting.run_side_by_side(works, len(works), stop=stop)
                studies.append_rows(path, [asdict(final) for final in ended])
                finals += ended
                bar.update(len(some))
        return finals

    def _fit_final(self, number: int, stop: threading.Event) -> Final:
        drawn = self.study.trials[number].params
        parts, watcher = self.folds.bin_whole(drawn), fitting.make_watcher(stop)
        progress, rounds = fitting.fit_folds(drawn, parts, self.folds.spec, self.p, lambda *_: watcher)
        return Final(progress.mean, number, rounds)


if __name__ == "__main__":
    stage.main("tune", feasibility.refuse, tune)
