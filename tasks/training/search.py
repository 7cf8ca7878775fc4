"""The search: trials side by side until they or the budget are spent, and the finalists on all rows.

The sampler's seed is tune.seed and the trial's number, and what has ended is in the log. So a search that is killed and
started again is the search that nobody killed.
"""

import json
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from tasks.params import Params
from tasks.training import fitting, pruning, space, trial_log
from tasks.training.folds import Folds, fit_folds


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
    folds: Folds
    study: optuna.Study
    path: Path

    def run(self) -> str:
        """Runs trials until they, or the budget, are spent, at least one; returns "trials" or "budget"."""
        from tqdm import tqdm

        tune = self.p.tune
        spent = trial_log.restore_trials(self.study, self.path, self.p)
        done, mark = len(self.study.trials), time.monotonic()
        with tqdm(total=tune.trials, initial=done, desc="tune", unit="trial", mininterval=1, leave=False) as bar:
            for first in range(done, tune.trials, tune.parallel):
                if first and spent >= tune.budget.total_seconds():
                    return "budget"
                numbers = range(first, min(first + tune.parallel, tune.trials))
                self._run_trials(numbers)
                now = time.monotonic()
                mark, seconds = now, now - mark  # with what was written after the trials before
                spent += seconds
                rows = [trial_log.to_row(trial) for trial in self.study.get_trials(deepcopy=False)[first:]]
                trial_log.append_rows(self.path, [{**row, "seconds": seconds / len(numbers)} for row in rows])
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
        finals = [Final(**json.loads(line)) for line in trial_log.read_lines(path)]
        missing = [number for number in numbers if number not in {final.number for final in finals}]
        return sorted([*(final for final in finals if final.number in numbers), *self._fit_finals(missing, path)])

    def _ended(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _run_trials(self, numbers: Sequence[int]) -> None:
        """Trials side by side: all are drawn, and pruned, by what the trials before them all came to."""
        trials, stop = [self._ask(number) for number in numbers], threading.Event()
        for side, trial in enumerate(trials):
            self.folds.bin_thinned(trial.params, side)  # with all threads, before they are shared out
        works = [partial(self._score, trial, side, stop) for side, trial in enumerate(trials)]
        for trial, score in zip(trials, fitting.run_side_by_side(works, len(works), stop=stop), strict=True):
            self.study.tell(trial, score, state=TrialState.PRUNED if score is None else None)

    def _ask(self, number: int) -> Trial:
        self.study.sampler = space.make_sampler(self.p, number)
        dimensions = self.p.tune.space
        if number == 0:
            self.study.enqueue_trial(space.make_first_trial(dimensions))
        return self.study.ask({name: space.to_distribution(dimensions[name]) for name in sorted(dimensions)})

    def _score(self, trial: Trial, side: int, stop: threading.Event) -> float | None:
        """The mean of the folds' best validation scores, weighted by their rows; None when the trial was pruned."""
        elders = pruning.read_curves(self.study)
        parts = self.folds.bin_thinned(trial.params, side)
        watch = partial(pruning.make_watcher, trial, elders, self.p, stop)
        try:
            progress, rounds = fit_folds(trial.params, parts, self.folds.spec, self.p, watch)
        except optuna.TrialPruned:
            return None
        trial.set_user_attr("rounds", rounds)
        return progress.mean

    def _fit_finals(self, numbers: Sequence[int], path: Path) -> list[Final]:
        """Fits these trials on all rows; each is in the log when it has ended."""
        from tqdm import tqdm

        finals: list[Final] = []
        with tqdm(total=len(numbers), desc="finalists", unit="trial", mininterval=1, leave=False) as bar:
            for first in range(0, len(numbers), self.p.tune.parallel):
                some, stop = numbers[first : first + self.p.tune.parallel], threading.Event()
                works = [partial(self._fit_final, number, stop) for number in some]
                ended = fitting.run_side_by_side(works, len(works), stop=stop)
                trial_log.append_rows(path, [asdict(final) for final in ended])
                finals += ended
                bar.update(len(some))
        return finals

    def _fit_final(self, number: int, stop: threading.Event) -> Final:
        drawn: dict[str, Any] = self.study.trials[number].params
        parts = self.folds.bin_whole(drawn)
        progress, rounds = fit_folds(drawn, parts, self.folds.spec, self.p, lambda *_: fitting.make_stopper(stop))
        return Final(progress.mean, number, rounds)
