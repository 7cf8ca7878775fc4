"""Evidence of a recipe's past fits: the sums are right, they are kept, and a look makes only what is missing."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from tasks.params import Task
from tasks.promotion import evidence
from tasks.promotion.contest import row_losses
from tasks.promotion.evidence import Fits, read_kept
from tasks.training import model, train
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
    twin = train.fit_twins(fits.rows, cut, fits.tuned, fits.p, seeds=1)[0]
    day = cut + timedelta(days=9)
    one = fits.rows.take(
        (fits.rows.event_time >= np.datetime64(day)) & (fits.rows.event_time < np.datetime64(day + timedelta(days=1)))
    )
    one = one.take(model.is_labelled(one.label))
    losses = row_losses(twin.spec.encode_label(one.label), twin.predict(one.table), metric=fits.p.gate.metric)
    assert made.evidence.losses[0, 1, 2] == pytest.approx(losses.sum())
    assert made.evidence.rows[1, 2] == len(one)
    assert np.isnan(made.evidence.losses[1, 0]).all()


def test_a_second_look_makes_nothing_and_a_later_one_a_fit(tmp_path: Path) -> None:
    fits = open_fits(tmp_path)
    before = fits.collect(small.AS_OF - timedelta(days=7), most=3)
    again = fits.collect(small.AS_OF - timedelta(days=7), most=3)
    later = fits.collect(small.AS_OF, most=3)
    assert before
    assert again
    assert later
    assert (before.fits, again.fits, later.fits) == (3, 0, 1)
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


def test_what_a_killed_look_had_fitted_is_not_fitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits, made = open_fits(tmp_path), []
    fit_twins = train.fit_twins

    def die_at_the_third(*args: object, **kwargs: object) -> object:
        made.append(args[1])
        if len(made) == 3:
            raise KeyboardInterrupt
        return fit_twins(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "fit_twins", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        fits.collect(small.AS_OF, most=4)
    whole = len(list((tmp_path / "evidence").glob("*/model.ubj")))
    monkeypatch.setattr(train, "fit_twins", fit_twins)
    resumed = fits.collect(small.AS_OF, most=4)
    assert resumed
    assert whole >= 1
    assert resumed.fits == 4 - whole


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
