"""survey: how far the rows of a loaded table reach in time, and which of them are outliers, as SQL."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.data import timeline
from tasks.data.contract import literal, quoted
from tasks.data.timeline import Reach, Timeline

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

OUTLIER = "_outlier"  # the column that says why a row is one; no column of a contract begins so


def read_limit(raw: Path) -> datetime | None:
    """The latest as_of that the rows of a raw folder allow: what was stored beyond it comes from a bent clock. None
    where ingest has not told it."""
    path = raw / "manifest.json"
    told = json.loads(path.read_text()).get("limit") if path.exists() else None
    return datetime.fromisoformat(told) if told else None


def measure(con: "DuckDBPyConnection", table: str, outcomes: Sequence[str]) -> Reach | None:
    """The reach of the rows that have an event time. An outcome counts as known where the row holds one."""
    moment = f"CASE WHEN {_is_known(outcomes)} THEN known_at END AS known_at"
    rows = con.sql(f"SELECT event_time, {moment} FROM {quoted(table)} WHERE event_time IS NOT NULL").to_arrow_table()
    if not rows.num_rows:
        return None
    return timeline.reach(rows["event_time"].to_numpy(), rows["known_at"].to_numpy())


def _is_known(outcomes: Sequence[str]) -> str:
    return "(" + (" OR ".join(f"{quoted(name)} IS NOT NULL" for name in outcomes) or "TRUE") + ")"


def reason_sql(reach: Reach | None, outcomes: Sequence[str]) -> str:
    """Why a row is an outlier in time; NULL for one that is none."""
    if reach is None:
        return "CAST(NULL AS VARCHAR)"
    cases = _case("event_time", reach.events, "TRUE")
    cases += _case("known_at", reach.known, _is_known(outcomes)) if reach.known else ""
    return f"CASE {cases} END"


def _case(name: str, line: Timeline, where: str) -> str:
    bounds = " AND ".join(f"TIMESTAMP {literal(str(moment))}" for moment in (line.begin, line.end))
    far = f" is an outlier in time: the other rows lie between {line.begin} and {line.end}"
    return f"WHEN {where} AND {name} NOT BETWEEN {bounds} THEN concat('{name} ', {name}, {literal(far)}) "


def to_json(reach: Reach | None) -> str:
    return json.dumps(reach and asdict(reach), default=_plain)


def _plain(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value.isoformat()


def from_json(text: str) -> Reach | None:
    raw = json.loads(text)
    if raw is None:
        return None
    return Reach(_line(raw["events"]), raw["known"] and _line(raw["known"]), raw["late"])


def _line(raw: Mapping[str, Any]) -> Timeline:
    moments = {name: datetime.fromisoformat(raw[name]) for name in ("begin", "dense_end", "end")}
    return Timeline(**moments, gap=timedelta(seconds=raw["gap"]))
