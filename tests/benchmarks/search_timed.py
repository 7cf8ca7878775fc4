"""tune, and one twin with its calibration, in a process of its own: seconds, and figures of the holdout.

    python -m tests.benchmarks.search_timed

In the folder that it is started in; imports are left out. It forgets what it knows of an earlier search.
"""

import json
import shutil
import time
from pathlib import Path

from sklearn.metrics import log_loss, roc_auc_score, root_mean_squared_error

from tasks import params
from tasks.data.featurerows import read_rows
from tasks.data.manifest import FeaturesManifest
from tasks.training import model, split, train, tune
from tasks.training.trials import Tuned


def main() -> None:
    p = params.load(Path("params.yaml"))
    shutil.rmtree(params.home() / "studies", ignore_errors=True)
    began = time.monotonic()
    tune.tune(p)
    tuned = Tuned.load(Path(p.paths.models) / "tuned.json")
    rows, as_of = read_rows(Path(p.paths.features)), FeaturesManifest.read(Path(p.paths.features)).as_of
    holdout = split.find_holdout(as_of, p.split, deadline=p.label.deadline)
    (twin,) = train.fit_twins(rows, holdout.begin, tuned, p, seeds=1)
    took = time.monotonic() - began
    held = rows.take(split.select_holdout(rows.event_time, holdout, model.is_labelled(rows.label)))
    predicted = twin.predict(held.table)
    if p.label.task == "regression":
        figures = {"loss": float(root_mean_squared_error(held.label, predicted))}
    else:
        figures = {"loss": float(log_loss(held.label, predicted, labels=list(twin.spec.classes)))}
    if p.label.task == "binary":
        figures["auc"] = float(roc_auc_score(held.label, predicted))
    print(json.dumps({"seconds": took, **figures, "trials": tuned.trials, "rounds": tuned.rounds}))


if __name__ == "__main__":
    main()
