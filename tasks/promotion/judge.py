"""judge: the candidate that a run left in a folder, compared with the champion on its holdout → the gate's verdict.

The candidate's twin and the champion's have the same distance from the rows they are compared on: the champion's twin
is its recipe, trained as much earlier as the champion is older. As a rule that is the twin that was stored with it;
after a change of split or label it is trained again. A fault of the candidate or of the registry fails the run. A
champion whose recipe no longer works on today's tables gives a HOLD. Nothing is promoted here: flows/retrain.py acts on
the verdict.
"""

import json
import tempfile
import timeit
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks import log
from tasks.data import manifest, storedrows
from tasks.data.featurerows import Rows
from tasks.data.storedrows import AnyRows
from tasks.data.timeline import Span
from tasks.params import Params, to_utc
from tasks.promotion import gate, ledger, race, refresh
from tasks.promotion.contest import Contest, align_classes, compare_losses, constant_losses, row_losses
from tasks.promotion.evidence import Fits
from tasks.promotion.recipe import (
    Recipe,
    download_recipe,
    identify_recipe,
    identify_stored,
    load_recipe,
    rebuild_features,
)
from tasks.promotion.registry import CHAMPION, Registry, Version
from tasks.promotion.slices import Slices
from tasks.promotion.tags import RECIPE
from tasks.promotion.verdict import Verdict, hold, hold_same
from tasks.runtime import pipeline
from tasks.training import evaluate, metrics, model, split, train
from tasks.training.holdout import Holdout
from tasks.training.model import Floats, Model
from tasks.training.trials import Tuned

LATENCY_ROWS = 1000  # in the batch whose prediction is timed
LATENCY_RUNS = 5
MAX_TWIN_GAP = timedelta(hours=1)  # a stored twin whose cut is so close to the wanted one is used as it is


@dataclass(frozen=True)
class Opponent:
    """A champion beside a candidate: its losses on the candidate's holdout, (seeds, rows), and its recipe.

    Attributes:
        until: It has seen the rows before that.
        p: How its recipe is fitted today.
        rows: With the features of its recipe.
    """

    losses: NDArray[Any]
    until: datetime
    recipe: Recipe
    p: Params
    rows: AnyRows


def judge_candidate(
    p: Params, folder: Path, record: str, *, registry: Registry, champion: Version | None, home: Path
) -> Verdict:
    """The gate's verdict on the candidate that a pipeline run left in `folder`.

    Args:
        record: The hash of its recipe and data, by which the registry knows what was tried before.
        champion: None: it is compared with the baselines.
        home: Keeps the evidence of each recipe.
    """
    if champion and champion.record == record:
        return hold_same(champion.number)
    entries = registry.read_ledger()
    if (barred := registry.find_barred(record, entries)) is not None:
        how = "lost as a challenger" if barred in ledger.find_rejected(entries) else "was rolled back"
        reason = f"Same recipe and same data as version {barred}, which {how}: it is never promoted again."
        return hold(reason, rolled_back=barred)
    as_of = manifest.FeaturesManifest.read(folder / p.paths.features).as_of
    number = {"champion_version": champion.number} if champion else {}
    if reason_to_wait := explain_wait(p, registry, champion, as_of, manifest.read_limit(folder / p.paths.raw)):
        return hold(reason_to_wait, **number)
    case = Case(p, folder, as_of, Holdout.load(folder / p.paths.reports / "holdout.parquet"))
    if champion is None:
        return case.judge_first(looks=ledger.count_looks(entries, None, again=registry.runs.find(record)))
    verdict = _judge_against(champion, case, registry, ledger.find_contender(entries), home=home)
    return replace(verdict, figures={**verdict.figures, **number})


def _judge_against(
    champion: Version, case: "Case", registry: Registry, contender: ledger.Contender | None, *, home: Path
) -> Verdict:
    """A fault of the champion's recipe gives a HOLD. Any other fails the run."""
    age, store = _measure_age(case.as_of, champion), home / "evidence"
    case.losses  # noqa: B018 (the candidate's own faults must not be taken for the champion's)
    case.costs  # noqa: B018
    with tempfile.TemporaryDirectory() as scratch:
        files = download_recipe(registry, champion, Path(scratch))
        try:
            opponent = case.load_opponent(load_recipe(files), age=age)
            name = identify_stored(opponent.recipe, opponent.p, case.lock)
            if case.recipe not in (champion.tags.get(RECIPE), name):
                return _judge_race(case, opponent, name, contender, age=age, store=store)
        except ValueError as error:
            return hold(
                f"Version {champion.number} cannot be judged on today's tables: {error}",
                f"Mend what its recipe needs, or take the alias `{CHAMPION}` off it in the MLflow UI: the next "
                "candidate is then judged as a first model.",
            )
    return case.judge_refresh(opponent, age=age, fits=case.open_fits(store))


def _judge_race(
    case: "Case", opponent: Opponent, name: str, contender: ledger.Contender | None, *, age: timedelta, store: Path
) -> Verdict:
    """A contender's race goes on where a run takes up its recipe against the same champion's. Another begins with its
    holdout, also where a search chose the contender's recipe again: that search has seen more.

    Args:
        name: The id of the champion's recipe, as today's code fits it.
    """
    champion = Fits.open(store / name, opponent.p, opponent.recipe.tuned, opponent.rows)
    goes_on = case.p.tune.recipe and contender and (contender.recipe, contender.opponent) == (case.recipe, name)
    since = contender.since if goes_on and contender else None
    verdict = case.judge_race(opponent, age=age, fits=case.open_fits(store), champion=champion, since=since)
    state = ledger.to_race_figures(case.recipe, name, since or case.begin)
    # A look at a race that goes on costs nothing; it must not make a refresh wait for gate.backoff.
    return replace(verdict, figures={**verdict.figures, **state, **({"looked": False} if since else {})})


def hold_if_another_serves(verdict: Verdict, serving: Version | None) -> Verdict:
    """The verdict, or a HOLD where another version serves by now than the one it was compared with.

    A rollback does not wait for a retrain, and a person may decide a day later. Better than the version that was rolled
    back is not yet better than the one that serves. No look at that one is spent.
    """
    number, judged = serving.number if serving else None, verdict.figures.get("champion_version")
    if not verdict.promotes or number == judged:
        return verdict
    then, now = (f"version {name}" if name else "no version" for name in (judged, number))
    reason = f"When it was judged {then} served, and now {now} does: the next retrain judges again."
    return Verdict("HOLD", (reason, *verdict.reasons), {**verdict.figures, "looked": False})


def explain_wait(
    p: Params, registry: Registry, champion: Version | None, as_of: datetime, limit: datetime | None = None
) -> str | None:
    """Why the gate looks at no candidate yet; None where it does.

    Args:
        limit: The end of the data. A stored time beyond it came from a clock that was ahead, and counts for nothing.
    """

    def counts(moment: datetime | None) -> bool:
        return moment is not None and (limit is None or to_utc(moment) <= limit)

    if champion and champion.as_of and as_of < champion.as_of and counts(champion.as_of):
        return f"The candidate, of {as_of}, is older than version {champion.number}, of {champion.as_of}."
    last = ledger.find_last_look(registry.read_ledger(), champion.number if champion else None)
    return gate.explain_backoff(last, as_of, p.gate) if counts(last) else None


def _measure_age(as_of: datetime, champion: Version) -> timedelta:
    made = champion.learnt_until if champion.as_of and champion.as_of > as_of else champion.as_of
    return max(as_of - made, timedelta(0)) if made else timedelta(0)


@dataclass(frozen=True)
class Case:
    """A candidate on its holdout, ready to be compared. It comes to hold all rows up to `as_of`."""

    p: Params
    folder: Path
    as_of: datetime
    holdout: Holdout

    @cached_property
    def recipe(self) -> str:
        """The id of the candidate's recipe."""
        tuned = json.loads((self.folder / self.p.paths.models / "tuned.json").read_text())
        return identify_recipe(self.p, self.lock, tuned)

    @property
    def lock(self) -> Mapping[str, Any]:
        """The entries of the stages in the run's dvc.lock."""
        return dict(pipeline.read_lock(self.folder)["stages"])

    @cached_property
    def shipped(self) -> Model:
        """The model that would serve."""
        return Model.load(self._shipped_path)

    @property
    def _shipped_path(self) -> Path:
        return self.folder / self.p.paths.models / "model.ubj"

    @cached_property
    def rows(self) -> AnyRows:
        return storedrows.open_rows(self.folder / self.p.paths.features, memory=self.p.stage.memory_bytes)

    @property
    def _predictions(self) -> list[Floats]:
        """Of the candidate's twins, one a seed; without refit those of the very model that would serve."""
        return self.holdout.candidates if self.p.train.refit else self.holdout.candidates[:1]

    @cached_property
    def _codes(self) -> Floats:
        return self.shipped.spec.encode_label(self.holdout.label)

    @cached_property
    def _constant(self) -> NDArray[Any]:
        """The row losses of the best constant, which sets the scale of skill."""
        return constant_losses(self._codes, metric=self.p.gate.metric)

    @cached_property
    def losses(self) -> NDArray[Any]:
        """The candidate's, (seeds, rows)."""
        return self._measure_losses(self._predictions)

    @cached_property
    def costs(self) -> gate.Costs:
        size = self._shipped_path.stat().st_size
        return measure_costs(self.shipped, next(self.rows.read_blocks()), self._codes, self._predictions[0], size=size)

    def _measure_losses(self, predictions: Sequence[Floats]) -> NDArray[Any]:
        return np.stack([row_losses(self._codes, scores, metric=self.p.gate.metric) for scores in predictions])

    def judge_first(self, *, looks: int) -> Verdict:
        """There is no champion: against the baselines."""
        baselines = {str(name): self.holdout.predictions[name] for name in self.p.evaluate.baselines}
        times, settings = self.holdout.times, self.p.gate
        contests = {
            name: compare_losses(
                self.losses, self._measure_losses([scores]), times=times, gate=settings, constant=self._constant
            )
            for name, scores in baselines.items()
        }
        return gate.judge_first_model(
            contests, gate=settings, costs=self.costs, slices=self.holdout.slices, looks=looks
        )

    def load_opponent(self, recipe: Recipe, *, age: timedelta) -> Opponent:
        """A champion on this candidate's rows.

        Args:
            age: How long ago the champion's own candidate was judged.

        Raises:
            ValueError: The recipe does not work on today's tables.
        """
        span, spec = self._span, self.shipped.spec
        rows = rebuild_features(recipe, self.p, self.folder, self.rows)
        table = self._select_holdout(rows.take(split.select_between(rows.event_time, span.begin, span.end))).table
        p = _fit_today(recipe, self.p)
        models = _choose_models(self.p, recipe, p, rows, span.begin - age)
        predictions = [align_classes(spec, twin.spec.classes, twin.predict(table)) for twin in models]
        return Opponent(self._measure_losses(predictions), _trained_until(models[0]), recipe, p, rows)

    def judge_against(self, opponent: Opponent, *, looks: int) -> Verdict:
        """On the rows that the champion has not seen."""
        unseen = self._select_unseen(opponent)
        if not unseen.any():
            return self._hold_for_rows(opponent)
        contest, slices = self._compare(opponent, unseen)
        return gate.judge_contest(contest, gate=self.p.gate, costs=self.costs, slices=slices, looks=looks)

    def open_fits(self, store: Path) -> Fits:
        """The past fits of the candidate's recipe, in the folder that keeps those of each recipe."""
        tuned = Tuned.load(self.folder / self.p.paths.models / "tuned.json")
        return Fits.open(store / self.recipe, self.p, tuned, self.rows)

    def judge_refresh(self, opponent: Opponent, *, age: timedelta, fits: Fits) -> Verdict:
        """The champion's own recipe on newer rows.

        Args:
            age: Of the champion.
            fits: The recipe's past ones.
        """
        unseen = self._select_unseen(opponent)
        if not unseen.any():
            return self._hold_for_rows(opponent)
        contest, slices = self._compare(opponent, unseen)
        sums, refit = self._sum_holdout(opponent, unseen, fits), self._load_refit(age)
        return refresh.judge_refresh(contest, sums, refit, fits, as_of=self.as_of, costs=self.costs, slices=slices)

    def judge_race(
        self, opponent: Opponent, *, age: timedelta, fits: Fits, champion: Fits, since: datetime | None = None
    ) -> Verdict:
        """A recipe that is not the champion's.

        Args:
            age: Of the champion.
            fits: The past ones of the candidate's recipe.
            champion: Those of the champion's.
            since: The first moment that neither recipe's search has seen. None: the candidate's holdout begins there.
        """
        unseen = self._select_unseen(opponent)
        if not unseen.any():
            return self._hold_for_rows(opponent)
        contest, slices = self._compare(opponent, unseen)
        sums, refit = self._sum_holdout(opponent, unseen, fits), self._load_refit(age)
        pair = race.Pair(fits, champion, since or self.begin)
        return race.judge_race(contest, sums, refit, pair, as_of=self.as_of, costs=self.costs, slices=slices)

    def _sum_holdout(self, opponent: Opponent, unseen: NDArray[np.bool_], fits: Fits) -> refresh.HoldoutSums:
        losses, days = (self.losses[:, unseen], opponent.losses[:, unseen]), self.holdout.times[unseen]
        return refresh.HoldoutSums.of(*losses, self._constant[unseen], fits.grid.days_of(days))

    def _load_refit(self, age: timedelta) -> refresh.Refit:
        return refresh.Refit(self.shipped, Model.load(self.folder / self.p.paths.models / "twin.ubj"), age)

    @property
    def begin(self) -> datetime:
        """Of the holdout: no search has seen the rows from then on."""
        return self._span.begin

    def _select_unseen(self, opponent: Opponent) -> NDArray[np.bool_]:
        return np.asarray(self.holdout.times >= np.datetime64(opponent.until))

    def _hold_for_rows(self, opponent: Opponent) -> Verdict:
        seen = f"it has seen all rows up to {opponent.until}, and the holdout ends {self._span.end}"
        return hold(f"The champion cannot be judged yet: {seen}: wait for newer rows.")

    def _compare(self, opponent: Opponent, unseen: NDArray[np.bool_]) -> tuple[Contest, Slices]:
        times, slices = self.holdout.times[unseen], self.holdout.slices
        losses = self.losses[:, unseen], opponent.losses[:, unseen]
        contest = compare_losses(*losses, times=times, gate=self.p.gate, constant=self._constant[unseen])
        return contest, {name: values[unseen] for name, values in slices.items()}

    @property
    def _span(self) -> Span:
        return split.find_holdout(self.as_of, self.p.split, deadline=self.p.label.deadline)

    def _select_holdout(self, rows: AnyRows) -> Rows:
        """The holdout's rows, in its order. Both come from one spine, sorted by time and key."""
        labelled = rows.take(model.is_labelled(rows.label))
        held = evaluate.keep_known_classes(labelled, self.shipped.spec).load()
        if len(held) != len(self.holdout.times) or not (held.event_time == self.holdout.times).all():
            raise ValueError(f"its features give {len(held)} rows of the holdout's {len(self.holdout.times)}")
        return held


def measure_costs(shipped: Model, table: pa.Table, codes: Floats, predictions: Floats, *, size: int) -> gate.Costs:
    """What a model costs.

    Args:
        table: Rows to time a prediction on.
        codes: The labels of the predictions, as numbers.
        size: The model's, in bytes.
    """
    error = 0.0 if shipped.spec.task == "regression" else metrics.calibration_error(codes, predictions)
    return gate.Costs(error, size / 1e6, _measure_latency(shipped, table))


def _measure_latency(shipped: Model, table: pa.Table) -> float:
    """Milliseconds a row: the fastest of several runs, since something else slowed the others."""
    batch = table.slice(0, LATENCY_ROWS)
    seconds = timeit.repeat(lambda: shipped.predict(batch), number=1, repeat=LATENCY_RUNS)
    return min(seconds) * 1000 / max(len(batch), 1)


def _choose_models(p: Params, recipe: Recipe, mixed: Params, rows: AnyRows, cut: datetime) -> Sequence[Model]:
    """The champion's model itself without refit, else twins of its recipe that end at `cut`."""
    if recipe.p.label == p.label:
        if not p.train.refit:
            return [recipe.model]
        if abs(_trained_until(recipe.twins[0]) - cut) <= MAX_TWIN_GAP:
            return recipe.twins
    log.info("the champion's stored twin ends elsewhere: training its recipe up to %s", cut)
    return train.fit_twins(rows, cut, recipe.tuned, mixed, seeds=len(recipe.twins))


def _fit_today(recipe: Recipe, p: Params) -> Params:
    """The params of a stored recipe, with what today's run asks and measures, and on today's machine."""
    device = recipe.p.train.model_copy(update={"device": p.train.device})
    today = {"label": p.label, "gate": p.gate, "stage": p.stage, "train": device}
    return recipe.p.model_copy(update=today)


def _trained_until(twin: Model) -> datetime:
    return datetime.fromisoformat(twin.spec.until or "")
