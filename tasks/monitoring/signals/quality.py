"""quality: whether the rows are whole: their values, how many came, and how many of the mature ones have a label.

Each check is a function of the window and the champion; this module's table lists them.
"""

from collections.abc import Callable
from typing import NamedTuple

from tasks.monitoring.drift import LEAST_WINDOWS, QUALITY_SLACK
from tasks.monitoring.signal import Signal
from tasks.monitoring.window import Watched, Window
from tasks.params import spell
from tasks.training import labels

SHOWN_FAULTS = 5  # in a sentence


class Check(NamedTuple):
    sentence: str
    alarm: bool


def measure_quality(window: Window, watched: Watched) -> Signal:
    """An alarm when any check fails. `value` counts the columns' faults."""
    drift = window.drift
    faults = _find_faults(window)
    results = [check(window, watched) for check in CHECKS]
    return Signal(
        "quality",
        window.since,
        window.as_of,
        watched.version.number,
        drift.rows,
        alarm=any(result.alarm for result in results),
        message=" ".join(result.sentence for result in results if result.sentence),
        value=float(len(faults)) if drift.columns or faults else None,
        reference=0.0,
        detail={"faults": faults},
    )


def check_values(window: Window, _watched: Watched) -> Check:
    """Missing, new and out-of-range values beyond the history's worst window, and columns that are gone."""
    faults = _find_faults(window)
    quiet = f"nothing missing, new or out of range by {QUALITY_SLACK:.0%} more than in any window of its history"
    unseen = f"no column was looked at, without {LEAST_WINDOWS} windows of monitor.window in its history, or any row"
    shown = "; ".join(faults[:SHOWN_FAULTS]) or (quiet if window.drift.columns else unseen)
    return Check(f"Quality: {shown}.", alarm=bool(faults))


def check_volume(window: Window, watched: Watched) -> Check:
    """Fails when no rows came, or fewer than half as many as in the window before. A first champion predicts no rows
    that it was trained on: where none has come since, and none was predicted before, it may be too young."""
    length, began = spell(window.as_of - window.since), watched.version.learnt_until
    if not window.rows and not window.rows_before and began and began > window.since:
        return Check(f"No row has come since version {watched.version.number}'s own time, {began}.", alarm=False)
    sentence = (
        f"{window.rows:,} rows came, {window.rows_before:,} in the monitor.window ({length}) before; fewer than half "
        "as many alarm."
    )
    return Check(sentence, alarm=window.rows == 0 or window.rows < window.rows_before / 2)


def check_labels(window: Window, watched: Watched) -> Check:
    """Fails when surely fewer mature rows have a label than in any window of the history, or hardly any rows of the age
    by which most labels have come there."""
    profile = watched.profile
    fault = labels.find_label_fault(window.mature.is_labelled, profile.labelled)
    if fault is None and (early := profile.early_labels):
        fault = labels.find_label_fault(window.early.is_labelled, early.least, age=early.age)
    return Check(f"{fault}." if fault else "", alarm=fault is not None)


CHECKS: tuple[Callable[[Window, Watched], Check], ...] = (check_values, check_volume, check_labels)


def _find_faults(window: Window) -> list[str]:
    faults = [f"{column.name}: {', '.join(column.faults)}" for column in window.drift.faulty]
    return faults + [f"{name} is gone, or holds another type" for name in window.drift.gone]
