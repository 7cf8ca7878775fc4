"""FLAML or AutoGluon, as their own pages say to call them, on a table that search.py has written.

    .venv-automl/bin/python tests/benchmarks/automl.py flaml FOLDER SEED SECONDS

It runs in an environment of its own (automl.txt) and imports nothing of this project. FOLDER has train.parquet and
hold.parquet, each with the label in `_label`, and task.txt. Prints the holdout's loss, its AUC of a binary label, and
the seconds that the fit took.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "2"

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss, roc_auc_score, root_mean_squared_error


def fit_flaml(rows: pd.DataFrame, task: str, seed: int, seconds: int) -> Any:
    from flaml import AutoML

    made = AutoML()
    made.fit(
        rows.drop(columns="_label"),
        rows["_label"],
        task="regression" if task == "regression" else "classification",
        metric="rmse" if task == "regression" else "log_loss",
        time_budget=seconds,
        n_jobs=2,
        seed=seed,
        verbose=0,
    )
    return made


def fit_autogluon(rows: pd.DataFrame, task: str, seed: int, seconds: int) -> Any:
    """It has no seed: the order of the rows decides which of them it validates on."""
    from autogluon.tabular import TabularPredictor

    metric = "root_mean_squared_error" if task == "regression" else "log_loss"
    folder = tempfile.mkdtemp(prefix="autogluon-")
    made = TabularPredictor("_label", problem_type=task, eval_metric=metric, path=folder, verbosity=0)
    return made.fit(rows.sample(frac=1, random_state=seed), time_limit=seconds, num_cpus=2, num_gpus=0)


FITS = {"flaml": fit_flaml, "autogluon": fit_autogluon}


def read_frame(path: Path, task: str) -> pd.DataFrame:
    frame = pd.read_parquet(path)
    for name in frame.columns.drop("_label"):
        if frame[name].dtype.kind not in "ifb":
            frame[name] = frame[name].astype("category")
    return frame.astype({"_label": int}) if task == "binary" else frame


def measure(made: Any, held: pd.DataFrame, task: str) -> dict[str, float]:
    rows, label = held.drop(columns="_label"), held["_label"]
    if task == "regression":
        return {"loss": float(root_mean_squared_error(label, np.asarray(made.predict(rows))))}
    predicted = made.predict_proba(rows)
    classes = list(predicted.columns if isinstance(predicted, pd.DataFrame) else made.classes_)
    shares = np.asarray(predicted)
    auc = {"auc": float(roc_auc_score(label, shares[:, 1]))} if task == "binary" else {}
    return {"loss": float(log_loss(label, shares, labels=classes)), **auc}


def main(tool: str, folder: Path, seed: int, seconds: int) -> None:
    task = (folder / "task.txt").read_text()
    rows = read_frame(folder / "train.parquet", task)
    began = time.monotonic()
    made = FITS[tool](rows, task, seed, seconds)
    took = time.monotonic() - began
    print(json.dumps({"seconds": took, **measure(made, read_frame(folder / "hold.parquet", task), task)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
