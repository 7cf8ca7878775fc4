"""pairs: the rows on which champion and challenger are compared, with a score of each.

A subject is one row to predict, under whatever id it was asked. Every subject counts that both arms scored of the same
features. Where only one did, or it knew newer features, the other arm scores what the journal holds; but only where
both versions make their features alike, by the same features.sql and the same sections `features` and `spine`. What
another recipe calls by the same name may mean something else.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.promotion.contest import align_classes
from tasks.serving import predictions, schema
from tasks.training.model import Floats, Model, Spec

MIN_COVERED = 0.99  # of the champion's rows; which ones a challenger misses may be no accident
SAME_REQUEST = timedelta(minutes=1)  # between the answer to a request and the challenger's score of it in the shadow


@dataclass(frozen=True)
class Arm:
    """A version's model, and its journalled predictions: for each subject the newest."""

    model: Model
    rows: pa.Table
    recipe: tuple[Any, ...] | None = None  # of its features; None where it is not stored

    @cached_property
    def places(self) -> dict[str, int]:
        """The row of each subject."""
        return {subject: place for place, subject in enumerate(self.rows["subject"].to_pylist())}

    def shares_recipe(self, other: "Arm") -> bool:
        return self.recipe is not None and self.recipe == other.recipe

    def can_score(self, other: "Arm") -> bool:
        """Whether the features that the other arm left in the journal are this one's own."""
        return self.shares_recipe(other) and explain_mismatch(self.model.spec, other.model.spec) is None

    def take(self, subjects: Sequence[str]) -> pa.Table:
        return self.rows.take(pa.array([self.places[name] for name in subjects], pa.int64()))

    def list_scores(self, subjects: Sequence[str], rows: pa.Table, *, own: Collection[str]) -> Floats:
        """The journalled scores of the subjects in `own`, and new ones of the others, from the features in `rows`."""
        scores = self.model.predict(predictions.features_of(rows, self.model.spec)).astype(np.float64)
        mine = [place for place, name in enumerate(subjects) if name in own]
        if mine:
            scores[mine] = self.take([subjects[place] for place in mine])["score"].to_pylist()
        return scores


@dataclass(frozen=True)
class Selection:
    """The subjects to compare, by whose row it is.

    Attributes:
        both: both arms scored the same features.
        champions: the champion's rows, which the challenger scores again.
        challengers: the challenger's rows, which the champion scores again.
        answered: the champion's rows since the challenger first scored any.
        covered: how many of these are compared.
    """

    both: list[str]
    champions: list[str]
    challengers: list[str]
    answered: int
    covered: int

    def explain_gap(self) -> str | None:
        """Why nothing may be concluded, if the challenger has too little of what the champion answered."""
        if self.covered >= MIN_COVERED * self.answered:
            return None
        return (
            f"The challenger scored {self.covered:,} of the champion's {self.answered:,} rows of the same features "
            f"({self.covered / self.answered:.1%}, and {MIN_COVERED:.0%} are needed), and the others cannot be scored "
            "again: see whether the API drops some of them, or let the challenger answer in the shadow."
        )


@dataclass(frozen=True)
class Pairs:
    """The labelled rows (n) with a score of each arm."""

    rows: pa.Table
    codes: Floats  # the labels as numbers
    champion: Floats
    challenger: Floats
    both: int  # rows that both scored when they were asked


def select_subjects(champion: Arm, challenger: Arm) -> Selection:
    """The subjects to compare. Where the arms last scored different features, the newer row is compared if the other
    arm can score it, and none otherwise."""
    shared = [name for name in champion.places if name in challenger.places]
    both = {name for name, same in zip(shared, _has_same_features(champion, challenger, shared), strict=True) if same}
    made_at = [arm.take(shared)["made_at"].to_pylist() for arm in (champion, challenger)]
    newer = {name for name, old, new in zip(shared, *made_at, strict=True) if new > old}
    champions, challengers = [], []
    if challenger.can_score(champion):
        champions = [name for name in champion.places if name not in both | newer]
    if champion.can_score(challenger):
        challengers = [
            name for name in challenger.places if name not in both and (name in newer or name not in champion.places)
        ]
    first = min(challenger.rows["event_time"].to_pylist(), default=datetime.min)
    times = champion.rows["event_time"].to_pylist()
    answered = {name for name, place in champion.places.items() if times[place] >= first}
    covered = answered & (both | {*champions, *challengers})
    return Selection([name for name in shared if name in both], champions, challengers, len(answered), len(covered))


def _has_same_features(champion: Arm, challenger: Arm, subjects: Sequence[str]) -> NDArray[np.bool_]:
    """Whether both scored each subject of the same features.

    Where their recipes differ, features of one name may differ too. Then it is enough that both were asked at one time.
    """
    if not subjects:
        return np.zeros(0, dtype=bool)
    one, other = (arm.take(subjects) for arm in (champion, challenger))
    shared = [feature.name for feature in champion.model.spec.features if feature in challenger.model.spec.features]
    equal = np.full(len(subjects), bool(shared))
    for name in shared:
        equal &= _equals(one[f"{schema.FEATURE}{name}"], other[f"{schema.FEATURE}{name}"])
    if champion.shares_recipe(challenger):
        return equal
    apart = np.abs(one["made_at"].to_numpy() - other["made_at"].to_numpy())
    return np.asarray(equal | (apart <= np.timedelta64(SAME_REQUEST)))


def _equals(one: Any, other: Any) -> NDArray[np.bool_]:
    """Where two columns hold the same. What is missing in both is the same."""
    missing = pc.and_(pc.is_null(one, nan_is_null=True), pc.is_null(other, nan_is_null=True))
    equal = pc.or_(pc.fill_null(pc.equal(one, other), False), missing)
    return np.asarray(equal.to_numpy(), dtype=bool)


def pair_rows(selection: Selection, champion: Arm, challenger: Arm, *, outcomes: Mapping[str, Any]) -> Pairs | None:
    """The selected rows that have an outcome, with each arm's scores; None where there are none."""
    by_champion = [*selection.both, *selection.champions]
    parts = [arm.take(names) for arm, names in ((champion, by_champion), (challenger, selection.challengers)) if names]
    if not parts:
        return None
    spec = join_classes(champion.model.spec, challenger.model.spec)
    subjects = np.array([*by_champion, *selection.challengers], dtype=object)
    codes = spec.encode_label(np.array([outcomes.get(name) for name in subjects], dtype=object))
    labelled = ~np.isnan(codes)  # a class that neither has ever seen cannot be predicted by them
    if not labelled.any():
        return None
    rows, names = pa.concat_tables(parts).filter(pa.array(labelled)), list(subjects[labelled])
    own = ({*by_champion}, {*selection.both, *selection.challengers})
    scores = [
        align_classes(spec, arm.model.spec.classes, arm.list_scores(names, rows, own=mine))
        for arm, mine in zip((champion, challenger), own, strict=True)
    ]
    return Pairs(rows, codes[labelled], scores[0], scores[1], both=len({*selection.both}.intersection(names)))


def join_classes(champion: Spec, challenger: Spec) -> Spec:
    """The champion's spec, with the classes behind its own that the challenger alone knows."""
    more = [name for name in challenger.classes if name not in champion.classes]
    return replace(champion, classes=(*champion.classes, *more))


def latest_labels(outcomes: pa.Table, made: pa.Table) -> dict[str, Any]:
    """The label of each subject: of several, whichever prediction of `made` it is of, the one journalled last."""
    by_entry = dict(zip(*(made[name].to_pylist() for name in ("entry", "subject")), strict=True))
    named = [
        (row["subject"] or by_entry.get(row["prediction"]), row["label"]) for row in predictions.in_order(outcomes)
    ]
    return {subject: label for subject, label in named if subject}


def explain_mismatch(spec: Spec, other: Spec) -> str | None:
    """Why a model cannot score what is journalled of another's predictions; None where it can."""
    if missing := sorted(feature.name for feature in set(spec.features) - set(other.features)):
        return f"the journal does not hold its features {missing}, or holds them as another kind"
    if spec.task != other.task:
        return f"it answers another question ({spec.task}, not {other.task})"
    return None
