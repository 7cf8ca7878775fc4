"""warm: the booster that a fit goes on from where train.warm is set, made once and kept in the home.

    |------ base: the first 80 % of the rounds ------|                       a boundary, every train.warm
    |------ the fit's own rows: the last 20 % of the rounds ------|          its newest row

A base is the same recipe on those rows of the fit that lie before the newest boundary. So it follows from the fit's own
rows: the base of a twin has seen no row of the holdout, a past fit is what it would have been then, and `reproduce`
needs no older model. Until the next boundary, the champion and all refreshes of its recipe go on from one booster.
README.md has what this saves and what it costs.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np

from tasks import log, params
from tasks.data.storedrows import AnyRows
from tasks.data.timeline import Times
from tasks.runtime import files, locks
from tasks.training import matrices, model
from tasks.training.matrices import Encoded
from tasks.training.model import Model, Spec

LAST_SHARE = 0.2  # of a recipe's rounds that see all rows
LEAST_SHARE = 0.5  # of a fit's rows that its base must have seen
MICROSECOND = timedelta(microseconds=1)


def count_last_rounds(rounds: int) -> int:
    """How many of a recipe's rounds see all rows."""
    return max(1, round(rounds * LAST_SHARE))


def count_base_rows(seen: AnyRows, spec: Spec, every: timedelta | None, *, rounds: int) -> int:
    """How many of a fit's rows, the oldest ones, its base learns from. 0: the fit begins anew.

    It does where the base would have seen less than half of the rows, or lacks one of their classes.

    Args:
        seen: the fit's rows, in the order of time.
        spec: of these rows.
        every: train.warm.
        rounds: of the recipe.
    """
    if every is None or count_last_rounds(rounds) >= rounds:
        return 0
    count = _count_before_boundary(seen.event_time, every)
    if count < LEAST_SHARE * len(seen):
        return 0
    codes = spec.encode_label(seen.label)
    if spec.classes and (missing := set(np.unique(codes)) - set(np.unique(codes[:count]))):
        names = [spec.classes[int(code)] for code in sorted(missing)]
        log.warning("no row before train.warm's newest boundary is of the class %s: the fit begins anew", names)
        return 0
    return count


def _count_before_boundary(event_time: Times, every: timedelta) -> int:
    """How many rows lie before the newest boundary; boundaries count from 1970."""
    times, step = event_time.astype("datetime64[us]").astype(np.int64), every // MICROSECOND
    return int(np.searchsorted(times, times[-1] // step * step))


def name_base_first(spec: Spec, seen: AnyRows, count: int) -> Spec:
    """The spec of a fit whose base has its first `count` rows: a category has the code that the base gives it, new ones
    follow, and a number is learnt on the base's scale."""
    older = matrices.find_categories(seen.slice(0, count), spec)
    categories = {
        name: (*older[name], *(text for text in texts if text not in set(older[name])))
        for name, texts in spec.categories.items()
    }
    spec = replace(spec, categories=categories)
    if spec.task == "regression":
        spec = matrices.center_label(spec, seen.slice(0, count))
    return spec


def load_base(part: Encoded, settings: Mapping[str, Any], rounds: int, make: Callable[[], Any]) -> Any:
    """The base's booster, from the home where another fit has made it, else as `make` makes it.

    It always comes from its file, so that a fit has the same bytes whether it made its base or not.

    Args:
        part: the base's rows, with the fit's spec: with the settings, all that the base follows from.
        settings: XGBoost's.
    """
    path = params.home() / "boosters" / f"{_hash_inputs(part, settings, rounds)}.ubj"
    with locks.take_turn(
        path.parent, name=path.stem, say=log.debug, local=True
    ):  # fits side by side often have one base
        try:
            base = Model.load(path)
            os.utime(path)  # gc frees what nobody has used for long
        except (FileNotFoundError, ValueError):
            files.publish(path, Model(make(), part.spec).write)
            base = Model.load(path)
    return base.booster


def _hash_inputs(part: Encoded, settings: Mapping[str, Any], rounds: int) -> str:
    """A digest of all that a base follows from. It is made on one thread, whatever its fit may use."""
    spec, named = part.spec, {name: value for name, value in settings.items() if name not in ("nthread", "verbosity")}
    text = json.dumps([named, rounds, spec.names, spec.types, model.import_xgboost().__version__], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(f"{len(part.rows)} rows".encode())
    for array in (*part.read_blocks(), part.label):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
