"""Retrains on a plain Prefect server: SIGKILLs in their middle, and one that lasts longer than a heartbeat may.

Server and worker are started by somebody who knows Prefect alone, with the default settings of both. The retrains are
small ones of a made table, each for a decision of its own, said by an event as the monitor says it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from statistics import median

from tasks.runtime import overrides
from tests.benchmarks.place import Bench
from tests.benchmarks.row import Row, benchmark
from tests.flows import kills
from tests.flows.kills import VICTIMS, Kill, Result, Stand, Watch
from tests.flows.station import station
from tests.flows.test_loop import FIRST, made

KILLS = "20 SIGKILLs of worker, server, run: retrains doubled + places left taken + decisions unanswered"
LONG = "a retrain of three minutes on a plain Prefect server: its runs"
COUNT, SEED = 20, 13
BUDGET_S = 180
DAY = timedelta(days=1)


@benchmark(KILLS, LONG)
def survive_kills(bench: Bench) -> list[Row]:
    with standing(bench) as stand:
        usual = measure_usual(stand)
        stand = replace(stand, usual=usual)
        results = list(kill_by_turns(stand, COUNT if not bench.quick else len(VICTIMS)))
        taken = kills.taken_places(stand.station)
        doubled = sum(result.doubled for result in results) + kills.count_doubled_records(stand.station)
        missing = kills.unanswered(results)
        for line in (*map(describe, results), *taken):
            print(line, flush=True)
        killed = Row(
            KILLS,
            float(doubled + len(taken) + len(missing)),
            0,
            command(KILLS),
            f"{doubled} doubled, {len(taken)} places, {len(missing)} unanswered; {waits(results, usual[0])}",
            sound=sum(result.killed is not None for result in results) == len(results),
        )
        return [killed, last_long(stand)]


@contextmanager
def standing(bench: Bench) -> Iterator[Stand]:
    folder = bench.folder("kills")
    made(folder)
    with station(folder, plain=True) as place:
        watch = Watch(place.home)
        with watch.running():
            yield Stand(place, watch)


def measure_usual(stand: Stand) -> tuple[float, float]:
    """Two retrains that nobody disturbs; the second is as later ones are, with a champion and warm caches."""
    for number in range(2):
        result = stand.try_kill(f"undisturbed {number}", FIRST + number * DAY / 2, None)
        print(describe(result), flush=True)
        (run,) = kills.runs_of(stand.station, result.decision)
    life = stand.watch.lives[str(run.id)]
    if result.seconds is None or result.doubled:
        raise RuntimeError(f"a retrain that nobody disturbs goes wrong: {result}")
    return result.seconds, life.end - life.begin


def kill_by_turns(stand: Stand, count: int) -> Iterator[Result]:
    """So many kills that hit; a run that ended before its turn came is tried again with the next decision."""
    number = 0
    for kill in kills.draw_kills(count, SEED):
        for share in (kill.share, kill.share / 2):
            number += 1
            result = stand.try_kill(f"kill {number}", FIRST + number * DAY, Kill(kill.victim, share))
            print(describe(result), flush=True)
            if result.killed is not None:
                break
        yield result


def last_long(stand: Stand) -> Row:
    """As long as its search may take: more trials than fit, and a budget."""
    home = stand.station.folder
    overrides.override_params(home / "params.yaml", {"tune.trials": 100_000, "tune.budget": f"{BUDGET_S}s"})
    result = stand.try_kill("a long one", FIRST + 25 * DAY, None)
    print(describe(result), flush=True)
    lasted = (result.seconds or 0) >= BUDGET_S
    detail = f"{result.seconds or 0:.0f} s from its event to its answer"
    return Row(
        LONG, float(len(result.states)), 1, command(LONG), detail, sound=lasted and result.states == ("Completed",)
    )


def describe(result: Result) -> str:
    at = "" if result.killed is None else f" after {result.killed:.0f} s"
    answer = "no answer" if result.seconds is None else f"answered after {result.seconds:.0f} s"
    wrong = f"; answers {result.answers}, overlaps {result.overlaps}, false deaths {result.false_deaths}"
    states = ", ".join(result.states)
    return f"  {result.decision}: {result.victim}{at}, {answer}, runs {states}{wrong if result.doubled else ''}"


def waits(results: list[Result], usual: float) -> str:
    """How long the answers took, by victim: the median and the longest."""
    parts = [f"nobody {usual:.0f}"]
    for victim in VICTIMS:
        times = [result.seconds for result in results if result.victim == victim and result.seconds is not None]
        parts.append(f"{victim} {median(times):.0f} (at most {max(times):.0f})" if times else f"{victim} none")
    return f"seconds to the answer: {', '.join(parts)}"


def command(name: str) -> str:
    return f'.venv/bin/python -m tests.benchmarks "{name}"'
