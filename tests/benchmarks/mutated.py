"""Files written in other ways or damaged: how many are read wrongly, lose a row, or end without a clear error."""

from collections import Counter

from tests.benchmarks.place import Bench
from tests.benchmarks.row import Row, benchmark
from tests.tasks.data import mutant_runs, mutants

MUTATED = "500 mutated files: crashes, rows unaccounted for, wrong values"
COUNT = 500


@benchmark(MUTATED)
def read_mutants(bench: Bench) -> list[Row]:
    count = 20 if bench.quick else COUNT
    outcomes = [mutant_runs.run(seed, bench.folder(f"mutant-{seed}")) for seed in range(count)]
    done = Counter(way for outcome in outcomes for way in outcome.mutant.done)
    refused = sum(outcome.refusal is not None for outcome in outcomes)
    faulty = [outcome for outcome in outcomes if outcome.faults]
    detail = (
        f"{refused} refused by a clear error, {count - refused} read as an independent reader does; "
        f"{', '.join(f'{way} {number}' for way, number in done.most_common())}"
    )
    if faulty:
        detail += f"; the first: {mutants.describe(faulty[0].mutant)} {faulty[0].faults[0]}"
    command = f'.venv/bin/python -m tests.benchmarks "{MUTATED}"'
    return [Row(MUTATED, float(len(faulty)), 0, command, detail, sound=0 < refused < count)]
