"""obstacles: what was asked for so far and what it cost, and why a retrain may not be asked for now. Pure.

A retrain is not asked for twice for one cause, nor sooner or more often than the settings allow, nor for more money
than `policy.money`. A retrain that failed made no candidate: it costs no cool-down, and the next one waits for
`explain_rest`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tasks.monitoring.signal import Signal
from tasks.params import Policy, RetrainKind, spell

MONTH = timedelta(days=30)
FIRST_REST = timedelta(hours=6)  # by the wall clock, after a retrain that failed; twice as long after each more
LONGEST_REST = timedelta(days=7)
HOUR_S = 3600


@dataclass(frozen=True)
class Costs:
    """Seconds of CPU of retrains."""

    last: Mapping[RetrainKind, float] = field(default_factory=dict)  # of the last one of each kind
    spent: float = 0.0  # of all in the last MONTH


@dataclass(frozen=True)
class Retrains:
    """What was asked for and answered so far."""

    made: Sequence[datetime] = ()  # the event times of those that made a candidate
    searched: Sequence[datetime] = ()  # of them, those that were searches
    asked: Sequence[str] = ()  # the decisions that asked for one and were answered, or may be about to be
    pending: Sequence[str] = ()  # those of them that wait for their answer
    unmade: Sequence[str] = ()  # those that were answered without a candidate since the last one was made
    refusal: str | None = None  # why a retrain that is asked for now would come to nothing
    costs: Costs = Costs()
    raced: datetime | None = None  # the event time of the newest look at a contender; None: there is none

    def last(self, as_of: datetime) -> datetime | None:
        return max((moment for moment in self.made if moment <= as_of), default=None)

    def last_search(self, as_of: datetime) -> datetime | None:
        return max((moment for moment in self.searched if moment <= as_of), default=None)

    def has_refreshed_since(self, moment: datetime, as_of: datetime) -> bool:
        """Whether a refresh was judged from `moment` on."""
        return any(moment <= made <= as_of and made not in self.searched for made in self.made)


def explain_joining(cause: str, retrains: Retrains) -> str | None:
    """One retrain at a time: whatever alarms meanwhile, its model will be of the same rows."""
    if cause in retrains.asked:
        return "A retrain was asked for already for this cause."
    if retrains.pending:
        return f"The retrain of decision {retrains.pending[-1]} is not answered yet: this cause joins it."
    return None


def explain_cool_down(as_of: datetime, policy: Policy, last: datetime | None) -> str | None:
    if last is not None and as_of < (until := last + policy.cool_down):
        return f"The last search was at {last}; policy.cool_down ({spell(policy.cool_down)}) ends {until}."
    return None


def explain_age(as_of: datetime, policy: Policy, last: datetime | None) -> str | None:
    if last is not None and as_of < (until := last + policy.refresh_every):
        return f"The last retrain was at {last}; policy.refresh_every ({spell(policy.refresh_every)}) ends {until}."
    return None


def explain_price(freshness: Signal, policy: Policy, costs: Costs) -> str | None:
    """Why a refresh is not worth what it costs: the loss that it saves until the next one may be asked for."""
    cpu = costs.last.get("refresh", costs.last.get("search"))
    if policy.price is None or cpu is None or freshness.value is None:
        return None
    rows = freshness.detail.get("rows_a_week", 0.0) * (policy.refresh_every / timedelta(weeks=1))
    saved, cost = freshness.value * rows / 1000 * policy.price, _to_money(cpu, policy)
    if saved > cost:
        return None
    return (
        f"In {spell(policy.refresh_every)} a refresh saves {freshness.value:.4g} of loss a row of {rows:,.0f}, worth "
        f"{saved:.4g} at policy.price ({policy.price:g} for a unit of loss in 1,000 predictions), and costs {cost:.4g}."
    )


def explain_money(kind: RetrainKind, policy: Policy, costs: Costs) -> str | None:
    """Why a retrain would cost more than the month allows. What one costs is not known before the first."""
    if policy.money is None:
        return None
    spent, cost = _to_money(costs.spent, policy), _to_money(costs.last.get(kind, 0.0), policy)
    if spent + cost <= policy.money and spent < policy.money:
        return None
    return (
        f"A {kind} costs about {cost:.4g}, and {spent:.4g} of policy.money ({policy.money:g} in 30 days) is spent: "
        "wait, or raise policy.money."
    )


def allot_trials(policy: Policy, costs: Costs) -> timedelta | None:
    """The CPU that the trials of a search may take: half of what the month leaves, since the finalists, the training
    and the gate need theirs. None: no limit, or one that the last search shows to be far away."""
    if policy.money is None or policy.cpu_price == 0:
        return None
    left = policy.money / policy.cpu_price * HOUR_S - costs.spent
    last = costs.last.get("search")
    return None if last is not None and left > 2 * last else timedelta(seconds=max(round(left / 2), 1))


def _to_money(cpu: float, policy: Policy) -> float:
    return cpu / HOUR_S * policy.cpu_price


def explain_budget(as_of: datetime, policy: Policy, retrains: Retrains) -> str | None:
    recent = [moment for moment in retrains.searched if as_of - MONTH < moment <= as_of]
    if len(recent) >= policy.budget:
        return f"{len(recent)} searches in the last 30 days, and policy.budget is {policy.budget}."
    return None


def explain_rest(faults: Sequence[datetime], now: datetime) -> str | None:
    """Why no retrain is asked for yet, by the wall clock: the last ones failed.

    Args:
        faults: When each retrain that failed since a candidate was last made was answered, in any order.
        now: The time on the same clock.
    """
    if not faults:
        return None
    rest = min(FIRST_REST * 2 ** min(len(faults) - 1, 10), LONGEST_REST)
    if now >= (until := max(faults) + rest):
        return None
    count = "The last retrain" if len(faults) == 1 else f"The last {len(faults)} retrains"
    return (
        f"{count} failed, the newest at {max(faults):%Y-%m-%d %H:%M} UTC. The next is asked for {spell(rest)} later, "
        f"from {until:%Y-%m-%d %H:%M} UTC on: mend what the ledger names, or start one by hand."
    )
