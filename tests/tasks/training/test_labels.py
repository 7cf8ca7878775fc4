"""tasks.training.labels: a feed of labels that stops, thins out or dies slowly is a fault; one that goes on is not."""

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from tasks.training import labels

DAY, WEEK, PER_DAY = timedelta(days=1), timedelta(days=7), 50


def to_times(day: Any) -> Any:
    return np.datetime64("2024-01-01", "us") + day * np.timedelta64(1, "D")


def days_of(count: int, per_day: int = PER_DAY) -> Any:
    return np.repeat(np.arange(count), per_day)


def history(share: float, *, days: int = 60, per_day: int = PER_DAY, seed: int = 0) -> float | None:
    rng, day = np.random.default_rng(seed), days_of(days, per_day)
    return labels.find_labelled_share(rng.random(len(day)) < share, to_times(day), WEEK)


@pytest.mark.parametrize("share", [0.04, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("rows", [350, 5000])
def test_a_dead_feed_is_a_fault_and_the_usual_share_is_none(share: float, rows: int) -> None:
    least = history(share, per_day=200)
    assert least is not None
    assert least <= share
    for seed in range(200):
        usual = np.random.default_rng(seed).random(rows) < share
        assert labels.find_label_fault(usual, least) is None
    if rows * share > 20:  # else none of so few may be chance
        fault = labels.find_label_fault(np.zeros(rows, dtype=bool), least)
        assert fault
        assert fault.startswith(f"labels: 0.0% of {rows:,} mature rows have one, at least ")


@pytest.mark.parametrize(("usual", "now"), [(0.97, 0.8), (0.5, 0.3), (0.1, 0.03)])
def test_a_feed_that_thins_out_is_a_fault_that_names_the_way_out(usual: float, now: float) -> None:
    fault = labels.find_label_fault(np.arange(1000) < 1000 * now, history(usual, per_day=200))
    assert fault
    assert "lengthen label.deadline" in fault


@pytest.mark.parametrize("a_week", [0.01, 0.03, 0.1])
def test_a_feed_that_dies_slowly_is_a_fault_though_each_new_model_has_a_history_of_its_own(a_week: float) -> None:
    """From day 100 on fewer rows get a label each day. A model is made every two weeks and watched the two after it."""
    rng, day = np.random.default_rng(0), days_of(300)
    share = np.clip(0.97 - a_week / 7 * np.maximum(day - 100, 0), 0, 1)
    labelled, faults = rng.random(len(day)) < share, []
    for made in range(60, 286, 14):
        before, after = day < made, (day >= made + 7) & (day < made + 14)
        least = labels.find_labelled_share(labelled[before], to_times(day[before]), WEEK)
        faults.append((made, labels.find_label_fault(labelled[after], least)))
    assert not [made for made, fault in faults if fault and made + 14 < 100]
    first = next(made for made, fault in faults if fault)
    assert 0.97 - a_week / 7 * (first + 10 - 100) > 0.75
    if a_week > 0.01:  # such a fall has not become the usual in half of a history
        assert all(fault for made, fault in faults if first <= made < 200)


def test_a_bad_week_that_passed_is_a_measure_and_one_at_the_end_is_none() -> None:
    day = days_of(60)
    for begin, least in ((20, 0.8), (53, 1.0)):
        labelled = (day < begin) | (day >= begin + 7) | (np.arange(len(day)) % 5 > 0)
        assert labels.find_labelled_share(labelled, to_times(day), WEEK) == pytest.approx(least)


def test_a_week_of_history_without_labels_does_not_excuse_the_next() -> None:
    day = days_of(60)
    least = labels.find_labelled_share((day < 20) | (day >= 30), to_times(day), WEEK)
    assert least
    assert least >= 0.5
    assert labels.find_label_fault(np.zeros(350, dtype=bool), least)


def test_weeks_without_rows_or_with_few_set_no_measure() -> None:
    day = np.concatenate([days_of(30), [40], days_of(30) + 50])
    assert labels.find_labelled_share(day != 40, to_times(day), WEEK) == 1.0


@pytest.mark.parametrize("days", [0, 3])
def test_without_a_window_of_history_or_rows_nothing_is_a_fault(days: int) -> None:
    assert history(0.9, days=days) is None
    assert labels.find_label_fault(np.zeros(100, dtype=bool), None) is None
    assert labels.find_label_fault(np.zeros(0, dtype=bool), 0.9) is None


# --- before the deadline


def early(delay_days: float, *, deadline: timedelta = 28 * DAY) -> labels.EarlyLabels | None:
    """Of a feed that brings nine labels of ten, after up to so many days."""
    rng, day = np.random.default_rng(0), days_of(60)
    delays = rng.uniform(0, delay_days * 1440, len(day)).astype("timedelta64[m]")
    labelled, times = rng.random(len(day)) < 0.9, to_times(day)
    known_at = np.where(labelled, times + delays, np.datetime64("NaT", "us"))
    return labels.find_early_labels(labelled, times, known_at, window=WEEK, deadline=deadline)


def test_labels_that_come_long_before_their_deadline_are_missed_soon() -> None:
    of = early(2.0)
    assert of
    assert of.age == 3 * DAY
    assert of.least == pytest.approx(0.87, abs=0.03)
    fault = labels.find_label_fault(np.zeros(350, dtype=bool), of.least, age=of.age)
    assert fault
    assert "0.0% of 350 rows have one 3d after their event" in fault
    assert "monitor.window" in fault


def test_a_feed_that_comes_by_the_week_is_no_fault_before_the_deadline() -> None:
    """At worst a week's labels are missing, of rows from 3 to 10 days old."""
    of, age = early(2.0), np.repeat(np.arange(3, 10), PER_DAY)
    assert of
    assert labels.find_label_fault(age >= 7, of.least, age=of.age) is None


@pytest.mark.parametrize(("delay", "deadline"), [(0.3, 2 * DAY), (2.0, 3 * DAY), (28.9, 28 * DAY)])
def test_where_labels_come_about_their_deadline_nothing_is_looked_at_early(delay: float, deadline: timedelta) -> None:
    assert early(delay, deadline=deadline) is None


def test_without_labels_nothing_is_looked_at_early() -> None:
    times = to_times(days_of(20))
    never = np.full(len(times), np.datetime64("NaT", "us"))
    args = {"window": WEEK, "deadline": 28 * DAY}
    assert labels.find_early_labels(np.zeros(len(times), dtype=bool), times, never, **args) is None
