"""The gate's rules, one by one, and the proofs that it is sound: at the level of losses, and with real boosters.

The rates are of seeded, made worlds, so each test gives the same count at every run. A bound is the nominal rate and
three standard deviations of a binomial count.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.params import Gate
from tasks.promotion import interval
from tasks.promotion.contest import CLIP, compare_losses, estimate_loss, row_losses
from tasks.promotion.gate import Costs, allot_tail, explain_backoff, judge_contest, judge_first_model
from tasks.promotion.interval import add_skewness, remove_skewness, student_quantile
from tasks.promotion.verdict import Verdict, render_verdict

Floats = NDArray[np.float64]
GATE = Gate(metric="log_loss", min_rows=1000)
NOMINAL = (1 - GATE.level) / 2
BEGIN = np.datetime64("2024-03-01T00:00:00", "s")
DAY = np.timedelta64(86400, "s")
COSTS: dict[str, float] = {"calibration_error": 0.01, "megabytes": 1.0, "milliseconds": 0.1}


@pytest.fixture(autouse=True, scope="module")
def more_replicates() -> Iterator[None]:
    """More than in the other tests, and fewer than the real gate takes: there are thousands of verdicts here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interval, "REPLICATES", 1000)
        yield


@dataclass(frozen=True)
class Judged:
    """One recipe on the holdout."""

    losses: Any
    costs: Costs


def judged(losses: Any, **costs: float) -> Judged:
    return Judged(np.asarray(losses), Costs(**(COSTS | costs)))


def judge(candidate: Judged, champion: Judged, *, times: Any, slices: Any, gate: Gate, looks: int = 0) -> Verdict:
    contest = compare_losses(candidate.losses, champion.losses, times=times, gate=gate)
    return judge_contest(contest, gate=gate, costs=candidate.costs, slices=slices, looks=looks)


def first(
    candidate: Judged, baselines: Mapping[str, Judged], *, times: Any, gate: Gate, slices: Any = None, looks: int = 0
) -> Verdict:
    contests = {
        name: compare_losses(candidate.losses, baseline.losses, times=times, gate=gate)
        for name, baseline in baselines.items()
    }
    return judge_first_model(contests, gate=gate, costs=candidate.costs, slices=slices, looks=looks)


def at_most(trials: int, rate: float = NOMINAL) -> float:
    return trials * rate + 3 * math.sqrt(trials * rate * (1 - rate))


def sigmoid(logit: Floats) -> Floats:
    return 1 / (1 + np.exp(-logit))


# ---------------------------------------------------------------------------------------------- made days of losses


class Days:
    """Rows of made days: days differ in size and in how often the outcome comes, and the model is not quite right."""

    def __init__(self, rng: np.random.Generator, days: int = 28, mean: int = 100) -> None:
        sizes = np.maximum(20, rng.poisson(mean * np.exp(rng.normal(0, 0.35, days))))
        self.day = np.repeat(np.arange(days), sizes)
        rows = len(self.day)
        self.x, self.weather = rng.normal(size=(rows, 3)), rng.normal(size=days)[self.day]
        logit = -1.6 + 0.8 * self.x[:, 0] - 0.5 * self.x[:, 1] + 0.4 * self.weather + rng.normal(0, 0.6, days)[self.day]
        self.label = (rng.random(rows) < sigmoid(logit)).astype(float)
        self.base = -1.5 + 0.7 * self.x[:, 0] - 0.4 * self.x[:, 1] + 0.2 * self.weather + 0.3 * np.sin(2 * self.x[:, 2])
        self.times = BEGIN + self.day * DAY + rng.integers(6 * 3600, 23 * 3600, rows).astype("timedelta64[s]")
        self.origin = rng.choice(["east", "north", "west"], rows)

    def loss(self, change: Any = 0.0) -> Floats:
        return row_losses(self.label, sigmoid(self.base + change), metric="log_loss")

    def noisy(self, rng: np.random.Generator, size: float = 0.2) -> Floats:
        """Another seed whose predictions differ a little, each row for itself: no seed is better than another."""
        return self.loss(size * rng.normal(size=len(self.day)))

    def lucky(self, rng: np.random.Generator, seeds: int = 3) -> Floats:
        """Other seeds that differ by smooth functions, as real ones do: some of them are truly better by luck."""
        x = self.x
        shapes = [np.sin(2 * x[:, 0]), np.cos(2 * x[:, 1]), np.sin(2 * x[:, 2]), self.weather / 2, x[:, 0] * x[:, 1]]
        return np.stack([self.loss(0.05 * rng.normal(size=5) @ np.stack(shapes)) for _ in range(seeds)])

    def judge(self, candidate: Any, champion: Any, *, gate: Gate = GATE, looks: int = 0, **costs: float) -> Verdict:
        slices = {"origin": self.origin}
        one, other = judged(candidate, **costs), judged(champion)
        return judge(one, other, times=self.times, slices=slices, gate=gate, looks=looks)


@pytest.fixture(scope="module")
def days() -> Days:
    return Days(np.random.default_rng(0))


# ---------------------------------------------------------------------------------------------- the rules


def test_a_surely_better_candidate_is_promoted(days: Days) -> None:
    verdict = days.judge(days.loss(), 1.1 * days.loss())
    assert verdict.outcome == "PROMOTE"
    assert verdict.promotes
    assert verdict.figures["bound"] > 0
    assert verdict.reasons[0].startswith("Better than the champion: log loss 0.")


def test_a_surely_worse_candidate_is_rejected(days: Days) -> None:
    verdict = days.judge(1.1 * days.loss(), days.loss())
    assert verdict.outcome == "REJECT"
    assert not verdict.promotes
    assert verdict.reasons[0].startswith("Worse than the champion")


def test_a_candidate_that_may_be_either_is_held(days: Days) -> None:
    verdict = days.judge(days.noisy(np.random.default_rng(1)), days.noisy(np.random.default_rng(2)))
    assert verdict.outcome == "HOLD"
    assert verdict.figures["low"] < 0 < verdict.figures["high"]


@pytest.mark.parametrize(
    ("change", "outcome", "said"),
    [
        ({"min_rows": 10**6}, "HOLD", "gate.min_rows (1,000,000)"),
        ({"min_blocks": 29}, "HOLD", "28 blocks of 1d are fewer than gate.min_blocks (29)"),
        ({"block": timedelta(days=3)}, "HOLD", "blocks of 3d are fewer than gate.min_blocks (14)"),
        ({"min_gain": 1.0}, "HOLD", "Not surely better"),
        ({"max_megabytes": 0.5}, "REJECT", "gate.max_megabytes (0.5 MB)"),
        ({"max_milliseconds": 0.05}, "REJECT", "gate.max_milliseconds (0.05 ms a row)"),
        ({"max_calibration_error": 0.005}, "REJECT", "gate.max_calibration_error (0.005)"),
        ({"max_megabytes": 0.5, "min_rows": 10**6}, "REJECT", "gate.max_megabytes (0.5 MB)"),
        ({"block": timedelta(hours=12)}, "PROMOTE", "Better"),
    ],
)
def test_one_setting_alone_changes_the_outcome_of_a_better_candidate(
    days: Days, change: dict[str, Any], outcome: str, said: str
) -> None:
    verdict = days.judge(days.loss(), 1.1 * days.loss(), gate=GATE.model_copy(update=change))
    assert verdict.outcome == outcome
    assert said in verdict.reasons[0]


def test_every_budget_that_is_broken_is_named_with_its_figure(days: Days) -> None:
    verdict = days.judge(days.loss(), 1.1 * days.loss(), calibration_error=0.2, megabytes=51, milliseconds=1.5)
    assert verdict.outcome == "REJECT"
    assert [reason.split(" is more than ")[0] for reason in verdict.reasons[:3]] == [
        "Calibration error 0.2",
        "Over budget: 51 MB",
        "Over budget: 1.5 ms a row",
    ]
    assert verdict.reasons[3].startswith("Better than")


def test_a_slightly_worse_candidate_passes_only_as_non_inferior(days: Days) -> None:
    worse = days.loss() + 0.0005
    lenient = GATE.model_copy(update={"rule": "non_inferior"})
    assert days.judge(worse, days.loss()).outcome == "REJECT"
    assert days.judge(worse, days.loss(), gate=lenient).outcome == "PROMOTE"
    assert days.judge(worse + 0.001, days.loss(), gate=lenient).outcome == "REJECT"


def test_the_same_losses_are_held_with_an_interval_of_no_width(days: Days) -> None:
    verdict = days.judge(days.loss(), days.loss())
    assert verdict.outcome == "HOLD"
    assert (verdict.figures["gain"], verdict.figures["low"], verdict.figures["high"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "looked"),
    [
        ({}, True),
        ({"min_gain": 1.0}, True),
        ({"min_rows": 10**6}, False),
        ({"min_blocks": 29}, False),
        ({"max_megabytes": 0.5}, False),
        ({"max_milliseconds": 0.05}, False),
        ({"max_calibration_error": 0.005}, False),
    ],
)
def test_a_gate_that_could_not_have_promoted_has_not_looked(days: Days, change: dict[str, Any], looked: bool) -> None:
    gate, baseline = GATE.model_copy(update=change), judged(1.1 * days.loss())
    verdict = days.judge(days.loss(), 1.1 * days.loss(), gate=gate)
    started = first(judged(days.loss()), {"linear": baseline}, times=days.times, gate=gate)
    assert verdict.figures["gain"] == pytest.approx(started.figures["gain"])
    assert verdict.figures["looked"] is looked
    assert started.figures["looked"] is looked


def test_a_slice_that_is_surely_worse_rejects_a_candidate_that_is_better_overall(days: Days) -> None:
    candidate = np.where(days.origin == "west", days.loss() + 0.05, days.loss() - 0.1).clip(0)
    champion = days.loss()
    verdict = days.judge(candidate, champion)
    assert verdict.outcome == "REJECT"
    assert "in the slice origin = west" in verdict.reasons[0]
    found = {row["value"]: row["gain"] for row in verdict.figures["slices"]}
    assert found["west"] == pytest.approx(-0.05)
    assert found["east"] == pytest.approx((champion - candidate)[days.origin == "east"].mean())


@pytest.mark.parametrize(("hurt", "outcome"), [(0.07, "REJECT"), (0.03, "HOLD"), (0.015, "PROMOTE")])
def test_a_slice_that_is_likely_worse_holds(days: Days, hurt: float, outcome: str) -> None:
    west, spread = days.origin == "west", np.random.default_rng(0).normal(0, 0.35, len(days.day))
    spread[west] -= spread[west].mean()
    verdict = days.judge(days.loss() + 2 + west * (spread + hurt), days.loss() + 2 + 0.05 * ~west)
    assert verdict.outcome == outcome
    assert {row["value"]: row["outcome"] for row in verdict.figures["slices"]} == {
        "east": None,
        "north": None,
        "west": None if outcome == "PROMOTE" else outcome,
    }


def test_a_slice_of_few_rows_or_few_blocks_is_not_judged(days: Days) -> None:
    rng = np.random.default_rng(0)
    few = np.where(rng.random(len(days.day)) < 0.05, "rare", "common")
    brief = np.where(days.day < 10, "brief", "long")
    slices = {"few": few, "brief": brief}
    verdict = judge(judged(days.loss()), judged(days.loss(0.5)), times=days.times, slices=slices, gate=GATE)
    assert {row["value"] for row in verdict.figures["slices"]} == {"common", "long"}


def test_the_gain_of_an_rmse_is_the_difference_of_roots() -> None:
    rng = np.random.default_rng(0)
    day = np.repeat(np.arange(28), 60)
    one, other = rng.normal(0, 1, len(day)) ** 2, rng.normal(0, 2, len(day)) ** 2
    gate = GATE.model_copy(update={"metric": "rmse"})
    verdict = judge(judged(one), judged(other), times=BEGIN + day * DAY, slices={}, gate=gate)
    assert verdict.promotes
    assert verdict.figures["gain"] == pytest.approx(math.sqrt(other.mean()) - math.sqrt(one.mean()))
    assert "RMSE" in verdict.reasons[0]


def test_neighbouring_blocks_that_go_together_are_pointed_out(days: Days) -> None:
    wave = 0.2 * np.sin(days.day / 28 * 2 * np.pi)
    verdict = days.judge(days.loss() + 1 + wave, days.loss() + 1)
    assert any("consider a longer gate.block" in reason for reason in verdict.reasons)
    assert verdict.figures["block_correlation"] > 0.5


def test_one_seed_each_is_said_and_more_seeds_are_counted(days: Days) -> None:
    rng = np.random.default_rng(0)
    one, three = days.judge(days.loss(), days.loss(0.1)), days.judge(days.lucky(rng), days.lucky(rng, 2))
    assert any(reason.startswith("One seed each") for reason in one.reasons)
    assert not any(reason.startswith("One seed each") for reason in three.reasons)
    assert one.figures["error_of_seeds"] is None
    assert three.figures["seeds"] == [3, 2]
    assert three.figures["error_of_seeds"] > 0


# ---------------------------------------------------------------------------------------------- looks and waiting


def test_all_looks_together_spend_no_more_than_one_tail() -> None:
    assert sum(allot_tail(looks, GATE) for looks in range(10**5)) == pytest.approx(NOMINAL, rel=1e-4)
    assert sum(allot_tail(looks, GATE) for looks in range(10**5)) < NOMINAL


def test_each_further_look_asks_for_more_and_shows_the_same_interval(days: Days) -> None:
    verdicts = [days.judge(days.loss(), days.loss(0.2), looks=looks) for looks in range(10)]
    bounds = [verdict.figures["bound"] for verdict in verdicts]
    assert bounds == sorted(bounds, reverse=True)
    assert len({verdict.figures["low"] for verdict in verdicts}) == 1
    assert bounds[0] < verdicts[0].figures["low"]
    assert [verdict.figures["spent_level"] for verdict in verdicts] == [
        1 - allot_tail(looks, GATE) for looks in range(10)
    ]


def test_a_negative_number_of_looks_is_refused(days: Days) -> None:
    with pytest.raises(ValueError, match="looks >= 0"):
        days.judge(days.loss(), days.loss(), looks=-1)


def test_a_look_after_a_hold_waits_for_the_backoff() -> None:
    gate = GATE.model_copy(update={"backoff": timedelta(days=7)})
    last = datetime(2024, 5, 1)
    assert explain_backoff(None, last, gate) is None
    assert explain_backoff(last, last + timedelta(days=7), gate) is None
    assert explain_backoff(last, datetime(2024, 5, 9, tzinfo=UTC), gate) is None
    reason = explain_backoff(last, last + timedelta(days=6), gate)
    assert reason is not None
    assert "from 2024-05-08 00:00 on" in reason
    assert "gate.backoff (7d)" in reason


# ---------------------------------------------------------------------------------------------- the first model


@pytest.mark.parametrize(
    ("times_worse", "outcome", "said"),
    [
        (1.1, "PROMOTE", "Better than the baseline linear"),
        (1.0, "HOLD", "Not surely better than the baseline linear"),
        (0.9, "REJECT", "Worse than the baseline linear"),
    ],
)
def test_a_first_model_must_beat_every_baseline(days: Days, times_worse: float, outcome: str, said: str) -> None:
    baselines = {"constant": judged(1.3 * days.loss()), "linear": judged(times_worse * days.loss())}
    verdict = first(judged(days.loss()), baselines, times=days.times, gate=GATE, slices={"origin": days.origin})
    assert verdict.outcome == outcome
    assert any(reason.startswith(said) for reason in verdict.reasons)
    assert verdict.figures["champion"] is None
    assert [row["baseline"] for row in verdict.figures["baselines"]] == ["constant", "linear"]


def test_each_further_look_at_a_first_model_asks_for_more_and_says_at_which_level(days: Days) -> None:
    """As against a champion; else daily trials would meet a holdout on which the baselines fall by luck."""
    baselines = {"constant": judged(1.3 * days.loss()), "linear": judged(1.1 * days.loss())}
    found = [first(judged(days.loss()), baselines, times=days.times, gate=GATE, looks=looks) for looks in range(10)]
    bounds = [verdict.figures["bound"] for verdict in found]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] == found[0].figures["baselines"][1]["bound"] < found[0].figures["baselines"][0]["bound"]
    against = [days.judge(days.loss(), 1.1 * days.loss(), looks=looks).figures for looks in range(10)]
    assert bounds == [figures["bound"] for figures in against]
    assert [verdict.figures["spent_level"] for verdict in found] == [each["spent_level"] for each in against]
    said = "At this look's level (98.75%) the gain over linear is above +"
    assert any(reason.startswith(said) and reason.endswith(": more than 0.") for reason in found[0].reasons)
    with pytest.raises(ValueError, match="looks >= 0"):
        first(judged(days.loss()), baselines, times=days.times, gate=GATE, looks=-1)


def test_a_first_model_that_passes_once_may_fail_after_many_looks(days: Days) -> None:
    noise = np.random.default_rng(0).normal(0, 0.25, 28)[days.day]
    candidate, baselines = judged(days.loss() + 2), {"linear": judged(days.loss() + 2.14 + noise)}
    once, often = (first(candidate, baselines, times=days.times, gate=GATE, looks=looks) for looks in (0, 20))
    assert (once.outcome, often.outcome) == ("PROMOTE", "HOLD")
    assert any(reason.endswith(": not more than 0.") for reason in often.reasons)


def test_a_held_first_model_is_told_the_way_out(days: Days) -> None:
    baselines = {"constant": judged(1.3 * days.loss()), "linear": judged(days.loss())}
    reason = first(judged(days.loss()), baselines, times=days.times, gate=GATE).reasons[0]
    assert reason.startswith("Not surely better than the baseline linear")
    assert reason.endswith("Wait for more data, or take linear out of evaluate.baselines.")


def test_a_first_model_keeps_budgets_and_needs_rows_and_baselines(days: Days) -> None:
    baselines = {"constant": judged(1.1 * days.loss())}
    short = GATE.model_copy(update={"min_rows": 10**6})
    assert first(judged(days.loss()), baselines, times=days.times, gate=GATE).promotes
    assert first(judged(days.loss(), megabytes=51), baselines, times=days.times, gate=GATE).outcome == "REJECT"
    assert first(judged(days.loss()), baselines, times=days.times, gate=short).outcome == "HOLD"
    assert "evaluate.baselines" in first(judged(days.loss()), {}, times=days.times, gate=GATE).reasons[0]


def test_a_first_model_that_fails_a_slice_of_the_best_baseline_is_rejected(days: Days) -> None:
    candidate = np.where(days.origin == "west", days.loss() + 0.05, days.loss() - 0.1).clip(0)
    verdict = first(
        judged(candidate), {"linear": judged(days.loss())}, times=days.times, gate=GATE, slices={"origin": days.origin}
    )
    assert verdict.outcome == "REJECT"
    assert "origin = west" in verdict.reasons[0]


# ---------------------------------------------------------------------------------------------- losses and bad input


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


# ---------------------------------------------------------------------------------------------- laws of the figures


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
    assert world.judge(one, other).to_dict() == before.to_dict()


def test_a_block_begins_at_the_quietest_hour(days: Days) -> None:
    """Rows of one evening and the night after it, on both sides of midnight, are in one block."""
    late = days.times + np.timedelta64(8 * 3600, "s")
    one, other = judged(days.loss()), judged(days.loss(0.2))
    verdicts = [judge(one, other, times=times, slices={}, gate=GATE).to_dict() for times in (days.times, late)]
    assert verdicts[0] == verdicts[1]


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


@pytest.mark.parametrize("looks", [0, 9, 200])
def test_a_verdict_is_json_and_reads_as_markdown(days: Days, looks: int) -> None:
    verdict = replace(days.judge(days.loss(), 1.1 * days.loss(), looks=looks), reasons=("Good.",))
    text = render_verdict(verdict)
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["outcome"] == verdict.outcome
    assert text.startswith(f"# {verdict.outcome}\n\n- Good.\n\n| figure | value |\n| --- | --- |\n")
    assert "## Slices\n\n| slice | value | rows | blocks | gain | low | high | outcome |" in text


def test_a_verdict_on_one_block_has_no_interval_and_is_json(days: Days) -> None:
    here = days.day == 0
    one, other = judged(days.loss()[here]), judged(days.loss(0.5)[here])
    verdict = judge(one, other, times=days.times[here], slices={}, gate=GATE)
    assert verdict.outcome == "HOLD"
    assert verdict.figures["low"] is None
    assert json.dumps(verdict.to_dict(), allow_nan=False)
    assert "1 blocks of 1d" in render_verdict(verdict)


def test_a_bar_in_a_slices_name_does_not_break_the_table(days: Days) -> None:
    slices = {"kind": np.full(len(days.day), "a|b")}
    verdict = judge(judged(days.loss()), judged(days.loss(0.5)), times=days.times, slices=slices, gate=GATE)
    assert "| a\\|b |" in render_verdict(verdict)


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
