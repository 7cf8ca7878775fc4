"""Does params.yaml fit the table? Its SQL is tried before any stage runs; its lengths and counts, after ingest.

A fault in an expression, the label or features.sql needs no row to be seen: all SQL runs on empty tables.

Whether lengths and counts fit the row rate shows in the event times alone, before features, search and training are
spent. Each that does not fit is named with a value that would. Rows can only get fewer on the way (quarantine, missing
labels), so what is refused here would have failed, or been held, after all of it. The programs of ingest and tune ask,
so `dvc repro` by hand is checked as a retrain is. Ingest warns, since scoring and a look at clean data need no holdout;
tune refuses.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from tasks import log
from tasks.data import expressions, featuresql, manifest, periods, timeline
from tasks.params import Params, spell
from tasks.runtime import stage
from tasks.runtime.sql import parquet, quote

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
ALWAYS = periods.Period("all", datetime(1970, 1, 1), datetime(2200, 1, 1))
DRIFT_WINDOWS = 3  # without overlap, that drift's thresholds need of a history (tasks/monitoring/drift.py)


def dry_run(p: Params, folder: Path = Path()) -> list[str]:
    """The names of the features. Raises ValueError for SQL that cannot run over tables of the contract's types."""
    with stage.connect(p) as con:
        for name, source in p.sources.items():  # in the order of params.yaml: SQL may use the tables above
            kinds = {column: rule.type for column, rule in p.contract[name].columns.items()}
            delivered = [column for column in kinds if column not in source.derive]
            values = ", ".join(f"CAST(NULL AS {kinds[column]}) AS {quote(column)}" for column in delivered)
            plan = expressions.plan_expressions(con, name, source, f"SELECT {values or '1'} WHERE FALSE", delivered)
            con.execute(f"CREATE TEMP TABLE {quote(name)} AS {plan.sql}")
    with featuresql.connect(p) as con:
        for name in p.contract:
            featuresql.create_table(con, p, name, [], where="TRUE")
        featuresql.create_spine(con, p, ALWAYS)
        computed = featuresql.compute_features(con, p, (folder / featuresql.SQL).read_text(encoding="utf-8"))
        return list(computed.column_names)


@dataclass(frozen=True)
class Problem:
    """A setting that does not fit the table. `stops`: a retrain would come to nothing; else one feature stays off."""

    setting: str
    message: str
    stops: bool


def read_event_times(p: Params, root: Path) -> timeline.Times:
    """The event times of the spine's raw rows in a workspace, in order. Outliers are left out."""
    files = [path for _, path in periods.list_files(root / p.paths.raw / p.spine.table)]
    if not files:
        return np.zeros(0, dtype="datetime64[us]")
    with stage.connect(p) as con:
        rows = con.sql(f"SELECT event_time FROM {parquet(files)} WHERE event_time IS NOT NULL")
        # Not by way of pyarrow, whose to_numpy imports pandas: 0.2 s of a program that has nothing to do.
        return np.sort(np.asarray(rows.fetchnumpy()["event_time"], "datetime64[us]"))


def find_problems(times: timeline.Times, as_of: datetime, p: Params) -> list[Problem]:
    """What does not fit the rows of these event times (n, in order), those that stop a retrain first."""
    if not len(times):
        return []
    times = times.astype("datetime64[us]")
    return sorted(
        [*_check_holdout(times, as_of, p), *_check_window(times, as_of, p)], key=lambda problem: not problem.stops
    )


def check_workspace(p: Params, root: Path) -> list[Problem]:
    """What does not fit the raw rows of a workspace, as of its manifest's as_of.

    Nothing where there are no raw rows, as after `dvc pull features` on another machine.
    """
    raw = root / p.paths.raw
    if not (raw / manifest.NAME).exists():
        return []
    return find_problems(read_event_times(p, root), manifest.RawManifest.read(raw).as_of, p)


def warn(p: Params) -> None:
    """Log what tune will refuse."""
    if reason := explain_refusal(check_workspace(p, Path())):
        log.warning("%s", reason)


def refuse(p: Params) -> None:
    """Raises ValueError where params.yaml does not fit the table; logs what a retrain can do without."""
    problems = check_workspace(p, Path())
    if reason := explain_refusal(problems):
        raise ValueError(reason)
    for problem in problems:
        log.warning("%s", problem.message)


def explain_refusal(problems: list[Problem]) -> str | None:
    """The sentence that refuses a retrain; None where nothing stops it."""
    stopping = [problem.message for problem in problems if problem.stops]
    return "\n".join(["params.yaml does not fit the table:", *stopping]) if stopping else None


def _check_holdout(times: timeline.Times, as_of: datetime, p: Params) -> Iterator[Problem]:
    end = as_of - p.label.deadline
    start, first = end - p.split.holdout, times[0].item()
    if first >= start:
        room = end - first
        way = f"Set split.holdout to {_round(room / 2)} or less" if room > 2 * HOUR else "Wait for more data"
        yield Problem(
            "split.holdout",
            f"split.holdout is {spell(p.split.holdout)}, but the rows reach from {first} to {end} (label.deadline "
            f"before as_of), so nothing is left to train on. {way}.",
            stops=True,
        )
        return
    holdout = _between(times, start, end)
    if len(holdout) < p.gate.min_rows:
        yield _name_few("gate.min_rows", p.gate.min_rows, times, end, len(holdout), p)
    blocks = len(np.unique(holdout.astype(np.int64) // int(p.gate.block / timedelta(microseconds=1))))
    if blocks < p.gate.min_blocks:
        yield Problem(
            "gate.min_blocks",
            f"gate.min_blocks is {p.gate.min_blocks}, but split.holdout ({spell(p.split.holdout)}) holds rows in "
            f"{blocks} blocks of gate.block ({spell(p.gate.block)}). Set split.holdout to "
            f"{_round(p.gate.min_blocks * p.gate.block, math.ceil)} or more, or use shorter blocks.",
            stops=True,
        )
    if p.evaluate.slices and len(holdout) < p.evaluate.slice_rows:
        yield _name_few("evaluate.slice_rows", p.evaluate.slice_rows, times, end, len(holdout), p)
    yield from _check_folds(times, first, start - p.label.deadline, p)


def _check_folds(times: timeline.Times, first: datetime, end: datetime, p: Params) -> Iterator[Problem]:
    """`end`: where the twin's training ends. Each fold needs rows to train on, which end a deadline before it."""
    spans = timeline.place_folds(times, end, folds=p.split.folds, fold=p.split.fold)
    rows = [len(_between(times, span.begin, span.end)) for span in spans]
    trained = len(_between(times, first, spans[0].begin - p.label.deadline))
    if trained and all(rows):
        return
    gaps = [gap.end - gap.begin for gap in timeline.find_gaps(times, longer=p.split.fold) if gap.end <= end]
    room = end - p.label.deadline - first - sum(gaps, timedelta())
    way = (
        f"Set split.fold to {_round(room / (p.split.folds + 1))} or less"
        if room > (p.split.folds + 1) * HOUR
        else "Use fewer folds"
    )
    yield Problem(
        "split.folds",
        f"split.folds: {p.split.folds} folds of split.fold {spell(p.split.fold)} before the holdout begin "
        f"{spans[0].begin}, with {trained:,} rows to train on before them and {min(rows):,} in the emptiest; the rows "
        f"begin {first}. {way}, or shorten split.holdout.",
        stops=True,
    )


def _check_window(times: timeline.Times, as_of: datetime, p: Params) -> Iterator[Problem]:
    """The newest window or the mean of all, whichever holds more: a table that is just quiet this week fits."""
    extent = max(as_of - times[0].item(), HOUR)
    rate_s = len(times) / extent.total_seconds()
    rows = max(len(_between(times, as_of - p.monitor.window, as_of)), int(rate_s * p.monitor.window.total_seconds()))
    if rows < p.policy.min_rows:
        yield Problem(
            "policy.min_rows",
            f"policy.min_rows is {p.policy.min_rows:,}, but a monitor.window of {spell(p.monitor.window)} holds about "
            f"{rows:,} rows, so no alarm ever asks for a retrain. Set policy.min_rows to {max(rows, 1):,} or less, or "
            f"monitor.window to {_round(timedelta(seconds=p.policy.min_rows / rate_s), math.ceil)}.",
            stops=False,
        )
    history = extent - p.split.holdout - p.label.deadline
    if history < DRIFT_WINDOWS * p.monitor.window:
        yield Problem(
            "monitor.window",
            f"monitor.window is {spell(p.monitor.window)}, but the history before the holdout spans "
            f"{_round(max(history, HOUR))}, and drift needs {DRIFT_WINDOWS} windows of it, so drift stays off. Set "
            f"monitor.window to {_round(max(history / DRIFT_WINDOWS, HOUR))} or less, or wait for more data.",
            stops=False,
        )


def _name_few(setting: str, wanted: int, times: timeline.Times, end: datetime, rows: int, p: Params) -> Problem:
    """The holdout has fewer rows than the setting wants. Without slices a retrain goes on."""
    before, way = times[times < np.datetime64(end)], f"{setting} to {max(rows, 1):,} or less"
    if len(before) > wanted:
        way = f"split.holdout to {_round(end - before[-wanted].item() + HOUR, math.ceil)}, or {way}"
    stops = setting == "gate.min_rows"
    return Problem(
        setting,
        f"{setting} is {wanted:,}, but split.holdout ({spell(p.split.holdout)}) holds {rows:,} rows. Set {way}."
        + ("" if stops else " No slice is reported."),
        stops=stops,
    )


def _between(times: timeline.Times, start: datetime, end: datetime) -> timeline.Times:
    low, high = np.searchsorted(times, np.array([start, end], dtype="datetime64[us]"))
    return times[low:high]


def _round(length: timedelta, to_whole: Callable[[float], int] = math.floor) -> str:
    """A length in whole days, or in whole hours up to two days; one at least."""
    unit = DAY if length > 2 * DAY else HOUR
    return spell(max(to_whole(length / unit), 1) * unit)
