"""verdict: what was decided of a candidate, and the words for it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["PROMOTE", "HOLD", "REJECT"]
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f]")
METRIC_NAMES = {"log_loss": "log loss", "rmse": "RMSE"}
SAME = "same_as"  # the figure that names the version which a candidate is
COMPARISONS = {
    ("superior", "PROMOTE"): "Better than",
    ("superior", "HOLD"): "Not surely better than",
    ("superior", "REJECT"): "Worse than",
    ("non_inferior", "PROMOTE"): "No worse than",
    ("non_inferior", "HOLD"): "Not surely as good as",
    ("non_inferior", "REJECT"): "Worse than",
}


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    reasons: tuple[str, ...]
    figures: Mapping[str, Any]

    @property
    def promotes(self) -> bool:
        return self.outcome == "PROMOTE"

    @property
    def counts_as_look(self) -> bool:
        """Whether the gate could have promoted, so that a later look must pay for this one."""
        return self.figures.get("looked") is True

    def to_dict(self) -> dict[str, Any]:
        return {"outcome": self.outcome, "reasons": list(self.reasons), "figures": dict(self.figures)}


def hold(*reasons: str, **figures: Any) -> Verdict:
    """A HOLD for which nothing was compared, so that it spends no look."""
    return Verdict("HOLD", reasons, figures)


def hold_same(number: int) -> Verdict:
    """The HOLD of a candidate that is the version which serves."""
    return hold(f"Same recipe and same data as version {number}: nothing to judge.", **{SAME: f"version {number}"})


def describe_gain(figures: Mapping[str, Any]) -> str:
    """A verdict's metrics and gain in words, such as `log loss 0.45 against 0.47, a gain of +0.02 (...)`."""
    return (
        f"{METRIC_NAMES[figures['metric']]} {figures['candidate']:.5g} against {figures['champion']:.5g}, "
        f"a gain of {figures['gain']:+.4g} ({figures['level']:.0%} interval {figures['low']:+.4g} to "
        f"{figures['high']:+.4g})"
    )


def render_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same columns as a Markdown table."""
    lines = [[*rows[0]], ["---"] * len(rows[0]), *(map(_render_cell, row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _render_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    text = " and ".join(map(str, value)) if isinstance(value, list) else str(value)
    return CONTROL_CHARACTERS.sub(" ", text).replace("|", "\\|")
