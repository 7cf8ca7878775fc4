"""tasks.promotion.contest and interval: the losses that they take, and the laws that hold of their figures."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.promotion import interval
from tasks.promotion.contest import CLIP, row_losses
from tasks.promotion.interval import student_quantile
from tasks.promotion.verdict import Verdict
from tests.tasks.promotion.holdouts import DAY, GATE, Days, judge, judged

pytestmark = pytest.mark.usefixtures("more_replicates")


def test_row_losses_are_the_textbook_ones() -> None:
    assert row_losses([1, 0], [0.8, 0.4], metric="log_loss") == pytest.approx([-math.log(0.8), -math.log(0.6)])
    shares = [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]
    assert row_losses([2, 1], shares, metric="log_loss") == pytest.approx([-math.log(0.5), -math.log(0.3)])
    assert row_losses([1.0, 2.0], [3.0, 2.5], metric="rmse") == pytest.approx([4, 0.25])


def test_a_sure_and_wrong_prediction_costs_a_finite_amount() -> None:
    assert row_losses([1, 0], [0.0, 1.0], metric="log_loss") == pytest.approx([-math.log(CLIP)] * 2)
    assert row_losses([1], [[1.0, 0.0]], metric="log_loss") == pytest.approx([-math.log(CLIP)])


@pytest.mark.parametrize(
    ("label", "prediction", "metric", "said"),
    [
        ([1, 0], [0.5], "log_loss", "a prediction for each"),
        ([[1], [0]], [0.5, 0.5], "log_loss", "a prediction for each"),
        ([1.0], [[0.5, 0.5]], "rmse", "a prediction for each"),
        ([1, 0], [0.5, math.nan], "log_loss", "1 are not"),
        ([1, math.nan], [0.5, 0.5], "rmse", "labelled rows only"),
        ([1, 2], [0.5, 0.5], "log_loss", r"must be 0..1, but got \[2.0\]"),
        ([3], [[0.2, 0.3, 0.5]], "log_loss", "must be 0..2"),
        ([1], [1.5], "log_loss", "margins"),
        ([1], [[0.5, 0.9]], "log_loss", "sum to 1"),
    ],
)
def test_losses_of_bad_input_name_the_rule_and_the_values(label: Any, prediction: Any, metric: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        row_losses(label, prediction, metric=metric)


@pytest.mark.parametrize(
    ("losses", "costs", "said"),
    [
        ([], {}, "shape"),
        ([[[1.0]]], {}, "shape"),
        ([1.0, math.nan], {}, "1 of 2 are not"),
        ([1.0, -0.1], {}, "not negative"),
        ([1.0], {"calibration_error": math.nan}, "calibration_error must be finite"),
        ([1.0], {"megabytes": -1.0}, "megabytes must be"),
    ],
)
def test_a_judged_model_without_sound_figures_is_refused(
    days: Days, losses: Any, costs: dict[str, float], said: str
) -> None:
    def judge_itself() -> None:
        one = judged(losses, **costs)
        judge(one, one, times=days.times[: len(losses)], slices={}, gate=GATE)

    with pytest.raises(ValueError, match=said):
        judge_itself()


def test_rows_times_and_slices_must_fit_together(days: Days) -> None:
    one, times = judged(days.loss()), days.times
    with pytest.raises(ValueError, match="the same rows"):
        judge(one, judged(days.loss()[1:]), times=times, slices={}, gate=GATE)
    with pytest.raises(ValueError, match="slice origin must have a value for each"):
        judge(one, one, times=times, slices={"origin": days.origin[1:]}, gate=GATE)
    with pytest.raises(ValueError, match="without NaT"):
        judge(one, one, times=np.where(days.day == 3, np.datetime64("NaT"), times), slices={}, gate=GATE)
    with pytest.raises(ValueError, match="must be datetime64"):
        judge(one, one, times=days.day, slices={}, gate=GATE)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    seeds=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    metric=st.sampled_from(["log_loss", "rmse"]),
)
def test_swapping_candidate_and_champion_flips_the_interval(seed: int, seeds: tuple[int, int], metric: Any) -> None:
    rng = np.random.default_rng(seed)
    world, gate = Days(rng, 16, 30), GATE.model_copy(update={"metric": metric, "min_rows": 100})
    one, other = world.lucky(rng, seeds[0]), world.lucky(rng, seeds[1])
    there, back = (world.judge(*pair, gate=gate).figures for pair in ((one, other), (other, one)))
    assert there["gain"] == pytest.approx(-back["gain"], abs=1e-12)
    assert there["low"] == pytest.approx(-back["high"], abs=1e-9)
    assert there["high"] == pytest.approx(-back["low"], abs=1e-9)
    assert there["low"] <= there["gain"] <= there["high"]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_the_rows_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    world = Days(rng, 16, 40)
    world.origin[:] = np.where(world.x[:, 0] > 0, "high", "low")
    one, other = world.lucky(rng, 2).round(2), world.lucky(rng, 2).round(2)
    verdict = world.judge(one, other)
    order = rng.permutation(len(world.day))
    world.times, world.origin = world.times[order], world.origin[order]
    assert world.judge(one[:, order], other[:, order]).to_dict() == verdict.to_dict()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), shift=st.integers(-400, 400))
def test_shifting_the_time_by_whole_days_changes_nothing(seed: int, shift: int) -> None:
    world = Days(np.random.default_rng(seed), 16, 40)
    one, other = world.loss(), world.loss(0.2)
    before = world.judge(one, other)
    world.times = world.times + shift * DAY
    assert without_begins(world.judge(one, other)) == without_begins(before)


def without_begins(verdict: Verdict) -> dict[str, Any]:
    """Without the times at which blocks begin, which alone follow the rows' times."""
    course = {**verdict.figures["course"], "begins": None}
    return {**verdict.to_dict(), "figures": {**verdict.figures, "course": course}}


def test_a_block_begins_at_the_quietest_hour(days: Days) -> None:
    """Rows of one evening and the night after it, on both sides of midnight, are in one block."""
    late = days.times + np.timedelta64(8 * 3600, "s")
    one, other = judged(days.loss()), judged(days.loss(0.2))
    verdicts = [judge(one, other, times=times, slices={}, gate=GATE) for times in (days.times, late)]
    assert without_begins(verdicts[0]) == without_begins(verdicts[1])


def test_the_same_seed_gives_the_same_verdict_and_another_seed_nearly(
    days: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = days.loss(), days.loss(0.1)
    once = days.judge(one, other)
    assert days.judge(one, other).to_dict() == once.to_dict()
    monkeypatch.setattr(interval, "SEED", 2)
    again = days.judge(one, other)
    assert again.figures["low"] != once.figures["low"]
    assert again.figures["low"] == pytest.approx(once.figures["low"], rel=0.5)


@pytest.mark.parametrize(
    ("tail", "freedom", "quantile"),
    [(0.025, 1, 12.7062), (0.025, 4, 2.7764), (0.025, 27, 2.0518), (0.0005, 10, 4.5869), (0.005, 60, 2.6603)],
)
def test_students_quantiles_are_the_tables(tail: float, freedom: float, quantile: float) -> None:
    assert student_quantile(tail, freedom) == pytest.approx(quantile, rel=2e-4)
