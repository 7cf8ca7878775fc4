"""Two machines on PostgreSQL and S3 at work, while machines, with their disks, and servers are killed by turns."""

from tests.benchmarks.place import Bench
from tests.benchmarks.row import Row, benchmark
from tests.team.ground import ground
from tests.team.soak import Plan, Result, soak

LOST = "30 SIGKILLs over a team's machines and servers: predictions, decisions, versions lost or doubled"
STUCK = "30 SIGKILLs over a team's machines and servers: runs stuck over 5 minutes"
WHOLE = Plan(scores=20, monitors=20, retrains=6, kills=30)
QUICK = Plan(scores=2, monitors=2, retrains=1, kills=5, pause=(5.0, 15.0))
LONGEST_S = 300.0


@benchmark(LOST, STUCK)
def survive_losses(bench: Bench) -> list[Row]:
    plan = QUICK if bench.quick else WHOLE
    with ground() as it:
        result = soak(it, plan)
    stuck = {name: seconds for name, seconds in result.stuck.items() if seconds > LONGEST_S}
    for line in (*result.wrong, *result.ended, *(f"{name}: {seconds:.0f} s" for name, seconds in stuck.items())):
        print(f"  {line}", flush=True)
    sound = result.killed.total() == plan.kills
    detail = describe(result)
    return [
        Row(LOST, float(len(result.wrong)), 0, command(LOST), detail, sound=sound),
        Row(
            STUCK,
            float(len(stuck)),
            0,
            command(STUCK),
            f"longest {max(result.stuck.values(), default=0):.0f} s",
            sound=sound,
        ),
    ]


def describe(result: Result) -> str:
    killed = ", ".join(f"{name} {many}" for name, many in result.killed.items())
    states = ", ".join(f"{many} {name}" for name, many in sorted(result.states.items()))
    return f"killed: {killed}; runs: {states}; {result.seconds / 60:.0f} minutes"


def command(name: str) -> str:
    return f'.venv/bin/python -m tests.benchmarks "{name}"'
