"""Event time "now": params.yaml's clock.as_of, or with clock.step a stored clock that the score flow moves on.

With a step the sources' history is lived through as if it were arriving: every tick of `score` brings clock.step more.
The machines of a team share the stored clock.
"""

import json
from datetime import datetime

from tasks import params
from tasks.runtime import files, store

NAME = "clock.json"


class AheadError(ValueError):
    """An as_of that nothing is known of yet."""


def now(clock: params.Clock) -> datetime | None:
    """None: the newest event that the sources hold."""
    if clock.step is None:
        return clock.as_of
    return _stored() or clock.as_of


def now_at_next_tick(clock: params.Clock) -> datetime | None:
    """What the next tick brings: `now`, and a step more where there are steps."""
    moment = now(clock)
    return moment + clock.step if moment and clock.step else moment


def advance(clock: params.Clock, moment: datetime) -> None:
    """Store the time that a tick has reached. It never goes back: two ticks at once are one."""
    if clock.step is not None and moment > (_stored() or datetime.min):
        _store(moment)


def reset_beyond(clock: params.Clock, *, limit: datetime, end: datetime) -> datetime | None:
    """Take a stored time back to where the data end, if it lies further beyond them than a tick can go: it comes from
    data or an as_of that were wrong. Returns the time that was stored, where it was."""
    stored = _stored()
    if clock.step is None or stored is None or stored <= limit + clock.step:
        return None
    _store(end)
    return stored


def refuse_ahead(clock: params.Clock, as_of: datetime, *, force: bool, ticks: bool = False) -> None:
    """Raises AheadError for an as_of that history, lived through step by step, has not reached. `ticks`: for a flow
    that takes the next step itself."""
    reached = now_at_next_tick(clock) if ticks else now(clock)
    if force or clock.step is None or reached is None or as_of <= reached:
        return
    raise AheadError(
        f"as_of must not lie ahead of the clock ({reached}), but got {as_of}: with clock.step history is lived through "
        "step by step, and a model of rows that have not come yet would be watched on what it has learnt from. Leave "
        f"as_of empty, or give one up to {reached}; --force (force: true) takes it as it is."
    )


def refuse_beyond(limit: datetime | None, as_of: datetime, *, force: bool) -> None:
    """Raises AheadError for an as_of beyond the latest that the data allow."""
    if force or limit is None or as_of <= limit:
        return
    raise AheadError(
        f"as_of must not lie beyond the data (up to {limit}), but got {as_of}: nothing is known of that time yet. Give "
        "an earlier as_of, leave it empty (or clock.as_of: null) for the newest moment that the data tell of, or bring "
        "newer data; --force (force: true) takes it as it is."
    )


def _stored() -> datetime | None:
    try:
        content = store.open_shared(params.home()).read(NAME)
    except FileNotFoundError:
        return None
    return datetime.fromisoformat(json.loads(content)["as_of"])


def _store(moment: datetime) -> None:
    store.open_shared(params.home()).replace(NAME, files.to_json({"as_of": moment.isoformat()}).encode())
