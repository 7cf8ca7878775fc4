"""tasks.runtime.clock: with a step, time is what the score flow has reached, and it never goes back."""

from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tasks.params import Clock
from tasks.runtime import clock
from tasks.runtime.store import Store

BEGIN, WEEK = datetime(2013, 4, 1), timedelta(days=7)
STEPS = Clock(as_of=BEGIN, step=WEEK)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))


def test_without_a_step_now_is_what_the_params_say() -> None:
    still = Clock(as_of=BEGIN)
    clock.advance(still, BEGIN + WEEK)
    assert clock.now(still) == clock.now_at_next_tick(still) == BEGIN
    assert clock.now_at_next_tick(Clock(as_of=None)) is None


def test_each_tick_brings_a_step_more() -> None:
    for ticks in range(3):
        assert clock.now(STEPS) == BEGIN + ticks * WEEK
        clock.advance(STEPS, clock.now_at_next_tick(STEPS) or BEGIN)


def test_time_does_not_go_back() -> None:
    clock.advance(STEPS, BEGIN + 3 * WEEK)
    clock.advance(STEPS, BEGIN + WEEK)
    assert clock.now(STEPS) == BEGIN + 3 * WEEK


@pytest.mark.parametrize(
    ("ahead", "ticks", "refused"), [(0, False, False), (1, False, True), (7, True, False), (8, True, True)]
)
def test_an_as_of_ahead_of_lived_history_has_to_be_forced(ahead: int, ticks: bool, refused: bool) -> None:
    as_of = BEGIN + timedelta(days=ahead)
    clock.refuse_ahead(STEPS, as_of, force=True, ticks=ticks)
    clock.refuse_ahead(Clock(as_of=BEGIN), as_of, force=False, ticks=ticks)
    with pytest.raises(clock.AheadError, match="ahead of the clock") if refused else nullcontext():
        clock.refuse_ahead(STEPS, as_of, force=False, ticks=ticks)


def test_an_as_of_beyond_the_data_has_to_be_forced() -> None:
    clock.refuse_beyond(BEGIN, BEGIN, force=False)
    clock.refuse_beyond(BEGIN, BEGIN + WEEK, force=True)
    with pytest.raises(clock.AheadError, match="beyond the data"):
        clock.refuse_beyond(BEGIN, BEGIN + WEEK, force=False)


def test_a_stored_clock_beyond_the_data_goes_back_to_their_end() -> None:
    clock.advance(STEPS, datetime(2031, 1, 1))
    assert clock.reset_beyond(STEPS, limit=BEGIN, end=BEGIN) == datetime(2031, 1, 1)
    assert clock.now(STEPS) == BEGIN
    assert clock.reset_beyond(STEPS, limit=BEGIN, end=BEGIN) is None


def test_the_machines_of_a_team_share_the_clock(team: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock.advance(STEPS, BEGIN + WEEK)
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "other"))
    assert clock.now(STEPS) == BEGIN + WEEK
    assert team.read(clock.NAME)
