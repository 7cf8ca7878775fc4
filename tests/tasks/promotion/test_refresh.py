"""A refresh on real boosters: it is promoted where age costs, and neither where it does not nor where labels broke."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tasks.data.featurerows import Rows
from tasks.params import Params
from tasks.promotion import refresh
from tasks.promotion.contest import compare_losses, constant_losses, row_losses
from tasks.promotion.evidence import Fits
from tasks.promotion.gate import Costs
from tasks.promotion.refresh import HoldoutSums, Refit
from tasks.promotion.verdict import Verdict
from tasks.training import model, split, train
from tasks.training.model import Model
from tasks.training.trials import Tuned
from tests.conftest import BEGIN
from tests.tasks import small

DAYS = 130
AS_OF = BEGIN + timedelta(days=DAYS)
AGE = timedelta(days=28)
TURN = 2 * np.pi / 500  # a day


def made_rows(*, turns: bool) -> Rows:
    """Two numbers decide; where the rule turns, what was learnt of them wears off within weeks."""
    rows = small.made_rows(per_day=60, days=DAYS)
    first, second = (rows.table[name].to_numpy().astype(np.float64) for name in ("noise_1", "noise_2"))
    day = (rows.event_time - np.datetime64(BEGIN)) / np.timedelta64(1, "D")
    angle = TURN * day if turns else 0.0 * day
    level = 2.5 * (np.cos(angle) * first + np.sin(angle) * second)
    label = (level + np.random.default_rng(1).logistic(size=len(rows)) > 0).astype(np.float64)
    return replace(rows, label=label, table=rows.table.select(["noise_1", "noise_2", "store"]))


def judge(folder: Path, rows: Rows, *, broken: bool = False) -> Verdict:
    """The verdict on a refresh of a champion of four weeks ago, made as the stages make it."""
    p = small.settings(**{"split.window": "28d", "split.folds": 1, "split.fold": "7d", "train.seeds": 1})
    tuned = small.by_hand({"max_depth": 3, "eta": 0.3, "max_bin": 32}, rounds=30)
    rows = small.known(rows, AS_OF)
    if broken:
        rows = small.relabelled(rows, small.flipped, AS_OF - timedelta(days=8), AS_OF)
    where = split.find_holdout(AS_OF, p.split, deadline=p.label.deadline)
    held = rows.take(split.select_between(rows.event_time, where.begin, where.end) & model.is_labelled(rows.label))
    twin, champion = (fit(rows, where.begin - age, tuned, p) for age in (timedelta(0), AGE))
    losses = [row_losses(held.label, one.predict(held.table), metric="log_loss")[None] for one in (twin, champion)]
    constant = constant_losses(held.label, metric="log_loss")
    contest = compare_losses(*losses, times=held.event_time, gate=p.gate, constant=constant)
    fits = Fits.open(folder, p, tuned, rows)
    sums = HoldoutSums.of(*losses, constant, fits.grid.days_of(held.event_time))
    refit = Refit(train._refit(rows, AS_OF, tuned, p, twin.spec), twin, AGE)
    return refresh.judge_refresh(contest, sums, refit, fits, as_of=AS_OF, costs=Costs(), slices={})


def fit(rows: Rows, cut: datetime, tuned: Tuned, p: Params) -> Model:
    return train.fit_twins(rows, cut, tuned, p, seeds=1)[0]


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
    verdict = judge(tmp_path, turning, broken=True)
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
