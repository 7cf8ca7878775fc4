"""The tables of rates in README.md here: how often the gate and the signal of performance are right in made worlds.

    .venv/bin/python -m tests.benchmarks.rates                             all tables, as Markdown; half an hour or so
    .venv/bin/python -m tests.benchmarks.rates equals slices               these
    .venv/bin/python -m tests.benchmarks.rates equals --made 50            a quick look: of fewer made worlds

The worlds are those of the slow tests, and each decision is the gate's own code, with as many draws as it takes really.
The same command gives the same figures.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.tasks.monitoring import windows
from tests.tasks.promotion import firsts, races, refits, sliced, years

LATER = (0, 4, 8, 12, races.LOOKS - 1)  # weeks after the first look
AUTOCORRELATED = ("days are independent", "days go together, 0.2", "days go together, 0.4")
SLICES = ((0.0, 300, 0.25), (0.2, 300, 0.25), (0.2, 300, 0.5), (0.2, 300, 1.0), (0.2, 1000, 0.25), (0.2, 4000, 0.25))


@dataclass(frozen=True)
class Table:
    """A table by its rows; `made` is how many worlds each figure of the page is of."""

    title: str
    made: int
    columns: tuple[str, ...]
    measure: Callable[[int], Iterator[list[str]]]

    def print(self, made: int) -> None:
        """A row as soon as it is measured."""
        print(f"\n{self.title} ({made:,} each)\n")
        for cells in (list(self.columns), ["---"] * len(self.columns)):
            print("|", " | ".join(cells), "|", flush=True)
        for cells in self.measure(made):
            print("|", " | ".join(cells), "|", flush=True)


def measure_equals(made: int) -> Iterator[list[str]]:
    names = list(years.EQUALS)
    yield ["refresh", *(percent(years.share_promoted(name, made)) for name in names)]
    for every in (1, 4, 13, races.LOOKS):
        name = {1: "search, a new one each week", races.LOOKS: "search, one"}.get(every, f"search, every {every} weeks")
        yield [name, *(percent(races.share_promoted(shape, every, made)) for shape in names)]


def measure_worse(made: int) -> Iterator[list[str]]:
    for share in (0.05, 0.1):
        refresh, search = years.share_worse_promoted(share, made), races.share_worse_promoted(share, made)
        yield [f"promoted at one look, worse by {share:.0%} of skill", percent(refresh), percent(search)]
    creep, race_creep = years.measure_creep(made), races.measure_creep(made)
    yield ["each week's worse by 0.1 % of skill: loss after a year, of skill", signed(creep), signed(race_creep)]


def measure_power(made: int) -> Iterator[list[str]]:
    for gain in (0.2, 0.15, 0.1, 0.05, -0.05, -0.1):
        shares, lost = races.share_won(gain, made, LATER)
        yield [f"{gain:+.0%}", *map(percent, shares), percent(lost)]


def measure_ageing(made: int) -> Iterator[list[str]]:
    opened, kept = years.measure_ageing(made)
    yield ["age costs as on the flights, 6,300 rows a week: years with a promotion", percent(opened)]
    yield ["the same: share of what ungated weekly fits save that is kept", percent(kept)]
    yield ["the same, 170 rows a week: years with a promotion", percent(years.share_opened(170, made))]
    yield [
        "age costs for half a year, then newer fits are worse: loss above never's, of skill",
        signed(years.measure_regime(made)),
    ]


def measure_slices(made: int) -> Iterator[list[str]]:
    for gain, rows, loss in SLICES:
        promoted = sliced.promoted_with_a_worse_slice(made, gain=gain, rows=rows, loss=loss)
        yield [f"{gain:.0%}", f"{rows:,}", f"{loss:.0%}", percent(promoted)]


def measure_first_models(made: int) -> Iterator[list[str]]:
    for kind in firsts.NOISE:
        yield [
            f"better by 3.5 standard errors, {kind} days: first look",
            percent(firsts.share_promoted_at_once(kind, made)),
        ]
    for kind in AUTOCORRELATED:
        share = firsts.share_of_years_with_a_first_model(kind, made)
        yield [f"no better, {kind}: any of a year's 34 looks", percent(share)]


def measure_broken(made: int) -> Iterator[list[str]]:
    yield ["nothing", "–", percent(refits.share_promoted("nothing", 0, made))]
    for breaks in list(refits.BREAKS)[1:]:
        for days in (7, 14):
            yield [breaks, str(days), percent(refits.share_promoted(breaks, days, made))]


def measure_performance(made: int) -> Iterator[list[str]]:
    for name, world in windows.WORLDS.items():
        alarms, heard = windows.count_alarms(world, made) / made, windows.share_heard(world, max(made // 5, 1))
        yield [name, percent(alarms), percent(heard)]


TABLES = {
    "equals": Table(
        "Years of 34 weekly looks in which an equal is promoted", 2000, ("", *years.EQUALS), measure_equals
    ),
    "worse": Table("What is worse", 600, ("", "refresh", "search"), measure_worse),
    "power": Table(
        "A search's recipe that gains so much of skill: promoted by then",
        2000,
        ("gain", "first look", "4 weeks later", "8", "12", "33", "left the race"),
        measure_power,
    ),
    "ageing": Table("Refreshes where age costs something", 100, ("", "share"), measure_ageing),
    "broken": Table(
        "Refreshes on real boosters where age costs and the newest labels broke",
        100,
        ("labels", "days", "promoted"),
        measure_broken,
    ),
    "slices": Table(
        "Candidates that gain elsewhere and are worse in one slice",
        400,
        ("gain elsewhere, of skill", "rows of the slice", "worse in it by, of skill", "promoted"),
        measure_slices,
    ),
    "first-models": Table("First models", 400, ("", "promoted"), measure_first_models),
    "performance": Table(
        "The signal of performance, windows of a week after a holdout of four; a fifth of so many with turned labels",
        2000,
        ("days", "nothing changed: alarms", "10 % of the labels turned: heard within 2 windows"),
        measure_performance,
    ),
}


def percent(share: float) -> str:
    return f"{share:.1%}"


def signed(share: float) -> str:
    return f"{share:+.2%}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.rates", description=__doc__)
    parser.add_argument("tables", nargs="*", help=f"which of {', '.join(TABLES)}; none: all")
    parser.add_argument("--made", type=int, help="of so many made years, candidates or windows, not the page's number")
    options = parser.parse_args()
    if unknown := [name for name in options.tables if name not in TABLES]:
        parser.error(f"there is no table {unknown}; there are {', '.join(TABLES)}")
    for name in options.tables or TABLES:
        TABLES[name].print(options.made or TABLES[name].made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
