"""The stages' functions in one plain script, ingest to record, and the gate's verdict: what the loop's cost is told by.

    python -m tests.benchmarks.plain_loop

In an empty checkout. No DVC, no Prefect, no workspace, nothing promoted. Prints each part's seconds.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from tasks import params
from tasks.data import clean, features, ingest
from tasks.promotion import judge, record, registry
from tasks.training import evaluate, train, tune

STAGES = (ingest.ingest, clean.clean, features.features, tune.tune, train.train, evaluate.evaluate)


def write_lock() -> None:
    """record reads DVC's lock for the hashes of what was made. Nobody makes hashes here, so these are made up."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    paths = yaml.safe_load(Path("params.yaml").read_text())["paths"]
    outs = {name: [*stage.get("outs", []), *stage.get("metrics", [])] for name, stage in stages.items()}
    lock = {
        name: {"outs": [{"path": _spelled(out, paths), "md5": "0" * 32} for out in outs_of]}
        for name, outs_of in outs.items()
    }
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": lock}))


def _spelled(path: str, paths: dict[str, str]) -> str:
    for name, value in paths.items():
        path = path.replace(f"${{paths.{name}}}", value)
    return path


def verdict(p: params.Params, made: str) -> None:
    known = registry.open_registry(p.registry)
    judge.judge_candidate(p, Path(), made, registry=known, champion=known.find_champion(), home=params.home())


def main() -> None:
    p, seconds = params.load(), dict[str, float]()

    def timed(name: str, work: Callable[[], object]) -> object:
        began = time.perf_counter()
        done = work()
        seconds[name] = round(time.perf_counter() - began, 2)
        return done

    for stage in STAGES:
        timed(stage.__name__, lambda stage=stage: stage(p))  # type: ignore[misc]
    write_lock()
    made = timed("record", lambda: record.record(p))
    timed("judge", lambda: verdict(p, str(made)))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
