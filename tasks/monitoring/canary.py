"""canary: champion and challenger on the outcomes that are mature → a signal, and what is done about it.

Every row counts that both scored of the same features since the canary began. Where only one did, or the one knew more
of it by then, the other scores the features that the journal holds; but only where both versions make their features
alike, by the same features.sql and the same sections `features` and `spine`: what another recipe calls by the same name
may mean something else. So both are always compared on the same rows, and on none that either was trained on. The gate
decides, at the share of the tail that is left after the looks so far: what the gate's own rule, costs and slices would
promote is PROMOTE; surely worse in loss alone is REJECT, which is for ever; else the canary goes on. Without an API
that knows of the challenger, the champion's journalled rows are compared all the same, where the recipes are alike.
"""

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import log, params
from tasks.data.featurerows import Rows
from tasks.monitoring import predecessor
from tasks.monitoring.schedule import list_looks
from tasks.monitoring.signal import Signal
from tasks.params import Params
from tasks.promotion import changes, gate, judge
from tasks.promotion.contest import align_classes, row_losses
from tasks.promotion.gate import Judged
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Registry, Version
from tasks.promotion.verdict import METRIC_NAMES, Outcome, Verdict
from tasks.serving import score
from tasks.serving.journal import Journal, subject
from tasks.training.model import Floats, Model, Spec

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

PREFIX = "canary-"  # of the decision that ends a canary by a look
WORDS = {
    ("superior", "PROMOTE"): "is better than",
    ("superior", "REJECT"): "is worse than",
    ("superior", "HOLD"): "is not surely better or worse than",
    ("non_inferior", "PROMOTE"): "is no worse than",
    ("non_inferior", "REJECT"): "is worse than",
    ("non_inferior", "HOLD"): "is neither surely as good as nor surely worse than",
}
COVERED = 0.99  # of the champion's rows must be in a comparison: which ones a challenger misses may be no accident
NEAR = timedelta(minutes=1)  # between the answer to a request and what is said of it in the shadow


@dataclass(frozen=True)
class Arm:
    """A version, and what the journal has of it: of each subject, the last that it said."""

    version: Version
    model: Model
    rows: "pa.Table"
    recipe: tuple[Any, ...] | None = None  # of its features; None where it is not stored

    @cached_property
    def places(self) -> dict[str, int]:
        """Where a subject's row is."""
        entries = self.rows["entry"].to_pylist() if self.rows.num_rows else []
        return {subject(entry): place for place, entry in enumerate(entries)}

    @cached_property
    def made_at(self) -> list[datetime]:
        found: list[datetime] = self.rows["made_at"].to_pylist() if self.rows.num_rows else []
        return found

    def can_score(self, other: "Arm") -> bool:
        """Whether what the other left in the journal are this one's own features."""
        return self.alike(other) and predecessor.cannot_score(self.model.spec, other.model.spec) is None

    def alike(self, other: "Arm") -> bool:
        return self.recipe is not None and self.recipe == other.recipe

    def take(self, subjects: Sequence[str]) -> "pa.Table":
        import pyarrow as pa

        return self.rows.take(pa.array([self.places[name] for name in subjects], pa.int64()))

    def said(self, subjects: Sequence[str], rows: "pa.Table", *, own: Collection[str]) -> Floats:
        """Its scores of these subjects: its own of those in `own`, else of the features in `rows`."""
        mine = np.array([name in own for name in subjects], dtype=bool)
        told = self.take([name for name in subjects if name in own])["score"].to_pylist() if mine.any() else []
        again = self.model.predict(score.features_of(rows.filter(~mine), self.model.spec)) if not mine.all() else None
        parts = [np.array(told, dtype=np.float64)] if told else []
        found = np.concatenate(parts if again is None else [*parts, again.astype(np.float64)])
        return np.asarray(found[np.argsort(np.argsort(~mine, kind="stable"))])


@dataclass(frozen=True)
class Selection:
    """Subjects by whose row is compared: `both` scored it of the same features; of the others' rows, the champion's or
    the challenger's, the other arm is asked again. `answered` and `covered`: the champion's rows since the challenger
    first said anything, and how many of them are compared."""

    both: list[str]
    champions: list[str]
    challengers: list[str]
    answered: int
    covered: int

    @property
    def lacking(self) -> str | None:
        """Why nothing may be concluded, if the challenger has too little of what the champion answered."""
        if self.covered >= COVERED * self.answered:
            return None
        return (
            f"The challenger scored {self.covered:,} of the champion's {self.answered:,} rows of the same features "
            f"({self.covered / self.answered:.1%}, and {COVERED:.0%} are needed), and the others cannot be scored "
            "again: see whether the API drops some of them, or let the challenger answer in the shadow."
        )


@dataclass(frozen=True)
class Pairs:
    """The labelled rows of which both arms have a score (n); `codes` are their labels as numbers, `both` how many both
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
    models = [predecessor.load_model(registry, each) for each in versions]
    if models[0].spec.task != models[1].spec.task:
        log.warning("the challenger answers another question (%s, not %s)", models[1].spec.task, models[0].spec.task)
        return None
    since, until = max(begun.as_of, *map(_unseen_from, versions, models)), as_of - p.label.deadline
    made = journal.read("predictions", since=since, until=until, shadows=True)
    came = latest_labels(journal.read("outcomes", since=since, until=until))
    parts = zip(versions, models, strict=True)
    arms = [Arm(version, model, _of(made, version), _recipe(registry, version)) for version, model in parts]
    chosen = select_subjects(*arms)
    found = None if chosen.lacking else pairs(chosen, arms[0], arms[1], came=came)
    verdict = (
        judge_pairs(p, found, models[1], looks=looks) if found else Verdict("HOLD", (chosen.lacking or NOTHING,), {})
    )
    return _signal(verdict, arms, begun, since=since, as_of=as_of, told=(chosen, found))


def _unseen_from(version: Version, model: Model) -> datetime:
    """It knows nothing of the rows from then on."""
    told = datetime.fromisoformat(model.spec.until) if model.spec.until else datetime.min
    return max(version.as_of or datetime.min, told)


def _recipe(registry: Registry, version: Version) -> tuple[Any, ...] | None:
    """What makes its features; None where that is not stored, or is not understood any more."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            sql = registry.runs.fetch(version.run_id, "features.sql", Path(scratch)).read_text()
            p = params.load(registry.runs.fetch(version.run_id, "params.yaml", Path(scratch)))
        except ValueError as error:
            log.warning("version %s scores nothing that another version was asked: %s", version.number, error)
            return None
    return sql, p.features, p.spine


def _of(made: "pa.Table", version: Version) -> "pa.Table":
    import pyarrow.compute as pc

    return score.once(made.filter(pc.equal(made["version"], version.number))) if made.num_rows else made


# --- the same rows -------------------------------------------------------------------------------------------------


def select_subjects(champion: Arm, challenger: Arm) -> Selection:
    """Of each subject the row to compare. Where the arms last saw it with other features, the newer row is compared, if
    the other arm can score it: else it is left out."""
    there = [name for name in champion.places if name in challenger.places]
    both = {name for name, same in zip(there, _same(champion, challenger, there), strict=True) if same}
    later = {name for name in there if _later(challenger, champion, name)}
    mine = [name for name in champion.places if name not in both | later] if challenger.can_score(champion) else []
    theirs = [name for name in challenger.places if name not in both and (name in later or name not in champion.places)]
    theirs = theirs if champion.can_score(challenger) else []
    answered = _since(champion, challenger)
    covered = len(answered & (both | {*mine, *theirs}))
    return Selection([name for name in there if name in both], mine, theirs, len(answered), covered)


def _later(one: Arm, other: Arm, name: str) -> bool:
    return one.made_at[one.places[name]] > other.made_at[other.places[name]]


def _since(champion: Arm, challenger: Arm) -> set[str]:
    """What the champion answered since the challenger first said anything."""
    if not champion.rows.num_rows:
        return set()
    times = champion.rows["event_time"].to_pylist()
    first = min(challenger.rows["event_time"].to_pylist()) if challenger.rows.num_rows else datetime.min
    return {name for name, place in champion.places.items() if times[place] >= first}


def _same(champion: Arm, challenger: Arm, names: Sequence[str]) -> "NDArray[np.bool_]":
    """Whether both scored each of these of the same features. Where their recipes differ, features of one name may
    differ too: then it is enough that both were asked at one time."""
    if not names:
        return np.zeros(0, dtype=bool)
    rows = [each.take(names) for each in (champion, challenger)]
    shared = [each.name for each in champion.model.spec.features if each in challenger.model.spec.features]
    equal = np.full(len(names), bool(shared))
    for name in shared:
        equal &= _equal(*(each[f"x_{name}"] for each in rows))
    if champion.alike(challenger):
        return equal
    apart = np.abs(rows[0]["made_at"].to_numpy() - rows[1]["made_at"].to_numpy())
    return np.asarray(equal | (apart <= np.timedelta64(NEAR)))


def _equal(one: Any, other: Any) -> "NDArray[np.bool_]":
    """Where two columns hold the same; what is missing in both is the same."""
    import pyarrow.compute as pc

    lacks = pc.and_(pc.is_null(one, nan_is_null=True), pc.is_null(other, nan_is_null=True))
    found = pc.or_(pc.fill_null(pc.equal(one, other), False), lacks)
    return np.asarray(found.to_numpy(), dtype=bool)


def pairs(chosen: Selection, champion: Arm, challenger: Arm, *, came: Mapping[str, Any]) -> Pairs | None:
    """The labelled rows of these; None where there are none. Classes are those that either knows."""
    import pyarrow as pa

    mine, spec = [*chosen.both, *chosen.champions], _union(champion.model.spec, challenger.model.spec)
    parts = [arm.take(names) for arm, names in ((champion, mine), (challenger, chosen.challengers)) if names]
    if not parts:
        return None
    rows, subjects = pa.concat_tables(parts), np.array([*mine, *chosen.challengers], dtype=object)
    codes = _codes(subjects, came, spec)
    known = ~np.isnan(codes)  # a class that neither has ever seen cannot be predicted by them
    if not known.any():
        return None
    rows, names = rows.filter(pa.array(known)), list(subjects[known])
    own = ({*mine}, {*chosen.both, *chosen.challengers})
    said = [
        align_classes(spec, arm.model, arm.said(names, rows, own=told))
        for arm, told in zip((champion, challenger), own, strict=True)
    ]
    return Pairs(rows, codes[known], said[0], said[1], both=len({*chosen.both}.intersection(names)))


def _union(champion: Spec, challenger: Spec) -> Spec:
    """The champion's, with the classes that the challenger alone knows behind its own: the champion gives them none."""
    more = [each for each in challenger.classes if each not in champion.classes]
    return replace(champion, classes=(*champion.classes, *more))


def latest_labels(told: "pa.Table") -> dict[str, Any]:
    """The label of each subject: of several, told of whichever prediction of it, the one that was journalled last."""
    if not told.num_rows:
        return {}
    rows = told.select(["of", "label", "made_at"]).to_pylist()
    return {subject(row["of"]): row["label"] for row in sorted(rows, key=lambda row: row["made_at"])}


def _codes(subjects: Iterable[str], came: Mapping[str, Any], spec: Spec) -> Floats:
    """The labels as numbers; NaN where there is none yet."""
    labels = [came.get(name) for name in subjects]
    there = np.array([label is not None for label in labels], dtype=bool)
    codes = np.full(len(labels), np.nan)
    codes[there] = predecessor.encode_labels([label for label in labels if label is not None], spec)
    return codes


# --- the verdict ---------------------------------------------------------------------------------------------------


def judge_pairs(p: Params, found: Pairs, challenger: Model, *, looks: int) -> Verdict:
    """The gate's verdict on the challenger, as on a candidate; but only a sure loss, at what is left of the tail on
    that side, is a REJECT: what the gate refuses for another reason may get over it."""
    old, new = (row_losses(found.codes, each, metric=p.gate.metric) for each in (found.champion, found.challenger))
    there: dict[str, Any] = {"times": found.times, "looks": looks}
    won = gate.judge(
        Judged(new, **_costs(found, challenger)), _free(old), slices=_slices(p, found.rows), gate=p.gate, **there
    )
    strict = p.gate.model_copy(update={"rule": "superior", "min_gain": 0.0})
    lost = gate.judge(_free(old), _free(new), slices={}, gate=strict, **there)
    outcome: Outcome = "PROMOTE" if won.promotes else "REJECT" if lost.promotes else "HOLD"
    least = p.gate.min_gain if p.gate.rule == "superior" else -p.gate.margin
    figures = {**won.figures, "looked": judge.counts_as_look(lost), "loss_bound": lost.figures["bound"], "least": least}
    return Verdict(outcome, _reasons(outcome, won, figures), figures)


def _reasons(outcome: Outcome, won: Verdict, figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the side that decided, with the level and the bound of this look."""
    level, bound, loss = (figures[name] for name in ("spent_level", "bound", "loss_bound"))
    if not figures["looked"]:
        return won.reasons
    at = f"At this look's level ({level:.2%})"
    gained = f"the gain is above {bound:+.4f}, and above {figures['least']:+.4f} it is promoted"
    lost = f"the loss is above {loss:+.4f}, and above 0 it is taken away"
    if outcome == "HOLD":
        return (won.reasons[0], f"{at} {gained}; {lost}.")
    return (f"{at} {gained if outcome == 'PROMOTE' else lost}.",)


def _free(losses: Floats) -> Judged:
    """What serves costs nothing new."""
    return Judged(losses, 0.0, 0.0, 0.0)


def _costs(found: Pairs, model: Model) -> dict[str, float]:
    rows = Rows(score.features_of(found.rows, model.spec), found.times, found.times, found.codes)
    return {
        "calibration_error": judge.measure_calibration(model.spec, found.codes, found.challenger),
        "megabytes": len(model.to_bytes()) / 1e6,
        "milliseconds": judge.measure_latency(model, rows),
    }


def _slices(p: Params, rows: "pa.Table") -> "dict[str, NDArray[Any]]":
    """Those of evaluate.slices that the journal can tell, by a feature or a part of the key."""
    named = {
        name: [each for each in (f"x_{name}", f"key_{name}") if each in rows.column_names] for name in p.evaluate.slices
    }
    return {name: np.array(rows[where[0]].to_pylist(), dtype=object) for name, where in named.items() if where}


KEPT = ("metric", "rule", "candidate", "champion", "looks", "bound", "loss_bound", "least", "level", "spent_level")
NOTHING = "No row that both can be compared on has a mature outcome yet."


def _signal(
    verdict: Verdict,
    arms: Sequence[Arm],
    begun: Entry,
    *,
    since: datetime,
    as_of: datetime,
    told: tuple[Selection, Pairs | None],
) -> Signal:
    figures, (champion, challenger) = verdict.figures, (each.version.number for each in arms)
    chosen, found = told
    kept = {name: figures[name] for name in KEPT if figures.get(name) is not None}
    return Signal(
        "challenger",
        window_begin=since,
        window_end=as_of,
        version=champion,
        rows=figures.get("rows", 0),
        alarm=verdict.outcome != "HOLD",
        message=_said(verdict, champion, challenger, told),
        value=figures.get("gain"),
        low=figures.get("low"),
        high=figures.get("high"),
        detail={
            "challenger": challenger,
            "canary": begun.decision,
            "outcome": verdict.outcome,
            "looked": judge.counts_as_look(verdict),
            "both": found.both if found else 0,
            "answered": chosen.answered,
            "covered": chosen.covered,
            "answers": [len(each.places) for each in arms],
            **kept,
        },
    )


def _said(verdict: Verdict, champion: int, challenger: int, told: tuple[Selection, Pairs | None]) -> str:
    figures, (chosen, found) = verdict.figures, told
    if found is None or not judge.counts_as_look(verdict):
        return f"Nothing can be said of version {challenger}, the challenger, yet. {verdict.reasons[0]}"
    counted = f"On {figures['rows']:,} mature rows ({found.both:,} of them scored by both when they were asked)"
    measure = f"{METRIC_NAMES[figures['metric']]} {figures['candidate']:.4f} against {figures['champion']:.4f}"
    interval = f"a gain of {figures['gain']:+.4f} ({figures['low']:+.4f} to {figures['high']:+.4f})"
    word, why = WORDS[figures["rule"], verdict.outcome], " ".join(verdict.reasons)
    share = f"Of the champion's {chosen.answered:,} rows since it first scored any, {chosen.covered:,} can be compared."
    start = f"{counted} version {challenger}, the challenger, {word} version {champion}"
    return f"{start}: {measure}, {interval}. {why} {share}"


# --- when to look, and what then -----------------------------------------------------------------------------------


def find_newest_look(signals: Iterable[Signal], begun: Entry) -> Signal | None:
    """What was last found in this canary."""
    mine = [each for each in signals if each.kind == "challenger" and each.detail.get("canary") == begun.decision]
    return max(mine, key=lambda each: each.window_end, default=None)


def find_pending(signals: Iterable[Signal], version: int, begun: Entry) -> Signal | None:
    """The look by which this canary is decided against this champion: the newest, if it decides. It stands until
    somebody has acted on it, or a newer one says otherwise."""
    mine = list_looks(signals, version, kind="challenger")
    find_newest_look = [each for each in mine if each.detail.get("canary") == begun.decision][-1:]
    return find_newest_look[0] if find_newest_look and find_newest_look[0].alarm else None


@dataclass(frozen=True)
class Settlement:
    """The canary that is on, and the line that ended one just now."""

    on: Entry | None
    over: Entry | None = None


def settle(registry: Registry, *, as_of: datetime) -> Settlement:
    """A canary whose challenger serves by now, however it came to and under whatever number, is over."""
    begun, serving = changes.settle_challenger(registry), registry.champion()
    if begun is None or serving is None or not _serves(registry, begun, serving):
        return Settlement(begun)
    changes.finish_open(registry)  # what was killed between the alias and its mark
    mine = next((line for line in registry.ledger() if _won(line, begun)), None)
    why = mine.reasons if mine else (_why_over(begun, serving),)
    decision, outcome = (mine.decision, "PROMOTE") if mine else (f"{PREFIX}{begun.decision}-serves", None)
    over = changes.take_away(registry, decision=decision, as_of=as_of, reasons=why, outcome=outcome)
    return Settlement(None, over)


def _serves(registry: Registry, begun: Entry, serving: Version) -> bool:
    """Whether what is tried is the champion's own model: the same version, run or record."""
    if begun.version == serving.number or begun.run == serving.run_id:
        return True
    assert begun.version is not None
    return bool(serving.record) and registry.version(begun.version).record == serving.record


def _why_over(begun: Entry, serving: Version) -> str:
    if begun.version == serving.number:
        return f"Version {serving.number} serves."
    return f"Version {begun.version} is the model of version {serving.number}, which serves: there is nothing to try."


def find_last_winner(registry: Registry) -> Entry | None:
    """The line that ended the last canary, if its challenger was promoted and serves."""
    lines, serving = registry.ledger(), registry.champion()
    last = next((line for line in reversed(lines) if line.mark in ("canary", "canary over")), None)
    won = last is not None and last.outcome == "PROMOTE" and serving is not None and last.version == serving.number
    return last if won else None


def explain_end(line: Entry) -> str:
    """What ended a canary, as a person reads it."""
    did = {"PROMOTE": "was promoted", "REJECT": "was taken away for ever"}.get(line.outcome or "", "was taken away")
    return f"The canary is over: version {line.version} {did}. {' '.join(line.reasons)}"


def _won(line: Entry, begun: Entry) -> bool:
    assert line.made_at
    assert begun.made_at
    mine = line.decision.startswith(PREFIX) and line.made_at > begun.made_at
    return mine and (line.mark, line.version) == ("done", begun.version)


def carry_out(registry: Registry, look: Signal, *, as_of: datetime) -> Entry | None:
    """What the look asks for: the challenger is promoted, or taken away for ever. The line that ends the canary; None,
    and nothing is done, where another serves or is up by now. Cut off, it can be done again.

    Raises ValueError for a challenger that may not be promoted.
    """
    with registry.lock:
        begun, serving, outcome = changes.settle_challenger(registry), registry.champion(), str(look.detail["outcome"])
        if begun is None or serving is None or begun.run is None:
            return None
        if (begun.decision, serving.number) != (look.detail["canary"], look.version):
            return None
        decision, reasons = decision_id(look), [look.message]
        if outcome == "PROMOTE":
            verdict = {"outcome": outcome, "reasons": reasons, "figures": dict(look.detail)}
            changes.promote(
                registry, begun.run, decision=decision, verdict=verdict, as_of=as_of, tags={}, version=begun.version
            )
        return changes.take_away(registry, decision=decision, as_of=as_of, reasons=reasons, outcome=outcome)


def is_promotion(look: Signal) -> bool:
    return str(look.detail["outcome"]) == "PROMOTE"


def decision_id(look: Signal) -> str:
    """The id of what answers this look."""
    return f"{PREFIX}{look.detail['challenger']}-{look.version}-{look.window_end:%Y%m%dT%H%M%S}"


def tabulate_arms(look: Signal) -> list[tuple[str, ...]]:
    """A line an arm: which version, the rows that it scored when it was asked, the rows and the loss compared."""
    numbers = (look.version, look.detail["challenger"])
    losses = [look.detail.get(name) for name in ("champion", "candidate")]
    told = [f"{each:.4f}" if each is not None else "" for each in losses]
    parts = zip(("champion", "challenger"), numbers, look.detail["answers"], told, strict=True)
    return [(arm, str(number), f"{count:,}", f"{look.rows:,}", loss) for arm, number, count, loss in parts]


def list_ended(lines: Iterable[Entry]) -> list[Entry]:
    """Of the ledger, the canaries that a look decided."""
    return [line for line in lines if line.mark == "canary over" and line.outcome]
