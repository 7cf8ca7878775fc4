"""Promotions, one after another, in a checkout whose champion serves.

    python -m tests.benchmarks.serving_promotes COUNT SECONDS

Makes as many versions, says "made" and waits for a line on its input; then promotes one after another, evenly over the
seconds. The last line tells, as JSON, each one's number, its shift, and when its promotion began and ended (monotonic).
They are the champion with its calibration shifted, so that an answer's score tells which one gave it.
"""

import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks import params
from tasks.data import featurerows
from tasks.promotion import changes, registry
from tasks.promotion.registry import Registry
from tasks.promotion.runs import Bundle
from tasks.serving import versions
from tasks.training.model import Model

STEP = 0.01  # of the intercept, from one version to the next
AS_OF = datetime(2013, 4, 15)  # whatever: nobody retrains here


def shifted(one: Model, by: float) -> Model:
    return Model(one.booster.copy(), replace(one.spec, intercept=(one.spec.intercept[0] + by, *one.spec.intercept[1:])))


def made(known: Registry, files: Path, table: Any, place: int) -> str:
    """A run with such a model; its id."""
    with tempfile.TemporaryDirectory() as scratch:
        one = shifted(Model.load(files / "model.ubj"), place * STEP)
        path, beside = Path(scratch) / "model.ubj", Path(scratch) / "files"
        path.write_bytes(one.to_bytes())
        beside.mkdir()
        for name in ("params.yaml", "features.sql"):
            shutil.copy(files / name, beside)
        listed = [{"name": feature.name, "kind": feature.kind} for feature in one.spec.features]
        bundle = Bundle(path, path, listed, table.select(one.spec.names).slice(0, 2))
        empty: dict[str, Any] = {"params": {}, "metrics": {}, "counts": {}, "datasets": [], "trials": []}
        return known.runs.log(
            f"shifted {place}", name=f"shifted {place}", note="", tags={}, files=beside, bundle=bundle, **empty
        )


def promoted(known: Registry, run: str, place: int) -> dict[str, Any]:
    verdict = {"outcome": "PROMOTE", "reasons": ["A benchmark wants it."]}
    began = time.monotonic()
    done = changes.promote(known, run, decision=f"shifted {place}", verdict=verdict, as_of=AS_OF, tags={})
    return {"number": done.number, "shift": place * STEP, "began": began, "ended": time.monotonic()}


def main(count: int, seconds: float) -> None:
    p, home = params.load(), params.home()
    known, table = registry.open_registry(p.registry), featurerows.read_rows(p.paths.features).table
    files = versions.folder(home) / str(versions.served_number(home))
    runs = [made(known, files, table, place) for place in range(1, count + 1)]
    print("made", flush=True)
    sys.stdin.readline()
    begin, served = time.monotonic(), []
    for place, run in enumerate(runs, 1):
        time.sleep(max(begin + (place - 1) * seconds / count - time.monotonic(), 0))
        served.append(promoted(known, run, place))
    print(json.dumps(served))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
