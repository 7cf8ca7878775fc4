"""pastfits: one recipe fitted up to the beginning of many weeks, each calibrated by what older fits say of later rows.

    <folder>/<cut>/plain.ubj     a fit without its calibration: of a cut that is under way, or made to calibrate others
    <folder>/<cut>/model.ubj     the calibrated fit

`train.calibrate` trains a model for each fold, up to where the fold begins. Here a fit up to that week, or a little
before, is there as a rule, and has not seen the fold either. So calibration trains nothing, where it took two thirds of
the CPU. A fold begins with a week here; README.md tells what that changes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from tasks import log
from tasks.data.storedrows import AnyRows
from tasks.params import Params
from tasks.promotion.weekgrid import WEEK, Grid
from tasks.runtime import cost, files
from tasks.runtime.threads import stop_event
from tasks.training import fitting, model, split, train
from tasks.training.model import Model
from tasks.training.train import OutOfFold
from tasks.training.trials import Tuned

PLAIN, MODEL = "plain.ubj", "model.ubj"
REPORT_S = 15.0  # between two lines of progress


@dataclass(frozen=True)
class Maker:
    """Makes the fits of a recipe in its folder. Each file is whole or absent, so that a second try goes on."""

    folder: Path
    p: Params
    tuned: Tuned
    rows: AnyRows
    grid: Grid

    def make(self, weeks: Sequence[int]) -> int:
        """Make the calibrated fits up to the beginnings of these weeks; how many boosters that took."""
        helpers = list(self._list_helpers(weeks))
        plain = [week for week in sorted({*helpers, *weeks}) if not (self.place(week) / PLAIN).exists()]
        first, last = (f"{self.grid.begin_of(week):%Y-%m-%d}" for week in (weeks[0], weeks[-1]))
        more = f", and {len(helpers)} older ones to calibrate them by" if helpers else ""
        log.info("evidence: %s fits of the recipe are missing, up to %s ... %s%s", len(weeks), first, last, more)
        model.import_xgboost()  # here, since threads that import it at once get in each other's way
        beside = fitting.count_beside(self.rows, self.p)
        self._spread(Maker.fit_plain, plain, _Progress(len(plain)).count, threads=beside)
        self._spread(Maker.calibrate, weeks, threads=1)  # it sets the threads of BLAS, which are the process's
        for week in weeks:  # now that none is calibrated by it
            (self.place(week) / PLAIN).unlink(missing_ok=True)
        return len(plain)

    def _spread(
        self,
        work: "Callable[[Maker, int], None]",
        weeks: Sequence[int],
        report: Callable[[int], None] = lambda _: None,
        *,
        threads: int,
    ) -> None:
        names = [f"the fit up to {self.grid.begin_of(week):%Y-%m-%d}" for week in weeks]
        costs = list(map(float, weeks))  # a later week has more rows before it
        fitting.map_fits(work, self, weeks, self.p, names=names, costs=costs, threads=threads, report=report)

    def place(self, week: int) -> Path:
        return self.folder / self.grid.begin_of(week).strftime("%Y-%m-%dT%H")

    def fit_plain(self, week: int) -> None:
        """A week's fit without its calibration."""
        cut = self.grid.begin_of(week)
        seen = fitting.take_training(self.rows, cut, self.p)
        plain = train.fit(seen, self.tuned, self.p, threads=1, stop=stop_event())
        files.publish(self.place(week) / PLAIN, plain.with_spec(until=cut.isoformat()).write)

    def calibrate(self, week: int) -> None:
        """A week's calibrated fit, of the one without."""
        cut, plain = self.grid.begin_of(week), Model.load(self.place(week) / PLAIN)
        older = list(self._load_older(week, plain.spec.classes))
        score = partial(self._score_folds, week, older) if len(older) == self.p.split.folds else None
        fields = train.calibrate(self.rows, cut, self.tuned, self.p, spec=plain.spec, score=score)
        files.publish(self.place(week) / MODEL, plain.with_spec(**fields).write)

    # --- the folds of a cut, by the fits that are older

    @property
    def _fold(self) -> int:
        """The length of a fold in weeks."""
        return max(1, round(self.p.split.fold / WEEK))

    def _list_begins(self, week: int) -> list[int]:
        """The weeks in which the folds of a cut begin, oldest first."""
        return [week - self._fold * (place + 1) for place in reversed(range(self.p.split.folds))]

    def _list_helpers(self, weeks: Sequence[int]) -> Iterator[int]:
        """The weeks whose fits calibrate those of `weeks`, and that are not there."""
        if self.p.label.task == "regression" or self.p.train.calibration == "none":
            return
        there = {*weeks}
        for begin in (begin for week in weeks for begin in self._list_begins(week)):
            near = range(begin - self._fold + 1, begin + 1)
            if there.isdisjoint(near) and not any(self._find_file(week) for week in near) and self._can_learn(begin):
                there.add(begin)
                yield begin

    def _can_learn(self, week: int) -> bool:
        """Whether the rows before a week hold two classes."""
        cut, p = self.grid.begin_of(week), self.p
        seen = split.select_training(self.rows.event_time, cut, p.split, deadline=p.label.deadline)
        return len(model.list_labels(self.rows.label[seen])) > 1

    def _find_file(self, week: int) -> Path | None:
        return next((path for name in (MODEL, PLAIN) if (path := self.place(week) / name).exists()), None)

    def _load_older(self, week: int, classes: tuple[Any, ...]) -> Iterator[Model]:
        """For each fold of a cut the newest fit that has not seen it, if that is near and knows the same classes."""
        for begin in self._list_begins(week):
            near = range(begin, begin - self._fold, -1)
            path = next((path for older in near if (path := self._find_file(older))), None)
            has_rows = path and self._select_fold(begin, week).any()  # none in a pause of the data
            if path and has_rows and (fitted := Model.load(path)).spec.classes == classes:
                yield fitted

    def _select_fold(self, begin: int, week: int) -> split.Mask:
        """The rows of a fold of a cut, of which the labels were due at the cut."""
        times, p = self.rows.event_time, self.p
        fold = split.select_between(times, self.grid.begin_of(begin), self.grid.begin_of(begin + self._fold))
        due = split.select_training(times, self.grid.begin_of(week), p.split, deadline=p.label.deadline)
        return fold & due & model.is_labelled(self.rows.label)

    def _score_folds(self, week: int, older: Sequence[Model]) -> OutOfFold:
        folds = [self._select_fold(begin, week) for begin in self._list_begins(week)]
        return train.join_scores(self._score(fitted, fold) for fitted, fold in zip(older, folds, strict=True))

    def _score(self, fitted: Model, fold: split.Mask) -> OutOfFold:
        seen = fitting.take_training(self.rows, datetime.fromisoformat(str(fitted.spec.until)), self.p)
        return train.score_unseen(fitted, self.rows.take(fold), self.tuned, trained_on=seen.label)


class _Progress:
    """A line now and then of how many fits are made."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._began, self._reported = cost.read_own_usage(), time.monotonic()

    def count(self, _place: int) -> None:
        self.done += 1
        if time.monotonic() - self._reported > REPORT_S:
            self._reported = time.monotonic()
            spent = cost.read_own_usage() - self._began
            log.info("evidence: %s of %s fits, %.0f s of CPU", self.done, self.total, spent)
