"""A table that is larger than memory, in a process of its own, as a benchmark wants it.

    python -m tests.benchmarks.out_of_core_timed enlarge TIMES
    python -m tests.benchmarks.out_of_core_timed train ROUNDS

In the folder that it is started in. `enlarge` puts so many rows in the place of each feature row, with numbers that
differ a little. `train` runs the stage with a recipe of so many rounds, and prints its rows, the bytes of their matrix
in memory, and the most memory that the process held beyond what its imports took.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks import params
from tasks.data import featurerows, manifest, storedrows
from tasks.params import Params
from tasks.runtime import files
from tasks.training import fitting, model, train
from tasks.training.trials import Tuned

DRAWN = {"max_depth": 6, "eta": 0.1, "subsample": 0.8, "colsample_bytree": 0.7}
WRITTEN_ROWS = 1 << 17  # at once
JITTER = 1e-3  # of a number, as a share


def enlarge(p: Params, times: int) -> dict[str, Any]:
    rows = sum(_enlarge_file(path, times) for path in featurerows.list_paths(p.paths.features))
    return {"rows": rows}


def _enlarge_file(path: Path, times: int) -> int:
    table, rng = pq.read_table(path), np.random.default_rng(len(path.stem))
    files.publish(path, partial(_write_copies, table, times, rng))
    return len(table) * times


def _write_copies(table: pa.Table, times: int, rng: np.random.Generator, path: Path) -> None:
    step = max(WRITTEN_ROWS // times, 1)
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for first in range(0, len(table), step):
            part = table.slice(first, step)
            writer.write_table(_vary(part.take(np.repeat(np.arange(len(part)), times)), rng))


def _vary(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    for place, field in enumerate(table.schema):
        if pa.types.is_floating(field.type) and not field.name.startswith("_"):
            near = rng.normal(1.0, JITTER, len(table))
            values = pc.multiply(table[field.name], pa.array(near)).cast(field.type)
            table = table.set_column(place, field, values)
    return table


def time_training(p: Params, rounds: int) -> dict[str, Any]:
    rows = storedrows.open_rows(p.paths.features, memory=p.stage.memory_bytes)
    as_of = manifest.FeaturesManifest.read(p.paths.features).as_of
    shipped = len(fitting.take_training(rows, as_of, p))
    Tuned(DRAWN, rounds, None, "logloss", None, 0, 0, "recipe").write(p.paths.models / "tuned.json")
    model.import_xgboost()
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins here
    base, began, spent = _read_memory("VmRSS"), time.perf_counter(), time.process_time()
    train.train(p)
    return {
        "rows": shipped,
        "kind": type(rows).__name__,
        "matrix": shipped * len(rows.schema) * storedrows.ENCODED_BYTES,
        "base": base,
        "peak": _read_memory("VmHWM"),
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - spent,
    }


def _read_memory(name: str) -> int:
    """Bytes that the kernel says this process has, or had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def main(part: str, count: int) -> None:
    p = params.load(Path("params.yaml"))
    print(json.dumps({"enlarge": enlarge, "train": time_training}[part](p, count)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
