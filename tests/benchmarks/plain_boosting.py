"""scikit-learn's HistGradientBoosting, as it comes, on the feature rows and the split of the checkout it runs in.

    python -m tests.benchmarks.plain_boosting

Prints the gate's metric on the holdout: this one's, and that of the twin which stage train has left.
"""

import json
from typing import Any

import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from tasks import params
from tasks.data import featurerows
from tasks.data.featurerows import Rows
from tasks.data.manifest import FeaturesManifest
from tasks.params import Params
from tasks.training import evaluate, fitting, metrics, model, split
from tasks.training.model import Model, Spec

MOST_LEVELS = 250  # of a category, of those that it takes; rarer ones are one


def measure(p: Params) -> dict[str, float]:
    rows = featurerows.read_rows(p.paths.features)
    as_of = FeaturesManifest.read(p.paths.features).as_of
    span = split.find_holdout(as_of, p.split, deadline=p.label.deadline)
    twin = Model.load(p.paths.models / "twin.ubj")
    held = rows.take(split.select_holdout(rows.event_time, span, model.is_labelled(rows.label)))
    held = evaluate.keep_known_classes(held, twin.spec).load()
    seen = fitting.take_training(rows, span.begin, p).load()
    ours = metrics.measure(twin.spec, held.label, twin.predict(held.table))[p.gate.metric]
    theirs = metrics.measure(twin.spec, held.label, predict(seen, held, twin.spec))[p.gate.metric]
    return {"ours": ours, "theirs": theirs, "rows": len(held), "seen": len(seen)}


def predict(seen: Rows, held: Rows, spec: Spec) -> Any:
    x, held_x = to_frames(seen, held)
    kind = HistGradientBoostingRegressor if spec.task == "regression" else HistGradientBoostingClassifier
    fitted = kind(random_state=0).fit(x, spec.encode_label(seen.label))
    if spec.task == "regression":
        return fitted.predict(held_x)
    shares = fitted.predict_proba(held_x)
    return shares[:, 1] if spec.task == "binary" else shares


def to_frames(seen: Rows, held: Rows) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Texts as categories of the training rows."""
    x, held_x = seen.table.to_pandas(), held.table.to_pandas()
    for name in x.select_dtypes(["object", "str"]):
        levels = x[name].value_counts().index[:MOST_LEVELS]
        x[name], held_x[name] = (pd.Categorical(frame[name], categories=levels) for frame in (x, held_x))
    return x, held_x


if __name__ == "__main__":
    print(json.dumps(measure(params.load())))
