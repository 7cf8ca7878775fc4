"""Evidence of a recipe's past fits: the sums are right, they are kept, and a look makes only what is missing."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.params import Task
from tasks.promotion import evidence, pastfits
from tasks.promotion.contest import row_losses
from tasks.promotion.evidence import Fits, read_kept
from tasks.runtime import engine
from tasks.runtime.store import Store
from tasks.training import calibration, model, train
from tasks.training.fitting import take_training
from tasks.training.model import Model
from tests.conftest import tree
from tests.tasks import small

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


def open_fits(folder: Path, task: Task = "binary") -> Fits:
    p = small.settings(task, **{"split.folds": 1, "split.fold": "7d"})
    return Fits.open(folder / "evidence", p, small.tuned(folder, p), small.made_rows(task, per_day=30))


@pytest.mark.parametrize("task", TASKS)
def test_a_fit_is_scored_on_each_later_day_as_by_hand(tmp_path: Path, task: Task) -> None:
    fits = open_fits(tmp_path, task)
    made = fits.collect(small.AS_OF, most=3)
    assert made
    assert made.fits == 3
    week = made.first_week
    cut = fits.grid.begin_of(week)
    twin = Model.load(fits.folder / f"{cut:%Y-%m-%dT%H}" / "model.ubj")
    day = cut + timedelta(days=9)
    one = fits.rows.take(
        (fits.rows.event_time >= np.datetime64(day)) & (fits.rows.event_time < np.datetime64(day + timedelta(days=1)))
    )
    one = one.take(model.is_labelled(one.label))
    losses = row_losses(twin.spec.encode_label(one.label), twin.predict(one.table), metric=fits.p.gate.metric)
    assert made.evidence.losses[0, 1, 2] == pytest.approx(losses.sum())
    assert made.evidence.rows[1, 2] == len(one)
    assert np.isnan(made.evidence.losses[1, 0]).all()


def test_a_second_look_makes_older_fits_a_third_none_and_a_later_one_a_fit(tmp_path: Path) -> None:
    fits = open_fits(tmp_path)
    first = fits.collect(small.AS_OF - timedelta(days=7), most=2)
    before, again = (fits.collect(small.AS_OF - timedelta(days=7), most=2) for _ in range(2))
    later = fits.collect(small.AS_OF, most=2)
    assert first
    assert before
    assert again
    assert later
    assert (first.fits, before.fits, again.fits, later.fits) == (2, 2, 0, 1)
    assert np.array_equal(before.evidence.losses, again.evidence.losses, equal_nan=True)
    old = before.evidence.weeks
    assert np.array_equal(later.evidence.losses[:old, :old], before.evidence.losses, equal_nan=True)
    assert np.isfinite(later.evidence.losses[0, old]).all()


def test_what_is_kept_is_what_the_last_look_saw(tmp_path: Path) -> None:
    assert read_kept(tmp_path / "evidence") is None
    fits = open_fits(tmp_path)
    made = fits.collect(small.AS_OF, most=3)
    kept = read_kept(tmp_path / "evidence")
    assert made
    assert kept
    assert np.array_equal(kept.evidence.losses, made.evidence.losses, equal_nan=True)
    assert np.array_equal(kept.evidence.rows, made.evidence.rows)
    assert kept.until == fits.grid.begin_of(made.first_week + made.evidence.weeks)


def test_a_look_back_sees_what_it_would_have_seen_then(tmp_path: Path) -> None:
    """Replay asks as of many moments, and one folder holds the fits of all of them."""
    then = small.AS_OF - timedelta(days=14)
    alone, shared = open_fits(tmp_path / "alone"), open_fits(tmp_path / "shared")
    shared.fit(shared.list_trainable(small.AS_OF))
    shared.read(small.AS_OF)
    first = alone.list_missing(then, most=3)[0]
    seen = replace(shared, since=first)
    made, again = alone.collect(then, most=3), seen.collect(then, most=3)
    assert made
    assert again
    assert again.fits == 0
    assert again.first_week == made.first_week == first
    assert np.array_equal(again.evidence.losses, made.evidence.losses, equal_nan=True)
    assert np.array_equal(again.evidence.rows, made.evidence.rows)
    assert seen.measure_shifts(1, then) == alone.measure_shifts(1, then)
    assert len(shared.measure_shifts(1, small.AS_OF)) > len(seen.measure_shifts(1, then)) > 0


def test_each_fit_has_its_share_of_what_a_look_cost(tmp_path: Path) -> None:
    fits = open_fits(tmp_path)
    made = fits.collect(small.AS_OF, most=2)
    assert made
    costs = [fits.read_cost(week) for week in fits.list_fits(small.AS_OF)]
    assert len(costs) == 2
    assert 0 < sum(costs) <= made.cpu + 0.02


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_fit_is_the_recipes_calibrated_by_what_an_older_one_says_of_rows_it_has_not_seen(
    tmp_path: Path, task: Task
) -> None:
    fits = open_fits(tmp_path, task)
    fits = replace(fits, tuned=replace(fits.tuned, rounds=200))  # too many: their margins are too bold
    fits.collect(small.AS_OF, most=3)
    weeks = fits.list_fits(small.AS_OF)
    cut, before = (fits.grid.begin_of(week) for week in (weeks[2], weeks[1]))
    fitted, older = (Model.load(fits.folder / f"{moment:%Y-%m-%dT%H}" / "model.ubj") for moment in (cut, before))
    times, known_by = fits.rows.event_time, np.datetime64(cut - fits.p.label.deadline)
    assert older.spec.until == before.isoformat()
    unseen = fits.rows.take((times >= np.datetime64(before)) & (times < known_by) & model.is_labelled(fits.rows.label))
    seen = take_training(fits.rows, before, fits.p).label
    scores = train.score_unseen(older, unseen, fits.tuned, trained_on=seen)
    wanted = train.to_spec_fields(calibration.choose_map(*scores).map, task)
    assert (fitted.spec.coef, fitted.spec.intercept) == (wanted["coef"], wanted["intercept"])
    trained = train.fit_twins(fits.rows, cut, fits.tuned, fits.p, seeds=1)[0]
    assert np.array_equal(fitted.margins(unseen.table), trained.margins(unseen.table))
    assert np.abs(fitted.predict(unseen.table) - trained.predict(unseen.table)).mean() < 0.05


@pytest.mark.parametrize(("task", "boosters"), [("binary", 3 + 1), ("regression", 3)])
def test_calibration_trains_one_more_fit_for_a_first_look_and_none_for_a_weekly_one(
    tmp_path: Path, task: Task, boosters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits, made = open_fits(tmp_path, task), list[float]()
    monkeypatch.setattr(train, "fit", count_calls(train.fit, made))
    fits.collect(small.AS_OF - timedelta(days=7), most=3)
    assert len(made) == boosters
    fits.collect(small.AS_OF - timedelta(days=7), most=3)  # the older ones
    before = len(made)
    fits.collect(small.AS_OF, most=3)
    assert len(made) == before + 1


def count_calls(fit: Callable[..., Any], made: list[float], *, dies_at: int | None = None) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(0)
        if len(made) == dies_at:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    return counted


def test_where_no_older_fit_knows_the_classes_each_fold_gets_a_fit_of_its_own(tmp_path: Path) -> None:
    fits = open_fits(tmp_path, "multiclass")
    week = fits.list_missing(small.AS_OF, most=1)[0]
    late = fits.rows.event_time < np.datetime64(fits.grid.begin_of(week - 1) - timedelta(days=1))
    rows = replace(fits.rows, label=np.where(late & (fits.rows.label == "late"), "fair", fits.rows.label))
    young = replace(fits, rows=rows)
    young.fit([week])
    fitted = Model.load(fits.folder / f"{fits.grid.begin_of(week):%Y-%m-%dT%H}" / "model.ubj")
    trained = train.fit_twins(rows, fits.grid.begin_of(week), fits.tuned, fits.p, seeds=1)[0]
    assert "late" in fitted.spec.classes
    assert fitted.to_bytes() == trained.to_bytes()


def test_past_fits_go_on_from_the_boosters_that_twins_of_their_weeks_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    p = small.settings("binary", **{"split.folds": 1, "split.fold": "7d", "train.warm": "10d"})
    fits = Fits.open(tmp_path / "evidence", p, small.tuned(tmp_path, p), small.made_rows(per_day=30))
    weeks = fits.list_missing(small.AS_OF, most=2)
    fits.fit(weeks)
    made = set((tmp_path / "home").glob("boosters/*.ubj"))
    assert made
    for week in weeks:
        cut = fits.grid.begin_of(week)
        fitted = Model.load(fits.folder / f"{cut:%Y-%m-%dT%H}" / "model.ubj")
        twin = train.fit_twins(fits.rows, cut, fits.tuned, p, seeds=1)[0]
        assert fitted.booster.get_dump() == twin.booster.get_dump()
    plain = train.fit(take_training(fits.rows, cut, p), fits.tuned, small.settings(), threads=1)
    assert fitted.booster.get_dump() != plain.booster.get_dump()


def test_what_a_killed_look_had_fitted_is_not_fitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits, made, fit = open_fits(tmp_path), list[float](), train.fit
    monkeypatch.setattr(train, "fit", count_calls(fit, made, dies_at=3))
    with pytest.raises(KeyboardInterrupt):
        fits.collect(small.AS_OF, most=4)
    whole = len(list((tmp_path / "evidence").glob("*/plain.ubj")))
    assert whole >= 1
    again = list[float]()
    monkeypatch.setattr(train, "fit", count_calls(fit, again))
    resumed = fits.collect(small.AS_OF, most=4)
    assert resumed
    assert resumed.fits == 4
    assert len(again) == 4 + 1 - whole


def test_a_look_says_how_many_fits_it_makes_and_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pastfits, "REPORT_S", 0.0)
    caplog.set_level("INFO", "evergreen")
    open_fits(tmp_path).collect(small.AS_OF, most=3)
    lines = [line for line in caplog.messages if line.startswith("evidence")]
    assert lines[0].startswith("evidence: 3 fits of the recipe are missing, up to 2024-")
    assert lines[0].endswith("and 1 older ones to calibrate them by")
    assert [line.partition(",")[0] for line in lines[1:-1]] == [f"evidence: {done} of 4 fits" for done in (1, 2, 3, 4)]
    assert lines[-1].startswith("evidence: made, by 4 boosters and in ")


def test_evidence_of_another_format_is_refused(tmp_path: Path) -> None:
    open_fits(tmp_path)
    (tmp_path / "evidence" / "grid.json").write_text('{"format": "evidence/99", "hour": 3}')
    with pytest.raises(ValueError, match="evidence/99"):
        open_fits(tmp_path)


def test_weeks_that_history_cannot_train_have_no_fit(tmp_path: Path) -> None:
    fits = open_fits(tmp_path)
    made = fits.collect(small.AS_OF)
    assert made
    begin = fits.rows.event_time.min().astype("datetime64[us]").item()
    assert fits.grid.begin_of(made.first_week) >= begin + fits.p.split.fold + 2 * fits.p.label.deadline
    assert made.evidence.weeks <= evidence.MOST_FITS


def test_a_machine_of_a_team_makes_no_fit_that_another_has_made(shared: Store, tmp_path: Path) -> None:
    one, two = (tmp_path / name / "evidence" / "recipe" for name in ("one", "two"))
    p = small.settings("binary", **{"split.folds": 1, "split.fold": "7d"})
    rows, tuned = small.made_rows("binary", per_day=30), small.tuned(tmp_path, p)
    week = timedelta(days=7)
    Fits.open(one, p, tuned, rows).collect(small.AS_OF - week, most=3)
    made = Fits.open(one, p, tuned, rows).collect(small.AS_OF - week, most=3)
    later = Fits.open(two, p, tuned, rows).collect(small.AS_OF, most=3)
    back = Fits.open(one, p, tuned, rows).collect(small.AS_OF, most=3)
    assert made
    assert later
    assert back
    assert (later.fits, back.fits) == (1, 0)
    assert np.array_equal(back.evidence.losses, later.evidence.losses, equal_nan=True)
    kept = read_kept(tmp_path / "three" / "evidence" / "recipe")
    assert kept
    assert np.array_equal(kept.evidence.losses, later.evidence.losses, equal_nan=True)
    Fits.open(tmp_path / "three" / "evidence" / "another", p, tuned, rows)
    assert (tmp_path / "three/evidence/another/grid.json").read_bytes() == (one / "grid.json").read_bytes()
    assert len([name for name in shared.list_names("evidence") if "losses" in name]) <= 2 * 7


def test_fits_are_the_same_in_processes_and_their_cpu_is_counted(tmp_path: Path) -> None:
    p, made = (
        small.settings("multiclass", **{"split.folds": 1, "split.fold": "7d"}),
        dict[str | None, dict[str, bytes]](),
    )
    recipe, rows = small.tuned(tmp_path, p), small.made_rows("multiclass", per_day=30)
    for cluster in (None, "local:2"):
        spread = p.model_copy(update={"stage": p.stage.model_copy(update={"cluster": cluster})})
        fits = Fits.open(tmp_path / f"on {cluster}", spread, recipe, rows)
        collected = fits.collect(small.AS_OF, most=4)
        assert collected
        assert collected.cpu > 0
        assert all(fits.read_cost(week) > 0 for week in fits.list_fits(small.AS_OF))
        made[cluster] = {name: data for name, data in tree(fits.folder).items() if not name.endswith("cost.json")}
    engine.close()
    assert len(made[None]) > 8
    assert made["local:2"] == made[None]
