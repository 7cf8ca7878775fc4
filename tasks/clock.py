"""Event time "now": params.yaml's clock.as_of, or with clock.step a stored clock that the score flow moves on.

With a step the sources' history is lived through as if it were arriving: every tick of `score` brings clock.step more.
"""

import json
from datetime import datetime
from pathlib import Path

from tasks import params, periods
from tasks.params import Clock

NAME = "clock.json"


def now(clock: Clock, home: Path | None = None) -> datetime | None:
    """None: the newest event that the sources hold."""
    if clock.step is None:
        return clock.as_of
    return _stored(home or params.home()) or clock.as_of


def after(clock: Clock, home: Path | None = None) -> datetime | None:
    """What the next tick brings: `now`, and a step more where there are steps."""
    moment = now(clock, home)
    return moment + clock.step if moment and clock.step else moment


def move(clock: Clock, moment: datetime, home: Path | None = None) -> None:
    """Store the time that a tick has reached. It never goes back: two ticks at once are one."""
    home = home or params.home()
    if clock.step is not None and moment > (_stored(home) or datetime.min):
        periods.publish_json(home / NAME, {"as_of": moment.isoformat()})


def _stored(home: Path) -> datetime | None:
    path = home / NAME
    return datetime.fromisoformat(json.loads(path.read_text())["as_of"]) if path.exists() else None
