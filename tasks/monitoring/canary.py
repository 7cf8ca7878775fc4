"""canary: champion and challenger on the outcomes that are mature → a signal, and what is done about it.

Both are always compared on the same rows (pairs.py), and on none that either was trained on. The gate decides, with the
share of the error budget that is left after the looks so far. What the gate's own rule, costs and slices would promote
is PROMOTE. Surely worse in loss alone is REJECT, which is for ever. Otherwise the canary goes on. Where no API knows of
the challenger, the champion's journalled rows are compared all the same, if the recipes are alike.
"""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks import log, params
from tasks.monitoring.pairs import Arm, Pairs, Selection, latest_labels, pair_rows, select_subjects
from tasks.monitoring.signal import Signal, list_looks, make_look
from tasks.promotion import changes, contest, gate, judge, ledger, recipe
from tasks.promotion.registry import Registry, Version
from tasks.promotion.verdict import Outcome, Verdict, describe_gain, hold
from tasks.serving import predictions, schema
from tasks.serving.journal import Journal
from tasks.training.model import Model

PREFIX = "canary-"  # of the decision that ends a canary by a look
COMPARISONS = {
    ("superior", "PROMOTE"): "is better than",
    ("superior", "REJECT"): "is worse than",
    ("superior", "HOLD"): "is not surely better or worse than",
    ("non_inferior", "PROMOTE"): "is no worse than",
    ("non_inferior", "REJECT"): "is worse than",
    ("non_inferior", "HOLD"): "is neither surely as good as nor surely worse than",
}


def compare(
    p: params.Params,
    *,
    journal: Journal,
    registry: Registry,
    champion: Version,
    begun: ledger.Entry,
    as_of: datetime,
    looks: int,
) -> Signal | None:
    """A signal that alarms when the challenger has won or lost.

    Args:
        begun: The ledger's entry that put the challenger up.
        looks: How often this champion was compared with a challenger before.

    Returns:
        None where the challenger is the champion by now, or answers another question.
    """
    assert begun.version is not None
    if begun.version == champion.number:
        return None
    versions = (champion, registry.read_version(begun.version))
    models = [recipe.fetch_model(registry, version) for version in versions]
    if models[0].spec.task != models[1].spec.task:
        log.warning("the challenger answers another question (%s, not %s)", models[1].spec.task, models[0].spec.task)
        return None
    since, until = max(begun.as_of, *map(_unseen_from, versions, models)), as_of - p.label.deadline
    made = journal.read("predictions", since=since, until=until, shadows=True)
    arms = [
        Arm(
            model,
            predictions.last_of_each_subject(predictions.select_version(made, version.number)),
            _fetch_feature_recipe(registry, version),
        )
        for version, model in zip(versions, models, strict=True)
    ]
    selection = select_subjects(*arms)
    gap = selection.explain_gap()
    outcomes = latest_labels(predictions.read_outcomes(journal, since=since), made)
    pairs = None if gap else pair_rows(selection, *arms, outcomes=outcomes)
    verdict = hold(gap or "No row that both can be compared on has a mature outcome yet.")
    if pairs:
        verdict = judge_pairs(p, pairs, models[1], looks=looks)
    return make_look(
        "challenger",
        verdict,
        version=champion.number,
        since=since,
        as_of=as_of,
        alarm=verdict.outcome != "HOLD",
        message=_describe(verdict, selection, pairs, champion=champion.number, challenger=begun.version),
        detail={
            "challenger": begun.version,
            "canary": begun.decision,
            "both": pairs.both if pairs else 0,
            "answered": selection.answered,
            "covered": selection.covered,
            "answers": [len(arm.places) for arm in arms],
        },
    )


def _unseen_from(version: Version, model: Model) -> datetime:
    """The model was trained on no row from then on."""
    until = datetime.fromisoformat(model.spec.until) if model.spec.until else datetime.min
    return max(version.as_of or datetime.min, until)


def _fetch_feature_recipe(registry: Registry, version: Version) -> tuple[Any, ...] | None:
    """What makes its features; None where that is not stored, or cannot be read any more."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            sql = registry.runs.fetch(version.run_id, "features.sql", Path(scratch)).read_text()
            p = params.load(registry.runs.fetch(version.run_id, "params.yaml", Path(scratch)))
        except ValueError as error:
            log.warning("version %s scores nothing that another version was asked: %s", version.number, error)
            return None
    return sql, p.features, p.spine


# --- the verdict ---------------------------------------------------------------------------------------------------


def judge_pairs(p: params.Params, pairs: Pairs, challenger: Model, *, looks: int) -> Verdict:
    """The gate's verdict on the challenger, as on a candidate; but only a sure loss is a REJECT, by what is left of the
    error budget on that side. What the gate refuses for another reason may pass later."""
    times, settings = pairs.rows["event_time"].to_numpy(), p.gate
    table = predictions.features_of(pairs.rows, challenger.spec)
    won = gate.judge_contest(
        contest.compare_predictions(pairs.codes, pairs.challenger, pairs.champion, times=times, gate=settings),
        gate=settings,
        costs=judge.measure_costs(challenger, table, pairs.codes, pairs.challenger, size=len(challenger.to_bytes())),
        slices=_read_slices(p, pairs.rows),
        looks=looks,
    )
    lost = gate.judge_contest(
        contest.compare_predictions(pairs.codes, pairs.champion, pairs.challenger, times=times, gate=settings),
        gate=settings.model_copy(update={"rule": "superior", "min_gain": 0.0}),
        looks=looks,
    )
    outcome: Outcome = "PROMOTE" if won.promotes else "REJECT" if lost.promotes else "HOLD"
    figures = {**won.figures, "looked": lost.counts_as_look, "loss_bound": lost.figures["bound"]}
    return Verdict(outcome, _give_reasons(outcome, won, figures), figures)


def _give_reasons(outcome: Outcome, won: Verdict, figures: Mapping[str, Any]) -> tuple[str, ...]:
    """For the side that decided, with the level and the bound of this look."""
    if not figures["looked"]:
        return won.reasons
    level = f"At this look's level ({figures['spent_level']:.2%})"
    gain = f"the gain is above {figures['bound']:+.4f}, and above {figures['least']:+.4f} it is promoted"
    loss = f"the loss is above {figures['loss_bound']:+.4f}, and above 0 it is taken away"
    if outcome == "HOLD":
        return (won.reasons[0], f"{level} {gain}; {loss}.")
    return (f"{level} {gain if outcome == 'PROMOTE' else loss}.",)


def _read_slices(p: params.Params, rows: pa.Table) -> dict[str, NDArray[Any]]:
    """The columns of evaluate.slices that the journal holds, as a feature or as a part of the key."""
    places = [(name, f"{prefix}{name}") for name in p.evaluate.slices for prefix in (schema.KEY, schema.FEATURE)]
    columns = {name: column for name, column in places if column in rows.column_names}
    return {name: np.array(rows[column].to_pylist(), dtype=object) for name, column in columns.items()}


def _describe(verdict: Verdict, selection: Selection, pairs: Pairs | None, *, champion: int, challenger: int) -> str:
    figures = verdict.figures
    if pairs is None or not verdict.counts_as_look:
        return f"Nothing can be said of version {challenger}, the challenger, yet. {verdict.reasons[0]}"
    return (
        f"On {figures['rows']:,} mature rows ({pairs.both:,} of them scored by both when they were asked) version "
        f"{challenger}, the challenger, {COMPARISONS[figures['rule'], verdict.outcome]} version {champion}: "
        f"{describe_gain(figures)}. {' '.join(verdict.reasons)} Of the champion's {selection.answered:,} rows since "
        f"the challenger first scored any, {selection.covered:,} can be compared."
    )


# --- what a look leads to ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settlement:
    """The entry of the canary that is on, and the entry that ended one just now."""

    on: ledger.Entry | None
    over: ledger.Entry | None = None


def find_newest_look(signals: Iterable[Signal], begun: ledger.Entry) -> Signal | None:
    """The newest look in this canary, whether it was counted or not."""
    looks = [one for one in signals if one.kind == "challenger" and one.detail.get("canary") == begun.decision]
    return max(looks, key=lambda look: look.window_end, default=None)


def find_pending(signals: Iterable[Signal], version: int, begun: ledger.Entry) -> Signal | None:
    """The look by which this canary is decided against this champion: the newest, if it decides.

    It stands until somebody has acted on it, or a newer one says otherwise.
    """
    looks = list_looks(signals, version, kind="challenger")
    newest = find_newest_look(looks, begun)
    return newest if newest and newest.alarm else None


def settle(registry: Registry, *, as_of: datetime) -> Settlement:
    """Ends a canary whose challenger serves by now, however it came to and under whatever number."""
    begun, serving = changes.settle_challenger(registry), registry.find_champion()
    if begun is None or serving is None or not _serves(registry, begun, serving):
        return Settlement(begun)
    changes.finish_open(registry)  # what was killed between the alias and its mark
    promotion = next((entry for entry in registry.read_ledger() if _is_promotion_of(entry, begun)), None)
    if promotion:
        decision, outcome, reasons = promotion.decision, "PROMOTE", promotion.reasons
    else:
        reason = f"Version {serving.number} serves."
        if begun.version != serving.number:
            same = f"Version {begun.version} is the model of version {serving.number}"
            reason = f"{same}, which serves: there is nothing to try."
        decision, outcome, reasons = f"{PREFIX}{begun.decision}-serves", None, (reason,)
    over = changes.take_away(registry, decision=decision, as_of=as_of, reasons=reasons, outcome=outcome)
    return Settlement(None, over)


def _serves(registry: Registry, begun: ledger.Entry, serving: Version) -> bool:
    """Whether what is tried is the champion's own model: the same version, run or record."""
    if begun.version == serving.number or begun.run == serving.run_id:
        return True
    assert begun.version is not None
    return bool(serving.record) and registry.read_version(begun.version).record == serving.record


def _is_promotion_of(entry: ledger.Entry, begun: ledger.Entry) -> bool:
    """Whether the entry ends a promotion by a look in this canary."""
    assert entry.made_at
    assert begun.made_at
    is_later = entry.decision.startswith(PREFIX) and entry.made_at > begun.made_at
    return is_later and (entry.mark, entry.version) == ("done", begun.version)


def find_last_winner(registry: Registry) -> ledger.Entry | None:
    """The entry that ended the last canary, if its challenger was promoted and serves."""
    entries, serving = registry.read_ledger(), registry.find_champion()
    last = next((entry for entry in reversed(entries) if entry.mark in ("canary", "canary over")), None)
    won = last is not None and last.outcome == "PROMOTE" and serving is not None and last.version == serving.number
    return last if won else None


def explain_end(entry: ledger.Entry) -> str:
    """What ended a canary, as a person reads it."""
    how = {"PROMOTE": "was promoted", "REJECT": "was taken away for ever"}.get(entry.outcome or "", "was taken away")
    return f"The canary is over: version {entry.version} {how}. {' '.join(entry.reasons)}"


def carry_out(registry: Registry, look: Signal, *, as_of: datetime) -> ledger.Entry | None:
    """Promotes the challenger, or takes it away for ever, as the look says. After a kill it can be done again.

    Returns:
        The entry that ends the canary; None, and nothing is done, where another version serves or is up by now.

    Raises:
        ValueError: The challenger may not be promoted.
    """
    with registry.tracking.lock:
        begun, serving = changes.settle_challenger(registry), registry.find_champion()
        if begun is None or serving is None or begun.run is None:
            return None
        if (begun.decision, serving.number) != (look.detail["canary"], look.version):
            return None
        decision, reasons, outcome = decision_id(look), [look.message], str(look.detail["outcome"])
        if is_promotion(look):
            verdict = {"outcome": outcome, "reasons": reasons, "figures": dict(look.detail)}
            changes.promote(
                registry, begun.run, decision=decision, verdict=verdict, as_of=as_of, tags={}, version=begun.version
            )
        return changes.take_away(registry, decision=decision, as_of=as_of, reasons=reasons, outcome=outcome)


def is_promotion(look: Signal) -> bool:
    return str(look.detail["outcome"]) == "PROMOTE"


def decision_id(look: Signal) -> str:
    """The id of what answers this look."""
    return f"{PREFIX}{look.detail['challenger']}-{look.version}-{look.window_end:%Y%m%dT%H%M%S}"


def tabulate_arms(look: Signal) -> list[dict[str, str]]:
    """A row an arm: which version, the rows that it scored when it was asked, the rows and the loss compared."""
    detail = look.detail
    arms = (("champion", look.version, "champion"), ("challenger", detail["challenger"], "candidate"))
    return [
        {
            "arm": arm,
            "version": str(version),
            "scored": f"{answers:,}",
            "compared on": f"{look.rows:,}",
            "loss": f"{detail[loss]:.4f}" if loss in detail else "",
        }
        for (arm, version, loss), answers in zip(arms, detail["answers"], strict=True)
    ]


def list_ended(entries: Iterable[ledger.Entry]) -> list[ledger.Entry]:
    """The ledger's canaries that a look decided."""
    return [entry for entry in entries if entry.mark == "canary over" and entry.outcome]
