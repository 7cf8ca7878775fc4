"""past: what policies and first dates share: candidates, predictions, verdicts and signals, each made once."""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache, lru_cache

import numpy as np
import pyarrow as pa

from tasks.monitoring import drift
from tasks.monitoring.signal import Signal
from tasks.monitoring.signals.drift import measure_drift
from tasks.monitoring.signals.freshness import make_freshness
from tasks.monitoring.signals.performance import measure_performance
from tasks.monitoring.window import Predictions, Watched, Window, read_watched
from tasks.params import SignalKind
from tasks.promotion.evidence import Fits, Kept, choose_missing
from tasks.promotion.registry import Version
from tasks.promotion.verdict import Verdict
from tasks.replay.history import Candidate, History, Training
from tasks.training import model

FIRST_SEARCHES = timedelta(weeks=13)  # apart: the first models of dates between two have the recipe of the earlier one
NO_VERSION = 0  # of a signal before it is some walk's
Needs = Mapping[datetime, Sequence[int]]  # the weeks whose past fits are needed, by the search of their recipe
Make = Callable[[History, Sequence[Training], Needs], None]


@dataclass(frozen=True)
class Held:
    """The past fits of one recipe that a walk has made by itself."""

    weeks: frozenset[int]
    at: datetime  # of the last look at them


@dataclass(frozen=True)
class Serving:
    """A champion, the version that it became, and the past fits of its recipe that its walk has."""

    training: Training
    version: int
    held: Held | None = None

    @property
    def as_of(self) -> datetime:
        return self.training.as_of


def make_here(history: History, trainings: Sequence[Training], fits: Needs) -> None:
    """One after the other, in this process. What cannot be trained is left out: the walk meets it again."""
    for training in trainings:
        with contextlib.suppress(ValueError):
            history.candidate(training.as_of, training.search)
    for search, weeks in fits.items():
        history.open_fits(search).fit(weeks)


class Past:
    """Each thing is made once, and charged to each walk that asks for it."""

    def __init__(self, history: History, since: datetime, *, make: Make = make_here) -> None:
        self.p, self.rows, self.history, self.since = history.p, history.rows, history, since
        self._make, self._times = make, history.rows.event_time
        self.candidate, self.scores, self.fits = cache(self._load), cache(self._predict), cache(self._open_fits)
        self.judge_race, self.judge_refresh = cache(self._judge_race), cache(self._judge_refresh)
        self._performance, self._drift = cache(self._measure_performance), cache(self._measure_drift)
        self._kept = cache(self._read_kept)
        # A few alone are held: a case comes to hold all rows, and a champion its holdout.
        self._case = lru_cache(4)(lambda training: self.candidate(training).case())
        self._watched = lru_cache(16)(self._read_watched)

    # --- models ----------------------------------------------------------------------------------------------------

    def first(self, date: datetime) -> Training:
        """What serves at a first date: the recipe of the last search before it, so that dates share their fits."""
        return Training(date, self.since + (date - self.since) // FIRST_SEARCHES * FIRST_SEARCHES)

    def prepare(self, trainings: Sequence[Training], fits: Needs | None = None) -> None:
        """Make what the shelf lacks. Searches first, since a refresh needs their recipe."""
        searches = [Training(training.search, training.search) for training in trainings]
        for wanted in (sorted(set(searches)), sorted(set(trainings))):
            if missing := [training for training in wanted if not self.has(training)]:
                self._make(self.history, missing, {})
        lacking = {search: self._list_missing_fits(search, weeks) for search, weeks in (fits or {}).items()}
        if any(lacking.values()):
            self._make(self.history, [], lacking)

    def _list_missing_fits(self, search: datetime, weeks: Sequence[int]) -> list[int]:
        there = set(self.fits(search).list_fits(self.history.as_of))
        return [week for week in weeks if week not in there]

    def has(self, training: Training) -> bool:
        """Whether a candidate is on the shelf."""
        if training.kind == "refresh" and not self.has(Training(training.search, training.search)):
            return False
        key = self.history.key(training.as_of, training.search)[:16]
        return any(self.history.shelf.glob(f"[0-9]*-{key}"))

    def _load(self, training: Training) -> Candidate:
        return self.history.candidate(training.as_of, training.search)

    def _open_fits(self, search: datetime) -> Fits:
        return self.history.open_fits(search)

    def list_needed_fits(self, search: datetime, as_of: datetime, there: Collection[int] = ()) -> list[int]:
        """The weeks whose fits a look makes, where some are there."""
        return choose_missing(self.fits(search).list_trainable(as_of), there)

    # --- rows and predictions --------------------------------------------------------------------------------------

    def find_rows(self, since: datetime, until: datetime) -> slice:
        """The rows of since <= event_time < until: they are in the order of time."""
        first, last = np.searchsorted(self._times, np.array([since, until], dtype="datetime64[us]"))
        return slice(int(first), int(last))

    def take_table(self, where: slice) -> pa.Table:
        """The features of these rows."""
        return self.rows.slice(where.start, where.stop).load().table

    def _predict(self, by: Training, since: datetime, until: datetime) -> model.Floats:
        """What a candidate says of a stretch's rows, as the score flow would have journalled it."""
        table, champion = self.take_table(self.find_rows(since, until)), self.candidate(by).model
        shape = (0, len(champion.spec.classes)) if champion.spec.task == "multiclass" else (0,)
        return champion.predict(table) if len(table) else np.zeros(shape)

    # --- verdicts --------------------------------------------------------------------------------------------------

    def find_race_weeks(self, training: Training, search: datetime) -> list[int]:
        """The weeks whose fits of a recipe a race asks for that begins with a new recipe's holdout."""
        first = self.fits(search).grid.week_of(self._case(training).begin)
        return [week for week in self.list_needed_fits(search, training.as_of) if week >= first]

    def _judge_race(self, training: Training, champion: Training) -> Verdict:
        """The gate's verdict on a new recipe against that of who serves."""
        case, age = self._case(training), training.as_of - champion.as_of
        opponent = case.load_opponent(self.candidate(champion).recipe, age=age)
        searches = (training.search, champion.search)
        fits = [self.fits(search).limit(min(self.list_needed_fits(search, training.as_of))) for search in searches]
        return case.judge_race(opponent, age=age, fits=fits[0], champion=fits[1])

    def _judge_refresh(self, training: Training, champion: Training, since: int | None) -> Verdict:
        """The gate's verdict on newer rows for the recipe of who serves, by its past fits from week `since` on."""
        case, age = self._case(training), training.as_of - champion.as_of
        opponent = case.load_opponent(self.candidate(champion).recipe, age=age)
        return case.judge_refresh(opponent, age=age, fits=self.fits(training.search).limit(since))

    # --- signals ---------------------------------------------------------------------------------------------------

    def measure(self, serving: Serving, now: datetime, kinds: Sequence[SignalKind], began: datetime) -> list[Signal]:
        """What the monitor would have measured at `now` in a walk that began then, of the rows that the champion itself
        predicted."""
        measures: dict[str, Callable[[], Signal]] = {
            "freshness": lambda: self._measure_freshness(serving, now),
            "performance": lambda: self._performance(serving.training, now),
            # Drift waits for no outcome, so all rows of the window count; none came before the walk.
            "drift": lambda: self._drift(serving.training, now, max(now - self.p.monitor.window, began)),
        }
        return [replace(measures[kind](), version=serving.version) for kind in kinds]

    def _measure_freshness(self, serving: Serving, now: datetime) -> Signal:
        held, since = serving.held, now - self.p.monitor.window
        kept = self._kept(serving.training.search, min(held.weeks), held.at) if held and held.weeks else None
        return make_freshness(kept, made_at=serving.as_of, since=since, as_of=now, version=NO_VERSION)

    def _read_kept(self, search: datetime, since: int, at: datetime) -> Kept | None:
        """What the last look had kept."""
        fits = self.fits(search).limit(since)
        evidence = fits.read(at)
        return Kept(evidence, fits.grid.begin_of(fits.end_of(at))) if evidence else None

    def _measure_performance(self, training: Training, now: datetime) -> Signal:
        """Of the rows that this champion predicted, with the outcomes that had come."""
        p = self.p
        until = now - p.label.deadline
        since = min(max(until - p.monitor.window, training.as_of), until)
        where = self.find_rows(since, until)
        label, has_come = self.rows.label[where], self.rows.known_at[where] <= np.datetime64(now)
        labels = label.astype(object)
        labels[~(has_come & model.is_labelled(label))] = None  # as the journal gives outcomes
        scores = self.scores(training, since, until)
        window = Window(since, now, Predictions(since, until, self.rows.event_time[where], scores, labels))
        return measure_performance(window, self._watched(training))

    def _measure_drift(self, training: Training, now: datetime, begun: datetime) -> Signal:
        watched = self._watched(training)
        profile, since, where = watched.profile, now - self.p.monitor.window, self.find_rows(begun, now)
        times, false_alarms = self.rows.event_time[where], self.p.drift.false_alarms
        comparison = drift.compare(profile, self.take_table(where), times, false_alarms=false_alarms)
        return measure_drift(Window(since, now, drift=comparison, is_whole=begun <= since + profile.unit), watched)

    def _read_watched(self, training: Training) -> Watched:
        """A champion as the monitor knows it."""
        folder, paths = self.candidate(training).folder, self.p.paths
        models = [folder / paths.models / name for name in ("model.ubj", "twin.ubj")]
        names = ("profile.json", "holdout.parquet", "reference.parquet")
        version = Version(NO_VERSION, "", "", "", training.as_of, "", {})
        return read_watched(self.p, version, *models, *(folder / paths.reports / name for name in names))
