"""score: the champion's predictions for the rows that have arrived, and the outcomes that have, → the journal.

The rows are those that the pipeline's features stage made at as_of, from one moment on: the as_of of the champion that
served when the journal began. Each is predicted once, by whoever was champion when it came. Run again, it adds nothing.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks import log, params
from tasks.data import featurerows, manifest
from tasks.promotion.recipe import fetch_recipe, rebuild_features
from tasks.promotion.registry import Registry, Version
from tasks.serving import predict, schema
from tasks.serving.journal import Journal
from tasks.serving.predictions import drop_stale, in_order
from tasks.training import model

EVER = datetime(1700, 1, 1)
NO_OUTCOME: dict[str, Any] = {"label": None, "entry": None}


@dataclass(frozen=True)
class Scored:
    """What one run added: predictions, and outcomes of predictions. `version` is None where nobody serves yet.
    `newest` is the event time of the last row that there is, `limit` the latest as_of that the sources allow."""

    as_of: datetime
    version: int | None
    predictions: int
    outcomes: int
    newest: datetime | None = None
    limit: datetime | None = None


def score(p: params.Params, folder: Path, *, registry: Registry, journal: Journal) -> Scored:
    """Predict and journal what has arrived in the features of `folder`."""
    as_of = manifest.FeaturesManifest.read(folder / p.paths.features).as_of
    champion, limit = registry.find_champion(), manifest.read_limit(folder / p.paths.raw)
    rows = featurerows.read_rows(folder / p.paths.features)
    newest = rows.event_time[-1].astype("datetime64[us]").item() if len(rows) else None
    if champion is None:
        log.warning("no champion serves yet: nothing was scored. Run the retrain flow; the next run scores.")
        return Scored(as_of, None, 0, 0, newest, limit=limit)
    subjects = subjects_of_keys(rows)
    made = journal.read("predictions", columns=["entry", "subject", "by", "event_time", "stale"])
    arrived = _arrived(rows, subjects, _possible(made, limit), champion, as_of, limit)
    if arrived.any():
        new = predict_arrived(p, folder, rows, subjects, arrived, registry=registry, champion=champion)
        journal.append("predictions", _name_again(new, made))
    predicted = set(subjects[arrived]) | set(made["subject"].to_pylist() if made.num_rows else [])
    new_outcomes = find_outcomes(rows, subjects, predicted, journal)
    journal.append("outcomes", new_outcomes)
    count = int(arrived.sum())
    log.info("as of %s: %s predictions by version %s, %s outcomes", as_of, count, champion.number, len(new_outcomes))
    return Scored(as_of, champion.number, count, len(new_outcomes), newest, limit)


def _possible(made: pa.Table, limit: datetime | None) -> pa.Table:
    """Without predictions for times beyond the data: that date was wrong, and the row is predicted again."""
    if limit is None or not made.num_rows:
        return made
    return made.filter(pc.less_equal(made["event_time"], pa.scalar(limit, pa.timestamp("us"))))


def _name_again(new: pa.Table, made: pa.Table) -> pa.Table:
    """Rows whose entry the journal has already, under a wrong date, get another entry."""
    taken = set(made["entry"].to_pylist()) if made.num_rows else set()
    rows = zip(new["entry"].to_pylist(), new["event_time"].to_pylist(), strict=True)
    entries = [schema.make_entry(entry, time) if entry in taken else entry for entry, time in rows]
    return new.set_column(new.column_names.index("entry"), "entry", pa.array(entries, pa.string()))


def subjects_of_keys(rows: featurerows.Rows) -> NDArray[Any]:
    """What each row's prediction is about (n), made from its key. Raises ValueError for a spine without one."""
    if rows.keys is None or not rows.keys.num_columns:
        raise ValueError(
            "predictions are told apart by their key, and the spine's table has none: name the columns that tell its "
            "rows apart in contract.<table>.key of params.yaml"
        )
    columns = [rows.keys[name].to_pylist() for name in rows.keys.column_names]
    return np.array([schema.make_entry(*key) for key in zip(*columns, strict=True)], dtype="U32")


def _arrived(
    rows: featurerows.Rows,
    subjects: NDArray[Any],
    made: pa.Table,
    champion: Version,
    as_of: datetime,
    limit: datetime | None = None,
) -> NDArray[np.bool_]:
    """The rows that nobody has predicted since the first tick, or before the first tick since the champion's own time.

    A stale answer does not count: its features lack what has become known since. The API's predictions say nothing of
    ticks: it is asked about events to come.
    """
    ticks = made.filter(pc.equal(made["by"], "batch"))["event_time"].to_pylist() if made.num_rows else []
    own = champion.learnt_until or as_of
    begin = own if limit is None or own <= limit else EVER  # a time beyond the data says nothing: all rows count
    begin = ticks[0] if ticks else begin
    if ticks and ticks[-1] > as_of:
        log.warning(
            "the journal has predictions up to %s: it is ahead of %s, and nothing is taken back", ticks[-1], as_of
        )
    predicted = drop_stale(made)["subject"].to_pylist() if made.num_rows else []
    return ~np.isin(subjects, predicted) & (rows.event_time >= np.datetime64(begin))


def predict_arrived(
    p: params.Params,
    folder: Path,
    rows: featurerows.Rows,
    subjects: NDArray[Any],
    which: NDArray[np.bool_],
    *,
    registry: Registry,
    champion: Version,
) -> pa.Table:
    """The journal's rows of these predictions (schema.py), with the features that the champion's own SQL makes."""
    recipe = fetch_recipe(registry, champion)
    own = rebuild_features(recipe, p, folder, rows).load()
    if len(own) != len(rows) or not (own.event_time == rows.event_time).all():
        raise ValueError(f"the champion's features.sql gives {len(own)} rows of the spine's {len(rows)}")
    table = own.table.filter(which)
    count, entries, keys = table.num_rows, pa.array(subjects[which].tolist(), pa.string()), rows.take(which).keys
    columns = {
        "entry": entries,  # one prediction of each row, so its subject names it
        "event_time": pa.array(rows.event_time[which], pa.timestamp("us")),
        "made_at": pa.array([datetime.now(UTC).replace(tzinfo=None)] * count, pa.timestamp("us")),
        "subject": entries,
        "by": pa.repeat("batch", count),
        "arm": pa.repeat("champion", count),
        "version": pa.repeat(champion.number, count),
        "stale": pa.repeat(False, count),
        "score": predict.score_column(recipe.model.predict(table).astype(np.float64)),
    }
    columns |= {f"{schema.KEY}{name}": keys[name] for name in keys.column_names} if keys else {}
    return pa.table(columns | {f"{schema.FEATURE}{name}": table[name] for name in recipe.model.spec.names})


def find_outcomes(rows: featurerows.Rows, subjects: NDArray[Any], predicted: set[str], journal: Journal) -> pa.Table:
    """The labels of predicted rows that the journal does not have, or has otherwise: a correction is a new row."""
    latest = {row["subject"]: row for row in in_order(journal.read("outcomes")) if row["subject"]}
    is_new = model.is_labelled(rows.label) & np.isin(subjects, list(predicted))
    new = [i for i in np.flatnonzero(is_new) if latest.get(str(subjects[i]), NO_OUTCOME)["label"] != rows.label[i]]
    labels, times, names = rows.label[new], rows.known_at[new], subjects[new].tolist()
    before = [latest.get(name, NO_OUTCOME)["entry"] for name in names]  # one corrected back is another than the first
    parts = zip(names, labels.tolist(), times.astype("datetime64[us]"), before, strict=True)
    columns = {
        "entry": pa.array([schema.make_entry(*part) for part in parts], pa.string()),
        "event_time": pa.array(rows.event_time[new], pa.timestamp("us")),
        "made_at": pa.array([datetime.now(UTC).replace(tzinfo=None)] * len(new), pa.timestamp("us")),
        "prediction": pa.nulls(len(new), pa.string()),
        "subject": pa.array(names, pa.string()),
        "label": labels.tolist(),
        "known_at": pa.array(times, pa.timestamp("us")),
    }
    return pa.table(columns)
