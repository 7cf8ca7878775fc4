"""The promotion gate: (candidate, champion, holdout) → Verdict. Pure; it acts on nothing and reads no file.

The gain is the champion's metric less the candidate's, on the same rows: positive is better. Its interval is a paired
studentized bootstrap over blocks of event time, because rows of one day rise and fall together (Künsch, Ann. Stat.
1989). Each end is the farthest of four: Student's t and the symmetric bootstrap-t (Hall, JRSS B 1988), which cover with
few, unequal blocks; the equal-tailed bootstrap-t (Efron & Tibshirani, An Introduction to the Bootstrap, ch. 12) and the
one through Hall's transformation (JRSS B 1992), which see that bad days are rare and large. So the interval need not be
symmetric. Measured on made days of log loss, both models imperfect (4,000 holdouts, nominal 95 %): at 28 blocks the
percentile interval covers 92.7 %, the equal-tailed bootstrap-t 93.1 %, Student's t 94.8 %, this one 96.5 %; at 14
blocks 89.0, 91.9, 94.2 and 96.2 %. It errs on the safe side, at a price: of normal gains half pass the first look at
2.48 standard errors, where the symmetric interval alone asks for 2.38.

What is not reached: a candidate that is no better, a little better on most days and much worse on a few, passes oftener
than it should, because 28 days without a bad one do not tell of it. At a one-sided tail of 2.5 %, 3.4 % of gains with
an exponential's tail pass and 5.1 % with a lognormal's (2.3 % of normal ones); by the symmetric interval alone 5.2 and
9.1 %.

One recipe trained with another seed is another model, better or worse by luck, and the refit that promotion ships does
not inherit its twin's luck. On real flights the gain between two seeds of one recipe varied 1.0 to 1.5 times as much as
a bootstrap over days says, and up to 10 % of such pairs would have passed a 2.5 % gate. So `Judged.losses` may hold a
row of losses a seed: then the gate compares recipes, and adds what the seeds differ by to the error (two-way clustering
by seed and block, Cameron, Gelbach & Miller, JBES 2011; degrees of freedom after Satterthwaite, 1946). In 1,000 made
families of ten looks, whose seeds differ rather more than those, one seed a side promoted an equal in 24.8 % of them,
two in 2.8 %, three in 1.8 %. With one seed each the verdict is about these two models, and says so.

Every look at the same champion is another chance to be wrong, so each look spends a share 1/((k+1)(k+2)) of the
one-sided tail (1 - level)/2, as in alpha spending (Lan & DeMets, Biometrika 1983): over all looks together, however
much their holdouts overlap, a candidate that is no better is promoted at most at that rate (Bonferroni), as far as each
interval holds. First models share a tail in the same way, since there was last a champion.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.params import Gate, spell, to_utc
from tasks.promotion.interval import Floats, assign_blocks, draw_blocks, student_quantile
from tasks.promotion.verdict import METRIC_NAMES, SAID, Outcome, Verdict

Slices = Mapping[str, NDArray[Any]]
HARSHNESS: tuple[Outcome, ...] = ("PROMOTE", "HOLD", "REJECT")

# A slice with a smaller share of gate.min_rows is not judged (500 rows by default, as in evaluate.slice_rows).
SLICE_SHARE = 0.25
# The one-sided tail at which a slice is likely worse. On the real flights this holds up few sound candidates: two
# seeds of one recipe have a standard error of 0.004 to 0.012 in a slice of 500 rows (scaled from the whole holdout's).
LIKELY = 0.1
# So many of the replicates lie beyond the deepest quantile that is read off them, on its side.
BEYOND = 20
# Replicates times blocks: bounds the memory (blocks of an hour in a year's holdout get fewer replicates).
CELLS = 2**22


@dataclass(frozen=True, eq=False)
class Judged:
    """One recipe on the holdout: (n,) losses of one model, or (seeds, n) of one model a seed."""

    losses: NDArray[Any]
    calibration_error: float
    megabytes: float
    milliseconds: float  # per row

    def __post_init__(self) -> None:
        if self.losses.ndim not in (1, 2) or not self.losses.size:
            raise ValueError(f"losses must have the shape (rows,) or (seeds, rows), but got {self.losses.shape}")
        if bad := int((~(np.isfinite(self.losses) & (self.losses >= 0))).sum()):
            raise ValueError(f"losses must be finite and not negative, but {bad} of {self.losses.size} are not")
        for name in ("calibration_error", "megabytes", "milliseconds"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, but got {value!r}")

    @property
    def rows(self) -> int:
        return int(self.losses.shape[-1])

    @property
    def models(self) -> Floats:
        return np.atleast_2d(np.asarray(self.losses, np.float64))


class _Drawn(NamedTuple):
    """Of each draw of the blocks."""

    gain: Floats
    variance: Floats  # of the gain, from block to block
    bend: Floats  # a third of the skewness of the gain's error


class Finding(NamedTuple):
    """One rule's say; the harshest one is the outcome. `outcome` None: said for the reader alone."""

    outcome: Outcome | None
    reason: str


# ------------------------------------------------------------------------------------------------------- losses


# ----------------------------------------------------------------------------------------------------- verdicts


def judge(
    candidate: Judged, champion: Judged, *, times: NDArray[Any], slices: Slices, gate: Gate, looks: int = 0
) -> Verdict:
    """`looks`: how many gates this champion has survived before this one. A gate that could not have promoted (too few
    rows, over budget, unchanged) spent nothing and is not counted: its figure `looked` is not true."""
    pair, tail = _pair(candidate, champion, times=times, gate=gate), spent(looks, gate)
    barred = [*_enough(pair), *_budgets(candidate, gate)]
    spending = _spending(looks, tail, barred=barred, bound=pair.interval.low(tail) if pair.interval else None)
    findings, rows = list(barred), []
    if pair.enough and pair.interval:
        rows = list(_by_slice(pair, slices))
        findings += [*_overall(pair, pair.interval, tail), *_slices(rows, gate)]
    return _verdict(findings, {**_figures(pair), **spending, **_costs(candidate), "slices": rows})


def first(
    candidate: Judged,
    baselines: Mapping[str, Judged],
    *,
    times: NDArray[Any],
    gate: Gate,
    slices: Slices | None = None,
    looks: int = 0,
) -> Verdict:
    """No champion yet: the candidate must beat every baseline. Slices are judged against the best of them. `looks`:
    how many first models were looked at and refused; they share one tail as the looks at a champion do."""
    if not baselines:
        return Verdict("HOLD", ("There is no baseline to beat. Name one in evaluate.baselines.",), {})
    tail = spent(looks, gate)
    pairs = {name: _pair(candidate, each, times=times, gate=gate) for name, each in baselines.items()}
    bounds = {name: pair.interval.low(tail) for name, pair in pairs.items() if pair.interval}
    best = min(pairs.values(), key=lambda pair: pair.metrics[1])
    barred = [*_enough(best), *_budgets(candidate, gate)]
    findings, rows = list(barred), []
    if best.enough:
        rows = list(_by_slice(best, slices or {}))
        beats = [_beats(name, pair, pair.interval, tail) for name, pair in pairs.items() if pair.interval]
        findings += [*beats, _hardest(bounds, tail), *_slices(rows, gate)]
    against = [
        {"baseline": name, "metric": pair.metrics[1], **_ends(pair), "bound": bounds.get(name)}
        for name, pair in pairs.items()
    ]
    spending = _spending(looks, tail, barred=barred, bound=min(bounds.values(), default=None))
    found = {**_figures(best), "champion": None, **spending, **_costs(candidate), "baselines": against, "slices": rows}
    return _verdict(findings, found)


def level(losses: NDArray[Any], *, times: NDArray[Any], gate: Gate) -> tuple[float, float | None, float | None]:
    """One model's metric on rows (n,), and its interval by the same bootstrap; None where one block tells none."""
    alone, nothing = Judged(losses, 0.0, 0.0, 0.0), Judged(np.zeros_like(losses), 0.0, 0.0, 0.0)
    pair, tail = _pair(alone, nothing, times=times, gate=gate), (1 - gate.level) / 2
    if pair.interval is None:
        return pair.metrics[0], None, None
    return pair.metrics[0], -pair.interval.high(tail), -pair.interval.low(tail)


def unchanged(champion: str) -> Verdict:
    """The candidate's recipe and data are the champion's: there is nothing to judge and no version to make."""
    return Verdict("HOLD", (f"Same recipe and same data as {champion}: nothing to judge.",), {"same_as": champion})


def explain_backoff(last_time: datetime | None, now: datetime, gate: Gate) -> str | None:
    """Why no candidate is looked at yet: the last HOLD or REJECT, against the same champion or of a first model, was at
    `last_time`, in event time."""
    if last_time is None or (until := to_utc(last_time) + gate.backoff) <= to_utc(now):
        return None
    return (
        f"The last look, at {to_utc(last_time):%Y-%m-%d %H:%M}, did not promote. "
        f"The next is gate.backoff ({spell(gate.backoff)}) later, from {until:%Y-%m-%d %H:%M} on."
    )


def spent(looks: int, gate: Gate) -> float:
    """The one-sided tail that the look after `looks` others may use; over all looks they sum to (1 - level) / 2. So
    already the first look has half of it, against a champion as against the baselines."""
    if looks < 0:
        raise ValueError(f"`looks >= 0` must hold, but got looks={looks}. It counts the earlier gates.")
    return (1 - gate.level) / 2 / ((looks + 1) * (looks + 2))


def _verdict(findings: list[Finding], figures: Mapping[str, Any]) -> Verdict:
    ranks = [HARSHNESS.index(found.outcome) if found.outcome else -1 for found in findings]
    ordered = sorted(range(len(findings)), key=lambda place: -ranks[place])
    return Verdict(HARSHNESS[max(ranks)], tuple(findings[place].reason for place in ordered), figures)


# -------------------------------------------------------------------------------------------------------- rules


def _enough(pair: "_Pair") -> Iterator[Finding]:
    gate = pair.gate
    if pair.rows < gate.min_rows:
        yield Finding("HOLD", f"{pair.rows:,} rows are fewer than gate.min_rows ({gate.min_rows:,}).")
    if pair.blocks < gate.min_blocks:
        said = f"{pair.blocks} blocks of {spell(gate.block)}"
        yield Finding("HOLD", f"{said} are fewer than gate.min_blocks ({gate.min_blocks}).")


def _budgets(candidate: Judged, gate: Gate) -> Iterator[Finding]:
    for name, unit in (("calibration_error", ""), ("megabytes", " MB"), ("milliseconds", " ms a row")):
        value, most = getattr(candidate, name), getattr(gate, f"max_{name}")
        if value > most:
            measure = "Calibration error" if name == "calibration_error" else "Over budget:"
            yield Finding("REJECT", f"{measure} {value:.4g}{unit} is more than gate.max_{name} ({most:g}{unit}).")


def _overall(pair: "_Pair", interval: "_Interval", tail: float) -> Iterator[Finding]:
    gate = pair.gate
    least, key = (gate.min_gain, "min_gain") if gate.rule == "superior" else (-gate.margin, "margin")
    bound, high = interval.low(tail), interval.high((1 - gate.level) / 2)
    outcome: Outcome = "PROMOTE" if bound > least else "REJECT" if high < 0 else "HOLD"
    yield Finding(outcome, f"{SAID[gate.rule, outcome]} the champion: {_compared(pair)}.")
    word = "more" if bound > least else "not more"
    yield Finding(
        None,
        f"At this look's level ({1 - tail:.2%}) the gain is above {bound:+.4g}: {word} than {least:g} "
        f"(gate.{key}, rule {gate.rule}).",
    )
    if pair.seeds == (1, 1):
        yield Finding(None, "One seed each: the interval speaks of these two models, not of their recipes.")
    if pair.correlation > 2 / math.sqrt(pair.blocks):
        together = f"Neighbouring blocks go together (correlation {pair.correlation:.2f})"
        yield Finding(None, f"{together}, so the interval may be too narrow: consider a longer gate.block.")


def _beats(name: str, pair: "_Pair", interval: "_Interval", tail: float) -> Finding:
    high = interval.high((1 - pair.gate.level) / 2)
    outcome: Outcome = "PROMOTE" if interval.low(tail) > 0 else "REJECT" if high < 0 else "HOLD"
    way_out = f" Wait for more data, or take {name} out of evaluate.baselines." if outcome == "HOLD" else ""
    return Finding(outcome, f"{SAID['superior', outcome]} the baseline {name}: {_compared(pair)}.{way_out}")


def _hardest(bounds: Mapping[str, float], tail: float) -> Finding:
    name = min(bounds, key=lambda each: bounds[each])
    word = "more" if bounds[name] > 0 else "not more"
    return Finding(
        None, f"At this look's level ({1 - tail:.2%}) the gain over {name} is above {bounds[name]:+.4g}: {word} than 0."
    )


def _compared(pair: "_Pair") -> str:
    one, other = pair.metrics
    gain, low, high = _ends(pair).values()
    return (
        f"{METRIC_NAMES[pair.gate.metric]} {one:.5g} against {other:.5g}, "
        f"a gain of {gain:+.4g} ({pair.gate.level:.0%} interval {low:+.4g} to {high:+.4g})"
    )


def _slice_outcome(interval: "_Interval", gate: Gate) -> Outcome | None:
    """Surely worse by more than the tolerance rejects. Likely worse, and by more than the tolerance as far as anyone
    can tell, holds: a slice is small, and the next look has other rows."""
    if interval.high((1 - gate.level) / 2) < -gate.slice_tolerance:
        return "REJECT"
    return "HOLD" if interval.gain < -gate.slice_tolerance and interval.high(LIKELY) < 0 else None


def _slices(rows: list[dict[str, Any]], gate: Gate) -> Iterator[Finding]:
    for row in rows:
        said = f"{row['slice']} = {row['value']} ({row['rows']:,} rows, gain {row['low']:+.4g} to {row['high']:+.4g})"
        limit = f"by more than gate.slice_tolerance ({gate.slice_tolerance:g}) in the slice {said}."
        if row["outcome"]:
            yield Finding(row["outcome"], f"{'Worse' if row['outcome'] == 'REJECT' else 'Likely worse'} {limit}")


# ------------------------------------------------------------------------------------------------------ figures


def _figures(pair: "_Pair") -> dict[str, Any]:
    gate, interval = pair.gate, pair.interval
    return {
        "metric": gate.metric,
        "rule": gate.rule,
        "candidate": pair.metrics[0],
        "champion": pair.metrics[1],
        **_ends(pair),
        "level": gate.level,
        "rows": pair.rows,
        "blocks": pair.blocks,
        "block": spell(gate.block),
        "block_correlation": pair.correlation,
        "seeds": list(pair.seeds),
        "error_of_blocks": interval and math.sqrt(interval.of_blocks),
        "error_of_seeds": interval and math.sqrt(interval.of_seeds) if sum(pair.seeds) > 2 else None,
    }


def _spending(looks: int, tail: float, *, barred: list[Finding], bound: float | None) -> dict[str, Any]:
    """A look is spent only where promoting was possible: `barred` names what forbade it, whatever the losses said."""
    return {"looks": looks, "spent_level": 1 - tail, "bound": bound, "looked": not barred}


def _ends(pair: "_Pair") -> dict[str, float | None]:
    if (interval := pair.interval) is None:
        return dict.fromkeys(("gain", "low", "high"))
    tail = (1 - pair.gate.level) / 2
    return {"gain": interval.gain, "low": interval.low(tail), "high": interval.high(tail)}


def _costs(candidate: Judged) -> dict[str, float]:
    return {name: float(getattr(candidate, name)) for name in ("calibration_error", "megabytes", "milliseconds")}


def _by_slice(pair: "_Pair", slices: Slices) -> Iterator[dict[str, Any]]:
    for name, column in slices.items():
        if len(column) != pair.rows:
            raise ValueError(f"slice {name} must have a value for each of {pair.rows} rows, but has {len(column)}")
        values, place = np.unique(np.asarray(column)[pair.order].astype(str), return_inverse=True)
        for index, value in enumerate(values):
            part = pair.where(place == index)
            if part.rows < SLICE_SHARE * pair.gate.min_rows or part.blocks < pair.gate.min_blocks or not part.interval:
                continue
            figures = {"rows": part.rows, "blocks": part.blocks, **_ends(part)}
            outcome = _slice_outcome(part.interval, pair.gate)
            yield {"slice": name, "value": str(value), **figures, "outcome": outcome}


# --------------------------------------------------------------------------------------------------- statistics


@dataclass(frozen=True, eq=False)
class _Interval:
    """Around the gain, each end by itself: bad days that are rare and large push the lower end further out than the
    upper one. The ends may be asked for at several tails."""

    gain: float
    of_blocks: float  # the gain's variance from block to block
    of_seeds: float  # and what the seeds add to it
    freedom: float
    blocks: int
    deviations: tuple[Floats, ...]  # forms of the replicates' studentized error, each ascending; the first both sides'

    def low(self, tail: float) -> float:
        return self.gain - self._reach(tail, self.deviations)

    def high(self, tail: float) -> float:
        return self.gain + self._reach(tail, tuple(-form[::-1] for form in self.deviations))

    def _reach(self, tail: float, forms: tuple[Floats, ...]) -> float:
        stretch = self._stretch(tail, forms)
        return stretch * student_quantile(tail, self.freedom) * math.sqrt(self.of_blocks + self.of_seeds)

    def _stretch(self, tail: float, forms: tuple[Floats, ...]) -> float:
        """How much further the bootstrap's tail reaches than Student's, in the form that reaches furthest, and never
        less. A tail deeper than the replicates tell is stretched as much as the deepest that they do: few blocks say
        no more of it."""
        held = max(tail, BEYOND / max(len(forms[-1]), 1))
        if held >= 0.25:
            return 1.0
        reached = max(float(form[math.ceil((1 - held) * (len(form) + 1)) - 1]) for form in forms)
        return max(1.0, reached / student_quantile(held, self.blocks - 1))


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two recipes' losses on the same rows. The candidate's models come first."""

    losses: Floats  # (models, rows)
    block: NDArray[np.intp]  # (rows,): 0, 1, 2 ... in time
    order: NDArray[np.intp]  # (rows,): each row's place in what the caller gave
    seeds: tuple[int, int]
    gate: Gate

    def where(self, mask: NDArray[np.bool_]) -> "_Pair":
        block = np.unique(self.block[mask], return_inverse=True)[1]
        return _Pair(self.losses[:, mask], block, self.order[mask], self.seeds, self.gate)

    @property
    def rows(self) -> int:
        return len(self.block)

    @property
    def blocks(self) -> int:
        return len(self.sizes)

    @property
    def enough(self) -> bool:
        return not any(_enough(self))

    @cached_property
    def sizes(self) -> Floats:
        return np.bincount(self.block).astype(np.float64)

    @cached_property
    def sums(self) -> Floats:
        return np.stack([np.bincount(self.block, each) for each in self.losses])

    @cached_property
    def signs(self) -> Floats:
        """The gain is the models' metrics times these."""
        return np.repeat((-1 / self.seeds[0], 1 / self.seeds[1]), self.seeds)

    @property
    def once(self) -> Floats:
        """The draw that has each block once: the holdout itself."""
        return np.ones((1, self.blocks))

    @property
    def metrics(self) -> tuple[float, float]:
        """The candidate's and the champion's, each the mean over its seeds."""
        ours, theirs = np.split(self.measured(self.once)[0], [self.seeds[0]])
        return float(ours.mean()), float(theirs.mean())

    @property
    def correlation(self) -> float:
        """Between neighbouring blocks' parts of the gain; the bootstrap takes it to be none."""
        part = self.signs @ self.influences
        return float(part[1:] @ part[:-1] / (part @ part)) if part.any() else 0.0

    @cached_property
    def interval(self) -> _Interval | None:
        if self.blocks < 2:
            return None
        here = self.gains(self.once)
        gain, of_blocks = float(here.gain[0]), float(here.variance[0])
        of_seeds, freedom = self._seeds(of_blocks)
        return _Interval(gain, of_blocks, of_seeds, freedom, self.blocks, self._deviations(here))

    def measured(self, draws: Floats) -> Floats:
        """The models' metrics, (draws, models), where each block counts as often as it was drawn."""
        means = draws @ self.sums.T / (draws @ self.sizes)[:, None]
        return np.sqrt(means) if self.gate.metric == "rmse" else means

    def _slopes(self, metrics: Floats) -> Floats:
        """Of the metric by the mean loss. An RMSE is no mean: it is linearized where it is (the delta method)."""
        return 0.5 / np.maximum(metrics, 1e-150) if self.gate.metric == "rmse" else np.ones_like(metrics)

    def gains(self, draws: Floats) -> _Drawn:
        """The variance is that of a ratio: the blocks' sizes are drawn too."""
        metrics, rows = self.measured(draws), draws @ self.sizes
        slopes = self.signs * self._slopes(metrics)
        means = draws @ self.sums.T / rows[:, None]
        parts = slopes @ self.sums - np.outer((slopes * means).sum(axis=1), self.sizes)
        squares = draws * parts**2
        spread = squares.sum(axis=1)
        bend = np.einsum("ij,ij->i", squares, parts) / np.maximum(spread, 1e-200) ** 1.5 / 3
        return _Drawn(metrics @ self.signs, spread / rows**2 * self.blocks / (self.blocks - 1), bend)

    def _deviations(self, here: _Drawn) -> tuple[Floats, ...]:
        """Both sides together (the symmetric form), each side by itself (equal-tailed), and the latter of the errors
        that Hall's transformation has freed of their skewness, bent back to what the holdout's own skewness makes."""
        replicates = max(100, min(self.gate.replicates, CELLS // self.blocks))
        drawn = self.gains(draw_blocks(self.gate.seed, self.blocks, replicates).astype(np.float64))
        told = drawn.variance > 1e-12 * here.variance  # a draw of one block alone has none but rounding
        errors = (drawn.gain[told] - here.gain) / np.sqrt(drawn.variance[told])
        bent = _bent(_straightened(errors, drawn.bend[told]), here.bend)
        return tuple(np.sort(form) for form in (np.concatenate([errors, -errors]), errors, bent))

    @cached_property
    def influences(self) -> Floats:
        """What each block adds to each model's metric, (models, blocks): they sum to zero."""
        metrics, means = self.measured(self.once)[0], self.losses.mean(axis=1)
        return self._slopes(metrics)[:, None] * (self.sums - np.outer(means, self.sizes)) / self.rows

    def _seeds(self, of_blocks: float) -> tuple[float, float]:
        """What the seeds add to the gain's variance, and the whole's degrees of freedom. Part of what seeds differ by
        is there from block to block already; it is not counted twice."""
        spare, most = sum(self.seeds) - 2, self.blocks - 1.0
        if not spare:
            return 0.0, most
        share = (1 / self.seeds[0] + 1 / self.seeds[1]) / spare
        between = share * float((self._within(self.measured(self.once).T) ** 2).sum())
        inside = share * float((self._within(self.influences) ** 2).sum()) * self.blocks / most
        total = of_blocks + (added := max(0.0, between - inside))
        doubt = of_blocks**2 / most + between**2 / spare
        return added, min(most, max(1.0, total**2 / doubt)) if doubt > 0 else most

    def _within(self, values: Floats) -> Floats:
        """(models, any) less their recipe's mean over its seeds."""
        recipes = np.split(values, [self.seeds[0]])
        return np.concatenate([each - each.mean(axis=0) for each in recipes])


def _pair(candidate: Judged, champion: Judged, *, times: NDArray[Any], gate: Gate) -> _Pair:
    """The rows in an order that depends on nothing but what they hold, so that the sums have the same bits."""
    if candidate.rows != len(times) or champion.rows != len(times):
        counts = f"{candidate.rows:,}, {champion.rows:,} and {len(times):,}"
        raise ValueError(f"both models must be judged on the same rows, one time each, but got {counts}")
    losses = np.concatenate([candidate.models, champion.models])
    block = assign_blocks(times, gate.block)
    order = np.lexsort((*losses, block))
    seeds = len(candidate.models), len(champion.models)
    return _Pair(losses[:, order], block[order], order, seeds, gate)


def _straightened(error: Floats, bend: Floats) -> Floats:
    """Hall's transformation (JRSS B 1992): a studentized mean so changed has next to no skewness left. It rises with
    the error, so that it can be undone."""
    return error + bend * error**2 + bend**2 * error**3 / 3 + bend / 2


def _bent(straight: Floats, bend: Floats) -> Floats:
    """What `_straightened` makes `straight` of: ((1 + 3 bend x) ^ (1/3) - 1) / bend, written to hold for none too."""
    found = straight - bend / 2
    root = np.cbrt(1 + 3 * bend * found)
    return np.asarray(3 * found / (root**2 + root + 1), np.float64)
