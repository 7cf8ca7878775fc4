"""evaluate: the twin and the baselines on the holdout → metrics, leaderboard, slices, curves, importances.

    python -m tasks.training.evaluate

The baselines learn from the rows that the twin learnt from. What the gate needs of every row (time, label,
predictions, slices) goes to reports/holdout.parquet, what the monitor needs of the history to profile.json and
reference.parquet. Numbers keep six digits: the rest is the machine's, not ours.
"""

import csv
import io
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks import log
from tasks.data import featurerows, featuresql
from tasks.data.featurerows import Rows
from tasks.data.manifest import FeaturesManifest
from tasks.params import Params
from tasks.runtime import files, stage
from tasks.training import labels, model, split
from tasks.training.holdout import CANDIDATE, write_holdout
from tasks.training.model import Floats, Model, Spec
from tasks.training.profile import build_profile, draw_evenly, to_score_columns

if TYPE_CHECKING:
    pass

BINS = 10
POINTS = 200  # of a curve, as many as a plot can show


def evaluate(p: Params, folder: Path = Path()) -> None:
    """Write the reports. Raises ValueError when history does not reach behind the holdout."""
    source, models = folder / p.paths.features, folder / p.paths.models
    rows = featurerows.read_rows(source)
    featuresql.check_slices(p.evaluate.slices, rows.table.column_names)
    as_of = FeaturesManifest.read(source).as_of
    where = split.find_cuts(as_of, p.split, deadline=p.label.deadline)
    there = model.is_labelled(rows.label)
    twin = Model.load(models / "twin.ubj")
    seeds = {f"{CANDIDATE}_{path.stem}": Model.load(path) for path in sorted((models / "twins").glob("*.ubj"))}
    due = rows.take(split.select_holdout(rows.event_time, where, there))
    held = keep_known_classes(due, twin.spec)
    seen = rows.take(split.select_training(rows.event_time, where.start, p.split, deadline=p.label.deadline) & there)
    predictions = {CANDIDATE: twin.predict(held.table)} | _baselines(p, seen, held, twin.spec)
    board = {name: measure(twin.spec, held.label, found) for name, found in predictions.items()}
    board[CANDIDATE] |= {"unseen_class_rows": len(due) - len(held)} if p.label.task == "multiclass" else {}
    parts = twin.contributions(held.table.take(draw_evenly(len(held), p.evaluate.shap_rows)))
    _write_reports(p, folder / p.paths.reports, twin, held, predictions[CANDIDATE], board, parts)
    others = {name: each.predict(held.table) for name, each in seeds.items()}
    kind: type[np.floating[Any]] = (
        np.float64 if p.label.task == "regression" else np.float32
    )  # 1e9 + delay has more than seven digits
    rounded = {name: values.astype(kind) for name, values in (predictions | others).items()}
    write_holdout(folder / p.paths.reports / "holdout.parquet", held, rounded, p.evaluate.slices)
    _publish_reference(p, folder / p.paths.reports, rows, as_of, twin, held, predictions[CANDIDATE], parts)
    log.info("holdout %s to %s: %s", where.start, where.end, _brief(board[CANDIDATE]))


def keep_known_classes(held: Rows, spec: Spec) -> Rows:
    """Rows of a class that training never saw cannot be scored by any of the models: left out, and said so."""
    known = ~np.isnan(spec.encode_label(held.label))
    unseen = sorted(set(held.label[~known].tolist()))
    if not known.any():
        raise ValueError(
            f"the holdout's {len(known)} rows are all of classes that training has not seen, {unseen[:5]}; it knows "
            f"{list(spec.classes)[:5]}. Wait for more data, shorten split.holdout, or mend label.expression."
        )
    if unseen:
        count, names = (~known).sum(), unseen[:5]
        log.warning("%s rows of the holdout are of a class that training has not seen, %s; left out", count, names)
    return held.take(known)


def _brief(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in list(scores.items())[:4])


def measure(spec: Spec, label: NDArray[Any], found: Floats) -> dict[str, float]:
    """The field's usual metrics of predictions (n,) or (n, classes) against labels (n,)."""
    codes = spec.encode_label(label)
    by_task: dict[str, Callable[..., dict[str, float]]] = {
        "binary": _binary,
        "multiclass": _multiclass,
        "regression": _regression,
    }
    scores = by_task[spec.task](codes, found, spec)
    return {name: digits(value) for name, value in scores.items()} | {"rows": len(label)}


def digits(value: float) -> float:
    return float(f"{value:.6g}")


def _binary(codes: Floats, found: Floats, spec: Spec) -> dict[str, float]:
    from sklearn import metrics

    yes = found >= (spec.threshold if spec.threshold is not None else 0.5)
    both = len(np.unique(codes)) == 2
    return {
        "log_loss": metrics.log_loss(codes, found, labels=[0, 1]),
        "auc": metrics.roc_auc_score(codes, found) if both else 0.5,
        "average_precision": metrics.average_precision_score(codes, found) if both else float(codes.mean()),
        "brier": float(np.mean((found - codes) ** 2)),
        "calibration_error": calibration_error(codes, found),
        "f1": metrics.f1_score(codes, yes, zero_division=0),
        "precision": metrics.precision_score(codes, yes, zero_division=0),
        "recall": metrics.recall_score(codes, yes, zero_division=0),
        "rate": float(codes.mean()),
        "predicted_rate": float(found.mean()),
    }


def _multiclass(codes: Floats, found: Floats, spec: Spec) -> dict[str, float]:
    from sklearn import metrics

    chosen, names = found.argmax(axis=1), list(range(len(spec.classes)))
    scores = {
        "log_loss": metrics.log_loss(codes, found, labels=names),
        "accuracy": metrics.accuracy_score(codes, chosen),
        "f1_macro": metrics.f1_score(codes, chosen, average="macro", zero_division=0),
        "calibration_error": calibration_error((chosen == codes).astype(float), found.max(axis=1)),
    }
    if len(np.unique(codes)) == len(names):
        shares = found[:, 1] if len(names) == 2 else found  # scikit-learn takes one column for two classes
        scores["auc"] = metrics.roc_auc_score(codes, shares, multi_class="ovr", labels=names)
    return scores


def _regression(codes: Floats, found: Floats, _spec: Spec) -> dict[str, float]:
    from sklearn import metrics

    return {
        "rmse": metrics.root_mean_squared_error(codes, found),
        "mae": metrics.mean_absolute_error(codes, found),
        "median_error": metrics.median_absolute_error(codes, found),
        "r2": metrics.r2_score(codes, found) if len(codes) > 1 else 0.0,
        "bias": float(np.mean(found - codes)),
    }


def calibration_error(outcome: Floats, found: Floats) -> float:
    """Expected calibration error over ten bins of equal width (Naeini et al. 2015)."""
    place = np.minimum((found * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    gap = np.bincount(place, weights=outcome - found, minlength=BINS)
    return float(np.abs(gap).sum() / count.sum())


def _baselines(p: Params, seen: Rows, held: Rows, spec: Spec) -> dict[str, Floats]:
    """Each baseline's predictions on the holdout, from scikit-learn's defaults as far as they go."""
    kinds: dict[str, Callable[..., Floats]] = {"constant": _constant, "linear": _linear, "forest": _forest}
    return {name: kinds[name](seen, held, spec, p.stage.threads) for name in p.evaluate.baselines}


def _constant(seen: Rows, held: Rows, spec: Spec, _threads: int) -> Floats:
    """The mean of training, or the share of each class."""
    codes = spec.encode_label(seen.label)
    if spec.task != "multiclass":
        return np.full(len(held), codes.mean(dtype=np.float64))
    shares = np.bincount(codes.astype(int), minlength=len(spec.classes)) / len(codes)
    return np.tile(shares, (len(held), 1))


def _linear(seen: Rows, held: Rows, spec: Spec, _threads: int) -> Floats:
    """Logistic or ridge regression on scaled numbers and one-hot categories, missing values at the median."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    text = [i for i, each in enumerate(spec.features) if each.kind == "category"]
    numbers = [i for i, each in enumerate(spec.features) if each.kind == "number"]
    inputs = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore", min_frequency=20), text),
    )
    fitted = make_pipeline(inputs, Ridge() if spec.task == "regression" else LogisticRegression(max_iter=300))
    fitted.fit(spec.encode(seen.table), spec.scale_label(seen.label))
    return _outcome(fitted, spec.encode(held.table), spec)


def _forest(seen: Rows, held: Rows, spec: Spec, threads: int) -> Floats:
    """A random forest; each tree draws at most 20,000 rows, which costs little and keeps it to seconds.

    It predicts on one thread: threads would add up the trees in the order in which they end, to other last digits.
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestRegressor if spec.task == "regression" else RandomForestClassifier
    fitted = kind(
        n_estimators=60,
        min_samples_leaf=10,
        max_features="sqrt",
        max_samples=min(20_000, len(seen)),
        random_state=0,
        n_jobs=threads,
    )
    fitted.fit(spec.encode(seen.table), spec.scale_label(seen.label))
    return _outcome(fitted.set_params(n_jobs=1), spec.encode(held.table), spec)


def _outcome(fitted: Any, inputs: Floats, spec: Spec) -> Floats:
    if spec.task == "regression":
        return spec.unscale(np.asarray(fitted.predict(inputs)))
    shares = np.asarray(fitted.predict_proba(inputs))
    return shares[:, 1] if spec.task == "binary" else shares


def _write_reports(
    p: Params,
    reports: Path,
    twin: Model,
    held: Rows,
    found: Floats,
    board: dict[str, dict[str, float]],
    parts: Floats,
) -> None:
    files.publish_json(reports / "metrics.json", board[CANDIDATE] | dict(_of_baselines(board, p.gate.metric)))
    chosen = {name: board[CANDIDATE][name] for name in _shown(board[CANDIDATE], p.gate.metric)}
    files.publish_json(reports / "headline.json", {"holdout": chosen})
    files.publish_json(reports / "leaderboard.json", _leaderboard(board, p.gate.metric))
    files.publish_json(reports / "slices.json", _slices(p, twin.spec, held, found))
    _publish_csv(reports / "importance.csv", _importance(twin.spec, parts))
    _publish_csv(reports / "curves" / "roc.csv", _roc(twin.spec, held.label, found))
    _publish_csv(reports / "curves" / "calibration.csv", _calibration(twin.spec, held.label, found))


def _of_baselines(board: dict[str, dict[str, float]], metric: str) -> Iterator[tuple[str, float]]:
    for name, scores in board.items():
        shown = _shown(scores, metric) if name != CANDIDATE else []
        yield from ((f"{name}.{each}", scores[each]) for each in shown)


def _shown(scores: dict[str, float], metric: str) -> list[str]:
    """The few by which models are compared at a glance."""
    return sorted({metric, "auc", "mae"} & scores.keys())


def _leaderboard(board: dict[str, dict[str, float]], metric: str) -> list[dict[str, Any]]:
    """Every model on the same rows, the best first: model selection is there to be seen."""
    return sorted(({"model": name} | scores for name, scores in board.items()), key=lambda row: row[metric])


def _slices(p: Params, spec: Spec, held: Rows, found: Floats) -> list[dict[str, Any]]:
    rows = []
    for name in p.evaluate.slices:
        values = np.asarray(held.table[name].to_pylist(), dtype=object)
        for value in sorted({each for each in values.tolist() if each is not None}, key=str):
            mask = values == value
            if mask.sum() >= p.evaluate.slice_rows:
                rows.append({"slice": name, "value": value} | measure(spec, held.label[mask], found[mask]))
    return rows


def _importance(spec: Spec, parts: Floats) -> list[dict[str, Any]]:
    """Each feature's mean absolute SHAP value, in units of the margin, over rows and classes."""
    mean = np.abs(parts).reshape(-1, len(spec.features)).mean(axis=0)
    order = np.argsort(-mean, kind="stable")
    return [{"feature": spec.names[i], "importance": digits(float(mean[i]))} for i in order]


def _roc(spec: Spec, label: NDArray[Any], found: Floats) -> list[dict[str, Any]]:
    """The ROC curve, micro-averaged for several classes; one empty point where there is none to draw."""
    from sklearn import metrics

    codes = spec.encode_label(label)
    if spec.task == "regression" or len(np.unique(codes)) < 2:
        return [{"false_positive_rate": 0.0, "true_positive_rate": 0.0}]
    if spec.task == "multiclass":
        codes, found = np.eye(len(spec.classes))[codes.astype(int)].ravel(), found.ravel()
    false, true, _ = metrics.roc_curve(codes, found)
    chosen = np.unique(np.linspace(0, len(false) - 1, POINTS).astype(int))
    return [
        {"false_positive_rate": digits(float(false[i])), "true_positive_rate": digits(float(true[i]))} for i in chosen
    ]


def _calibration(spec: Spec, label: NDArray[Any], found: Floats) -> list[dict[str, Any]]:
    """Mean prediction and mean outcome in ten bins of equal count: probability, confidence, or value by task."""
    outcome = spec.encode_label(label)
    if spec.task == "multiclass":
        outcome, found = (found.argmax(axis=1) == outcome).astype(float), found.max(axis=1)
    groups = np.array_split(np.argsort(found, kind="stable"), BINS)
    return [
        {
            "predicted": _digits_beyond(spec.center, found[each]),
            "observed": _digits_beyond(spec.center, outcome[each]),
            "rows": len(each),
        }
        for each in groups
        if len(each)
    ]


def _digits_beyond(center: float, values: Floats) -> float:
    """The mean of values around a center, with six digits of its distance from there."""
    return float(f"{center + digits(float((values - center).mean())):.15g}")


def _publish_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.publish(path, lambda new: _write(new, text.getvalue()))


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _publish_reference(
    p: Params, reports: Path, rows: Rows, as_of: datetime, twin: Model, held: Rows, found: Floats, parts: Floats
) -> None:
    """What the monitor holds new rows against: the model's history as a profile, and a sample of it to be drawn."""
    start = as_of - p.split.window if p.split.window else None
    history = rows.take(split.select_between(rows.event_time, start, as_of))
    mature = history.event_time < np.datetime64(as_of - p.label.deadline)
    labelled = model.is_labelled(history.label[mature])
    made = build_profile(
        history.table,
        history.event_time,
        importance={each["feature"]: each["importance"] for each in _importance(twin.spec, parts)},
        contributions=parts.mean(axis=0),
        scores=to_score_columns(found, twin.spec.classes),
        score_times=held.event_time,
        until=as_of,
        window=p.monitor.window,
        settings=p.drift,
        labelled=labels.find_least_share(labelled, history.event_time[mature], p.monitor.window),
    )
    files.publish(reports / "profile.json", lambda new: _write(new, made.to_json()))
    _publish_sample(
        reports / "reference.parquet", p.drift.sample, history, held, to_score_columns(found, twin.spec.classes)
    )


def _publish_sample(path: Path, size: int, history: Rows, held: Rows, scores: dict[str, Floats]) -> None:
    """Rows drawn evenly over time: of the history its features, of the holdout the twin's scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    drawn = history.table.take(draw_evenly(len(history), size))
    places = draw_evenly(len(held), len(drawn))
    for name, values in scores.items():
        padded = np.full(len(drawn), np.nan)
        padded[: len(places)] = values[places]
        drawn = drawn.append_column(name, pa.array(padded, from_pandas=True))
    files.publish(path, lambda new: pq.write_table(drawn, new, compression="zstd"))


if __name__ == "__main__":
    stage.main("evaluate", evaluate)
