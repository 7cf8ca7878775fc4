"""The proofs that the gate is sound: at the level of losses, and with real boosters.

The rates are of seeded, made worlds, so each test gives the same count at every run. A bound is the nominal rate and
three standard deviations of a binomial count.
"""

import math
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.promotion.contest import estimate_loss, row_losses
from tasks.promotion.interval import add_skewness, remove_skewness, student_quantile
from tasks.promotion.verdict import Verdict
from tests.tasks.promotion.firsts import share_of_years_with_a_first_model
from tests.tasks.promotion.holdouts import (
    BEGIN,
    DAY,
    GATE,
    NOMINAL,
    Days,
    Floats,
    at_most,
    judge,
    judged,
    sigmoid,
)

pytestmark = pytest.mark.usefixtures("more_replicates")


# ---------------------------------------------------------------------------------------------- proofs on losses


def test_the_level_of_one_model_is_its_metric_and_covers_the_true_one() -> None:
    rng, inside = np.random.default_rng(5), 0
    times = np.repeat(np.datetime64("2013-01-01") + np.arange(28), 50).astype("datetime64[us]")
    for _ in range(200):
        days = rng.gamma(4, 0.25, 28)
        losses = np.repeat(days, 50) * rng.exponential(1, len(times))
        found, low, high = astuple(estimate_loss(losses, times=times, gate=GATE))
        assert found == pytest.approx(losses.mean())
        assert low is not None
        assert high is not None
        inside += low <= 1.0 <= high
    assert inside >= 0.93 * 200


@pytest.mark.parametrize("metric", ["log_loss", "rmse"])
def test_the_interval_covers_the_true_gain(metric: Any) -> None:
    """28 days of unequal size; the truth comes from 15,000 days."""
    gate = GATE.model_copy(update={"metric": metric})
    rng = np.random.default_rng(3)

    def pair(world: Days) -> tuple[Floats, Floats]:
        one = world.base + 0.2 * np.sin(2 * world.x[:, 0]) + 0.1 * world.weather
        other = world.base + 0.2 * np.cos(2 * world.x[:, 1]) - 0.1 * world.weather
        if metric == "rmse":
            return (world.label - sigmoid(one)) ** 2, (world.label - sigmoid(other)) ** 2
        return world.loss(one - world.base), world.loss(other - world.base)

    one, other = pair(Days(rng, 15_000))
    truth = other.mean() - one.mean() if metric == "log_loss" else math.sqrt(other.mean()) - math.sqrt(one.mean())
    covered = 0
    for _ in range(400):
        world = Days(rng)
        figures = judge(*map(judged, pair(world)), times=world.times, slices={}, gate=gate).figures
        covered += figures["low"] <= truth <= figures["high"]
    assert 400 - covered <= at_most(400, 0.05)
    assert covered < 400


SKEWED: dict[str, Any] = {
    "exponential": lambda rng: 1 - rng.exponential(size=28),
    "lognormal": lambda rng: math.exp(0.5) - rng.lognormal(size=28),
    "normal": lambda rng: rng.normal(size=28),
}


def promoted_of_equals(kind: str, *, trials: int = 2000) -> float:
    """How often a candidate of no true gain, with one row a day, passes the first look at a tail of 2.5 %."""
    rng, times = np.random.default_rng(9), BEGIN + np.arange(28) * DAY
    gate = GATE.model_copy(update={"min_rows": 1, "level": 0.9})  # the first look has half of the tail
    promoted = 0
    for _ in range(trials):
        champion = np.full(28, 100.0)
        candidate = champion - SKEWED[kind](rng)
        promoted += judge(judged(candidate), judged(champion), times=times, slices={}, gate=gate).promotes
    return promoted / trials


@pytest.mark.parametrize(("kind", "bound"), [("normal", 0.025), ("exponential", 0.035), ("lognormal", 0.06)])
def test_rare_bad_days_do_not_hide_from_the_gate(kind: str, bound: float) -> None:
    """A candidate that is a little better on most days and much worse on a few is no better, but 28 days may not tell:
    where they have no bad day, nothing in them says so. So the bounds of skewed gains are not the nominal 2.5 %: 3.4 %
    and 5.1 % are reached (of 4,000, with 4,000 replicates). The symmetric interval alone lets 5.2 % and 9.1 % pass."""
    assert promoted_of_equals(kind) <= bound


def test_rare_bad_days_push_the_lower_end_further_out_than_the_upper() -> None:
    gains = SKEWED["exponential"](np.random.default_rng(0))
    champion, times = np.full(28, 100.0), BEGIN + np.arange(28) * DAY
    gate = GATE.model_copy(update={"min_rows": 1})
    found = judge(judged(champion - gains), judged(champion), times=times, slices={}, gate=gate).figures
    assert found["gain"] - found["low"] > 1.2 * (found["high"] - found["gain"])
    back = judge(judged(champion), judged(champion - gains), times=times, slices={}, gate=gate).figures
    assert (back["low"], back["high"]) == pytest.approx((-found["high"], -found["low"]), abs=1e-12)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_no_end_is_nearer_than_students(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gains = SKEWED[["normal", "exponential", "lognormal"][seed % 3]](rng)
    champion, times = np.full(28, 100.0), BEGIN + np.arange(28) * DAY
    gate = GATE.model_copy(update={"min_rows": 1})
    found = judge(judged(champion - gains), judged(champion), times=times, slices={}, gate=gate).figures
    reach = student_quantile(NOMINAL, 27) * gains.std(ddof=1) / math.sqrt(28)
    assert found["low"] <= found["gain"] - reach + 1e-9
    assert found["high"] >= found["gain"] + reach - 1e-9


def test_halls_transformation_is_undone_by_its_inverse() -> None:
    error = np.linspace(-30, 30, 121)
    for bend in (-0.3, -1e-9, 0.0, 0.1):
        straight = remove_skewness(error, np.array(bend))
        assert (np.diff(straight) > 0).all()
        assert add_skewness(straight, np.array(bend)) == pytest.approx(
            error, abs=1e-3
        )  # it is flat where error = -1 / bend


def test_equals_are_promoted_at_most_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(4)
    promoted = 0
    for _ in range(250):
        world = Days(rng)
        for _ in range(4):
            one, other = judged(world.noisy(rng)), judged(world.noisy(rng))
            promoted += judge(one, other, times=world.times, slices={}, gate=GATE).promotes
    assert promoted <= at_most(1000)


@pytest.mark.parametrize("families", [40, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["noisy", "lucky"])
def test_ten_overlapping_gates_promote_an_equal_at_most_at_the_nominal_rate_in_all(kind: str, families: int) -> None:
    rng = np.random.default_rng(5)
    assert sum(_family(rng, kind) for _ in range(families)) <= at_most(families)


def _family(rng: np.random.Generator, kind: str) -> bool:
    """Whether one of ten weekly candidates, the champion's recipe with other seeds, is promoted."""
    world = Days(rng, 28 + 9 * 7, 60)
    champion = getattr(world, kind)(rng)
    for looks in range(10):
        here = (world.day >= 7 * looks) & (world.day < 7 * looks + 28)
        candidate = getattr(world, kind)(rng)
        one, other = judged(candidate[..., here]), judged(champion[..., here])
        if judge(one, other, times=world.times[here], slices={}, gate=GATE, looks=looks).promotes:
            return True
    return False


def test_one_seed_each_would_promote_luck() -> None:
    """Why the gate wants seeds: with one seed a side, the same candidates pass far oftener than the nominal rate."""
    rng = np.random.default_rng(6)
    promoted = 0
    for _ in range(200):
        world = Days(rng)
        promoted += world.judge(world.lucky(rng, 1), world.lucky(rng, 1)).promotes
    assert promoted > at_most(200)


@pytest.mark.parametrize("where", ["everywhere", "east"])
def test_a_planted_regression_of_the_losses_is_never_promoted(where: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(100):
        world = Days(rng)
        hurt = 0.7 * ((world.origin == where) | (where == "everywhere"))
        verdict = world.judge(world.loss(0.2 * rng.normal(size=len(hurt)) + hurt), world.noisy(rng))
        assert not verdict.promotes


def test_a_regression_in_one_slice_is_not_bought_with_a_gain_in_the_others() -> None:
    rng = np.random.default_rng(8)
    gains = []
    for _ in range(100):
        world = Days(rng)
        wrong = 1.5 * rng.normal(size=len(world.day))
        verdict = world.judge(
            world.loss(wrong * (world.origin == "east")), world.loss(wrong * (world.origin != "east"))
        )
        assert not verdict.promotes
        gains.append(verdict.figures["gain"])
    assert np.mean(gains) > 0.03


# ---------------------------------------------------------------------------------------------- proofs on boosters


TRAIN, TEST = 30, 28 + 9 * 7
SETTINGS = {
    "objective": "binary:logistic", "max_depth": 3, "eta": 0.2, "subsample": 0.7, "colsample_bytree": 0.7,
    "max_bin": 32, "nthread": 1,
}  # fmt: skip


class Trained:
    """A made table, days of training and days to judge on, and boosters of one recipe that differ by their seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.days = Days(self.rng, TRAIN + TEST, 100)
        noise = self.rng.normal(size=(len(self.days.day), 2))
        self.table = np.column_stack([self.days.x, self.days.weather, noise]).astype(np.float32)
        self.seen = self.days.day < TRAIN
        self.matrix = xgboost.QuantileDMatrix(self.table[self.seen], self.days.label[self.seen], max_bin=32, nthread=1)
        self.rest = self.table[~self.seen]
        self.next_seed = 0

    def losses(self, seeds: int = 3) -> Floats:
        """Of so many new boosters on the rows after training."""
        return np.stack([self._one() for _ in range(seeds)])

    def _one(self) -> Floats:
        self.next_seed += 1
        booster = xgboost.train(SETTINGS | {"seed": self.next_seed}, self.matrix, num_boost_round=20)
        return row_losses(self.days.label[~self.seen], booster.inplace_predict(self.rest), metric="log_loss")

    def flip(self, share: float, *, where: str | None = None) -> None:
        """From now on boosters learn from labels of which so many are wrong, everywhere or in one slice."""
        wrong = self.rng.random(self.seen.sum()) < share
        if where:
            wrong &= self.days.origin[self.seen] == where
        self.matrix.set_label(np.abs(self.days.label[self.seen] - wrong))

    def judge(self, candidate: Floats, champion: Floats, looks: int = 0) -> Verdict:
        later = self.days.day[~self.seen] - TRAIN
        here = (later >= 7 * looks) & (later < 7 * looks + 28)
        return judge(
            judged(candidate[:, here]),
            judged(champion[:, here]),
            times=self.days.times[~self.seen][here],
            slices={"origin": self.days.origin[~self.seen][here]},
            gate=GATE,
            looks=looks,
        )


@pytest.fixture(scope="module", params=[8, pytest.param(20, marks=pytest.mark.slow)])
def worlds(request: pytest.FixtureRequest) -> list[tuple[Trained, list[Floats]]]:
    """Some worlds, in each eleven trainings of one recipe with three seeds."""
    made = [Trained(seed) for seed in range(request.param)]
    return [(world, [world.losses() for _ in range(11)]) for world in made]


def _families(worlds: list[tuple[Trained, list[Floats]]], of: int) -> Iterator[tuple[Trained, Floats, list[Floats]]]:
    """In each world, `of` of the trainings in turn are the champion, and the other ten its candidates."""
    for world, trained in worlds:
        for champion in range(of):
            yield world, trained[champion], trained[champion + 1 :] + trained[:champion]


def test_another_seed_of_a_booster_is_promoted_at_most_at_the_nominal_rate(
    worlds: list[tuple[Trained, list[Floats]]],
) -> None:
    verdicts = [world.judge(trained[i], trained[i + 1]) for world, trained in worlds for i in range(10)]
    assert len(verdicts) == 10 * len(worlds)
    assert sum(verdict.promotes for verdict in verdicts) <= at_most(len(verdicts))


def test_ten_overlapping_gates_promote_another_seed_of_a_booster_at_most_at_the_nominal_rate_in_all(
    worlds: list[tuple[Trained, list[Floats]]],
) -> None:
    promoted = [
        any(world.judge(candidate, champion, looks).promotes for looks, candidate in enumerate(candidates))
        for world, champion, candidates in _families(worlds, 5)
    ]
    assert len(promoted) == 5 * len(worlds)
    assert sum(promoted) <= at_most(len(promoted))


@pytest.mark.parametrize(("share", "where"), [(0.2, None), (0.6, "west")])
def test_a_planted_regression_of_a_booster_is_never_promoted(
    worlds: list[tuple[Trained, list[Floats]]], share: float, where: str | None
) -> None:
    """And the gate is no wall: the sound recipe, as the candidate of a champion with that regression, mostly passes."""
    improved = 0
    for world, trained in worlds:
        for champion in trained[:5]:
            world.flip(share, where=where)
            planted = world.losses(2)
            assert not world.judge(planted, champion).promotes
            improved += world.judge(champion, planted).promotes
    assert improved > 5 * len(worlds) / 2


# ---------------------------------------------------------------------------------------------- years of first models


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rate"), [("days are independent", 0.05), ("days go together, 0.2", 0.06), ("days go together, 0.4", 0.1)]
)
def test_a_year_of_first_models_that_are_no_better_seldom_promotes_one(kind: str, rate: float) -> None:
    assert share_of_years_with_a_first_model(kind, 200) <= rate + 3 * math.sqrt(rate * (1 - rate) / 200)
