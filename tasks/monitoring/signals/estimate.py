"""estimate: the log loss to expect, from the scores alone, while labels are missing."""

import numpy as np

from tasks.monitoring.signal import Signal
from tasks.monitoring.window import Watched, Window
from tasks.promotion.contest import CLIP
from tasks.training.holdout import CANDIDATE
from tasks.training.model import Floats


def measure_estimate(window: Window, watched: Watched) -> Signal | None:
    """What the log loss is if the scores are as well calibrated as they were. It cannot see that the question has
    changed, and never alarms. None for numbers, whose scores tell no spread."""
    rows, holdout = window.recent, watched.holdout
    if watched.model.spec.task == "regression" or not len(rows.scores):
        return None
    now, before = (float(expected_loss(scores).mean()) for scores in (rows.scores, holdout.predictions[CANDIDATE]))
    message = (
        f"Estimated log loss {now:.4f} {rows.span}, from the scores alone, without labels; the same estimate was "
        f"{before:.4f} on the holdout, where {watched.at_promotion.value:.4f} was measured."
    )
    return Signal(
        "estimate",
        rows.since,
        window.as_of,
        watched.version.number,
        len(rows.scores),
        alarm=False,
        message=message,
        value=now,
        reference=before,
    )


def expected_loss(scores: Floats) -> Floats:
    """The entropy of each calibrated score, (n,) or (n, classes), in nats: its log loss on average."""
    shares = np.stack([scores, 1 - scores], axis=1) if scores.ndim == 1 else scores
    shares = np.clip(shares.astype(np.float64), CLIP, 1)
    return np.asarray(-(shares * np.log(shares)).sum(axis=1))
