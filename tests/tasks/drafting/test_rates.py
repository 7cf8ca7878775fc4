"""The lengths of a draft fit the table that they were made of, however often its rows come."""

from datetime import datetime, timedelta

import numpy as np
import pytest

from tasks import params
from tasks.data import feasibility
from tasks.drafting import rates
from tasks.drafting.featuretext import choose_past
from tasks.drafting.rates import Lengths
from tasks.drafting.shape import Shape, Step
from tests.conftest import raw_params

BEGIN = datetime(2001, 1, 1)
YEAR, MONTH, DAY, HOUR = timedelta(days=366), timedelta(days=31), timedelta(days=1), timedelta(hours=1)


def make_shape(rows: int, gap: timedelta, step: Step | None, *, uneven: float = 0.0) -> Shape:
    """Rows that lie so far apart, or on average so far."""
    rng = np.random.default_rng(rows)
    gaps = np.full(rows, gap / timedelta(microseconds=1)) * (1 + uneven * rng.uniform(-1, 1, rows))
    times = np.datetime64(BEGIN, "us") + np.cumsum(gaps).astype("timedelta64[us]")
    return Shape("at", ("at",), "series" if step else "events", step, (), (), 0, times)


def find_problems(shape: Shape, lengths: Lengths) -> list[str]:
    """What would stop a retrain."""
    raw = raw_params("regression", 60)
    raw["label"]["deadline"] = params.spell(lengths.deadline)
    raw["split"] |= {
        "holdout": params.spell(lengths.holdout),
        "fold": params.spell(lengths.fold),
        "folds": lengths.folds,
    }
    raw["gate"] |= {
        "block": params.spell(lengths.block),
        "min_rows": lengths.min_rows,
        "min_blocks": lengths.min_blocks,
    }
    raw["monitor"] = {"window": params.spell(lengths.window)}
    raw["policy"] = {"min_rows": lengths.window_rows}
    raw["evaluate"]["slices"] = []
    problems = feasibility.find_problems(shape.times, shape.end + lengths.deadline, params.validate(raw))
    return [problem.message for problem in problems]


@pytest.mark.parametrize(
    ("rows", "gap", "step"),
    [
        (60, YEAR, Step("1 YEAR", YEAR)),
        (300, YEAR, Step("1 YEAR", YEAR)),
        (120, MONTH, Step("1 MONTH", MONTH)),
        (520, 7 * DAY, Step("7 DAY", 7 * DAY)),
        (120, DAY, Step("1 DAY", DAY)),
        (3000, DAY, Step("1 DAY", DAY)),
        (500, HOUR, Step("1 HOUR", HOUR)),
        (20_000, HOUR, Step("1 HOUR", HOUR)),
        (30_000, HOUR / 60, Step("1 MINUTE", HOUR / 60)),
        (300, 5 * HOUR, None),
        (3000, 2 * HOUR, None),
        (100_000, HOUR / 30, None),
    ],
)
def test_what_is_drafted_fits_the_row_rate(rows: int, gap: timedelta, step: Step | None) -> None:
    shape = make_shape(rows, gap, step, uneven=0.0 if step else 0.9)
    reach = choose_past(shape, shape.end - shape.begin).reach
    lengths = rates.choose_lengths(shape, deadline=step.length if step else DAY, reach=reach)
    assert find_problems(shape, lengths) == []
    assert lengths.lookback > reach
    assert lengths.holdout <= 0.25 * lengths.span


def test_a_long_history_of_many_rows_is_not_held_out_by_a_fifth() -> None:
    lengths = rates.choose_lengths(make_shape(100_000, HOUR / 4, None), deadline=2 * DAY, reach=7 * DAY)
    assert lengths.holdout == 28 * DAY
    assert (lengths.folds, lengths.fold) == (2, 28 * DAY)


def test_a_delay_is_that_of_all_but_the_latest() -> None:
    delays = np.array([timedelta(hours=hours) for hours in [5] * 995 + [900] * 5], dtype="timedelta64[us]")
    assert rates.measure_delay(delays) == timedelta(hours=5)
