"""probe: leaks planted in 1 % of the real flights, false alarms on the real features.sql, and what the probes cost."""

from statistics import median
from typing import Any

from tests.benchmarks.place import Bench, Checkout
from tests.benchmarks.row import Row, benchmark, row, seconds

FOUND = "probe: leaks planted in 1 % of the flights that are found ÷ those planted"
FALSE = "probe: false alarms on the real features.sql"
COST = "probe: the features stage with its probes ÷ without: CPU"
COMMAND = '.venv/bin/python -m tests.benchmarks "{}"'


@benchmark(FOUND, FALSE)
def planted(bench: Bench) -> list[Row]:
    """Each leak in another 1 % of the rows for each of some draws; the real SQL with moments of other draws."""
    result = bench.cleaned.run("tests.benchmarks.probe_timed", "leaks", str(bench.times(5))).output
    missed = ", ".join(f"{name} in draw {draw}" for name, draw in result["missed"])
    ratio = 1 - len(result["missed"]) / result["planted"]
    detail = f"{result['planted']} planted, five kinds; missed: {missed or 'none'}"
    leaks = Row(FOUND, ratio, 1.0, COMMAND.format(FOUND), detail, sense="at least")
    where = f"{result['rows']:,} rows at {result['moments']} moments of {result['draws']} draws"
    quiet = f"{where}; {result['alarm'] or 'no alarm'}"
    alarms = Row(FALSE, float(bool(result["alarm"])), 0.0, COMMAND.format(FALSE), quiet)
    return [leaks, alarms]


@benchmark(COST)
def cost(bench: Bench) -> list[Row]:
    """Without, by leak_probes: 0, the look-back is not checked either."""
    place = bench.cleaned
    with_probes, without = [], []
    for _ in range(bench.times(5)):
        with_probes.append(build(place, "with")["cpu"])
        without.append(build(place, "without")["cpu"])
    detail = f"{seconds(with_probes)} and {seconds(without)} of CPU, {median(with_probes) - median(without):.1f} s more"
    return [row(COST, over=with_probes, under=without, bar=1.5, detail=detail)]


def build(place: Checkout, how: str) -> Any:
    place.empty_periods()
    return place.run("tests.benchmarks.probe_timed", how).output
