"""python -m tests.benchmarks.tables hotels FOLDER: a checkout of the project with that table in it."""

import argparse
import sys
from pathlib import Path

from tests.benchmarks.tables import table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.tables", description=__doc__)
    parser.add_argument("table", choices=sorted(table.ITEMS))
    parser.add_argument("folder", type=Path, help="a new folder for the checkout")
    options = parser.parse_args()
    try:
        made = table.make_checkout(options.table, options.folder.resolve())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{made.root} is set to the table {options.table}. Go there, and run: .venv/bin/python -m flows.cli replay")
    return 0


if __name__ == "__main__":
    sys.exit(main())
