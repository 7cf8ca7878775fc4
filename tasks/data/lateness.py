"""lateness: has a period changed that ended longer ago than `ingest.lateness`?

Late and corrected rows rewrite the periods that they belong to, whatever their age. With a lateness set, a change of an
older period is held instead: reports, models and predictions were made of it. A period's age is measured against the
end of the data at the last ingest, so it does not depend on `clock.as_of`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import duckdb
from pydantic import BaseModel, ConfigDict

from tasks import log
from tasks.data import deliveries, periods
from tasks.params import PLACE, Source, spell
from tasks.runtime.sql import quote

CODE = periods.hash_code(__file__)
SHOWN = 3  # periods that a message names


class Content(BaseModel):
    """The rows of a period, apart from their places in the files. `fingerprint` is the sum of their hashes."""

    model_config = ConfigDict(frozen=True)

    rows: int
    fingerprint: str


Contents = dict[str, Content | None]  # by period. None where it was not read, since it begins after as_of


class Delivery(BaseModel):
    """What a source has.

    Attributes:
        identity: the hash of everything that its rows are made of, apart from the bytes of its own files.
        reach: the moment up to which the spine's rows reach, in UTC.
        periods: what its periods hold.
    """

    model_config = ConfigDict(frozen=True)

    identity: str
    reach: datetime
    periods: Contents


@dataclass(frozen=True)
class Change:
    """A period whose rows are not those of the last ingest."""

    period: periods.Period
    before: int
    now: int

    def __str__(self) -> str:
        return f"{self.period.name} ({self.before:,} rows before, {self.now:,} now)"


def measure_content(con: duckdb.DuckDBPyConnection, identity: str, rows: str) -> Content:
    """What a period holds, whatever of it was known at as_of: the rows of a query, and the hash of what it reads."""
    entry = periods.hash_inputs("content", identity, CODE)
    return Content.model_validate(periods.remember(entry, "content.json", lambda: _measure_content(con, rows)))


def _measure_content(con: duckdb.DuckDBPyConnection, query: str) -> dict[str, Any]:
    columns = ", ".join(quote(name) for name in con.sql(query).columns if name not in PLACE)
    rows, fingerprint = con.execute(
        f"SELECT count(*), CAST(coalesce(sum(CAST(hash({columns}) AS HUGEINT)), 0) AS VARCHAR) FROM ({query})"
    ).fetchall()[0]
    return {"rows": rows, "fingerprint": fingerprint}


def check_periods(table: str, source: Source, now: Delivery, lateness: timedelta) -> None:
    """Compare a source's periods with what they were at the last ingest, and log which have changed.

    A first ingest has nothing to compare with, nor has one with another contract, other expressions, or other rows in a
    table that they use.

    Raises:
        ValueError: a period has changed that had ended more than `lateness` before the end of the data at that time.
    """
    past = _read(table, source)
    if past is None or past.identity != now.identity:
        return
    changes = find_changes(past.periods, now.periods)
    settled = [change for change in changes if change.period.end + lateness <= past.reach]
    if not settled:
        if late := [change for change in changes if change.period.end <= past.reach]:
            log.info("%s: late or corrected rows have changed %s", table, _list_changes(late))
        return
    days = (past.reach - min(change.period.end for change in settled)).days + 1
    raise ValueError(
        f"{table} ({source.shown}) must not change a period that ended more than ingest.lateness {spell(lateness)} "
        f"before the end of the data, which was {past.reach} at the last ingest, but has changed "
        f"{_list_changes(settled)}. Bring back what it had, or, where the new rows are right, set ingest.lateness to "
        f"{days}d for one run."
    )


def find_changes(past: Contents, now: Contents) -> list[Change]:
    """The periods that hold other rows than before, in order. One that was not read, then or now, is not compared."""
    nothing = Content(rows=0, fingerprint="0")
    changes = []
    for name in sorted({*past, *now} - {periods.WHOLE, periods.UNKNOWN, periods.OUTLIERS}):
        before, after = past.get(name, nothing), now.get(name, nothing)
        if before and after and before != after:
            changes.append(Change(periods.parse_name(name), before.rows, after.rows))
    return changes


def note_periods(table: str, source: Source, now: Delivery) -> None:
    """Keep what a source's periods hold for the next comparison."""
    past = _read(table, source)
    before = past.periods if past and past.identity == now.identity else {}
    contents = {name: content or before.get(name) for name, content in now.periods.items()}
    delivered = now.model_copy(update={"periods": contents})
    if delivered != past:
        deliveries.write_note(deliveries.SETTLED, table, source, delivered.model_dump(mode="json"))


def _read(table: str, source: Source) -> Delivery | None:
    note = deliveries.read_note(deliveries.SETTLED, table, source)
    return Delivery.model_validate(note) if note else None


def _list_changes(changes: Iterable[Change]) -> str:
    names = list(map(str, changes))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
