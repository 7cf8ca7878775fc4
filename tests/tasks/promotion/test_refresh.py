"""A refresh on real boosters: it is promoted where age costs, and neither where it does not nor where labels broke."""

from datetime import timedelta
from pathlib import Path

import pytest

from tasks.data.featurerows import Rows
from tests.tasks import small
from tests.tasks.promotion.refits import AS_OF, judge, made_rows


@pytest.fixture(scope="module")
def turning() -> Rows:
    return made_rows(turns=True)


def test_where_age_costs_a_refresh_is_promoted_and_says_by_how_much(turning: Rows, tmp_path: Path) -> None:
    verdict = judge(tmp_path, turning)
    assert verdict.outcome == "PROMOTE", verdict.reasons
    assert verdict.reasons[0].startswith("Age costs this recipe: fits that were 3 to 4 weeks old lost +")
    assert verdict.figures["age_bound"] > 0
    assert not verdict.counts_as_look
    assert verdict.figures["evidence_fits"] > 0
    assert verdict.figures["evidence_cpu"] > 0


def test_where_age_costs_nothing_a_refresh_is_held(tmp_path: Path) -> None:
    verdict = judge(tmp_path, made_rows(turns=False))
    assert verdict.outcome == "HOLD"
    assert verdict.reasons[0].startswith("Not sure that age costs this recipe anything")


def test_labels_that_broke_in_the_newest_week_hold_the_fit_that_would_ship(turning: Rows, tmp_path: Path) -> None:
    verdict = judge(tmp_path, small.relabelled(turning, small.flipped, AS_OF - timedelta(days=8), AS_OF))
    assert verdict.outcome == "HOLD"
    assert any("Check the labels of the newest weeks" in reason for reason in verdict.reasons)


def test_a_large_change_is_told_by_the_newest_fits_own_holdout(tmp_path: Path) -> None:
    """The rule turns round before the newest fit's holdout, and the champion has not seen it."""
    rows = small.relabelled(made_rows(turns=False), small.flipped, AS_OF - timedelta(days=40), AS_OF)
    verdict = judge(tmp_path, rows)
    assert verdict.outcome == "PROMOTE", verdict.reasons
    assert verdict.reasons[0].startswith("Much better than the champion: on its own holdout the newest fit saves +")
    assert verdict.figures["leap_bound"] > 0
    assert verdict.figures["leap_gain"] > verdict.figures["leap_least"]
    assert "age_gain" not in verdict.figures
