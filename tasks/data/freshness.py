"""freshness: how far each table reaches, and which does not keep what `fresh_within` promises of it. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from tasks.data.manifest import RawManifest
from tasks.params import Params, spell


@dataclass(frozen=True)
class Stale:
    """A table whose newest row is older than promised."""

    table: str
    newest: datetime | None
    promised: timedelta
    now: datetime

    @property
    def cause(self) -> str:
        """The same for as long as no newer row comes."""
        return f"stale {self.table} since {self.newest}"

    @property
    def message(self) -> str:
        if self.newest is None:
            reach = "it has no row"
        else:
            reach = f"its newest row is of {self.newest}, {spell_age(self.now - self.newest)} before {self.now}"
        return (
            f"sources.{self.table}.fresh_within promises a row at most {spell(self.promised)} old, but {reach}. See "
            "whether its source still delivers."
        )


def find_stale(p: Params, raw: RawManifest, now: datetime) -> Iterator[Stale]:
    """The tables that break their promise at `now`, in UTC."""
    for name, source in p.sources.items():
        newest = raw.tables[name].newest
        if source.fresh_within and (newest is None or now - newest > source.fresh_within):
            yield Stale(name, newest, source.fresh_within, now)


def describe_reach(raw: RawManifest) -> str:
    """How far the tables reach, the one that is furthest behind first; empty where none moves in time."""
    newest = {name: table.newest for name, table in raw.tables.items() if table.newest}
    ends = sorted(newest.items(), key=lambda pair: pair[1])
    return ", ".join(f"{name} to {moment:%Y-%m-%d %H:%M}" for name, moment in ends)


def spell_age(age: timedelta) -> str:
    """In its largest unit, such as 3 days or 5 hours."""
    for unit, length in (("day", timedelta(days=1)), ("hour", timedelta(hours=1)), ("minute", timedelta(minutes=1))):
        if age >= length:
            count = age // length
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{age.total_seconds():.0f} s"
