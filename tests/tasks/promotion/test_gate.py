"""The gate's rules, one by one: what promotes, holds and rejects, what a look costs, and the first model."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from tasks.promotion.contest import compare_losses
from tasks.promotion.gate import allot_tail, explain_backoff, judge_contest
from tasks.promotion.page import render_verdict
from tests.tasks.promotion.firsts import share_promoted_at_once
from tests.tasks.promotion.holdouts import BEGIN, DAY, GATE, NOMINAL, Days, first, judge, judged

pytestmark = pytest.mark.usefixtures("more_replicates")


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


@pytest.mark.parametrize(("hurt", "outcome"), [(0.08, "REJECT"), (0.045, "HOLD"), (0.03, "PROMOTE")])
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


def test_margins_are_shares_of_the_champions_skill_and_the_sentence_says_both(days: Days) -> None:
    gate = GATE.model_copy(update={"min_gain": 0.1})
    sides = judged(days.loss()), judged(days.loss() + 0.03)
    little, much = (judge(*sides, times=days.times, slices={}, gate=gate, skill=skill) for skill in (0.2, 0.4))
    assert (little.outcome, much.outcome) == ("PROMOTE", "HOLD")
    assert little.figures["least"] == pytest.approx(0.02)
    assert "more than 0.02 (gate.min_gain: 10.00% of the skill)" in little.reasons[1]


def test_a_champion_without_skill_leaves_no_margin(days: Days) -> None:
    lenient = GATE.model_copy(update={"rule": "non_inferior"})
    sides = judged(days.loss() + 0.0005), judged(days.loss())
    assert not judge(*sides, times=days.times, slices={}, gate=lenient, skill=-0.1).promotes


def test_a_share_of_skill_without_the_constants_losses_is_refused(days: Days) -> None:
    contest = compare_losses(days.loss(), days.loss(0.5), times=days.times, gate=GATE)
    with pytest.raises(ValueError, match="losses of the best constant"):
        judge_contest(contest, gate=GATE)


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


def test_a_later_look_at_a_first_model_asks_for_more_and_no_further_look_for_more_still(days: Days) -> None:
    """Another recipe that was tried makes a first model no dearer, however many there were."""
    baselines = {"constant": judged(1.3 * days.loss()), "linear": judged(1.1 * days.loss())}
    verdicts = [first(judged(days.loss()), baselines, times=days.times, gate=GATE, looks=looks) for looks in range(10)]
    bounds = [verdict.figures["bound"] for verdict in verdicts]
    assert bounds[0] == verdicts[0].figures["baselines"][1]["bound"] < verdicts[0].figures["baselines"][0]["bound"]
    assert bounds[0] == verdicts[0].figures["baselines"][1]["low"]
    assert bounds[0] > bounds[1] == bounds[9]
    said = "At this look's level (97.50%; a single look's bound, as the first has) the gain over linear is above +"
    assert any(reason.startswith(said) and "more than 0." in reason for reason in verdicts[0].reasons)
    assert any("a bound for later looks, after 9 others" in reason for reason in verdicts[9].reasons)
    with pytest.raises(ValueError, match="looks >= 0"):
        first(judged(days.loss()), baselines, times=days.times, gate=GATE, looks=-1)


def test_another_baseline_that_is_easy_to_beat_makes_a_first_model_no_dearer(days: Days) -> None:
    baselines = {name: judged(times * days.loss()) for name, times in (("linear", 1.05), ("constant", 1.5))}
    one, two = (
        first(judged(days.loss()), some, times=days.times, gate=GATE).figures["bound"]
        for some in ({"linear": baselines["linear"]}, baselines)
    )
    assert one == two


def test_what_makes_a_first_models_bound_wide_is_said_with_the_way_out(days: Days) -> None:
    def reason(candidate: Any, baseline: Any) -> str:
        reasons = first(judged(candidate), {"linear": judged(baseline)}, times=days.times, gate=GATE).reasons
        return next(reason for reason in reasons if reason.startswith("At this look's level"))

    loss = days.loss() + 1
    wave = 0.2 * np.sin(days.day / 28 * 2 * np.pi)
    assert "blocks of 1d differ makes it wide: a longer split.holdout narrows it" in reason(loss, days.loss(0.5) + 1)
    assert "neighbours go together, as the days of a week do" in reason(loss + wave, loss)
    seeds = np.stack([loss, loss + 0.2, loss - 0.2])
    assert reason(seeds, loss).endswith("What its seeds differ by makes it wide: more train.seeds narrow it.")


@pytest.mark.parametrize("trials", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_first_model_that_is_better_by_three_and_a_half_standard_errors_passes_the_first_look(trials: int) -> None:
    """Measured by a plain bootstrap over 28 days."""
    assert share_promoted_at_once("normal", trials) >= 0.9


def test_a_first_model_that_passes_once_may_fail_after_many_looks(days: Days) -> None:
    noise = np.random.default_rng(0).normal(0, 0.25, 28)[days.day]
    candidate, baselines = judged(days.loss() + 2), {"linear": judged(days.loss() + 2.14 + noise)}
    once, often = (first(candidate, baselines, times=days.times, gate=GATE, looks=looks) for looks in (0, 20))
    assert (once.outcome, often.outcome) == ("PROMOTE", "HOLD")
    assert any(": not more than 0." in reason for reason in often.reasons)


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


# ---------------------------------------------------------------------------------------------- its page


@pytest.mark.parametrize("looks", [0, 9, 200])
def test_a_verdict_is_json_and_reads_as_markdown(days: Days, looks: int) -> None:
    verdict = replace(days.judge(days.loss(), 1.1 * days.loss(), looks=looks), reasons=("Good.",))
    text = render_verdict(verdict)
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["outcome"] == verdict.outcome
    assert text.startswith(f"# {verdict.outcome}\n\n- Good.\n\n|  | value |\n| --- | --- |\n| the candidate's loss | ")
    assert "_" not in text.partition("## Slices")[0].replace("gate.min_gain", "").replace("cpu_price", "")
    assert "## Slices\n\n| slice | value | rows | blocks | gain | low | high | outcome |" in text


def test_a_verdict_on_one_block_has_no_interval_and_is_json(days: Days) -> None:
    here = days.day == 0
    one, other = judged(days.loss()[here]), judged(days.loss(0.5)[here])
    verdict = judge(one, other, times=days.times[here], slices={}, gate=GATE)
    assert verdict.outcome == "HOLD"
    assert verdict.figures["low"] is None
    assert json.dumps(verdict.to_dict(), allow_nan=False)
    assert "| length of a block | 1d |" in render_verdict(verdict)


def test_a_bar_in_a_slices_name_does_not_break_the_table(days: Days) -> None:
    slices = {"kind": np.full(len(days.day), "a|b")}
    verdict = judge(judged(days.loss()), judged(days.loss(0.5)), times=days.times, slices=slices, gate=GATE)
    assert "| a\\|b |" in render_verdict(verdict)


def test_few_blocks_that_go_together_by_chance_do_not_hold_a_first_model_that_is_plainly_better() -> None:
    """Eight days, on which the gain rises and falls: their correlation, 0.55, may be chance."""
    gains = np.array([0.22, 0.25, 0.2, 0.14, 0.11, 0.14, 0.2, 0.21])
    times, gate = BEGIN + np.arange(8) * DAY, GATE.model_copy(update={"min_rows": 1, "min_blocks": 5})
    verdict = first(judged(1 - gains), {"constant": judged(np.ones(8))}, times=times, gate=gate)
    assert verdict.figures["block_correlation"] == pytest.approx(0.55, abs=0.02)
    assert verdict.outcome == "PROMOTE", verdict.reasons
