"""tasks.runtime.clock: with a step, time is what the score flow has reached, and it never goes back."""

from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tasks.params import Clock
from tasks.runtime import clock

BEGIN, WEEK = datetime(2013, 4, 1), timedelta(days=7)
STEPS = Clock(as_of=BEGIN, step=WEEK)


def test_without_a_step_now_is_what_the_params_say(tmp_path: Path) -> None:
    still = Clock(as_of=BEGIN)
    clock.advance(still, BEGIN + WEEK, tmp_path)
    assert clock.now(still, tmp_path) == clock.now_at_next_tick(still, tmp_path) == BEGIN
    assert clock.now_at_next_tick(Clock(as_of=None), tmp_path) is None


def test_each_tick_brings_a_step_more(tmp_path: Path) -> None:
    for ticks in range(3):
        assert clock.now(STEPS, tmp_path) == BEGIN + ticks * WEEK
        clock.advance(STEPS, clock.now_at_next_tick(STEPS, tmp_path) or BEGIN, tmp_path)


def test_time_does_not_go_back(tmp_path: Path) -> None:
    clock.advance(STEPS, BEGIN + 3 * WEEK, tmp_path)
    clock.advance(STEPS, BEGIN + WEEK, tmp_path)
    assert clock.now(STEPS, tmp_path) == BEGIN + 3 * WEEK


@pytest.mark.parametrize(
    ("ahead", "ticks", "refused"), [(0, False, False), (1, False, True), (7, True, False), (8, True, True)]
)
def test_an_as_of_ahead_of_lived_history_has_to_be_forced(
    tmp_path: Path, ahead: int, ticks: bool, refused: bool
) -> None:
    as_of = BEGIN + timedelta(days=ahead)
    clock.refuse_ahead(STEPS, as_of, force=True, ticks=ticks, home=tmp_path)
    clock.refuse_ahead(Clock(as_of=BEGIN), as_of, force=False, ticks=ticks, home=tmp_path)
    with pytest.raises(clock.AheadError, match="ahead of the clock") if refused else nullcontext():
        clock.refuse_ahead(STEPS, as_of, force=False, ticks=ticks, home=tmp_path)


def test_an_as_of_beyond_the_data_has_to_be_forced() -> None:
    clock.refuse_beyond(BEGIN, BEGIN, force=False)
    clock.refuse_beyond(BEGIN, BEGIN + WEEK, force=True)
    with pytest.raises(clock.AheadError, match="beyond the data"):
        clock.refuse_beyond(BEGIN, BEGIN + WEEK, force=False)


def test_a_stored_clock_beyond_the_data_goes_back_to_their_end(tmp_path: Path) -> None:
    clock.advance(STEPS, datetime(2031, 1, 1), tmp_path)
    assert clock.reset_beyond(STEPS, limit=BEGIN, end=BEGIN, home=tmp_path) == datetime(2031, 1, 1)
    assert clock.now(STEPS, tmp_path) == BEGIN
    assert clock.reset_beyond(STEPS, limit=BEGIN, end=BEGIN, home=tmp_path) is None
