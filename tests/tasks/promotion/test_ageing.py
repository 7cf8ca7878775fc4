"""What age costs a recipe: the rule's laws, and its error rates and power over made years of 34 weekly looks."""

import math

import numpy as np
import pytest

from tasks.promotion import ageing
from tasks.promotion.ageing import Evidence
from tests.tasks.promotion import years
from tests.tasks.promotion.years import EQUALS, WEEKS

QUICK, FULL = 200, 2000  # made years


def at_most(trials: int, rate: float) -> float:
    """The share that a true rate of at most `rate` stays below in all but one of 700 runs."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


@pytest.mark.parametrize("name", EQUALS)
def test_a_year_of_looks_seldom_promotes_equals(name: str) -> None:
    assert years.share_promoted(name, QUICK) <= at_most(QUICK, 0.025 if "independent" in name else 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUALS)
def test_two_thousand_years_of_looks_seldom_promote_equals(name: str) -> None:
    assert years.share_promoted(name, FULL) <= (0.025 if "independent" in name else 0.05)


@pytest.mark.parametrize("jump", [0.03, 0.1])
def test_a_sudden_change_lets_newer_fits_in_however_large_it_is(jump: float) -> None:
    """From one week on old fits lose more. A newer one has learnt 40 % of what is left after each week."""
    change, champion = 22, 14
    is_after, learnt = np.arange(years.DAYS) >= 7 * change, np.maximum(np.arange(WEEKS)[:, None] - change, 0)
    noise = years.make_noise(np.random.default_rng(3), 40)
    evidence = years.to_evidence(noise + np.where(is_after, jump * 0.6**learnt, 0))
    waits = [years.may_refresh(evidence, now, champion) for now in range(change, change + 13)]
    assert np.any(waits, axis=0).mean() >= 0.9


def test_what_age_costs_lets_newer_fits_in() -> None:
    opened, kept = years.measure_ageing(100)
    assert opened == 1
    assert kept >= 0.7


def test_fits_that_creep_up_in_loss_are_not_let_in() -> None:
    assert years.measure_creep(100) <= 0.02


def test_what_age_cost_in_another_regime_does_not_vote_for_ever() -> None:
    """Age costs in the first half; in the second, it does not, and the newest fits are 5 % of skill worse."""
    assert years.measure_regime(100) <= 0.02


@pytest.mark.parametrize(("share", "rate"), [(0.05, 0.025), (0.10, 0.005)])
def test_a_fit_that_is_worse_is_held_though_age_costs(share: float, rate: float) -> None:
    assert years.share_worse_promoted(share, 600) <= at_most(600, rate)


def test_a_table_of_170_rows_a_week_opens_within_a_year() -> None:
    assert years.share_opened(170, 100) >= 0.8


def test_too_few_weeks_tell_nothing() -> None:
    evidence = years.to_evidence(years.make_noise(np.random.default_rng(6), 1)).until(ageing.MIN_WEEKS)
    one = Evidence(evidence.losses[0], evidence.rows)
    assert ageing.choose_cost(ageing.measure_ages(one, 1)) is None


def test_a_champion_that_grew_old_is_asked_by_its_younger_ages_too() -> None:
    """Old ages have too few weeks: the gate would close while the champion waits."""
    evidence = years.to_evidence(
        years.make_noise(np.random.default_rng(2), 40) + years.cost_of_age(years.list_ages())
    ).until(16)
    costs = ageing.measure_ages(evidence, 12)
    assert [cost.band for cost in costs] == [(1, 2), (3, 4), (5, 8), (9, 16)]
    assert not costs[-1].is_lasting.any()
    assert np.any([cost.is_lasting for cost in costs], axis=0).mean() > 0.3


def test_few_past_shifts_leave_a_margin_and_many_none() -> None:
    assert ageing.Shift(0.12, (0.1, 0.05)).holds
    assert not ageing.Shift(0.13, (0.1, 0.05)).holds
    assert not ageing.Shift(0.101, (0.1,) * 8).holds
    assert not ageing.Shift(0.0, ()).holds


def test_a_week_without_a_fresh_fit_is_left_out() -> None:
    whole = years.to_evidence(years.make_noise(np.random.default_rng(8), 2))
    losses = whole.losses.copy()
    losses[:, 20] = np.nan
    gains, weeks = Evidence(losses, whole.rows).pool_gains(3, 4)
    assert 20 not in weeks
    assert len(weeks) == len(whole.pool_gains(3, 4)[1]) - 1
    assert np.isfinite(gains).all()


def test_weeks_of_large_losses_do_not_hide_what_age_costs() -> None:
    """Age costs a tenth of what a row loses, after a week. In every other week rows lose sixteen times as much, as
    where prices are fourfold and errors squared."""
    noise = np.random.default_rng(9).standard_normal((40, WEEKS, years.DAYS))
    losses = 1 + 0.1 * np.minimum(years.list_ages(), 1) + 0.1 * noise
    dear = np.where(np.arange(years.DAYS) // 7 % 2, 16.0, 1.0)
    for level in (np.ones(years.DAYS), dear):
        evidence = years.to_evidence(losses * level, levels=np.zeros(years.DAYS)).until(20)
        costs = ageing.measure_ages(evidence, 4)
        assert np.any([cost.is_sure for cost in costs], axis=0).mean() >= 0.9
