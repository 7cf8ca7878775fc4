"""evidence: what the fits of one recipe lost on each later day. It is kept, so that a weekly look costs one fit.

    <folder>/grid.json                  at which hour a day begins
    <folder>/<cut>/model.ubj            the recipe trained up to the beginning of a week
    <folder>/<cut>/losses-<week>.parquet
                                        its sums of losses by day, over all rows and over each slice, before a week
    <folder>/<cut>/cost.json            the seconds of CPU that it took
    <folder>/<cut>/shift-<n>.json       how far its predictions lie from those of the fit n weeks older

What is missing is made: the newest fits, side by side. Each is in its place when it is whole, so that a look that was
killed goes on where it stopped. A week counts when it is over and its labels are due. No file changes, so that the
machines of a team share them by their names.
"""

import json
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks import log
from tasks.data.featurerows import Rows
from tasks.data.storedrows import AnyRows
from tasks.data.timeline import Times
from tasks.params import Params
from tasks.promotion.ageing import Evidence
from tasks.promotion.contest import align_classes, row_losses
from tasks.promotion.pastfits import MODEL, Maker
from tasks.promotion.weekgrid import Grid
from tasks.runtime import cost, files, store
from tasks.training import model, split
from tasks.training.model import Model
from tasks.training.trials import Tuned

GRID_FILE, SHARED_GRID = "grid.json", "evidence-grid"  # of a recipe; and the folder of the store that has one for all
FOLDER = "evidence"  # in the home and in a team's store, with a folder for each recipe
MOST_FITS = 16  # that one look makes
SLICE = pa.schema(
    [("day", pa.int64()), ("slice", pa.string()), ("value", pa.string()), ("rows", pa.int64()), ("loss", pa.float64())]
)
UNTIL = b"evergreen.until_week"  # in the file's metadata: the weeks before it are scored
ALL = ""  # the name of the slice of all rows


@dataclass(frozen=True)
class Collected:
    """Evidence, and what it took to make what was missing."""

    evidence: Evidence
    first_week: int
    fits: int
    cpu: float  # seconds


def choose_missing(trainable: Sequence[int], there: Collection[int], *, most: int = MOST_FITS) -> list[int]:
    """The weeks whose fits a look makes: the newest that are not there, and none older than two looks make."""
    return [week for week in trainable[-2 * most :] if week not in there][-most:]


@dataclass(frozen=True)
class Kept:
    """What earlier looks have kept of a recipe's fits, up to `until`."""

    evidence: Evidence
    until: datetime


def read_kept(folder: Path) -> Kept | None:
    """The evidence in a recipe's folder, as its last look left it; None where there is none. Nothing is made.

    Raises:
        ValueError: another format.
    """
    fetch_evidence(folder, pattern="*/losses-*.parquet")
    paths = [path for cut in folder.glob("*/") if (path := _find_losses(cut))]
    tables = {path.parent.name: pq.read_table(path) for path in paths}
    if not tables:
        return None
    grid, end = Grid.load(folder, np.zeros(0, "datetime64[us]")), max(map(_scored_until, tables.values()))
    losses = {
        grid.week_of(datetime.fromisoformat(name)): table.filter(pc.equal(table["slice"], ALL))
        for name, table in tables.items()
        if _scored_until(table) == end
    }
    return Kept(_stack(losses, end), grid.begin_of(end))


def fetch_evidence(folder: Path, *, pattern: str = "*") -> None:
    """Bring what a team's store has of a recipe's evidence, and the grid that all recipes share.

    Args:
        pattern: of the files, below the recipe's folder.
    """
    if folder.parent.name == FOLDER:  # a replay's lies elsewhere, and is its own
        store.fetch_folder(folder, f"{FOLDER}/{folder.name}", pattern=pattern)
        if not (folder / GRID_FILE).exists():
            store.fetch_folder(folder, SHARED_GRID)


def _share_evidence(folder: Path) -> None:
    if folder.parent.name != FOLDER:
        return
    store.share_folder(folder, f"{FOLDER}/{folder.name}", replaces=partial(_has_newer, folder))
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copyfile(folder / GRID_FILE, Path(scratch) / GRID_FILE)
        store.share_folder(Path(scratch), SHARED_GRID)


def _has_newer(folder: Path, name: str) -> bool:
    """Whether a file of losses, by its name below the folder, goes less far than both that are here."""
    here = sorted(path.name for path in (folder / name).parent.glob("losses-*.parquet"))
    file = Path(name).name
    return file.startswith("losses-") and len(here) > 1 and file < here[0]


def _find_losses(cut: Path) -> Path | None:
    """The file that goes furthest."""
    return max(cut.glob("losses-*.parquet"), default=None)


def _scored_until(losses: pa.Table) -> int:
    """The week before whose beginning a fit's losses are whole; 0 where nothing is scored."""
    return int((losses.schema.metadata or {}).get(UNTIL, 0))


@dataclass(frozen=True)
class Fits:
    """The fits of one recipe in a folder of their own.

    Attributes:
        rows: Up to as_of, or further: whoever asks says as of when.
        since: Fits of earlier weeks are left out, since whoever asks had none; None: all count.
    """

    folder: Path
    p: Params
    tuned: Tuned
    rows: AnyRows
    grid: Grid
    since: int | None = None

    @staticmethod
    def open(folder: Path, p: Params, tuned: Tuned, rows: AnyRows) -> "Fits":
        folder.mkdir(parents=True, exist_ok=True)
        fetch_evidence(folder)
        return Fits(folder, p, tuned, rows, Grid.load(folder, rows.event_time))

    def limit(self, since: int | None) -> "Fits":
        """The same without the fits of earlier weeks."""
        limited = replace(self, since=since)
        limited.__dict__["_trainable"] = self._trainable  # it is slow to find, and the same
        return limited

    def collect(self, as_of: datetime, *, most: int = MOST_FITS) -> Collected | None:
        """The evidence at `as_of`, after making what it lacks. None where no week has a fit.

        Args:
            most: As many fits are made, the newest.
        """
        began = cost.read_own_usage()
        missing = self.list_missing(as_of, most=most)
        self.fit(missing)
        evidence = self.read(as_of)
        _share_evidence(self.folder)
        if evidence is None:
            return None
        return Collected(evidence, self.list_fits(as_of)[0], len(missing), cost.read_own_usage() - began)

    def read(self, as_of: datetime) -> Evidence | None:
        """The evidence at `as_of` of the fits that there are. None where no week has one."""
        end, fits = self.end_of(as_of), self.list_fits(as_of)
        for week in fits:
            self._score(week, end)
        return _stack({week: self._read(week) for week in fits}, end) if fits else None

    def end_of(self, as_of: datetime) -> int:
        """The weeks before this one count at `as_of`: they are over, and their labels are due."""
        return self.grid.week_of(as_of - self.p.label.deadline)

    def list_fits(self, as_of: datetime) -> list[int]:
        """The weeks up to `as_of` whose beginning a model was trained up to, oldest first."""
        end, paths = self.end_of(as_of), self.folder.glob("*/model.ubj")
        weeks = sorted(self.grid.week_of(datetime.fromisoformat(path.parent.name)) for path in paths)
        return [week for week in weeks if week < end and (self.since is None or week >= self.since)]

    def list_missing(self, as_of: datetime, *, most: int = MOST_FITS) -> list[int]:
        """The weeks whose fits a look at `as_of` makes, oldest first."""
        weeks = self.list_trainable(as_of)
        return choose_missing(weeks, {week for week in weeks if self._model(week).exists()}, most=most)

    def list_trainable(self, as_of: datetime) -> list[int]:
        """The weeks up to `as_of` that a fit may begin, oldest first."""
        end = self.end_of(as_of)
        return [week for week in self._trainable if week < end]

    def read_cost(self, week: int) -> float:
        """The seconds of CPU that a fit took; 0 where the look that made it was killed."""
        path = self._place(week) / "cost.json"
        return float(json.loads(path.read_text())["cpu"]) if path.exists() else 0.0

    def measure_shifts(self, weeks: int, as_of: datetime) -> tuple[float, ...]:
        """How far each fit's predictions lie from those of the one `weeks` older, on the rows between; oldest first."""
        fits = self.list_fits(as_of)
        shifts = [self._measure_shift(week, weeks) for week in fits if week - weeks in fits]
        return tuple(shift for shift in shifts if shift is not None)

    def _measure_shift(self, week: int, weeks: int) -> float | None:
        """None where no row lies between. It is measured once: neither model nor features change any more."""
        path = self._place(week) / f"shift-{weeks}.json"
        if not path.exists():
            days = self.grid.days_of(self.rows.event_time)
            between = (days >= 7 * (week - weeks)) & (days < 7 * week)
            old, new = (Model.load(self._model(one)) for one in (week - weeks, week))
            shift = measure_shift(new, old, self.rows.take(between).load()) if between.any() else None
            files.publish_json(path, {"shift": shift})
        shift = json.loads(path.read_text())["shift"]
        return None if shift is None else float(shift)

    @cached_property
    def _trainable(self) -> list[int]:
        """The weeks that a fit may begin, oldest first."""
        times, labelled = self.rows.event_time, model.is_labelled(self.rows.label)
        if not labelled.any():
            return []
        first = self.grid.week_of(times[labelled].min().astype("datetime64[us]").item())
        last = self.grid.week_of(times.max().astype("datetime64[us]").item())
        return [week for week in range(first + 1, last + 1) if self._can_fit(self.grid.begin_of(week), times, labelled)]

    def _can_fit(self, cut: datetime, times: Times, labelled: split.Mask) -> bool:
        try:
            split.make_folds(times, cut, self.p.split, deadline=self.p.label.deadline, labelled=labelled)
        except ValueError:
            return False
        return True

    @property
    def _maker(self) -> Maker:
        return Maker(self.folder, self.p, self.tuned, self.rows, self.grid)

    def _place(self, week: int) -> Path:
        return self._maker.place(week)

    def _model(self, week: int) -> Path:
        return self._place(week) / MODEL

    def fit(self, weeks: Sequence[int]) -> None:
        """Make the fits up to these weeks, side by side. A fit's cost is an equal share of what all of them took."""
        if not weeks:
            return
        began = cost.read_own_usage()
        boosters = self._maker.make(weeks)
        spent = cost.read_own_usage() - began
        log.info("evidence: made, by %s boosters and in %.0f s of CPU", boosters, spent)
        for week in weeks:
            files.publish_json(self._place(week) / "cost.json", {"cpu": round(spent / len(weeks), 2)})

    def _score(self, week: int, end: int) -> None:
        """Put what this fit lost in the weeks up to `end`, as far as it is missing, beside its model."""
        before = _find_losses(self._place(week))
        scored = pq.read_table(before) if before else SLICE.empty_table()
        begin = int((scored.schema.metadata or {}).get(UNTIL, week))
        if begin >= end:
            return
        days = self.grid.days_of(self.rows.event_time)
        asked = self.rows.take((days >= 7 * begin) & (days < 7 * end) & model.is_labelled(self.rows.label)).load()
        fresh = self._sum_losses(Model.load(self._model(week)), asked) if len(asked) else scored[:0]
        table = pa.concat_tables([scored.replace_schema_metadata(), fresh.replace_schema_metadata()])
        path = self._place(week) / f"losses-{end:06}.parquet"
        files.publish(path, partial(pq.write_table, table.replace_schema_metadata({UNTIL: str(end)})))
        for older in sorted(self._place(week).glob("losses-*.parquet"))[:-2]:  # a reader may have the one before
            older.unlink()

    def _sum_losses(self, fitted: Model, rows: Rows) -> pa.Table:
        spec = fitted.spec
        if spec.task == "multiclass":  # a class that this fit has not seen is what its age costs
            classes = model.list_labels(self.rows.label)
            spec = replace(spec, classes=tuple(classes))
        predictions = align_classes(spec, fitted.spec.classes, fitted.predict(rows.table))
        losses = row_losses(spec.encode_label(rows.label), predictions, metric=self.p.gate.metric)
        days = self.grid.days_of(rows.event_time)
        names = [ALL, *self.p.evaluate.slices]
        values = {name: np.full(len(rows), "") if name == ALL else _to_text(rows.table[name]) for name in names}
        return pa.concat_tables([_sum_by_day(name, days, values[name], losses) for name in names])

    def _read(self, week: int) -> pa.Table:
        return pq.read_table(_find_losses(self._place(week)), filters=[("slice", "=", ALL)])


def measure_shift(new: Model, old: Model, rows: Rows) -> float:
    """The mean absolute difference of what two models predict; of several classes, of those that the new one knows."""
    first, second = (
        np.asarray(align_classes(new.spec, fitted.spec.classes, fitted.predict(rows.table)), np.float64)
        for fitted in (new, old)
    )
    return float(np.abs(first - (second[:, : first.shape[1]] if first.ndim == 2 else second)).mean())


def _to_text(column: pa.ChunkedArray) -> NDArray[np.str_]:
    return np.asarray(column.cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False), np.str_)


def _sum_by_day(name: str, days: NDArray[np.int64], values: NDArray[np.str_], losses: NDArray[np.float64]) -> pa.Table:
    table = pa.table({"day": days, "value": values, "loss": losses})
    sums = table.group_by(["day", "value"], use_threads=False).aggregate([("loss", "sum"), ("loss", "count")])
    columns = {"day": sums["day"], "slice": pa.array([name] * sums.num_rows, pa.string()), "value": sums["value"]}
    return pa.table(columns | {"rows": sums["loss_count"], "loss": sums["loss_sum"]}).cast(SLICE)


def _stack(losses: Mapping[int, pa.Table], end: int) -> Evidence:
    """The tables of fits, by week, as arrays from the first fit's week to `end`. A fit without its week is NaN."""
    first = min(losses)
    weeks = end - first
    sums, rows = np.full((weeks, 7 * weeks), np.nan), np.zeros(7 * weeks)
    for week, table in losses.items():
        sums[week - first, 7 * (week - first) :] = 0
        days = table["day"].to_numpy() - 7 * first
        over = days < 7 * weeks  # another look may have scored later weeks
        sums[week - first, days[over]] = table["loss"].to_numpy()[over]
        rows[days[over]] = table["rows"].to_numpy()[over]
    return Evidence(sums.reshape(weeks, weeks, 7), rows.reshape(weeks, 7))
