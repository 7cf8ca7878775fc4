"""The candidate before the gate: both twins on the holdout, their losses and costs → the gate's verdict.

The candidate's twin and the champion's have the same distance from the rows they are judged on: the champion's twin is
its recipe trained as much earlier as the champion is older. As a rule that is the twin that was stored with it; after
a change of split or label it is trained again. What is wrong with the candidate, or with reaching the registry, fails
the run; a champion whose recipe no longer works on today's tables holds. Nothing here promotes: flows/retrain.py acts
on the verdict.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks import log
from tasks.data import featurerows, manifest
from tasks.data.featurerows import Rows
from tasks.data.manifest import FeaturesManifest
from tasks.params import Params, to_utc
from tasks.promotion import gate, ledger
from tasks.promotion.contest import align_classes, row_losses
from tasks.promotion.gate import Judged
from tasks.promotion.recipe import Recipe, download_recipe, load_recipe, rebuild_features
from tasks.promotion.registry import CHAMPION, Registry, Version
from tasks.promotion.verdict import Verdict
from tasks.training import model, split, train
from tasks.training.evaluate import keep_known_classes
from tasks.training.holdout import Holdout
from tasks.training.metrics import calibration_error
from tasks.training.model import Floats, Model, Spec

BATCH = 1000  # rows, for the time a prediction takes
NEAR = timedelta(hours=1)  # a stored twin's cut that is so close to the wanted one needs no new twin


@dataclass(frozen=True)
class Opponent:
    """A champion on a candidate's holdout. It has seen the rows before `until`."""

    judged: Judged
    until: datetime


def judge_candidate(p: Params, folder: Path, record: str, *, registry: Registry, champion: Version | None) -> Verdict:
    """The gate's verdict on the candidate that a pipeline run left in `folder`."""
    as_of = FeaturesManifest.read(folder / p.paths.features).as_of
    case = Case(p, folder, as_of, Holdout.load(folder / p.paths.reports / "holdout.parquet"))
    if champion and champion.record == record:
        return gate.unchanged(f"version {champion.number}")
    entries = registry.ledger()
    if (down := registry.find_barred(record, entries)) is not None:
        return _barred(down, "lost as a challenger" if down in ledger.find_rejected(entries) else "was rolled back")
    number = champion.number if champion else None
    if reason := explain_wait(p, registry, champion, as_of, manifest.read_limit(folder / p.paths.raw)):
        return Verdict("HOLD", (reason,), {"champion_version": number} if champion else {})
    looks = ledger.count_looks(entries, number)
    if champion is None:
        return case.first(looks=looks)
    found = _against(champion, case, registry, looks=looks)
    return replace(found, figures={**found.figures, "champion_version": number})


def _against(champion: Version, case: "Case", registry: Registry, *, looks: int) -> Verdict:
    """Only what comes of the champion's recipe holds; with anything else that is wrong the run fails."""
    case.candidate  # noqa: B018 (its own faults must not be taken for the champion's)
    with tempfile.TemporaryDirectory() as scratch:
        files = download_recipe(registry, champion, Path(scratch))
        try:
            opponent = case.opponent(load_recipe(files), age=_age(case.as_of, champion))
        except ValueError as error:
            return _stuck(champion, error)
    return case.against(opponent, looks=looks)


def _stuck(champion: Version, error: ValueError) -> Verdict:
    way_out = (
        f"Mend what its recipe needs, or take the alias `{CHAMPION}` off it in the MLflow UI: the next candidate is "
        "then judged as a first model."
    )
    reason = f"Version {champion.number} cannot be judged on today's tables: {error}"
    return Verdict("HOLD", (reason, way_out), {"champion_version": champion.number})


def _barred(down: int, how: str) -> Verdict:
    """Nobody looked, so no look is spent: the registry would refuse it anyway."""
    reason = f"Same recipe and same data as version {down}, which {how}: it is never promoted again."
    return Verdict("HOLD", (reason,), {"rolled_back": down})


def hold_if_another_serves(verdict: Verdict, serving: Version | None) -> Verdict:
    """A rollback does not wait for a retrain, and a person may decide a day later: better than the champion that was
    taken down in between is not yet better than the one that serves now. No look at that one is spent."""
    number, judged = serving.number if serving else None, verdict.figures.get("champion_version")
    if not verdict.promotes or number == judged:
        return verdict
    names = [f"version {each}" if each else "no version" for each in (judged, number)]
    reason = f"When it was judged {names[0]} served, and now {names[1]} does: the next retrain judges again."
    return Verdict("HOLD", (reason, *verdict.reasons), {**verdict.figures, "looked": False})


def counts_as_look(verdict: Verdict) -> bool:
    """Whether the gate could have promoted, so that a later look must pay for this one."""
    return verdict.figures.get("looked") is True


def explain_wait(
    p: Params, registry: Registry, champion: Version | None, as_of: datetime, limit: datetime | None = None
) -> str | None:
    """Why the gate looks at no candidate yet. Stored times beyond `limit`, the end of the data, count for nothing."""
    if champion and champion.as_of and as_of < champion.as_of and not _is_bent(champion.as_of, limit):
        return f"The candidate, of {as_of}, is older than version {champion.number}, of {champion.as_of}."
    last = ledger.find_last_look(registry.ledger(), champion.number if champion else None)
    return None if last and _is_bent(last, limit) else gate.explain_backoff(last, as_of, p.gate)


def _is_bent(moment: datetime, limit: datetime | None) -> bool:
    """Whether a stored time lies beyond the data: it was told by a clock that has been mended since."""
    return limit is not None and to_utc(moment) > limit


def _age(as_of: datetime, champion: Version) -> timedelta:
    made = champion.learnt_until if champion.as_of and champion.as_of > as_of else champion.as_of
    return max(as_of - made, timedelta(0)) if made else timedelta(0)


@dataclass(frozen=True)
class Case:
    """A candidate on its holdout, ready to be compared."""

    p: Params
    folder: Path
    as_of: datetime
    held: Holdout

    @cached_property
    def shipped(self) -> Model:
        return Model.load(self.folder / self.p.paths.models / "model.ubj")

    @cached_property
    def rows(self) -> Rows:
        return featurerows.read_rows(self.folder / self.p.paths.features)

    @cached_property
    def candidate(self) -> Judged:
        path = self.folder / self.p.paths.models / "model.ubj"
        speed = measure_latency(self.shipped, self.rows)
        return self._judged(self._own(), megabytes=path.stat().st_size / 1e6, milliseconds=speed)

    def _own(self) -> list[Floats]:
        """The candidate's predictions, of each seed; without refit those of the very model that would serve."""
        return self.held.candidates if self.p.train.refit else self.held.candidates[:1]

    def _judged(self, found: Sequence[Floats], *, megabytes: float = 0, milliseconds: float = 0) -> Judged:
        codes = self.shipped.spec.encode_label(self.held.label)
        losses = np.stack([row_losses(codes, each, metric=self.p.gate.metric) for each in found])
        return Judged(losses, measure_calibration(self.shipped.spec, codes, found[0]), megabytes, milliseconds)

    def first(self, *, looks: int) -> Verdict:
        """There is no champion: against the baselines."""
        found = {str(name): self._judged([self.held.predictions[name]]) for name in self.p.evaluate.baselines}
        held = self.held
        return gate.first(self.candidate, found, times=held.times, slices=held.slices, gate=self.p.gate, looks=looks)

    def opponent(self, recipe: Recipe, *, age: timedelta) -> Opponent:
        """A champion whose candidate was judged `age` ago, on this candidate's rows."""
        where = self._where
        rows = rebuild_features(recipe, self.p, self.folder, self.rows)
        inside = self._same_rows(rows.take(split.select_between(rows.event_time, where.start, where.end)))
        models = _opponents(self.p, recipe, rows, where.start - age)
        found = [align_classes(self.shipped.spec, each, each.predict(inside.table)) for each in models]
        return Opponent(self._judged(found), _until(models[0]))

    def against(self, opponent: Opponent, *, looks: int) -> Verdict:
        """On the rows that the champion has not seen."""
        unseen = self.held.times >= np.datetime64(opponent.until)
        if not unseen.any():
            seen = f"it has seen all rows up to {opponent.until}, and the holdout ends {self._where.end}"
            return Verdict("HOLD", (f"The champion cannot be judged yet: {seen}: wait for newer rows.",), {})
        return gate.judge(
            _on(self.candidate, unseen),
            _on(opponent.judged, unseen),
            times=self.held.times[unseen],
            slices={name: values[unseen] for name, values in self.held.slices.items()},
            gate=self.p.gate,
            looks=looks,
        )

    @property
    def _where(self) -> split.Cuts:
        return split.find_cuts(self.as_of, self.p.split, deadline=self.p.label.deadline)

    def _same_rows(self, rows: Rows) -> Rows:
        """The holdout's rows, in its order. Both come from one spine, sorted by time and key."""
        kept = keep_known_classes(rows.take(model.is_labelled(rows.label)), self.shipped.spec)
        if len(kept) != len(self.held.times) or not (kept.event_time == self.held.times).all():
            raise ValueError(f"its features give {len(kept)} rows of the holdout's {len(self.held.times)}")
        return kept


def _on(judged: Judged, mask: NDArray[np.bool_]) -> Judged:
    return replace(judged, losses=judged.losses[:, mask])


def _opponents(p: Params, recipe: Recipe, rows: Rows, cut: datetime) -> tuple[Model, ...]:
    """What stands for the champion: its model itself without refit, else twins of its recipe that end at `cut`."""
    if recipe.p.label != p.label:
        return _fitted_again(p, recipe, rows, cut)
    if not p.train.refit:
        return (recipe.model,)
    return recipe.twins if abs(_until(recipe.twins[0]) - cut) <= NEAR else _fitted_again(p, recipe, rows, cut)


def _until(judged: Model) -> datetime:
    return datetime.fromisoformat(judged.spec.until or "")


def measure_calibration(spec: Spec, codes: Floats, found: Floats) -> float:
    """The calibration error of predictions; numbers have none."""
    if spec.task == "regression":
        return 0.0
    if spec.task == "multiclass":
        return calibration_error((found.argmax(axis=1) == codes).astype(float), found.max(axis=1))
    return calibration_error(codes, found)


def measure_latency(judged: Model, rows: Rows) -> float:
    """Milliseconds a row, in batches of 1,000: the fastest of five, since the slower ones timed something else."""
    table = rows.table.slice(0, BATCH)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        judged.predict(table)
        seconds.append(time.perf_counter() - began)
    return min(seconds) * 1000 / max(len(table), 1)


def _fitted_again(p: Params, recipe: Recipe, rows: Rows, cut: datetime) -> tuple[Model, ...]:
    """The champion's recipe on today's label, on this machine."""
    log.info("the champion's stored twin ends elsewhere: training its recipe up to %s", cut)
    device = recipe.p.train.model_copy(update={"device": p.train.device})
    then = recipe.p.model_copy(update={"label": p.label, "stage": p.stage, "train": device})
    return tuple(train.fit_twins(rows, cut, recipe.tuned, then, seeds=len(recipe.twins)))
