"""replay: the user's own history, walked once for each retrain policy → what each would have cost, and saved.

Decisions fall on one grid of replay.step. Outcomes arrive as late as they did; what is trained, judged and measured at
T is what the stages, the gate and the monitor would have made of what was known at T. All policies begin with the same
model, so that they differ by their retrains alone. A model of one as_of is trained once (replay/history.py) and charged
to each policy that retrains there; a refused candidate costs as much as a promoted one. The first model is charged to
nobody. Nothing of this touches the registry, the journal or the clock of what really serves.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks import log
from tasks.data import feasibility
from tasks.data.featurerows import Rows
from tasks.monitoring import drift, policy
from tasks.monitoring.policy import Retrains
from tasks.monitoring.signal import Signal
from tasks.monitoring.signals.drift import measure_drift
from tasks.monitoring.signals.performance import measure_performance
from tasks.monitoring.watched import Watched, read_watched
from tasks.monitoring.window import Predictions, Window
from tasks.params import Params, SignalKind, parse_duration, spell
from tasks.promotion import figures, gate
from tasks.promotion.contest import align_classes, compare_losses, estimate_loss, row_losses
from tasks.promotion.figures import Course
from tasks.promotion.interval import SEED, Estimate, assign_blocks, draw_blocks
from tasks.promotion.judge import Case
from tasks.promotion.registry import Version
from tasks.promotion.verdict import METRIC_NAMES, Verdict
from tasks.replay.history import Candidate, History
from tasks.runtime import files
from tasks.training import model
from tasks.training.model import Floats, Spec

NEVER = "never"
BY_SIGNALS: dict[str, tuple[SignalKind, ...]] = {
    "drift": ("drift",),
    "performance": ("performance",),
    "both": ("performance", "drift"),
}
FAILED = "FAILED"
DRAWS = 2000  # of the days, for the intervals of AUC


# --- when a policy retrains ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """The moments of decision, `step` apart; the rows of the last stretch are predicted, and nothing is decided."""

    since: datetime
    until: datetime
    step: timedelta

    @cached_property
    def starts(self) -> list[datetime]:
        count = -((self.since - self.until) // self.step)
        return [self.since + i * self.step for i in range(count)]

    @property
    def stretches(self) -> list[tuple[datetime, datetime]]:
        return list(zip(self.starts, [*self.starts[1:], self.until], strict=True))


@dataclass(frozen=True)
class Rule:
    """A policy: after so long, at these moments, or by these signals as the section `policy` has it; else never."""

    name: str
    every: timedelta | None = None
    moments: tuple[datetime, ...] = ()
    signals: tuple[SignalKind, ...] = ()


def check_policy(name: str) -> str:
    """The name of a policy. Raises ValueError for one that nobody knows."""
    if not re.fullmatch(rf"{NEVER}|{'|'.join(BY_SIGNALS)}|every:[1-9]\d*[hdw]|spaced:[1-9]\d*", name):
        every = ", ".join([NEVER, *BY_SIGNALS, "every:<length> such as every:28d", "spaced:<number>"])
        raise ValueError(f"a policy must be one of {every}, but got {name!r}. Mend replay.policies, or --policies.")
    return name


def parse_rule(name: str, grid: Grid) -> Rule:
    """The policy of a name. `spaced:3`: so many retrains, as evenly over the period as the grid has it."""
    kind, _, value = check_policy(name).partition(":")
    if kind == "every":
        return Rule(name, every=parse_duration(value))
    if kind == "spaced":
        return Rule(name, moments=spaced(int(value), grid))
    return Rule(name, signals=BY_SIGNALS.get(name, ()))


def spaced(number: int, grid: Grid) -> tuple[datetime, ...]:
    """So many moments of the grid, which cut the period into parts as equal as the grid allows."""
    later = grid.starts[1:]
    if number > len(later):
        raise ValueError(f"`spaced <= {len(later)}` must hold, the moments of the grid, but got spaced:{number}")
    places = [round((i + 1) * len(grid.starts) / (number + 1)) - 1 for i in range(number)]
    return tuple(later[place] for place in places)


# --- one policy's state --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Serving:
    """A champion: the candidate of `as_of`, and the version that it became."""

    as_of: datetime
    version: int


@dataclass(frozen=True)
class Retrain:
    as_of: datetime
    outcome: str  # of the gate; FAILED where nothing could be trained
    reasons: tuple[str, ...]
    cpu: float
    why: tuple[str, ...]

    @property
    def promoted(self) -> bool:
        return self.outcome == "PROMOTE"


@dataclass(frozen=True)
class PolicyState:
    """What a policy has come to: who serves, who served each stretch, and a ledger of what was done and measured."""

    rule: Rule
    serving: Serving
    began: datetime
    served: tuple[datetime, ...] = ()
    retrains: tuple[Retrain, ...] = ()
    looks: tuple[datetime, ...] = ()  # at candidates against who serves now, all refused
    signals: tuple[Signal, ...] = ()
    asked: tuple[str, ...] = ()

    @property
    def alarms(self) -> int:
        return sum(each.alarm for each in self.signals)


class Past:
    """What policies share: the rows, who predicted what of them, candidates, verdicts and signals, each made once."""

    def __init__(self, past: History, began: datetime, *, make: "Make", measure: "Measure | None" = None) -> None:
        self.p, self.rows, self.began = past.p, past.rows, began
        self.cpu = 0.0  # of what was trained now
        self._history, self._make, self._measure = past, make, measure or measured
        self._candidates: dict[datetime, Candidate] = {}
        self._scores: dict[tuple[datetime, datetime, datetime], Floats] = {}
        self._case: Case | None = None
        self._watched: Watched | None = None
        self._verdicts: dict[tuple[datetime, datetime, int], Verdict] = {}
        self._signals: dict[tuple[Serving, datetime, tuple[SignalKind, ...]], tuple[Signal, ...]] = {}

    def candidate(self, as_of: datetime) -> Candidate:
        if as_of not in self._candidates:
            self._candidates[as_of] = found = self._make(self._history, as_of)
            self.cpu += found.cpu if found.made else 0.0
        return self._candidates[as_of]

    def inside(self, since: datetime, until: datetime) -> slice:
        """The rows of since <= event_time < until: they are in the order of time."""
        first, last = np.searchsorted(self.rows.event_time, np.array([since, until], dtype="datetime64[us]"))
        return slice(int(first), int(last))

    def scores(self, by: datetime, since: datetime, until: datetime) -> Floats:
        """What the candidate of `by` says of them, as the score flow would have journalled it."""
        if (by, since, until) not in self._scores:
            where = self.inside(since, until)
            table = self.rows.table.slice(where.start, where.stop - where.start)
            one = self.candidate(by).model
            self._scores[by, since, until] = one.predict(table) if len(table) else np.zeros(self._shape(one.spec))
        return self._scores[by, since, until]

    def _shape(self, spec: Spec) -> tuple[int, ...]:
        return (0, len(spec.classes)) if spec.task == "multiclass" else (0,)

    def verdict(self, as_of: datetime, champion: datetime, looks: int) -> Verdict:
        """The gate's, on the candidate of `as_of` against who serves."""
        if (as_of, champion, looks) not in self._verdicts:
            case = self._case_of(as_of)
            against = case.load_opponent(self.candidate(champion).recipe, age=as_of - champion)
            self._verdicts[as_of, champion, looks] = case.judge_against(against, looks=looks)
        return self._verdicts[as_of, champion, looks]

    def _case_of(self, as_of: datetime) -> Case:
        """The newest alone is kept: each comes to hold all rows up to then."""
        if self._case is None or self._case.as_of != as_of:
            self._case = self.candidate(as_of).case()
        return self._case

    def watched(self, serving: Serving) -> Watched:
        """A champion as the monitor knows it. The newest alone is kept: its holdout is large."""
        if self._watched is None or self._watched.version.as_of != serving.as_of:
            folder, paths = self.candidate(serving.as_of).folder, self.p.paths
            models = [folder / paths.models / name for name in ("model.ubj", "twin.ubj")]
            names = ("profile.json", "holdout.parquet", "reference.parquet")
            version = Version(serving.version, "", "", "", serving.as_of, "", {})
            self._watched = read_watched(self.p, version, *models, *(folder / paths.reports / name for name in names))
        return replace(self._watched, version=replace(self._watched.version, number=serving.version))

    def signals(self, serving: Serving, now: datetime, kinds: tuple[SignalKind, ...]) -> tuple[Signal, ...]:
        if (serving, now, kinds) not in self._signals:
            self._signals[serving, now, kinds] = tuple(self._measure(self, serving, now, kinds))
        return self._signals[serving, now, kinds]


Make = Callable[[History, datetime], Candidate]
Measure = Callable[[Past, Serving, datetime, tuple[SignalKind, ...]], Sequence[Signal]]


# --- the walk ------------------------------------------------------------------------------------------------------


def walk(past: Past, grid: Grid, names: Sequence[str], *, say: Callable[[str], None] = log.info) -> list[PolicyState]:
    """Each policy's state at the end. `never` is always among them, first: the others are measured against it."""
    from tqdm import tqdm

    rules = [parse_rule(name, grid) for name in dict.fromkeys([NEVER, *names])]
    first = Serving(grid.since, 1)
    states = [PolicyState(each, first, past.began) for each in rules]
    say(f"as_of {grid.since:%Y-%m-%d}: the first model, {_trained(past, grid.since)}; {len(grid.starts) - 1} to come")
    for i, now in enumerate(tqdm(grid.starts, desc="replay", unit="as_of", leave=False, disable=None)):
        if i:
            states = [decided(each, now, past) for each in states]
            say(f"as_of {now:%Y-%m-%d}: {_told(states, now, past)}; {i} of {len(grid.starts) - 1}")
        states = [replace(each, served=(*each.served, each.serving.as_of)) for each in states]
    return states


def _told(states: Sequence[PolicyState], now: datetime, past: Past) -> str:
    here = {each.rule.name: each.retrains[-1] for each in states if each.retrains and each.retrains[-1].as_of == now}
    if not here:
        return "nobody retrained"
    promoted = [name for name, each in here.items() if each.promoted]
    failed = any(each.outcome == FAILED for each in here.values())
    how = "nothing could be trained" if failed else _trained(past, now)
    return f"{how}, promoted by {', '.join(promoted) or 'nobody'} of {', '.join(here)}"


def _trained(past: Past, as_of: datetime) -> str:
    found = past.candidate(as_of)
    return f"{'trained' if found.made else 'trained before,'} in {found.cpu:.0f} s of CPU"


def decided(state: PolicyState, now: datetime, past: Past) -> PolicyState:
    """Measure what the policy looks at, ask it, and retrain if it says so."""
    if state.rule.signals:
        found = past.signals(state.serving, now, state.rule.signals)
        state = replace(state, signals=(*state.signals, *found))
    why, cause = _wanted(state, now, past.p)
    if not why:
        return state
    return retrained(replace(state, asked=(*state.asked, *cause)), now, past, why=why)


def _wanted(state: PolicyState, now: datetime, p: Params) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Why to retrain now, if at all, and the cause that must not ask again."""
    retrains, own = [state.began, *(each.as_of for each in state.retrains)], state.rule
    if own.signals:
        settings = p.policy.model_copy(update={"signals": list(own.signals)})
        past = Retrains(
            made=[state.began, *(each.as_of for each in state.retrains if each.outcome != FAILED)],
            asked=state.asked,
            unmade=_failed_last(state.retrains),
            refusal=gate.explain_backoff(max(state.looks, default=None), now, p.gate),
        )
        found = policy.decide(state.signals, past, as_of=now, version=state.serving.version, policy=settings)
        return (found.reasons, (found.id,)) if found.retrains else ((), ())
    if own.every and now - retrains[-1] >= own.every:
        return (f"{spell(own.every)} since {retrains[-1]:%Y-%m-%d}.",), ()
    return (("Its time has come.",) if now in own.moments else ()), ()


def _failed_last(retrains: Sequence[Retrain]) -> list[str]:
    """The retrains that failed since a candidate was last made, as the loop's ledger would name them."""
    failed = takewhile(lambda retrain: retrain.outcome == FAILED, reversed(retrains))
    return [retrain.as_of.isoformat() for retrain in failed]


def retrained(state: PolicyState, now: datetime, past: Past, *, why: tuple[str, ...]) -> PolicyState:
    """The candidate of `now` before the gate: it serves from now on, or it was a look that later looks pay for."""
    try:
        found = past.candidate(now)
    except ValueError as error:  # such as a holdout without rows: that run would have failed, and the champion stayed
        log.warning("as_of %s: %s", now, error)
        return replace(state, retrains=(*state.retrains, Retrain(now, FAILED, (str(error),), 0.0, why)))
    verdict = _judged(state, now, past)
    state = replace(state, retrains=(*state.retrains, Retrain(now, verdict.outcome, verdict.reasons, found.cpu, why)))
    if verdict.promotes:
        return replace(state, serving=Serving(now, state.serving.version + 1), looks=())
    return replace(state, looks=(*state.looks, now)) if verdict.counts_as_look else state


def _judged(state: PolicyState, now: datetime, past: Past) -> Verdict:
    """By the accounting of tasks/promotion/judge.py, with this policy's own looks."""
    if reason := gate.explain_backoff(max(state.looks, default=None), now, past.p.gate):
        return Verdict("HOLD", (reason,), {})
    return past.verdict(now, state.serving.as_of, len(state.looks))


# --- signals -------------------------------------------------------------------------------------------------------


def measured(past: Past, serving: Serving, now: datetime, kinds: tuple[SignalKind, ...]) -> Iterator[Signal]:
    """What the monitor would have measured at `now`, of the rows that the champion itself predicted."""
    watched = past.watched(serving)
    if "performance" in kinds:
        yield measure_performance(_mature_window(past, serving, now), watched)
    if "drift" in kinds:
        yield measure_drift(_newest_window(past, watched, now), watched)


def _mature_window(past: Past, serving: Serving, now: datetime) -> Window:
    """Of the rows that this champion predicted, with the outcomes that had come."""
    p = past.p
    until = now - p.label.deadline
    since = min(max(until - p.monitor.window, serving.as_of), until)
    where = past.inside(since, until)
    labels = _or_none(past.rows.label[where], past.rows.known_at[where] <= np.datetime64(now))
    scores = past.scores(serving.as_of, since, until)
    return Window(since, now, Predictions(since, until, past.rows.event_time[where], scores, labels))


def _or_none(label: NDArray[Any], there: NDArray[np.bool_]) -> NDArray[Any]:
    """As the journal gives outcomes: None where there is none."""
    held = label.astype(object)
    held[~(there & model.is_labelled(label))] = None
    return held


def _newest_window(past: Past, watched: Watched, now: datetime) -> Window:
    """Of all rows of the newest window, for drift waits for no outcome. What came before the walk was predicted by
    nobody."""
    p, profile = past.p, watched.profile
    since = now - p.monitor.window
    begun = max(since, past.began)
    where = past.inside(begun, now)
    table, times = past.rows.table.slice(where.start, where.stop - where.start), past.rows.event_time[where]
    comparison = drift.compare(profile, table, times, false_alarms=p.drift.false_alarms)
    return Window(since, now, drift=comparison, is_whole=begun <= since + profile.unit)


# --- what it came to -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A policy over the whole stream. `gain` and `auc_gain` are against never retraining: positive is better.

    `weeks`: the metric by stretch of the grid, None where no row counts. `cost` is of its retrains.
    """

    policy: str
    metric: Estimate
    gain: Estimate
    auc: Estimate | None
    auc_gain: Estimate | None
    retrains: tuple[Retrain, ...]
    alarms: int | None  # None: it looks at no signal
    cpu: float
    cost: float
    cost_per_percent: float | None  # of error saved against never; None where nothing was saved
    weeks: tuple[float | None, ...]

    @property
    def promotions(self) -> int:
        return sum(each.promoted for each in self.retrains)


@dataclass(frozen=True)
class Comparison:
    since: datetime
    until: datetime
    step: timedelta
    metric: str
    rows: int
    unlabelled_share: float  # of the rows that are old enough: these count for nobody
    first_cpu: float  # of the model that all begin with
    starts: tuple[datetime, ...]
    stretches: tuple[int, ...]  # rows that count in each
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()  # settings that keep a policy by signals from acting

    def line(self, name: str) -> Line:
        return next(each for each in self.lines if each.policy == name)

    def to_dict(self) -> dict[str, Any]:
        lines = [{**asdict(each), "promotions": each.promotions} for each in self.lines]
        return {**asdict(self), "step": spell(self.step), "lines": lines}


def compare_policies(
    past: Past, grid: Grid, names: Sequence[str], *, say: Callable[[str], None] = log.info
) -> Comparison:
    """Walk the grid, and compare. Raises ValueError where history does not reach from before `since` to `until`."""
    check_period(past.rows, past.p, grid)
    notes = _notes(past, grid, names)
    for note in notes:
        say(note)
    stream = Stream(past, grid)
    states = walk(past, grid, names, say=say)
    losses = {each.rule.name: stream.losses(stream.scores(each)) for each in states}
    curves = {each.rule.name: stream.curve(stream.scores(each)) for each in states}
    lines = tuple(
        _line(each, stream, losses[each.rule.name], losses[NEVER], curves[each.rule.name], curves[NEVER])
        for each in states
    )
    return Comparison(
        grid.since,
        grid.until,
        grid.step,
        past.p.gate.metric,
        len(stream.codes),
        stream.unlabelled_share,
        past.candidate(grid.since).cpu,
        tuple(grid.starts),
        tuple(stream.by_stretch(np.ones(len(stream.codes)))[1].tolist()),
        lines,
        notes,
    )


def _notes(past: Past, grid: Grid, names: Sequence[str]) -> tuple[str, ...]:
    """Why a policy by signals cannot act on this table, whatever happens."""
    if not set(names) & BY_SIGNALS.keys():
        return ()
    problems = feasibility.find_problems(past.rows.event_time, grid.until, past.p)
    return tuple(each.message for each in problems if each.setting in ("policy.min_rows", "monitor.window"))


def _line(
    state: PolicyState,
    stream: "Stream",
    losses: Floats,
    never: Floats,
    curve: "Auc | None",
    base: "Auc | None",
) -> Line:
    p = stream.past.p
    cpu = sum(each.cpu for each in state.retrains)
    cost = cpu / 3600 * p.replay.price
    metric, gain = stream.level(losses), stream.gain(losses, never)
    saved = 100 * gain.value / (metric.value + gain.value) if metric.value + gain.value else 0.0
    return Line(
        policy=state.rule.name,
        metric=metric,
        gain=gain,
        auc=curve.interval(p.gate.level) if curve else None,
        auc_gain=curve.over(base, p.gate.level) if curve and base else None,
        retrains=state.retrains,
        alarms=state.alarms if state.rule.signals else None,
        cpu=round(cpu, 2),
        cost=cost,
        cost_per_percent=cost / saved if saved > 0 and state.retrains else None,
        weeks=stream.weeks(losses),
    )


class Stream:
    """The rows that count, in the order of time: from since on, mature at until, and labelled."""

    def __init__(self, past: Past, grid: Grid) -> None:
        self.past, self.grid = past, grid
        rows, p = past.rows, past.p
        self._all = past.inside(grid.since, grid.until)
        label, times = rows.label[self._all], rows.event_time[self._all]
        mature = times < np.datetime64(grid.until - p.label.deadline)
        self._counts = mature & model.is_labelled(label)
        if not self._counts.any():
            raise ValueError(
                f"no row from {grid.since} on had an outcome by {grid.until}: nothing can be compared. Give a later "
                "--until, or check label and known_at."
            )
        self.times = times[self._counts]
        self.unlabelled_share = round(1 - float(self._counts.sum() / mature.sum()), 6)
        classes = model.find_classes(rows.label, task=p.label.task)
        self.spec = Spec(p.label.task, (), {}, classes)
        self.codes = self.spec.encode_label(label[self._counts]).astype(np.float64)

    def scores(self, state: PolicyState) -> Floats:
        """Each row's prediction by who was champion when it arrived."""
        parts = [
            align_classes(self.spec, self.past.candidate(by).model.spec.classes, self.past.scores(by, *stretch))
            for by, stretch in zip(state.served, self.grid.stretches, strict=True)
        ]
        found: Floats = np.concatenate(parts)[self._counts]
        return found

    def losses(self, scores: Floats) -> Floats:
        return row_losses(self.codes, scores, metric=self.past.p.gate.metric)

    def level(self, losses: Floats) -> Estimate:
        return estimate_loss(losses, times=self.times, gate=self.past.p.gate)

    def gain(self, losses: Floats, never: Floats) -> Estimate:
        """By the gate's own interval."""
        settings = self.past.p.gate
        contest = compare_losses(losses, never, times=self.times, gate=settings)
        (own, other), ends = contest.sums.metrics, contest.gain(settings.level)
        return Estimate(other - own, ends["low"], ends["high"])

    def curve(self, scores: Floats) -> "Auc | None":
        if self.spec.task != "binary" or len(np.unique(self.codes)) < 2:
            return None
        return Auc(wins(self.codes, scores, assign_blocks(self.times, self.past.p.gate.block)))

    def by_stretch(self, values: Floats) -> tuple[Floats, NDArray[np.intp]]:
        """Sums of values of rows (n), and rows, by stretch of the grid."""
        starts = np.array(self.grid.starts, dtype="datetime64[us]")
        place, count = np.searchsorted(starts, self.times, side="right") - 1, len(starts)
        return np.bincount(place, values, minlength=count).astype(np.float64), np.bincount(place, minlength=count)

    def weeks(self, losses: Floats) -> tuple[float | None, ...]:
        sums, rows = self.by_stretch(losses)
        root = self.past.p.gate.metric == "rmse"
        means = [float(total / count) if count else None for total, count in zip(sums, rows, strict=True)]
        return tuple(each if each is None or not root else each**0.5 for each in means)


# --- as people read it ---------------------------------------------------------------------------------------------


def tabulate(done: Comparison) -> list[dict[str, str]]:
    """A row a policy, every cell as text."""
    return [_cells(each, METRIC_NAMES[done.metric]) for each in done.lines]


def _cells(line: Line, metric: str) -> dict[str, str]:
    by_auc = {"AUC": _level(line.auc), "AUC gained": _gained(line, line.auc_gain)} if line.auc else {}
    return {
        "policy": line.policy,
        metric: _level(line.metric),
        f"{metric} saved": _gained(line, line.gain),
        **by_auc,
        "retrains": str(len(line.retrains)),
        "promoted": str(line.promotions),
        "alarms": "–" if line.alarms is None else str(line.alarms),
        "CPU s": f"{line.cpu:,.0f}",
        "cost": f"{line.cost:.4f}",
        "cost per 1 % saved": "–" if line.cost_per_percent is None else f"{line.cost_per_percent:.4f}",
    }


def _level(found: Estimate | None) -> str:
    if found is None or found.low is None or found.high is None:
        return f"{found.value:.4f}" if found else "–"
    return f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"


def _gained(line: Line, found: Estimate | None) -> str:
    if line.policy == NEVER or found is None:
        return "–"
    between = f" ({found.low:+.4f} to {found.high:+.4f})" if found.low is not None and found.high is not None else ""
    return f"{found.value:+.4f}{between}"


def summarize(done: Comparison) -> str:
    """The frame of the table, in a sentence or two."""
    return (
        f"{done.rows:,} rows with an outcome from {done.since:%Y-%m-%d} to {done.until:%Y-%m-%d}, decisions every "
        f"{spell(done.step)}; {done.unlabelled_share:.1%} of the rows never got an outcome. All policies begin with "
        f"the same model ({done.first_cpu:.0f} s of CPU, charged to none). Saved and gained: against `{NEVER}`, in "
        "brackets the intervals, by days."
    )


def markdown(done: Comparison) -> str:
    rows = tabulate(done)
    lines = [f"| {' | '.join(rows[0])} |", f"|{' --- |' * len(rows[0])}"]
    lines += [f"| {' | '.join(row.values())} |" for row in rows]
    return "\n".join(
        ["# What each retrain policy would have cost, and saved", "", summarize(done), "", *lines, "", *done.notes]
    )


def write_report(done: Comparison, folder: Path) -> None:
    """replay.json, replay.md and replay.png into a folder."""
    files.publish_json(folder / "replay.json", done.to_dict())
    files.publish_text(folder / "replay.md", markdown(done))
    courses = [_course(each, done) for each in done.lines]
    named = METRIC_NAMES[done.metric]
    figures.draw_policies(courses, done.starts, folder / "replay.png", metric=named, never=NEVER)


def _course(line: Line, done: Comparison) -> Course:
    retrains = [each.as_of for each in line.retrains]
    promoted = [each.as_of for each in line.retrains if each.promoted]
    return Course(line.policy, line.weeks, _saved(line, done), retrains, promoted)


def _saved(line: Line, done: Comparison) -> list[float]:
    """Up to each stretch's end, in % of the error that `never` had made by then."""
    rows = np.array(done.stretches, dtype=np.float64)
    ours, theirs = (_summed(each.weeks, rows, done.metric) for each in (line, done.line(NEVER)))
    return [float(each) for each in 100 * (theirs - ours) / np.maximum(theirs, 1e-12)]


def _summed(weeks: Sequence[float | None], rows: Floats, metric: str) -> Floats:
    """The metric from the beginning to each stretch's end."""
    losses = np.array([each or 0.0 for each in weeks])
    means = np.cumsum((losses**2 if metric == "rmse" else losses) * rows) / np.maximum(np.cumsum(rows), 1)
    return np.sqrt(means) if metric == "rmse" else means


def list_points(done: Comparison) -> dict[str, list[tuple[int, float]]]:
    """Each policy's metric by stretch, and its totals, as points (step, value) of an MLflow run."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in done.lines:
        name = line.policy.replace(":", " ")
        by_week = enumerate(line.weeks)
        found[f"{done.metric}/{name}"] = [(step, value) for step, value in by_week if value is not None]
        totals = {done.metric: line.metric.value, "cpu": line.cpu, "cost": line.cost}
        totals |= {"retrains": len(line.retrains), "promotions": line.promotions}
        totals |= {"auc": line.auc.value} if line.auc else {}
        found |= {f"total {key}/{name}": [(0, float(value))] for key, value in totals.items()}
    return found


# --- AUC -----------------------------------------------------------------------------------------------------------


def wins(codes: Floats, scores: Floats, block: NDArray[np.intp]) -> Floats:
    """How often a positive row of one block has a higher score than a negative one of another (blocks, blocks); ties
    count half. The AUC of any draw of blocks is in it, without ranking the rows again. The last two columns: each
    block's positive and negative rows."""
    count, yes = int(block.max()) + 1, codes == 1
    order = np.argsort(scores[yes], kind="stable")
    high, of = scores[yes][order], block[yes][order]
    found = np.empty((count, count + 2))
    for other in range(count):
        low = np.sort(scores[~yes & (block == other)])
        beaten = (np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")) / 2
        found[:, other] = np.bincount(of, beaten, minlength=count)
        found[other, -1] = len(low)
    found[:, -2] = np.bincount(of, minlength=count)
    return found


@dataclass(frozen=True, eq=False)
class Auc:
    """One stream's AUC, and in draws of its blocks; two of the same rows are drawn alike."""

    wins: Floats

    @property
    def value(self) -> float:
        return float(self._of(np.ones((1, len(self.wins))))[0])

    @cached_property
    def drawn(self) -> Floats:
        count = len(self.wins)
        return self._of(draw_blocks(count, DRAWS, seed=SEED).astype(np.float64))

    def _of(self, draws: Floats) -> Floats:
        pairs, positive, negative = self.wins[:, :-2], self.wins[:, -2], self.wins[:, -1]
        with np.errstate(invalid="ignore"):  # a draw without one of the classes has none
            found: Floats = ((draws @ pairs) * draws).sum(axis=1) / ((draws @ positive) * (draws @ negative))
        return found

    def interval(self, level: float) -> Estimate:
        return _percentiles(self.value, self.drawn, level)

    def over(self, other: "Auc", level: float) -> Estimate:
        return _percentiles(self.value - other.value, self.drawn - other.drawn, level)


def _percentiles(value: float, drawn: Floats, level: float) -> Estimate:
    """The percentile bootstrap: over months of days it needs no refinement."""
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


# --- bad input -----------------------------------------------------------------------------------------------------


def find_earliest(rows: Rows, p: Params) -> datetime:
    """The first midnight at which history has room for a holdout and the folds before it."""
    least = rows.event_time[0].astype("datetime64[us]").item() + _room(p)
    midnight: datetime = least.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return midnight


def _room(p: Params) -> timedelta:
    return p.split.holdout + p.split.folds * p.split.fold + 3 * p.label.deadline


def check_period(rows: Rows, p: Params, grid: Grid) -> None:
    """Raises ValueError, with the way out, for a period that cannot be walked."""
    first, newest = (rows.event_time[place].astype("datetime64[us]").item() for place in (0, -1))
    if grid.since <= first + _room(p):
        raise ValueError(
            f"history before `since` must have room for split.holdout ({spell(p.split.holdout)}), the folds "
            f"({p.split.folds} of {spell(p.split.fold)}) and three label.deadline ({spell(p.label.deadline)}): with "
            f"rows from {first} on, since must lie after {first + _room(p)}, but got {grid.since}. Begin later, or "
            "shorten split.holdout or split.fold."
        )
    if grid.until <= grid.since + grid.step:
        raise ValueError(
            f"`since + replay.step < until` must hold, or nothing is ever decided, but got since={grid.since}, "
            f"until={grid.until}, step={spell(grid.step)}. Give a longer period, or a shorter replay.step."
        )
    if grid.until > newest + grid.step:
        raise ValueError(
            f"`until` must not lie beyond the data, but the newest row is of {newest}, and got until={grid.until}. "
            "End earlier, or bring newer data."
        )
