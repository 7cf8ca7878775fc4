"""Metrics of predictions, by task, and what DVC plots of a model: importances, ROC and calibration curve, as CSV."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.runtime import files
from tasks.training.digits import round_digits
from tasks.training.model import Floats, Spec

BINS = 10
MOST_POINTS = 200  # of a curve, as many as a plot can show


def measure(spec: Spec, label: NDArray[Any], predictions: Floats) -> dict[str, float]:
    """Metrics of predictions, (n,) or (n, classes), against labels (n), and how many rows there are."""
    codes = spec.encode_label(label)
    measures = {"binary": _measure_binary, "multiclass": _measure_multiclass, "regression": _measure_regression}
    scores = measures[spec.task](codes, predictions, spec)
    return {name: round_digits(value) for name, value in scores.items()} | {"rows": len(label)}


def _measure_binary(codes: Floats, predictions: Floats, spec: Spec) -> dict[str, float]:
    from sklearn import metrics

    positive = predictions >= (spec.threshold if spec.threshold is not None else 0.5)
    both = len(np.unique(codes)) == 2
    return {
        "log_loss": metrics.log_loss(codes, predictions, labels=[0, 1]),
        "auc": metrics.roc_auc_score(codes, predictions) if both else 0.5,
        "average_precision": metrics.average_precision_score(codes, predictions) if both else float(codes.mean()),
        "brier": float(np.mean((predictions - codes) ** 2)),
        "calibration_error": calibration_error(codes, predictions),
        "f1": metrics.f1_score(codes, positive, zero_division=0),
        "precision": metrics.precision_score(codes, positive, zero_division=0),
        "recall": metrics.recall_score(codes, positive, zero_division=0),
        "rate": float(codes.mean()),
        "predicted_rate": float(predictions.mean()),
    }


def _measure_multiclass(codes: Floats, predictions: Floats, spec: Spec) -> dict[str, float]:
    from sklearn import metrics

    top, names = predictions.argmax(axis=1), list(range(len(spec.classes)))
    scores = {
        "log_loss": metrics.log_loss(codes, predictions, labels=names),
        "accuracy": metrics.accuracy_score(codes, top),
        "f1_macro": metrics.f1_score(codes, top, average="macro", zero_division=0),
        "calibration_error": calibration_error(codes, predictions),
    }
    if len(np.unique(codes)) == len(names):
        shares = predictions[:, 1] if len(names) == 2 else predictions  # scikit-learn takes one column for two classes
        scores["auc"] = metrics.roc_auc_score(codes, shares, multi_class="ovr", labels=names)
    return scores


def _measure_regression(codes: Floats, predictions: Floats, _spec: Spec) -> dict[str, float]:
    from sklearn import metrics

    return {
        "rmse": metrics.root_mean_squared_error(codes, predictions),
        "mae": metrics.mean_absolute_error(codes, predictions),
        "median_error": metrics.median_absolute_error(codes, predictions),
        "r2": metrics.r2_score(codes, predictions) if len(codes) > 1 else 0.0,
        "bias": float(np.mean(predictions - codes)),
    }


def calibration_error(outcome: Floats, shares: Floats) -> float:
    """Expected calibration error over ten bins of equal width (Naeini et al. 2015).

    Args:
        outcome: (n,): 0 or 1, or the class.
        shares: (n,); or (n, classes), of which each row's likeliest is looked at.
    """
    if shares.ndim == 2:
        outcome, shares = (shares.argmax(axis=1) == outcome).astype(float), shares.max(axis=1)
    place = np.minimum((shares * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    gap = np.bincount(place, weights=outcome - shares, minlength=BINS)
    return float(np.abs(gap).sum() / count.sum())


def list_importances(spec: Spec, contributions: Floats) -> list[dict[str, Any]]:
    """Each feature's mean absolute SHAP value, in units of the margin, over rows and classes."""
    mean = np.abs(contributions).reshape(-1, len(spec.features)).mean(axis=0)
    order = np.argsort(-mean, kind="stable")
    return [{"feature": spec.names[i], "importance": round_digits(float(mean[i]))} for i in order]


def draw_roc(spec: Spec, label: NDArray[Any], predictions: Floats) -> list[dict[str, Any]]:
    """The ROC curve, micro-averaged for several classes; one empty point where there is none to draw."""
    from sklearn import metrics

    codes = spec.encode_label(label)
    if spec.task == "regression" or len(np.unique(codes)) < 2:
        return [{"false_positive_rate": 0.0, "true_positive_rate": 0.0}]
    if spec.task == "multiclass":
        codes, predictions = np.eye(len(spec.classes))[codes.astype(int)].ravel(), predictions.ravel()
    rates = np.column_stack(metrics.roc_curve(codes, predictions)[:2])
    points = rates[np.unique(np.linspace(0, len(rates) - 1, MOST_POINTS).astype(int))].tolist()
    return [
        {"false_positive_rate": round_digits(false), "true_positive_rate": round_digits(true)} for false, true in points
    ]


def draw_calibration(spec: Spec, label: NDArray[Any], predictions: Floats) -> list[dict[str, Any]]:
    """Mean prediction and mean outcome in ten bins of equal count: probability, confidence, or value by task."""
    outcome = spec.encode_label(label)
    if spec.task == "multiclass":
        outcome, predictions = (predictions.argmax(axis=1) == outcome).astype(float), predictions.max(axis=1)
    bins = np.array_split(np.argsort(predictions, kind="stable"), BINS)
    return [
        {
            "predicted": _mean_around(spec.middle, predictions[places]),
            "observed": _mean_around(spec.middle, outcome[places]),
            "rows": len(places),
        }
        for places in bins
        if len(places)
    ]


def _mean_around(center: float, values: Floats) -> float:
    """The mean of values around a center, with six digits of its distance from there."""
    return round_digits(center + round_digits(float((values - center).mean())), 15)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.publish_text(path, text.getvalue())
