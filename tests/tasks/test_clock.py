"""tasks.clock: with a step, time is what the score flow has reached, and it never goes back."""

from datetime import datetime, timedelta
from pathlib import Path

from tasks import clock
from tasks.params import Clock

BEGIN, WEEK = datetime(2013, 4, 1), timedelta(days=7)
STEPS = Clock(as_of=BEGIN, step=WEEK)


def test_without_a_step_now_is_what_the_params_say(tmp_path: Path) -> None:
    still = Clock(as_of=BEGIN)
    clock.move(still, BEGIN + WEEK, tmp_path)
    assert clock.now(still, tmp_path) == clock.after(still, tmp_path) == BEGIN
    assert clock.after(Clock(as_of=None), tmp_path) is None


def test_each_tick_brings_a_step_more(tmp_path: Path) -> None:
    for ticks in range(3):
        assert clock.now(STEPS, tmp_path) == BEGIN + ticks * WEEK
        clock.move(STEPS, clock.after(STEPS, tmp_path) or BEGIN, tmp_path)


def test_time_does_not_go_back(tmp_path: Path) -> None:
    clock.move(STEPS, BEGIN + 3 * WEEK, tmp_path)
    clock.move(STEPS, BEGIN + WEEK, tmp_path)
    assert clock.now(STEPS, tmp_path) == BEGIN + 3 * WEEK
