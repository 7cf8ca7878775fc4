"""monitor: what the journal says of a window of event time → signals, appended to the journal.

Performance is measured where outcomes are mature: on rows so old that label.deadline has passed. Until then it is
estimated from the calibrated scores themselves. Drift and quality are of the newest rows, against the history that the
champion was made of (monitoring/drift.py). Whether to retrain is decided in policy.py, whether to go back to the
champion before in predecessor.py, what becomes of a challenger in canary.py.
"""

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tasks import log
from tasks.data import state, timeline
from tasks.monitoring import canary, drift, policy, predecessor
from tasks.monitoring.drift import Cause, Comparison, Slice
from tasks.monitoring.policy import Decision
from tasks.monitoring.schedule import is_look_due, list_looks
from tasks.monitoring.signal import Signal
from tasks.params import Params, spell
from tasks.promotion import contest
from tasks.promotion.contest import row_losses
from tasks.promotion.interval import assign_blocks, student_quantile
from tasks.promotion.registry import Registry, Version
from tasks.promotion.verdict import METRIC_NAMES
from tasks.runtime import clock
from tasks.serving import score
from tasks.serving.journal import STALE, Journal, entry_of, subject
from tasks.training import labels
from tasks.training.holdout import CANDIDATE, Holdout
from tasks.training.model import Floats, Model
from tasks.training.profile import Profile, draw_evenly, to_score_columns

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

FIELDS = ("window_begin", "version", "rows", "alarm", "message", "value", "low", "high", "reference")
NEEDED = ("reports/profile.json", "reports/reference.parquet", "reports/holdout.parquet")
AGAIN = timedelta(hours=6)  # of the clock on the wall: a decision that nobody answered for so long is said again
SHAP_ROWS = 400
CAUSES = 8
FEWEST = 4  # blocks that an interval needs
COVERED = 0.9  # of a window's rows hold all that the champion wants, or its drift is not told
DAY = timedelta(days=1)
ARMS = ("arm", "version", "scored", "compared on", "loss")
UNTOLD = re.compile(r"[|\x00-\x1f]")  # in a table of a page


class Level(NamedTuple):
    """A loss and its interval; None where there are too few blocks to tell one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Window:
    """The journalled predictions of since <= event_time < until, and the outcomes that have come."""

    since: datetime
    until: datetime
    times: "NDArray[np.datetime64]"
    scores: Floats
    labels: "NDArray[Any]"  # None where there is no outcome

    @property
    def labelled(self) -> "NDArray[np.bool_]":
        return np.array([label is not None for label in self.labels], dtype=bool)


@dataclass(frozen=True)
class Watched:
    """The champion, and what it has to be held against: of a version that an older evergreen made, its loss alone."""

    version: Version
    model: Model
    twin: Model
    profile: Profile | None
    sample: "pa.Table"
    holdout: Holdout | None
    p: Params
    told: float = 0.0  # its twin's loss as evaluate reported it, where there is no holdout

    @cached_property
    def losses(self) -> Floats:
        """Of its twin, on each row of the holdout."""
        assert self.holdout
        codes = self.model.spec.encode_label(self.holdout.label)
        return row_losses(codes, self.holdout.predictions[CANDIDATE], metric=self.p.gate.metric)

    @cached_property
    def at_promotion(self) -> Level:
        return level(self.losses, self.holdout.times, self.p) if self.holdout else Level(self.told)

    @property
    def window(self) -> timedelta:
        """Thresholds hold for windows of the length that they come from, whatever params.yaml says by now."""
        return self.profile.window if self.profile else self.p.monitor.window


def level(losses: Floats, times: "NDArray[np.datetime64]", p: Params) -> Level:
    """The metric of row losses (n,), and its interval by a bootstrap over blocks: percentiles, drawn out as far as
    Student's t lies beyond the normal for so few blocks (Hesterberg 2015). The gate's interval is wider: it must hold
    for gains of any shape, and an alarm that came once in a storm must not need a week of storms to be heard."""
    _, block = np.unique(assign_blocks(times, p.gate.block), return_inverse=True)
    sizes, sums = np.bincount(block), np.bincount(block, weights=losses)
    root = np.sqrt if p.gate.metric == "rmse" else np.asarray
    value, count = float(root(sums.sum() / sizes.sum())), len(sizes)
    if count < FEWEST:
        return Level(value)
    draws = np.random.default_rng(p.gate.seed).multinomial(count, np.full(count, 1 / count), size=p.gate.replicates)
    reach = student_quantile((1 - p.gate.level) / 2, count - 1) * math.sqrt(count / (count - 1))
    tail = NormalDist().cdf(-reach)
    low, high = np.quantile(root((draws @ sums) / (draws @ sizes)), [tail, 1 - tail])
    return Level(value, float(low), float(high))


def watched(p: Params, registry: Registry, champion: Version) -> Watched:
    """What the registry keeps of the champion. A version that an older evergreen made has no profile."""
    with tempfile.TemporaryDirectory() as scratch:
        one, twin = (
            Model.load(registry.runs.fetch(champion.run_id, name, Path(scratch))) for name in ("model.ubj", "twin.ubj")
        )
        try:
            files = [registry.runs.fetch(champion.run_id, name, Path(scratch)) for name in NEEDED]
        except ValueError as error:
            log.warning("version %s: %s. Its drift cannot be measured until the next promotion", champion.number, error)
            return _older(
                p, champion, one, twin, registry.runs.fetch(champion.run_id, "reports/metrics.json", Path(scratch))
            )
        return read_watched(p, champion, one, twin, *files)


def _older(p: Params, version: Version, one: Model, twin: Model, metrics: Path) -> Watched:
    import pyarrow as pa

    told = json.loads(metrics.read_text())[p.gate.metric]
    return Watched(version, one, twin, None, pa.table({}), None, p, told)


def read_watched(
    p: Params, version: Version, one: Model, twin: Model, profile: Path, sample: Path, holdout: Path
) -> Watched:
    import pyarrow.parquet as pq

    return Watched(version, one, twin, Profile.load(profile), pq.read_table(sample), Holdout.load(holdout), p)


# --- measuring -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One window: its signals, and where the alarms come from."""

    until: datetime
    signals: tuple[Signal, ...]
    drift: Comparison
    scores: Comparison
    sample: "pa.Table"  # of the window's rows: features and scores
    causes: tuple[Cause, ...] = ()
    slices: tuple[Slice, ...] = ()
    arms: Signal | None = None  # what was last found of a challenger, if one is up


def measure(p: Params, of: Watched, *, journal: Journal, registry: Registry, as_of: datetime) -> Measured:
    """The champion's signals at as_of, in the journal already when this returns. Measured again, they are the same."""
    since, version = as_of - of.window, of.version.number
    mature = read(journal, of.version, until=as_of - p.label.deadline, p=p)
    young = read(journal, of.version, until=as_of, p=p)
    features, times = arrived(journal, of, since=since, until=as_of)
    scores = of.model.predict(features) if len(times) else np.zeros(0)
    moved, said = _compared(p, of, features, times, scores)
    came = _rows_of(journal, since, as_of)
    whole = _begun(journal, since, of) and len(times) >= COVERED * came
    found = [
        performance(mature, of.model, then=of.at_promotion, version=version, p=p, as_of=as_of),
        *estimate(young, of, as_of),
        *drift.signals(moved, said, version=version, since=since, until=as_of, whole=whole, min_rows=p.policy.min_rows),
    ]
    before = _rows_of(journal, since - of.window, since)
    least = of.profile.labelled if of.profile else None
    lost = labels.find_fault(mature.labelled, least)
    found = [with_labels(with_volume(each, came, before), lost) if each.kind == "quality" else each for each in found]
    found += predecessor_of(p, of, journal=journal, registry=registry, as_of=as_of)
    found += challenger_of(p, of, journal=journal, registry=registry, as_of=as_of)
    journal.append("signals", _rows(found))
    slices = _slices(of, mature, *arrived(journal, of, since=mature.since, until=mature.until, own=True))
    causes = _causes(of, features, moved) if any(each.alarm for each in found) else ()
    sample, arms = _drawn(features, scores, of), _arms(journal, registry)
    return Measured(as_of, tuple(found), moved, said, sample, causes, slices, arms)


def read(journal: Journal, champion: Version, *, until: datetime, p: Params) -> Window:
    """The champion's own predictions in the window of monitor.window that ends at `until`."""
    since = until - p.monitor.window
    columns = ["entry", "event_time", "made_at", "version", "score"]  # the features are most of a row, and not wanted
    made = journal.read("predictions", since=since, until=until, columns=columns)
    rows = score.once(predecessor.select_unseen(made, champion)).to_pylist()
    came = score.latest_outcomes(journal.read("outcomes", since=since, until=until))
    labels = np.empty(len(rows), dtype=object)
    labels[:] = [score.outcome_of(each["entry"], came) for each in rows]
    times = np.array([each["event_time"] for each in rows], dtype="datetime64[us]")
    return Window(since, until, times, np.array([each["score"] for each in rows], dtype=np.float64), labels)


def _compared(
    p: Params, of: Watched, features: "pa.Table", times: "NDArray[np.datetime64]", scores: Floats
) -> tuple[Comparison, Comparison]:
    """The window's features and predictions against the champion's history."""
    if of.profile is None:
        return drift.unknown(len(times)), drift.unknown(len(times))
    moved = drift.compare(of.profile, features, times, settings=p.drift)
    return moved, drift.compare_scores(of.profile, scores, times, settings=p.drift)


def arrived(
    journal: Journal, of: Watched, *, since: datetime, until: datetime, own: bool = False
) -> "tuple[pa.Table, NDArray[np.datetime64]]":
    """The journalled features of a window's rows, and their times; of all versions that recorded what the champion
    wants, or of its `own` predictions."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = score.without_superseded(journal.read("predictions", since=since, until=until))
    if rows.num_rows:
        rows = rows.filter(pc.is_in(rows["version"], pa.array(sorted(_able(rows, of, own=own)), pa.int64())))
    times = rows["event_time"].to_numpy() if rows.num_rows else np.zeros(0, dtype="datetime64[us]")
    return score.features_of(rows, of.model.spec), times


def _able(rows: "pa.Table", of: Watched, *, own: bool) -> set[int]:
    """The versions that recorded each of the champion's features: what nobody wrote down has not gone missing."""
    import pyarrow.compute as pc

    others = set() if own else set(pc.unique(rows["version"]).to_pylist()) - {of.version.number}
    parts = {each: rows.filter(pc.equal(rows["version"], each)) for each in others}
    return {of.version.number} | {each for each, part in parts.items() if all(_wrote(part, of.model.spec.names))}


def _wrote(rows: "pa.Table", names: Sequence[str]) -> Iterator[bool]:
    for name in names:
        yield f"x_{name}" in rows.column_names and rows[f"x_{name}"].null_count < rows.num_rows


def _rows_of(journal: Journal, since: datetime, until: datetime) -> int:
    rows = journal.read("predictions", since=since, until=until, columns=["entry", "event_time", STALE])
    return int(score.without_superseded(rows).num_rows)


def _begun(journal: Journal, since: datetime, of: Watched) -> bool:
    """Whether the journal began early enough to hold all of the window, but for a day."""
    first = since + (of.profile.unit if of.profile else timedelta(0))
    return bool(journal.read("predictions", until=first, columns=["entry", "event_time"]).num_rows)


def performance(window: Window, one: Model, *, then: Level, version: int, p: Params, as_of: datetime) -> Signal:
    """The loss on mature outcomes against the loss of the twin on the holdout at promotion: an alarm when it is surely
    higher, by more than monitor.tolerance. Both are estimates: the interval of the difference is made of the intervals
    of each (Zou and Donner 2008)."""
    there = window.labelled
    told: dict[str, Any] = {"window_begin": as_of - p.monitor.window, "window_end": as_of, "version": version}
    told |= {"rows": int(there.sum()), "reference": then.value}
    if not there.any():
        return Signal("performance", alarm=False, message=f"Performance: no mature outcomes {_span(window)}.", **told)
    codes = one.spec.encode_label(_typed(window.labels[there], one))
    known = ~np.isnan(codes)
    if not known.any():
        said = f"Performance: all {len(codes):,} mature outcomes {_span(window)} are of classes that it never saw."
        return Signal("performance", alarm=True, message=said, **told)
    losses = row_losses(codes[known], window.scores[there][known], metric=p.gate.metric)
    now = level(losses, window.times[there][known], p)
    worse = surely_worse(then, now)
    alarm = worse is not None and worse > p.monitor.tolerance
    between = f" ({p.gate.level:.0%} interval {now.low:.4f} to {now.high:.4f})" if now.low is not None else ""
    said = (
        f"{METRIC_NAMES[p.gate.metric].capitalize()} {now.value:.4f}{between} {_span(window)}, {then.value:.4f} "
        f"at promotion; {1 - there.mean():.1%} of the rows never got a label."
    )
    detail = {"unlabelled": float(1 - there.mean()), "surely_worse_by": worse}
    return Signal(
        "performance", alarm=alarm, message=said, value=now.value, low=now.low, high=now.high, detail=detail, **told
    )


def surely_worse(then: Level, now: Level) -> float | None:
    """The lower end of now - then."""
    if now.low is None:
        return None
    above = (then.high - then.value) if then.high is not None else 0.0
    return now.value - then.value - float(np.hypot(now.value - now.low, above))


def _typed(labels: "NDArray[Any]", one: Model) -> "NDArray[Any]":
    return labels if isinstance(next(iter(one.spec.classes), 0.0), str) else labels.astype(np.float64)


def _span(window: Window) -> str:
    return f"from {window.since:%Y-%m-%d %H:%M} to {window.until:%Y-%m-%d %H:%M}"


def estimate(window: Window, of: Watched, as_of: datetime) -> list[Signal]:
    """What the log loss will be if the scores are as well calibrated as they were: their expected loss, no label
    needed. It cannot see that the question has changed. None for numbers, whose scores tell no spread."""
    if of.model.spec.task == "regression" or not len(window.scores) or of.holdout is None:
        return []
    now, then = (float(expected_loss(each).mean()) for each in (window.scores, of.holdout.predictions[CANDIDATE]))
    said = (
        f"Estimated log loss {now:.4f} {_span(window)}, from the scores alone, without labels; the same estimate was "
        f"{then:.4f} on the holdout, where {of.at_promotion.value:.4f} was measured."
    )
    told: dict[str, Any] = {"window_begin": window.since, "window_end": as_of, "version": of.version.number}
    return [Signal("estimate", rows=len(window.scores), alarm=False, message=said, value=now, reference=then, **told)]


def expected_loss(scores: Floats) -> Floats:
    """The entropy of each calibrated score, (n,) or (n, classes), in nats: its log loss on average."""
    shares = np.stack([scores, 1 - scores], axis=1) if scores.ndim == 1 else scores
    held = np.clip(shares.astype(np.float64), contest.CLIP, 1)
    return np.asarray(-(held * np.log(held)).sum(axis=1))


def with_volume(quality: Signal, came: int, before: int) -> Signal:
    """How many rows came, beside the window before: an alarm when there are none, or fewer than half."""
    alarm = came == 0 or came < before / 2
    length = spell(quality.window_end - quality.window_begin)
    said = f"{quality.message} {came:,} rows came, {before:,} in the {length} before."
    return replace(quality, alarm=quality.alarm or alarm, message=said)


def with_labels(quality: Signal, fault: str | None) -> Signal:
    """With the fault of the feed of labels, if it has one."""
    return replace(quality, alarm=True, message=f"{quality.message} {fault}.") if fault else quality


def predecessor_of(p: Params, of: Watched, *, journal: Journal, registry: Registry, as_of: datetime) -> list[Signal]:
    """A look at whether the champion before would do better, when one is due."""
    earlier = _told_so_far(journal, as_of)
    if not is_look_due(earlier, of.version.number, as_of=as_of, window=p.monitor.window, kind="predecessor"):
        return []
    looks = len(list_looks(earlier, of.version.number, kind="predecessor"))
    found = predecessor.compare(p, journal=journal, registry=registry, champion=of.version, as_of=as_of, looks=looks)
    return [found] if found else []


def _told_so_far(journal: Journal, as_of: datetime) -> list[Signal]:
    """The signals up to as_of or to the newest row: one of a later window was told by a bent clock."""
    until = max(filter(None, [as_of, newest(journal, now=as_of)]))
    return [signal for signal in signals(journal) if signal.window_end <= until]


def challenger_of(p: Params, of: Watched, *, journal: Journal, registry: Registry, as_of: datetime) -> list[Signal]:
    """A look at champion and challenger, when one is up and a look is due."""
    if (begun := registry.canary()) is None:
        return []
    earlier, number = _told_so_far(journal, as_of), of.version.number
    if not is_look_due(earlier, number, as_of=as_of, window=p.monitor.window, kind="challenger"):
        return []
    looks = len(list_looks(earlier, number, kind="challenger"))
    told: dict[str, Any] = {"champion": of.version, "as_of": as_of, "looks": looks}
    found = canary.compare(p, journal=journal, registry=registry, begun=begun, **told)
    return [found] if found else []


def _arms(journal: Journal, registry: Registry) -> Signal | None:
    begun = registry.canary()
    return canary.find_newest_look(signals(journal), begun) if begun else None


# --- where it comes from -------------------------------------------------------------------------------------------


def _drawn(features: "pa.Table", scores: Floats, of: Watched) -> "pa.Table":
    """drift.sample rows of the window with their scores, for the report to draw."""
    import pyarrow as pa

    places = draw_evenly(len(scores), len(of.sample))
    drawn = features.take(places)
    for name, values in to_score_columns(scores[places], of.model.spec.classes).items():
        drawn = drawn.append_column(name, pa.array(values))
    return drawn


def _causes(of: Watched, features: "pa.Table", moved: Comparison) -> tuple[Cause, ...]:
    if of.profile is None or not features.num_rows:
        return ()
    drawn = features.take(draw_evenly(features.num_rows, SHAP_ROWS))
    return tuple(drift.causes(of.twin, drawn, of.profile, moved)[:CAUSES])


def _slices(of: Watched, window: Window, features: "pa.Table", times: "NDArray[np.datetime64]") -> tuple[Slice, ...]:
    """The slices of evaluate.slices that lost most on mature outcomes."""
    there = window.labelled
    if of.holdout is None or not there.any() or len(times) != len(there):
        return ()
    codes = of.model.spec.encode_label(_typed(window.labels[there], of.model))
    known = ~np.isnan(codes)
    losses = row_losses(codes[known], window.scores[there][known], metric=of.p.gate.metric)
    now = {name: _texts(features, name)[there][known] for name in of.holdout.slices if name in features.column_names}
    then = {name: values.astype(str) for name, values in of.holdout.slices.items()}
    return tuple(drift.slices(then, of.losses, now, losses, rows=of.p.evaluate.slice_rows // 4)[:CAUSES])


def _texts(features: "pa.Table", name: str) -> "NDArray[Any]":
    return np.array([None if each is None else str(each) for each in features[name].to_pylist()], dtype=object)


# --- for people ----------------------------------------------------------------------------------------------------


def figures(found: Measured) -> dict[str, float]:
    """The window as numbers, for a chart over time."""
    told: dict[str, float] = {each.kind: each.value for each in found.signals if each.value is not None}
    told |= {f"{each.kind}.threshold": each.reference for each in found.signals if each.reference is not None}
    told |= {f"{each.kind}.alarm": float(each.alarm) for each in found.signals if each.kind != "estimate"}
    return told | {f"moved.{_charted(each.name)}": round(each.score, 4) for each in found.drift.columns}


def _charted(name: str) -> str:
    """As MLflow takes a name."""
    return re.sub(r"[^\w ./:-]", "_", name)[:200]


def markdown(found: Measured, decision: Decision) -> str:
    """The window as a person reads it: the decision, the signals, what moved and what it did."""
    head = f"# {decision.action} (as of {decision.as_of:%Y-%m-%d %H:%M}, decision {decision.id})"
    why = "\n".join(f"- {reason}" for reason in decision.reasons)
    states = ("ALARM" if each.alarm else "quiet" if each.is_measured else "not measured" for each in found.signals)
    lines = [(each.kind, word, each.message) for each, word in zip(found.signals, states, strict=True)]
    parts = [head, why, "## Signals", _listed(("signal", "", "what was seen"), lines)]
    if found.arms:
        parts += ["## Champion and challenger", _listed(ARMS, canary.tabulate_arms(found.arms)), found.arms.message]
    if found.drift.moved:
        moved = [
            (each.name, f"{each.score:.1f}", f"{each.threshold:.1f}", each.change)
            for each in found.drift.moved[:CAUSES]
        ]
        parts += ["## Columns that moved", _listed(("column", "deviations", "threshold", "how"), moved)]
    if found.causes:
        shifts = [(each.name, f"{each.shift:+.4f}", f"{each.moved:.1f}", each.change) for each in found.causes]
        parts += ["## What moved the scores", _listed(("column", "SHAP shift", "deviations", "how"), shifts)]
    if found.slices:
        lost = [
            (f"{each.name} {each.value}", f"{each.rows:,}", f"{each.then:.4f}", f"{each.now:.4f}")
            for each in found.slices
        ]
        parts += ["## Slices that lost most", _listed(("slice", "rows", "loss at promotion", "loss now"), lost)]
    return "\n\n".join(parts) + "\n"


def _listed(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[UNTOLD.sub("/", each) for each in line] for line in (names, ["---"] * len(names), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- signals and decisions in the journal --------------------------------------------------------------------------


def _rows(found: Sequence[Signal]) -> "pa.Table":
    rows = [asdict(each) for each in found]
    named = [{"entry": entry_of(each.kind, each.window_end, each.version, each.rows, each.message)} for each in found]
    times = [{"event_time": each.window_end, "detail": json.dumps(dict(each.detail), default=str)} for each in found]
    return _table([{**row, **name, **time} for row, name, time in zip(rows, named, times, strict=True)])


def _table(rows: list[dict[str, Any]]) -> "pa.Table":
    """One column a field, so that anybody can read them with any tool."""
    import pyarrow as pa

    now = datetime.now(UTC).replace(tzinfo=None)
    types = {name: pa.float64() for name in ("value", "low", "high", "reference")}
    types |= {name: pa.timestamp("us") for name in ("event_time", "window_begin", "window_end", "as_of", "made_at")}
    listed = [{**row, "made_at": now} for row in rows]
    return pa.table({name: pa.array([row[name] for row in listed], types.get(name)) for name in listed[0]})


def signals(journal: Journal) -> Iterator[Signal]:
    """All that was ever measured, in the order of time; of a window that was measured again, when more rows or outcomes
    had come, what was found last."""
    rows = sorted(journal.read("signals").to_pylist(), key=lambda row: row["made_at"])
    last = {(row["event_time"], row["kind"], row["version"]): row for row in rows}
    for row in sorted(last.values(), key=lambda row: row["event_time"]):
        plain: Mapping[str, Any] = {name: row[name] for name in FIELDS}
        yield Signal(kind=row["kind"], window_end=row["event_time"], detail=json.loads(row["detail"]), **plain)


def due(journal: Journal, champion: Version, p: Params, *, newest: datetime) -> list[datetime]:
    """The ends of the windows to measure: the newest, and before it those that were missed since the last one. A missed
    window without rows is no evidence: after a pause none of them is measured."""
    ends = [each.window_end for each in signals(journal) if each.version == champion.number]
    last = max((each for each in ends if each < newest), default=newest)
    missed = int((newest - last) / p.monitor.window - 1e-9)
    if not missed:
        return [newest]
    rows = journal.read("predictions", since=last, until=newest, columns=["entry", "event_time"])
    times = rows["event_time"].to_numpy() if rows.num_rows else np.zeros(0, dtype="datetime64[us]")
    place = np.unique((times - np.datetime64(last, "us")) // np.timedelta64(p.monitor.window))
    return [*(last + (i + 1) * p.monitor.window for i in place.tolist() if i < missed), newest]


def keep(decision: Decision, journal: Journal) -> None:
    """The decision into the journal: to wait once for each cause and time, to retrain as often as it was said."""
    row = asdict(decision) | {"reasons": " ".join(decision.reasons), "event_time": decision.as_of}
    entry = entry_of(decision.id, decision.as_of, datetime.now(UTC) if decision.retrains else decision.action)
    journal.append("decisions", _table([{**row, "entry": entry}]))


def newest(journal: Journal, *, now: datetime | None = None) -> datetime | None:
    """The event time of the last row that was predicted and has happened, and so event time "now".

    What a tick predicts has arrived, where ticks are dense or the state has come so far: one far ahead was misdated.
    The API is asked of events to come too: those count when they are past, by the clock on the wall, and by `now`, the
    state's event time, where history is replayed.
    """
    made = journal.read("predictions", columns=["entry", "event_time", "made_at"])
    if not made.num_rows:
        return None
    rows = list(zip(*(made[name].to_pylist() for name in ("entry", "event_time", "made_at")), strict=True))
    ticks = [time for entry, time, _ in rows if entry == subject(entry)]
    end = timeline.draw_timeline(np.array(ticks, dtype="datetime64[us]")).dense_end if ticks else datetime.min
    reached = max(end, now or end)
    past = [time for time in ticks if time <= reached]
    past += [time for entry, time, then in rows if entry != subject(entry) and time <= min(then, now or then)]
    return max(past, default=None)


def refuse_beyond(p: Params, journal: Journal, as_of: datetime, *, force: bool) -> None:
    """Raises ValueError for an as_of that neither the clock nor anything journalled or published has reached."""
    clock.refuse_ahead(p.clock, as_of, force=force)
    now = state.read_event_now()
    if (end := max(filter(None, [newest(journal, now=now), now]), default=None)) is not None:
        clock.refuse_beyond(end + max(DAY, p.label.deadline), as_of, force=force)


def asked(journal: Journal, *, answered: set[str], p: Params) -> list[str]:
    """The ids of the decisions to retrain that were answered, or may be about to be."""
    return [
        *(row["id"] for row in wanted(journal) if row["id"] in answered),
        *pending(journal, answered=answered, p=p),
    ]


def pending(journal: Journal, *, answered: set[str], p: Params) -> list[str]:
    """The ids of those said so lately that an answer may be under way: an event that got lost is said again."""
    listed = wanted(journal, since=datetime.now(UTC).replace(tzinfo=None) - patience(p))
    return [row["id"] for row in listed if row["id"] not in answered]


def patience(p: Params) -> timedelta:
    """How long a decision waits for its answer before it is said again, by the clock on the wall."""
    waits = p.gate.approval_within if p.gate.approval == "required" else timedelta(0)
    return max(AGAIN, waits)


def wanted_lately(journal: Journal) -> list[tuple[str, str]]:
    """The id and the reasons of each decision to retrain of the last 30 days of the clock on the wall."""
    listed = wanted(journal, since=datetime.now(UTC).replace(tzinfo=None) - policy.MONTH)
    return list({row["id"]: row["reasons"] for row in listed}.items())


def wanted(journal: Journal, *, since: datetime = datetime.min) -> list[dict[str, Any]]:
    """The rows of the decisions to retrain that were said after `since`, by the clock on the wall."""
    rows = journal.read("decisions").to_pylist()
    return [row for row in rows if row["action"] == "retrain" and row["made_at"] > since]


def began(journal: Journal, alarm: Signal) -> str:
    """The name of an alarm's cause: the same for as long as the same signal of the same champion alarms on end."""
    mine = [signal for signal in signals(journal) if (signal.kind, signal.version) == (alarm.kind, alarm.version)]
    quiet = [signal.window_end for signal in mine if signal.is_measured and not signal.alarm]
    last = max((end for end in quiet if end < alarm.window_end), default=None)
    return f"{alarm.kind} {alarm.version} {last}"
