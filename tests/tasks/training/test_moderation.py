"""training.moderation: what few windows tell is as rare as it claims; pooled variances are nearer to the truth."""

import numpy as np
import pytest
from scipy import stats

from tasks.training import moderation, windows

STREAMS, TERMS = 20_000, 6


@pytest.mark.parametrize("degrees", [3.0, 7.5, 18.0, 100.0])
def test_evidence_is_that_of_the_normal_deviate_that_is_as_rare(degrees: float) -> None:
    deviations = np.array([0.5, 1.0, 2.0, 3.0, 5.0])
    deviates = stats.norm.isf(stats.t.sf(deviations, degrees))
    assert np.sqrt(2 * moderation.weigh_deviations(deviations, np.array(degrees))) == pytest.approx(deviates, rel=0.03)


def test_evidence_rises_without_an_end_and_begins_at_nothing() -> None:
    found = moderation.weigh_deviations(np.array([-3.0, 0.0, 1.0, 10.0, 1e3, 1e9]), np.array(5.0))
    assert found[:2].tolist() == [0, 0]
    assert (np.diff(found[1:]) > 0).all()


@pytest.mark.parametrize("count", [3, 6, 12, 26])
@pytest.mark.parametrize("share", [0.05, 0.005])
def test_a_new_value_beside_so_many_windows_is_as_rare_as_its_evidence_says(count: int, share: float) -> None:
    """Held against the plain quantile of a normal deviate it would be thrice as frequent at six windows."""
    rng = np.random.default_rng(0)
    past, new = rng.normal(size=(STREAMS, count, 1)), rng.normal(size=(STREAMS, 1))
    off = (new - past.mean(axis=1)) / past.std(axis=1)
    rare = moderation.weigh_new_values(off, np.full(STREAMS, float(count)), 1) > stats.norm.isf(share) ** 2 / 2
    low, high = stats.binom.ppf([0.0001, 0.9999], STREAMS, share)
    assert low * 0.95 <= rare.sum() <= high * 1.05  # Wallace's form is near, not exact
    plain = off > stats.norm.isf(share)
    assert count == 26 or plain.sum() > high * 1.05


@pytest.mark.parametrize("count", [6, 12, 26])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.5])
def test_terms_whose_variances_are_pooled_are_as_rare_as_their_evidence_says(count: int, spread: float) -> None:
    """`spread`: of the logarithm of the factors by which terms differ from what unrelated units would do."""
    rng = np.random.default_rng(0)
    known = np.exp(rng.normal(size=(STREAMS // 2, TERMS)))
    true = known * np.exp(spread * rng.normal(size=known.shape))
    degrees = np.full(len(true), float(count))
    estimated = true * rng.chisquare(count, true.shape) / count
    variances, pooled = moderation.pool_variances(estimated, degrees, known)
    new = np.sqrt(true) * rng.normal(size=true.shape)
    share = 0.01
    rare = moderation.weigh_deviations(np.abs(new) / np.sqrt(variances), pooled) > stats.norm.isf(share / 2) ** 2 / 2
    assert rare.mean() < 1.6 * share
    if spread == 0:
        assert rare.mean() == pytest.approx(share, rel=0.3)
        assert np.log(variances / true).std() < 0.7 * np.log(estimated / true).std()
        assert pooled.mean() > 2 * count
    assert (pooled >= count).all()


def test_terms_that_differ_too_much_or_of_which_nothing_is_known_keep_their_own_variances() -> None:
    variances, degrees = np.array([[1.0, 400.0, 9e4]]), np.array([20.0])
    unlike, most = moderation.pool_variances(variances, degrees, np.ones((1, 3)))
    assert unlike == pytest.approx(variances, rel=0.2)
    assert most.max() < 21
    unknown, own = moderation.pool_variances(variances, degrees, np.zeros((1, 3)))
    assert unknown.tolist() == variances.tolist()
    assert own.tolist() == [[20.0] * 3]
    assert moderation.pool_variances(variances[:, :1], degrees, np.ones((1, 1)))[1].tolist() == [[20.0]]
    assert moderation.pool_variances(np.zeros((2, 0)), np.ones(2), np.zeros((2, 0)))[0].shape == (2, 0)


def test_unrelated_windows_vary_as_weeks_of_independent_days_do() -> None:
    rng = np.random.default_rng(0)
    days = rng.normal(size=(20_000, 2)) * [1.0, 5.0]
    days[100:120] = np.nan
    whole, outside = moderation.simulate_unrelated(days, 7)
    weeks = windows.trimmed_mean(windows.slide(days, 7)[200:]).std(axis=0)
    assert whole == pytest.approx(weeks, rel=0.1)
    assert outside.shape == (len(days) - 6, 2)
    assert outside[0] == pytest.approx(whole, rel=0.01)


def test_what_happens_in_a_window_says_nothing_of_the_units_outside_of_it() -> None:
    rng = np.random.default_rng(0)
    days = rng.normal(size=(84, 1))
    far = days.copy()
    far[40:47] += 30
    _, plain = moderation.simulate_unrelated(days, 7)
    whole, shifted = moderation.simulate_unrelated(far, 7)
    factor = whole / far.std(axis=0) * days.std(axis=0) / moderation.simulate_unrelated(days, 7)[0]
    assert shifted[40] == pytest.approx(plain[40] * factor, rel=1e-6)
    assert shifted[0] > 3 * plain[0]


def test_the_windows_that_one_does_not_overlap_are_counted_as_they_fit_in() -> None:
    assert moderation.count_disjoint(8, 1).tolist() == [7] * 8
    found = moderation.count_disjoint(36, 7)
    assert found[0] == pytest.approx(5.0)  # 29 that slide: 35 units
    assert found[18] == pytest.approx(2 * 17 / 7, abs=0.2)
    assert moderation.count_disjoint(1, 7).tolist() == [1]
