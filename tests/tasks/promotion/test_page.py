"""tasks.promotion.page: a verdict's figures in plain words."""

from typing import Any

from tasks.promotion.page import HIDDEN, INSIDE, TABLES, WORDS, render_verdict
from tasks.promotion.verdict import Verdict

FIGURES: dict[str, Any] = {
    "metric": "log_loss",
    "candidate": 0.4321,
    "gain": 0.0123,
    "low": 0.001,
    "high": 0.02,
    "level": 0.95,
    "rows": 12345,
    "kind": "refresh",
    "cpu_s": 61.4,
    "cpu": {"train": 40.2, "evidence": 21.2},
    "cost": 0.00085,
    "course": {"gains": [1.0] * 100},
    "slices": [{"slice": "store", "value": "north"}],
    "champion": None,
}


def render(**more: Any) -> str:
    return render_verdict(Verdict("HOLD", ("Not sure.",), {**FIGURES, **more}))


def test_figures_stand_in_plain_words_with_their_units_and_intervals() -> None:
    rows = [line for line in render().splitlines() if line.startswith("| ")]
    assert rows == [
        "|  | value |",
        "| --- | --- |",
        "| kind of retrain | refresh |",
        "| the candidate's loss | 0.4321 (log loss) |",
        "| gain on the holdout | +0.0123 (95% interval +0.001 to +0.02) |",
        "| rows compared | 12,345 |",
        "| CPU | 61 s (train 40, evidence 21) |",
        "| cost (policy.cpu_price) | 0.00085 |",
        "| slice | value |",
        "| --- | --- |",
        "| store | north |",
    ]


def test_a_figure_without_words_stands_under_its_own_name() -> None:
    assert "| years of peace | 7 |" in render(years_of_peace=7)


def test_no_figure_stands_twice() -> None:
    assert len({*WORDS, *TABLES, *HIDDEN, *INSIDE}) == len(WORDS) + len(TABLES) + len(HIDDEN) + len(INSIDE)
