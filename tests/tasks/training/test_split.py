"""tasks.training.split: nothing is known too early, whatever the lengths."""

import re
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.params import Split
from tasks.training import split
from tasks.training.split import Fold, Mask, Times

LAW = settings(deadline=None, derandomize=True, max_examples=60)
BEGIN = datetime(2024, 1, 1)
AS_OF = BEGIN + timedelta(days=120)


def days(low: int, high: int) -> st.SearchStrategy[timedelta]:
    return st.integers(low, high).map(lambda count: timedelta(days=count))


SPLITS = st.builds(
    Split,
    holdout=days(1, 30),
    folds=st.integers(1, 4),
    fold=days(1, 12),
    window=st.none() | days(20, 200),
)
DEADLINES = st.integers(0, 96).map(lambda hours: timedelta(hours=hours))
SEEDS = st.integers(0, 1000)


def rows(seed: int, deadline: timedelta, count: int = 600) -> tuple[Times, Times, Mask]:
    """Event times, when each label is known (at most the deadline later), and which rows ever get one."""
    rng = np.random.default_rng(seed)
    regular = np.arange(0, 120 * 1440, 360)  # no day without a labelled row
    minutes = np.sort(np.concatenate([regular, rng.integers(0, 120 * 1440, count)]))
    count = len(minutes)
    event = np.datetime64(BEGIN, "us") + minutes.astype("timedelta64[m]")
    late = rng.uniform(0, 1, count) ** 3 * deadline.total_seconds()
    known = event + np.where(rng.random(count) < 0.1, deadline.total_seconds(), late).astype("timedelta64[s]")
    return event, known, (rng.random(count) < 0.95) | (minutes % 360 == 0)


def holdout_of(seed: int, setting: Split, deadline: timedelta) -> tuple[Times, Times, Mask, Mask]:
    """The rows, and which of them are the holdout."""
    event, known, labelled = rows(seed, deadline)
    span = split.find_holdout(AS_OF, setting, deadline=deadline)
    return event, known, labelled, split.select_holdout(event, span, labelled)


def folds_of(seed: int, setting: Split, deadline: timedelta) -> list[Fold]:
    event, _, labelled = rows(seed, deadline)
    where = split.find_holdout(AS_OF, setting, deadline=deadline)
    return split.make_folds(event, where.begin, setting, deadline=deadline, labelled=labelled)


@LAW
@given(SEEDS, SPLITS, DEADLINES, st.integers(0, 120))
def test_no_training_row_has_a_label_that_was_not_known_before_the_cut(
    seed: int, setting: Split, deadline: timedelta, day: int
) -> None:
    event, known, _ = rows(seed, deadline)
    cut = BEGIN + timedelta(days=day)
    chosen = split.select_training(event, cut, setting, deadline=deadline)
    assert (known[chosen] < np.datetime64(cut)).all()


@LAW
@given(SEEDS, SPLITS, DEADLINES)
def test_nothing_that_the_twin_learns_from_is_known_in_the_holdout(
    seed: int, setting: Split, deadline: timedelta
) -> None:
    event, known, labelled = rows(seed, deadline)
    where = split.find_holdout(AS_OF, setting, deadline=deadline)
    held = split.select_holdout(event, where, labelled)
    seen = split.select_training(event, where.begin, setting, deadline=deadline)
    assert known[seen].max() < event[held].min()
    assert not (held & seen).any()


@LAW
@given(SEEDS, SPLITS, DEADLINES)
def test_the_holdout_is_the_newest_labelled_stretch_whose_labels_had_their_time(
    seed: int, setting: Split, deadline: timedelta
) -> None:
    event, known, labelled, held = holdout_of(seed, setting, deadline)
    assert labelled[held].all()
    assert (known[held] < np.datetime64(AS_OF)).all()
    newer = labelled & (event > event[held].max())
    assert (event[newer] >= np.datetime64(AS_OF - deadline)).all()
    assert event[held].max() - event[held].min() < setting.holdout


@LAW
@given(SEEDS, SPLITS, DEADLINES)
def test_a_fold_learns_only_what_was_known_before_its_validation_begins(
    seed: int, setting: Split, deadline: timedelta
) -> None:
    event, known, labelled = rows(seed, deadline)
    for fold in folds_of(seed, setting, deadline):
        assert known[fold.train].max() < event[fold.valid].min()
        assert labelled[fold.train].all()
        assert labelled[fold.valid].all()


@LAW
@given(SEEDS, SPLITS, DEADLINES)
def test_no_fold_touches_the_holdout_or_what_becomes_known_in_it(
    seed: int, setting: Split, deadline: timedelta
) -> None:
    event, known, _, held = holdout_of(seed, setting, deadline)
    for fold in folds_of(seed, setting, deadline):
        assert not (held & (fold.train | fold.valid)).any()
        assert known[fold.train | fold.valid].max() < event[held].min()


@LAW
@given(SEEDS, SPLITS, DEADLINES)
def test_folds_expand_in_time_and_validate_on_rows_of_their_own(seed: int, setting: Split, deadline: timedelta) -> None:
    event, _, _ = rows(seed, deadline)
    found = folds_of(seed, setting, deadline)
    assert len(found) == setting.folds
    for one, later in pairwise(found):
        assert event[one.valid].max() < event[later.valid].min()
        assert event[one.train].max() <= event[later.train].max()
        if setting.window is None:
            assert not (one.train & ~later.train).any()


@LAW
@given(SEEDS, SPLITS, DEADLINES)
def test_training_reaches_no_further_back_than_the_window(seed: int, setting: Split, deadline: timedelta) -> None:
    event, _, _ = rows(seed, deadline)
    chosen = split.select_training(event, AS_OF, setting, deadline=deadline)
    oldest = BEGIN if setting.window is None else AS_OF - setting.window
    assert (event[chosen] >= np.datetime64(oldest)).all()


def test_a_holdout_longer_than_history_names_the_way_out() -> None:
    event, _, labelled = rows(0, timedelta(0))
    setting = Split(holdout=timedelta(days=121), folds=1, fold=timedelta(days=1))
    with pytest.raises(ValueError, match=r"`split.holdout < history` must hold, .* Shorten split.holdout"):
        split.select_holdout(event, split.find_holdout(AS_OF, setting, deadline=timedelta(0)), labelled)


def test_a_holdout_without_a_label_is_an_error() -> None:
    event, _, labelled = rows(0, timedelta(0))
    setting = Split(holdout=timedelta(days=10), folds=1, fold=timedelta(days=1))
    with pytest.raises(ValueError, match=r"no labelled row lies in the holdout .*: check label and known_at"):
        split.select_holdout(event, split.find_holdout(AS_OF, setting, deadline=timedelta(0)), np.zeros_like(labelled))


def test_folds_without_room_name_the_way_out() -> None:
    setting = Split(holdout=timedelta(days=60), folds=4, fold=timedelta(days=15))
    with pytest.raises(ValueError, match=r"fold 1 of 4 has 0 training .* \(60d\) .* fewer or shorter folds"):
        folds_of(0, setting, timedelta(days=2))


def paused(day: int, length: int) -> tuple[Times, Mask]:
    """The rows of 120 days, with a pause of so many days after so many."""
    event, _, labelled = rows(0, timedelta(0))
    return np.where(
        event < np.datetime64(BEGIN + timedelta(days=day)), event, event + np.timedelta64(length, "D")
    ), labelled


@pytest.mark.parametrize("length", [20, 45, 400])
@pytest.mark.parametrize("day", [30, 70, 83, 99, 105])
@pytest.mark.parametrize("deadline", [0, 2])
def test_folds_are_made_of_rows_that_exist_however_long_a_pause_is(day: int, length: int, deadline: int) -> None:
    late = timedelta(days=deadline)
    event, labelled = paused(day, length)
    setting = Split(holdout=timedelta(days=10), folds=3, fold=timedelta(days=14))
    where = split.find_holdout(AS_OF + timedelta(days=length), setting, deadline=late)
    found = split.make_folds(event, where.begin, setting, deadline=late, labelled=labelled)
    assert len(found) == 3
    for one, later in pairwise(found):
        assert event[one.valid].max() < event[later.valid].min()
    for fold in found:
        assert fold.train.any()
        assert len(np.unique(event[fold.valid].astype("datetime64[D]"))) in (14, 15)
        assert event[fold.train].max() < event[fold.valid].min() - np.timedelta64(late)


def test_folds_in_a_table_without_a_pause_lie_where_they_always_did() -> None:
    event, _, labelled = rows(0, timedelta(0))
    setting = Split(holdout=timedelta(days=10), folds=3, fold=timedelta(days=7))
    found = split.make_folds(event, AS_OF, setting, deadline=timedelta(0), labelled=labelled)
    for number, fold in enumerate(reversed(found)):
        end = AS_OF - number * setting.fold
        assert (fold.valid == split.select_between(event, end - setting.fold, end) & labelled).all()


def test_a_fold_shorter_than_what_lies_between_rows_names_the_gap_and_a_length_that_would_do() -> None:
    event = np.datetime64(BEGIN, "us") + np.arange(12) * np.timedelta64(30, "D")  # a row a month
    labelled, cut = np.ones(12, dtype=bool), BEGIN + timedelta(days=335)

    def fold_of(days: int) -> list[Fold]:
        setting = Split(holdout=timedelta(days=10), folds=2, fold=timedelta(days=days))
        return split.make_folds(event, cut, setting, deadline=timedelta(0), labelled=labelled)

    with pytest.raises(ValueError, match=r"up to 30d apart .* Set split.fold to 30d or more") as told:
        fold_of(4)
    assert "fold 2 of 2 has 12 training and 0 validation rows" in str(told.value)
    assert len(fold_of(30)) == 2


def test_a_training_window_inside_a_pause_names_the_gap_and_a_length_that_would_do() -> None:
    event, labelled = paused(97, 60)
    cut = AS_OF + timedelta(days=60)

    def with_window(days: int) -> list[Fold]:
        length = {"folds": 1, "fold": timedelta(days=23), "window": timedelta(days=days)}
        setting = Split(holdout=timedelta(days=10), **length)
        return split.make_folds(event, cut, setting, deadline=timedelta(0), labelled=labelled)

    with pytest.raises(ValueError, match=r"no labelled row lies between .* Set split.window to (\d+)d or more") as told:
        with_window(30)
    days = re.search(r"split.window to (\d+)d", str(told.value))
    assert days
    assert len(with_window(int(days[1]))) == 1


def class_folds(*parts: tuple[str, str]) -> tuple[list[split.Fold], np.ndarray[Any, Any]]:
    """Folds whose training and validation rows have these classes, a letter a row."""
    label = np.array(list("".join(train + valid for train, valid in parts)), dtype=object)
    folds, place = [], 0
    for train, valid in parts:
        inside = np.arange(len(label)) - place
        held = (inside >= len(train)) & (inside < len(train) + len(valid))
        folds.append(split.Fold((inside >= 0) & (inside < len(train)), held))
        place += len(train) + len(valid)
    return folds, label


def test_validation_rows_of_one_class_name_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"validation rows of fold 2 are all of one class, \['a'\]. Use fewer"):
        split.keep_trained_classes(*class_folds(("ab", "ab"), ("ab", "aa")), "ab")
    with pytest.raises(ValueError, match=r"training rows of fold 1 hold none of the class \['b'\]. Use fewer"):
        split.keep_trained_classes(*class_folds(("aa", "ab"), ("aa", "ab")), "ab")


def test_a_class_that_is_younger_than_a_fold_stops_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    folds, label = class_folds(("ab", "abc"), ("abc", "ab"))
    first, second = split.keep_trained_classes(folds, label, "abc")
    assert label[first.valid].tolist() == ["a", "b"]
    assert second is folds[1]
    assert "fold 1 hold none of the class ['c']: 1 of its validation rows are left out" in caplog.text


def test_a_fold_that_trains_on_one_class_is_left_out_where_another_does_not(caplog: pytest.LogCaptureFixture) -> None:
    folds, label = class_folds(("aa", "ab"), ("ab", "ab"))
    (left,) = split.keep_trained_classes(folds, label, "ab")
    assert left is folds[1]
    assert "fold 1 is left out: its training rows hold none of the class ['b']" in caplog.text
