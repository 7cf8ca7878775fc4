"""report: a comparison of policies as tables, as Markdown, as a picture, and as points of an MLflow run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.params import spell
from tasks.promotion import figures
from tasks.promotion.interval import Estimate
from tasks.promotion.verdict import METRIC_NAMES, render_table
from tasks.replay.compare import WORSE, Comparison, Line
from tasks.replay.policies import NEVER
from tasks.replay.recommend import Recommendation
from tasks.runtime import files
from tasks.training.model import Floats

NOTHING = "–"


def tabulate_gains(comparison: Comparison) -> list[dict[str, str]]:
    """What each policy saved: a row a policy, every cell as text."""
    metric, is_many = METRIC_NAMES[comparison.metric], len(comparison.dates) > 1
    return [_format_gains(line, metric, is_many=is_many) for line in comparison.lines]


def _format_gains(line: Line, metric: str, *, is_many: bool) -> dict[str, str]:
    is_never = line.policy == NEVER
    cells = {"policy": line.policy, metric: f"{line.metric.value:.4f}"}
    cells |= {"saved": NOTHING if is_never else _format(line.gain)}
    cells |= {"kept": NOTHING if is_never else _format_share(line.kept)} if line.kept else {}
    if line.auc and line.auc_gain:
        cells |= {"AUC": f"{line.auc.value:.4f}", "gained": NOTHING if is_never else _format(line.auc_gain)}
        cells |= {"AUC kept": NOTHING if is_never else _format_share(line.auc_kept)} if line.auc_kept else {}
    if is_many:
        cells |= {"worst date": NOTHING if is_never else f"{min(walked.gain for walked in line.walks):+.4f}"}
        cells |= {"dates worse": NOTHING if is_never else str(line.worse_dates)}
    return cells


def tabulate_costs(comparison: Comparison) -> list[dict[str, str]]:
    """What each policy took, for a first date on average: a row a policy, every cell as text."""
    return [_format_costs(line) for line in comparison.lines]


def _format_costs(line: Line) -> dict[str, str]:
    dates = len(line.walks)
    kinds = {kind: sum(retrain.kind == kind for retrain in line.retrains) / dates for kind in ("search", "refresh")}
    gains = [promotion.gain for walked in line.walks for promotion in walked.promotions]
    return {
        "policy": line.policy,
        "searches": f"{kinds['search']:.3g}",
        "refreshes": f"{kinds['refresh']:.3g}",
        "promoted": f"{line.promotions / dates:.3g}",
        "dates without one": str(line.unpromoted_dates),
        "a promotion saved": f"{np.mean(gains):+.4f}" if gains else NOTHING,
        "CPU s": f"{line.cpu:,.0f}",
        "money": f"{line.cost:.4f}",
    }


def _format(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.4f}"
    return f"{estimate.value:+.4f} ({estimate.low:+.4f} to {estimate.high:+.4f})"


def _format_share(estimate: Estimate) -> str:
    return f"{estimate.value:.0%}"


def summarize(comparison: Comparison) -> str:
    """What the tables compare, in a few sentences."""
    grid, dates = comparison.grid, comparison.dates
    first = (
        f"{dates[0]:%Y-%m-%d}"
        if len(dates) == 1
        else f"{len(dates)} dates, {dates[0]:%Y-%m-%d} to {dates[-1]:%Y-%m-%d}"
    )
    return (
        f"From {first}, each to {grid.until:%Y-%m-%d}, decisions every {spell(grid.step)}: {comparison.rows:,} rows "
        f"with an outcome; {comparison.unlabelled_share:.1%} of the rows never got one. All policies of a date begin "
        f"with the same model, charged to none. Saved and gained: against `{NEVER}`, the mean over the dates."
    )


def explain_columns(comparison: Comparison) -> str:
    """What stands in the columns."""
    parts = ["In brackets: 95 % intervals, by draws of the weeks that all dates and policies share."]
    if any(line.kept for line in comparison.lines):
        parts.append("Kept: the share of what refits without a gate save.")
    if len(comparison.dates) > 1:
        parts.append(f"Dates worse: those that end worse than `{NEVER}` by more than {WORSE}.")
    parts.append(
        "Searches, refreshes, promoted, CPU and money: for a first date, on average, as if each policy ran alone. A "
        "promotion saved: over what it replaced, a row that it served."
    )
    return " ".join(parts)


def render_markdown(comparison: Comparison, recommendation: Recommendation | None = None) -> str:
    """The page."""
    title = "# What each retrain policy would have saved, and cost"
    advice = [recommendation.sentence] if recommendation else []
    tables = [render_table(tabulate_gains(comparison)), render_table(tabulate_costs(comparison))]
    parts = [title, *advice, summarize(comparison), *tables, explain_columns(comparison), *comparison.notes]
    return "\n\n".join(parts) + "\n"


def write_report(comparison: Comparison, folder: Path, recommendation: Recommendation | None = None) -> None:
    """Writes replay.json, replay.md and replay.png into a folder."""
    advice = {"policy": recommendation.policy, "settings": dict(recommendation.settings)} if recommendation else None
    files.publish_json(folder / "replay.json", comparison.to_dict() | {"recommended": advice})
    files.publish_text(folder / "replay.md", render_markdown(comparison, recommendation))
    courses = [_plot_course(line, comparison) for line in comparison.lines]
    metric, dates = METRIC_NAMES[comparison.metric], comparison.dates
    figures.draw_policies(courses, comparison.grid.starts, dates, folder / "replay.png", metric=metric, never=NEVER)


def _plot_course(line: Line, comparison: Comparison) -> figures.Course:
    promoted = [promotion.as_of for walked in line.walks for promotion in walked.promotions]
    retrains = [retrain.as_of for retrain in line.retrains]
    gains = [walked.gain for walked in line.walks]
    saved = list_saved(line, comparison)
    return figures.Course(line.policy, line.weeks, saved, gains, retrains, promoted, line.cpu)


def list_saved(line: Line, comparison: Comparison) -> list[float]:
    """What a policy saved up to each stretch's end, in % of the error that `never` had made by then."""
    began = np.array([sum(date <= start for date in comparison.dates) for start in comparison.grid.starts])
    rows = np.array(comparison.stretches, dtype=np.float64) * began
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
        totals = {comparison.metric: line.metric.value, "saved": line.gain.value, "cpu": line.cpu, "cost": line.cost}
        totals |= {"retrains": len(line.retrains), "promotions": line.promotions}
        totals |= {"auc": line.auc.value} if line.auc else {}
        totals |= {"kept": line.kept.value} if line.kept else {}
        points |= {f"total {key}/{name}": [(0, float(value))] for key, value in totals.items()}
    return points
