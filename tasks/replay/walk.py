"""walk: the user's own history, walked from each first date by each retrain policy → who served when, what it took.

Outcomes arrive as late as they did. What is trained, judged and measured at T is what the stages, the gate and the
monitor would have made of what was known at T. All policies of a first date begin with the same model, so that they
differ by their retrains alone. What is trained of one moment is trained once (past.py) and charged to each walk that
asks for it, as if it were alone; a refused candidate costs as much as a promoted one. The registry, the journal and the
clock of what serves are not touched.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import takewhile

from tasks import log
from tasks.monitoring import obstacles, policy
from tasks.monitoring.signal import Signal
from tasks.params import Params, RetrainKind, SignalKind, spell
from tasks.promotion import gate
from tasks.promotion.verdict import Verdict, hold
from tasks.replay.history import Training
from tasks.replay.past import Held, Past, Serving
from tasks.replay.policies import NEVER, Grid, Rule, list_moments, parse_rule

FAILED = "FAILED"

Measure = Callable[[Past, Serving, datetime, Sequence[SignalKind], datetime], Sequence[Signal]]


@dataclass(frozen=True)
class Retrain:
    as_of: datetime
    outcome: str  # of the gate; FAILED where nothing could be trained
    reasons: tuple[str, ...]
    cpu: float  # seconds, with the past fits that the gate asked for
    why: tuple[str, ...]
    kind: RetrainKind = "search"

    @property
    def promoted(self) -> bool:
        return self.outcome == "PROMOTE"


@dataclass(frozen=True)
class PolicyState:
    """What a policy has come to since its first date: who serves, who served when, what was done and measured."""

    rule: Rule
    grid: Grid  # from its first date on
    serving: Serving
    moments: tuple[datetime, ...] = ()  # at which it retrains, whatever happens
    served: tuple[Training, ...] = ()
    retrains: tuple[Retrain, ...] = ()
    looks: tuple[datetime, ...] = ()  # at candidates against who serves now, all refused
    signals: tuple[Signal, ...] = ()
    asked: tuple[str, ...] = ()
    first_search: datetime | None = None  # of the recipe of the first model
    fits: Mapping[datetime, Held] = field(default_factory=dict)  # past fits, by the search of their recipe

    @property
    def began(self) -> datetime:
        return self.grid.since

    @property
    def alarms(self) -> int:
        return sum(signal.alarm for signal in self.signals)


@dataclass(frozen=True)
class Wanted:
    """A retrain that a policy asks for."""

    kind: RetrainKind
    why: tuple[str, ...]
    causes: tuple[str, ...] = ()  # that must not ask again


def walk(
    past: Past,
    grid: Grid,
    names: Sequence[str],
    dates: Sequence[datetime],
    *,
    measure: Measure = Past.measure,
    say: Callable[[str], None] = log.info,
) -> list[PolicyState]:
    """The state of each policy from each first date at the end. `never` is always among them, first: the others are
    measured against it.

    Args:
        dates: moments of the grid, in order.
    """
    from tqdm import tqdm

    waiting = [begin(name, date, grid, past) for name in _list_names(names) for date in dates]
    prepare_known(waiting, past, say=say)
    for number, now in enumerate(tqdm(grid.starts, desc="replay", unit="as_of", leave=False, disable=None)):
        wanted = {place: ask(state, now, past, measure) for place, state in enumerate(waiting) if state.began < now}
        waiting = [wanted[place][0] if place in wanted else state for place, state in enumerate(waiting)]
        retrains = {place: wish for place, (_, wish) in wanted.items() if wish}
        past.prepare([_choose_training(waiting[place], wish.kind, now) for place, wish in retrains.items()])
        for place, wish in retrains.items():
            waiting[place] = retrain(waiting[place], wish, now, past)
        waiting = [
            replace(state, served=(*state.served, state.serving.training)) if state.began <= now else state
            for state in waiting
        ]
        say(_describe_step([waiting[place] for place in retrains], now, f"{number + 1} of {len(grid.starts)}"))
    return waiting


def _list_names(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([NEVER, *names]))


def begin(name: str, date: datetime, grid: Grid, past: Past) -> PolicyState:
    """A policy at its first date."""
    first, own = past.first(date), replace(grid, since=date)
    rule = parse_rule(name, own, past.p)
    moments = tuple(list_moments(rule, own, grid))
    return PolicyState(rule, own, Serving(first, 1), moments, first_search=first.search)


def prepare_known(states: Sequence[PolicyState], past: Past, *, say: Callable[[str], None] = log.info) -> None:
    """Make what is known to be needed before anything is decided, side by side."""
    trainings, fits = {state.serving.training for state in states}, dict[datetime, set[int]]()
    for state in states:
        trainings |= {_choose_training(state, state.rule.kind, now) for now in state.moments}
    past.prepare([Training(training.search, training.search) for training in trainings])
    for state in states:
        if state.rule.kind == "refresh" and state.rule.is_gated:
            search = state.serving.training.search
            for now in state.moments:
                fits.setdefault(search, set()).update(past.list_needed_fits(search, now))
    missing = sum(not past.has(training) for training in trainings)
    say(f"{len(trainings)} models are known to be needed, and {missing} of them are not on the shelf yet")
    past.prepare(sorted(trainings), {search: sorted(weeks) for search, weeks in fits.items()})


def _describe_step(states: Sequence[PolicyState], now: datetime, place: str) -> str:
    retrains = {f"{state.rule.name} of {state.began:%m-%d}": state.retrains[-1] for state in states}
    promoted = [name for name, retrain in retrains.items() if retrain.promoted]
    return f"as_of {now:%Y-%m-%d}, {place}: {len(retrains)} retrains, {len(promoted)} of them promoted"


def ask(state: PolicyState, now: datetime, past: Past, measure: Measure) -> tuple[PolicyState, Wanted | None]:
    """Measures what the policy looks at, and asks it."""
    if state.rule.signals:
        signals = measure(past, state.serving, now, state.rule.signals, state.began)
        state = replace(state, signals=(*state.signals, *signals))
    wanted = explain_retrain(state, now, past.p)
    return (replace(state, asked=(*state.asked, *wanted.causes)) if wanted else state), wanted


def explain_retrain(state: PolicyState, now: datetime, p: Params) -> Wanted | None:
    """Which retrain a policy asks for now, and why."""
    rule = state.rule
    if rule.signals is not None:
        settings = p.policy.model_copy(update={"signals": list(rule.signals)})
        version, retrains = state.serving.version, _list_retrains(state, now, p)
        decision = policy.decide(state.signals, retrains, as_of=now, version=version, policy=settings)
        return Wanted(decision.kind, decision.reasons, (decision.id,)) if decision.retrains else None
    if now not in state.moments:
        return None
    return Wanted(rule.kind, (f"{spell(rule.every)} have passed." if rule.every else "Its time has come.",))


def _list_retrains(state: PolicyState, now: datetime, p: Params) -> obstacles.Retrains:
    made = [one for one in state.retrains if one.outcome != FAILED]
    failed = takewhile(lambda one: one.outcome == FAILED, reversed(state.retrains))
    return obstacles.Retrains(
        made=[state.began, *(one.as_of for one in made)],
        searched=[state.first_search or state.began, *(one.as_of for one in made if one.kind == "search")],
        asked=state.asked,
        unmade=[one.as_of.isoformat() for one in failed],
        refusal=gate.explain_backoff(max(state.looks, default=None), now, p.gate),
        costs=obstacles.Costs(
            last={one.kind: one.cpu for one in made},
            spent=sum(one.cpu for one in made if one.as_of > now - obstacles.MONTH),
        ),
    )


def _choose_training(state: PolicyState, kind: RetrainKind, now: datetime) -> Training:
    return Training(now, state.serving.training.search if kind == "refresh" else now)


def retrain(state: PolicyState, wanted: Wanted, now: datetime, past: Past) -> PolicyState:
    """The candidate of `now` before the gate: it serves from now on, or it was a look that later looks pay for."""
    training = _choose_training(state, wanted.kind, now)
    try:
        cpu = past.candidate(training).cpu
    except ValueError as error:  # such as a holdout without rows: that run would have failed, and the champion stayed
        log.warning("as_of %s: %s", now, error)
        failed = Retrain(now, FAILED, (str(error),), 0.0, wanted.why, wanted.kind)
        return replace(state, retrains=(*state.retrains, failed))
    if not state.rule.is_gated:
        verdict, spent = Verdict("PROMOTE", ("This policy has no gate.",), {}), 0.0
    elif reason := gate.explain_backoff(max(state.looks, default=None), now, past.p.gate):
        verdict, spent = hold(reason), 0.0
    elif training.search == state.serving.training.search:
        state, verdict, spent = _judge_refresh(state, training, past)
    else:
        state, verdict, spent = _judge_race(state, training, past)
    done = Retrain(now, verdict.outcome, verdict.reasons, cpu + spent, wanted.why, wanted.kind)
    state = replace(state, retrains=(*state.retrains, done))
    if verdict.promotes:
        held = state.fits.get(training.search)
        return replace(state, serving=Serving(training, state.serving.version + 1, held), looks=())
    return replace(state, looks=(*state.looks, now)) if verdict.counts_as_look else state


def _judge_refresh(state: PolicyState, training: Training, past: Past) -> tuple[PolicyState, Verdict, float]:
    """The verdict by the past fits that this walk would have made by now, and what those it makes now cost."""
    there = state.fits[training.search].weeks if training.search in state.fits else ()
    needed = past.list_needed_fits(training.search, training.as_of, there)
    state, spent = _hold_fits(state, training.search, needed, training.as_of, past)
    since = min(state.fits[training.search].weeks, default=None)
    return state, past.judge_refresh(training, state.serving.training, since), spent


def _judge_race(state: PolicyState, training: Training, past: Past) -> tuple[PolicyState, Verdict, float]:
    """The verdict by the fits of both recipes since the new one's holdout began, and what those made now cost."""
    total = 0.0
    for search in (training.search, state.serving.training.search):
        weeks = past.find_race_weeks(training, search)
        state, spent = _hold_fits(state, search, weeks, training.as_of, past)
        total += spent
    return state, past.judge_race(training, state.serving.training), total


def _hold_fits(
    state: PolicyState, search: datetime, weeks: Sequence[int], now: datetime, past: Past
) -> tuple[PolicyState, float]:
    """The walk with these past fits of a recipe, and what those that it did not have cost."""
    before = state.fits[search].weeks if search in state.fits else frozenset[int]()
    past.prepare([], {search: sorted(weeks)})
    held = Held(before | set(weeks), now)
    own = search == state.serving.training.search
    serving = replace(state.serving, held=held) if own else state.serving
    spent = sum(past.fits(search).read_cost(week) for week in held.weeks - before)
    return replace(state, fits={**state.fits, search: held}, serving=serving), spent
