"""estimate: the log loss to expect, from the scores alone, while labels are missing."""

from tasks.monitoring.excess import expect_log_loss
from tasks.monitoring.signal import Signal
from tasks.monitoring.window import Watched, Window
from tasks.training.holdout import CANDIDATE


def measure_estimate(window: Window, watched: Watched) -> Signal | None:
    """What the log loss is if the scores are as well calibrated as they were. It cannot see that the question has
    changed, and never alarms. None for numbers, whose scores tell no spread."""
    rows, holdout = window.recent, watched.holdout
    if watched.model.spec.task == "regression" or not len(rows.scores):
        return None
    now, before = (float(expect_log_loss(scores).mean()) for scores in (rows.scores, holdout.predictions[CANDIDATE]))
    message = (
        f"Estimated log loss {now:.4f} {rows.span}, from the scores alone, without labels; the same estimate was "
        f"{before:.4f} on the holdout, where {watched.at_promotion.excess.loss:.4f} was measured. It never alarms."
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
