"""gate: may this candidate serve? A contest, costs and slices → Verdict. It acts on nothing and reads no file.

The candidate is promoted when the gain over the champion is surely above gate.min_gain (rule superior) or above minus
gate.margin (non_inferior), it keeps its budgets, and no slice gets worse. Margins and tolerances are shares of skill:
the best constant's loss less the champion's, or less the candidate's where there is no champion. README.md tells the
statistics and what was measured of them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from tasks.params import Gate, spell, to_utc
from tasks.promotion.contest import Contest, Side
from tasks.promotion.interval import Interval
from tasks.promotion.sequence import allot_look, stretch_variance
from tasks.promotion.slices import Part, Slices, measure_parts
from tasks.promotion.verdict import COMPARISONS, Outcome, Verdict, describe_gain, hold

HARSHNESS: tuple[Outcome, ...] = ("PROMOTE", "HOLD", "REJECT")
TELLING_BLOCKS = 20  # so many show whether neighbouring blocks go together


@dataclass(frozen=True)
class Costs:
    """What a model costs, for the budgets gate.max_*."""

    calibration_error: float = 0.0
    megabytes: float = 0.0
    milliseconds: float = 0.0  # per row

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, but got {value!r}")


class Share(NamedTuple):
    """A margin that is a share of skill, so that it means the same for every metric."""

    name: str  # of the setting
    share: float
    value: float

    def __str__(self) -> str:
        return f"{self.value:.4g} (gate.{self.name}: {self.share:.2%} of the skill)"


class Finding(NamedTuple):
    """What one rule says. The harshest outcome of all is the verdict's; None is a remark for the reader."""

    outcome: Outcome | None
    reason: str


def judge_contest(
    contest: Contest, *, gate: Gate, costs: Costs | None = None, slices: Slices | None = None, looks: int = 0
) -> Verdict:
    """The verdict on a candidate against the champion.

    Args:
        costs: The candidate's. None: it costs nothing.
        slices: For each slice's column, the value of each row that was compared.
        looks: How many gates this champion has survived before. A gate that could not have promoted (too few rows, over
            budget, unchanged) spent nothing and is not counted: `counts_as_look` is False of its verdict.
    """
    tail, interval = allot_tail(looks, gate), contest.interval
    findings = _compare_with_champion(contest, interval, tail, gate) if interval else []
    skill = contest.skill("champion")
    spending = {
        "looks": looks,
        "spent_level": 1 - tail,
        "bound": interval.low(tail) if interval else None,
        "skill": skill.metric,
        "least": choose_least(gate, skill.metric).value,
    }
    return _conclude(contest, findings, spending, gate=gate, costs=costs, slices=slices)


def judge_first_model(
    contests: Mapping[str, Contest],
    *,
    gate: Gate,
    costs: Costs | None = None,
    slices: Slices | None = None,
    looks: int = 0,
) -> Verdict:
    """The verdict where there is no champion yet: the candidate must beat every baseline.

    Args:
        contests: With each baseline, by its name. Slices are judged against the best baseline.
        looks: How many first models were refused. The first look has a fixed sample's bound. A later one has a bound
            for looks at any times, on the days of its own holdout: it asks for the same evidence, whatever was tried.
    """
    if not contests:
        return hold("There is no baseline to beat. Name one in evaluate.baselines.")
    tail = _allot_first_tail(looks, max(contest.blocks for contest in contests.values()), gate)
    intervals = {name: contest.interval for name, contest in contests.items() if contest.interval}
    bounds = {name: _bound_gain(contests[name], intervals[name], tail, is_first=not looks) for name in intervals}
    findings = [_compare_with_baseline(name, contests[name], intervals[name], bounds[name], gate) for name in intervals]
    if bounds:
        hardest = min(bounds, key=lambda name: bounds[name])
        than = "more" if bounds[hardest] > 0 else "not more"
        kind = f"a bound for later looks, after {looks} others" if looks else "a single look's bound, as the first has"
        remark = (
            f"At this look's level ({1 - tail:.2%}; {kind}) the gain over {hardest} is above {bounds[hardest]:+.4g}"
        )
        wide = _explain_width(contests[hardest], intervals[hardest], gate)
        findings.append(Finding(None, f"{remark}: {than} than 0. {wide}"))
    best = min(contests.values(), key=lambda contest: contest.sums.metrics[1])
    baselines = [
        {"baseline": name, "metric": one.sums.metrics[1], **one.gain(gate.level), "bound": bounds.get(name)}
        for name, one in contests.items()
    ]
    spending = {"looks": looks, "spent_level": 1 - tail, "bound": min(bounds.values(), default=None)}
    more = {"champion": None, "baselines": baselines}
    return _conclude(best, findings, spending, gate=gate, costs=costs, slices=slices, more=more, side="candidate")


def judge_findings(
    contest: Contest,
    findings: Sequence[Finding],
    figures: Mapping[str, Any],
    *,
    gate: Gate,
    costs: Costs,
    slices: Slices,
    too_few: Sequence[Finding] = (),
) -> Verdict:
    """The verdict by what `refresh` or `race` found, costs and slices.

    Args:
        contest: With the champion, for the slices and the figures. It asks for no least number of rows: the findings
            know theirs.
        too_few: What forbids to look at anything.
    """
    return _conclude(contest, findings, figures, gate=gate, costs=costs, slices=slices, too_few=too_few)


def explain_backoff(last_time: datetime | None, now: datetime, gate: Gate) -> str | None:
    """Why no candidate may be looked at yet; None where one may.

    Args:
        last_time: The event time of the last HOLD or REJECT against the same champion, or of a first model.
    """
    if last_time is None or (until := to_utc(last_time) + gate.backoff) <= to_utc(now):
        return None
    return (
        f"The last look, at {to_utc(last_time):%Y-%m-%d %H:%M}, did not promote. "
        f"The next is gate.backoff ({spell(gate.backoff)}) later, from {until:%Y-%m-%d %H:%M} on. For one now, which "
        'costs evidence as each look does: --settings \'{"gate.backoff": "0s"}\'.'
    )


def _allot_first_tail(looks: int, blocks: int, gate: Gate) -> float:
    if looks < 0:
        raise ValueError(f"`looks >= 0` must hold, but got looks={looks}. It counts the earlier gates.")
    tail = (1 - gate.level) / 2
    return allot_look(blocks, tail) if looks else tail


def choose_least(gate: Gate, skill: float) -> Share:
    """What the gain's bound must lie above, by gate.rule."""
    name, share = ("min_gain", gate.min_gain) if gate.rule == "superior" else ("margin", -gate.margin)
    return Share(name, share, share * skill)


def allot_tail(looks: int, gate: Gate) -> float:
    """The one-sided tail that the look after `looks` others may use.

    Over all looks they sum to (1 - level) / 2, and the first look has half of it.
    """
    if looks < 0:
        raise ValueError(f"`looks >= 0` must hold, but got looks={looks}. It counts the earlier gates.")
    return (1 - gate.level) / 2 / ((looks + 1) * (looks + 2))


def _conclude(
    contest: Contest,
    findings: Sequence[Finding],
    spending: Mapping[str, Any],
    *,
    gate: Gate,
    costs: Costs | None,
    slices: Slices | None,
    more: Mapping[str, Any] | None = None,
    side: Side = "champion",
    too_few: Sequence[Finding] | None = None,
) -> Verdict:
    """The harshest of all findings, where there are rows enough to compare, with the figures they come from.

    Args:
        side: Whose skill sets the tolerance of slices.
    """
    costs = costs or Costs()
    limit = Share("slice_tolerance", gate.slice_tolerance, gate.slice_tolerance * contest.skill(side).loss)
    too_few = list(find_too_few(contest.rows, contest.blocks, gate)) if too_few is None else too_few
    forbidden = [*too_few, *_find_over_budget(costs, gate)]
    rows = [] if too_few else list(_compare_slices(contest, slices or {}, gate, limit))
    compared = [] if too_few else [*findings, *_find_worse_slices(rows, limit)]
    ordered = sorted([*forbidden, *compared], key=lambda finding: -_harshness(finding))
    figures = {
        **_list_figures(contest, gate),
        "course": contest.course.to_dict(),
        "looked": not forbidden,
        **spending,
        **asdict(costs),
        **(more or {}),
        "slices": rows,
    }
    return Verdict(HARSHNESS[_harshness(ordered[0])], tuple(finding.reason for finding in ordered), figures)


def _harshness(finding: Finding) -> int:
    return HARSHNESS.index(finding.outcome) if finding.outcome else -1


# --- the rules -----------------------------------------------------------------------------------------------------


def find_too_few(rows: int, blocks: int, gate: Gate) -> Iterator[Finding]:
    """What there must be more of before anything is compared."""
    if rows < gate.min_rows:
        yield Finding("HOLD", f"{rows:,} rows are fewer than gate.min_rows ({gate.min_rows:,}).")
    if blocks < gate.min_blocks:
        few = f"{blocks} blocks of {spell(gate.block)}"
        yield Finding("HOLD", f"{few} are fewer than gate.min_blocks ({gate.min_blocks}).")


def _find_over_budget(costs: Costs, gate: Gate) -> Iterator[Finding]:
    for name, unit in (("calibration_error", ""), ("megabytes", " MB"), ("milliseconds", " ms a row")):
        value, most = getattr(costs, name), getattr(gate, f"max_{name}")
        if value > most:
            measure = "Calibration error" if name == "calibration_error" else "Over budget:"
            yield Finding("REJECT", f"{measure} {value:.4g}{unit} is more than gate.max_{name} ({most:g}{unit}).")


def _compare_with_champion(contest: Contest, interval: Interval, tail: float, gate: Gate) -> list[Finding]:
    share = choose_least(gate, contest.skill("champion").metric)
    least = share.value
    bound, gain = interval.low(tail), describe_gain(_list_figures(contest, gate))
    outcome = _choose_outcome(bound > least, interval, gate)
    findings = [
        Finding(outcome, f"{COMPARISONS[gate.rule, outcome]} the champion: {gain}."),
        Finding(
            None,
            f"At this look's level ({1 - tail:.2%}) the gain is above {bound:+.4g}: "
            f"{'more' if bound > least else 'not more'} than {share}, rule {gate.rule}.",
        ),
    ]
    if contest.seeds == (1, 1):
        findings.append(Finding(None, "One seed each: the interval is of these two models, not of their recipes."))
    if _go_together(contest):
        remark = f"Neighbouring blocks rise and fall together (correlation {contest.sums.correlation:.2f})"
        findings.append(Finding(None, f"{remark}, so the interval may be too narrow: consider a longer gate.block."))
    return findings


def _bound_gain(contest: Contest, interval: Interval, tail: float, *, is_first: bool) -> float:
    """What the gain surely exceeds. Blocks that go together widen it; at a first look on few blocks, where that is
    plain: what few blocks show of it is chance more often than not."""
    if is_first and contest.blocks < TELLING_BLOCKS and not _go_together(contest):
        return interval.low(tail)
    correlation = np.array(contest.sums.correlation)
    stretch = math.sqrt(float(stretch_variance(correlation, contest.blocks)))
    return interval.gain - stretch * (interval.gain - interval.low(tail))


def _compare_with_baseline(name: str, contest: Contest, interval: Interval, bound: float, gate: Gate) -> Finding:
    outcome = _choose_outcome(bound > 0, interval, gate)
    way_out = f" Wait for more data, or take {name} out of evaluate.baselines." if outcome == "HOLD" else ""
    gain = describe_gain(_list_figures(contest, gate))
    return Finding(outcome, f"{COMPARISONS['superior', outcome]} the baseline {name}: {gain}.{way_out}")


def _explain_width(contest: Contest, interval: Interval, gate: Gate) -> str:
    """What makes the interval as wide as it is, and what would narrow it."""
    if interval.seed_variance > interval.block_variance:
        return "What its seeds differ by makes it wide: more train.seeds narrow it."
    blocks = f"How the {contest.blocks} blocks of {spell(gate.block)} differ makes it wide"
    together = ", and neighbours go together, as the days of a week do" if _go_together(contest) else ""
    return f"{blocks}{together}: a longer split.holdout narrows it."


def _go_together(contest: Contest) -> bool:
    return contest.sums.correlation > 2 / math.sqrt(contest.blocks)


def _choose_outcome(passes: bool, interval: Interval, gate: Gate) -> Outcome:
    return "PROMOTE" if passes else "REJECT" if interval.high((1 - gate.level) / 2) < 0 else "HOLD"


def _compare_slices(contest: Contest, slices: Slices, gate: Gate, limit: Share) -> Iterator[dict[str, Any]]:
    """A row of figures for each value of each slice."""
    for part in measure_parts(contest, slices, tail=(1 - gate.level) / 2):
        figures = asdict(part)
        yield {"slice": figures.pop("name"), **figures, "outcome": _judge_slice(part, limit.value)}


def _judge_slice(part: Part, limit: float) -> Outcome | None:
    """Surely worse by more than the tolerance rejects. Surely worse, with a measured loss beyond the tolerance, holds:
    a slice is small, and the next look has other rows."""
    if part.high < -limit:
        return "REJECT"
    return "HOLD" if part.high < 0 and part.gain < -limit else None


def _find_worse_slices(rows: Sequence[Mapping[str, Any]], limit: Share) -> Iterator[Finding]:
    for row in rows:
        if row["outcome"]:
            worse = "Worse" if row["outcome"] == "REJECT" else "Likely worse"
            yield Finding(
                row["outcome"],
                f"{worse} by more than {limit} in the slice {row['slice']} = {row['value']} ({row['rows']:,} rows of "
                f"{row['blocks']} blocks, gain {row['low']:+.4g} to {row['high']:+.4g}).",
            )


def _list_figures(contest: Contest, gate: Gate) -> dict[str, Any]:
    candidate, champion = contest.sums.metrics
    interval, seeds = contest.interval, contest.seeds
    return {
        "metric": gate.metric,
        "rule": gate.rule,
        "candidate": candidate,
        "champion": champion,
        **contest.gain(gate.level),
        "level": gate.level,
        "rows": contest.rows,
        "blocks": contest.blocks,
        "block": spell(gate.block),
        "block_correlation": contest.sums.correlation,
        "seeds": list(seeds),
        "error_of_blocks": interval and math.sqrt(interval.block_variance),
        "error_of_seeds": interval and math.sqrt(interval.seed_variance) if sum(seeds) > 2 else None,
    }
