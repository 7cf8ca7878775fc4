"""ledger: what was decided, as entries: verdicts, promotions, rollbacks, canaries. Pure functions over entries.

An entry is the tags of one small MLflow run and is never rewritten. registry.py reads and appends entries.

A promotion is the marks `intent`, `alias moved`, `done`; a rollback is `rollback`, `rolled back`. The first mark is
written before anything is done, so that a change that was cut off can be finished; a later change makes an unfinished
one `superseded`. A canary is `canary`, `canary over`.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from tasks.params import RetrainKind
from tasks.promotion import tags
from tasks.runtime import files

Mark = Literal[
    "verdict", "intent", "alias moved", "done", "superseded", "rollback", "rolled back", "canary", "canary over"
]
CHAMPION_CHANGES = ("alias moved", "rolled back")  # marks after which their version is the champion
ANSWERS = ("verdict", "done", "superseded")  # marks after which nothing is to be done for their decision
# What begins a change of the champion: what ends it.
ENDS: Mapping[Mark, Mark] = {"intent": "done", "rollback": "rolled back"}
PIECE_CHARACTERS = 4000  # a tag holds 8,000

# Of the tags. A field with a default may be added; anything else raises the version.
LEDGER = files.Format("ledger", 1)


@dataclass(frozen=True)
class Entry:
    """One entry of the ledger.

    Attributes:
        mark: what happened.
        decision: the id of the decision that it belongs to. A decision has each mark at most once.
        as_of: event time.
        run: the candidate's run.
        version: the version that it is about.
        champion: the version that served when the decision was begun.
        outcome: PROMOTE, HOLD or REJECT.
        reasons: sentences for a person.
        counts_as_look: whether the candidate was compared with the champion, which spends some of the error budget.
        failed: whether the retrain failed.
        cpu: seconds of CPU that the retrain took, its judging included.
        verdict: the gate's figures.
        lineage: tags of the version to make.
        made_at: wall time, set when it is appended.
    """

    mark: Mark
    decision: str
    as_of: datetime
    run: str | None = None
    version: int | None = None
    champion: int | None = None
    outcome: str | None = None
    reasons: tuple[str, ...] = ()
    counts_as_look: bool = True
    failed: bool = False
    cpu: float = 0.0
    verdict: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    made_at: datetime | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it answers a decision without a candidate: the retrain failed, or the gate would not look yet."""
        return self.mark == "verdict" and self.run is None and not self.counts_as_look

    @property
    def is_fault(self) -> bool:
        """Whether it answers a decision whose retrain failed."""
        return self.is_empty and self.failed

    @property
    def kind(self) -> RetrainKind:
        """Of the retrain; one whose entry does not name it was a search."""
        kind = self.verdict.get("figures", {}).get("kind")
        return kind if kind in ("refresh", "contender") else "search"

    @property
    def is_retrain(self) -> bool:
        """Whether it tells what came of a candidate that was made. A challenger that is promoted was made before."""
        return not self.is_empty and (self.mark == "verdict" or (self.mark == "intent" and self.version is None))

    def next_mark(self, mark: Mark, version: int | None) -> "Entry":
        """The entry that goes on with this one's decision."""
        return replace(self, mark=mark, version=version, counts_as_look=True, cpu=0.0, verdict={}, lineage={})


# --- an entry as tags ----------------------------------------------------------------------------------------------


def to_tags(entry: Entry) -> dict[str, str]:
    """The entry in pieces, because a tag is short, and the fields that a person looks for in MLflow."""
    text = json.dumps(vars(entry), sort_keys=True, default=str)
    starts = range(0, len(text), PIECE_CHARACTERS)
    pieces = {f"{tags.ENTRY}{i:03}": text[start : start + PIECE_CHARACTERS] for i, start in enumerate(starts)}
    names = ("mark", "decision", "as_of", "run", "version", "champion", "outcome")
    shown = {f"{tags.PREFIX}{name}": str(value) for name in names if (value := getattr(entry, name)) is not None}
    if entry.cpu:
        shown |= {tags.KIND: entry.kind, tags.CPU: f"{entry.cpu:.1f}"}
        shown |= {tags.COST: f"{cost:.4g}"} if (cost := entry.verdict.get("figures", {}).get("cost")) else {}
    note = f"**{entry.outcome or entry.mark}** {' '.join(entry.reasons)[:PIECE_CHARACTERS]}"
    return {files.FORMAT_KEY: LEDGER.mark, **pieces, **shown, tags.NOTE: note}


def from_tags(run_tags: Mapping[str, str], *, model: str) -> Entry:
    """The entry of a run. Raises ValueError for one that another version of this project wrote."""
    mark = run_tags.get(files.FORMAT_KEY)
    if mark != LEDGER.mark:
        raise ValueError(
            f"the ledger of {model!r} in MLflow is in format {mark or 'unknown'}, but this evergreen reads "
            f"{LEDGER.mark}. Use the evergreen that wrote it; or begin without its models: set registry.experiment and "
            "registry.model in params.yaml to new names, or EVERGREEN_HOME to an empty folder, and train again."
        )
    pieces = sorted(name for name in run_tags if name.startswith(tags.ENTRY))
    values = json.loads("".join(run_tags[name] for name in pieces))
    times = {name: datetime.fromisoformat(values[name]) for name in ("as_of", "made_at")}
    return Entry(**{**values, **times, "reasons": tuple(values["reasons"])})


def drop_repeated(entries: Iterable[Entry]) -> list[Entry]:
    """The first entry of each decision's mark: MLflow sends a request again when its answer was lost."""
    first: dict[tuple[Mark, str], Entry] = {}
    for entry in entries:
        first.setdefault((entry.mark, entry.decision), entry)
    return list(first.values())


def next_moment(entries: Sequence[Entry]) -> datetime:
    """Now, but later than every entry: machines' clocks differ, and the order of the ledger must not."""
    now = datetime.now(UTC)
    last = entries[-1].made_at if entries else None
    return max(now, last + timedelta(microseconds=1)) if last else now


# --- questions -----------------------------------------------------------------------------------------------------


def find_entry(entries: Iterable[Entry], mark: Mark, decision: str) -> Entry | None:
    return next((entry for entry in entries if (entry.mark, entry.decision) == (mark, decision)), None)


def find_answered(entries: Iterable[Entry]) -> set[str]:
    """The decisions for which nothing is left to do."""
    return {entry.decision for entry in entries if entry.mark in ANSWERS}


def find_retrains(entries: Iterable[Entry], kind: RetrainKind | None = None) -> list[datetime]:
    """The event times of the candidates that were made, in order; of one kind, where one is named.

    A challenger that is promoted was made before, and a retrain that failed made no candidate. Without a kind, looks at
    a contender that did not win are left out: what serves is as old as before, and was searched for as long ago.
    """

    def counts(entry: Entry) -> bool:
        return entry.kind == kind if kind else entry.kind != "contender" or entry.mark == "intent"

    return sorted({entry.as_of for entry in entries if entry.is_retrain and counts(entry)})


def sum_cpu(entries: Iterable[Entry], since: datetime, until: datetime) -> float:
    """Seconds of CPU of the retrains with an event time after `since`, up to `until`; of those that failed too."""
    return sum(entry.cpu for entry in entries if since < entry.as_of <= until)


def find_last_cost(entries: Sequence[Entry], kind: RetrainKind) -> float | None:
    """Seconds of CPU of the newest retrain of a kind; None where none is known.

    A candidate that is judged again was made by an earlier retrain, so that what the later one took tells nothing.
    """
    runs, last = set[str | None](), None
    for entry in entries:
        if entry.is_retrain and entry.kind == kind and entry.cpu > 0 and entry.run not in runs:
            last = entry.cpu
        runs.add(entry.run)
    return last


def find_empty_answers(entries: Iterable[Entry]) -> list[Entry]:
    """The answers without a candidate since a candidate was last made, oldest first."""
    answers = [entry for entry in entries if entry.mark in ("verdict", "intent")]
    made = [place for place, entry in enumerate(answers) if not entry.is_empty]
    return answers[made[-1] + 1 :] if made else answers


def count_looks(entries: Sequence[Entry], champion: int | None, *, again: str | None = None) -> int:
    """How often a candidate was compared with a champion.

    Args:
        champion: counted from when it first served, also before a rollback gave it the alias again. None: how often
            a first model was judged since there last was a champion.
        again: a candidate's run: its own looks do not count, since the same rows and the same recipe give the same
            figures, and nothing new is tried by looking once more.
    """
    return sum(again is None or entry.run != again for entry in _list_looks(entries, champion))


def find_last_look(entries: Sequence[Entry], champion: int | None) -> datetime | None:
    """The event time of the last candidate that was compared with a champion and refused."""
    return max((entry.as_of for entry in _list_looks(entries, champion) if entry.mark == "verdict"), default=None)


def _list_looks(entries: Sequence[Entry], champion: int | None) -> Iterator[Entry]:
    begins = [
        place
        for place, entry in enumerate(entries)
        if entry.mark in CHAMPION_CHANGES and champion in (None, entry.version)
    ]
    since = entries[begins[-1 if champion is None else 0] :] if begins else entries
    for entry in since:
        if entry.mark in ("verdict", "intent") and entry.champion == champion and entry.counts_as_look:
            yield entry


@dataclass(frozen=True)
class Contender:
    """A searched recipe that is not decided yet.

    Attributes:
        recipe: its id.
        opponent: the id of the champion's recipe that it races against.
        since: the first moment that neither recipe's search has seen.
        run: of its newest look; its files are the recipe.
        as_of: of that look.
    """

    recipe: str
    opponent: str
    since: datetime
    run: str
    as_of: datetime


def to_race_figures(recipe: str, opponent: str, since: datetime) -> dict[str, str]:
    """What a verdict keeps of a race; see `Contender`."""
    return {"race_recipe": recipe, "race_opponent": opponent, "race_since": since.isoformat()}


def find_contender(entries: Sequence[Entry]) -> Contender | None:
    """The recipe whose race the newest look at one left open. A look decides it, or a newer search takes its place."""
    for entry in reversed(entries):
        figures = entry.verdict.get("figures", {})
        if entry.mark in ("verdict", "intent") and "race_recipe" in figures:
            names = ("race_recipe", "race_opponent", "race_since")
            recipe, opponent, since = (str(figures[name]) for name in names)
            is_open = entry.mark == "verdict" and entry.outcome == "HOLD" and entry.run is not None
            begin = datetime.fromisoformat(since)
            return Contender(recipe, opponent, begin, str(entry.run), entry.as_of) if is_open else None
    return None


def find_unfinished(entries: Sequence[Entry]) -> list[Entry]:
    """The changes of the champion that were begun and neither ended nor superseded."""
    marks = {(entry.mark, entry.decision) for entry in entries}
    return [
        entry
        for entry in entries
        if entry.mark in ENDS and not {(ENDS[entry.mark], entry.decision), ("superseded", entry.decision)} & marks
    ]


def is_overtaken(begun: Entry, entries: Sequence[Entry]) -> bool:
    """Whether another promotion or rollback was begun after this one."""
    keys = [(entry.mark, entry.decision) for entry in entries]
    later = entries[keys.index((begun.mark, begun.decision)) + 1 :]
    return any(entry.mark in (*ENDS, "rolled back") for entry in later)


def find_champions(entries: Iterable[Entry]) -> list[int]:
    """The versions that became champion, in the order of time."""
    return [entry.version for entry in entries if entry.mark in CHAMPION_CHANGES and entry.version is not None]


def find_predecessor(entries: Sequence[Entry], number: int, versions: Collection[int]) -> int | None:
    """The version that served last before `number` first did, of `versions`, and was not rolled back itself."""
    served = find_champions(entries)
    earlier = served[: served.index(number)] if number in served else served
    fit = set(versions) - find_rolled_back(entries)
    return next((version for version in reversed(earlier) if version in fit), None)


def find_rolled_back(entries: Iterable[Entry]) -> set[int]:
    """The versions that a rollback took down."""
    return {entry.champion for entry in entries if entry.mark == "rolled back" and entry.champion is not None}


def find_rejected(entries: Iterable[Entry]) -> set[int]:
    """The versions that lost as challengers.

    A rollback may still go to one that had been champion: it was worse than a later champion, not unfit to serve.
    """
    lost = (entry.version for entry in entries if (entry.mark, entry.outcome) == ("canary over", "REJECT"))
    return {version for version in lost if version is not None}


def find_barred(entries: Sequence[Entry]) -> set[int]:
    """The versions that are never put up or promoted again."""
    return find_rolled_back(entries) | find_rejected(entries)


def explain_bar(entries: Iterable[Entry], number: int) -> str:
    """Why a barred version is barred."""
    if number in find_rolled_back(entries):
        return f"version {number} was rolled back, and what was rolled back never serves again"
    return f"version {number} lost as a challenger, and what lost is never put up or promoted again"


def find_canary(entries: Sequence[Entry]) -> Entry | None:
    """The entry that began the canary that is on; None where none is."""
    last = next((entry for entry in reversed(entries) if entry.mark in ("canary", "canary over")), None)
    return last if last and last.mark == "canary" else None
