"""freshness: what the champion's age costs now, by the kept evidence of its recipe, with its bound."""

from datetime import datetime, timedelta

from tasks.monitoring.signal import Signal
from tasks.monitoring.window import Watched, Window
from tasks.promotion import ageing
from tasks.promotion.evidence import Kept

WEEK = timedelta(weeks=1)


def measure_freshness(window: Window, watched: Watched) -> Signal | None:
    """An alarm when fits as old as the champion surely lose more than fresh ones. None for a champion without a time.

    The window's rows have no part in it: they say what the champion loses, and not what a fresh fit would.
    """
    version = watched.version
    if version.as_of is None:
        return None
    return make_freshness(
        watched.evidence,
        made_at=version.as_of,
        since=window.as_of - watched.p.monitor.window,
        as_of=window.as_of,
        version=version.number,
    )


def make_freshness(kept: Kept | None, *, made_at: datetime, since: datetime, as_of: datetime, version: int) -> Signal:
    """The signal of a champion that was made at `made_at`; `since` is where its window begins."""
    age = max(1, round((as_of - made_at) / WEEK))
    known = "no fit of its recipe is kept yet: a refresh measures it"
    weeks, cost = f"{age} week{'s' * (age != 1)}", None
    if kept:
        cost = ageing.choose_cost(ageing.measure_ages(kept.evidence, age))
        known = f"fewer than {ageing.MIN_WEEKS} weeks tell, up to {kept.until:%Y-%m-%d}"
    rows = kept.evidence.rows[-ageing.RECENT_WEEKS :] if kept else None
    detail = {
        "age_weeks": age,
        "evidence_until": kept.until.isoformat() if kept else None,
        "rows_a_week": float(rows.sum() / len(rows)) if rows is not None else 0.0,
    }
    if cost is None:
        message = f"Freshness: what an age of {weeks} costs is not known; {known}."
        return Signal("freshness", since, as_of, version, 0, alarm=False, message=message, detail=detail)
    gain, low, (young, old) = float(cost.bound.gain), float(cost.bound.low), cost.band
    message = (
        f"Freshness: it is {weeks} old; fits of its recipe that were {young} to {old} weeks old lost {gain:+.4g} a "
        f"row more than fresh ones in {cost.weeks} past weeks, surely more than {low:+.4g}."
    )
    return Signal(
        "freshness",
        since,
        as_of,
        version,
        int(kept.evidence.rows.sum()) if kept else 0,
        alarm=bool(cost.is_sure),
        message=message,
        value=gain,
        low=low,
        reference=0.0,
        detail=detail,
    )
