"""What DVC plots of the twin on the holdout: importances, the ROC curve, the calibration curve; as rows of CSV."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.runtime import files
from tasks.training.digits import round_digits
from tasks.training.metrics import BINS
from tasks.training.model import Floats, Spec

MOST_POINTS = 200  # of a curve, as many as a plot can show


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
            "predicted": _mean_around(spec.center, predictions[places]),
            "observed": _mean_around(spec.center, outcome[places]),
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
