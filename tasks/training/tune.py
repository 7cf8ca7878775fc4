"""tune: Optuna searches XGBoost's parameters on expanding folds → models/tuned.json, reports/trials.json.

    python -m tasks.training.tune

Trials run side by side, on matrices that each side bins once. One that is behind the median of its elders after a fold
is pruned. The search may have fewer rows than there are (tune.rows); then its best trials are fitted once more on all
of them, and the best of these wins. Then the winner's step size may be halved
(tune.halvings).
"""

import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from tqdm import tqdm

from tasks import log
from tasks.data import feasibility, featuresql, manifest, storedrows
from tasks.params import Params, Recipe
from tasks.runtime import cost, engine, files, stage
from tasks.training import dropping, fitting, smallest, studies, trialfits, triallogs, trials


def tune(p: Params, folder: Path = Path(), *, home: Path | None = None) -> None:
    """Write <models>/tuned.json, <reports>/trials.json and score.json. Raises ValueError where folds have no room.

    Args:
        home: keeps the log from which a killed search goes on; EVERGREEN_HOME where not given.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies.check_space(p)
    source, reports = folder / p.paths.features, folder / p.paths.reports
    as_of = manifest.FeaturesManifest.read(source).as_of
    rows = storedrows.open_rows(source, memory=p.stage.memory_bytes)
    featuresql.check_slices(p.evaluate.slices, rows.schema.names)  # evaluate needs them, when all is spent
    if p.tune.recipe:
        take_recipe(p, p.tune.recipe, folder)
        return
    task = trialfits.Task(p, source, as_of)
    vars(task)["folds"] = fitting.Folds(p, rows, as_of)  # of rows that are read already
    study = studies.create_study(p)
    with studies.open_log(p, source, as_of, home=home) as path:
        search = Search(task, study, path)
        ended_by = search.run()
        finals = search.rank_finalists()
        choice = search.choose_smallest(finals) if p.tune.small else None
        if choice:
            finals = sorted(finals, key=lambda final: final.number != choice.trial)
        winner = search.slow_down(finals[0])
        lean = search.drop_features(winner) if p.tune.drop else None
    tuned = trials.Tuned(
        params=winner.params,
        rounds=lean.rounds if lean else winner.rounds,
        score=lean.score if lean else winner.score,
        metric=fitting.METRIC[p.label.task],
        trial=finals[0].number,
        trials=len(study.trials),
        pruned=sum(trial.state.name == "PRUNED" for trial in study.trials),
        ended_by=ended_by,
        preferred=choice.to_dict() if choice else None,
        dropped=lean.dropped if lean else [],
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
        dropped=list(recipe.dropped),
    )
    tuned.write(folder / p.paths.models / "tuned.json")
    files.publish_json(folder / p.paths.reports / "score.json", {})
    trials.write_trials(folder / p.paths.reports / "trials.json", [])
    log.info("no search: tune.recipe has the parameters and %s rounds", recipe.rounds)


ETA = studies.DEFAULTS["eta"]  # of a recipe that names none
RESERVE = 0.4  # of tune.budget, at most, for what follows the trials
WINNER = 2  # trials: what the winner's fit costs, since pruned trials and those with large steps are cheap


@dataclass(frozen=True, order=True)
class Final:
    """What a trial's parameters come to on all rows; the best is the smallest."""

    score: float
    number: int
    rounds: int
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Slower:
    """The winner with another step size, and what it comes to on all rows. The seconds are a clock's."""

    params: dict[str, Any]
    score: float
    rounds: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Search:
    """A study on folds, and the path of its log."""

    task: trialfits.Task
    study: optuna.Study
    path: Path

    @property
    def p(self) -> Params:
        return self.task.p

    @property
    def folds(self) -> fitting.Folds:
        return self.task.folds

    @property
    def _finals_path(self) -> Path:
        return self.path.with_suffix(".finals.jsonl")

    @property
    def _slower_path(self) -> Path:
        return self.path.with_suffix(".slower.jsonl")

    def run(self) -> str:
        """Runs trials until they, the time or the CPU is spent, at least one; returns "trials", "budget" or "cpu"."""
        tune = self.p.tune
        engine.start(self.p)
        spent = studies.restore_trials(self.study, self.path, self.p)
        done, mark = len(self.study.trials), time.monotonic()
        # What a killed run took of the CPU is not in its log: all threads, as long as it lasted.
        cpu = spent * tune.parallel * self.p.stage.threads
        with tqdm(total=tune.trials, initial=done, desc="tune", unit="trial", mininterval=1, leave=False) as bar:
            for first in range(done, tune.trials, tune.parallel):
                if first and spent + self._reserve_seconds(spent / first) >= tune.budget.total_seconds():
                    return "budget"
                if first and tune.cpu and cpu * (1 + tune.parallel / first) > tune.cpu.total_seconds():
                    return "cpu"
                began = cost.read_own_usage()
                numbers = range(first, min(first + tune.parallel, tune.trials))
                self._run_trials(numbers)
                now = time.monotonic()
                mark, seconds = now, now - mark  # with what was written after the trials before
                spent += seconds
                cpu += cost.read_own_usage() - began
                rows = [studies.to_row(trial) for trial in self.study.get_trials(deepcopy=False)[first:]]
                triallogs.append_rows(self.path, [{**row, "seconds": seconds / len(numbers)} for row in rows])
                bar.set_postfix(best=f"{min(map(studies.read_loss, self._ended()), default=math.nan):.5f}")
                bar.update(len(numbers))
        return "trials"

    def rank_finalists(self) -> list[Final]:
        """The best trials, the best first. After a search on fewer rows these are the best of it, fitted on all rows.

        Fewer rows rank the parameters; their scores, and the rounds they want, belong to the rows that training will
        have. The first finalists are fitted whatever the budget, the others as far as it goes.
        """
        ended = self._ended()
        front = self.study.best_trials if self.p.tune.small else ended
        ranked = sorted(Final(studies.read_loss(trial), trial.number, trial.user_attrs["rounds"]) for trial in front)
        if not ranked:
            raise ValueError("no trial came to an end with a finite score: check label.expression for extreme values")
        if self.folds.thinning == 1 or not self.p.tune.finalists:
            seconds = studies.sum_seconds(self.path) / len(self.study.trials)
            most = smallest.FRONT if self.p.tune.small else 1
            return [replace(final, seconds=seconds) for final in ranked[:most]]
        numbers = [final.number for final in ranked[: self.p.tune.finalists]]
        if ended[0].number == 0 and numbers[0] != 0:
            # A search on few rows may be misled: whatever the budget, it is never worse than its first trial.
            numbers = [numbers[0], 0, *(number for number in numbers[1:] if number != 0)]
        logged = [Final(**json.loads(line)) for line in triallogs.read_lines(self._finals_path)]
        return sorted(self._fit_finals(numbers, [final for final in logged if final.number in numbers]))

    def choose_smallest(self, finals: Sequence[Final]) -> smallest.Choice:
        """Of the finalists, the best first, the smallest that loses little more."""
        trials = self.study.trials
        candidates = [
            smallest.Candidate(final.number, trials[final.number].params, final.rounds, trials[final.number].values[1])
            for final in finals
        ]
        return smallest.choose_smallest(self.folds, candidates, self.p)

    def slow_down(self, best: Final) -> Slower:
        """The winner with half its step size, a quarter, and so on, as long as the folds gain and the budget has room.

        Shrinkage (Friedman 2001) gains a little and costs twice the rounds at each step. All steps have a seed that no
        trial had, the winner's own again too: the best of many trials owes some of its score to its seed.
        """
        winner = Slower(self.study.trials[best.number].params, best.score, best.rounds)
        if self.p.tune.small or not self.p.tune.halvings or not self._has_room(3 * best.seconds):
            return winner
        winner = self._fit_slower(winner.params)
        for _ in range(self.p.tune.halvings):
            if not self._has_room(2 * winner.seconds):
                break
            slower = self._fit_slower(winner.params | {"eta": winner.params.get("eta", ETA) / 2})
            if slower.score >= winner.score:
                break
            winner = slower
        return winner

    def _has_room(self, seconds: float) -> bool:
        """Whether the budget has so many left."""
        spent = sum(studies.sum_seconds(path) for path in (self.path, self._finals_path, self._slower_path))
        return spent + seconds <= self.p.tune.budget.total_seconds()

    def _fit_slower(self, drawn: dict[str, Any]) -> Slower:
        """These parameters on all rows, the folds side by side; from the log where it has them."""
        logged = (Slower(**json.loads(line)) for line in triallogs.read_lines(self._slower_path))
        if (done := next((slower for slower in logged if slower.params == drawn), None)) is not None:
            return done
        began, eta, p = time.monotonic(), drawn.get("eta", ETA), self._give_room(drawn)
        draws = [trialfits.SlowDraw(drawn, p, fold) for fold in range(self.folds.count)]
        ended = engine.map_ordered(trialfits.fit_slower, self.task, draws, p)
        progress = functools.reduce(fitting.Progress.join, (progress for progress, _ in ended))
        rounds = round(float(np.mean([rounds for _, rounds in ended])))
        slower = Slower(drawn, progress.mean, rounds, time.monotonic() - began)
        triallogs.append_rows(self._slower_path, [asdict(slower)])
        log.info("eta %.4f: %s %.5f after %s rounds", eta, fitting.METRIC[p.label.task], slower.score, rounds)
        return slower

    def _give_room(self, drawn: dict[str, Any]) -> Params:
        """The settings of a fit that no trial was: another seed, and as many rounds as its step size needs."""
        tune = self.p.tune
        rounds = round(tune.rounds * max(1.0, ETA / drawn.get("eta", ETA)))
        return self.p.model_copy(update={"tune": tune.model_copy(update={"rounds": rounds, "seed": tune.seed + 1})})

    def drop_features(self, winner: Slower) -> dropping.Leaner | None:
        """The winner without what earns nothing; None where all features stay."""
        return dropping.drop_features(self.folds, winner.params, winner.rounds, self._give_room(winner.params))

    def _reserve_seconds(self, trial: float) -> float:
        """What finalists and halvings will take, by what a trial takes: no more than RESERVE of tune.budget."""
        tune = self.p.tune
        finalists = tune.finalists + 1 if self.folds.thinning > 1 else 0
        halvings = WINNER * (2 ** (tune.halvings + 1) - 1) if tune.halvings else 0
        expected = trial * self.folds.thinning * (finalists + halvings)
        return min(expected, RESERVE * tune.budget.total_seconds())

    def _ended(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))

    def _run_trials(self, numbers: Sequence[int]) -> None:
        """Trials side by side: all are drawn, and pruned, by what the trials before them all came to."""
        trials, limits = [self._ask(number) for number in numbers], studies.find_limits(self.study, self.folds.count)
        draws = [trialfits.Draw(trial.number, trial.params, limits, side) for side, trial in enumerate(trials)]
        if engine.is_spread(self.p):
            draws = [replace(draw, side=0) for draw in draws]
        else:
            for draw in draws:
                self.folds.bin_thinned(draw.params, draw.side)  # with all threads, before they are shared out
        for trial, fitted in zip(trials, self._fit(trialfits.fit_trial, draws), strict=True):
            studies.tell(self.study, trial, fitted)

    def _fit(
        self, work: Callable[[trialfits.Task, trialfits.Draw], trialfits.Fitted], draws: Sequence[trialfits.Draw]
    ) -> list[trialfits.Fitted]:
        names = [f"trial {draw.number}" for draw in draws]
        return engine.map_ordered(work, self.task, draws, self.p, names=names, threads=len(draws))

    def _ask(self, number: int) -> optuna.trial.Trial:
        self.study.sampler = studies.make_sampler(self.p, number)
        dimensions = self.p.tune.space
        firsts = studies.make_first_trials(dimensions)
        if number < len(firsts):
            self.study.enqueue_trial(firsts[number])
        return self.study.ask({name: studies.to_distribution(dimensions[name]) for name in sorted(dimensions)})

    def _fit_finals(self, numbers: Sequence[int], finals: Sequence[Final]) -> list[Final]:
        """These trials on all rows: the finals, and others as far as the budget goes, but the first in any case.

        Each is in the log when it has ended.
        """
        fitted, beside = list(finals), self.p.tune.parallel
        missing = [number for number in numbers if number not in {final.number for final in finals}]
        with tqdm(total=len(missing), desc="finalists", unit="trial", mininterval=1, leave=False) as bar:
            for first in range(0, len(missing), beside):
                due = set(numbers[:beside]) - {final.number for final in fitted}
                if not due and not self._has_room(sum(final.seconds for final in fitted[-beside:])):
                    log.warning("tune.budget ends with %s of %s finalists", len(fitted), len(numbers))
                    break
                some, began = missing[first : first + beside], time.monotonic()
                draws = [trialfits.Draw(number, self.study.trials[number].params) for number in some]
                fits = self._fit(trialfits.fit_final, draws)
                seconds = (time.monotonic() - began) / len(some)
                ended = [
                    Final(one.score or 0.0, number, one.rounds, seconds) for number, one in zip(some, fits, strict=True)
                ]
                triallogs.append_rows(self._finals_path, [asdict(final) for final in ended])
                fitted += ended
                bar.update(len(some))
        return fitted


if __name__ == "__main__":
    stage.main("tune", feasibility.refuse, tune)
