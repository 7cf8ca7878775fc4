"""score: the champion's predictions for the rows that have arrived, and the outcomes that have, → the journal.

The rows are those that the pipeline's features stage made at as_of, from one moment on: the as_of of the champion that
served when the journal began. Each is predicted once, by whoever was champion when it came. Run again, it adds nothing.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import log
from tasks.data import featurerows, manifest
from tasks.data.featurerows import Rows
from tasks.data.manifest import FeaturesManifest
from tasks.params import Params
from tasks.promotion.recipe import Recipe, fetch_recipe, rebuild_features
from tasks.promotion.registry import Registry, Version
from tasks.serving.journal import STALE, Journal, entry_of, subject
from tasks.training import model
from tasks.training.model import Floats, Spec

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

EVER = datetime(1700, 1, 1)
NONE: dict[str, Any] = {"label": None, "entry": None}  # no outcome yet


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


def score(p: Params, folder: Path, *, registry: Registry, journal: Journal) -> Scored:
    """Predict and journal what has arrived in the features of `folder`."""
    as_of = FeaturesManifest.read(folder / p.paths.features).as_of
    champion, limit = registry.champion(), manifest.read_limit(folder / p.paths.raw)
    rows = featurerows.read_rows(folder / p.paths.features)
    newest = rows.event_time[-1].astype("datetime64[us]").item() if len(rows) else None
    if champion is None:
        log.warning("no champion serves yet: nothing was scored. Run the retrain flow; the next run scores.")
        return Scored(as_of, None, 0, 0, newest, limit=limit)
    entries = entries_of(rows)
    made = journal.read("predictions", columns=["entry", "event_time", STALE])
    arrived = _arrived(rows, entries, _possible(made, limit), champion, as_of, limit)
    if arrived.any():
        new = predicted(p, folder, rows, entries, arrived, registry=registry, by=champion)
        journal.append("predictions", _named_anew(new, made))
    known = set(entries[arrived]) | set(_subjects(made))
    came = outcomes(rows, entries, known, journal)
    journal.append("outcomes", came)
    log.info("as of %s: %s predictions by version %s, %s outcomes", as_of, arrived.sum(), champion.number, len(came))
    return Scored(as_of, champion.number, int(arrived.sum()), len(came), newest, limit)


def _possible(made: "pa.Table", limit: datetime | None) -> "pa.Table":
    """Without what was journalled of times beyond the data: that date was wrong, and its row is predicted anew."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if limit is None or not made.num_rows:
        return made
    return made.filter(pc.less_equal(made["event_time"], pa.scalar(limit, pa.timestamp("us"))))


def _named_anew(new: "pa.Table", made: "pa.Table") -> "pa.Table":
    """Rows whose name the journal has already, under a wrong date, get another of the same subject."""
    import pyarrow as pa

    taken = set(made["entry"].to_pylist()) if made.num_rows else set()
    rows = zip(new["entry"].to_pylist(), new["event_time"].to_pylist(), strict=True)
    names = [f"{entry}.{entry_of(entry, time)}" if entry in taken else entry for entry, time in rows]
    return new.set_column(new.column_names.index("entry"), "entry", pa.array(names, pa.string()))


def entries_of(rows: Rows) -> "NDArray[Any]":
    """The name of each row's prediction (n), made of its key. Raises ValueError for a spine without one."""
    if rows.keys is None or not rows.keys.num_columns:
        raise ValueError("predictions are told apart by their key: name the spine table's in contract.<table>.key")
    columns = [rows.keys[name].to_pylist() for name in rows.keys.column_names]
    return np.array([entry_of(*key) for key in zip(*columns, strict=True)], dtype="U32")


def _arrived(
    rows: Rows,
    entries: "NDArray[Any]",
    made: "pa.Table",
    champion: Version,
    as_of: datetime,
    limit: datetime | None = None,
) -> "NDArray[np.bool_]":
    """The rows that nobody has predicted, since the first tick; before that, since the champion's own time. A stale
    answer of the API counts for none: its features lack what has become known since.

    What the API has predicted tells nothing of ticks: it is asked of events to come.
    """
    ticks = _ticked(made)
    begin = ticks[0] if ticks else _begin(champion, as_of, limit)
    if ticks and ticks[-1] > as_of:
        log.warning(
            "the journal has predictions up to %s: it is ahead of %s, and nothing is taken back", ticks[-1], as_of
        )
    return ~np.isin(entries, _subjects(without_stale(made))) & (rows.event_time >= np.datetime64(begin))


def _begin(champion: Version, as_of: datetime, limit: datetime | None) -> datetime:
    """The champion's own time. Of one whose time lies beyond the data nobody knows what it has seen: all rows count."""
    own = champion.learnt_until or as_of
    return own if limit is None or own <= limit else EVER


def _ticked(made: "pa.Table") -> list[datetime]:
    """The event times of what was predicted here, in their order."""
    if not made.num_rows:
        return []
    told = zip(made["entry"].to_pylist(), made["event_time"].to_pylist(), strict=True)
    return [at for entry, at in told if entry == subject(entry)]


def _subjects(made: "pa.Table") -> list[str]:
    """What was predicted already, here or by the API (tasks/serving)."""
    return [subject(entry) for entry in made["entry"].to_pylist()] if made.num_rows else []


def predicted(
    p: Params,
    folder: Path,
    rows: Rows,
    entries: "NDArray[Any]",
    which: "NDArray[np.bool_]",
    *,
    registry: Registry,
    by: Version,
) -> "pa.Table":
    """The journal's rows of these predictions: entry, made_at, version, event_time, score, key_*, and x_* the features.

    `score` is the calibrated probability, for several classes a list in the order of the model's, or the number.
    """
    import pyarrow as pa

    with tempfile.TemporaryDirectory() as scratch:
        recipe = fetch_recipe(registry, by, Path(scratch))
        table = _features_of(recipe, p, folder, rows).filter(which)
    found = recipe.model.predict(table)
    count = table.num_rows
    told = {
        "entry": pa.array(entries[which].tolist(), pa.string()),
        "made_at": pa.array([datetime.now(UTC).replace(tzinfo=None)] * count, pa.timestamp("us")),
        "version": pa.array([by.number] * count, pa.int64()),
        "event_time": pa.array(rows.event_time[which], pa.timestamp("us")),
        "score": _scores(found),
    }
    keys = rows.take(which).keys
    named = {f"key_{name}": keys[name] for name in keys.column_names} if keys else {}
    return pa.table(told | named | {f"x_{name}": table[name] for name in recipe.model.spec.names})


def _scores(found: Floats) -> "pa.Array":
    import pyarrow as pa

    return pa.array(found.astype(np.float64).tolist(), pa.float64() if found.ndim == 1 else pa.list_(pa.float64()))


def _features_of(recipe: Recipe, p: Params, folder: Path, rows: Rows) -> "pa.Table":
    """By the champion's own SQL, where today's is another. Both come from one spine, in one order."""
    own = rebuild_features(recipe, p, folder, rows)
    if len(own) != len(rows) or not (own.event_time == rows.event_time).all():
        raise ValueError(f"the champion's features.sql gives {len(own)} rows of the spine's {len(rows)}")
    return own.table


def outcomes(rows: Rows, entries: "NDArray[Any]", known: set[str], journal: Journal) -> "pa.Table":
    """The labels of journalled predictions that the journal does not have, or has otherwise: a correction is a row."""
    import pyarrow as pa

    latest = {row["of"]: row for row in _in_turn(journal.read("outcomes"))}
    there = model.is_labelled(rows.label) & np.isin(entries, list(known))
    new = [i for i in np.flatnonzero(there) if latest.get(str(entries[i]), NONE)["label"] != rows.label[i]]
    labels, times = rows.label[new], rows.known_at[new]
    of = entries[new].tolist()
    before = [latest.get(each, NONE)["entry"] for each in of]  # one corrected back is another row than the first
    parts = zip(of, labels.tolist(), times.astype("datetime64[us]"), before, strict=True)
    told = {
        "entry": [entry_of(*each) for each in parts],
        "of": of,
        "label": labels.tolist(),
        "known_at": pa.array(times, pa.timestamp("us")),
        "made_at": pa.array([datetime.now(UTC).replace(tzinfo=None)] * len(new), pa.timestamp("us")),
        "event_time": pa.array(rows.event_time[new], pa.timestamp("us")),
    }
    return pa.table(told)


def latest_outcomes(told: "pa.Table") -> dict[str, Any]:
    """The label of each prediction: of several, the one that was journalled last."""
    return {row["of"]: row["label"] for row in _in_turn(told)}


def _is_stale(made: "pa.Table") -> "NDArray[np.bool_]":
    if STALE not in made.column_names:
        return np.zeros(made.num_rows, dtype=bool)
    return np.array([value is True for value in made[STALE].to_pylist()], dtype=bool)


def without_stale(made: "pa.Table") -> "pa.Table":
    """Without the answers of a state that was too old for them: their features lack what was known."""
    return made.filter(~_is_stale(made))


def without_superseded(made: "pa.Table") -> "pa.Table":
    """Without the stale answers whose rows are predicted anew since: each such row counts once, with its features."""
    stale = _is_stale(made)
    if not stale.any():
        return made
    subjects = np.array(_subjects(made))
    return made.filter(~(stale & np.isin(subjects, subjects[~stale])))


def once(made: "pa.Table") -> "pa.Table":
    """Of several predictions of one subject, which the API may have been asked for, the last that was made."""
    names, times = _subjects(made), made["made_at"].to_pylist() if made.num_rows else []
    last = {names[place]: place for place in sorted(range(made.num_rows), key=times.__getitem__)}
    return made.take(sorted(last.values())) if made.num_rows else made


def features_of(rows: "pa.Table", spec: Spec) -> "pa.Table":
    """What the journal's rows hold of a model's features; one that nobody wrote down is missing."""
    import pyarrow as pa

    kinds = {"number": pa.float64(), "category": pa.string()}
    return pa.table({each.name: _typed(kinds[each.kind], f"x_{each.name}", rows) for each in spec.features})


def _typed(kind: "pa.DataType", name: str, rows: "pa.Table") -> Any:
    """A column that another version journalled as text is read as numbers again, or is missing."""
    import pyarrow as pa

    if name not in rows.column_names:
        return pa.nulls(rows.num_rows, kind)
    if pa.types.is_floating(kind) and not pa.types.is_string(rows[name].type):
        return rows[name]
    try:
        return rows[name].cast(kind)
    except pa.ArrowInvalid:
        return pa.nulls(rows.num_rows, kind)


def outcome_of(entry: str, came: Mapping[str, Any]) -> Any:
    """What came of a prediction, told under its own name or as of its subject; None where nothing did yet."""
    return came.get(entry, came.get(subject(entry)))


def _in_turn(told: "pa.Table") -> list[dict[str, Any]]:
    """Outcomes in the order in which they were journalled."""
    if not told.num_rows:
        return []
    listed: list[dict[str, Any]] = told.select(["entry", "of", "label", "made_at"]).to_pylist()
    return sorted(listed, key=lambda row: row["made_at"])
