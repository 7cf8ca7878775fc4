"""changes: what moves the aliases: promotions, rollbacks and canaries. What to do is decided elsewhere.

A promotion or a rollback writes its intent into the ledger before it acts, and each of its steps can be repeated: one
that was cut off is asked for again with the same decision, or finished by `finish_open`. A canary begins and ends with
an entry, written before its alias moves: where a process was killed between the two, the ledger is right, and
`settle_challenger` puts the alias right.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from tasks import log
from tasks.promotion import ledger, tags
from tasks.promotion.registry import CHALLENGER, CHAMPION, Registry, Transaction, Version

# --- promotion -----------------------------------------------------------------------------------------------------


def promote(
    registry: Registry,
    run_id: str,
    *,
    decision: str,
    verdict: Mapping[str, Any],
    as_of: datetime,
    tags: Mapping[str, str],
    version: int | None = None,
    cpu: float = 0.0,
) -> Version:
    """Make a run's model the champion. A decision that is done is never done twice.

    Args:
        verdict: the gate's, with its outcome, reasons and figures.
        tags: more tags of the version to make (tags.py has the names).
        version: the version that is promoted, where there is one already; else one is registered.
        cpu: seconds of CPU that the retrain took.

    Raises:
        ValueError: a version was made of the run which was rolled back, or lost as a challenger.
    """
    with registry.transaction() as transaction:
        if begun := ledger.find_entry(transaction.entries, "intent", decision):
            return _finish_change(transaction, begun)
        _settle_changes(transaction)
        if bar := _explain_bar(transaction, run_id):
            raise ValueError(f"{bar}: run {run_id} cannot be promoted. Train another candidate.")
        serving = registry.find_champion()
        intent = ledger.Entry(
            "intent",
            decision,
            as_of,
            run=run_id,
            version=version,
            champion=serving.number if serving else None,
            outcome=str(verdict.get("outcome", "PROMOTE")),
            reasons=tuple(str(reason) for reason in verdict.get("reasons", ())),
            cpu=cpu,
            verdict=dict(verdict),
            lineage=dict(tags),
        )
        return _finish_change(transaction, transaction.append(intent))


def finish_open(registry: Registry) -> list[Version]:
    """Finish the promotion or rollback that was cut off; the versions that serve by it.

    One that something newer overtook is marked as superseded instead.
    """
    with registry.transaction() as transaction:
        registry.end_entries()
        for begun in ledger.find_unfinished(transaction.entries):
            if objection := _find_objection(transaction, begun):
                log.warning("decision %s %s", begun.decision, objection)
                transaction.append(begun.next_mark("superseded", None))
        return [_finish_change(transaction, begun) for begun in ledger.find_unfinished(transaction.entries)]


def _finish_change(transaction: Transaction, begun: ledger.Entry) -> Version:
    """Do what is missing of a promotion or rollback: each step is repeated only where its mark is missing."""
    registry, end = transaction.registry, ledger.ENDS[begun.mark]
    ended = ledger.find_entry(transaction.entries, end, begun.decision)
    if ended and ended.version is not None:
        return registry.read_version(ended.version)
    if objection := _find_objection(transaction, begun):
        transaction.append(begun.next_mark("superseded", None))
        raise ValueError(f"decision {begun.decision} {objection}")
    version = _find_version(registry, begun)
    if not ledger.find_entry(transaction.entries, "alias moved", begun.decision):
        registry.set_alias(CHAMPION, version.number)
    if begun.mark == "intent":
        transaction.append(begun.next_mark("alias moved", version.number))
    transaction.append(begun.next_mark(end, version.number))
    return version


def _find_version(registry: Registry, begun: ledger.Entry) -> Version:
    """The version that a change puts in charge.

    A promotion makes one, or describes the challenger that won anew: its lineage stays what it was.
    """
    if begun.mark == "rollback":
        assert begun.version is not None
        return registry.read_version(begun.version)
    description = " ".join([f"Of what was known at {begun.as_of}. {begun.outcome}.", *begun.reasons])
    figures = json.dumps(begun.verdict, sort_keys=True, default=str)
    verdict = {tags.VERDICT: str(begun.outcome), tags.VERDICT_FIGURES: figures}
    if begun.version is not None:
        registry.describe(begun.version, description, verdict)
        return registry.read_version(begun.version)
    assert begun.run is not None
    version_tags = {**begun.lineage, **verdict, tags.AS_OF: begun.as_of.isoformat()}
    return registry.register(begun.run, decision=begun.decision, description=description, tags=version_tags)


def _settle_changes(transaction: Transaction) -> list[ledger.Entry]:
    """Finish what had moved the alias when it was cut off, before anything newer begins; the entries that began it.

    Else the ledger would not know that its version served. What had not moved the alias is overtaken by the newer.
    """
    serving = transaction.registry.find_champion()
    moved = [
        begun
        for begun in ledger.find_unfinished(transaction.entries)
        if serving and _has_moved(serving, begun) and not _find_objection(transaction, begun)
    ]
    for begun in moved:
        _finish_change(transaction, begun)
    return moved


def _has_moved(serving: Version, begun: ledger.Entry) -> bool:
    """Whether the alias is where this change puts it."""
    return serving.number == begun.version if begun.version is not None else serving.decision == begun.decision


def _find_objection(transaction: Transaction, begun: ledger.Entry) -> str | None:
    """Why a change that was begun must not be finished."""
    if ledger.is_overtaken(begun, transaction.entries):
        way_out = "judge the candidate again" if begun.mark == "intent" else "see what serves now, and ask again"
        return f"was overtaken by a later one: {way_out}"
    if begun.mark == "intent" and (bar := _explain_bar(transaction, str(begun.run))):
        return f"would promote run {begun.run} again. {bar}"
    return None


def _explain_bar(transaction: Transaction, run_id: str) -> str | None:
    """Why the model of a run is never promoted or put up again; None where it may be."""
    record = transaction.registry.runs.read_data(run_id).tags.get(tags.RECORD, "")
    number = transaction.registry.find_barred(record, transaction.entries)
    return None if number is None else ledger.explain_bar(transaction.entries, number)


def _find_serving(registry: Registry, act: str) -> Version:
    if serving := registry.find_champion():
        return serving
    raise ValueError(f"no version of {registry.model} serves: there is nothing to {act}. Promote one first.")


# --- rollback ------------------------------------------------------------------------------------------------------


def rollback(
    registry: Registry,
    *,
    decision: str,
    as_of: datetime,
    reasons: Sequence[str],
    to: int | None = None,
    champion: int | None = None,
) -> Version:
    """Give the alias back to an earlier champion. What was taken down is never promoted again.

    Args:
        to: the version that is to serve; None: the one that served before the champion.
        champion: the version that is to be taken down; when another serves by now, nothing is done.

    Raises:
        ValueError: another version serves, none may serve in its place, or an earlier rollback was finished instead.
    """
    with registry.transaction() as transaction:
        if begun := ledger.find_entry(transaction.entries, "rollback", decision):
            return _finish_change(transaction, begun)
        settled = _settle_changes(transaction)
        if to is None and champion is None and any(entry.mark == "rollback" for entry in settled):
            raise ValueError(
                f"a rollback to version {settled[-1].version} had been cut off and is finished now: that version "
                "serves. Ask again to go further back."
            )
        serving = _find_serving(registry, "roll back")
        if champion not in (None, serving.number):
            raise ValueError(f"version {champion} was to be taken down, but version {serving.number} serves by now")
        target = _find_target(transaction, serving, to)
        begun = ledger.Entry(
            "rollback",
            decision,
            as_of,
            run=target.run_id,
            version=target.number,
            champion=serving.number,
            reasons=tuple(reasons),
        )
        return _finish_change(transaction, transaction.append(begun))


def _find_target(transaction: Transaction, serving: Version, number: int | None) -> Version:
    """The version that a rollback puts in charge. Raises ValueError for one that may not serve."""
    registry, entries = transaction.registry, transaction.entries
    if number is None:
        if predecessor := registry.find_predecessor(serving):
            return predecessor
        raise ValueError(
            f"no version that may serve was champion before version {serving.number}: name one that served later, "
            "or retrain."
        )
    target, served, down = (
        registry.read_version(number),
        ledger.find_champions(entries),
        ledger.find_rolled_back(entries),
    )
    if number == serving.number:
        raise ValueError(f"version {number} serves already: name an earlier champion")
    if number not in served:
        raise ValueError(
            f"version {number} was never champion, so nobody knows how it serves: choose one of "
            f"{sorted(set(served) - down - {serving.number})}, or let the gate judge it"
        )
    if number in down:
        raise ValueError(f"{ledger.explain_bar(entries, number)}: choose another")
    return target


# --- canary --------------------------------------------------------------------------------------------------------


def put_up(
    registry: Registry, candidate: int | str, *, decision: str, as_of: datetime, reasons: Sequence[str]
) -> Version:
    """Make a version the challenger. Asked again, also after it was cut off, it is the same canary.

    Args:
        candidate: a version's number; or a run's id, of which a version is made where there is none.

    Raises:
        ValueError: it is the champion, also under another number; it was rolled back or lost; another is up.
    """
    with registry.transaction() as transaction:
        serving, canary = _find_serving(registry, "challenge"), ledger.find_canary(transaction.entries)
        version = _find_challenger(transaction, candidate, serving)
        if canary and canary.version != version.number:
            raise ValueError(f"version {canary.version} is up already: take it away first (flows.canary --end)")
        if canary is None:
            begun = ledger.Entry("canary", decision, as_of, run=version.run_id, version=version.number)
            transaction.append(replace(begun, champion=serving.number, reasons=tuple(reasons)))
        registry.set_alias(CHALLENGER, version.number)
        return version


def _find_challenger(transaction: Transaction, candidate: int | str, serving: Version) -> Version:
    """The version of a candidate that may challenge the one that serves."""
    registry = transaction.registry
    version = registry.read_version(candidate) if isinstance(candidate, int) else None
    run_id, named = (version.run_id, f"version {candidate}") if version else (str(candidate), f"run {candidate}")
    record = registry.runs.read_data(run_id).tags.get(tags.RECORD)
    if bar := _explain_bar(transaction, run_id):
        raise ValueError(f"{bar}: choose another")
    if version and version.number == serving.number:
        raise ValueError(f"{named} is the champion: put another up")
    if run_id == serving.run_id or (record and record == serving.record):
        raise ValueError(f"{named} holds the model of version {serving.number}, the champion: put another up")
    if version is None:
        version = next((other for other in reversed(registry.list_versions()) if other.run_id == run_id), None)
    return version or registry.register(
        run_id, decision=f"held-{run_id}", description="Never promoted: put up to be tried.", tags={}
    )


def take_away(
    registry: Registry, *, decision: str, as_of: datetime, reasons: Sequence[str], outcome: str | None = None
) -> ledger.Entry | None:
    """End the canary; the entry that says so, or None where none was on.

    Args:
        outcome: REJECT: it lost, and is never put up or promoted again; PROMOTE: it won; None: nobody judged.
    """
    with registry.transaction() as transaction:
        over = ledger.find_entry(transaction.entries, "canary over", decision)
        canary = ledger.find_canary(transaction.entries)
        if over is None and canary:
            over = replace(canary, mark="canary over", decision=decision, as_of=as_of, outcome=outcome)
            over, canary = transaction.append(replace(over, reasons=tuple(reasons))), None
        if canary is None:  # asked again late, it must not end the next one
            registry.remove_alias(CHALLENGER)
        return over


def settle_challenger(registry: Registry) -> ledger.Entry | None:
    """Put the challenger's alias where the ledger says; the entry that began the canary which is on.

    An alias that the ledger does not know is taken away: a process that was killed left it, or somebody set it by hand.
    """
    with registry.transaction() as transaction:
        version, canary = registry.find_challenger(), ledger.find_canary(transaction.entries)
        if canary is None or canary.version is None:
            if version:
                log.warning("version %s is no challenger by the ledger: its alias is taken away", version.number)
                registry.remove_alias(CHALLENGER)
            return None
        number = canary.version
        if version and version.number == number:
            return canary
        if number not in {other.number for other in registry.list_versions()}:
            log.warning("version %s is the challenger by the ledger, but is there no more: end the canary", number)
            return None
        log.warning("version %s is the challenger by the ledger: its alias is set again", number)
        registry.set_alias(CHALLENGER, number)
        return canary
