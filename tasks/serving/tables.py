"""tables: a published state in memory, and the features of a request's rows computed from it."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import duckdb
import pyarrow as pa

from tasks import log, params
from tasks.data import contract, state
from tasks.data.state import State
from tasks.params import Params
from tasks.serving.feature_query import FeatureQuery, Line, prepare_each_time, prepare_query
from tasks.serving.schema import make_entry
from tasks.serving.versions import Champion

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
class Tables:
    """A state in memory. One thread at a time computes with it."""

    p: Params
    state: State
    rows: Mapping[str, pa.Table]
    lock: threading.Lock = field(default_factory=threading.Lock)
    plans: dict[int, FeatureQuery] = field(default_factory=dict)  # of each version
    unfit: set[int] = field(default_factory=set)  # versions whose SQL fails on these tables
    known: dict[tuple[Any, ...], Line] = field(default_factory=dict)  # features of what was asked lately

    @staticmethod
    def load(p: Params, published: State) -> "Tables":
        return Tables(p, published, state.load_tables(p, published))

    @cached_property
    def references(self) -> dict[str, set[Any]]:
        """Of each spine column whose contract refuses what another table does not know: what that knows."""
        columns = self.p.contract[self.p.spine.table].columns
        strict = {name: columns[name].references for name in self.p.spine.columns if columns[name].references}
        values = {}
        for name, place in strict.items():
            if place and columns[name].unmatched == "quarantine":
                table, _, other = place.partition(".")
                values[name] = set(self.rows[table][other].to_pylist())
        return values

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
            for name, allowed in self.references.items():
                if row[name] is not None and row[name] not in allowed:
                    column = self.p.contract[self.p.spine.table].columns[name]
                    shown = "it" if column.pii else repr(row[name])
                    raise Refused(place, name, f"{shown} is not in {column.references}")

    def _too_far(self, champion: Champion, until: datetime) -> str:
        lead, ahead = (params.spell(length) for length in (champion.p.features.lead, self.p.serving.ahead))
        return (
            f"must not be after {until}: the state is of {self.state.as_of}, features.lead is {lead} and serving.ahead "
            f"{ahead}. Run the score flow for a newer state, or set serving.beyond to stale"
        )

    def features(self, champion: Champion, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """By the champion's own SQL over this state, one row for each, in their order. What was asked lately is
        known: neither the SQL nor this state changes."""
        places = [_place(champion, row) for row in rows]
        with self.lock:
            new = {place: row for place, row in zip(places, rows, strict=True) if place not in self.known}
            plan = self._planned(champion)
            made = dict(zip(new, self._made(champion, plan, list(new.values())), strict=True))
            lines = [made.get(place) or self.known[place] for place in places]
            if len(new) <= FEW:
                self.known.update(made)
            while len(self.known) > KNOWN:
                del self.known[next(iter(self.known))]
            return plan.table(lines)

    def prepare(self, champion: Champion) -> bool:
        """Whether the features of this version can be made of this state. The first time it takes a moment, for which
        no request of another version waits."""
        if champion.number not in self.plans and champion.number not in self.unfit:
            try:
                self._planned(champion)
            except (ValueError, duckdb.Error) as error:
                self.unfit.add(champion.number)
                why = error if isinstance(error, ValueError) else _name(error)
                log.warning("the features of version %s cannot be made of this state: %s", champion.number, why)
        return champion.number not in self.unfit

    def _planned(self, champion: Champion) -> FeatureQuery:
        if (query := self.plans.get(champion.number)) is not None:
            return query
        mixed = self._mixed(champion)
        query = prepare_query(self.rows, mixed, champion.sql, tried=[spine_of(mixed, rows) for rows in self._newest()])
        self.plans[champion.number] = query
        while len(self.plans) > PLANS:
            del self.plans[next(iter(self.plans))]
        return query

    def _made(self, champion: Champion, plan: FeatureQuery, rows: list[Mapping[str, Any]]) -> list[Line]:
        """Raises Refused for a row that the champion's SQL fails on."""
        if not rows:
            return []
        mixed = self._mixed(champion)
        spine = spine_of(mixed, rows)
        try:
            return plan.run(spine)
        except duckdb.Error as error:
            anew = prepare_each_time(self.rows, mixed, champion.sql, spine)
            lines = _tried_anew(anew, mixed, rows, spine)
            log.warning(
                "the plan of version %s failed: it is made for each request anew: %s", champion.number, _name(error)
            )
            self.plans[champion.number] = anew
            return lines

    def _mixed(self, champion: Champion) -> Params:
        return self.p.model_copy(update={"features": champion.p.features, "spine": champion.p.spine})

    def _newest(self) -> list[list[dict[str, Any]]]:
        """Rows to try a plan on: one, another, and some."""
        rows = self.rows[self.p.spine.table].sort_by("event_time").to_pylist()[-TRIED:]
        return [rows[-1:], rows[:1], rows]


def _tried_anew(anew: FeatureQuery, p: Params, rows: Sequence[Mapping[str, Any]], spine: pa.Table) -> list[Line]:
    """What failed by a kept plan. If it fails by a new one too, a row is to blame, and the first such is named."""
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


def spine_of(p: Params, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows as features.sql wants them: row_id, event_time, and spine.columns in the contract's types."""
    columns = p.contract[p.spine.table].columns
    spine = {"row_id": pa.array(range(1, len(rows) + 1), pa.int64())}
    spine["event_time"] = column_of([row["event_time"] for row in rows], "TIMESTAMP")
    for name in p.spine.columns:
        spine[name] = column_of([row.get(name) for row in rows], columns[name].type)
    return pa.table(spine)


def column_of(values: Sequence[Any], kind: str) -> pa.Array:
    """Plain values in one of the contract's types."""
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


def pii_key_of(p: Params) -> bytes:
    """The key of the pseudonyms; empty where the spine's rows have no personal data."""
    has_pii = any(column.pii for column in p.contract[p.spine.table].columns.values())
    return contract.load_pii_key() if has_pii else b""


def hide_personal_data(p: Params, rows: Sequence[Mapping[str, Any]], key: bytes) -> list[dict[str, Any]]:
    """The rows with a pseudonym for each value of personal data, as ingest makes them."""
    secret = {name for name, column in p.contract[p.spine.table].columns.items() if column.pii}
    return [
        {k: contract.make_pseudonym(v, key) if k in secret and v is not None else v for k, v in row.items()}
        for row in rows
    ]


def subjects_of(p: Params, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rows are about, named as tasks.serving.score names them: a row scored in both ways is one."""
    names = p.contract[p.spine.table].key
    return [make_entry(*(row[name] for name in names)) for row in rows]
