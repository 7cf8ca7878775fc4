"""predecessor: would the version before the champion have done better? Rows that the champion predicted → a signal.

The predecessor re-scores the features that the journal holds of the champion's predictions, and the gate's own test
compares both on the outcomes that are mature. Neither has seen these rows. Each look spends its share of the tail, as
looks at candidates do, so a champion that is no worse is taken down at most at the gate's rate, however often somebody
looks. The rule is always `superior`, and nothing but the loss decides: what served before may serve again. Nothing is
rolled back here: tasks/promotion/registry.py does that.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import log
from tasks.monitoring.schedule import list_looks
from tasks.monitoring.signal import Signal
from tasks.params import Params
from tasks.promotion import gate, judge
from tasks.promotion.contest import align_classes, row_losses
from tasks.promotion.gate import Judged
from tasks.promotion.ledger import Entry
from tasks.promotion.registry import Registry, Version
from tasks.promotion.verdict import METRIC_NAMES, Verdict
from tasks.serving import score
from tasks.serving.journal import Journal
from tasks.training.model import Floats, Model, Spec

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

TICK = timedelta(microseconds=1)
PREFIX = "predecessor-"  # of the decision of a rollback that came of a look


@dataclass(frozen=True)
class MatureRows:
    """What the champion predicted and how it came out: the journal's rows (n), and the label of each as a number."""

    rows: "pa.Table"
    codes: Floats

    @property
    def times(self) -> "NDArray[np.datetime64]":
        found: NDArray[np.datetime64] = self.rows["event_time"].to_numpy()
        return found


def compare(
    p: Params, *, journal: Journal, registry: Registry, champion: Version, as_of: datetime, looks: int
) -> Signal | None:
    """Alarms when the predecessor would surely have done better. `looks`: how often this champion was so looked at
    before. None where there is no predecessor that may serve, or where the journal lacks features that it needs."""
    before = registry.find_predecessor(champion)
    if before is None:
        return None
    serving, earlier = load_model(registry, champion), load_model(registry, before)
    if why := cannot_score(earlier.spec, serving.spec):
        log.info("version %s cannot be compared with version %s: %s", before.number, champion.number, why)
        return None
    found = read_mature(journal, champion, serving.spec, until=as_of - p.label.deadline)
    verdict = _judged(p, found, serving, earlier, looks=looks) if len(found.codes) else _nothing()
    return _signal(verdict, found, champion, before, as_of)


def load_model(registry: Registry, version: Version) -> Model:
    with tempfile.TemporaryDirectory() as scratch:
        return Model.load(registry.runs.fetch(version.run_id, "model.ubj", Path(scratch)))


def cannot_score(earlier: Spec, serving: Spec) -> str | None:
    """Why a model cannot score what is journalled of another's predictions."""
    if missing := sorted(each.name for each in set(earlier.features) - set(serving.features)):
        return f"the journal does not hold its features {missing}, or holds them as another kind"
    if earlier.task != serving.task:
        return f"it answers another question ({earlier.task}, not {serving.task})"
    return None


def read_mature(journal: Journal, champion: Version, spec: Spec, *, until: datetime) -> MatureRows:
    """The champion's predictions of event_time < until that have an outcome; of several outcomes, the latest."""
    import pyarrow as pa

    listed = journal.read("predictions", until=until, columns=["entry", "event_time", "version"])
    mine = select_unseen(listed, champion)
    if not mine.num_rows:
        return MatureRows(mine, np.empty(0))
    since, last = mine["event_time"][0].as_py(), mine["event_time"][-1].as_py()  # whole rows are large: not all of them
    rows = journal.read("predictions", since=since, until=last + TICK)
    came = score.latest_outcomes(journal.read("outcomes", since=since, until=last + TICK))
    rows = score.once(select_unseen(rows, champion))
    labels = [score.outcome_of(entry, came) for entry in rows["entry"].to_pylist()]
    rows = rows.filter(pa.array([label is not None for label in labels], pa.bool_()))
    codes = encode_labels([label for label in labels if label is not None], spec)
    known = ~np.isnan(codes)  # a class that the champion has never seen cannot be predicted by either
    return MatureRows(rows.filter(known), codes[known])


def select_unseen(made: "pa.Table", champion: Version) -> "pa.Table":
    """The champion's own predictions, but of rows that it was trained on: a retrain whose as_of is ahead of the journal
    leaves such rows for its own model to predict."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not made.num_rows:
        return made
    mine = made.filter(pc.equal(made["version"], champion.number))
    since = pa.scalar(champion.learnt_until or datetime.min, pa.timestamp("us"))
    return mine.filter(pc.greater_equal(mine["event_time"], since))


def encode_labels(labels: list[Any], spec: Spec) -> Floats:
    kind = object if spec.task == "multiclass" else np.float64
    values = np.empty(len(labels), dtype=kind)
    values[:] = labels
    return spec.encode_label(values)


def _judged(p: Params, found: MatureRows, serving: Model, earlier: Model, *, looks: int) -> Verdict:
    """The gate's verdict on the predecessor, as a candidate that costs nothing."""
    rule = p.gate.model_copy(update={"rule": "superior"})
    told = np.array(found.rows["score"].to_pylist(), dtype=np.float64)
    again = align_classes(serving.spec, earlier, earlier.predict(score.features_of(found.rows, earlier.spec)))
    champion, candidate = (
        Judged(row_losses(found.codes, each, metric=p.gate.metric), 0.0, 0.0, 0.0) for each in (told, again)
    )
    return gate.judge(candidate, champion, times=found.times, slices={}, gate=rule, looks=looks)


def _nothing() -> Verdict:
    return Verdict("HOLD", ("No outcome of its predictions is mature yet.",), {})


def _signal(verdict: Verdict, found: MatureRows, champion: Version, before: Version, as_of: datetime) -> Signal:
    figures, rows = verdict.figures, len(found.codes)
    told = {name: figures.get(name) for name in ("candidate", "champion", "looks", "bound")}
    return Signal(
        "predecessor",
        window_begin=found.rows["event_time"][0].as_py() if rows else as_of,
        window_end=as_of,
        version=champion.number,
        rows=rows,
        alarm=verdict.promotes,
        message=_said(verdict, champion, before, rows),
        value=figures.get("gain"),
        low=figures.get("low"),
        high=figures.get("high"),
        detail={
            "predecessor": before.number,
            "outcome": verdict.outcome,
            "looked": judge.counts_as_look(verdict),
            **{name: value for name, value in told.items() if value is not None},
        },
    )


def _said(verdict: Verdict, champion: Version, before: Version, rows: int) -> str:
    figures, names = verdict.figures, f"version {before.number}, which served before version {champion.number},"
    if not judge.counts_as_look(verdict):
        return f"Nothing can be said of {names} on {rows:,} mature rows. {verdict.reasons[0]}"
    word = "is better than it" if verdict.promotes else "is not surely better than it"
    measure = f"{METRIC_NAMES[figures['metric']]} {figures['candidate']:.4f} against {figures['champion']:.4f}"
    interval = f"a gain of {figures['gain']:+.4f} ({figures['low']:+.4f} to {figures['high']:+.4f})"
    return f"On {rows:,} mature rows {names} {word}: {measure}, {interval}."


# --- when to look --------------------------------------------------------------------------------------------------


def find_pending(signals: Iterable[Signal], version: int) -> Signal | None:
    """The look that says this champion is to be rolled back, if there is one. It stands until somebody has acted on it:
    a run that was killed between the look and the rollback is made good by the next."""
    return next((each for each in list_looks(signals, version, kind="predecessor") if each.alarm), None)


def list_rollbacks(lines: Iterable[Entry]) -> list[Entry]:
    """Of the ledger, the rollbacks that came of a look."""
    return [line for line in lines if line.mark == "rolled back" and line.decision.startswith(PREFIX)]


def decision_id(signal: Signal) -> str:
    """The id of the rollback that answers this look."""
    return f"{PREFIX}{signal.version}-{signal.window_end:%Y%m%dT%H%M%S}"
