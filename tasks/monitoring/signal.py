"""Signal: what monitoring measured of one window of event time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tasks.params import SignalKind


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
        """Whether it tells anything. A window without rows, or one of which too little came for a figure, did not
        alarm, but it is not quiet either; nor is a loss without an interval, which cannot be surely worse."""
        interval = self.kind != "performance" or self.low is not None
        return self.alarm or (self.rows > 0 and self.value is not None and interval)
