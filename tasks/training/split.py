"""Time → training, folds and holdout. Pure: masks over rows from their event times.

    |------ training of the twin ------|D|------- holdout H -------|D| as_of
    |---- fold 1 train ----|D|- valid -|
    |--------- fold 2 train ---------|D|- valid -|

D is label.deadline, the longest that a label may take. A row counts for training up to a cut only when its event lies
at least D before the cut: its label was then known by the cut if it ever was, and the rows next to the cut are no
biased sample of those that came early. The same D keeps as_of away from the holdout and each fold from its validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks import log
from tasks.data import timeline
from tasks.data.timeline import Span, Times
from tasks.params import Split, spell
from tasks.training import model

Mask = NDArray[np.bool_]
MEND_CLASSES = "Use fewer or longer folds, or merge rare classes in label.expression."


@dataclass(frozen=True)
class Fold:
    train: Mask
    valid: Mask


def find_holdout(as_of: datetime, split: Split, *, deadline: timedelta) -> Span:
    """The last `split.holdout` of rows that are mature at as_of. All that the gate's twins see lies before it."""
    return Span(as_of - deadline - split.holdout, as_of - deadline)


def select_between(event_time: Times, start: datetime | None, end: datetime) -> Mask:
    """start <= event_time < end."""
    inside: Mask = event_time < np.datetime64(end)
    return inside if start is None else inside & (event_time >= np.datetime64(start))


def select_training(event_time: Times, cut: datetime, split: Split, *, deadline: timedelta) -> Mask:
    """The rows whose labels were known at `cut`, if ever, no further back than split.window."""
    start = cut - split.window if split.window else None
    return select_between(event_time, start, cut - deadline)


def select_holdout(event_time: Times, span: Span, labelled: Mask) -> Mask:
    """The labelled rows of the holdout. Raises ValueError when history does not reach behind it, or holds no label."""
    inside: Mask = select_between(event_time, span.begin, span.end) & labelled
    if len(event_time) and np.datetime64(span.begin) <= event_time.min():
        raise ValueError(
            f"`split.holdout < history` must hold, but the holdout begins {span.begin} and the rows on "
            f"{event_time.min()}. Shorten split.holdout, or wait for more data."
        )
    if not inside.any():
        raise ValueError(f"no labelled row lies in the holdout {span.begin} to {span.end}: check label and known_at")
    return inside


def make_folds(event_time: Times, cut: datetime, split: Split, *, deadline: timedelta, labelled: Mask) -> list[Fold]:
    """Expanding folds that end where training up to `cut` ends, oldest first; a pause of weeks counts in none of them.

    Raises ValueError when history is too short for them, or a fold lies where there are no rows.
    """
    listed = []
    spans = timeline.place_folds(event_time[labelled], cut - deadline, folds=split.folds, fold=split.fold)
    for number, span in enumerate(spans, 1):
        train = select_training(event_time, span.begin, split, deadline=deadline) & labelled
        valid = select_between(event_time, span.begin, span.end) & labelled
        if not train.any() or not valid.any():
            raise ValueError(
                f"fold {number} of {split.folds} has {train.sum()} training and {valid.sum()} validation rows from "
                f"{span.begin} to {span.end}: {_way_out(event_time[labelled], span, split, deadline=deadline)}"
            )
        listed.append(Fold(train, valid))
    return listed


def _way_out(labelled: Times, span: Span, split: Split, *, deadline: timedelta) -> str:
    """Of a fold that lacks rows: is the history too short, or is there a gap where its rows should be?"""
    earlier = select_between(labelled, None, span.begin - deadline)
    if not earlier.any():
        return (
            f"`split.folds * split.fold` ({spell(split.folds * split.fold)}) must leave history before {span.begin}. "
            "Use fewer or shorter folds, or a shorter split.holdout."
        )
    if not select_between(labelled, span.begin, span.end).any():
        gap = timeline.find_longest_gap(labelled)
        return (
            f"labelled rows lie up to {spell(gap.days)} apart (from {gap.begin} to {gap.end}). Set split.fold to "
            f"{spell(gap.days)} or more."
        )
    gap = Span(labelled[earlier].max().astype("datetime64[us]").item(), span.begin)
    return (
        f"no labelled row lies between {gap.begin} and {gap.end} less label.deadline. Set split.window to "
        f"{spell(gap.days)} or more, or to null."
    )


def keep_trained_classes(folds: Sequence[Fold], label: NDArray[Any], classes: Sequence[Any]) -> list[Fold]:
    """The folds, each validated on rows of the classes that its training holds.

    A class may be younger than a fold: its rows there are left out, and a fold that trains on one class alone is left
    out whole. Both are logged. Raises ValueError when no fold is left, or a fold's validation holds one class alone.
    """
    usable: list[Fold] = []
    for number, fold in enumerate(folds, 1):
        if len(present := model.list_labels(label[fold.valid])) < 2:
            raise ValueError(f"the validation rows of fold {number} are all of one class, {present}. {MEND_CLASSES}")
        missing = sorted(set(classes).difference(model.list_labels(label[fold.train])))
        if len(classes) - len(missing) < 2:
            log.warning("fold %s is left out: its training rows hold none of the class %s", number, missing)
            continue
        unknown = fold.valid & np.isin(label, missing)
        if missing:
            log.warning(
                "the training rows of fold %s hold none of the class %s: %s of its validation rows are left out",
                number,
                missing,
                int(unknown.sum()),
            )
        usable.append(Fold(fold.train, fold.valid & ~unknown) if missing else fold)
    if not usable:
        missing = sorted(set(classes).difference(model.list_labels(label[folds[0].train])))
        raise ValueError(f"the training rows of fold 1 hold none of the class {missing}. {MEND_CLASSES}")
    return usable
