"""The journal's compacted layer as a Delta table, beside today's Parquet by day; and what an acknowledgement costs.

    uv pip install --group bench
    .venv/bin/python -m tests.benchmarks.journal_delta

The logs in front are the same on both sides. Delta gets what a log holds in one commit, and its own compaction once a
day of rows. Both sides give each row once: Delta by the reader too, since only a merge would do it in the table.
"""

import os
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake

from tasks.runtime import store
from tasks.serving.journal import Journal
from tasks.serving.journal_log import LocalLogs, read_frames, remove_log
from tasks.serving.journal_segments import StoreLogs
from tests import servers
from tests.tasks import journalled

BEGIN = datetime(2013, 5, 1)
DAYS, LOGS_A_DAY, LOG_ROWS, FEATURES = 28, 4, 2000, 12
SINCE, UNTIL = BEGIN + timedelta(days=14), BEGIN + timedelta(days=21)
READS, COMMITS, SYNCS = 7, 50, 300


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, logs = Path(folder), [make_rows(number) for number in range(DAYS * LOGS_A_DAY)]
        journal = Journal(LocalLogs(root / "logs"), str(root / "parquet"))
        ours, delta = compact_journal(journal, logs), compact_delta(root, logs)
        print(
            f"{len(logs) * LOG_ROWS:,} rows in {len(logs)} logs; seconds of compaction: {ours:.2f}, Delta {delta:.2f}"
        )
        week = [
            measure(lambda: journal.read("predictions", since=SINCE, until=UNTIL)),
            measure(lambda: read_delta(root)),
        ]
        print(f"read of a week, ms: {1000 * week[0]:.0f}, Delta {1000 * week[1]:.0f}")
        few = logs[0].slice(0, 10)
        commits = rate(lambda: write_deltalake(str(root / "direct"), few, mode="append"), COMMITS)
        syncs = rate(lambda: journal.append("predictions", few), SYNCS)
        print(
            f"ten rows acknowledged, times a second: a log on this disk {syncs:,.0f}, a commit of Delta {commits:,.0f}"
        )
        with servers.open_folder() as place, servers.run_s3(place) as s3:
            team = Journal(StoreLogs(store.open_store(f"s3://{servers.BUCKET}/bench")), str(root / "unused"))
            with mock.patch.dict(os.environ, s3.environment()):
                segments = rate(lambda: team.append("predictions", few), SYNCS)
        print(f"... a segment in a store (SeaweedFS on this machine): {segments:,.0f}")


def make_rows(number: int) -> pa.Table:
    """What one log holds: six hours of rows with features."""
    random = np.random.default_rng(number)
    times = [BEGIN + timedelta(hours=24 / LOGS_A_DAY * number, seconds=10 * row) for row in range(LOG_ROWS)]
    rows = journalled.predictions([f"{number * LOG_ROWS + row:032x}" for row in range(LOG_ROWS)], event_time=times)
    for feature in range(FEATURES):
        rows = rows.append_column(f"x_{feature}", pa.array(random.normal(size=LOG_ROWS)))
    return rows


def compact_journal(journal: Journal, logs: list[pa.Table]) -> float:
    spent = 0.0
    for number, rows in enumerate(logs, 1):
        journal.append("predictions", rows)
        journal.close()
        if number % LOGS_A_DAY == 0:
            spent += measure(journal.compact, times=1)
    return spent


def compact_delta(root: Path, logs: list[pa.Table]) -> float:
    writer, address, spent = Journal(LocalLogs(root / "delta-logs"), str(root / "unused")), str(root / "delta"), 0.0

    def move() -> None:
        for path in (root / "delta-logs" / "predictions").glob("*.log"):
            rows = pa.concat_tables(read_frames(path))
            rows = rows.append_column("day", pc.strftime(rows["event_time"], "%Y-%m-%d"))
            write_deltalake(address, rows, mode="append", partition_by=["day"], schema_mode="merge")
            remove_log(path)
        DeltaTable(address).optimize.compact()

    for number, rows in enumerate(logs, 1):
        writer.append("predictions", rows)
        writer.close()
        if number % LOGS_A_DAY == 0:
            spent += measure(move, times=1)
    return spent


def read_delta(root: Path) -> pa.Table:
    days = [f"{SINCE + timedelta(days=day):%Y-%m-%d}" for day in range((UNTIL - SINCE).days)]
    rows = DeltaTable(str(root / "delta")).to_pyarrow_table(filters=[("day", "in", days)])
    _, first = np.unique(rows["entry"].to_numpy(), return_index=True)
    return rows.take(first).sort_by([("event_time", "ascending"), ("entry", "ascending")])


def measure(work: Callable[[], object], *, times: int = READS) -> float:
    """The median of the seconds that it takes."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def rate(work: Callable[[], object], times: int) -> float:
    """How often a second it can be done."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return times / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
