"""Run benchmarks, print the table, and write it to reports/bench.json; see the package's docstring."""

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tasks import params
from tasks.runtime import files
from tests.benchmarks import (  # each puts its rows on the list
    calibration,  # noqa: F401
    draft,  # noqa: F401
    drift,  # noqa: F401
    engine,  # noqa: F401
    event,  # noqa: F401
    features,  # noqa: F401
    intake,  # noqa: F401
    kills,  # noqa: F401
    loop,  # noqa: F401
    month,  # noqa: F401
    mutated,  # noqa: F401
    out_of_core,  # noqa: F401
    probe,  # noqa: F401
    replay,  # noqa: F401
    search,  # noqa: F401
    serving,  # noqa: F401
    serving_beside_lean,  # noqa: F401
    team,  # noqa: F401
    tuning,  # noqa: F401
)
from tests.benchmarks.place import ROOT, Bench
from tests.benchmarks.row import BENCHMARKS, Benchmark, Row

SIGNS = {"at most": "≤", "at least": "≥"}


def main() -> int:
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=False)
    if options.list:
        console.print("\n".join(name for entry in BENCHMARKS for name in entry.names), highlight=False)
        return 0
    target = (
        ROOT / params.load(ROOT / "params.yaml").paths.reports / ("bench-quick.json" if options.quick else "bench.json")
    )
    rows, failed = run(chosen(options.rows), console, target, quick=options.quick)
    console.print(table(rows))
    console.print(f"written to {target.relative_to(ROOT)}" + (f"; {failed} could not be measured" if failed else ""))
    return int(failed > 0 or not all(one.holds for one in rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", help="only the rows whose names hold one of these")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="little data and few trials: shows that the benchmarks run, measures nothing",
    )
    parser.add_argument("--list", action="store_true", help="the rows' names")
    return parser.parse_args()


def chosen(parts: list[str]) -> list[Benchmark]:
    """Raises SystemExit for a name that no row has."""
    names = [name for entry in BENCHMARKS for name in entry.names]
    if unknown := [part for part in parts if not any(part in name for name in names)]:
        raise SystemExit(f"no row's name holds {unknown}; there are:\n" + "\n".join(names))
    return [entry for entry in BENCHMARKS if not parts or any(part in name for part in parts for name in entry.names)]


def run(wanted: list[Benchmark], console: Console, target: Path, *, quick: bool) -> tuple[list[Row], int]:
    """The rows that could be measured, and how many could not. Each is written as it comes."""
    measured: list[Row] = []
    failed = 0
    with tempfile.TemporaryDirectory(prefix="evergreen-bench-") as scratch:
        bench = Bench(Path(scratch).resolve(), quick=quick)
        for entry in wanted:
            began = time.monotonic()
            console.print(f"measuring {' and '.join(entry.names)} ...", highlight=False)
            try:
                rows = entry.run(bench)
            except Exception:  # the others are measured all the same, and the end says so
                console.print(traceback.format_exc(), markup=False, highlight=False)
                failed += len(entry.names)
                continue
            measured += rows
            write(rows, target)
            console.print(f"  {', '.join(f'{one.ratio:.3f}' for one in rows)} after {time.monotonic() - began:.0f} s")
    return measured, failed


def write(rows: list[Row], target: Path) -> None:
    """Add the rows to the file, in the place of those of the same name."""
    before = json.loads(target.read_text()) if target.exists() else []
    entries = {one["row"]: one for one in before} | {row.row: row.to_dict() for row in rows}
    names = [name for entry in BENCHMARKS for name in entry.names]
    files.publish_json(target, [entries[name] for name in names if name in entries])


def table(rows: list[Row]) -> Table:
    shown = Table(title="benchmarks", title_justify="left")
    for name, side in (("row", "left"), ("ratio", "right"), ("bar", "right"), ("holds", "left"), ("detail", "left")):
        shown.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        colour = "green" if row.holds else "red"
        bar = f"{SIGNS[row.sense]} {row.bar:g}"
        shown.add_row(row.row, f"{row.ratio:.3f}", bar, f"[{colour}]{'yes' if row.holds else 'NO'}[/]", row.detail)
    return shown


if __name__ == "__main__":
    sys.exit(main())
