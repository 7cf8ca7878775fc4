"""periods: what a new month costs when the months before it have been made."""

from tests.benchmarks.place import YEAR, Bench, Checkout
from tests.benchmarks.row import Row, benchmark, row, seconds
from tests.programs import PROGRAMS

NAME = "one more month ingested and featurized ÷ a full build of the year"
STAGES = ("ingest", "clean", "features")


@benchmark(NAME)
def one_more_month(bench: Bench) -> list[Row]:
    """Each stage as its own program, start-up and all; the same sources, as_of a month later."""
    before, after, whole = (
        ("2013-01-20", "2013-02-10", "2013-02-10") if bench.quick else ("2013-11-01", "2013-12-01", YEAR)
    )
    warm = bench.checkout(clock={"as_of": before})
    build(warm)
    month, year = [], []
    for _ in range(bench.times(3)):
        place = bench.copy(warm)
        place.set(clock={"as_of": after})
        month.append(build(place))
        year.append(build(bench.checkout(clock={"as_of": whole})))
    detail = f"as_of {before} → {after} in {seconds(month)}; {whole} from nothing in {seconds(year)}"
    return [row(NAME, over=month, under=year, bar=0.35, detail=detail)]


def build(place: Checkout) -> float:
    return sum(place.run(PROGRAMS[stage]).seconds for stage in STAGES)
