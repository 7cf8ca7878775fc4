"""intake: what ingest and clean take of time and memory, against DuckDB alone, and for a day more."""

from statistics import median

from tests.benchmarks.place import YEAR, Bench, Checkout
from tests.benchmarks.row import Row, benchmark, row, seconds

COPY = "intake: rows a second of ingest + clean, 10 × the year from Parquet ÷ a bare DuckDB COPY with the same casts"
MEMORY = "intake: peak memory of ingest + clean, 10 × the year ÷ 1 ×"
DAY = "intake: ingest + clean with a day of new rows ÷ a full build of the year"
TIMED = "tests.benchmarks.intake_timed"
TIMES, LAST_DAY = 10, "2013-12-30"


@benchmark(COPY, MEMORY)
def against_copy(bench: Bench) -> list[Row]:
    """In turn. The stages derive columns, type each row twice, check it against other tables, and write it three times,
    sorted and by period. What DuckDB takes to derive and sort alone stands in the detail."""
    sides = {times: write(bench, 2 if bench.quick and times > 1 else times) for times in (1, TIMES)}
    stages, copies, derived, peaks = [], [], [], {times: list[float]() for times in sides}
    for _ in range(bench.times(3)):
        for times, place in sides.items():
            place.empty_periods()
            made = place.run(TIMED, "stages").output
            peaks[times].append(made["peak"])
        stages.append(made["seconds"])
        copies.append(sides[TIMES].run(TIMED, "copy").output["seconds"])
        derived.append(sides[TIMES].run(TIMED, "derive").output["seconds"])
    detail = f"ingest + clean {seconds(stages)}, COPY {seconds(copies)}, COPY that derives and sorts {seconds(derived)}"
    one, ten = (median(peaks[times]) for times in sides)
    memory = f"{ten / 1e6:,.0f} and {one / 1e6:,.0f} MB; stage.memory 4 GB"
    return [
        row(COPY, over=copies, under=stages, bar=0.4, detail=detail, sense="at least"),
        row(MEMORY, over=peaks[TIMES], under=peaks[1], bar=1.3, detail=memory),
    ]


@benchmark(DAY)
def one_more_day(bench: Bench) -> list[Row]:
    """The last month's file is written anew with a day more in it, as a nightly export is."""
    days, builds = [], []
    for _ in range(bench.times(3)):
        place = write(bench, 1, until=LAST_DAY)
        builds.append(place.run(TIMED, "stages").output["seconds"])
        place.run(TIMED, "write", "1", YEAR)
        days.append(place.run(TIMED, "stages").output["seconds"])
    detail = f"a day more {seconds(days)}, a full build {seconds(builds)}"
    return [row(DAY, over=days, under=builds, bar=0.1, detail=detail)]


def write(bench: Bench, times: int, *, until: str = YEAR) -> Checkout:
    place = bench.checkout(clock={"as_of": YEAR})
    place.set_flat({"sources.flights.address": "source/flights-*.parquet", "sources.flights.nulls": []})
    place.run(TIMED, "write", str(times), until)
    return place
