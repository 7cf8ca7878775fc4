"""outcome: what the MLflow run of a candidate shows of its verdict, so that runs can be compared side by side.

Its version inherits the tags.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.params import RetrainKind, to_utc
from tasks.promotion import figures, tags
from tasks.promotion.gains import Course
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Registry
from tasks.promotion.runs import Runs
from tasks.promotion.verdict import METRIC_NAMES, SAME, Verdict
from tasks.runtime import cost

JUDGE = "judge"  # a part of the costs, as the stages are
BASELINES = "baselines"  # what a first model is judged against
COLUMNS = (  # of the view that compares candidates
    *(f"tags.`{name}`" for name in (tags.KIND, tags.RECIPE, tags.VERDICT)),
    *(f"metrics.`{name}`" for name in ("gate.gain", "gate.bound", "gate.champion_age", "cpu_s", "cost")),
)
Figures = Mapping[str, Any]


# Of a refresh, of a race, and of a single look.
GAINS = (("leap_gain", "leap_bound"), ("age_gain", "age_bound"), ("race_gain", "race_bound"), ("gain", "bound"))


def find_gain(shown: Figures) -> tuple[float | None, float | None]:
    """The gain that decided and its bound."""
    for gain, bound in GAINS:
        if shown.get(bound) is not None:
            return shown.get(gain), shown[bound]
    return shown.get("gain"), None


def draw(path: Path, verdict: Verdict, as_of: datetime, entries: Sequence[Entry]) -> Path | None:
    """The evidence of a verdict as a picture, with the looks at the same champion before it; None where it has none.

    Args:
        entries: The ledger.
    """
    shown = verdict.figures
    if not (raw := shown.get("course")) or not raw["gains"]:
        return None
    course, champion = Course.from_dict(raw), shown.get("champion_version")
    earlier = [
        _to_look(entry.as_of, str(entry.outcome), entry.verdict.get("figures", {}))
        for entry in entries
        if entry.is_retrain and champion is not None and entry.champion == champion and entry.as_of < as_of
    ]
    looks = [look for look in earlier if look.as_of >= course.begins[0]]
    looks.append(_to_look(as_of, verdict.outcome, shown))
    kind = shown.get("kind", "search")
    title = f"{verdict.outcome}: {kind} as of {as_of:%Y-%m-%d}, against {find_opponent(verdict)}"
    is_squared = shown["metric"] == "rmse" and course.unit == "week"  # evidence is sums of row losses
    unit = "squared error" if is_squared else METRIC_NAMES[shown["metric"]]
    return figures.draw_verdict(path, course, looks, title=title, unit=unit, mean=find_gain(shown)[0])


def _to_look(as_of: datetime, outcome: str, shown: Figures) -> figures.Look:
    return figures.Look(to_utc(as_of), outcome, find_gain(shown)[1])


def add_costs(verdict: Verdict, parts: Mapping[str, float], kind: RetrainKind, *, cpu_price: float) -> Verdict:
    """The verdict with the kind of its retrain and what that took: the stages that ran, the evidence, the judging.

    Args:
        parts: CPU seconds by part.
    """
    if evidence := float(verdict.figures.get("evidence_cpu", 0.0)):
        parts = {**parts, "evidence": evidence, JUDGE: max(parts.get(JUDGE, 0.0) - evidence, 0.0)}
    parts = {part: round(seconds, 2) for part, seconds in parts.items()}
    spent = {"cpu_s": round(sum(parts.values()), 2), "cpu": parts, "cost": cost.price(parts, cpu_price)}
    return replace(verdict, figures={**verdict.figures, "kind": kind, **spent})


def append_verdict(
    registry: Registry, verdict: Verdict, run_id: str, *, decision: str, as_of: datetime, champion: int | None
) -> None:
    """Write a verdict that does not promote into the ledger.

    Args:
        champion: The version that serves.
    """
    registry.append(
        Entry(
            "verdict",
            decision,
            as_of,
            run=run_id,
            champion=verdict.figures.get("champion_version", champion),
            outcome=verdict.outcome,
            reasons=verdict.reasons,
            counts_as_look=verdict.counts_as_look,
            cpu=verdict.figures["cpu_s"],
            verdict=verdict.to_dict(),
        )
    )


def add_verdict(runs: Runs, run_id: str, verdict: Verdict, *, cpu_price: float) -> None:
    """Show on a candidate's run what the verdict says, and what making and judging it takes.

    A candidate that is judged again keeps what its stages took when they ran. One that is found to be what serves keeps
    the verdict by which it came to serve.
    """
    before, shown = runs.read_data(run_id), verdict.figures
    parts = {
        name.removeprefix(cost.PART): value for name, value in before.metrics.items() if name.startswith(cost.PART)
    }
    costs = cost.list_metrics(parts | shown["cpu"], cpu_price)
    labels = {
        tags.KIND: shown["kind"],
        tags.AGAINST: find_opponent(verdict),
        tags.VERDICT: verdict.outcome,
        tags.CPU: f"{costs['cpu_s']:.1f}",
        tags.COST: f"{costs['cost']:.4g}",
    }
    if SAME in shown and tags.VERDICT in before.tags:
        labels = {name: labels[name] for name in (tags.CPU, tags.COST)}
    gain, bound = find_gain(shown)
    numbers = {"gate.gain": gain, "gate.bound": bound, "gate.champion_age": shown.get("champion_age")}
    shortened = {
        name: float(f"{value:.4g}") for name, value in numbers.items() if value is not None
    }  # a column is narrow
    runs.add(run_id, tags=labels, metrics=costs | shortened)


def find_opponent(verdict: Verdict) -> str:
    """What a candidate was judged against."""
    number = verdict.figures.get("champion_version")
    return f"version {number}" if number else BASELINES


@dataclass(frozen=True)
class Links:
    """Where a person sees a candidate's run, and all candidates that were judged against the same.

    Attributes:
        against: what that is.
    """

    run: str
    against: str
    comparison: str


def find_links(registry: Registry, run_id: str, verdict: Verdict) -> Links:
    against = find_opponent(verdict)
    return Links(registry.tracking.find_link(run_id), against, save_comparison(registry, against))


def save_comparison(registry: Registry, against: str) -> str:
    """Save the view of all candidates that were judged against the same; its address."""
    query, name = f"tags.`{tags.AGAINST}` = '{against}'", f"against-{against.replace(' ', '-')}"
    return registry.tracking.save_view(registry.runs.experiment, name, query=query, columns=COLUMNS)
