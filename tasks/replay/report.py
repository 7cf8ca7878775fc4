"""report: a comparison of policies as a table, as Markdown, as a picture, and as points of an MLflow run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.params import spell
from tasks.promotion import figures
from tasks.promotion.interval import Estimate
from tasks.promotion.verdict import METRIC_NAMES, render_table
from tasks.replay.compare import Comparison, Line
from tasks.replay.walk import NEVER
from tasks.runtime import files
from tasks.training.model import Floats


def tabulate(comparison: Comparison) -> list[dict[str, str]]:
    """A row a policy, every cell as text."""
    return [_format_line(line, METRIC_NAMES[comparison.metric]) for line in comparison.lines]


def _format_line(line: Line, metric: str) -> dict[str, str]:
    by_auc = {"AUC": _format(line.auc), "AUC gained": _format_gain(line, line.auc_gain)} if line.auc else {}
    return {
        "policy": line.policy,
        metric: _format(line.metric),
        f"{metric} saved": _format_gain(line, line.gain),
        **by_auc,
        "retrains": str(len(line.retrains)),
        "promoted": str(line.promotions),
        "alarms": "–" if line.alarms is None else str(line.alarms),
        "CPU s": f"{line.cpu:,.0f}",
        "cost": f"{line.cost:.4f}",
        "cost per 1 % saved": "–" if line.cost_per_percent is None else f"{line.cost_per_percent:.4f}",
    }


def _format(estimate: Estimate, sign: str = "") -> str:
    text = f"{estimate.value:{sign}.4f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({estimate.low:{sign}.4f} to {estimate.high:{sign}.4f})"


def _format_gain(line: Line, gain: Estimate | None) -> str:
    return "–" if line.policy == NEVER or gain is None else _format(gain, "+")


def summarize(comparison: Comparison) -> str:
    """What the table compares, in a few sentences."""
    grid = comparison.grid
    return (
        f"{comparison.rows:,} rows with an outcome from {grid.since:%Y-%m-%d} to {grid.until:%Y-%m-%d}, "
        f"decisions every {spell(grid.step)}; {comparison.unlabelled_share:.1%} of the rows never got an "
        f"outcome. All policies begin with the same model ({comparison.first_cpu:.0f} s of CPU, charged to none). "
        f"Saved and gained: against `{NEVER}`, in brackets the intervals, by days."
    )


def render_markdown(comparison: Comparison) -> str:
    title = "# What each retrain policy would have cost, and saved"
    parts = [title, summarize(comparison), render_table(tabulate(comparison)), *comparison.notes]
    return "\n\n".join(parts) + "\n"


def write_report(comparison: Comparison, folder: Path) -> None:
    """Writes replay.json, replay.md and replay.png into a folder."""
    files.publish_json(folder / "replay.json", comparison.to_dict())
    files.publish_text(folder / "replay.md", render_markdown(comparison))
    courses = [_plot_course(line, comparison) for line in comparison.lines]
    metric = METRIC_NAMES[comparison.metric]
    figures.draw_policies(courses, comparison.grid.starts, folder / "replay.png", metric=metric, never=NEVER)


def _plot_course(line: Line, comparison: Comparison) -> figures.Course:
    retrains = [retrain.as_of for retrain in line.retrains]
    promoted = [retrain.as_of for retrain in line.retrains if retrain.promoted]
    return figures.Course(line.policy, line.weeks, list_saved(line, comparison), retrains, promoted)


def list_saved(line: Line, comparison: Comparison) -> list[float]:
    """What a policy saved up to each stretch's end, in % of the error that `never` had made by then."""
    rows = np.array(comparison.stretches, dtype=np.float64)
    own, never = (_accumulate(one.weeks, rows, comparison.metric) for one in (line, comparison.line(NEVER)))
    return [float(share) for share in 100 * (never - own) / np.maximum(never, 1e-12)]


def _accumulate(weeks: Sequence[float | None], rows: Floats, metric: str) -> Floats:
    """The metric from the beginning to each stretch's end."""
    losses = np.array([week or 0.0 for week in weeks])
    means = np.cumsum((losses**2 if metric == "rmse" else losses) * rows) / np.maximum(np.cumsum(rows), 1)
    return np.sqrt(means) if metric == "rmse" else means


def list_points(comparison: Comparison) -> dict[str, list[tuple[int, float]]]:
    """Each policy's metric by stretch, and its totals, as points (step, value) of an MLflow run."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in comparison.lines:
        name = line.policy.replace(":", " ")
        weeks = enumerate(line.weeks)
        points[f"{comparison.metric}/{name}"] = [(step, value) for step, value in weeks if value is not None]
        totals = {comparison.metric: line.metric.value, "cpu": line.cpu, "cost": line.cost}
        totals |= {"retrains": len(line.retrains), "promotions": line.promotions}
        totals |= {"auc": line.auc.value} if line.auc else {}
        points |= {f"total {key}/{name}": [(0, float(value))] for key, value in totals.items()}
    return points
