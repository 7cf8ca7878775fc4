"""tasks.training.profile: a feed of labels that stops or thins out is a fault, and one that goes on is not."""

from datetime import timedelta

import numpy as np
import pytest

from tasks.training import profile

WEEK = timedelta(days=7)


def history(share: float, *, days: int = 60, per_day: int = 50, seed: int = 0) -> float | None:
    rng = np.random.default_rng(seed)
    times = np.datetime64("2024-01-01", "us") + np.repeat(np.arange(days), per_day) * np.timedelta64(1, "D")
    return profile.find_labelled_share(rng.random(len(times)) < share, times, WEEK)


@pytest.mark.parametrize("share", [0.04, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("rows", [350, 5000])
def test_a_dead_feed_is_a_fault_and_the_usual_share_is_none(share: float, rows: int) -> None:
    least = history(share, per_day=200)
    assert least is not None
    assert least <= share
    for seed in range(200):
        usual = np.random.default_rng(seed).random(rows) < share
        assert profile.find_label_fault(usual, least) is None
    if rows * share > 20:  # else none of so few may be chance
        fault = profile.find_label_fault(np.zeros(rows, dtype=bool), least)
        assert fault
        assert fault.startswith(f"labels: 0.0% of {rows:,} mature rows have one, at least ")


@pytest.mark.parametrize(("usual", "now"), [(0.97, 0.8), (0.5, 0.3), (0.1, 0.03)])
def test_a_feed_that_thins_out_is_a_fault(usual: float, now: float) -> None:
    thin = np.arange(1000) < 1000 * now
    assert profile.find_label_fault(thin, history(usual, per_day=200))


def test_a_week_of_history_without_labels_does_not_excuse_the_next() -> None:
    times = np.datetime64("2024-01-01", "us") + np.repeat(np.arange(60), 50) * np.timedelta64(1, "D")
    day = np.repeat(np.arange(60), 50)
    least = profile.find_labelled_share((day < 20) | (day >= 30), times, WEEK)
    assert least
    assert least >= 0.5
    assert profile.find_label_fault(np.zeros(350, dtype=bool), least)


def test_weeks_without_rows_or_with_few_set_no_measure() -> None:
    day = np.concatenate([np.repeat(np.arange(30), 50), [40], np.repeat(np.arange(50, 80), 50)])
    labelled = day != 40
    times = np.datetime64("2024-01-01", "us") + day * np.timedelta64(1, "D")
    assert profile.find_labelled_share(labelled, times, WEEK) == 1.0


@pytest.mark.parametrize("days", [0, 3])
def test_without_a_window_of_history_or_rows_nothing_is_a_fault(days: int) -> None:
    assert history(0.9, days=days) is None
    assert profile.find_label_fault(np.zeros(100, dtype=bool), None) is None
    assert profile.find_label_fault(np.zeros(0, dtype=bool), 0.9) is None
