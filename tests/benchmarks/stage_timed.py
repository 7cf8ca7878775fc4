"""One of the project's functions in a process of its own, as a benchmark wants it.

    python -m tests.benchmarks.stage_timed features | sql | tune

In the folder that it is started in. Prints the seconds that the work took, imports left out, and the process's peak of
memory in MB. `features` is what the stage does, a period at a time, with its checks; `sql` is features.sql once over
all the clean tables; both from clean Parquet to feature Parquet.
"""

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tasks import params
from tasks.data import features, featuresql
from tasks.params import Params
from tasks.runtime.sql import literal, quote
from tasks.training import model, tune


def build(p: Params) -> None:
    shutil.rmtree(p.paths.features, ignore_errors=True)
    features.build(p, p.paths.clean, p.paths.features, featuresql.SQL.read_text())


def at_once(p: Params) -> None:
    import pyarrow.parquet as pq

    con = featuresql.connect(p)
    for name in p.sources:
        con.execute(
            f"CREATE TEMP TABLE {quote(name)} AS FROM read_parquet({literal(str(p.paths.clean / name / '*.parquet'))})"
        )
    order = ", ".join(["event_time", *map(quote, p.contract[p.spine.table].key)])
    columns = ", ".join(["event_time", *map(quote, p.spine.columns)])
    con.execute(
        f"CREATE TEMP TABLE spine AS SELECT row_number() OVER (ORDER BY {order}) AS row_id, {columns} "
        f"FROM {quote(p.spine.table)}"
    )
    features = featuresql.compute_features(con, p, featuresql.SQL.read_text())
    pq.write_table(features, "sql.parquet", compression="zstd")


def import_for_features() -> None:
    import duckdb  # noqa: F401
    import pyarrow.parquet  # noqa: F401


def import_for_tune() -> None:
    import_for_features()
    import optuna  # noqa: F401
    import tqdm  # noqa: F401

    model.import_xgboost()


WORK: dict[str, tuple[Callable[[], None], Callable[[Params], None]]] = {
    "features": (import_for_features, build),
    "sql": (import_for_features, at_once),
    "tune": (import_for_tune, tune.tune),
}


def peak() -> float:
    """The most memory that this process has had, in MB.

    Linux's ru_maxrss begins with what the parent had when it started us, and so would hide what we need; VmHWM is ours.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts it in bytes


def main(name: str) -> None:
    prepare, work = WORK[name]
    prepare()
    p = params.load(Path("params.yaml"))
    began = time.perf_counter()
    work(p)
    took = time.perf_counter() - began
    print(json.dumps({"seconds": took, "megabytes": peak()}))


if __name__ == "__main__":
    main(sys.argv[1])
