"""Refreshes on real boosters, in a made world where what was learnt of two numbers wears off or does not."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

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
from tests.tasks.small import Labels

DAYS = 130
AS_OF = BEGIN + timedelta(days=DAYS)
AGE = timedelta(days=28)
TURN = 2 * np.pi / 500  # a day
# What may happen to the labels of the newest weeks.
BREAKS: dict[str, Callable[[Labels], Labels]] = {
    "nothing": lambda label: label,
    "turned": small.flipped,
    "all 0": np.zeros_like,
    "drawn by lot": lambda label: np.random.default_rng(len(label)).permutation(label),
}


def made_rows(*, turns: bool, seed: int = 0) -> Rows:
    """Two numbers decide; where the rule turns, what was learnt of them wears off within weeks."""
    rows = small.made_rows(per_day=60, days=DAYS, seed=seed)
    first, second = (rows.table[name].to_numpy().astype(np.float64) for name in ("noise_1", "noise_2"))
    day = (rows.event_time - np.datetime64(BEGIN)) / np.timedelta64(1, "D")
    angle = TURN * day if turns else 0.0 * day
    level = 2.5 * (np.cos(angle) * first + np.sin(angle) * second)
    label = (level + np.random.default_rng(seed + 1).logistic(size=len(rows)) > 0).astype(np.float64)
    return replace(rows, label=label, table=rows.table.select(["noise_1", "noise_2", "store"]))


def judge(folder: Path, rows: Rows) -> Verdict:
    """The verdict on a refresh of a champion of four weeks ago, made as the stages make it."""
    p = small.settings(**{"split.window": "28d", "split.folds": 1, "split.fold": "7d", "train.seeds": 1})
    tuned = small.by_hand({"max_depth": 3, "eta": 0.3, "max_bin": 32}, rounds=30)
    rows = small.known(rows, AS_OF)
    where = split.find_holdout(AS_OF, p.split, deadline=p.label.deadline)
    held = rows.take(split.select_between(rows.event_time, where.begin, where.end) & model.is_labelled(rows.label))
    twin, champion = (_fit(rows, where.begin - age, tuned, p) for age in (timedelta(0), AGE))
    losses = [row_losses(held.label, one.predict(held.table), metric="log_loss")[None] for one in (twin, champion)]
    constant = constant_losses(held.label, metric="log_loss")
    contest = compare_losses(*losses, times=held.event_time, gate=p.gate, constant=constant)
    fits = Fits.open(folder, p, tuned, rows)
    sums = HoldoutSums.of(*losses, constant, fits.grid.days_of(held.event_time))
    refit = Refit(train._refit(rows, AS_OF, tuned, p, twin.spec), twin, AGE)
    return refresh.judge_refresh(contest, sums, refit, fits, as_of=AS_OF, costs=Costs(), slices={})


def _fit(rows: Rows, cut: datetime, tuned: Tuned, p: Params) -> Model:
    return train.fit_twins(rows, cut, tuned, p, seeds=1)[0]


def share_promoted(breaks: str, days: int, count: int) -> float:
    """The share of worlds in which age costs, and the labels of so many newest days are what BREAKS makes of them."""
    promoted = 0
    for seed in range(count):
        rows = made_rows(turns=True, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            broken = small.relabelled(small.known(rows, AS_OF), BREAKS[breaks], AS_OF - timedelta(days=days), AS_OF)
            promoted += judge(Path(folder), broken).promotes
    return promoted / count
