"""tasks.promotion.judge: both sides of the comparison have the same distance from the rows that they are judged on."""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tasks import params
from tasks.data import clean, featurerows, features, featuresql, ingest
from tasks.data.featurerows import Rows
from tasks.params import Params, Task
from tasks.promotion import changes, judge, ledger, registry
from tasks.promotion.contest import align_classes, row_losses
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Registry, Version
from tasks.promotion.runs import Bundle
from tasks.promotion.verdict import Verdict
from tasks.training import evaluate, split, train
from tasks.training.holdout import CANDIDATE, MODEL_PREFIX
from tasks.training.model import Floats, Model, Spec
from tasks.training.trials import Tuned
from tests.conftest import FEATURES_SQL, KEY, raw_params, write_params, write_sources
from tests.registries import place_tables
from tests.tasks import small

FIRST, LATER = small.AS_OF, small.AS_OF + timedelta(days=8)  # gate.backoff is shorter
ROWS, LONGER = small.made_rows(days=70), small.made_rows(days=77)
SQL = "-- the features of these tests are made without it\n"
GOOD: dict[str, Any] = {"rounds": 40}
POOR: dict[str, Any] = {"rounds": 1, "params": {"max_depth": 1}}


def settings(task: Task = "binary", **overrides: Any) -> Params:
    quiet = {"gate.backoff": "7d", "evaluate.baselines": ["constant"]}
    return small.settings(task, **{**quiet, **overrides})


@dataclass(frozen=True)
class Made:
    """A folder as a pipeline run leaves it."""

    p: Params
    folder: Path
    as_of: datetime
    home: Path | None = None  # its folder

    def models(self) -> list[Model]:
        models = self.folder / self.p.paths.models
        return [Model.load(path) for path in (models / "twin.ubj", *sorted((models / "twins").glob("*.ubj")))]

    def held_from(self) -> datetime:
        return split.find_holdout(self.as_of, self.p.split, deadline=self.p.label.deadline).begin

    def rows(self) -> Rows:
        return featurerows.read_rows(self.folder / self.p.paths.features)

    def held(self) -> Rows:
        rows, where = self.rows(), split.find_holdout(self.as_of, self.p.split, deadline=self.p.label.deadline)
        return rows.take(split.select_between(rows.event_time, where.begin, where.end) & ~np.isnan(rows.label))


def run(folder: Path, as_of: datetime, p: Params, tuned: dict[str, Any], *, rows: Rows = ROWS) -> Made:
    small.write(folder, small.known(rows, as_of), p, as_of)
    return trained(folder, as_of, p, tuned, sql=SQL)


def trained(folder: Path, as_of: datetime, p: Params, tuned: dict[str, Any], *, sql: str) -> Made:
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "features.sql").write_text(sql)
    write_params(p.model_dump(mode="json"), folder)
    small.tuned(folder, p, **tuned)
    deps = [{"path": "tasks/features.sql", "md5": hashlib.md5(sql.encode()).hexdigest()}]
    lock = {"stages": {"features": {"deps": deps}, "train": {"deps": []}}}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    train.train(p, folder)
    evaluate.evaluate(p, folder)
    return Made(p, folder, as_of)


@dataclass(frozen=True)
class Shelf:
    """A real registry, and what was made of it."""

    known: Registry
    folder: Path

    def champion(self, made: Made, name: str) -> Version:
        """A version of a run; the same run again is another version."""
        run_id = self.known.runs.log(made.folder.name, **self._contents(made))
        told = {"outcome": "PROMOTE", "reasons": ["It is better."]}
        return changes.promote(self.known, run_id, decision=name, verdict=told, as_of=made.as_of, tags={})

    def _contents(self, made: Made) -> dict[str, Any]:
        models = made.folder / made.p.paths.models
        files = self.folder / made.folder.name
        (files / "reports").mkdir(parents=True, exist_ok=True)
        for source in (made.folder / "params.yaml", made.folder / "tasks" / "features.sql"):
            shutil.copy(source, files)
        shutil.copy(models / "tuned.json", files / "reports")
        shutil.copytree(models / "twins", files / "twins", dirs_exist_ok=True)
        table = made.rows().table.slice(0, 2)
        kinds = [{"name": each.name, "kind": each.kind} for each in made.models()[0].spec.features]
        bundle = Bundle(models / "model.ubj", models / "twin.ubj", kinds, table)
        empty: dict[str, Any] = {"params": {}, "metrics": {}, "counts": {}, "datasets": [], "trials": []}
        return {**empty, "name": "run", "note": "", "tags": {}, "files": files, "bundle": bundle}

    def judged(self, made: Made, champion: Version | None, record: str = "new") -> Verdict:
        return judge.judge_candidate(
            made.p, made.folder, record, registry=self.known, champion=champion, home=made.home or made.folder
        )


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    store = place_tables(tmp_path_factory.mktemp("registry"))
    known = registry.open_registry(params.Registry(model="made", experiment="made", top_trials=0), uri=store)
    return Shelf(known, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The champion's run."""
    return run(tmp_path_factory.mktemp("old"), FIRST, settings(), GOOD)


@pytest.fixture(scope="module")
def champion(shelf: Shelf, old: Made) -> Version:
    return shelf.champion(old, "the first")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The candidate's run, eight days later, by another recipe."""
    return run(tmp_path_factory.mktemp("new"), LATER, settings(), {"rounds": 60})


def mean_loss(models: list[Model], held: Rows) -> float:
    return float(np.mean([row_losses(held.label, one.predict(held.table), metric="log_loss") for one in models]))


# --- without a champion


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """A registry without a champion, where first models are refused."""
    store = place_tables(tmp_path_factory.mktemp("empty"))
    known = registry.open_registry(params.Registry(model="none", experiment="none", top_trials=0), uri=store)
    return Shelf(known, tmp_path_factory.mktemp("none"))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_first_model_that_beats_the_baselines_is_promoted(task: Task, shelf: Shelf, tmp_path: Path) -> None:
    made = run(
        tmp_path,
        FIRST,
        settings(task, **{"evaluate.baselines": ["constant", "linear"]}),
        GOOD,
        rows=small.made_rows(task),
    )
    found = shelf.judged(made, None)
    assert found.outcome == "PROMOTE", found
    assert [row["baseline"] for row in found.figures["baselines"]] == ["constant", "linear"]
    told = json.loads((made.folder / "reports" / "metrics.json").read_text())
    baselines = {row["baseline"]: row["metric"] for row in found.figures["baselines"]}
    assert baselines["constant"] == pytest.approx(told[f"constant.{made.p.gate.metric}"], rel=1e-4)


def test_a_first_model_that_does_not_beat_the_baselines_is_not_promoted(shelf: Shelf, tmp_path: Path) -> None:
    made = run(tmp_path, FIRST, settings(**{"evaluate.baselines": ["constant", "forest"]}), POOR)
    found = shelf.judged(made, None)
    assert found.outcome == "REJECT", found.reasons
    assert found.counts_as_look


def test_a_refused_first_model_waits_for_the_back_off_and_is_paid_for(new: Made, empty: Shelf) -> None:
    once = empty.judged(new, None)
    refuse(empty.known, None, LATER - timedelta(days=6), "f1")
    waiting = empty.judged(new, None)
    assert (once.outcome, waiting.outcome) == ("PROMOTE", "HOLD")
    assert "did not promote" in waiting.reasons[0]
    assert not waiting.counts_as_look
    again = empty.judged(replace(new, p=settings(**{"gate.backoff": "6d"})), None)
    assert (once.figures["looks"], again.figures["looks"]) == (0, 1)
    assert again.figures["bound"] < once.figures["bound"]


def test_the_models_size_and_speed_are_those_of_what_would_ship(new: Made, shelf: Shelf) -> None:
    told = shelf.judged(new, None).figures
    assert told["megabytes"] == (new.folder / "models" / "model.ubj").stat().st_size / 1e6
    assert 0 < told["milliseconds"] < 1


# --- nothing to judge


def test_the_champions_own_record_is_held_unchanged(new: Made, shelf: Shelf, champion: Version) -> None:
    found = shelf.judged(new, champion, record=champion.record)
    assert found.outcome == "HOLD"
    assert found.reasons == (f"Same recipe and same data as version {champion.number}: nothing to judge.",)
    assert not found.counts_as_look


def test_a_candidate_that_is_what_was_rolled_back_is_held_and_costs_no_look(
    old: Made, new: Made, shelf: Shelf, tmp_path: Path
) -> None:
    mine = shelf.champion(old, "before")
    down = shelf.champion(replace(new, folder=shutil.copytree(new.folder, tmp_path / "worse")), "taken down")
    assert changes.rollback(shelf.known, decision="back", as_of=LATER, reasons=["It was worse."]) == mine
    found = shelf.judged(new, mine, record="worse")
    assert found.outcome == "HOLD"
    assert f"version {down.number}, which was rolled back" in found.reasons[0]
    assert not found.counts_as_look
    assert shelf.judged(new, mine, record="another").figures["looked"]


def test_a_candidate_older_than_the_champion_is_held(new: Made, old: Made, shelf: Shelf) -> None:
    later = shelf.champion(new, "a later one")
    found = shelf.judged(old, later)
    assert found.outcome == "HOLD"
    assert f"is older than version {later.number}" in found.reasons[0]
    assert not found.counts_as_look


def test_after_a_refusal_the_champion_is_left_alone_for_the_back_off(old: Made, new: Made, shelf: Shelf) -> None:
    mine = shelf.champion(old, "refused once")
    refuse(shelf.known, mine, LATER - timedelta(days=6), "d1")
    found = shelf.judged(new, mine)
    assert (found.outcome, found.counts_as_look) == ("HOLD", False)
    assert "did not promote" in found.reasons[0]
    refuse(shelf.known, mine, LATER - timedelta(days=1), "d2", look=False)  # what that HOLD leaves in the ledger
    later = replace(new, as_of=LATER + timedelta(days=1))
    assert ledger.find_last_look(shelf.known.read_ledger(), mine.number) == LATER - timedelta(days=6)
    assert judge.explain_wait(later.p, shelf.known, mine, later.as_of) is None


def test_a_look_of_2031_neither_holds_back_nor_makes_a_candidate_too_old_once_the_data_are_mended(
    old: Made, new: Made, shelf: Shelf
) -> None:
    mine = shelf.champion(old, "looked at ahead of the data")
    refuse(shelf.known, mine, datetime(2031, 1, 1), "d4")
    assert "did not promote" in (judge.explain_wait(new.p, shelf.known, mine, LATER) or "")
    assert judge.explain_wait(new.p, shelf.known, mine, LATER, limit=LATER + timedelta(days=1)) is None
    ahead = replace(mine, as_of=datetime(2031, 1, 1))
    assert "is older than" in (judge.explain_wait(new.p, shelf.known, ahead, LATER) or "")
    assert judge.explain_wait(new.p, shelf.known, ahead, LATER, limit=LATER + timedelta(days=1)) is None


def test_an_earlier_look_at_the_champion_costs_nothing(old: Made, new: Made, shelf: Shelf) -> None:
    mine = shelf.champion(old, "refused long ago")
    once = shelf.judged(new, mine).figures
    refuse(shelf.known, mine, LATER - timedelta(days=7), "d3")
    assert shelf.judged(new, mine).figures["race_bound"] == once["race_bound"]


def refuse(known: Registry, champion: Version | None, as_of: datetime, decision: str, *, look: bool = True) -> None:
    number = champion.number if champion else None
    known.append(Entry("verdict", decision, as_of, champion=number, outcome="HOLD", counts_as_look=look))


def test_a_candidate_that_could_not_have_been_promoted_costs_no_look(
    new: Made, shelf: Shelf, champion: Version
) -> None:
    for name, value in (("min_rows", 10**6), ("min_blocks", 1000), ("max_megabytes", 1e-6), ("max_milliseconds", 1e-9)):
        made = replace(new, p=settings(**{f"gate.{name}": value}))
        for opponent in (champion, None):
            found = shelf.judged(made, opponent)
            assert not found.promotes
            assert found.figures["gain"] is not None
            assert not found.counts_as_look


# --- against the champion


def test_a_contenders_race_goes_on_from_its_first_clean_day_until_a_search_takes_its_place(
    old: Made, new: Made, shelf: Shelf, tmp_path: Path
) -> None:
    mine = shelf.champion(old, "has a contender")
    once = shelf.judged(new, mine)
    assert (once.outcome, once.figures["race_since"]) == ("HOLD", new.held_from().isoformat())
    held = Entry("verdict", "s1", LATER, run=mine.run_id, champion=mine.number, outcome="HOLD", verdict=once.to_dict())
    shelf.known.append(held)
    recipe = {"tune.recipe": {"params": {"max_depth": 3}, "rounds": 60}}
    later = run(tmp_path / "later", LATER + timedelta(days=7), settings(**recipe), {"rounds": 60}, rows=LONGER)
    going_on = shelf.judged(replace(later, home=new.folder), mine)
    assert going_on.figures["race_recipe"] == once.figures["race_recipe"]
    assert going_on.figures["race_since"] == once.figures["race_since"]
    assert going_on.figures["race_weeks"] == once.figures["race_weeks"] + 1
    assert not going_on.counts_as_look  # it must not make a refresh wait
    searched = shelf.judged(replace(later, p=settings()), mine)
    assert searched.figures["race_since"] == later.held_from().isoformat()
    assert searched.counts_as_look


def test_the_stored_twins_stand_for_the_champion_as_long_as_they_fit(
    old: Made, new: Made, shelf: Shelf, champion: Version, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found = shelf.judged(new, champion)
    assert "training its recipe" not in caplog.text
    assert found.figures["champion"] == pytest.approx(mean_loss(old.models(), new.held()), rel=1e-9)
    assert found.figures["candidate"] == pytest.approx(mean_loss(new.models(), new.held()), rel=1e-6)
    assert found.figures["rows"] == len(new.held())
    assert found.figures["seeds"] == [2, 2]
    assert found.counts_as_look


def test_a_better_recipe_is_promoted_and_a_worse_one_rejected(
    old: Made, new: Made, shelf: Shelf, champion: Version, tmp_path: Path
) -> None:
    poor = run(tmp_path / "poor", FIRST, settings(), POOR)
    found = shelf.judged(new, shelf.champion(poor, "poor"))
    assert found.outcome == "PROMOTE", found
    worse = run(tmp_path / "worse", LATER, settings(), POOR)
    assert shelf.judged(worse, champion).outcome == "REJECT"
    assert mean_loss(old.models(), new.held()) < mean_loss(worse.models(), new.held())


def test_the_champions_recipe_is_trained_again_when_the_split_has_changed(
    old: Made, shelf: Shelf, champion: Version, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shorter = run(tmp_path, LATER, settings(**{"split.holdout": "10d"}), GOOD)
    caplog.set_level(logging.INFO)
    found = shelf.judged(shorter, champion)
    cut = split.find_holdout(LATER, shorter.p.split, deadline=shorter.p.label.deadline).begin - (LATER - FIRST)
    assert f"training its recipe up to {cut}" in caplog.text
    tuned = Tuned.load(old.folder / "models" / "tuned.json")
    expected = train.fit_twins(shorter.rows(), cut, tuned, old.p, seeds=2)
    assert found.figures["champion"] == pytest.approx(mean_loss(expected, shorter.held()), rel=1e-9)


def test_the_champions_recipe_is_trained_again_when_the_question_has_changed(
    shelf: Shelf, champion: Version, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its stored twin answers another question, and would lose by that alone."""
    opposite = replace(ROWS, label=1 - ROWS.label)
    p = settings(**{"label.expression": "delay < 30"})
    other = run(tmp_path, LATER, p, GOOD, rows=opposite)
    caplog.set_level(logging.INFO)
    found = shelf.judged(other, champion)
    assert "training its recipe" in caplog.text
    assert found.outcome == "HOLD", found.reasons
    assert found.figures["champion"] < 0.6


def test_without_refit_the_champions_model_is_judged_on_rows_that_it_has_not_seen(
    old: Made, shelf: Shelf, champion: Version, tmp_path: Path
) -> None:
    made = run(tmp_path, LATER, settings(**{"train.refit": False, "gate.min_rows": 100, "gate.min_blocks": 3}), GOOD)
    found = shelf.judged(made, champion)
    held = made.held()
    unseen = held.take(held.event_time >= np.datetime64(FIRST))
    shipped = Model.load(old.folder / "models" / "model.ubj")
    assert found.figures["rows"] == len(unseen) < len(held)
    assert found.figures["seeds"] == [1, 1]
    assert found.figures["champion"] == pytest.approx(mean_loss([shipped], unseen), rel=1e-9)
    assert found.figures["candidate"] == pytest.approx(mean_loss(made.models()[:1], unseen), rel=1e-6)


def test_without_refit_a_champion_that_has_seen_all_of_the_holdout_is_held(
    shelf: Shelf, champion: Version, tmp_path: Path
) -> None:
    made = run(tmp_path, FIRST, settings(**{"train.refit": False}), GOOD)
    found = shelf.judged(made, champion)
    assert found.outcome == "HOLD"
    assert "it has seen all rows up to 2024-03-01" in found.reasons[0]
    assert not found.counts_as_look


def test_one_seed_is_judged_as_one_model(shelf: Shelf, tmp_path: Path) -> None:
    p = settings(**{"train.seeds": 1})
    first, second = (run(tmp_path / name, as_of, p, GOOD) for name, as_of in (("a", FIRST), ("b", LATER)))
    assert shelf.judged(second, shelf.champion(first, "one seed")).figures["seeds"] == [1, 1]


# --- what fails the run


def spoilt(made: Made, folder: Path) -> Made:
    """The same run, whose candidate predicts NaN once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    copy = replace(made, folder=Path(shutil.copytree(made.folder, folder)))
    path = copy.folder / copy.p.paths.reports / "holdout.parquet"
    table = pq.read_table(path)
    name = MODEL_PREFIX + CANDIDATE
    values = [float("nan"), *table[name].to_pylist()[1:]]
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(values)), path)
    return copy


def test_a_candidate_that_predicts_nan_fails_the_run(
    new: Made, shelf: Shelf, champion: Version, tmp_path: Path
) -> None:
    bad = spoilt(new, tmp_path / "nan")
    for opponent in (champion, None):
        with pytest.raises(ValueError, match="must be finite, but 1 are not"):
            shelf.judged(bad, opponent)


def test_a_candidate_whose_model_is_broken_fails_the_run(
    new: Made, shelf: Shelf, champion: Version, tmp_path: Path
) -> None:
    bad = replace(new, folder=Path(shutil.copytree(new.folder, tmp_path / "broken")))
    (bad.folder / bad.p.paths.models / "model.ubj").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"model\.ubj is no whole model"):
        shelf.judged(bad, champion)


def test_a_champion_whose_files_cannot_be_fetched_fails_the_run(old: Made, new: Made, shelf: Shelf) -> None:
    mine = shelf.champion(old, "its files are gone")
    lost = replace(mine, run_id="0" * 32)
    with pytest.raises(Exception, match="0" * 32):
        shelf.judged(new, lost)


# --- a champion with other features


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """Two runs of the made world through ingest, clean and features: the older one by another features.sql."""
    other = FEATURES_SQL.replace("customers.segment, ", "").replace(
        "hour(asked.event_time) AS hour",
        "hour(asked.event_time) AS hour, asked.amount / asked.distance AS by_distance",
    )
    return {
        "old": world(tmp_path_factory.mktemp("old_world"), FIRST, other),
        "new": world(tmp_path_factory.mktemp("new_world"), LATER, FEATURES_SQL),
    }


def world(folder: Path, as_of: datetime, sql: str) -> Made:
    raw = raw_params("binary", 70)
    raw["clock"]["as_of"] = as_of.isoformat()
    p = params.validate(raw)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "features.sql").write_text(sql)
    write_sources(folder / "source", days=70, per_day=60, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERGREEN_PII_KEY", KEY)
        patch.setenv("EVERGREEN_PERIODS", str(folder / "periods"))
        patch.chdir(folder)
        for stage in (ingest.ingest, clean.clean, features.features):
            stage(p, folder)
    return trained(folder, as_of, p, GOOD, sql=sql)


@pytest.fixture
def periods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "periods"))


@pytest.mark.usefixtures("periods")
def test_a_champion_with_other_features_is_judged_by_its_own_sql_on_todays_rows(
    worlds: dict[str, Made], shelf: Shelf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = worlds["old"], worlds["new"]
    caplog.set_level(logging.INFO)
    found = shelf.judged(newer, shelf.champion(older, "other features"))
    assert "running its own features.sql" in caplog.text
    features.build(
        newer.p, newer.folder / newer.p.paths.clean, tmp_path / "f", (older.folder / featuresql.SQL).read_text()
    )
    rows = featurerows.read_rows(tmp_path / "f")
    held = rows.take(np.isin(rows.event_time, newer.held().event_time) & ~np.isnan(rows.label))
    assert found.figures["champion"] == pytest.approx(mean_loss(older.models(), held), rel=1e-9)
    assert found.figures["rows"] == len(held)


@pytest.mark.usefixtures("periods")
def test_a_champion_whose_recipe_no_longer_runs_is_held_with_the_reason(
    worlds: dict[str, Made], shelf: Shelf, tmp_path: Path
) -> None:
    folder = shutil.copytree(worlds["old"].folder, tmp_path / "gone")
    (folder / "tasks" / "features.sql").write_text(FEATURES_SQL.replace("customers", "clients"))
    gone = replace(worlds["old"], folder=folder)
    found = shelf.judged(worlds["new"], shelf.champion(gone, "its table is gone"))
    assert found.outcome == "HOLD"
    assert "cannot be judged on today's tables: features.sql, line " in found.reasons[0]
    assert "clients" in found.reasons[0]
    assert "take the alias `champion` off it in the MLflow UI" in found.reasons[1]
    assert not found.counts_as_look


@pytest.mark.usefixtures("periods")
def test_a_champion_that_wants_a_column_which_the_contract_has_lost_is_held_with_the_reason(
    worlds: dict[str, Made], shelf: Shelf, tmp_path: Path
) -> None:
    folder = shutil.copytree(worlds["old"].folder, tmp_path / "lost")
    raw = yaml.safe_load((folder / "params.yaml").read_text())
    raw["contract"]["orders"]["columns"]["colour"] = {"type": "VARCHAR"}
    raw["spine"]["columns"].append("colour")
    write_params(raw, folder)
    found = shelf.judged(worlds["new"], shelf.champion(replace(worlds["old"], folder=folder), "its column is gone"))
    assert found.outcome == "HOLD"
    assert "['colour']" in found.reasons[0]


# --- classes


def test_a_class_that_the_champion_never_saw_has_no_share_of_its_own() -> None:
    wanted = Spec("multiclass", (), {}, classes=("a", "b", "c"))
    theirs = Model(None, Spec("multiclass", (), {}, classes=("a", "c", "d")))
    shares: Floats = np.array([[0.2, 0.3, 0.5]])
    found = align_classes(wanted, theirs.spec.classes, shares)
    assert found.tolist() == [[0.2, 0.0, 0.3, 0.5]]
    assert row_losses([1.0], found, metric="log_loss") == pytest.approx(16.1, abs=0.1)


def test_a_candidate_that_knows_a_new_class_can_be_judged(shelf: Shelf, tmp_path: Path) -> None:
    rows = small.made_rows("multiclass", days=70)
    later = small.relabelled(rows, split_up, FIRST - timedelta(days=15), LATER)
    # No fold could calibrate the young class, and it grows. That is no fault of judging.
    p = settings("multiclass", **{"gate.max_calibration_error": 0.2})
    first = run(tmp_path / "a", FIRST, p, GOOD, rows=rows.take(rows.event_time < np.datetime64(FIRST)))
    second = run(tmp_path / "b", LATER, p, {"rounds": 60}, rows=later)
    found = shelf.judged(second, shelf.champion(first, "three classes"))
    assert second.models()[0].spec.classes == ("early", "fair", "late", "lost")
    assert found.figures["champion"] > found.figures["candidate"] + 1
    assert not found.promotes, found.reasons  # fitted as late, the champion's recipe would know the class too
    assert found.figures["race_weeks"] >= 2


def split_up(label: small.Labels) -> small.Labels:
    found = label.copy()
    found[(np.arange(len(label)) % 3 == 0) & (label == "late")] = "lost"
    return found
