"""Batch scoring against what bare XGBoost takes for the same matrix, side by side, as JSON on the last line.

    python -m tests.benchmarks.serving_batch MODEL FEATURES.parquet TIMES

`ours` is Model.predict of an Arrow table in memory: encoding, margins, calibration. Rows a second of each.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq

from tasks.training.model import Model


def rate(rows: int, work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return rows / (time.perf_counter() - began)


def main(model: str, features: str, times: str) -> None:
    one, table = Model.load(model), pq.read_table(features)
    matrix = one.spec.encode(table)
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for i in range(int(times) + 1):
        turn = {
            "ours": rate(table.num_rows, lambda: one.predict(table)),
            "bare": rate(table.num_rows, lambda: one.booster.inplace_predict(matrix)),
        }
        for name in rates if i else ():  # the first turn warms up
            rates[name].append(turn[name])
    print(json.dumps(rates))


if __name__ == "__main__":
    main(*sys.argv[1:])
