"""The pictures of one record: the search, its parameters, ROC, calibration and importance; and those of a replay.

They are PNG files, drawn of what others have made, without a display and without pyplot's global state.
"""

import csv
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.runtime import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, ACCENT, FAINT, GRID = "#1f2933", "#2a78b5", "#9fb3c8", "#e4e7eb"
MAX_FEATURES = 20
COLUMNS = 3  # of small pictures in a row
WIDE = 20  # a parameter whose largest value is so many times its smallest is drawn on a log axis
# The colour-blind tell them apart too (Okabe & Ito 2008), and by their dashes without colour.
LINES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#E69F00", (0, (5, 1, 1, 1, 1, 1))))


def draw_record(folder: Path, *, trials: Sequence[Mapping[str, Any]], curves: Path, importance: Path) -> list[Path]:
    """Draw what there are data for: a regression has no ROC. Returns the files that were made."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it logs every font that it meets
    done = [trial for trial in trials if trial["value"] is not None]
    roc, calibration, features = (
        _read_rows(path) for path in (curves / "roc.csv", curves / "calibration.csv", importance)
    )
    pictures: dict[str, tuple[bool, Callable[[], Figure]]] = {
        "search": (bool(done), lambda: _draw_search(done, len(trials))),
        "parameters": (len(done) > 2, lambda: _draw_parameters(done)),
        "roc": (len(roc) > 1, lambda: _draw_roc(roc)),
        "calibration": (bool(calibration), lambda: _draw_calibration(calibration)),
        "importance": (bool(features), lambda: _draw_importance(features)),
    }
    return [_save(folder / f"{name}.png", make()) for name, (has_data, make) in pictures.items() if has_data]


def _draw_search(done: Sequence[Mapping[str, Any]], total: int) -> "Figure":
    """Each completed trial's loss, and the lowest so far."""
    figure, axes = _blank((8, 4.5))
    ordered = sorted(done, key=lambda trial: trial["number"])
    numbers, values = [trial["number"] for trial in ordered], [float(trial["value"]) for trial in ordered]
    lowest = [min(values[: i + 1]) for i in range(len(values))]
    axes.plot(numbers, values, "o", color=FAINT, markersize=5, label="a trial")
    axes.step(numbers, lowest, where="post", color=ACCENT, linewidth=2, label="lowest so far")
    _zoom(axes, values)
    axes.legend(frameon=False)
    return _titled(figure, axes, f"search: {len(done)} of {total} trials ran to their end", x="trial", y="loss")


def _draw_parameters(done: Sequence[Mapping[str, Any]]) -> "Figure":
    """Each parameter against the loss, the strongest rank correlation first."""
    names = sorted({name for trial in done for name in trial["params"]})
    every = {name: _list_points(done, name) for name in names}
    points = {name: pairs for name, pairs in every.items() if len({x for x, _ in pairs}) > 1}
    names = sorted(points, key=lambda name: -abs(_rank_correlation(points[name])))
    lines = max(1, -(-len(names) // COLUMNS))
    figure = _figure((4 * COLUMNS, 2.6 * lines), layout=None)  # the layout engine takes a second for nine pictures
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.12 / lines, top=1 - 0.12 / lines, hspace=0.38, wspace=0.1)
    for i, name in enumerate(names):
        axes = _plain(figure.add_subplot(lines, COLUMNS, i + 1))
        axes.plot(*zip(*points[name], strict=True), "o", color=ACCENT, alpha=0.7, markersize=4)
        values = [x for x, _ in points[name]]
        if all(isinstance(x, float) and x > 0 for x in values) and max(values) / min(values) > WIDE:
            axes.set_xscale("log")
        _zoom(axes, [y for _, y in points[name]])
        axes.tick_params(labelleft=i % COLUMNS == 0)
        axes.set_title(
            f"{name}   (rank correlation {_rank_correlation(points[name]):+.2f})", fontsize=9, loc="left", color=INK
        )
    figure.supylabel("loss", fontsize=10, color=INK, x=0.005)
    return figure


def _draw_roc(rows: Sequence[Mapping[str, str]]) -> "Figure":
    figure, axes = _blank((5.5, 5))
    _diagonal(axes)
    for name in dict.fromkeys(row.get("model", "") for row in rows):
        part = [row for row in rows if row.get("model", "") == name]
        x, y = _numbers(part, "false_positive_rate"), _numbers(part, "true_positive_rate")
        axes.plot(x, y, linewidth=2, label=name, color=None if name else ACCENT)
    return _titled(figure, axes, "ROC on the holdout", x="false positive rate", y="true positive rate")


def _draw_calibration(rows: Sequence[Mapping[str, str]]) -> "Figure":
    """Observed against predicted; a point's size is its number of rows, where the file has it."""
    figure, axes = _blank((5.5, 5))
    x, y = _numbers(rows, "predicted"), _numbers(rows, "observed")
    _diagonal(axes, min(x + y), max(x + y))
    counts = _numbers(rows, "rows") if "rows" in rows[0] else [1.0] * len(rows)
    axes.plot(x, y, color=ACCENT, linewidth=1, alpha=0.5)
    axes.scatter(x, y, s=[20 + 130 * count / max(counts) for count in counts], color=ACCENT, zorder=3)
    return _titled(figure, axes, "calibration on the holdout", x="predicted", y="observed")


def _draw_importance(rows: Sequence[Mapping[str, str]]) -> "Figure":
    ranked = sorted(rows, key=lambda row: -float(row["importance"]))[:MAX_FEATURES][::-1]
    figure, axes = _blank((8, 0.6 + 0.28 * len(ranked)))
    axes.barh([row["feature"] for row in ranked], _numbers(ranked, "importance"), color=ACCENT, height=0.7)
    axes.grid(visible=False, axis="y")
    return _titled(figure, axes, f"mean |SHAP|, the first {len(ranked)} features", x="", y="")


@dataclass(frozen=True)
class Course:
    """One policy in a replay: its metric by week and what it saved so far, in % of never's error; its retrains."""

    name: str
    weeks: Sequence[float | None]
    saved: Sequence[float]
    retrains: Sequence[datetime]
    promoted: Sequence[datetime]


def draw_policies(lines: Sequence[Course], starts: Sequence[datetime], path: Path, *, metric: str, never: str) -> Path:
    """Draw a replay: the metric by week, what each policy saved so far, and when each retrained."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    figure = _figure((9, 6.4 + 0.26 * len(lines)), layout="constrained")
    grid = figure.add_gridspec(3, 1, height_ratios=[2.2, 2.8, 0.5 + 0.3 * len(lines)])
    top = _plain(figure.add_subplot(grid[0]))
    middle, bottom = (_plain(figure.add_subplot(grid[i], sharex=top)) for i in (1, 2))
    others = [line.name for line in lines if line.name != never]
    styles: dict[str, tuple[str, Any]] = {name: LINES[i % len(LINES)] for i, name in enumerate(others)}
    styles[never] = (INK, "-")
    weeks: Any = starts
    for line in lines:
        colour, dash = styles[line.name]
        width = 1.2 if line.name == never else 1.7
        values = [math.nan if value is None else value for value in line.weeks]
        top.plot(weeks, values, color=colour, linestyle=dash, linewidth=width)
        middle.plot(weeks, line.saved, color=colour, linestyle=dash, linewidth=width)
    _name_ends(middle, lines, starts, styles)
    _draw_retrains(bottom, lines, styles)
    for axes in (top, middle):
        axes.tick_params(labelbottom=False)
    _titled(figure, top, f"{metric} by week", x="", y="")
    _titled(figure, middle, f"error saved so far, in % of what `{never}` made", x="", y="")
    _titled(figure, bottom, "retrains: ● promoted   ○ refused", x="", y="")
    return _save(path, figure)


def _name_ends(
    axes: "Axes", lines: Sequence[Course], starts: Sequence[datetime], styles: Mapping[str, tuple[str, Any]]
) -> None:
    """Each line's name at its end, apart from each other where the lines end together."""
    low, high = axes.get_ylim()
    least, last = (high - low) / 14, -math.inf
    end: Any = starts[-1]
    for line in sorted(lines, key=lambda line: line.saved[-1]):
        last = max(line.saved[-1], last + least)
        place: Any = (starts[-1] + (starts[-1] - starts[0]) / 60, last)
        axes.annotate(
            line.name, (end, line.saved[-1]), xytext=place, color=styles[line.name][0], fontsize=9, va="center"
        )
    axes.set_ylim(low, max(high, last + least))


def _draw_retrains(axes: "Axes", lines: Sequence[Course], styles: Mapping[str, tuple[str, Any]]) -> None:
    for place, line in enumerate(reversed(lines)):
        colour = styles[line.name][0]
        refused: Any = [when for when in line.retrains if when not in set(line.promoted)]
        promoted: Any = line.promoted
        axes.plot(refused, [place] * len(refused), "o", color=colour, markersize=5, fillstyle="none")
        axes.plot(promoted, [place] * len(promoted), "o", color=colour, markersize=6)
    axes.set_yticks(range(len(lines)), [line.name for line in reversed(lines)])
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.grid(visible=False, axis="x")


def _blank(size: tuple[float, float]) -> "tuple[Figure, Axes]":
    figure = _figure(size, layout="constrained")
    return figure, _plain(figure.add_subplot())


def _figure(size: tuple[float, float], *, layout: Literal["constrained"] | None) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=110, layout=layout, facecolor="white")


def _plain(axes: "Axes") -> "Axes":
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    return axes


def _titled(figure: "Figure", axes: "Axes", title: str, *, x: str, y: str) -> "Figure":
    axes.set_title(title, fontsize=11, loc="left", color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    return figure


def _diagonal(axes: "Axes", low: float = 0.0, high: float = 1.0) -> None:
    axes.plot([low, high], [low, high], color=FAINT, linewidth=1, linestyle="--")


def _zoom(axes: "Axes", values: Sequence[float]) -> None:
    """One wild trial must not flatten the rest: the axis ends a little above the ninth decile."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[int(0.9 * (len(ordered) - 1))]
    if high > low:
        axes.set_ylim(low - 0.08 * (high - low), high + 0.25 * (high - low))


def _list_points(done: Sequence[Mapping[str, Any]], name: str) -> list[tuple[Any, float]]:
    """A parameter's values and the losses."""
    pairs = [(trial["params"].get(name), float(trial["value"])) for trial in done]
    return [(float(x) if isinstance(x, (int, float)) else str(x), y) for x, y in pairs if x is not None]


def _rank_correlation(points: Sequence[tuple[Any, float]]) -> float:
    """Spearman's rank correlation; 0 for a parameter that has no order."""
    from scipy.stats import spearmanr

    xs, ys = [x for x, _ in points], [y for _, y in points]
    if any(isinstance(x, str) for x in xs) or len(points) < 3 or len(set(xs)) < 2 or len(set(ys)) < 2:
        return 0.0
    return float(spearmanr(xs, ys).statistic)


def _numbers(rows: Sequence[Mapping[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def _save(path: Path, figure: "Figure") -> Path:
    files.publish(path, lambda new: figure.savefig(new, format="png"))
    return path
