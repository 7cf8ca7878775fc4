"""drift: false alarms where nothing changes, what is found where something does, and the time beside Evidently's."""

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from statistics import mean, median
from typing import Any

import numpy as np

from tasks import params
from tests.benchmarks import still_columns
from tests.benchmarks.place import ROOT, YEAR, Bench
from tests.benchmarks.row import Row, benchmark, row, seconds
from tests.programs import PROGRAMS

FALSE = "drift: alarms on a stream without change ÷ the most that chance allows"
FOUND = "drift: planted shifts found within 2 windows"
COLUMNS = "drift: alarms on 5,000-level, near-unique and plain columns ÷ the most that chance allows"
PARTED = "drift: columns shuffled, shifted or turned that are found"
QUIET = "performance: alarms on a stream without change ÷ stated"
HEARD = "performance: 10 % of labels turned, found within 2 windows"
TIME = "drift: signals and report ÷ Evidently's preset on all rows"
SCALE = "drift: time of 300,000 rows ÷ 30,000"
STREAMS = 4  # of some 25 windows each
MADE_STREAMS = 12  # of each kind, of eight windows
DRAWS = 100_000


@benchmark(FALSE, FOUND)
def still(bench: Bench) -> list[Row]:
    place = bench.checkout(clock={"as_of": "2013-05-01" if bench.quick else YEAR})
    for stage in ("ingest", "clean", "features"):
        place.run(PROGRAMS[stage])
    result = place.run("tests.benchmarks.still_stream", "1" if bench.quick else str(STREAMS)).output
    return [false_alarms(result), detection(result)]


def false_alarms(result: dict[str, Any]) -> Row:
    """Each stream has a threshold of its own, a quantile of so many windows: that is a sample too."""
    p = params.load(ROOT / "params.yaml")
    stated = p.drift.false_alarms * p.monitor.window.days / 30
    streams = [[any(alarms) for seed, *alarms in result["windows"] if seed == one] for one in seeds(result)]
    low, high = likely([len(stream) for stream in streams], stated, result["windows_of_history"])
    count, windows = sum(map(sum, streams)), sum(map(len, streams))
    by_drift = sum(alarm for _, alarm, _ in result["windows"])
    detail = (
        f"{count} of {windows} windows ({by_drift} by drift, the rest by quality alone); stated {stated:.1%}, "
        f"and chance allows {low} to {high}"
    )
    return Row(FALSE, count / max(high, 1), 1, command(FALSE), detail, sound=count >= low)


def seeds(result: dict[str, Any]) -> list[int]:
    return sorted({seed for seed, *_ in result["windows"]})


def likely(windows: Sequence[int], stated: float, history: float) -> tuple[int, int]:
    """The middle 95 % of beta-binomial counts, one for each stream, together."""
    rng = np.random.default_rng(0)
    rates = rng.beta(stated * (history + 1), (1 - stated) * (history + 1), (DRAWS, len(windows)))
    counts = rng.binomial(windows, rates).sum(axis=1)
    low, high = np.quantile(counts, [0.025, 0.975])
    return int(low), int(high)


def detection(result: dict[str, Any]) -> Row:
    """Every column's shift counts alike."""
    by_shift = {name: mean(any(one) for one in seen) for name, seen in result["alarms"].items()}
    share = mean(by_shift.values())
    by_drift = mean(mean(one[0] for one in seen) for seen in result["alarms"].values())
    worst = sorted(by_shift.items(), key=lambda one: one[1])[:4]
    detail = (
        f"{len(by_shift)} shifts of numbers and categories, {by_drift:.1%} by the drift signal, the rest by quality; "
        f"the hardest: {', '.join(f'{name} {share:.0%}' for name, share in worst)}"
    )
    return Row(FOUND, share, 0.9, command(FOUND), detail, "at least")


@benchmark(QUIET, HEARD)
def labels(bench: Bench) -> list[Row]:
    place = bench.checkout(clock={"as_of": "2013-05-01" if bench.quick else YEAR})
    for stage in ("ingest", "clean", "features"):
        place.run(PROGRAMS[stage])
    counts = place.run("tests.benchmarks.still_stream", "1" if bench.quick else str(STREAMS), "labels").output
    stated = (1 - params.load(ROOT / "params.yaml").gate.level) / 2
    quiet = {together: mean(chain(*result["quiet"])) for together, result in counts.items()}
    pairs = {together: chain.from_iterable(map(pairwise, result["turned"])) for together, result in counts.items()}
    heard = {together: mean(map(any, listed)) for together, listed in pairs.items()}
    windows = sum(map(len, next(iter(counts.values()))["quiet"]))
    detail = f"{windows} windows for each number of days that stay together: "
    return [
        Row(QUIET, mean(quiet.values()) / stated, 1, command(QUIET), detail + shown(quiet)),
        Row(HEARD, min(heard.values()), 0.8, command(HEARD), detail + shown(heard), "at least"),
    ]


def shown(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{together}: {share:.1%}" for together, share in shares.items())


@benchmark(TIME, SCALE)
def time(bench: Bench) -> list[Row]:
    place = bench.checkout()
    large, small = ("30000", "3000") if bench.quick else ("300000", "30000")
    runs: dict[tuple[str, str], list[Any]] = {("ours", large): [], ("theirs", large): [], ("ours", small): []}
    for _ in range(bench.times(3)):
        for options, results in runs.items():
            results.append(place.run("tests.benchmarks.drift_timed", *options).output)
    took = {options: [one["seconds"] for one in results] for options, results in runs.items()}
    ours, theirs = (runs[who, large][0]["moved"] for who in ("ours", "theirs"))
    odd = [case for case in ours if ours[case] != theirs[case]]
    detail = (
        f"{large} rows × 30 columns, imports left out: {seconds(took['ours', large])}; Evidently "
        f"{seconds(took['theirs', large])}; "
        + (f"NOT THE SAME VERDICT: {[(one, ours[one], theirs[one]) for one in odd]}" if odd else "the same verdicts")
    )
    growth = f"{large} rows {seconds(took['ours', large])}, {small} rows {seconds(took['ours', small])}"
    return [
        row(TIME, over=took["ours", large], under=took["theirs", large], bar=0.25, detail=detail, sound=not odd),
        Row(SCALE, median(took["ours", large]) / median(took["ours", small]), 3, command(SCALE), growth),
    ]


@benchmark(COLUMNS, PARTED)
def columns(bench: Bench) -> list[Row]:
    place = bench.checkout()
    kinds = place.run("tests.benchmarks.still_columns", "2" if bench.quick else str(MADE_STREAMS)).output
    return [column_alarms(kinds), parted(kinds)]


def column_alarms(kinds: dict[str, Any]) -> Row:
    """The worst of the kinds: each has a threshold of its own."""
    p = params.load(ROOT / "params.yaml")
    stated = p.drift.false_alarms * still_columns.WEEK / 30
    counts = {kind: sum(any(alarms) for _, *alarms in result["windows"]) for kind, result in kinds.items()}
    most = {
        kind: likely([still_columns.WEEKS] * len(seeds(result)), stated, result["windows_of_history"])[1]
        for kind, result in kinds.items()
    }
    detail = "; ".join(
        f"{kind}: {counts[kind]} of {len(result['windows'])} windows, chance allows {most[kind]}"
        for kind, result in kinds.items()
    )
    ratio = max(counts[kind] / max(most[kind], 1) for kind in kinds)
    return Row(COLUMNS, ratio, 1, command(COLUMNS), f"stated {stated:.1%}; {detail}")


def parted(kinds: dict[str, Any]) -> Row:
    """Of a column that goes with another by 0.7, in one week of 420 rows."""
    shares = {how: mean(mean(result["alarms"][how]) for result in kinds.values()) for how in kinds["plain"]["alarms"]}
    detail = ", ".join(f"{how} {share:.0%}" for how, share in shares.items())
    return Row(PARTED, mean(shares[how] for how in still_columns.BROKEN), 0.95, command(PARTED), detail, "at least")


def command(name: str) -> str:
    return f'.venv/bin/python -m tests.benchmarks "{name}"'
