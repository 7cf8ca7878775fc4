"""replay over several first dates: fits are shared and yet charged to each, refreshes pass the gate or not, and what is
saved is told of all dates together."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tasks.params import Policy
from tasks.promotion.contest import row_losses
from tasks.replay import history
from tasks.replay.compare import Comparison, compare_policies
from tasks.replay.history import History, Training
from tasks.replay.past import FIRST_SEARCHES, Past
from tasks.replay.policies import Grid, list_moments, parse_rule
from tasks.replay.report import render_markdown, summarize, write_report
from tests.conftest import BEGIN
from tests.tasks import small

DAY, WEEK = timedelta(days=1), timedelta(days=7)
DAYS = 91
GRID = Grid(BEGIN + 28 * DAY, BEGIN + DAYS * DAY, WEEK)
DATES = (GRID.since, GRID.since + 2 * WEEK)
NAMES = ["default", "refresh:14d", "ungated:14d"]
SMALL = {
    "tune.trials": 2,
    "tune.rounds": 20,
    "train.seeds": 1,
    "split.holdout": "7d",
    "split.folds": 1,
    "split.fold": "4d",
    "gate.min_rows": 200,
}


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """From the sixth week on what was true is false, so that newer rows are worth something."""
    p = small.settings(**SMALL)
    fresh = Policy(signals=["freshness"], refresh_every=WEEK, search_every=None)
    p = history.reduce_search(p.model_copy(update={"policy": fresh}))
    rows = small.relabelled(small.made_rows(days=DAYS), small.flipped, BEGIN + 37 * DAY, GRID.until)
    folder = tmp_path_factory.mktemp("dates")
    small.write(folder, rows, p, GRID.until)
    return Past(History(p, folder / p.paths.features, "SELECT 1", folder / "shelf"), GRID.since)


@pytest.fixture(scope="module")
def done(past: Past) -> Comparison:
    return compare_policies(past, GRID, NAMES, DATES)


def test_dates_share_one_search_and_each_moment_is_trained_once(past: Past, done: Comparison) -> None:
    assert [past.first(date) for date in DATES] == [Training(date, GRID.since) for date in DATES]
    assert past.first(GRID.since + FIRST_SEARCHES).kind == "search"
    retrains = {retrain.as_of for line in done.lines for retrain in line.retrains}
    trained = [path for path in past.history.shelf.glob("2*") if "evidence" not in path.name]
    assert len(trained) == len(retrains | set(DATES))


def test_a_length_counts_from_the_first_date_for_all_dates(done: Comparison) -> None:
    moments = [{retrain.as_of for retrain in walk.retrains} for walk in done.line("refresh:14d").walks]
    assert moments[1] == {moment for moment in moments[0] if moment > DATES[1]}
    rule, late = parse_rule("every:14d", GRID, small.settings()), Grid(GRID.since + WEEK, GRID.until, WEEK)
    assert list_moments(rule, late, GRID)[0] == GRID.since + 2 * WEEK


def test_without_a_gate_each_refit_serves_and_what_it_brought_is_as_by_hand(past: Past, done: Comparison) -> None:
    walk = done.line("ungated:14d").walks[0]
    assert [promotion.as_of for promotion in walk.promotions] == [retrain.as_of for retrain in walk.retrains]
    second = walk.promotions[1]
    stretch = second.as_of, second.as_of + 2 * WEEK
    where = past.find_rows(*stretch)
    old, new = (
        past.candidate(Training(as_of, GRID.since)).model.predict(past.take_table(where))
        for as_of in (second.as_of - 2 * WEEK, second.as_of)
    )
    label = past.rows.label[where]
    losses = [row_losses(label, scores, metric="log_loss").mean() for scores in (old, new)]
    assert second.rows == len(label)
    assert second.gain == pytest.approx(losses[0] - losses[1], abs=1e-9)


def test_the_gate_judges_a_refresh_by_its_past_fits_and_their_cost_is_charged(past: Past, done: Comparison) -> None:
    for walk in done.line("refresh:14d").walks:
        first = walk.retrains[0]
        assert (first.kind, first.promoted) == ("refresh", False)
        assert any("past fits" in reason for reason in first.reasons), first.reasons
        weeks = past.list_needed_fits(GRID.since, first.as_of)
        fits = sum(past.fits(GRID.since).read_cost(week) for week in weeks)
        own = past.candidate(Training(first.as_of, GRID.since)).cpu
        assert len(weeks) > 1
        assert first.cpu == pytest.approx(own + fits)
    free = done.line("ungated:14d").walks[0].retrains[0]
    assert free.cpu == past.candidate(Training(free.as_of, GRID.since)).cpu


def test_a_later_look_is_charged_for_the_fit_of_its_own_weeks_alone(past: Past, done: Comparison) -> None:
    first, second = done.line("refresh:14d").walks[0].retrains[:2]
    held = past.list_needed_fits(GRID.since, first.as_of)
    new = set(past.list_needed_fits(GRID.since, second.as_of)) - set(held)
    assert len(new) == 2
    fits = sum(past.fits(GRID.since).read_cost(week) for week in new)
    assert second.cpu == pytest.approx(past.candidate(Training(second.as_of, GRID.since)).cpu + fits)


def test_the_own_policy_asks_for_refreshes_where_age_was_not_measured(done: Comparison) -> None:
    retrains = done.line("default").walks[0].retrains
    assert retrains[0].as_of == GRID.since + WEEK
    assert {retrain.kind for retrain in retrains} == {"refresh"}
    assert any("was not measured" in reason for reason in retrains[0].why)


def test_a_policy_is_told_by_the_mean_over_its_dates_and_by_what_it_keeps(done: Comparison) -> None:
    ungated, never = done.line("ungated:14d"), done.line("never")
    assert ungated.gain.value == pytest.approx(np.mean([walk.gain for walk in ungated.walks]), abs=1e-9)
    assert ungated.gain.value > 0
    assert ungated.gain.low is not None
    assert ungated.gain.low < ungated.gain.value
    assert ungated.kept
    assert ungated.kept.value == 1
    assert never.kept
    assert never.kept.value == 0
    assert never.unpromoted_dates == len(DATES)
    assert ungated.unpromoted_dates == ungated.worse_dates == 0


def test_the_page_and_the_picture_tell_of_all_dates(done: Comparison, tmp_path: Path) -> None:
    write_report(done, tmp_path)
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")
    page = render_markdown(done)
    assert "| worst date | dates worse |" in page
    assert "From 2 dates" in summarize(done)


@pytest.mark.parametrize(("number", "expected"), [(1, [0]), (2, [0, 6]), (3, [0, 3, 6]), (99, list(range(7)))])
def test_dates_are_spread_evenly_over_the_grid(number: int, expected: Sequence[int]) -> None:
    last = GRID.starts[6] + 3 * DAY
    assert [GRID.starts.index(date) for date in GRID.spread_dates(number, last)] == expected


def test_a_last_date_before_the_first_leaves_the_first() -> None:
    assert GRID.spread_dates(5, datetime(2000, 1, 1)) == (GRID.since,)
