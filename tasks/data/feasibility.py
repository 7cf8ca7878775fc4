"""sizes: do the lengths and counts of params.yaml fit the table's row rate? Each that does not, with what would do.

Asked of the event times alone, once ingest has them: before features, search and training are spent. Rows can only get
fewer on the way (quarantine, missing labels), so what is refused here would have failed, or been held, after all of it.
The programs of ingest and tune ask, so `dvc repro` by hand is checked as a retrain is: ingest warns, since whoever only
scores or looks at clean data needs no holdout, and tune refuses. `read_times`, `warn_after` and `refuse_before` read a
workspace; the rest is pure.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks import log
from tasks.data import manifest, periods, timeline
from tasks.data.manifest import RawManifest
from tasks.params import Params, spell
from tasks.runtime import stage
from tasks.runtime.sql import parquet

Times = NDArray[np.datetime64]
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
DRIFT_WINDOWS = 3  # without overlap, that drift's thresholds need of a history (tasks/monitoring/drift.py)


@dataclass(frozen=True)
class Problem:
    """A setting that does not fit the table. `stops`: a retrain would come to nothing; else one feature stays off."""

    setting: str
    message: str
    stops: bool


def read_event_times(p: Params, root: Path) -> Times:
    """The event times of the spine's raw rows in a workspace, in order."""
    files = [
        path for _, path in periods.list_files(root / p.paths.raw / p.spine.table)
    ]  # outliers would bend the row rate
    if not files:
        return np.zeros(0, dtype="datetime64[us]")
    with stage.connect(p) as con:
        rows = con.sql(f"SELECT event_time FROM {parquet(files)} WHERE event_time IS NOT NULL")
        return np.sort(rows.to_arrow_table()["event_time"].to_numpy().astype("datetime64[us]"))


def find_problems(times: Times, as_of: datetime, p: Params) -> list[Problem]:
    """What does not fit the rows of these event times (n, in order), those that stop a retrain first."""
    if not len(times):
        return []
    return sorted([*_holdout(times, as_of, p), *_window(times, as_of, p)], key=lambda problem: not problem.stops)


def check_workspace(p: Params, root: Path) -> list[Problem]:
    """What does not fit the raw rows of a workspace, as of the moment that ingest has brought them for. Nothing is
    asked where there are no raw rows, as after `dvc pull features` on another machine."""
    raw = root / p.paths.raw
    return (
        find_problems(read_event_times(p, root), RawManifest.read(raw).as_of, p)
        if (raw / manifest.NAME).exists()
        else []
    )


def warn_after(ingest: Callable[[Params], None]) -> Callable[[Params], None]:
    """The program of ingest: what would stop a training is said at once, and tune refuses it."""

    def work(p: Params) -> None:
        ingest(p)
        if reason := explain_refusal(check_workspace(p, Path())):
            log.warning("%s", reason)

    return work


def refuse_before(tune: Callable[[Params], None]) -> Callable[[Params], None]:
    """The program of tune: nothing is searched for where the sizes do not fit. Raises ValueError."""

    def work(p: Params) -> None:
        problems = check_workspace(p, Path())
        if reason := explain_refusal(problems):
            raise ValueError(reason)
        for problem in problems:
            log.warning("%s", problem.message)
        tune(p)

    return work


def explain_refusal(problems: list[Problem]) -> str | None:
    """The sentence that refuses a retrain; None where nothing stops it."""
    stopping = [problem.message for problem in problems if problem.stops]
    return "\n".join(["params.yaml does not fit the table:", *stopping]) if stopping else None


def _holdout(times: Times, as_of: datetime, p: Params) -> Iterator[Problem]:
    end = as_of - p.label.deadline
    start = end - p.split.holdout
    held = _between(times, start, end)
    first = _moment(times[0])
    if first >= start:
        yield Problem("split.holdout", _too_long_holdout(first, end, p), stops=True)
        return
    if len(held) < p.gate.min_rows:
        needs = _length(times, end, p.gate.min_rows)
        yield Problem("gate.min_rows", _few("gate.min_rows", p.gate.min_rows, len(held), needs, p), stops=True)
    blocks = len(np.unique(held.astype(np.int64) // int(p.gate.block / timedelta(microseconds=1))))
    if blocks < p.gate.min_blocks:
        yield Problem("gate.min_blocks", _few_blocks(blocks, p), stops=True)
    if p.evaluate.slices and len(held) < p.evaluate.slice_rows:
        needs = _length(times, end, p.evaluate.slice_rows)
        few = _few("evaluate.slice_rows", p.evaluate.slice_rows, len(held), needs, p)
        yield Problem("evaluate.slice_rows", f"{few} No slice is reported.", stops=False)
    yield from _folds(times, first, start - p.label.deadline, p)


def _folds(times: Times, first: datetime, end: datetime, p: Params) -> Iterator[Problem]:
    """`end`: where the twin's training ends. Each fold needs rows to train on, which end a deadline before it."""
    spans = timeline.place_folds(times, end, folds=p.split.folds, fold=p.split.fold)
    since = spans[0].begin
    rows = [len(_between(times, span.begin, span.end)) for span in spans]
    trained = len(_between(times, first, since - p.label.deadline))
    if trained and all(rows):
        return
    empty = sum(
        (gap.end - gap.begin for gap in timeline.find_gaps(times, longer=p.split.fold) if gap.end <= end), timedelta()
    )
    room = end - p.label.deadline - first - empty
    fold = spell(_floor(room / (p.split.folds + 1)))
    way = f"Set split.fold to {fold} or less" if room > (p.split.folds + 1) * HOUR else "Use fewer folds"
    message = (
        f"split.folds: {p.split.folds} folds of split.fold {spell(p.split.fold)} before the holdout begin {since}, "
        f"with {trained:,} rows to train on before them and {min(rows):,} in the emptiest; the rows begin {first}. "
        f"{way}, or shorten split.holdout."
    )
    yield Problem("split.folds", message, stops=True)


def _window(times: Times, as_of: datetime, p: Params) -> Iterator[Problem]:
    """The newest window and the mean of all: a table that is just quiet this week fits."""
    spanned = max(as_of - _moment(times[0]), HOUR)
    rate = len(times) / spanned.total_seconds()
    rows = max(len(_between(times, as_of - p.monitor.window, as_of)), int(rate * p.monitor.window.total_seconds()))
    if rows < p.policy.min_rows:
        needs = spell(_ceil(timedelta(seconds=p.policy.min_rows / rate)))
        message = (
            f"policy.min_rows is {p.policy.min_rows:,}, but a monitor.window of {spell(p.monitor.window)} holds about "
            f"{rows:,} rows, so no alarm ever asks for a retrain. Set policy.min_rows to {max(rows, 1):,} or less, or "
            f"monitor.window to {needs}."
        )
        yield Problem("policy.min_rows", message, stops=False)
    held = p.split.holdout + p.label.deadline
    if spanned - held < DRIFT_WINDOWS * p.monitor.window:
        longest = _floor(max((spanned - held) / DRIFT_WINDOWS, HOUR))
        message = (
            f"monitor.window is {spell(p.monitor.window)}, but the history before the holdout spans "
            f"{spell(_floor(max(spanned - held, HOUR)))}, and drift needs {DRIFT_WINDOWS} windows of it, so drift "
            f"stays off. Set monitor.window to {spell(longest)} or less, or wait for more data."
        )
        yield Problem("monitor.window", message, stops=False)


def _few(setting: str, wanted: int, rows: int, needs: timedelta | None, p: Params) -> str:
    longer = f"split.holdout to {spell(needs)}, or " if needs else ""
    return (
        f"{setting} is {wanted:,}, but split.holdout ({spell(p.split.holdout)}) holds {rows:,} rows. Set "
        f"{longer}{setting} to {max(rows, 1):,} or less."
    )


def _few_blocks(blocks: int, p: Params) -> str:
    needs = spell(_ceil(p.gate.min_blocks * p.gate.block))
    return (
        f"gate.min_blocks is {p.gate.min_blocks}, but split.holdout ({spell(p.split.holdout)}) holds rows in {blocks} "
        f"blocks of gate.block ({spell(p.gate.block)}). Set split.holdout to {needs} or more, or use shorter blocks."
    )


def _too_long_holdout(first: datetime, end: datetime, p: Params) -> str:
    room = end - first
    way = f"Set split.holdout to {spell(_floor(room / 2))} or less" if room > 2 * HOUR else "Wait for more data"
    return (
        f"split.holdout is {spell(p.split.holdout)}, but the rows reach from {first} to {end} (label.deadline before "
        f"as_of), so nothing is left to train on. {way}."
    )


def _length(times: Times, end: datetime, rows: int) -> timedelta | None:
    """How far back from `end` so many rows reach, in whole days or hours; None where there are not so many."""
    before = times[times < np.datetime64(end)]
    return _ceil(end - _moment(before[-rows]) + HOUR) if len(before) > rows else None


def _between(times: Times, start: datetime, end: datetime) -> Times:
    low, high = np.searchsorted(times, np.array([start, end], dtype="datetime64[us]"))
    return times[low:high]


def _moment(time: np.datetime64) -> datetime:
    moment: datetime = time.astype("datetime64[us]").item()
    return moment


def _ceil(length: timedelta) -> timedelta:
    unit = DAY if length > 2 * DAY else HOUR
    return math.ceil(length / unit) * unit


def _floor(length: timedelta) -> timedelta:
    unit = DAY if length > 2 * DAY else HOUR
    return max(math.floor(length / unit), 1) * unit
