"""recommend: the cheapest policy near the best, never where nothing is sure, and the settings that bring it about."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from tasks import params
from tasks.params import Params
from tasks.promotion.interval import Estimate
from tasks.replay.compare import Comparison, Line
from tasks.replay.policies import Grid
from tasks.replay.recommend import adopt, find_settings, recommend_policy
from tests.conftest import raw_params, write_params
from tests.tasks import small

BEGIN = datetime(2024, 2, 1)


def line(policy: str, gain: float, cpu: float, low: float | None = 0.001) -> Line:
    return Line(
        policy=policy,
        metric=Estimate(0.5 - gain, None, None),
        gain=Estimate(gain, low, gain + 0.01),
        auc=None,
        auc_gain=None,
        kept=None,
        auc_kept=None,
        walks=(),
        cpu=cpu,
        cost=cpu / 3600,
        weeks=(),
    )


def compared(*lines: Line) -> Comparison:
    grid = Grid(BEGIN, BEGIN + timedelta(days=70), timedelta(days=7))
    return Comparison(grid, (BEGIN,), "log_loss", 10_000, 0.0, (), (line("never", 0.0, 0.0, None), *lines))


def with_price(price: float | None) -> Params:
    p = small.settings()
    return p.model_copy(update={"policy": p.policy.model_copy(update={"price": price})})


def test_of_policies_near_the_best_the_cheapest_is_recommended() -> None:
    comparison = compared(line("every:7d", 0.0100, 4000), line("refresh:7d", 0.0092, 400), line("drift", 0.005, 10))
    advice = recommend_policy(comparison, with_price(None))
    assert advice.policy == "refresh:7d"
    assert advice.settings == {
        "policy.signals": ["freshness"],
        "policy.refresh_every": "7d",
        "policy.search_every": None,
    }
    assert "policy.refresh_every: 7d" in advice.sentence
    assert "0.0092 (+0.0010 to +0.0192) log loss" in advice.sentence


def test_with_a_price_the_policy_with_the_most_value_is_recommended() -> None:
    comparison = compared(line("every:7d", 0.0100, 4000), line("drift", 0.005, 10))
    assert recommend_policy(comparison, with_price(1.0)).policy == "drift"
    assert recommend_policy(comparison, with_price(1000.0)).policy == "every:7d"


@pytest.mark.parametrize("low", [-0.001, 0.0])
def test_where_nothing_surely_pays_never_is_recommended_and_the_best_is_named(low: float) -> None:
    advice = recommend_policy(compared(line("refresh:7d", 0.004, 400, low)), with_price(None))
    assert advice.policy == "never"
    assert "`refresh:7d`, saves 0.0040 (" in advice.sentence


def test_what_is_only_a_yardstick_is_never_recommended() -> None:
    assert find_settings("ungated:7d") is find_settings("spaced:3") is None
    comparison = compared(line("ungated:7d", 0.02, 1), line("default", 0.01, 100))
    advice = recommend_policy(comparison, with_price(None))
    assert (advice.policy, advice.settings) == ("default", {})


@pytest.mark.parametrize("policy", ["never", "drift", "performance", "both", "every:28d", "refresh:14d", "default"])
def test_what_is_adopted_is_valid_and_the_file_keeps_its_comments(policy: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    write_params(raw_params("binary", 60), tmp_path)
    path.write_text("# how this loop runs\n" + path.read_text())
    advice = replace(recommend_policy(compared(), with_price(None)), settings=find_settings(policy) or {})
    adopt(advice, path)
    assert path.read_text().startswith("# how this loop runs\n")
    written = yaml.safe_load(path.read_text())
    for name, value in advice.settings.items():
        section, key = name.split(".")
        assert written[section][key] == value
    params.load(path)
