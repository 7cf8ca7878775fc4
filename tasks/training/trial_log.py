"""The log of a search, in the home: a search that is killed and started again goes on from it.

A line for each trial that has ended, in <home>/studies. The name is a hash of all that decides the search, so that a
search on other rows or with other code begins anew. A second file, *.finals.jsonl, has a line for each finalist.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from tasks import log, params
from tasks.data import cache, features, periods
from tasks.params import Params
from tasks.runtime import files
from tasks.training import fitting, folds, model, pruning, space, split
from tasks.training.trials import Trial

DECIDERS = (features, fitting, folds, model, pruning, space, split)  # of what a trial comes to
CODE = cache.hash_code(__file__, *(str(module.__file__) for module in DECIDERS))


@contextmanager
def open_log(p: Params, source: Path, as_of: datetime, *, home: Path | None = None) -> Iterator[Path]:
    """The log of this very search (same rows, space, code and libraries), held by one process at a time.

    Args:
        home: the folder of shared state, where not EVERGREEN_HOME.
    """
    from filelock import FileLock, Timeout

    rows = [cache.hash_file(path) for _, path in periods.list_files(source)]
    search = p.tune.model_dump(exclude={"trials", "budget", "finalists"})
    task = p.label.task, p.label.deadline, p.split.model_dump(), p.train.categories, p.train.device
    libraries = optuna.__version__, np.__version__, model.import_xgboost().__version__
    name = cache.hash_inputs(rows, as_of, search, task, CODE, libraries)
    path = (home or params.home()) / "studies" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process runs this very search; waiting for it")
        lock.acquire()
    try:
        yield path
    finally:
        lock.release()


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line each, on disk before the next trial begins."""
    with path.open("a") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows))
        stream.flush()
        os.fsync(stream.fileno())


def read_lines(path: Path) -> list[str]:
    """The log's lines. A torn last one is cut off."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        files.publish_text(path, "".join(whole))
    return whole


def to_row(trial: FrozenTrial) -> Trial:
    """A trial as plain data, without anything of the clock."""
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.value if trial.state.name == "COMPLETE" else None,
        "params": trial.params,
        "rounds": trial.user_attrs.get("rounds"),
        "steps": {str(step): value for step, value in trial.intermediate_values.items()},
    }


def restore_trials(study: optuna.Study, path: Path, p: Params) -> float:
    """Puts the log's trials back into the study; returns the seconds they took.

    Of trials that ran side by side a kill may have left some alone: they are cut off.
    """
    lines = read_lines(path)
    alone = len(lines) % p.tune.parallel if len(lines) < p.tune.trials else 0
    if alone:
        lines = lines[:-alone]
        files.publish_text(path, "".join(lines))
    rows = [json.loads(line) for line in lines[: p.tune.trials]]
    distributions = {name: space.to_distribution(dimension) for name, dimension in p.tune.space.items()}
    for row in rows:
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[row["state"]],
                value=row["value"],
                params=row["params"],
                distributions={name: distributions[name] for name in row["params"]},
                intermediate_values={int(step): value for step, value in row["steps"].items()},
                user_attrs={"rounds": row["rounds"]} if row["rounds"] else {},
            )
        )
    if rows:
        log.info("%s trials taken up from the log of this search", len(rows))
    return float(sum(row["seconds"] for row in rows))
