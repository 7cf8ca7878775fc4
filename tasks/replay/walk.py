"""walk: the user's own history, walked once for each retrain policy → who served when, and what was retrained.

Outcomes arrive as late as they did. What is trained, judged and measured at T is what the stages, the gate and the
monitor would have made of what was known at T. All policies begin with the same model, so that they differ by their
retrains alone. A model of one as_of is trained once (history.py) and charged to each policy that retrains there; a
refused candidate costs as much as a promoted one. The registry, the journal and the clock of what serves are not
touched.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache, cached_property, lru_cache, partial
from itertools import takewhile

import numpy as np
import pyarrow as pa

from tasks import log
from tasks.data.featurerows import Rows
from tasks.monitoring import drift, policy
from tasks.monitoring.signal import Signal
from tasks.monitoring.signals.drift import measure_drift
from tasks.monitoring.signals.performance import measure_performance
from tasks.monitoring.window import Predictions, Watched, Window, read_watched
from tasks.params import Params, SignalKind, parse_duration, spell
from tasks.promotion import gate
from tasks.promotion.registry import Version
from tasks.promotion.verdict import Verdict, hold
from tasks.replay.history import Candidate, History
from tasks.training import model

NEVER = "never"

BY_SIGNALS: dict[str, tuple[SignalKind, ...]] = {
    "drift": ("drift",),
    "performance": ("performance",),
    "both": ("performance", "drift"),
}
FAILED = "FAILED"


# --- when each policy retrains, and the moments at which it may -----------------------------------------------------


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
    """The name of a policy. Raises ValueError for an unknown one."""
    if not re.fullmatch(rf"{NEVER}|{'|'.join(BY_SIGNALS)}|every:[1-9]\d*[hdw]|spaced:[1-9]\d*", name):
        names = ", ".join([NEVER, *BY_SIGNALS, "every:<length> such as every:28d", "spaced:<number>"])
        raise ValueError(f"a policy must be one of {names}, but got {name!r}. Mend replay.policies, or --policies.")
    return name


def parse_rule(name: str, grid: Grid) -> Rule:
    """The policy of a name. `spaced:3` is three retrains, as evenly over the period as the grid allows."""
    kind, _, value = check_policy(name).partition(":")
    if kind == "every":
        return Rule(name, every=parse_duration(value))
    if kind == "spaced":
        return Rule(name, moments=_space_evenly(int(value), grid))
    return Rule(name, signals=BY_SIGNALS.get(name, ()))


def _space_evenly(number: int, grid: Grid) -> tuple[datetime, ...]:
    later = grid.starts[1:]
    if number > len(later):
        raise ValueError(f"`spaced <= {len(later)}` must hold, the moments of the grid, but got spaced:{number}")
    places = [round((i + 1) * len(grid.starts) / (number + 1)) - 1 for i in range(number)]
    return tuple(later[place] for place in places)


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


# --- what policies share, and what each has come to ------------------------------------------------------------------


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
        return sum(signal.alarm for signal in self.signals)


class Past:
    """What policies share: the rows, who predicted what of them, candidates, verdicts and signals, each made once."""

    def __init__(self, past: History, began: datetime, *, make: "Make", measure: "Measure | None" = None) -> None:
        self.p, self.rows, self.began = past.p, past.rows, began
        self.cpu = 0.0  # of what was trained now
        self._history, self._make = past, make
        self.candidate, self.scores = cache(self._make_candidate), cache(self._predict)
        self.verdict, self.signals = cache(self._judge), cache(partial(measure or measure_signals, self))
        # One alone is held: a case comes to hold all rows, and a champion its holdout.
        self._case = lru_cache(1)(lambda as_of: self.candidate(as_of).case())
        self._watched = lru_cache(1)(self._read_watched)

    def _make_candidate(self, as_of: datetime) -> Candidate:
        candidate = self._make(self._history, as_of)
        self.cpu += candidate.cpu if candidate.is_new else 0.0
        return candidate

    def find_rows(self, since: datetime, until: datetime) -> slice:
        """The rows of since <= event_time < until: they are in the order of time."""
        first, last = np.searchsorted(self.rows.event_time, np.array([since, until], dtype="datetime64[us]"))
        return slice(int(first), int(last))

    def take_table(self, where: slice) -> pa.Table:
        """The features of these rows."""
        return self.rows.table.slice(where.start, where.stop - where.start)

    def _predict(self, by: datetime, since: datetime, until: datetime) -> model.Floats:
        """What the candidate of `by` says of a stretch's rows, as the score flow would have journalled it."""
        table, champion = self.take_table(self.find_rows(since, until)), self.candidate(by).model
        shape = (0, len(champion.spec.classes)) if champion.spec.task == "multiclass" else (0,)
        return champion.predict(table) if len(table) else np.zeros(shape)

    def _judge(self, as_of: datetime, champion: datetime, looks: int) -> Verdict:
        """The gate's verdict on the candidate of `as_of` against who serves."""
        case = self._case(as_of)
        opponent = case.load_opponent(self.candidate(champion).recipe, age=as_of - champion)
        return case.judge_against(opponent, looks=looks)

    def watched(self, serving: Serving) -> Watched:
        """A champion as the monitor knows it."""
        champion = self._watched(serving.as_of)
        return replace(champion, version=replace(champion.version, number=serving.version))

    def _read_watched(self, as_of: datetime) -> Watched:
        folder, paths = self.candidate(as_of).folder, self.p.paths
        models = [folder / paths.models / name for name in ("model.ubj", "twin.ubj")]
        names = ("profile.json", "holdout.parquet", "reference.parquet")
        version = Version(0, "", "", "", as_of, "", {})
        return read_watched(self.p, version, *models, *(folder / paths.reports / name for name in names))


Make = Callable[[History, datetime], Candidate]
Measure = Callable[[Past, Serving, datetime, tuple[SignalKind, ...]], Sequence[Signal]]


# --- the walk ------------------------------------------------------------------------------------------------------


def walk(past: Past, grid: Grid, names: Sequence[str], *, say: Callable[[str], None] = log.info) -> list[PolicyState]:
    """Each policy's state at the end. `never` is always among them, first: the others are measured against it."""
    from tqdm import tqdm

    rules = [parse_rule(name, grid) for name in dict.fromkeys([NEVER, *names])]
    states = [PolicyState(rule, Serving(grid.since, 1), past.began) for rule in rules]
    more = len(grid.starts) - 1
    say(f"as_of {grid.since:%Y-%m-%d}: the first model, {_describe_training(past, grid.since)}; {more} to come")
    for i, now in enumerate(tqdm(grid.starts, desc="replay", unit="as_of", leave=False, disable=None)):
        if i:
            states = [step_policy(state, now, past) for state in states]
            say(f"as_of {now:%Y-%m-%d}: {_describe_step(states, now, past)}; {i} of {more}")
        states = [replace(state, served=(*state.served, state.serving.as_of)) for state in states]
    return states


def _describe_step(states: Sequence[PolicyState], now: datetime, past: Past) -> str:
    retrains = {state.rule.name: state.retrains[-1] for state in states if state.retrains}
    retrains = {name: retrain for name, retrain in retrains.items() if retrain.as_of == now}
    if not retrains:
        return "nobody retrained"
    promoted = [name for name, retrain in retrains.items() if retrain.promoted]
    failed = any(retrain.outcome == FAILED for retrain in retrains.values())
    how = "nothing could be trained" if failed else _describe_training(past, now)
    return f"{how}, promoted by {', '.join(promoted) or 'nobody'} of {', '.join(retrains)}"


def _describe_training(past: Past, as_of: datetime) -> str:
    candidate = past.candidate(as_of)
    return f"{'trained' if candidate.is_new else 'trained before,'} in {candidate.cpu:.0f} s of CPU"


def step_policy(state: PolicyState, now: datetime, past: Past) -> PolicyState:
    """Measures what the policy looks at, asks it, and retrains if it says so."""
    if state.rule.signals:
        signals = past.signals(state.serving, now, state.rule.signals)
        state = replace(state, signals=(*state.signals, *signals))
    reasons, causes = explain_retrain(state, now, past.p)
    return retrain(replace(state, asked=(*state.asked, *causes)), now, past, why=reasons) if reasons else state


def explain_retrain(state: PolicyState, now: datetime, p: Params) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Why to retrain now, and the causes that must not ask again. Both are empty where there is no reason."""
    rule = state.rule
    if rule.signals:
        failed = takewhile(lambda one: one.outcome == FAILED, reversed(state.retrains))
        retrains = policy.Retrains(
            made=[state.began, *(one.as_of for one in state.retrains if one.outcome != FAILED)],
            asked=state.asked,
            unmade=[one.as_of.isoformat() for one in failed],
            refusal=gate.explain_backoff(max(state.looks, default=None), now, p.gate),
        )
        settings = p.policy.model_copy(update={"signals": list(rule.signals)})
        decision = policy.decide(state.signals, retrains, as_of=now, version=state.serving.version, policy=settings)
        return (decision.reasons, (decision.id,)) if decision.retrains else ((), ())
    last = state.retrains[-1].as_of if state.retrains else state.began
    if rule.every and now - last >= rule.every:
        return (f"{spell(rule.every)} since {last:%Y-%m-%d}.",), ()
    return (("Its time has come.",) if now in rule.moments else ()), ()


def retrain(state: PolicyState, now: datetime, past: Past, *, why: tuple[str, ...]) -> PolicyState:
    """The candidate of `now` before the gate: it serves from now on, or it was a look that later looks pay for."""
    try:
        candidate = past.candidate(now)
    except ValueError as error:  # such as a holdout without rows: that run would have failed, and the champion stayed
        log.warning("as_of %s: %s", now, error)
        return replace(state, retrains=(*state.retrains, Retrain(now, FAILED, (str(error),), 0.0, why)))
    if reason := gate.explain_backoff(max(state.looks, default=None), now, past.p.gate):
        verdict = hold(reason)
    else:
        verdict = past.verdict(now, state.serving.as_of, len(state.looks))
    done = Retrain(now, verdict.outcome, verdict.reasons, candidate.cpu, why)
    state = replace(state, retrains=(*state.retrains, done))
    if verdict.promotes:
        return replace(state, serving=Serving(now, state.serving.version + 1), looks=())
    return replace(state, looks=(*state.looks, now)) if verdict.counts_as_look else state


# --- signals -------------------------------------------------------------------------------------------------------


def measure_signals(past: Past, serving: Serving, now: datetime, kinds: tuple[SignalKind, ...]) -> list[Signal]:
    """What the monitor would have measured at `now`, of the rows that the champion itself predicted."""
    watched = past.watched(serving)
    measures = {
        "performance": lambda: measure_performance(_mature_window(past, serving, now), watched),
        "drift": lambda: measure_drift(_newest_window(past, watched, now), watched),
    }
    return [measures[kind]() for kind in kinds]


def _mature_window(past: Past, serving: Serving, now: datetime) -> Window:
    """Of the rows that this champion predicted, with the outcomes that had come."""
    p = past.p
    until = now - p.label.deadline
    since = min(max(until - p.monitor.window, serving.as_of), until)
    where = past.find_rows(since, until)
    label, has_come = past.rows.label[where], past.rows.known_at[where] <= np.datetime64(now)
    labels = label.astype(object)
    labels[~(has_come & model.is_labelled(label))] = None  # as the journal gives outcomes
    scores = past.scores(serving.as_of, since, until)
    return Window(since, now, Predictions(since, until, past.rows.event_time[where], scores, labels))


def _newest_window(past: Past, watched: Watched, now: datetime) -> Window:
    """Of all rows of the newest window, for drift waits for no outcome. What came before the walk was predicted by
    nobody."""
    p, profile = past.p, watched.profile
    since = now - p.monitor.window
    begun = max(since, past.began)
    where = past.find_rows(begun, now)
    times, false_alarms = past.rows.event_time[where], p.drift.false_alarms
    comparison = drift.compare(profile, past.take_table(where), times, false_alarms=false_alarms)
    return Window(since, now, drift=comparison, is_whole=begun <= since + profile.unit)
