"""verdict: what the gate decides, the words for it, and the page that a person reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["PROMOTE", "HOLD", "REJECT"]

METRIC_NAMES = {"log_loss": "log loss", "rmse": "RMSE"}

SAID = {
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

    def to_dict(self) -> dict[str, Any]:
        return {"outcome": self.outcome, "reasons": list(self.reasons), "figures": dict(self.figures)}


def render_verdict(verdict: Verdict) -> str:
    """The verdict as a person reads it in the Prefect UI."""
    figures = dict(verdict.figures)
    tables = {name: figures.pop(name, None) for name in ("baselines", "slices")}
    parts = [f"# {verdict.outcome}", "\n".join(f"- {reason}" for reason in verdict.reasons)]
    known = [{"figure": name, "value": value} for name, value in figures.items() if value is not None]
    parts += [_table(known)] if known else []
    parts += [f"## {name.capitalize()}\n\n{_table(rows)}" for name, rows in tables.items() if rows]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[dict[str, Any]]) -> str:
    head = [f"| {' | '.join(rows[0])} |", f"|{' --- |' * len(rows[0])}"]
    return "\n".join(head + [f"| {' | '.join(_cell(value) for value in row.values())} |" for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    text = " and ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
