"""window: what the journal holds of a window of event time, read once, and the champion whose window it is."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.data import timeline
from tasks.monitoring.drift import NOT_COMPARED, Comparison, compare, compare_scores
from tasks.monitoring.excess import AtPromotion, measure_holdout
from tasks.params import Params, home
from tasks.promotion import contest
from tasks.promotion.evidence import Kept, read_kept
from tasks.promotion.registry import Registry, Version
from tasks.promotion.tags import RECIPE
from tasks.serving import predictions, schema
from tasks.serving.journal import Journal
from tasks.serving.predictions import Outcomes, latest_outcomes, read_outcomes
from tasks.training.holdout import CANDIDATE, Holdout
from tasks.training.model import Floats, Model
from tasks.training.profile import Profile

FILES = ("model.ubj", "twin.ubj", "reports/profile.json", "reports/holdout.parquet", "reports/reference.parquet")
LEAST_COVERAGE = 0.9  # of a window's rows hold all features of the champion, or its drift is not measured


# --- the champion --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched:
    """The champion and its history."""

    version: Version
    model: Model
    twin: Model  # trained without the holdout: what the gate judged
    p: Params
    profile: Profile
    holdout: Holdout
    holdout_losses: Floats  # the twin's, row by row
    at_promotion: AtPromotion
    sample: pa.Table  # rows of the history with their scores, for the report
    evidence: Kept | None = None  # of past fits of its recipe, as the last look left it


def load_watched(p: Params, registry: Registry, champion: Version) -> Watched:
    """What the registry holds of the champion."""
    with tempfile.TemporaryDirectory() as scratch:
        files = (registry.runs.fetch(champion.run_id, name, Path(scratch)) for name in FILES)
        watched = read_watched(p, champion, *files)
    recipe = champion.tags.get(RECIPE)
    return replace(watched, evidence=read_kept(home() / "evidence" / recipe) if recipe else None)


def read_watched(p: Params, version: Version, *files: Path) -> Watched:
    """The same from FILES, as train and evaluate write them.

    Raises:
        ValueError: a file is in another format.
    """
    model, twin = (Model.load(path) for path in files[:2])
    profile, holdout, sample = Profile.load(files[2]), Holdout.load(files[3]), pq.read_table(files[4])
    codes = model.spec.encode_label(holdout.label)
    scores = holdout.predictions[CANDIDATE]
    losses = contest.row_losses(codes, scores, metric=p.gate.metric)
    at_promotion = measure_holdout(codes, scores, losses, holdout.times, p.gate)
    return Watched(version, model, twin, p, profile, holdout, losses, at_promotion, sample)


# --- its window ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """The champion's own predictions of since <= event_time < until, and the outcomes that have come (n)."""

    since: datetime
    until: datetime
    times: NDArray[np.datetime64]
    scores: Floats
    labels: NDArray[Any]  # None where there is no outcome
    rows: pa.Table | None = None  # as they are journalled

    @property
    def is_labelled(self) -> NDArray[np.bool_]:
        return np.array([label is not None for label in self.labels], dtype=bool)

    @property
    def span(self) -> str:
        return f"from {self.since:%Y-%m-%d %H:%M} to {self.until:%Y-%m-%d %H:%M}"


NO_PREDICTIONS = Predictions(datetime.min, datetime.min, np.zeros(0, dtype="datetime64[us]"), np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class Window:
    """What the journal tells at as_of. Drift's window begins at `since`, that of `mature` earlier: see the page."""

    since: datetime
    as_of: datetime
    mature: Predictions = NO_PREDICTIONS  # so old that label.deadline has passed
    early: Predictions = NO_PREDICTIONS  # whose labels have come, as a rule, though label.deadline has not passed
    recent: Predictions = NO_PREDICTIONS  # the newest, with or without outcomes
    features: pa.Table | None = None  # of all versions that recorded each of the champion's features (n)
    scores: Floats | None = None  # the champion's, of those rows (n)
    drift: Comparison = NOT_COMPARED  # of the features with the champion's history
    score_drift: Comparison = NOT_COMPARED
    is_whole: bool = True  # whether rows could come from all of it
    rows: int = 0  # that came, of any version
    rows_before: int = 0  # in the window before
    newest: datetime | None = None  # event time "now", by what is journalled


def read_window(journal: Journal, watched: Watched, as_of: datetime) -> Window:
    """The window that ends at as_of."""
    p, profile = watched.p, watched.profile
    since = as_of - profile.window  # thresholds hold for windows of the length that they come from
    until = as_of - p.label.deadline
    begin = until - p.monitor.window
    index = journal.read("predictions", columns=["entry", "subject", "by", "event_time", "made_at", "stale"])
    made = journal.read("predictions", since=min(since, begin), until=as_of)
    outcomes = latest_outcomes(read_outcomes(journal, since=begin))
    rows = count_rows(index, since, as_of)
    features, times = select_features(_between(made, since, as_of), watched)
    scores = watched.model.predict(features) if len(times) else np.zeros(0)
    false_alarms, early = p.drift.false_alarms, profile.early_labels
    early_until = as_of - early.age if early else until
    return Window(
        since,
        as_of,
        mature=select_predictions(made, outcomes, watched.version, begin, until),
        early=select_predictions(made, outcomes, watched.version, early_until - p.monitor.window, early_until),
        recent=select_predictions(made, None, watched.version, as_of - p.monitor.window, as_of),
        features=features,
        scores=scores,
        drift=compare(profile, features, times, false_alarms=false_alarms),
        score_drift=compare_scores(profile, scores, times, false_alarms=false_alarms),
        is_whole=count_rows(index, datetime.min, since + profile.unit) > 0 and len(times) >= LEAST_COVERAGE * rows,
        rows=rows,
        rows_before=count_rows(index, since - profile.window, since),
        newest=find_newest(index, now=as_of),
    )


def select_predictions(
    made: pa.Table, outcomes: Outcomes | None, champion: Version, since: datetime, until: datetime
) -> Predictions:
    """The champion's own of the rows `made`, the last of each subject, with their outcomes."""
    rows = predictions.last_of_each_subject(select_unseen(_between(made, since, until), champion))
    labels = np.empty(rows.num_rows, dtype=object)
    labels[:] = outcomes.labels_of(rows) if outcomes else None
    scores = np.array(rows["score"].to_pylist(), dtype=np.float64)
    return Predictions(since, until, rows["event_time"].to_numpy(), scores, labels, rows)


def select_unseen(made: pa.Table, champion: Version) -> pa.Table:
    """The champion's own predictions, without those of rows that it was trained on.

    A retrain whose as_of is ahead of the journal leaves such rows for its own model to predict.
    """
    own = predictions.select_version(made, champion.number)
    return _between(own, champion.learnt_until or datetime.min, datetime.max)


def select_features(rows: pa.Table, watched: Watched) -> tuple[pa.Table, NDArray[np.datetime64]]:
    """The features of all versions that recorded each of the champion's: what nobody wrote down has not gone missing.

    Returns:
        The table (n), and the times of its rows (n).
    """
    rows = predictions.drop_superseded(rows)
    columns = [f"{schema.FEATURE}{name}" for name in watched.model.spec.names]
    numbers = [
        number
        for number in pc.unique(rows["version"]).to_pylist()
        if number == watched.version.number or _has_values(predictions.select_version(rows, number), columns)
    ]
    rows = rows.filter(pc.is_in(rows["version"], pa.array(numbers, pa.int64())))
    return predictions.features_of(rows, watched.model.spec), rows["event_time"].to_numpy()


def _has_values(rows: pa.Table, columns: Sequence[str]) -> bool:
    return all(name in rows.column_names and rows[name].null_count < rows.num_rows for name in columns)


def _between(rows: pa.Table, since: datetime, until: datetime) -> pa.Table:
    times = rows["event_time"].to_numpy()
    return rows.filter((times >= np.datetime64(since, "us")) & (times < np.datetime64(until, "us")))


def count_rows(index: pa.Table, since: datetime, until: datetime) -> int:
    """How many rows were predicted, each once, by whatever version."""
    return int(predictions.drop_superseded(_between(index, since, until)).num_rows)


def find_newest(index: pa.Table, *, now: datetime | None = None) -> datetime | None:
    """The event time of the last row that was predicted and has happened, and so event time "now".

    What a tick predicts has arrived, where ticks are dense or the state has come so far: one far ahead was misdated.
    The API is asked of events to come too: those count when they are past, by the clock on the wall, and by `now`, the
    state's event time, where history is replayed.
    """
    rows = list(zip(*(index[name].to_pylist() for name in ("by", "event_time", "made_at")), strict=True))
    ticks = [time for by, time, _ in rows if by == "batch"]
    end = timeline.draw_timeline(np.array(ticks, dtype="datetime64[us]")).dense_end if ticks else datetime.min
    reached = max(end, now or end)
    past = [time for time in ticks if time <= reached]
    past += [time for by, time, made in rows if by != "batch" and time <= min(made, now or made)]
    return max(past, default=None)


def read_newest(journal: Journal, *, now: datetime | None = None) -> datetime | None:
    """The same, from the journal."""
    return find_newest(journal.read("predictions", columns=["entry", "by", "event_time", "made_at"]), now=now)
