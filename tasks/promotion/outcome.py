"""outcome: what the MLflow run of a candidate shows of its verdict, so that runs can be compared side by side.

Its version inherits the tags.
"""

from collections.abc import Mapping

from tasks.promotion import tags
from tasks.promotion.runs import Runs
from tasks.promotion.verdict import Verdict
from tasks.runtime import cost

CPU_PART = "cpu."  # and the part: the name of a metric


def list_costs(parts: Mapping[str, float], cpu_price: float) -> dict[str, float]:
    """CPU seconds and money as metrics: of all parts, and the seconds of each."""
    whole = {"cpu_s": round(sum(parts.values()), 2), "cost": cost.price(parts, cpu_price)}
    return whole | {f"{CPU_PART}{part}": seconds for part, seconds in parts.items()}


def add_verdict(runs: Runs, run_id: str, verdict: Verdict, *, cpu_price: float) -> None:
    """Show on a candidate's run what the verdict says, and what making and judging it takes.

    A candidate that is judged again keeps what its stages took when they ran.
    """
    before = runs.read_data(run_id).metrics
    parts = {name.removeprefix(CPU_PART): value for name, value in before.items() if name.startswith(CPU_PART)}
    costs = list_costs(parts | verdict.figures["cpu"], cpu_price)
    shown = {tags.KIND: verdict.figures["kind"], tags.CPU: f"{costs['cpu_s']:.1f}", tags.COST: f"{costs['cost']:.4g}"}
    runs.add(run_id, tags=shown, metrics=costs)
