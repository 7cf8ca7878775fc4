"""signal: what monitoring measured of one window, and how the journal holds it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from tasks.params import SignalKind
from tasks.promotion.verdict import Verdict
from tasks.runtime.files import Format
from tasks.serving.journal import Journal
from tasks.serving.schema import make_entry

# Of the journal's rows. A new field of Signal is a column; with a default, which older rows take, the version stays.
FORMAT = Format("signal", 1)
SCHEMA = pa.schema(
    {
        "format": pa.string(),
        "entry": pa.string(),
        "event_time": pa.timestamp("us"),
        "made_at": pa.timestamp("us"),
        "kind": pa.string(),
        "window_begin": pa.timestamp("us"),
        "window_end": pa.timestamp("us"),
        "version": pa.int64(),
        "rows": pa.int64(),
        "alarm": pa.bool_(),
        "message": pa.string(),
        "value": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
        "reference": pa.float64(),
        "detail": pa.string(),  # JSON
    }
)


@dataclass(frozen=True)
class Signal:
    """What monitoring measured of window_begin <= event_time < window_end. `value` alarms; `low` and `high` are its
    interval, where it has one."""

    kind: SignalKind
    window_begin: datetime
    window_end: datetime
    version: int
    rows: int
    alarm: bool
    message: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_measured(self) -> bool:
        """Whether it tells anything. A window without rows, or with too few for a figure, did not alarm, but it is not
        quiet either; nor is a loss without an interval, which cannot be surely worse."""
        has_interval = self.kind != "performance" or self.low is not None
        return self.alarm or (self.rows > 0 and self.value is not None and has_interval)

    @property
    def is_warning(self) -> bool:
        """Whether a person should hear of it. Age that costs something is no fault: a refresh answers it."""
        return self.alarm and self.kind != "freshness"


def append_signals(journal: Journal, signals: Sequence[Signal]) -> None:
    """Measured again with the same result, a signal is the same row of the journal."""
    now = datetime.now(UTC).replace(tzinfo=None)
    rows = [
        asdict(signal)
        | {"format": FORMAT.mark, "event_time": signal.window_end, "made_at": now}
        | {"entry": make_entry(signal.kind, signal.window_end, signal.version, signal.rows, signal.message)}
        | {"detail": json.dumps(dict(signal.detail), default=str)}
        for signal in signals
    ]
    journal.append("signals", pa.Table.from_pylist(rows, schema=SCHEMA))


def read_signals(journal: Journal) -> list[Signal]:
    """All that was ever measured, in the order of time; of a window that was measured again, when more rows or outcomes
    had come, the last result.

    Raises:
        ValueError: a row is in another format.
    """
    rows = sorted(journal.read("signals").to_pylist(), key=lambda row: row["made_at"])
    for mark in {row.get("format") for row in rows}:
        FORMAT.check(mark, "a signal in the journal")
    last = {(row["event_time"], row["kind"], row["version"]): row for row in rows}
    names = Signal.__dataclass_fields__
    return [
        Signal(
            **{name: row[name] for name in names if row.get(name) is not None} | {"detail": json.loads(row["detail"])}
        )
        for row in sorted(last.values(), key=lambda row: row["event_time"])
    ]


def name_cause(signals: Sequence[Signal], alarm: Signal) -> str:
    """The name of an alarm's cause: the same for as long as the same signal of the same champion alarms on end."""
    mine = [signal for signal in signals if (signal.kind, signal.version) == (alarm.kind, alarm.version)]
    quiet = [signal.window_end for signal in mine if signal.is_measured and not signal.alarm]
    last = max((end for end in quiet if end < alarm.window_end), default=None)
    return f"{alarm.kind} {alarm.version} {last}"


# What a look's signal tells of its verdict.
FIGURES = (
    "metric",
    "rule",
    "candidate",
    "champion",
    "looks",
    "bound",
    "loss_bound",
    "least",
    "skill",
    "level",
    "spent_level",
)


def list_looks(signals: Iterable[Signal], version: int, *, kind: SignalKind) -> list[Signal]:
    """The looks at this champion so far, oldest first. One that had too few rows to find anything is not counted."""
    looks = [one for one in signals if (one.kind, one.version) == (kind, version) and one.detail.get("looked")]
    return sorted(looks, key=lambda look: look.window_end)


def is_look_due(
    signals: Iterable[Signal], version: int, *, as_of: datetime, window: timedelta, kind: SignalKind
) -> bool:
    """Whether a window has passed since the last look at this champion.

    Each look makes the next one harder, so nobody gains by looking at every tick. A clock that went back looks at
    nothing again.
    """
    earlier = list_looks(signals, version, kind=kind)
    return not earlier or as_of >= earlier[-1].window_end + window


def make_look(
    kind: SignalKind,
    verdict: Verdict,
    *,
    version: int,
    since: datetime,
    as_of: datetime,
    alarm: bool,
    message: str,
    detail: Mapping[str, Any],
) -> Signal:
    """The signal of a verdict on another version than the champion, which is `version`."""
    figures = verdict.figures
    listed = {name: figures[name] for name in FIGURES if figures.get(name) is not None}
    return Signal(
        kind,
        window_begin=since,
        window_end=as_of,
        version=version,
        rows=figures.get("rows", 0),
        alarm=alarm,
        message=message,
        value=figures.get("gain"),
        low=figures.get("low"),
        high=figures.get("high"),
        detail={"outcome": verdict.outcome, "looked": verdict.counts_as_look, **detail, **listed},
    )
