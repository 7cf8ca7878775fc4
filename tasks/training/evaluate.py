"""evaluate: the twin and the baselines on the holdout → metrics, leaderboard, slices, curves, importances.

    python -m tasks.training.evaluate

The baselines learn from the rows that the twin learnt from. What the gate needs of every row goes to
reports/holdout.parquet; what the monitor needs of the history goes to profile.json and reference.parquet.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import log
from tasks.data import featuresql, manifest, storedrows
from tasks.data.featurerows import Rows
from tasks.data.storedrows import AnyRows
from tasks.params import Params
from tasks.runtime import files, stage
from tasks.training import baselines, fitting, holdout, labels, metrics, model, profile, split
from tasks.training.model import Floats, Model, Spec

SAMPLE_ROWS = 4000  # of the history, in reference.parquet, which the drift report draws
SHAP_ROWS = 1000  # of the holdout: exact SHAP values of deep trees take about 3 ms a row


def evaluate(p: Params, folder: Path = Path()) -> None:
    """Write the reports. Raises ValueError when history does not reach behind the holdout."""
    source, models, reports = (folder / path for path in (p.paths.features, p.paths.models, p.paths.reports))
    rows = storedrows.open_rows(source, memory=p.stage.memory_bytes)
    as_of = manifest.FeaturesManifest.read(source).as_of
    featuresql.check_slices(p.evaluate.slices, rows.schema.names)
    span, labelled = split.find_holdout(as_of, p.split, deadline=p.label.deadline), model.is_labelled(rows.label)
    twin = Model.load(models / "twin.ubj")
    due = rows.take(split.select_holdout(rows.event_time, span, labelled))
    held = keep_known_classes(due, twin.spec)
    seen = fitting.take_training(rows, span.begin, p)
    scores = predict_rows(twin, held)
    fits = {name: baselines.BASELINES[name] for name in p.evaluate.baselines}
    rivals = {name: fit(seen, held, twin.spec, p.stage.threads) for name, fit in fits.items()}
    predictions = {holdout.CANDIDATE: scores} | rivals
    board = {name: metrics.measure(twin.spec, held.label, values) for name, values in predictions.items()}
    board[holdout.CANDIDATE] |= {"unseen_class_rows": len(due) - len(held)} if p.label.task == "multiclass" else {}
    contributions = twin.contributions(take_evenly(held, SHAP_ROWS).table)
    importances = metrics.list_importances(twin.spec, contributions)
    _write_board(p, reports, board)
    files.publish_json(reports / "slices.json", _measure_slices(p, twin.spec, held, scores))
    metrics.write_csv(reports / "importance.csv", importances)
    for curve, draw in (("roc", metrics.draw_roc), ("calibration", metrics.draw_calibration)):
        metrics.write_csv(reports / "curves" / f"{curve}.csv", draw(twin.spec, held.label, scores))
    for path in sorted((models / "twins").glob("*.ubj")):
        predictions[f"{holdout.CANDIDATE}_{path.stem}"] = predict_rows(Model.load(path), held)
    # A number such as 1e9 + delay has more digits than float32 holds.
    kind: type[np.floating[Any]] = np.float64 if p.label.task == "regression" else np.float32
    rounded = {name: values.astype(kind) for name, values in predictions.items()}
    holdout.write_holdout(reports / "holdout.parquet", held, rounded, p.evaluate.slices)
    columns = profile.to_score_columns(scores, twin.spec.classes)
    start = as_of - p.split.window if p.split.window else None
    history = rows.take(split.select_between(rows.event_time, start, as_of))
    importance = {row["feature"]: row["importance"] for row in importances}
    made = _profile_history(p, history, as_of, held, columns, importance, contributions)
    files.publish_text(reports / "profile.json", made.to_json())
    write_sample(reports / "reference.parquet", history, held, columns, names=twin.spec.names)
    brief = ", ".join(f"{name} {value:g}" for name, value in list(board[holdout.CANDIDATE].items())[:4])
    log.info("holdout %s to %s: %s", span.begin, span.end, brief)


def keep_known_classes(held: AnyRows, spec: Spec) -> AnyRows:
    """The rows of classes that training has seen. No model can score others: they are left out, with a warning."""
    is_known = ~np.isnan(spec.encode_label(held.label))
    unseen = model.list_labels(held.label[~is_known])
    if not is_known.any():
        raise ValueError(
            f"the holdout's {len(is_known)} rows are all of classes that training has not seen, {unseen[:5]}; it knows "
            f"{list(spec.classes)[:5]}. Wait for more data, shorten split.holdout, or mend label.expression."
        )
    if unseen:
        count, names = (~is_known).sum(), unseen[:5]
        log.warning("%s rows of the holdout are of a class that training has not seen, %s; left out", count, names)
    return held.take(is_known)


def predict_rows(fitted: Model, rows: AnyRows) -> Floats:
    """What a model says of rows (n), a block at a time: (n,), or (n, classes)."""
    return np.concatenate([fitted.predict(block) for block in rows.read_blocks()])


def take_evenly(rows: AnyRows, size: int) -> Rows:
    """So many rows, drawn evenly over time, in memory; all of them where there are fewer."""
    drawn = np.zeros(len(rows), dtype=bool)
    drawn[profile.draw_evenly(len(rows), size)] = True
    return rows.take(drawn).load()


def _write_board(p: Params, reports: Path, board: dict[str, dict[str, float]]) -> None:
    """metrics.json, headline.json and leaderboard.json: every model on the same rows, the best first."""
    glance = {
        name: {metric: scores[metric] for metric in sorted({p.gate.metric, "auc", "mae"} & scores.keys())}
        for name, scores in board.items()
    }
    headline = glance.pop(holdout.CANDIDATE)
    others = {f"{name}.{metric}": value for name, scores in glance.items() for metric, value in scores.items()}
    files.publish_json(reports / "metrics.json", board[holdout.CANDIDATE] | others)
    files.publish_json(reports / "headline.json", {"holdout": headline})
    rows: list[dict[str, Any]] = [{"model": name} | scores for name, scores in board.items()]
    files.publish_json(reports / "leaderboard.json", sorted(rows, key=lambda row: row[p.gate.metric]))


def _measure_slices(p: Params, spec: Spec, held: AnyRows, scores: Floats) -> list[dict[str, Any]]:
    rows, label = [], held.label
    for name in p.evaluate.slices:
        values = np.asarray(held.read_column(name).to_pylist(), dtype=object)
        for value in sorted({value for value in values.tolist() if value is not None}, key=str):
            mask = values == value
            if mask.sum() >= p.evaluate.slice_rows:
                rows.append({"slice": name, "value": value} | metrics.measure(spec, label[mask], scores[mask]))
    return rows


def _profile_history(
    p: Params,
    history: AnyRows,
    as_of: datetime,
    held: AnyRows,
    scores: dict[str, Floats],
    importance: dict[str, float],
    contributions: Floats,
) -> profile.Profile:
    mature = history.take(history.event_time < np.datetime64(as_of - p.label.deadline))
    with_label, times = model.is_labelled(mature.label), mature.event_time
    return profile.build_profile(
        history,
        names=list(importance),
        importance=importance,
        contributions=contributions.mean(axis=0),
        scores=scores,
        score_times=held.event_time,
        until=as_of,
        window=p.monitor.window,
        labelled=labels.find_labelled_share(with_label, times, p.monitor.window),
        early_labels=labels.find_early_labels(
            with_label, times, mature.known_at, window=p.monitor.window, deadline=p.label.deadline
        ),
    )


def write_sample(
    path: Path, history: AnyRows, held: AnyRows, scores: dict[str, Floats], *, names: Sequence[str] | None = None
) -> None:
    """reference.parquet: rows drawn evenly over time, of the history its features, of the holdout the twin's scores.

    Args:
        names: of the features that the model sees; None: all.
    """
    drawn = take_evenly(history, SAMPLE_ROWS).table
    drawn = drawn.select([name for name in drawn.column_names if names is None or name in names])
    places = profile.draw_evenly(len(held), len(drawn))
    for name, values in scores.items():
        padded = np.full(len(drawn), np.nan)
        padded[: len(places)] = values[places]
        drawn = drawn.append_column(name, pa.array(padded, from_pandas=True))
    files.publish(path, lambda new: pq.write_table(drawn, new, compression="zstd"))


if __name__ == "__main__":
    stage.main("evaluate", evaluate)
