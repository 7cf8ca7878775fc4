"""Freshness: what a champion's age costs, by the kept evidence of its recipe."""

from datetime import datetime, timedelta

import numpy as np

from tasks.monitoring.signal import Signal
from tasks.monitoring.signals.freshness import make_freshness
from tasks.promotion.ageing import Evidence
from tasks.promotion.evidence import Kept

AS_OF = datetime(2013, 9, 1)
WEEK = timedelta(weeks=1)
WEEKS, ROWS = 20, 900.0


def keep(cost: float) -> Kept:
    """Fits that lose `cost` a row more for each week of their age, on days that differ by chance."""
    rng = np.random.default_rng(5)
    ages = np.arange(WEEKS)[None, :] - np.arange(WEEKS)[:, None]
    losses = (0.5 + cost * ages)[..., None] * ROWS + rng.normal(0, 2, (WEEKS, WEEKS, 7))
    losses[ages < 0] = np.nan
    return Kept(Evidence(losses, np.full((WEEKS, 7), ROWS)), AS_OF - 2 * WEEK)


def measure(kept: Kept | None, *, weeks: int = 6) -> Signal:
    return make_freshness(kept, made_at=AS_OF - weeks * WEEK, since=AS_OF - WEEK, as_of=AS_OF, version=3)


def test_age_that_costs_alarms_and_is_no_warning_to_a_person() -> None:
    signal = measure(keep(0.002))
    assert signal.alarm
    assert signal.is_measured
    assert not signal.is_warning
    assert signal.value is not None
    assert signal.low is not None
    assert 0 < signal.low < signal.value < 0.002 * 9
    assert "5 to 8 weeks old" in signal.message


def test_age_that_costs_nothing_is_quiet() -> None:
    assert not measure(keep(0.0)).alarm


def test_the_age_decides_which_fits_tell() -> None:
    older, younger = measure(keep(0.002), weeks=10), measure(keep(0.002), weeks=2)
    assert older.value is not None
    assert younger.value is not None
    assert older.value > younger.value


def test_what_nobody_has_measured_is_said_so() -> None:
    signal = measure(None)
    assert not signal.alarm
    assert not signal.is_measured
    assert signal.detail["evidence_until"] is None
    assert "a refresh measures it" in signal.message


def test_too_few_weeks_are_not_measured_and_say_how_far_they_reach() -> None:
    few = Kept(keep(0.002).evidence.until(5), AS_OF - WEEK)
    signal = measure(few)
    assert not signal.is_measured
    assert "fewer than 8 weeks tell, up to 2013-08-25" in signal.message
    assert signal.detail["rows_a_week"] == 7 * ROWS
