"""skew: are the features that the champion predicted with those that are computed of the same rows today?

Training takes features from history, predictions took theirs when history was not yet whole. Where the two differ, the
model is trained on what it does not get. No probe for leaks (tasks/data/leaks.py) sees a static table that was made of
outcomes, or a source that is rewritten later; this comparison does, as soon as it changes. It names the columns and
decides nothing: a row that was delivered late, or corrected, may change a feature too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.data import featurerows, leaks
from tasks.data.manifest import FeaturesManifest
from tasks.params import Params
from tasks.promotion import recipe
from tasks.promotion.registry import Registry, Version, open_registry
from tasks.serving import predictions, score
from tasks.serving.journal import Journal

Origin = Literal["score", "API"]
NAMES: dict[Origin, str] = {"score": "the score flow", "API": "the API"}
WHY: dict[Origin, str] = {
    "score": (
        "Either rows were delivered late or corrected since, or features.sql reads what changes afterwards: a static "
        "table that is made anew, or a table whose known_at is too early."
    ),
    "API": (
        "An answer of the API knows what the state knew that the score flow had published last, so features of recent "
        "events may lag; other columns should not differ."
    ),
}


@dataclass(frozen=True)
class Column:
    """A feature that differs: in how many of the rows, and the last of them with both values."""

    name: str
    origin: Origin
    differing: int
    rows: int
    event_time: datetime
    journalled: Any
    recomputed: Any


@dataclass(frozen=True)
class Skew:
    """What came of the comparison. `compared` counts the rows of each origin; `gone` those that the tables lack now."""

    version: int
    since: datetime
    until: datetime
    compared: dict[Origin, int]
    gone: int
    columns: tuple[Column, ...]


def compare(p: Params, folder: Path, *, journal: Journal, champion: Version, registry: Registry | None = None) -> Skew:
    """The champion's journalled features of the last monitor.window against those that its own features.sql gives on
    the tables that a pipeline run left in `folder`.

    Args:
        registry: None: it is opened where there is anything to compare.
    """
    until = FeaturesManifest.read(folder / p.paths.features).as_of
    since = until - p.monitor.window
    made = predictions.drop_stale(journal.read("predictions", since=since, until=until))  # features of another moment
    journalled = predictions.last_of_each_subject(predictions.select_version(made, champion.number))
    if not journalled.num_rows:
        return Skew(champion.number, since, until, {}, 0, ())
    rows = featurerows.read_rows(folder / p.paths.features)
    own_recipe = recipe.fetch_recipe(registry or open_registry(p.registry), champion)
    own = recipe.rebuild_features(own_recipe, p, folder, rows).load()
    places = {subject: place for place, subject in enumerate(score.subjects_of_keys(own).tolist())}
    there = np.array([subject in places for subject in journalled["subject"].to_pylist()], dtype=bool)
    is_answer = np.array([by != "batch" for by in journalled["by"].to_pylist()], dtype=bool)
    compared: dict[Origin, int] = {}
    columns: list[Column] = []
    by_origin: dict[Origin, NDArray[np.bool_]] = {"score": there & ~is_answer, "API": there & is_answer}
    for origin, mask in by_origin.items():
        if mask.any():
            chosen = journalled.filter(mask)
            today = own.table.take(np.array([places[subject] for subject in chosen["subject"].to_pylist()], np.int64))
            compared[origin] = chosen.num_rows
            then = predictions.features_of(chosen, own_recipe.model.spec)
            columns += compare_rows(then, today, chosen["event_time"], origin)
    return Skew(champion.number, since, until, compared, int((~there).sum()), tuple(columns))


def compare_rows(
    journalled: pa.Table, recomputed: pa.Table, event_time: pa.ChunkedArray, origin: Origin
) -> list[Column]:
    """The columns that differ between two tables of the same rows, the most often first."""
    differences = leaks.find_differences(journalled, recomputed)
    columns = [
        Column(name, origin, one.count, len(journalled), event_time[one.place].as_py(), one.one, one.other)
        for name, one in differences.items()
    ]
    return sorted(columns, key=lambda column: -column.differing)


def describe(skew: Skew) -> list[str]:
    """For people, a sentence each: how much was compared, and what differs."""
    span = f"from {skew.since} to {skew.until}"
    if not skew.compared:
        return [f"Version {skew.version} has no journalled predictions {span} whose features could be computed again."]
    counts = " and ".join(f"{count:,} rows of {NAMES[origin]}" for origin, count in skew.compared.items())
    lines = [f"The features of {counts} by version {skew.version}, {span}, were computed again."]
    if skew.gone:
        lines.append(f"{skew.gone:,} journalled rows are not in today's tables.")
    for origin in skew.compared:
        sentences = [
            f"`{column.name}` differs in {column.differing:,} of {column.rows:,} rows of {NAMES[origin]}: that of "
            f"{column.event_time} was journalled with {column.journalled}, and is {column.recomputed} now."
            for column in skew.columns
            if column.origin == origin
        ]
        lines += [*sentences, WHY[origin]] if sentences else []
    return lines if skew.columns else [*lines, "None differs."]


def to_rows(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """As a table for the Prefect UI."""
    return [
        {
            "feature": column.name,
            "predicted by": column.origin,
            "rows that differ": f"{column.differing:,} of {column.rows:,}",
            "example": str(column.event_time),
            "journalled": column.journalled,
            "computed again": column.recomputed,
        }
        for column in columns
    ]
