"""recommend: the policy that a comparison speaks for, in one sentence, and the settings that make it the loop's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.params import Params
from tasks.promotion.verdict import METRIC_NAMES
from tasks.replay.compare import Comparison, Line
from tasks.replay.policies import BY_SIGNALS, DEFAULT, NEVER
from tasks.runtime.overrides import override_params

NEAR_BEST = 0.9  # of the largest gain: among policies that save so much, the cheapest is recommended
ROWS = 1000  # policy.price is of a unit of loss in so many predictions


@dataclass(frozen=True)
class Recommendation:
    """A policy, the keys of params.yaml that bring it about, and why."""

    policy: str
    settings: Mapping[str, Any]
    sentence: str


def recommend_policy(comparison: Comparison, p: Params) -> Recommendation:
    """The policy with the most value, where policy.price says what loss costs; else the cheapest near the best."""
    lines = [line for line in comparison.lines if find_settings(line.policy) is not None]
    best = max(lines, key=lambda line: line.gain.value)
    if _is_unsure(best):
        chosen = comparison.line(NEVER)
    elif p.policy.price is not None:
        rows, price = comparison.rows / ROWS, p.policy.price
        chosen = max(lines, key=lambda line: line.gain.value * rows * price - line.cost)
    else:
        near = [line for line in lines if line.gain.value >= NEAR_BEST * best.gain.value]
        chosen = min(near, key=lambda line: (line.cpu, -line.gain.value))
    settings = find_settings(chosen.policy) or {}
    return Recommendation(chosen.policy, settings, _word(chosen, best, comparison, settings))


def find_settings(policy: str) -> dict[str, Any] | None:
    """The keys of params.yaml that make a policy the loop's own; None for one that is only a yardstick."""
    kind, _, length = policy.partition(":")
    if kind == DEFAULT:
        return {}
    if kind == NEVER:
        return {"policy.signals": [], "policy.search_every": None}
    if kind == "every":
        return {"policy.signals": [], "policy.search_every": length}
    if kind == "refresh":
        return {"policy.signals": ["freshness"], "policy.refresh_every": length, "policy.search_every": None}
    return {"policy.signals": list(BY_SIGNALS[kind])} if kind in BY_SIGNALS else None


def adopt(recommendation: Recommendation, path: Path) -> None:
    """Write the settings into params.yaml, which keeps its comments."""
    if recommendation.settings:
        override_params(path, recommendation.settings)


def _is_unsure(line: Line) -> bool:
    return line.gain.value <= 0 or (line.gain.low is not None and line.gain.low <= 0)


def _word(line: Line, best: Line, comparison: Comparison, settings: Mapping[str, Any]) -> str:
    metric = METRIC_NAMES[comparison.metric]
    how = ", ".join(f"{name}: {_spell(value)}" for name, value in settings.items()) or "params.yaml as it is"
    if line.policy == NEVER:
        return (
            f"Recommended: `never` ({how}): no policy surely saves {metric} here; the best, `{best.policy}`, saves "
            f"{_spell_gain(best)}."
        )
    gain = _spell_gain(line)
    kept = f", {line.kept.value:.0%} of what ungated refits save" if line.kept else ""
    auc = f" and {line.auc_gain.value:+.4f} of AUC" if line.auc_gain else ""
    dates = f"{len(comparison.dates)} first date{'s' if len(comparison.dates) > 1 else ''}"
    return (
        f"Recommended: `{line.policy}` ({how}): over {dates} it saves {gain} {metric} a row against never{kept}{auc}, "
        f"for {line.cpu:,.0f} s of CPU a date ({line.cost:.3f} at policy.cpu_price); {line.unpromoted_dates} dates "
        f"without a promotion, {line.worse_dates} worse than never."
    )


def _spell_gain(line: Line) -> str:
    gain = line.gain
    return f"{gain.value:.4f}" + ("" if gain.low is None else f" ({gain.low:+.4f} to {gain.high:+.4f})")


def _spell(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(value)}]"
    return "null" if value is None else str(value)
