"""picture: the loop in one picture: each version's loss by week, and what the version before it would have lost."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from tasks.monitoring.predecessor import read_mature
from tasks.monitoring.signal import read_signals
from tasks.params import Params
from tasks.promotion.contest import align_classes, row_losses
from tasks.promotion.ledger import CHAMPION_CHANGES
from tasks.promotion.recipe import fetch_model
from tasks.promotion.registry import Registry
from tasks.serving.journal import Journal
from tasks.serving.predictions import features_of
from tasks.training.model import Floats

COLOURS = ("#4c72b0", "#2e8b57", "#c44e52", "#8172b3")  # of the versions, in the order in which they served
SIZE_INCHES, DOTS_PER_INCH = (8, 3.4), 100
WEEK = timedelta(days=7)


@dataclass(frozen=True)
class Curve:
    """The mean loss of a version, by week."""

    version: int
    weeks: list[datetime]  # their ends
    losses: list[float]


def draw_loop(p: Params, registry: Registry, journal: Journal, *, until: datetime, path: Path) -> None:
    """Draw who served when, what it lost, and the drift alarms. Only outcomes that are mature at `until` count."""
    from matplotlib import dates, pyplot

    promotions = read_promotions(registry)
    colours = dict(zip(promotions, COLOURS, strict=False))
    axes: Any  # its types know no dates
    day_and_month: Any = dates.DateFormatter
    figure, axes = pyplot.subplots(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    for number, moment in promotions.items():
        axes.axvline(moment, color=colours.get(number), linewidth=1)
        axes.annotate(f" version {number} serves", (moment, 1.02), xycoords=("data", "axes fraction"))
        for curve in measure_curves(p, registry, journal, number, until=until):
            is_own = curve.version == number
            label = f"version {curve.version}{'' if is_own else f', on the rows of {number}'}"
            axes.plot(
                curve.weeks, curve.losses, "o-" if is_own else "o:", color=colours.get(curve.version), label=label
            )
    alarms = [signal.window_end for signal in read_signals(journal) if signal.kind == "drift" and signal.alarm]
    axes.plot(alarms, np.full(len(alarms), axes.get_ylim()[0]), "v", color="#c44e52", label="drift alarm")
    axes.set_ylabel("log loss of the week")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(day_and_month("%d %b"))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def read_promotions(registry: Registry) -> dict[int, datetime]:
    """When each version began to serve, the newest last."""
    changes = (entry for entry in registry.read_ledger() if entry.mark in CHAMPION_CHANGES)
    return {entry.version: entry.as_of for entry in changes if entry.version}


def measure_curves(p: Params, registry: Registry, journal: Journal, number: int, *, until: datetime) -> Iterator[Curve]:
    """The weekly losses on the rows that a version predicted: its own, and its predecessor's on the same rows."""
    version = registry.read_version(number)
    model = fetch_model(registry, version)
    rows = read_mature(journal, version, model.spec, until=until - p.label.deadline)
    if not len(rows.codes):
        return
    start = rows.times[0].astype("datetime64[D]")
    week_of = ((rows.times - start) / np.timedelta64(WEEK)).astype(int)
    weeks, counts = np.unique(week_of, return_counts=True)
    weeks = weeks[counts >= np.median(counts) / 2]  # days at an end are no week
    ends = [(start + np.timedelta64(WEEK) * (week + 1)).astype(datetime) for week in weeks]
    scores: dict[int, Floats] = {number: np.array(rows.rows["score"].to_pylist(), dtype=np.float64)}
    if before := registry.find_predecessor(version):
        earlier = fetch_model(registry, before)
        again = earlier.predict(features_of(rows.rows, earlier.spec))
        scores[before.number] = align_classes(model.spec, earlier.spec.classes, again)
    for scored_by, values in scores.items():
        losses = row_losses(rows.codes, values, metric=p.gate.metric)
        yield Curve(scored_by, ends, [float(losses[week_of == week].mean()) for week in weeks])
