"""The calendar periods that the data's stages work by."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

FORMATS = {"day": "%Y-%m-%d", "week": "%G-W%V", "month": "%Y-%m"}
WHOLE = "all"  # the one period of a table without event times
UNKNOWN = "unknown"  # the period of rows whose event time cannot be told
OUTLIERS = "outliers"  # of rows that lie far from all others in time


@dataclass(frozen=True)
class Period:
    """A stretch of event time, start <= t < end."""

    name: str
    start: datetime
    end: datetime


def period_at(moment: datetime, unit: str) -> Period:
    """The calendar day, ISO week or month that holds a moment."""
    start = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if unit == "month":
        start = start.replace(day=1)
        return Period(start.strftime(FORMATS[unit]), start, (start + timedelta(days=32)).replace(day=1))
    start -= timedelta(days=start.weekday() if unit == "week" else 0)
    return Period(start.strftime(FORMATS[unit]), start, start + timedelta(days=7 if unit == "week" else 1))


def parse_name(name: str) -> Period:
    """The period of a file's name: '2013-01' → January 2013."""
    if "W" in name:
        return period_at(datetime.strptime(f"{name}-1", "%G-W%V-%u"), "week")
    unit = "month" if name.count("-") == 1 else "day"
    return period_at(datetime.strptime(name, FORMATS[unit]), unit)


def list_files(folder: Path) -> Iterator[tuple[Period, Path]]:
    """The period files of a table, oldest first; a static table's file, rows without a time and outliers are not among
    them."""
    for path in sorted(folder.glob("*.parquet")):
        if path.stem not in (WHOLE, UNKNOWN, OUTLIERS):
            yield parse_name(path.stem), path
