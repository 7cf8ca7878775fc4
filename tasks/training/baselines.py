"""The models that a candidate must beat, with scikit-learn's defaults as far as they go.

To add one: a function (seen, held, spec, threads) → predictions of `held`, an entry in BASELINES, and its name in
tasks/params/sections.py (`Evaluate.baselines`). params.yaml's evaluate.baselines then may name it. A first model
must beat all that are named there.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks import log
from tasks.data.featurerows import Rows
from tasks.data.storedrows import AnyRows
from tasks.training import fitting, matrices
from tasks.training.model import Floats, Spec

MOST_ROWS = 500_000  # that scikit-learn gets of a table that memory does not hold
RARE_ROWS = 20  # a category with fewer rows has no column of its own in the linear model


def predict_constant(seen: AnyRows, held: AnyRows, spec: Spec, _threads: int) -> Floats:
    """The mean of training, above the offset where there is one, or the share of each class."""
    codes = spec.encode_label(seen.label)
    if spec.task != "multiclass":
        above = codes - matrices.find_offset(seen, spec)
        mean = above[matrices.has_offset(seen, spec)].mean(dtype=np.float64)
        return np.full(len(held), mean) + matrices.find_offset(held, spec)
    return np.tile(np.bincount(codes.astype(int), minlength=len(spec.classes)) / len(codes), (len(held), 1))


def predict_linear(seen: AnyRows, held: AnyRows, spec: Spec, _threads: int) -> Floats:
    """Logistic or ridge regression on scaled numbers and one-hot categories, missing values at the median."""
    from sklearn import compose, impute, linear_model, pipeline, preprocessing

    places = {kind: [i for i, one in enumerate(spec.features) if one.kind == kind] for kind in ("category", "number")}
    filled = impute.SimpleImputer(strategy="median", keep_empty_features=True)
    numbers = pipeline.make_pipeline(filled, preprocessing.StandardScaler())
    texts = preprocessing.OneHotEncoder(handle_unknown="ignore", min_frequency=RARE_ROWS)
    inputs = compose.make_column_transformer((numbers, places["number"]), (texts, places["category"]))
    is_regression = spec.task == "regression"
    regression = linear_model.Ridge() if is_regression else linear_model.LogisticRegression(max_iter=300)
    loaded = load_rows(seen, spec)
    fitted = pipeline.make_pipeline(inputs, regression).fit(*_encode(loaded, spec))
    return _predict(fitted, held, spec)


def predict_forest(seen: AnyRows, held: AnyRows, spec: Spec, threads: int) -> Floats:
    """A random forest; each tree draws at most 20,000 rows, which costs little and keeps it to seconds.

    It predicts on one thread: threads would add up the trees in the order in which they end, to other last digits.
    """
    from sklearn import ensemble

    loaded = load_rows(seen, spec)
    kind = ensemble.RandomForestRegressor if spec.task == "regression" else ensemble.RandomForestClassifier
    forest = kind(
        n_estimators=60,
        min_samples_leaf=10,
        max_features="sqrt",
        max_samples=min(20_000, len(loaded)),
        random_state=0,
        n_jobs=threads,
    )
    forest.fit(*_encode(loaded, spec))
    return _predict(forest.set_params(n_jobs=1), held, spec)


def load_rows(seen: AnyRows, spec: Spec) -> Rows:
    """The training rows in memory; of a table that is larger than that, so many, evenly over time."""
    if isinstance(seen, Rows):
        return seen
    loaded = fitting.thin_rows(seen, MOST_ROWS, spec).load()
    log.info("the baseline learns from %s of %s rows, which memory holds", f"{len(loaded):,}", f"{len(seen):,}")
    return loaded


def _encode(seen: Rows, spec: Spec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inputs (n, features) and what is learnt (n): of a number, what it is above its offset, where it has one."""
    seen = seen.take(matrices.has_offset(seen, spec)) if spec.offset else seen
    matrix = spec.encode(seen.table)
    return matrix, spec.scale_label(seen.label, spec.find_offset(matrix))


def _predict(fitted: Any, held: AnyRows, spec: Spec) -> Floats:
    return np.concatenate([_predict_block(fitted, spec.encode(block), spec) for block in held.read_blocks()])


def _predict_block(fitted: Any, inputs: NDArray[np.float32], spec: Spec) -> Floats:
    if spec.task == "regression":
        return spec.unscale(np.asarray(fitted.predict(inputs)), spec.find_offset(inputs))
    shares = np.asarray(fitted.predict_proba(inputs))
    return shares[:, 1] if spec.task == "binary" else shares


BASELINES: dict[str, Callable[[AnyRows, AnyRows, Spec, int], Floats]] = {
    "constant": predict_constant,
    "linear": predict_linear,
    "forest": predict_forest,
}
