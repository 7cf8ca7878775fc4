"""weekgrid: weeks and days of event time, by number. Evidence and past fits lie on it."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.runtime import files
from tasks.runtime.files import Format

GRID = Format("evidence", 1)
WEEK = timedelta(days=7)
MONDAY = datetime(1970, 1, 5)  # the first week begins here, at the grid's hour


@dataclass(frozen=True)
class Grid:
    """Weeks of event time, by number. Days begin at the hour of fewest rows; see `interval.assign_blocks`."""

    hour: int

    @property
    def _begin(self) -> datetime:
        return MONDAY + timedelta(hours=self.hour)

    def week_of(self, moment: datetime) -> int:
        return (_without_zone(moment) - self._begin) // WEEK

    def begin_of(self, week: int) -> datetime:
        return self._begin + week * WEEK

    def days_of(self, times: NDArray[np.datetime64]) -> NDArray[np.int64]:
        """The number of each row's day, of which week w has the days from 7 w on."""
        return (times.astype("datetime64[us]") - np.datetime64(self._begin, "us")) // np.timedelta64(1, "D")

    @staticmethod
    def load(folder: Path, times: NDArray[np.datetime64]) -> "Grid":
        """The folder's, or that of the folders beside it, or one that the rows ask for, which it then keeps.

        Raises:
            ValueError: Another format.
        """
        path = folder / "grid.json"
        beside = [path, *sorted(folder.parent.glob("*/grid.json"))]
        if source := next((one for one in beside if one.exists()), None):
            raw = json.loads(source.read_text())
        else:
            hours = times.astype("datetime64[h]").astype(np.int64) % 24
            raw = {"format": GRID.mark, "hour": int(np.bincount(hours, minlength=24).argmin())}
        if source != path:
            files.publish_json(path, raw)
        GRID.check(raw.get("format"), path)
        return Grid(raw["hour"])


def _without_zone(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
