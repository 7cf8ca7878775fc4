"""monitor: what the journal says of a window of event time → signals, appended to the journal.

Performance is measured where outcomes are mature: on rows so old that label.deadline has passed. Drift of the features
is not measured here; whether to retrain is decided in tasks/policy.py.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import gate, score
from tasks.journal import Journal, entry_of
from tasks.model import Floats, Model
from tasks.params import Params, spell
from tasks.policy import Decision, Signal
from tasks.registry import Registry, Version

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

FIELDS = ("version", "rows", "alarm", "said", "value", "low", "high", "reference")


@dataclass(frozen=True)
class Window:
    """The journalled predictions of since <= event_time < until, by one version, and the outcomes that have come."""

    since: datetime
    until: datetime
    times: "NDArray[np.datetime64]"
    scores: Floats
    labels: "NDArray[Any]"  # None where there is no outcome

    @property
    def labelled(self) -> "NDArray[np.bool_]":
        return np.array([label is not None for label in self.labels], dtype=bool)


def measure(p: Params, *, journal: Journal, registry: Registry, champion: Version, as_of: datetime) -> list[Signal]:
    """The champion's signals at as_of, in the journal already when this returns. Measured again, they are the same."""
    mature = read(journal, champion, until=as_of - p.label.deadline, p=p)
    young = read(journal, champion, until=as_of, p=p)
    with tempfile.TemporaryDirectory() as scratch:
        one = Model.load(registry.fetch(champion, "model.ubj", Path(scratch)))
    found = [performance(mature, one, champion, p, as_of), volume(young, journal, champion, p, as_of)]
    journal.append("signals", _rows(found))
    return found


def read(journal: Journal, champion: Version, *, until: datetime, p: Params) -> Window:
    """The window of monitor.window that ends at `until`."""
    since = until - p.monitor.window
    columns = ["entry", "event_time", "version", "score"]  # the features are most of a row, and not wanted here
    made = journal.read("predictions", since=since, until=until, columns=columns)
    rows = [each for each in made.to_pylist() if each["version"] == champion.number]
    came = score.latest_outcomes(journal.read("outcomes", since=since, until=until))
    labels = np.empty(len(rows), dtype=object)
    labels[:] = [came.get(each["entry"]) for each in rows]
    times = np.array([each["event_time"] for each in rows], dtype="datetime64[us]")
    return Window(since, until, times, np.array([each["score"] for each in rows], dtype=np.float64), labels)


def performance(window: Window, one: Model, champion: Version, p: Params, as_of: datetime) -> Signal:
    """The loss on mature outcomes against the loss on the holdout at promotion: an alarm when it is surely higher, by
    more than monitor.tolerance, by the gate's own bootstrap over blocks."""
    there = window.labelled
    count, reference = int(there.sum()), _at_promotion(champion)
    told: dict[str, Any] = {"window_end": as_of, "version": champion.number, "rows": count, "reference": reference}
    if not count or reference is None:
        why = "no mature outcomes" if reference is not None else "the champion's verdict tells no loss"
        return Signal("performance", alarm=False, said=f"Performance: {why} {_span(window)}.", **told)
    codes = one.spec.encode_label(_typed(window.labels[there], one))
    losses = gate.row_losses(codes, window.scores[there], metric=p.gate.metric)
    level, low, high = gate.level(losses, times=window.times[there], gate=p.gate)
    alarm = low is not None and low > reference + p.monitor.tolerance
    between = f" (95 % interval {low:.4f} to {high:.4f})" if low is not None else ""
    said = (
        f"{gate.NAMES[p.gate.metric].capitalize()} {level:.4f}{between} {_span(window)}, {reference:.4f} at promotion; "
        f"{1 - count / len(there):.1%} of the rows never got a label."
    )
    return Signal("performance", alarm=alarm, said=said, value=level, low=low, high=high, **told)


def _at_promotion(champion: Version) -> float | None:
    figures = json.loads(champion.tags.get("evergreen.verdict.figures", "{}")).get("figures", {})
    return float(figures["candidate"]) if figures.get("candidate") is not None else None


def _typed(labels: "NDArray[Any]", one: Model) -> "NDArray[Any]":
    return labels if isinstance(next(iter(one.spec.classes), 0.0), str) else labels.astype(np.float64)


def _span(window: Window) -> str:
    return f"from {window.since:%Y-%m-%d %H:%M} to {window.until:%Y-%m-%d %H:%M}"


def volume(window: Window, journal: Journal, champion: Version, p: Params, as_of: datetime) -> Signal:
    """How many rows came, beside the window before: an alarm when there are none, or fewer than half."""
    earlier = window.since - p.monitor.window
    before = journal.read("predictions", since=earlier, until=window.since, columns=["entry", "event_time"]).num_rows
    count = len(window.times)
    alarm = count == 0 or count < before / 2
    said = f"{count:,} rows {_span(window)}, {before:,} in the {spell(p.monitor.window)} before."
    return Signal("quality", as_of, champion.number, count, alarm, said, value=float(count), reference=float(before))


# --- signals and decisions in the journal --------------------------------------------------------------------------


def _rows(found: list[Signal]) -> "pa.Table":
    rows = [asdict(each) for each in found]
    named = [{"entry": entry_of(each.kind, each.window_end, each.version)} for each in found]
    times = [{"event_time": each.window_end, "detail": json.dumps(dict(each.detail), default=str)} for each in found]
    return _table([{**row, **name, **time} for row, name, time in zip(rows, named, times, strict=True)])


def _table(rows: list[dict[str, Any]]) -> "pa.Table":
    """One column a field, so that anybody can read them with any tool."""
    import pyarrow as pa

    now = datetime.now(UTC).replace(tzinfo=None)
    types = {name: pa.float64() for name in ("value", "low", "high", "reference")}
    types |= {name: pa.timestamp("us") for name in ("event_time", "window_end", "as_of", "made_at")}
    listed = [{**row, "made_at": now} for row in rows]
    return pa.table({name: pa.array([row[name] for row in listed], types.get(name)) for name in listed[0]})


def signals(journal: Journal) -> Iterator[Signal]:
    """All that was ever measured, in the order of time."""
    for row in journal.read("signals").to_pylist():
        plain: Mapping[str, Any] = {name: row[name] for name in FIELDS}
        yield Signal(kind=row["kind"], window_end=row["event_time"], detail=json.loads(row["detail"]), **plain)


def keep(decision: Decision, journal: Journal) -> None:
    """The decision into the journal: once for each cause and time."""
    row = asdict(decision) | {"reasons": " ".join(decision.reasons), "event_time": decision.as_of}
    entry = entry_of(decision.id, decision.as_of, decision.action)
    journal.append("decisions", _table([{**row, "entry": entry}]))


def newest(journal: Journal) -> datetime | None:
    """The event time of the last row that was predicted."""
    made = journal.read("predictions", columns=["entry", "event_time"])
    return made["event_time"][-1].as_py() if made.num_rows else None


def asked(journal: Journal) -> list[str]:
    """The ids of the decisions to retrain."""
    return [row["id"] for row in journal.read("decisions").to_pylist() if row["action"] == "retrain"]
