"""live: the champion and the state that answer now, and how newer ones take their place.

The champion is read from a local copy that keeper.py makes: so it serves on when the registry is away, also across a
restart. What is newer is loaded and tried beside the old one and then put in its place by one assignment: a request
that has begun ends with what it began with.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import log, params
from tasks.data import cache, contract, state
from tasks.data.state import State
from tasks.params import Params
from tasks.serving.journal import entry_of
from tasks.serving.plan import Line, Plan, planned, unkept
from tasks.training.model import Model

if TYPE_CHECKING:
    import pyarrow as pa

FILES = ("model.ubj", "features.sql", "params.yaml")
POINTER, CHALLENGER = "champion.json", "challenger.json"
ANEW = "Remove the file: the keeper copies it anew when the registry answers."
KNOWN = 10_000  # rows whose features are kept
FEW = 100  # rows: more at once are a list that nobody will ask for again
PLANS = 4  # of so many versions: the champion's, the challenger's, and those that requests end with
TRIED = 40  # rows that a plan is tried on


class Refused(ValueError):  # noqa: N818 (what happens to a row)
    """A row that breaks a rule which needs more than itself: its place, its field and the rule."""

    def __init__(self, row: int, name: str, rule: str) -> None:
        super().__init__(f"row {row}: {name}: {rule}")
        self.row, self.name, self.rule = row, name, rule


@dataclass(frozen=True)
class Champion:
    """A version, ready to answer."""

    number: int
    p: Params
    sql: str
    model: Model
    told: Mapping[str, Any]  # of the registry: model, run_id, as_of, commit, tags


@dataclass(frozen=True)
class Pointer:
    """Which version is copied: a number alone would also be that of another model, or of a registry made anew."""

    number: int
    model: str | None = None
    run_id: str | None = None

    def names(self, champion: Champion | None) -> bool:
        if champion is None or champion.number != self.number:
            return False
        return self.run_id in (None, champion.told.get("run_id"))


def folder(home: Path) -> Path:
    return home / "serving"


def served(home: Path, pointer: str = POINTER) -> int | None:
    """The number of the version in the local copy; by the other pointer, of the challenger's."""
    return found.number if (found := pointed(home, pointer)) else None


def pointed(home: Path, pointer: str = POINTER) -> Pointer | None:
    """Raises ValueError for a pointer that names no version."""
    path = folder(home) / pointer
    try:
        told = _object(path)
    except FileNotFoundError:
        return None
    number = told.get("number")
    if type(number) is not int or number < 1:
        raise ValueError(f"`number` must be a version's in {path}, but got {number!r}. {ANEW}")
    return Pointer(number, told.get("model"), told.get("run_id"))


def copied(here: Path) -> dict[str, Any]:
    """What version.json tells of a copy. Raises ValueError where a file is not the one that was copied."""
    told = _object(here / "version.json")
    files = told.get("files", {})
    if not isinstance(files, dict):
        raise ValueError(f"`files` must be names and hashes in {here / 'version.json'}, but got {files!r}. {ANEW}")
    for name, wanted in files.items():
        if (found := cache.content(here / name)) != wanted:
            raise ValueError(f"{here / name} must have the hash {wanted}, but it has {found}. {ANEW}")
    return told


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, but it does not. {ANEW}")
    return found


def load(home: Path, number: int) -> Champion:
    """Raises ValueError for a copy that is not whole."""
    here = folder(home) / str(number)
    model, sql, settings = (here / name for name in FILES)
    told = copied(here)
    found = Champion(number, params.load(settings), sql.read_text(encoding="utf-8"), Model.load(model), told)
    if _object(here / "version.json") != told:
        raise ValueError(f"{here} was copied anew while it was read. The next look finds it whole.")
    return replace(found, told={name: value for name, value in told.items() if name != "files"})


@dataclass(frozen=True)
class Tables:
    """A state in memory. One thread at a time computes with it."""

    p: Params
    state: State
    rows: "Mapping[str, pa.Table]"
    lock: threading.Lock = field(default_factory=threading.Lock)
    plans: dict[int, Plan] = field(default_factory=dict)  # of each version
    unfit: set[int] = field(default_factory=set)  # versions whose SQL fails on these tables
    known: dict[tuple[Any, ...], Line] = field(default_factory=dict)  # features of what was asked lately

    @staticmethod
    def load(p: Params, found: State) -> "Tables":
        return Tables(p, found, state.load(p, found))

    @cached_property
    def references(self) -> dict[str, set[Any]]:
        """Of each spine column whose contract refuses what another table does not know: what that knows."""
        columns = self.p.contract[self.p.spine.table].columns
        strict = {name: columns[name].references for name in self.p.spine.columns if columns[name].references}
        found = {}
        for name, place in strict.items():
            if place and columns[name].unmatched == "quarantine":
                table, _, other = place.partition(".")
                found[name] = set(self.rows[table][other].to_pylist())
        return found

    def until(self, champion: Champion) -> datetime:
        """The latest event time that this state can answer: what happens between its as_of and the moment at which a
        prediction is asked is missing in the features."""
        return self.state.as_of + champion.p.features.lead + self.p.serving.ahead

    def stale(self, champion: Champion, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Which rows lie beyond `until`."""
        until = self.until(champion)
        return [row["event_time"] > until for row in rows]

    def check(self, champion: Champion, rows: Sequence[Mapping[str, Any]]) -> None:
        """Raises Refused for the first row that the state cannot answer."""
        until = self.until(champion) if self.p.serving.beyond == "refuse" else datetime.max
        for place, row in enumerate(rows):
            if row["event_time"] < self.state.since:
                rule = f"must not be before {self.state.since}, from when on the state ({self.state.as_of}) can answer"
                raise Refused(place, "event_time", rule)
            if row["event_time"].year > 2199:
                raise Refused(place, "event_time", "must be before 2200")
            if row["event_time"] > until:
                raise Refused(place, "event_time", self._too_far(champion, until))
            for name, known in self.references.items():
                if row[name] is not None and row[name] not in known:
                    column = self.p.contract[self.p.spine.table].columns[name]
                    shown = "it" if column.pii else repr(row[name])
                    raise Refused(place, name, f"{shown} is not in {column.references}")

    def _too_far(self, champion: Champion, until: datetime) -> str:
        lead, ahead = (params.spell(length) for length in (champion.p.features.lead, self.p.serving.ahead))
        return (
            f"must not be after {until}: the state is of {self.state.as_of}, features.lead is {lead} and serving.ahead "
            f"{ahead}. Run the score flow for a newer state, or set serving.beyond to stale"
        )

    def features(self, champion: Champion, rows: Sequence[Mapping[str, Any]]) -> "pa.Table":
        """By the champion's own SQL over this state, one row for each, in their order. What was asked lately is
        known: neither the SQL nor this state changes."""
        places = [_place(champion, row) for row in rows]
        with self.lock:
            new = {place: row for place, row in zip(places, rows, strict=True) if place not in self.known}
            plan = self._planned(champion)
            made = dict(zip(new, self._made(champion, plan, list(new.values())), strict=True))
            found = [made.get(place) or self.known[place] for place in places]
            if len(new) <= FEW:
                self.known.update(made)
            while len(self.known) > KNOWN:
                del self.known[next(iter(self.known))]
            return plan.table(found)

    def prepare(self, champion: Champion) -> bool:
        """Whether the features of this version can be made of this state. The first time it takes a moment, for which
        no request of another version waits."""
        import duckdb

        if champion.number not in self.plans and champion.number not in self.unfit:
            try:
                self._planned(champion)
            except (ValueError, duckdb.Error) as error:
                self.unfit.add(champion.number)
                why = error if isinstance(error, ValueError) else _name(error)
                log.warning("the features of version %s cannot be made of this state: %s", champion.number, why)
        return champion.number not in self.unfit

    def _planned(self, champion: Champion) -> Plan:
        if (known := self.plans.get(champion.number)) is not None:
            return known
        mixed = self._mixed(champion)
        found = planned(self.rows, mixed, champion.sql, tried=[spine_of(mixed, rows) for rows in self._newest()])
        self.plans[champion.number] = found
        while len(self.plans) > PLANS:
            del self.plans[next(iter(self.plans))]
        return found

    def _made(self, champion: Champion, plan: Plan, rows: list[Mapping[str, Any]]) -> list[Line]:
        """Raises Refused for a row that the champion's SQL fails on."""
        import duckdb

        if not rows:
            return []
        mixed = self._mixed(champion)
        spine = spine_of(mixed, rows)
        try:
            return plan.run(spine)
        except duckdb.Error as error:
            anew = unkept(self.rows, mixed, champion.sql, spine)
            found = _tried_anew(anew, mixed, rows, spine)
            log.warning(
                "the plan of version %s failed: it is made for each request anew: %s", champion.number, _name(error)
            )
            self.plans[champion.number] = anew
            return found

    def _mixed(self, champion: Champion) -> Params:
        return self.p.model_copy(update={"features": champion.p.features, "spine": champion.p.spine})

    def _newest(self) -> list[list[dict[str, Any]]]:
        """Rows to try a plan on: one, another, and some."""
        rows = self.rows[self.p.spine.table].sort_by("event_time").to_pylist()[-TRIED:]
        return [rows[-1:], rows[:1], rows]


def _tried_anew(anew: Plan, p: Params, rows: Sequence[Mapping[str, Any]], spine: "pa.Table") -> list[Line]:
    """What failed by a kept plan. If it fails by a new one too, a row is to blame, and the first such is named."""
    import duckdb

    try:
        return anew.run(spine)
    except duckdb.Error as error:
        for place, row in enumerate(rows):
            try:
                anew.run(spine_of(p, [row]))
            except duckdb.Error:
                raise Refused(place, "event_time", f"features.sql fails on this row ({_name(error)})") from None
        raise


def _name(error: Exception) -> str:
    """Never its text, which may hold a value of a row."""
    return type(error).__name__


def _place(champion: Champion, row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row's features hang on, beside the state."""
    return (champion.number, row["event_time"], *(row.get(name) for name in champion.p.spine.columns))


def spine_of(p: Params, rows: Sequence[Mapping[str, Any]]) -> "pa.Table":
    """The rows as features.sql wants them: row_id, event_time, and spine.columns in the contract's types."""
    import pyarrow as pa

    columns = p.contract[p.spine.table].columns
    told = {"row_id": pa.array(range(1, len(rows) + 1), pa.int64())}
    told["event_time"] = column_of([row["event_time"] for row in rows], "TIMESTAMP")
    for name in p.spine.columns:
        told[name] = column_of([row.get(name) for row in rows], columns[name].type)
    return pa.table(told)


def column_of(values: Sequence[Any], kind: str) -> "pa.Array":
    """Plain values in one of the contract's types."""
    import pyarrow as pa

    types = {
        "VARCHAR": pa.string(),
        "INTEGER": pa.int32(),
        "BIGINT": pa.int64(),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
        "DATE": pa.date32(),
        "TIMESTAMP": pa.timestamp("us"),
    }
    return pa.array(values, types[kind])


def hidden(p: Params, rows: Sequence[Mapping[str, Any]], key: bytes) -> list[dict[str, Any]]:
    """The rows with a pseudonym for each value of personal data, as ingest makes them."""
    secret = {name for name, column in p.contract[p.spine.table].columns.items() if column.pii}
    return [
        {k: contract.pseudonym(v, key) if k in secret and v is not None else v for k, v in row.items()} for row in rows
    ]


def subjects(p: Params, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rows are about, named as tasks.serving.score names them: a row scored in both ways is one."""
    names = p.contract[p.spine.table].key
    return [entry_of(*(row[name] for name in names)) for row in rows]


@dataclass
class Live:
    """What answers now: three attributes, each put in place whole. The others are what is remembered between looks."""

    home: Path
    champion: Champion | None = None
    challenger: Champion | None = None
    tables: Tables | None = None
    loaded: dict[str, Champion] = field(default_factory=dict)  # by each pointer, the last: it may wait for a state
    runs: dict[int, str | None] = field(default_factory=dict)  # of each number that the tables were asked of
    faults: dict[str, str] = field(default_factory=dict)  # of each part, the one that was logged

    def renew(self, p: Params) -> Iterator[str]:
        """Put newer ones in place, if there are any; what was done. Whatever is wrong with them, the old ones stay."""
        for name, part in (("champion", self._champion), ("challenger", self._challenger), ("state", self._tables)):
            try:
                said = part(p)
            except Exception as error:  # no copy and no state may end what serves, or keep it from starting
                self._tell(name, f"{type(error).__name__}: {error}")
                continue
            self.faults.pop(name, None)
            if said:
                yield said

    def _tell(self, name: str, fault: str) -> None:
        """The same fault once, not at every look."""
        if self.faults.get(name) != fault:
            log.warning("the newer %s cannot serve, so what serves serves on: %s", name, fault)
        self.faults[name] = fault

    def _champion(self, p: Params) -> str | None:
        wanted = self._wanted(p, POINTER)
        if wanted is None or wanted.names(self.champion):
            return None
        found = self._version(POINTER, wanted)
        fits = self._fits(found)
        if not fits and self.champion and self._fits(self.champion):
            raise ValueError(
                f"the features of version {found.number} must be such as this state can make, but they are not: "
                f"version {self.champion.number} serves on. Publish a state that has them, or roll back."
            )
        self.champion = found
        return f"version {found.number} serves"

    def _challenger(self, p: Params) -> str | None:
        """Unlike the champion, it goes when its pointer goes: it may have lost."""
        wanted = self._wanted(p, CHALLENGER) if p.serving.challenger.mode != "none" else None
        before = self.challenger
        if wanted is not None and wanted.names(before):
            return None
        self.challenger = None  # whatever is wrong with the next one, this one is no challenger any more
        if wanted is None:
            return f"version {before.number} is no challenger any more" if before else None
        found = self._version(CHALLENGER, wanted)
        if not self._fits(found):
            raise ValueError(
                f"the features of version {found.number} must be such as this state can make, but they are not: "
                "it is no challenger. Publish a state that has them, or take it away."
            )
        self.challenger = found
        return f"version {found.number} is the challenger"

    def _wanted(self, p: Params, pointer: str) -> Pointer | None:
        found = pointed(self.home, pointer)
        if found and found.model not in (None, p.registry.model):
            raise ValueError(
                f"the copy must be of registry.model={p.registry.model!r}, but {folder(self.home) / pointer} names "
                f"version {found.number} of {found.model!r}. Set registry.model back, or promote a version of the new."
            )
        return found

    def _version(self, pointer: str, wanted: Pointer) -> Champion:
        known = self.loaded.get(pointer)
        if known is None or not wanted.names(known):
            known = _tried(self.home, wanted.number)
            if not wanted.names(known):
                raise ValueError(
                    f"{folder(self.home) / str(wanted.number)} must be a copy of run {wanted.run_id}, but it is of "
                    f"{known.told.get('run_id')}. {ANEW}"
                )
            self.loaded[pointer] = known
        return known

    def _fits(self, found: Champion) -> bool:
        """Whether the tables can make its features. Of another run under the same number they keep nothing."""
        run = found.told.get("run_id")
        other = self.runs.get(found.number, run) != run
        self.runs[found.number] = run
        if self.tables is None:
            return True
        tables = Tables(self.tables.p, self.tables.state, self.tables.rows) if other else self.tables
        fits = tables.prepare(found)
        self.tables = tables
        return fits

    def _tables(self, p: Params) -> str | None:
        newest = state.current(self.home)
        if newest is None or (self.tables and self.tables.state == newest):
            return None
        if newest.kind != (kind := state.kind(p)):
            raise ValueError(
                f"the state must be of these params, {kind}, but the state of {newest.as_of} is of {newest.kind}. "
                "Start the server anew with the params.yaml that the flows use, or let them publish by this one."
            )
        found = Tables.load(p, newest)
        if self.champion:
            found.prepare(self.champion)
        if self.challenger and not found.prepare(self.challenger):
            self.challenger = None
        self.tables = found
        return f"the state of {newest.as_of} is in use"

    def event_now(self) -> datetime | None:
        return self.tables.state.event_now() if self.tables else None


def _tried(home: Path, number: int) -> Champion:
    """A version from the local copy. The first answer of a model takes longest: nobody should wait for it."""
    import pyarrow as pa

    champion = load(home, number)
    kinds = {"number": pa.float32(), "category": pa.string()}
    empty = pa.table({each.name: pa.nulls(1, kinds[each.kind]) for each in champion.model.spec.features})
    champion.model.predict(empty)
    return champion
