"""predecessor: would the version before the champion have done better? Rows that the champion predicted → a signal.

The predecessor scores the features that the journal holds of the champion's predictions, and the gate's own test
compares both on the outcomes that are mature. Neither has been trained on these rows. All looks at one champion share
one error budget, as its candidates do, so a champion that is no worse is rolled back at most at the gate's rate,
however often the monitor looks. The rule is always `superior`, and only the loss decides: what served before may serve
again. Nothing is rolled back here: tasks/promotion/changes.py does that.
"""

from collections.abc import Iterable
from datetime import datetime

import numpy as np
import pyarrow as pa

from tasks import log
from tasks.monitoring.pairs import explain_mismatch
from tasks.monitoring.signal import Signal, list_looks, make_look
from tasks.monitoring.window import select_unseen
from tasks.params import Params
from tasks.promotion import contest, gate, ledger, recipe
from tasks.promotion.registry import Registry, Version
from tasks.promotion.verdict import Verdict, describe_gain, hold
from tasks.serving import predictions
from tasks.serving.journal import Journal
from tasks.training.model import Floats, Model, Spec

PREFIX = "predecessor-"  # of the decision of a rollback that came of a look


def compare(
    p: Params, *, journal: Journal, registry: Registry, champion: Version, as_of: datetime, looks: int
) -> Signal | None:
    """A signal that alarms when the predecessor would surely have done better.

    Args:
        looks: How often this champion was compared with its predecessor before.

    Returns:
        None where no predecessor may serve, or where the journal lacks features that it needs.
    """
    before = registry.find_predecessor(champion)
    if before is None:
        return None
    serving, earlier = recipe.fetch_model(registry, champion), recipe.fetch_model(registry, before)
    if reason := explain_mismatch(earlier.spec, serving.spec):
        log.info("version %s cannot be compared with version %s: %s", before.number, champion.number, reason)
        return None
    rows, codes = read_mature(journal, champion, serving.spec, until=as_of - p.label.deadline)
    verdict = hold("No outcome of its predictions is mature yet.")
    if len(codes):
        verdict = _judge(p, rows, codes, serving, earlier, looks=looks)
    return make_look(
        "predecessor",
        verdict,
        version=champion.number,
        since=rows["event_time"][0].as_py() if len(codes) else as_of,
        as_of=as_of,
        alarm=verdict.promotes,
        message=_describe(verdict, champion, before),
        detail={"predecessor": before.number},
    )


def read_mature(journal: Journal, champion: Version, spec: Spec, *, until: datetime) -> tuple[pa.Table, Floats]:
    """The champion's predictions of event_time < until that have an outcome, and these as numbers; of several outcomes
    of one row, the latest."""
    since = champion.learnt_until or datetime.min
    made = select_unseen(journal.read("predictions", since=since, until=until), champion)
    rows = predictions.last_of_each_subject(made)
    labels = predictions.latest_outcomes(predictions.read_outcomes(journal, since=since)).labels_of(rows)
    codes = spec.encode_label(np.array(labels, dtype=object))
    has_class = ~np.isnan(codes)  # neither can predict a class that the champion has never seen
    return rows.filter(has_class), codes[has_class]


def _judge(p: Params, rows: pa.Table, codes: Floats, serving: Model, earlier: Model, *, looks: int) -> Verdict:
    """The gate's verdict on the predecessor, as a candidate that costs nothing."""
    settings = p.gate.model_copy(update={"rule": "superior"})
    champion = np.array(rows["score"].to_pylist(), dtype=np.float64)
    again = earlier.predict(predictions.features_of(rows, earlier.spec))
    candidate = contest.align_classes(serving.spec, earlier.spec.classes, again)
    times = rows["event_time"].to_numpy()
    compared = contest.compare_predictions(codes, candidate, champion, times=times, gate=settings)
    return gate.judge_contest(compared, gate=settings, looks=looks)


def _describe(verdict: Verdict, champion: Version, before: Version) -> str:
    name = f"version {before.number}, which served before version {champion.number},"
    rows = f"{verdict.figures.get('rows', 0):,} mature rows"
    if not verdict.counts_as_look:
        return f"Nothing can be said of {name} on {rows}. {verdict.reasons[0]}"
    result = "is better than it" if verdict.promotes else "is not surely better than it"
    shared = "" if verdict.promotes else " All looks at this champion share gate.level."
    return f"On {rows} {name} {result}: {describe_gain(verdict.figures)}.{shared}"


# --- what a look leads to ------------------------------------------------------------------------------------------


def find_pending(signals: Iterable[Signal], version: int) -> Signal | None:
    """The look by which this champion is to be rolled back, if there is one.

    It stands until somebody has acted on it: when a run was killed between the look and the rollback, the next run does
    the rollback.
    """
    return next((look for look in list_looks(signals, version, kind="predecessor") if look.alarm), None)


def list_rollbacks(entries: Iterable[ledger.Entry]) -> list[ledger.Entry]:
    """The ledger's rollbacks that came of a look."""
    return [entry for entry in entries if entry.mark == "rolled back" and entry.decision.startswith(PREFIX)]


def decision_id(look: Signal) -> str:
    """The id of the rollback that answers this look."""
    return f"{PREFIX}{look.version}-{look.window_end:%Y%m%dT%H%M%S}"
