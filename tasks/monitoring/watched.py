"""watched: the champion, and what its windows are compared with, from the registry."""

import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.monitoring.level import Level, measure_level
from tasks.params import Params
from tasks.promotion.contest import row_losses
from tasks.promotion.registry import Registry, Version
from tasks.training.holdout import CANDIDATE, Holdout
from tasks.training.model import Floats, Model
from tasks.training.profile import Profile

FILES = ("model.ubj", "twin.ubj", "reports/profile.json", "reports/holdout.parquet", "reports/reference.parquet")


@dataclass(frozen=True)
class Watched:
    """The champion and its history."""

    version: Version
    model: Model
    twin: Model  # trained without the holdout: what the gate judged
    p: Params
    profile: Profile
    holdout: Holdout
    holdout_losses: Floats  # the twin's, row by row
    at_promotion: Level  # the same as one figure
    sample: pa.Table  # rows of the history with their scores, for the report

    @property
    def window(self) -> timedelta:
        """Thresholds hold for windows of the length that they come from, whatever params.yaml says by now."""
        return self.profile.window


def load_watched(p: Params, registry: Registry, champion: Version) -> Watched:
    """What the registry holds of the champion."""
    with tempfile.TemporaryDirectory() as scratch:
        return read_watched(p, champion, *(registry.runs.fetch(champion.run_id, name, Path(scratch)) for name in FILES))


def read_watched(p: Params, version: Version, *files: Path) -> Watched:
    """The same from FILES, as train and evaluate write them.

    Raises:
        ValueError: a file is in another format.
    """
    model, twin = (Model.load(path) for path in files[:2])
    profile, holdout, sample = Profile.load(files[2]), Holdout.load(files[3]), pq.read_table(files[4])
    codes = model.spec.encode_label(holdout.label)
    losses = row_losses(codes, holdout.predictions[CANDIDATE], metric=p.gate.metric)
    level = measure_level(losses, holdout.times, p.gate)
    return Watched(version, model, twin, p, profile, holdout, losses, level, sample)
