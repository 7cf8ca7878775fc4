"""A search's race: its rates and its power over made years, and real fits of two recipes."""

import itertools
import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from tasks.promotion import race
from tasks.promotion.evidence import Fits
from tasks.promotion.race import Pair, measure_race
from tasks.promotion.weekgrid import WEEK, Grid
from tests.tasks import small
from tests.tasks.promotion import races
from tests.tasks.promotion.races import HELD, LOOKS, SHAPES
from tests.tasks.promotion.years import SKILL

QUICK, FULL = 200, 2000  # made years


def at_most(trials: int, rate: float) -> float:
    return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


@pytest.mark.parametrize("every", [1, LOOKS])
@pytest.mark.parametrize("name", SHAPES)
def test_a_year_of_looks_seldom_promotes_an_equal_recipe(name: str, every: int) -> None:
    assert races.share_promoted(name, every, QUICK) <= at_most(QUICK, 0.025 if "independent" in name else 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 4, 13, LOOKS])
@pytest.mark.parametrize("name", SHAPES)
def test_two_thousand_years_of_looks_seldom_promote_an_equal_recipe(name: str, every: int) -> None:
    """However often a newer search takes the contender's place."""
    assert races.share_promoted(name, every, FULL) <= (0.025 if "independent" in name else 0.05)


@pytest.mark.parametrize(("share", "rate"), [(0.05, 0.025), (0.10, 0.005)])
def test_a_recipe_that_is_worse_is_not_promoted_at_one_look(share: float, rate: float) -> None:
    assert races.share_worse_promoted(share, FULL) <= rate


def test_recipes_that_creep_up_in_loss_are_not_let_in() -> None:
    """Each week's is worse by 0.1 % of skill than the one before."""
    assert races.measure_creep(QUICK) <= 0.02


def test_a_better_recipe_wins_within_weeks_and_a_worse_one_leaves_the_race() -> None:
    losses = races.make_losses(np.random.default_rng(3), "luck of a fit", QUICK, 2)
    gains = losses[:, 0] - losses[:, 1] + 0.1 * SKILL
    first, later = (races.judge(gains[:, : 7 * weeks])[0].mean() for weeks in (HELD, 3 * HELD))
    assert first >= 0.15
    assert later >= 0.85
    assert races.judge(-gains[:, : 7 * 3 * HELD])[1].mean() >= 0.85


def test_a_race_of_one_week_asks_for_more_than_one_of_four_and_none_for_nothing() -> None:
    gains = np.tile([0.01, -0.004, 0.02, 0.003, 0.001, 0.008, -0.002], 4)[None]
    one, four = measure_race(*races.sum_weeks(gains[:, :7])), measure_race(*races.sum_weeks(gains))
    assert one
    assert four
    assert one.bound.low < four.bound.low < four.bound.gain < four.high < one.high
    assert measure_race(np.empty((0, 7)), np.empty((0, 7))) is None


def test_the_days_before_the_first_clean_one_do_not_count(tmp_path: Path) -> None:
    pair, as_of = open_pair(tmp_path, since_days=45.5), small.AS_OF
    assert pair.make_fits(as_of) > 0
    assert pair.make_fits(as_of) == 0
    both = pair.read(as_of)
    assert both
    gains, rows = both.sum_gains()
    since = np.datetime64(pair.since)
    times = pair.champion.rows.event_time[pair.champion.rows.event_time >= since]
    grid = pair.champion.grid
    first_day = grid.days_of(np.array([since]))[0] + 1
    days = grid.days_of(times)
    end = 7 * grid.week_of(as_of - pair.champion.p.label.deadline)
    assert rows.sum() == ((days >= first_day) & (days < end)).sum()
    assert gains.shape == rows.shape
    assert (gains[rows == 0] == 0).all()


def test_more_rounds_win_a_race_against_a_stump_on_real_fits(tmp_path: Path) -> None:
    pair = open_pair(tmp_path, since_days=38)
    pair.make_fits(small.AS_OF)
    both = pair.read(small.AS_OF)
    assert both
    measured = race.measure_race(*both.sum_gains())
    assert measured
    course = both.course
    assert course.bounds[-1] == pytest.approx(float(measured.bound.low))
    assert course.bounds[0] is not None
    assert course.bounds[0] < 0  # a single week tells little
    assert [later - begin for begin, later in itertools.pairwise(course.begins)] == [WEEK] * (measured.weeks - 1)
    assert course.begins[0] <= pair.since + timedelta(days=1) < course.begins[1]
    assert measured.wins(0.0)
    assert not measured.is_lost


def test_recipes_of_one_store_have_the_same_weeks(tmp_path: Path) -> None:
    pair = open_pair(tmp_path, since_days=38)
    assert pair.contender.grid == pair.champion.grid
    with pytest.raises(ValueError, match="must begin at one hour, but got 23 h"):
        Pair(replace(pair.contender, grid=Grid(23)), pair.champion, pair.since)


def open_pair(folder: Path, *, since_days: float) -> Pair:
    p = small.settings(**{"split.folds": 1, "split.fold": "7d"})
    rows = small.made_rows(per_day=60)
    good = small.by_hand({"max_depth": 3, "eta": 0.3, "max_bin": 32}, rounds=40)
    poor = small.by_hand({"max_depth": 1, "eta": 0.3, "max_bin": 32}, rounds=2)
    sides = [Fits.open(folder / name, p, tuned, rows) for name, tuned in (("good", good), ("poor", poor))]
    return Pair(sides[0], sides[1], small.AS_OF - timedelta(days=small.DAYS - since_days))
