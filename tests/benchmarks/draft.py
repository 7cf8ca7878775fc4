"""draft: from a person's file to a judged first model by `evergreen init`, and its loss against scikit-learn's own.

Tables of vega_datasets and statsmodels (group `bench` of pyproject.toml), one of them made messy.
"""

import csv
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.place import Bench, Checkout
from tests.benchmarks.row import Row, benchmark
from tests.programs import PROGRAMS

STAGES = ("ingest", "clean", "features", "tune", "train")
LOSS = "draft: loss of the first model ÷ HistGradientBoosting, {}"
COMMANDS = "draft: commands from a file to a judged first model"
MISSING_EVERY = 31  # rows, in the messy table


@dataclass(frozen=True)
class Case:
    """A table and the options of init that nobody could guess."""

    name: str
    package: str
    file: str
    options: tuple[str, ...]
    change: Callable[[str], bytes] = str.encode


def make_messy(text: str) -> bytes:
    """Semicolons, decimal commas, days before months, latin-1, and -200 for a missing value."""
    head, *rows = csv.reader(text.splitlines())
    lines = [";".join(["Größe" if name == "wind" else name for name in head])]
    for number, (day, *values, sky) in enumerate(rows):
        year, month, of_month = day.split("/")
        spelled = [value.replace(".", ",") for value in values]
        if number % MISSING_EVERY == 0:
            spelled[-1] = "-200"
        lines.append(";".join([f"{of_month}.{month}.{year}", *spelled, sky]))
    return ("\r\n".join(lines) + "\r\n").encode("latin-1")


CASES = [
    Case("messy", "vega_datasets", "_data/seattle-weather.csv", ("--label", "precipitation > 0"), make_messy),
    Case("temps", "vega_datasets", "_data/seattle-temps.csv", ()),
    Case("stocks", "vega_datasets", "_data/stocks.csv", ()),
    Case("co2", "statsmodels", "datasets/co2/co2.csv", ()),
    Case("employment", "vega_datasets", "_data/us-employment.csv", ("--label", "nonfarm_change")),
    Case("sunspots", "statsmodels", "datasets/sunspots/sunspots.csv", ("--label", "SUNACTIVITY")),
]


@benchmark(COMMANDS, *(LOSS.format(case.name) for case in CASES))
def from_a_file_to_a_first_model(bench: Bench) -> list[Row]:
    losses, verdicts = [], []
    for case in CASES[:1] if bench.quick else CASES:
        place = bench.checkout()
        table = write_table(case, bench.folder(f"files-{case.name}"))
        place.run("flows.cli", "init", str(table), *case.options)
        trials = ["--trials", "2"] if bench.quick else []
        place.run("flows.cli", "retrain", *trials)  # ends with 1 where no verdict comes of it
        verdicts.append(case.name)
        losses.append(compare_loss(case, place))
    command = f'.venv/bin/python -m tests.benchmarks "{COMMANDS}"'
    detail = f"init and retrain; no edit; judged: {', '.join(verdicts)}"
    return [Row(COMMANDS, 2, 3, command, detail), *losses]


def write_table(case: Case, folder: Path) -> Path:
    spec = importlib.util.find_spec(case.package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the package {case.package} is not installed: run `uv pip install --group bench`")
    text = (Path(spec.submodule_search_locations[0]) / case.file).read_text(encoding="utf-8")
    target = folder / f"{case.name}.csv"
    target.write_bytes(case.change(text))
    return target


def compare_loss(case: Case, place: Checkout) -> Row:
    """The twin's loss on the holdout, with the drafted configuration as it is."""
    for stage in STAGES:
        place.run(PROGRAMS[stage])
    made = place.run("tests.benchmarks.plain_boosting").output
    name = LOSS.format(case.name)
    command = f'.venv/bin/python -m tests.benchmarks "{COMMANDS}"'
    detail = f"{made['ours']:.4f} and {made['theirs']:.4f} on {made['rows']:,} rows, learnt from {made['seen']:,}"
    return Row(name, made["ours"] / made["theirs"], 1.0, command, detail)
