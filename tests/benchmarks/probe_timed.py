"""The features stage on the real flights, in a process of its own, with leaks and without.

    python -m tests.benchmarks.probe_timed leaks DRAWS | with | without

In the folder of a checkout whose clean stage has run. Prints JSON: which leaks were missed, or the seconds of CPU.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tasks import params
from tasks.data import features, featuresql
from tasks.params import Params

JOIN = "LEFT JOIN planes ON planes.tailnum = asked.tailnum"
OWN = "f.event_time = picked.event_time AND f.carrier = picked.carrier AND f.flight = picked.flight"
LEAKS = {
    "known_at ignored": (
        "avg(f.arr_delay)",
        "flights f ON f.origin = picked.origin AND f.event_time BETWEEN asked_at - INTERVAL 4 HOUR AND asked_at",
    ),
    "own label": ("max(f.arr_delay)", f"flights f ON {OWN} AND f.origin = picked.origin"),
    "average of all rows": ("avg(f.arr_delay)", "flights f ON f.origin = picked.origin"),
    "next row of the same key": (
        "min_by(f.dep_delay, f.event_time)",
        "flights f ON f.tailnum = picked.tailnum AND f.event_time > picked.event_time",
    ),
    "window that reaches ahead": (
        "avg(w.temp)",
        "weather w ON w.origin = picked.origin "
        "AND w.known_at BETWEEN asked_at - INTERVAL 1 HOUR AND asked_at + INTERVAL 1 HOUR",
    ),
}


def plant(sql: str, leak: str, draw: int) -> str:
    """The SQL with another origin_delay_4h in 1 % of the rows."""
    value, join = LEAKS[leak]
    head, select, tail = sql.rpartition("\nSELECT asked.row_id,")
    where = f"hash(asked.flight, asked.event_time, {draw}) % 100 = 0"
    tables = (
        f"picked AS (SELECT * FROM asked WHERE {where}),\n"
        f"leaked AS (SELECT picked.row_id, {value} AS value FROM picked JOIN {join} GROUP BY picked.row_id)"
    )
    column = "coalesce(leaked.value, origin_delay_4h) AS origin_delay_4h"
    tail = tail.replace("by_origin.* EXCLUDE (row_id)", f"by_origin.* EXCLUDE (row_id) REPLACE ({column})")
    return (
        f"{head},\n{tables}\n{select}{tail.replace(JOIN, f'{JOIN} LEFT JOIN leaked ON leaked.row_id = asked.row_id')}"
    )


def refusal(p: Params, sql: str) -> tuple[str | None, Any]:
    with tempfile.TemporaryDirectory() as out:
        try:
            return None, features.build(p, p.paths.clean, Path(out), sql)
        except ValueError as error:
            if "features.sql leaks: `" not in str(error):
                raise
            return str(error), None


def leaks(p: Params, draws: int) -> dict[str, Any]:
    sql = featuresql.SQL.read_text()
    missed = [(leak, draw) for leak in LEAKS for draw in range(draws) if refusal(p, plant(sql, leak, draw))[0] is None]
    more = p.model_copy(update={"features": p.features.model_copy(update={"leak_probes": 12 * draws})})
    alarm, probed = refusal(more, sql)
    counts = {"rows": probed.rows, "moments": probed.moments} if probed else {"rows": 0, "moments": 0}
    return {"missed": missed, "planted": len(LEAKS) * draws, "alarm": alarm, "draws": draws, **counts}


def cpu(p: Params) -> dict[str, float]:
    import duckdb  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    began = time.process_time()
    refusal(p, featuresql.SQL.read_text())
    return {"cpu": time.process_time() - began}


def main(how: str, *more: str) -> None:
    p = params.load(Path("params.yaml"))
    if how == "leaks":
        print(json.dumps(leaks(p, int(more[0]))))
        return
    probes = p.features.leak_probes if how == "with" else 0
    print(json.dumps(cpu(p.model_copy(update={"features": p.features.model_copy(update={"leak_probes": probes})}))))


if __name__ == "__main__":
    main(*sys.argv[1:])
