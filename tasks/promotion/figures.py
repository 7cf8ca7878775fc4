"""The pictures of one record: the search, its parameters, ROC, calibration and importance; and those of a replay.

They are PNG files, drawn of what others have made, without a display and without pyplot's global state.
"""

import contextlib
import csv
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.promotion import gains
from tasks.runtime import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Moment = Any  # a datetime, which matplotlib's types do not know
Size = tuple[float, float]  # in inches
INK, ACCENT, FAINT, GRID = "#1f2933", "#2a78b5", "#9fb3c8", "#e4e7eb"
STYLE: Any = {  # for matplotlib.rc_context
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "grid.color": GRID,
    "legend.frameon": False,
    **{f"{axis}tick.{key}": setting for axis in "xy" for key, setting in (("color", INK), ("labelsize", 9))},
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
}
OUTCOME_MARKS = {"PROMOTE": ("o", "#009E73"), "HOLD": ("D", "#E69F00"), "REJECT": ("X", "#D55E00")}
MAX_FEATURES = 20
COLUMNS = 3  # of small pictures in a row
WIDE = 20  # a parameter whose largest value is so many times its smallest is drawn on a log axis
# The colour-blind tell them apart too (Okabe & Ito 2008), and by their dashes without colour.
LINES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#E69F00", (0, (5, 1, 1, 1, 1, 1))))


def draw_record(folder: Path, *, trials: Sequence[Mapping[str, Any]], curves: Path, importance: Path) -> list[Path]:
    """Draw what there are data for: a regression has no ROC. Returns the files that were made."""
    done = [trial for trial in trials if trial["value"] is not None]
    paths = (curves / "roc.csv", curves / "calibration.csv", importance)
    roc, calibration, features = (_read_rows(path) for path in paths)
    wide, square, tall = (8, 4.5), (5.5, 5), (8, 0.6 + 0.28 * min(len(features), MAX_FEATURES))
    pictures: dict[str, tuple[bool, Size, Callable[[Figure], None]]] = {
        "search": (bool(done), wide, lambda figure: _draw_search(figure, done, len(trials))),
        "parameters": (len(done) > 2, wide, lambda figure: _draw_parameters(figure, done)),
        "roc": (len(roc) > 1, square, lambda figure: _draw_roc(figure, roc)),
        "calibration": (bool(calibration), square, lambda figure: _draw_calibration(figure, calibration)),
        "importance": (bool(features), tall, lambda figure: _draw_importance(figure, features)),
    }
    drawn = {folder / f"{name}.png": (size, draw) for name, (has_data, size, draw) in pictures.items() if has_data}
    for path, (size, draw) in drawn.items():
        with _open_figure(path, size) as figure:
            draw(figure)
    return list(drawn)


@contextlib.contextmanager
def _open_figure(path: Path, size: Size) -> "Iterator[Figure]":
    """A figure to draw on. It is saved when the block ends."""
    import matplotlib
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it logs every font that it meets
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        files.publish(path, lambda new: figure.savefig(new, format="png"))


def _draw_search(figure: "Figure", done: Sequence[Mapping[str, Any]], total: int) -> None:
    """Each completed trial's loss, and the lowest so far."""
    ordered = sorted(done, key=lambda trial: trial["number"])
    numbers, values = [trial["number"] for trial in ordered], [float(trial["value"]) for trial in ordered]
    title = f"search: {len(done)} of {total} trials ran to their end"
    axes = figure.add_subplot(title=title, xlabel="trial", ylabel="loss")
    axes.plot(numbers, values, "o", color=FAINT, markersize=5, label="a trial")
    lowest = list(itertools.accumulate(values, min))
    axes.step(numbers, lowest, where="post", color=ACCENT, linewidth=2, label="lowest so far")
    _zoom(axes, values)
    axes.legend()


def _draw_parameters(figure: "Figure", done: Sequence[Mapping[str, Any]]) -> None:
    """Each parameter against the loss, the strongest rank correlation first."""
    names = sorted({name for trial in done for name in trial["params"]})
    every = {name: _list_points(done, name) for name in names}
    points = {name: pairs for name, pairs in every.items() if len({x for x, _ in pairs}) > 1}
    correlations = {name: _rank_correlation(pairs) for name, pairs in points.items()}
    lines = max(1, -(-len(points) // COLUMNS))
    figure.set_size_inches(4 * COLUMNS, 2.6 * lines)
    figure.set_layout_engine(None)  # it takes a second for nine pictures
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.12 / lines, top=1 - 0.12 / lines, hspace=0.38, wspace=0.1)
    for i, name in enumerate(sorted(points, key=lambda name: -abs(correlations[name]))):
        axes = figure.add_subplot(lines, COLUMNS, i + 1)
        axes.plot(*zip(*points[name], strict=True), "o", color=ACCENT, alpha=0.7, markersize=4)
        values = [x for x, _ in points[name]]
        if all(isinstance(x, float) and x > 0 for x in values) and max(values) / min(values) > WIDE:
            axes.set_xscale("log")
        _zoom(axes, [y for _, y in points[name]])
        axes.tick_params(labelleft=i % COLUMNS == 0)
        axes.set_title(f"{name}   (rank correlation {correlations[name]:+.2f})", fontsize=9)
    figure.supylabel("loss", fontsize=10, color=INK, x=0.005)


def _draw_roc(figure: "Figure", rows: Sequence[Mapping[str, str]]) -> None:
    axes = figure.add_subplot(title="ROC on the holdout", xlabel="false positive rate", ylabel="true positive rate")
    _draw_diagonal(axes)
    for name in dict.fromkeys(row.get("model", "") for row in rows):
        part = [row for row in rows if row.get("model", "") == name]
        x, y = _read_column(part, "false_positive_rate"), _read_column(part, "true_positive_rate")
        axes.plot(x, y, linewidth=2, label=name, color=None if name else ACCENT)


def _draw_calibration(figure: "Figure", rows: Sequence[Mapping[str, str]]) -> None:
    """Observed against predicted; a point's size is its number of rows, where the file has it."""
    axes = figure.add_subplot(title="calibration on the holdout", xlabel="predicted", ylabel="observed")
    x, y = _read_column(rows, "predicted"), _read_column(rows, "observed")
    _draw_diagonal(axes, min(x + y), max(x + y))
    counts = _read_column(rows, "rows") if "rows" in rows[0] else [1.0] * len(rows)
    axes.plot(x, y, color=ACCENT, linewidth=1, alpha=0.5)
    axes.scatter(x, y, s=[20 + 130 * count / max(counts) for count in counts], color=ACCENT, zorder=3)


def _draw_importance(figure: "Figure", rows: Sequence[Mapping[str, str]]) -> None:
    ranked = sorted(rows, key=lambda row: -float(row["importance"]))[:MAX_FEATURES][::-1]
    axes = figure.add_subplot(title=f"mean |SHAP|, the first {len(ranked)} features")
    axes.barh([row["feature"] for row in ranked], _read_column(ranked, "importance"), color=ACCENT, height=0.7)
    axes.grid(visible=False, axis="y")


# --- a verdict -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """One look of the gate: when, by event time, what came of it, and what the gain was surely more than."""

    as_of: Moment
    outcome: str
    bound: float | None


def draw_verdict(
    path: Path, course: gains.Course, looks: Sequence[Look], *, title: str, unit: str, mean: float | None
) -> Path:
    """Draw the gain of each block or week as bars, its bound as a line, and the looks, of which the last is this one.

    Args:
        unit: Of the gain, such as log loss.
        mean: The gain of all of them, where it is known.
    """
    import matplotlib.dates

    dates: Any = matplotlib.dates
    with _open_figure(path, (9, 4.6)) as figure:
        axes = figure.add_subplot(title=f"{title}\n{unit} {course.what}, by {course.unit}", ylabel=f"{unit} a row")
        spans = [later - begin for begin, later in itertools.pairwise(course.begins)]
        width = sorted(spans)[len(spans) // 2] if spans else timedelta(days=1)  # the first block may be cut short
        colours = [ACCENT if gain > 0 else FAINT for gain in course.gains]
        begins: Sequence[Moment] = course.begins
        bar: Any = [0.85 * min(width, span) for span in [*spans, width]]
        axes.bar(begins, course.gains, bar, align="edge", color=colours, label=f"a {course.unit}")
        axes.axhline(0, color=INK, linewidth=0.8)
        if mean is not None:
            axes.axhline(mean, color=INK, linewidth=1, linestyle=":", label="the mean")
        ends = [begin + width for begin in course.begins]
        sure = [(end, low) for end, low in zip(ends, course.bounds, strict=False) if low is not None]
        if sure:
            axes.plot(
                *zip(*sure, strict=True), color=LINES[1][0], linewidth=2, label="the mean was surely more than this"
            )
        _draw_looks(axes, looks)
        _hold_bars(axes, course.gains, [low for _, low in sure[-1:]] + [look.bound for look in looks[-1:]])
        axes.legend(loc="upper left", fontsize=8, ncols=3)
        locator = dates.AutoDateLocator(maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    return path


def _draw_looks(axes: "Axes", looks: Sequence[Look]) -> None:
    """Each outcome by a mark of its own."""
    for outcome, (marker, colour) in OUTCOME_MARKS.items():
        marked = [(look.as_of, look.bound) for look in looks if look.outcome == outcome and look.bound is not None]
        if marked:
            style: Any = {"color": colour, "markeredgecolor": "white", "markersize": 9, "zorder": 4}
            axes.plot(*zip(*marked, strict=True), marker, label=f"a look's bound: {outcome}", **style)


def _hold_bars(axes: "Axes", gains: Sequence[float], shown: Sequence[float | None]) -> None:
    """The axis ends a little beyond the bars and what decided: an early bound lies far below them."""
    values = [*gains, *(value for value in shown if value is not None), 0.0]
    room = 0.1 * (max(values) - min(values)) or 1.0
    axes.set_ylim(min(values) - room, max(values) + 3 * room)


# --- a replay ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """One policy in a replay.

    Attributes:
        weeks: its metric by week.
        saved: what it saved up to each week, in % of never's error.
        gains: what it saved from each first date, a row.
        retrains, promoted: of all first dates.
        cpu: seconds, of one first date.
    """

    name: str
    weeks: Sequence[float | None]
    saved: Sequence[float]
    gains: Sequence[float]
    retrains: Sequence[Moment]
    promoted: Sequence[Moment]
    cpu: float


def draw_policies(
    lines: Sequence[Course], starts: Sequence[Moment], dates: Sequence[Moment], path: Path, *, metric: str, never: str
) -> Path:
    """Draw a replay: what each policy saved so far, and the metric by week and each retrain, or, over many first dates,
    what it saved from each of them, and what that took."""
    others = [line for line in lines if line.name != never]
    styles: dict[str, tuple[str, Any]] = {line.name: LINES[i % len(LINES)] for i, line in enumerate(others)}
    styles[never] = (INK, "-")
    with _open_figure(path, (9, 6.4 + 0.26 * len(lines))) as figure:
        grid = figure.add_gridspec(3, 1, height_ratios=[2.2, 2.8, 0.5 + 0.3 * len(lines)])
        saved = figure.add_subplot(grid[1], title=f"error saved so far, in % of what `{never}` made")
        for line in lines:
            _draw_line(saved, starts, line.saved, styles[line.name], is_thin=line.name == never)
        _name_ends(saved, lines, starts, styles)
        top, bottom = figure.add_subplot(grid[0], sharex=saved), figure.add_subplot(grid[2])
        if len(dates) > 1:
            top.set_title(f"{metric} saved a row from each first date to the end")
            for line in lines:
                _draw_line(top, dates, line.gains, styles[line.name], is_thin=line.name == never, marker="o")
            _draw_costs(bottom, others, styles)
        else:
            top.set_title(f"{metric} by week")
            for line in lines:
                values = [math.nan if value is None else value for value in line.weeks]
                _draw_line(top, starts, values, styles[line.name], is_thin=line.name == never)
            bottom.sharex(saved)
            bottom.set_title("retrains: ● promoted   ○ refused")
            _draw_retrains(bottom, lines, styles)
            saved.tick_params(labelbottom=False)
        top.tick_params(labelbottom=False)
    return path


def _draw_line(
    axes: "Axes", x: Sequence[Any], y: Sequence[float], style: tuple[str, Any], *, is_thin: bool, marker: str = ""
) -> None:
    colour, dash = style
    width = 1.2 if is_thin else 1.7
    axes.plot(x, y, color=colour, linestyle=dash, linewidth=width, marker=marker, markersize=4)


def _name_ends(
    axes: "Axes", lines: Sequence[Course], starts: Sequence[Moment], styles: Mapping[str, tuple[str, Any]]
) -> None:
    """Each line's name at its end, apart from each other where the lines end together."""
    low, high = axes.get_ylim()
    least, last = (high - low) / 14, -math.inf
    for line in sorted(lines, key=lambda line: line.saved[-1]):
        last = max(line.saved[-1], last + least)
        end, place = (starts[-1], line.saved[-1]), (starts[-1] + (starts[-1] - starts[0]) / 60, last)
        axes.annotate(line.name, end, xytext=place, color=styles[line.name][0], fontsize=9, va="center")
    axes.set_ylim(low, max(high, last + least))


def _draw_retrains(axes: "Axes", lines: Sequence[Course], styles: Mapping[str, tuple[str, Any]]) -> None:
    for place, line in enumerate(reversed(lines)):
        colour = styles[line.name][0]
        refused = [moment for moment in line.retrains if moment not in set(line.promoted)]
        axes.plot(refused, [place] * len(refused), "o", color=colour, markersize=5, fillstyle="none")
        axes.plot(line.promoted, [place] * len(line.promoted), "o", color=colour, markersize=6)
    axes.set_yticks(range(len(lines)), [line.name for line in reversed(lines)])
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.grid(visible=False, axis="x")


def _draw_costs(axes: "Axes", lines: Sequence[Course], styles: Mapping[str, tuple[str, Any]]) -> None:
    axes.set_title("seconds of CPU of the retrains, a first date   (promoted, retrains)")
    for place, line in enumerate(reversed(lines)):
        axes.barh(place, line.cpu, color=styles[line.name][0], height=0.6)
        counts = [len(moments) / len(line.gains) for moments in (line.promoted, line.retrains)]
        text = f" {line.cpu:,.0f} s   ({counts[0]:.3g} of {counts[1]:.3g})"
        axes.annotate(text, (line.cpu, place), fontsize=9, va="center", color=INK)
    axes.set_yticks(range(len(lines)), [line.name for line in reversed(lines)])
    axes.set_xlim(0, 1.3 * max((line.cpu for line in lines), default=1.0) or 1.0)
    axes.grid(visible=False, axis="y")


# --- the parts -----------------------------------------------------------------------------------------------------


def _draw_diagonal(axes: "Axes", low: float = 0.0, high: float = 1.0) -> None:
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


def _read_column(rows: Sequence[Mapping[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))
