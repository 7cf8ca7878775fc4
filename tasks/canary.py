"""canary: champion and challenger on the outcomes that are mature → a signal, and what is done about it.

Every row counts that one of them answered, or scored in the shadow, since the canary began: where only one did, the
other scores the features that the journal holds of it. So both are always compared on the same rows, and on none that
either was trained on. The gate decides, at the share of the tail that is left after the looks so far: surely better by
the gate's own rule, costs and slices is PROMOTE; surely worse in loss alone is REJECT, which is for ever; else the
canary goes on. Without an API that knows of the challenger, the champion's journalled rows are compared all the same.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import gate, judge, predecessor, score
from tasks.features import Rows
from tasks.gate import Judged, Verdict
from tasks.journal import Journal, subject
from tasks.model import Floats, Model, Spec
from tasks.params import Params
from tasks.policy import Signal
from tasks.registry import Entry, Registry, Version

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

log = logging.getLogger("evergreen")
PREFIX = "canary-"  # of the decision that ends a canary by a look
WORDS = {"PROMOTE": "is better than", "REJECT": "is worse than", "HOLD": "is not surely better or worse than"}


@dataclass(frozen=True)
class Arm:
    """A version, and what the journal has of it: of each subject, the last that it said."""

    version: Version
    model: Model
    rows: "pa.Table"

    @cached_property
    def places(self) -> dict[str, int]:
        """Where a subject's row is."""
        entries = self.rows["entry"].to_pylist() if self.rows.num_rows else []
        return {subject(entry): place for place, entry in enumerate(entries)}

    def can_score(self, other: "Arm") -> bool:
        """Whether the features are there that the other left in the journal."""
        return predecessor.cannot_score(self.model.spec, other.model.spec) is None

    def take(self, subjects: Sequence[str]) -> "pa.Table":
        import pyarrow as pa

        return self.rows.take(pa.array([self.places[name] for name in subjects], pa.int64()))

    def said(self, subjects: Sequence[str], rows: "pa.Table") -> Floats:
        """Its scores of these subjects: its own where it has one, else of the features in `rows`."""
        own = np.array([name in self.places for name in subjects], dtype=bool)
        told = self.take([name for name in subjects if name in self.places])["score"].to_pylist()
        again = self.model.predict(score.features_of(rows.filter(~own), self.model.spec)) if not own.all() else None
        parts = [np.array(told, dtype=np.float64)] if told else []
        found = np.concatenate(parts if again is None else [*parts, again.astype(np.float64)])
        return np.asarray(found[np.argsort(np.argsort(~own, kind="stable"))])


@dataclass(frozen=True)
class Pairs:
    """The rows of which both arms have a score (n); `codes` are their labels as numbers, `both` the rows that both
    scored themselves, when they were asked."""

    rows: "pa.Table"
    codes: Floats
    champion: Floats
    challenger: Floats
    both: int

    @property
    def times(self) -> "NDArray[np.datetime64]":
        return np.array(self.rows["event_time"].to_pylist(), dtype="datetime64[us]")


def compare(
    p: Params, *, journal: Journal, registry: Registry, champion: Version, begun: Entry, as_of: datetime, looks: int
) -> Signal | None:
    """Alarms when the challenger that `begun` put up has won or lost. `looks`: how often challengers of this champion
    were so looked at before. None where it is the champion by now, or answers another question."""
    assert begun.version is not None
    if begun.version == champion.number:
        return None
    versions = (champion, registry.version(begun.version))
    models = [predecessor.model_of(registry, each) for each in versions]
    if models[0].spec.task != models[1].spec.task:
        log.warning("the challenger answers another question (%s, not %s)", models[1].spec.task, models[0].spec.task)
        return None
    since, until = max(begun.as_of, *map(_unseen_from, versions, models)), as_of - p.label.deadline
    made = journal.read("predictions", since=since, until=until, shadows=True)
    came = score.latest_outcomes(journal.read("outcomes", since=since, until=until))
    arms = [Arm(version, model, _of(made, version)) for version, model in zip(versions, models, strict=True)]
    found = pairs(*arms, came=came)
    verdict = judged(p, found, models[1], looks=looks) if found else Verdict("HOLD", (NOTHING,), {})
    return _signal(verdict, arms, begun, since=since, as_of=as_of, both=found.both if found else 0)


def _unseen_from(version: Version, model: Model) -> datetime:
    """It knows nothing of the rows from then on."""
    told = datetime.fromisoformat(model.spec.until) if model.spec.until else datetime.min
    return max(version.as_of or datetime.min, told)


def _of(made: "pa.Table", version: Version) -> "pa.Table":
    import pyarrow.compute as pc

    return score.once(made.filter(pc.equal(made["version"], version.number))) if made.num_rows else made


# --- the same rows -------------------------------------------------------------------------------------------------


def pairs(champion: Arm, challenger: Arm, *, came: Mapping[str, Any]) -> Pairs | None:
    """The labelled rows that either has and both can score; None where there are none. An outcome is told of the
    prediction that was sent: it holds for whatever was said of the same subject."""
    import pyarrow as pa

    there, spec = champion.places.keys() & challenger.places.keys(), champion.model.spec
    mine = [name for name in champion.places if name in there or challenger.can_score(champion)]
    theirs = [name for name in challenger.places if name not in champion.places and champion.can_score(challenger)]
    parts = [arm.take(names) for arm, names in ((champion, mine), (challenger, theirs)) if names]
    if not parts:
        return None
    rows, subjects = pa.concat_tables(parts), np.array([*mine, *theirs], dtype=object)
    codes = _codes(rows, subjects, came, spec)
    known = ~np.isnan(codes)  # a class that the champion has never seen cannot be predicted by either
    if not known.any():
        return None
    rows, names = rows.filter(known), list(subjects[known])
    said = [judge.onto(spec, arm.model, arm.said(names, rows)) for arm in (champion, challenger)]
    return Pairs(rows, codes[known], said[0], said[1], both=len(there.intersection(names)))


def _codes(rows: "pa.Table", subjects: Iterable[str], came: Mapping[str, Any], spec: Spec) -> Floats:
    """The labels as numbers; NaN where there is none yet."""
    of_subject = {subject(of): label for of, label in came.items()}
    named = zip(rows["entry"].to_pylist(), subjects, strict=True)
    own = [(score.outcome_of(entry, came), of_subject.get(name)) for entry, name in named]
    labels = [each if each is not None else other for each, other in own]
    there = np.array([label is not None for label in labels], dtype=bool)
    codes = np.full(len(labels), np.nan)
    codes[there] = predecessor.codes_of([label for label in labels if label is not None], spec)
    return codes


# --- the verdict ---------------------------------------------------------------------------------------------------


def judged(p: Params, found: Pairs, challenger: Model, *, looks: int) -> Verdict:
    """The gate's verdict on the challenger, as on a candidate; but only a sure loss, at what is left of the tail on
    that side, is a REJECT: what the gate refuses for another reason may get over it."""
    old, new = (gate.row_losses(found.codes, each, metric=p.gate.metric) for each in (found.champion, found.challenger))
    there: dict[str, Any] = {"times": found.times, "looks": looks}
    won = gate.judge(
        Judged(new, **_costs(found, challenger)), _free(old), slices=_slices(p, found.rows), gate=p.gate, **there
    )
    strict = p.gate.model_copy(update={"rule": "superior", "min_gain": 0.0})
    lost = gate.judge(_free(old), _free(new), slices={}, gate=strict, **there)
    outcome: gate.Outcome = "PROMOTE" if won.promotes else "REJECT" if lost.promotes else "HOLD"
    return Verdict(outcome, won.reasons, {**won.figures, "looked": judge.counts_as_look(lost)})


def _free(losses: Floats) -> Judged:
    """What serves costs nothing new."""
    return Judged(losses, 0.0, 0.0, 0.0)


def _costs(found: Pairs, model: Model) -> dict[str, float]:
    rows = Rows(score.features_of(found.rows, model.spec), found.times, found.times, found.codes)
    return {
        "calibration_error": judge.calibration(model.spec, found.codes, found.challenger),
        "megabytes": len(model.to_bytes()) / 1e6,
        "milliseconds": judge.latency(model, rows),
    }


def _slices(p: Params, rows: "pa.Table") -> "dict[str, NDArray[Any]]":
    """Those of evaluate.slices that the journal can tell, by a feature or a part of the key."""
    named = {
        name: [each for each in (f"x_{name}", f"key_{name}") if each in rows.column_names] for name in p.evaluate.slices
    }
    return {name: np.array(rows[where[0]].to_pylist(), dtype=object) for name, where in named.items() if where}


NOTHING = "No outcome of the rows since it began is mature yet."


def _signal(
    verdict: Verdict, arms: Sequence[Arm], begun: Entry, *, since: datetime, as_of: datetime, both: int
) -> Signal:
    figures, (champion, challenger) = verdict.figures, (each.version.number for each in arms)
    told = {name: figures.get(name) for name in ("metric", "candidate", "champion", "looks", "bound", "level")}
    return Signal(
        "challenger",
        window_begin=since,
        window_end=as_of,
        version=champion,
        rows=figures.get("rows", 0),
        alarm=verdict.outcome != "HOLD",
        said=_said(verdict, champion, challenger, both),
        value=figures.get("gain"),
        low=figures.get("low"),
        high=figures.get("high"),
        detail={
            "challenger": challenger,
            "canary": begun.decision,
            "outcome": verdict.outcome,
            "looked": judge.counts_as_look(verdict),
            "both": both,
            "answers": [len(each.places) for each in arms],
            **{name: value for name, value in told.items() if value is not None},
        },
    )


def _said(verdict: Verdict, champion: int, challenger: int, both: int) -> str:
    figures = verdict.figures
    if not judge.counts_as_look(verdict):
        return f"Nothing can be said of version {challenger}, the challenger, yet. {verdict.reasons[0]}"
    counted = f"On {figures['rows']:,} mature rows ({both:,} of them scored by both when they were asked)"
    measure = f"{gate.NAMES[figures['metric']]} {figures['candidate']:.4f} against {figures['champion']:.4f}"
    interval = f"a gain of {figures['gain']:+.4f} ({figures['low']:+.4f} to {figures['high']:+.4f})"
    why = f" {verdict.reasons[0]}" if verdict.outcome == "HOLD" else ""
    word = WORDS[verdict.outcome]
    return f"{counted} version {challenger}, the challenger, {word} version {champion}: {measure}, {interval}.{why}"


# --- when to look, and what then -----------------------------------------------------------------------------------


def due(signals: Iterable[Signal], version: int, *, as_of: datetime, window: timedelta) -> bool:
    """Whether monitor.window has passed since this champion was last held against a challenger."""
    return predecessor.due(signals, version, as_of=as_of, window=window, kind="challenger")


def looks(signals: Iterable[Signal], version: int) -> int:
    """How often: all its challengers share one tail, as all its candidates do."""
    return len(predecessor.looked(signals, version, kind="challenger"))


def newest(signals: Iterable[Signal], begun: Entry) -> Signal | None:
    """What was last found in this canary."""
    mine = [each for each in signals if each.kind == "challenger" and each.detail.get("canary") == begun.decision]
    return max(mine, key=lambda each: each.window_end, default=None)


def wanted(signals: Iterable[Signal], version: int, begun: Entry) -> Signal | None:
    """The look by which this canary is decided against this champion. It stands until somebody has acted on it."""
    mine = predecessor.looked(signals, version, kind="challenger")
    return next((each for each in mine if each.alarm and each.detail.get("canary") == begun.decision), None)


def settled(registry: Registry, *, as_of: datetime) -> Entry | None:
    """The canary that is on. One whose challenger serves by now, however it came to, is over."""
    begun, serving = registry.only_challenger(), registry.champion()
    if begun is None or serving is None or begun.version != serving.number:
        return begun
    registry.finish_open()  # what was killed between the alias and its mark
    mine = next((line for line in registry.ledger() if _won(line, begun)), None)
    why = mine.reasons if mine else (f"Version {serving.number} serves.",)
    decision, outcome = (mine.decision, "PROMOTE") if mine else (f"{PREFIX}{begun.decision}-serves", None)
    registry.take_away(decision=decision, as_of=as_of, reasons=why, outcome=outcome)
    return None


def _won(line: Entry, begun: Entry) -> bool:
    assert line.made_at
    assert begun.made_at
    mine = line.decision.startswith(PREFIX) and line.made_at > begun.made_at
    return mine and (line.mark, line.version) == ("done", begun.version)


def act(registry: Registry, look: Signal, *, as_of: datetime) -> Entry | None:
    """What the look asks for: the challenger is promoted, or taken away for ever. The line that ends the canary; None,
    and nothing is done, where another serves or is up by now. Cut off, it can be done again.

    Raises ValueError for a challenger that may not be promoted.
    """
    with registry.lock:
        begun, serving, outcome = registry.only_challenger(), registry.champion(), str(look.detail["outcome"])
        if begun is None or serving is None or begun.run is None:
            return None
        if (begun.decision, serving.number) != (look.detail["canary"], look.version):
            return None
        decision, reasons = decision_of(look), [look.said]
        if outcome == "PROMOTE":
            verdict = {"outcome": outcome, "reasons": reasons, "figures": dict(look.detail)}
            registry.promote(begun.run, decision=decision, verdict=verdict, as_of=as_of, tags={}, version=begun.version)
        return registry.take_away(decision=decision, as_of=as_of, reasons=reasons, outcome=outcome)


def wins(look: Signal) -> bool:
    return str(look.detail["outcome"]) == "PROMOTE"


def decision_of(look: Signal) -> str:
    """The id of what answers this look."""
    return f"{PREFIX}{look.detail['challenger']}-{look.version}-{look.window_end:%Y%m%dT%H%M%S}"


def table(look: Signal) -> list[tuple[str, ...]]:
    """A line an arm: which version, the rows that it scored when it was asked, the rows and the loss compared."""
    numbers = (look.version, look.detail["challenger"])
    losses = [look.detail.get(name) for name in ("champion", "candidate")]
    told = [f"{each:.4f}" if each is not None else "" for each in losses]
    parts = zip(("champion", "challenger"), numbers, look.detail["answers"], told, strict=True)
    return [(arm, str(number), f"{count:,}", f"{look.rows:,}", loss) for arm, number, count, loss in parts]


def ended(lines: Iterable[Entry]) -> list[Entry]:
    """Of the ledger, the canaries that a look decided."""
    return [line for line in lines if line.mark == "canary over" and line.outcome]
