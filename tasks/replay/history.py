"""history: what was known at an earlier moment, and the candidates of that moment, each trained once.

A feature row is correct at its own time, whenever it was computed. So one folder of features, made at the end, holds
every earlier one: as of T they are its rows up to T, without the outcomes that came after T. Of such a folder tune,
train and evaluate make what they would have made at T. It is stored under a hash of all that decides it, and appears by
a rename when it is whole. A later replay, after a kill or with a later end, takes what is there. It judges nothing.

A candidate is a search's, or the recipe of an earlier search fitted to the rows of now: a refresh. The past fits that a
refresh is judged by lie on the same shelf, in a folder for each recipe.
"""

import importlib.metadata
import json
import math
import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from tasks import log
from tasks.data import featurerows, features, periods, storedrows
from tasks.data.manifest import FeaturesManifest
from tasks.data.periods import Period
from tasks.data.storedrows import AnyRows
from tasks.params import Params, RetrainKind
from tasks.params import Recipe as Given
from tasks.promotion import contest, evidence
from tasks.promotion.evidence import Fits
from tasks.promotion.judge import Case
from tasks.promotion.recipe import Recipe
from tasks.runtime import files
from tasks.training import evaluate, model, train, tune
from tasks.training.holdout import Holdout
from tasks.training.model import Model
from tasks.training.trials import Tuned

PARAMS, SQL, COST = "params.yaml", "tasks/features.sql", "cost.json"  # of a candidate's folder, beside the stages' own
PARTIAL_PREFIX = ".new-"  # how the name of a folder begins that is not whole
LOCKS = "locks"
MADE_BY = (str(features.__file__), *map(str, sorted(Path(str(model.__file__)).parent.glob("*.py"))))
CODE = periods.hash_code(__file__, *MADE_BY)
EVIDENCE_CODE = periods.hash_code(__file__, *MADE_BY, str(evidence.__file__), str(contest.__file__))
LIBRARIES = ("numpy", "optuna", "scikit-learn")  # that decide what is made; XGBoost goes by two names


@dataclass(frozen=True, order=True)
class Training:
    """What a candidate is trained of: the rows up to `as_of`, with the recipe that the search as of `search` found."""

    as_of: datetime
    search: datetime

    @property
    def kind(self) -> RetrainKind:
        return "search" if self.search == self.as_of else "refresh"


@dataclass(frozen=True)
class Candidate:
    """What was trained of the history up to `as_of`."""

    p: Params
    folder: Path
    as_of: datetime
    cpu: float  # seconds that its training took
    is_new: bool  # trained now, not by an earlier replay

    @property
    def tuned(self) -> Tuned:
        return Tuned.load(self.folder / self.p.paths.models / "tuned.json")

    @cached_property
    def recipe(self) -> Recipe:
        models = self.folder / self.p.paths.models
        twins = [models / "twin.ubj", *sorted((models / "twins").glob("*.ubj"))]
        sql = (self.folder / SQL).read_text()
        return Recipe(self.p, self.tuned, sql, self.model, tuple(Model.load(path) for path in twins))

    @cached_property
    def model(self) -> Model:
        return Model.load(self.folder / self.p.paths.models / "model.ubj")

    @property
    def holdout(self) -> Holdout:
        return Holdout.load(self.folder / self.p.paths.reports / "holdout.parquet")

    def case(self) -> Case:
        """A new one at each call, since it comes to hold all rows as of then."""
        return Case(self.p, self.folder, self.as_of, self.holdout)


@dataclass(frozen=True)
class History:
    """The features of a folder, with the SQL that made them, and the shelf on which candidates are kept."""

    p: Params
    features: Path
    sql: str
    shelf: Path

    @cached_property
    def rows(self) -> AnyRows:
        return storedrows.open_rows(self.features, memory=self.p.stage.memory_bytes)

    @cached_property
    def as_of(self) -> datetime:
        return FeaturesManifest.read(self.features).as_of

    def candidate(self, as_of: datetime, search: datetime | None = None) -> Candidate:
        """The candidate as of then, from the shelf, or trained now, under a lock of its own.

        Args:
            search: When its recipe was searched; None: as of then.

        Raises:
            ValueError: The history is too short.
        """
        p = self._choose_params(as_of, search)
        place = self.shelf / f"{as_of:%Y-%m-%dT%H%M%S}-{self.key(as_of, search)[:16]}"
        (self.shelf / LOCKS).mkdir(parents=True, exist_ok=True)
        with FileLock(self.shelf / LOCKS / f"{place.name}.lock"):
            if place.is_dir() and (names := periods.find_damage(place)):  # somebody wrote into a file that it links to
                log.warning("%s no longer holds what was made (%s): it is trained again", place, ", ".join(names))
                shutil.rmtree(place)
            if missing := not place.is_dir():
                self._make(as_of, p, place)
        cost = json.loads((place / COST).read_text())
        return Candidate(p, place, as_of, cost["cpu"], missing)

    def key(self, as_of: datetime, search: datetime | None = None) -> str:
        """The hash of what decides a candidate: the rows' files, though not those that begin later, params, code."""
        contents = [(part.period.name, part.content) for part in self._parts if part.period.start <= as_of]
        settings = _list_settings(self._choose_params(as_of, search))
        return periods.hash_inputs(as_of, contents, settings, self.sql, CODE, _list_releases())

    def open_fits(self, search: datetime) -> Fits:
        """The past fits of a recipe on all rows, in a folder of the shelf that all walks share."""
        p, contents = self._take_recipe(search), [(part.period.name, part.content) for part in self._parts]
        settings = [*_list_settings(p), p.gate.metric]
        key = periods.hash_inputs(contents, settings, self.sql, EVIDENCE_CODE, _list_releases())
        folder = self.shelf / f"{search:%Y-%m-%dT%H%M%S}-evidence-{key[:16]}"
        return Fits.open(folder, p, self.candidate(search).tuned, self.rows)

    def _choose_params(self, as_of: datetime, search: datetime | None) -> Params:
        return self.p if search in (None, as_of) else self._take_recipe(search)

    def _take_recipe(self, search: datetime) -> Params:
        """The settings with the recipe that a search found."""
        if search not in self._recipes:
            tuned = self.candidate(search).tuned
            given = Given(params=tuned.params, rounds=tuned.rounds, dropped=tuned.dropped)
            taken = self.p.tune.model_copy(update={"recipe": given})
            self._recipes[search] = self.p.model_copy(update={"tune": taken})
        return self._recipes[search]

    @cached_property
    def _recipes(self) -> dict[datetime, Params]:
        return {}

    @cached_property
    def _parts(self) -> "list[_Part]":
        return [_part(period, path) for period, path in periods.list_files(self.features)]

    def _make(self, as_of: datetime, p: Params, place: Path) -> None:
        partial = self.shelf / f"{PARTIAL_PREFIX}{place.name}"
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed: this one holds the lock
        with files.publish_folder(place, temporary=partial) as folder:
            self.write(as_of, folder, p)
            files.publish_json(folder / COST, {"cpu": round(_train(p, folder), 2)})
            periods.seal_folder(folder)

    def write(self, as_of: datetime, folder: Path, p: Params | None = None) -> None:
        """A folder as the pipeline's features stage leaves it at `as_of`. A period that nothing came to later is
        linked, not copied."""
        out = folder / self.p.paths.features
        out.mkdir(parents=True)
        for part in self._parts:
            part.put(as_of, out / part.path.name)
        FeaturesManifest(as_of=as_of, columns=FeaturesManifest.read(self.features).columns).write(out)
        files.publish_json(folder / PARAMS, (p or self.p).model_dump(mode="json"))  # JSON is YAML
        files.publish_text(folder / SQL, self.sql)


@dataclass(frozen=True)
class _Part:
    """A period's file: its hash, and the time of the last that came to it, event or outcome."""

    period: Period
    path: Path
    content: str
    newest: datetime

    def put(self, as_of: datetime, target: Path) -> None:
        if self.newest <= as_of:
            return files.link_or_copy(self.path, target)
        if self.period.start <= as_of and (held := select_known(pq.read_table(self.path), as_of)).num_rows:
            pq.write_table(held, target, compression="zstd")
        return None


def _list_settings(p: Params) -> list[Any]:
    sections = (p.label, p.spine, p.features, p.split, p.tune, p.train, p.evaluate, p.drift, p.paths)
    return [*(section.model_dump() for section in sections), p.monitor.window]


def _list_releases() -> list[str]:
    return [*(importlib.metadata.version(name) for name in LIBRARIES), model.import_xgboost().__version__]


def _part(period: Period, path: Path) -> _Part:
    times = pq.read_table(path, columns=list(featurerows.META[:2]))
    newest = [time for name in featurerows.META[:2] if (time := pc.max(times[name]).as_py())]
    return _Part(period, path, periods.hash_file(path), max(newest, default=period.start))


def select_known(table: pa.Table, as_of: datetime) -> pa.Table:
    """The feature rows as they were at a moment: events up to then, with the outcomes that had come."""
    event_time, known_at, label = featurerows.META
    rows = table.filter(pc.less_equal(table[event_time], pa.scalar(as_of, table.schema.field(event_time).type)))
    moment = pa.scalar(as_of, table.schema.field(known_at).type)
    has_come = pc.fill_null(pc.less_equal(rows[known_at], moment), False)
    for name in (known_at, label):
        place, field = rows.schema.get_field_index(name), rows.schema.field(name)
        rows = rows.set_column(place, field, pc.if_else(has_come, rows[name], pa.scalar(None, field.type)))
    return rows


# --- training ------------------------------------------------------------------------------------------------------


def _train(p: Params, folder: Path) -> float:
    """Search, or a recipe that is given, training and evaluation in a folder; the seconds of CPU of this process and
    those that it started."""
    # The seconds of imports are charged to nobody: which model was the first must not show in its cost.
    model.import_xgboost()
    import sklearn.linear_model
    import sklearn.metrics  # noqa: F401

    before = sum(os.times()[:4])
    tune.tune(p, folder, home=folder / "home")  # a search that was made before would cost nothing: this home has none
    train.train(p, folder)
    evaluate.evaluate(p, folder)
    spent = sum(os.times()[:4]) - before
    shutil.rmtree(folder / "home", ignore_errors=True)
    return spent


def reduce_search(p: Params) -> Params:
    """The settings of the past's candidates: replay.trials, with as many fewer finalists, and the cheapest baseline
    alone, since the gate compares with a champion here."""
    trials = p.replay.trials or p.tune.trials
    finalists = math.ceil(p.tune.finalists * min(1.0, trials / p.tune.trials))
    search = p.tune.model_copy(update={"trials": trials, "finalists": finalists})
    evaluated = p.evaluate.model_copy(update={"baselines": ["constant"]})
    return p.model_copy(update={"tune": search, "evaluate": evaluated})
