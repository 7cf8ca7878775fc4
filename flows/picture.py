"""picture: the loop in one picture: the loss of each week, and where another version began to serve."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.monitoring.signal import Signal

COLOURS = ("#4c72b0", "#2e8b57", "#c44e52", "#8172b3")
SIZE_INCHES, DOTS_PER_INCH = (8, 3.6), 100


def draw_loop(signals: Sequence[Signal], promotions: Mapping[int, datetime], path: Path) -> None:
    """Draw the weekly loss of each version with its interval, and what the version before the last would have lost.

    Args:
        signals: Of the monitor, in any order.
        promotions: When each version began to serve.
        path: Of the PNG.
    """
    from matplotlib import pyplot

    axes: Any  # its types know no dates
    figure, axes = pyplot.subplots(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    for colour, version in zip(COLOURS, sorted(promotions), strict=False):
        weeks = [signal for signal in signals if signal.kind == "performance" and signal.version == version]
        _draw_weeks(axes, [week for week in weeks if week.value is not None], version, colour)
        axes.axvline(promotions[version], color=colour, linewidth=1)
        axes.annotate(f" version {version} serves", (promotions[version], 1.01), xycoords=("data", "axes fraction"))
    comparisons = [signal for signal in signals if signal.kind == "predecessor" and "candidate" in signal.detail]
    if comparisons:
        _draw_predecessor(axes, max(comparisons, key=lambda signal: signal.window_end))
    axes.set_ylabel("log loss of the week")
    axes.legend(loc="lower left", frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.autofmt_xdate(rotation=0, ha="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def _draw_weeks(axes: Any, weeks: Sequence[Signal], version: int, colour: str) -> None:
    weeks = sorted(weeks, key=lambda week: week.window_end)
    ends = [week.window_end for week in weeks]
    axes.plot(ends, [week.value for week in weeks], "o-", color=colour, label=f"version {version}")
    bounds = [(week.window_end, week.low, week.high) for week in weeks if week.low is not None]
    for end, low, high in bounds:
        axes.plot([end, end], [low, high], color=colour, alpha=0.3, linewidth=4)
    for reference in {week.reference for week in weeks}:
        axes.plot(ends, [reference] * len(ends), ":", color=colour)


def _draw_predecessor(axes: Any, comparison: Signal) -> None:
    """On all rows that the champion predicted so far: its own mean loss, and its predecessor's on the same rows."""
    span = [comparison.window_begin, comparison.window_end]
    before = comparison.detail["predecessor"]
    axes.plot(span, [comparison.detail["candidate"]] * 2, "--", color="black", label=f"version {before}, on its rows")
    axes.plot(span, [comparison.detail["champion"]] * 2, "-", color="black", label="its own mean")
