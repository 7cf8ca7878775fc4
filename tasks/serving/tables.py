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
from tasks.serving import feature_query, schema, versions

CACHED_ROWS = 10_000  # rows whose features stay in memory
FEW_ROWS = 100  # more at once are a list that nobody will ask for again
QUERIES = 4  # of so many versions: the champion's, the challenger's, and those that requests end with
TRIED_ROWS = 40  # that a query is tried on
ARROW_TYPES = {
    "VARCHAR": pa.string(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us"),
}
Identity = tuple[int, Any]  # a version's number and run


class Refused(ValueError):  # noqa: N818 (what happens to a row)
    """A row that breaks a rule which needs more than itself: its place, its field and the rule."""

    def __init__(self, row: int, name: str, rule: str) -> None:
        super().__init__(f"row {row}: {name}: {rule}")
        self.row, self.name, self.rule = row, name, rule


@dataclass(frozen=True)
class Tables:
    """A state in memory. One thread at a time computes with it."""

    p: params.Params
    state: State
    rows: Mapping[str, pa.Table]
    lock: threading.Lock = field(default_factory=threading.Lock)
    queries: dict[Identity, feature_query.FeatureQuery] = field(default_factory=dict)  # of each version
    unfit: set[Identity] = field(default_factory=set)  # versions whose SQL fails on these tables
    cache: dict[tuple[Any, ...], feature_query.Line] = field(default_factory=dict)  # features of what was asked lately

    @staticmethod
    def load(p: params.Params, published: State) -> "Tables":
        return Tables(p, published, state.load_tables(p, published))

    @cached_property
    def references(self) -> dict[str, set[Any]]:
        """Of each spine column whose contract refuses what another table does not know: what that knows."""
        columns = self.p.contract[self.p.spine.table].columns
        values = {}
        for name in self.p.spine.columns:
            if (place := columns[name].references) and columns[name].unmatched == "quarantine":
                table, _, other = place.partition(".")
                values[name] = set(self.rows[table][other].to_pylist())
        return values

    def until(self, champion: versions.Champion) -> datetime:
        """The latest event time that this state can answer. What happens after its as_of is missing in the features."""
        return self.state.as_of + champion.p.features.lead + self.p.serving.ahead

    def stale(self, champion: versions.Champion, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Which rows lie beyond `until`."""
        until = self.until(champion)
        return [row["event_time"] > until for row in rows]

    def check(self, champion: versions.Champion, rows: Sequence[Mapping[str, Any]]) -> None:
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

    def _too_far(self, champion: versions.Champion, until: datetime) -> str:
        lead, ahead = (params.spell(length) for length in (champion.p.features.lead, self.p.serving.ahead))
        return (
            f"must not be after {until}: the state is of {self.state.as_of}, features.lead is {lead} and serving.ahead "
            f"{ahead}. Run the score flow for a newer state, or set serving.beyond to stale"
        )

    def features(self, champion: versions.Champion, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """By the champion's own SQL over this state, one row for each, in their order. Rows that were asked lately come
        from the cache: neither the SQL nor this state changes."""
        identity, columns = champion.identity, champion.p.spine.columns
        keys = [(identity, row["event_time"], *(row.get(name) for name in columns)) for row in rows]
        with self.lock:
            new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self.cache}
            query = self._query(champion)
            computed = dict(zip(new, self._compute(champion, query, list(new.values())), strict=True))
            lines = [computed.get(key) or self.cache[key] for key in keys]
            if len(new) <= FEW_ROWS:
                self.cache.update(computed)
            while len(self.cache) > CACHED_ROWS:
                del self.cache[next(iter(self.cache))]
            return query.table(lines)

    def prepare(self, champion: versions.Champion) -> bool:
        """Whether the features of this version can be made of this state. The first time it takes a moment, for which
        no request of another version waits."""
        if champion.identity not in self.queries and champion.identity not in self.unfit:
            try:
                self._query(champion)
            except (ValueError, duckdb.Error) as error:
                self.unfit.add(champion.identity)
                why = error if isinstance(error, ValueError) else type(error).__name__  # its text may hold a value
                log.warning("the features of version %s cannot be made of this state: %s", champion.number, why)
        return champion.identity not in self.unfit

    def _query(self, champion: versions.Champion) -> feature_query.FeatureQuery:
        if (query := self.queries.get(champion.identity)) is not None:
            return query
        p = self._params_of(champion)
        tried = [spine_of(p, rows) for rows in self._rows_to_try()]
        query = self.queries[champion.identity] = feature_query.prepare_query(self.rows, p, champion.sql, tried=tried)
        while len(self.queries) > QUERIES:
            del self.queries[next(iter(self.queries))]
        return query

    def _compute(
        self, champion: versions.Champion, query: feature_query.FeatureQuery, rows: list[Mapping[str, Any]]
    ) -> list[feature_query.Line]:
        """Raises Refused for a row that the champion's SQL fails on."""
        if not rows:
            return []
        p = self._params_of(champion)
        spine = spine_of(p, rows)
        try:
            return query.run(spine)
        except duckdb.Error as error:
            fresh = feature_query.open_query(self.rows, p, champion.sql, spine, keeps_plan=False)
            lines = _run_or_refuse(fresh, p, rows, spine)
            name = type(error).__name__
            log.warning(
                "the query of version %s failed: it is planned anew for each request: %s", champion.number, name
            )
            self.queries[champion.identity] = fresh
            return lines

    def _params_of(self, champion: versions.Champion) -> params.Params:
        return self.p.model_copy(update={"features": champion.p.features, "spine": champion.p.spine})

    def _rows_to_try(self) -> list[list[dict[str, Any]]]:
        """Rows to try a query on: one, another, and some."""
        rows = self.rows[self.p.spine.table].sort_by("event_time").to_pylist()[-TRIED_ROWS:]
        return [rows[-1:], rows[:1], rows]


def _run_or_refuse(
    query: feature_query.FeatureQuery, p: params.Params, rows: Sequence[Mapping[str, Any]], spine: pa.Table
) -> list[feature_query.Line]:
    """What failed by a prepared query. If it fails by one that is planned anew too, the first bad row is refused."""
    try:
        return query.run(spine)
    except duckdb.Error as error:
        for place, row in enumerate(rows):
            try:
                query.run(spine_of(p, [row]))
            except duckdb.Error:
                rule = f"features.sql fails on this row ({type(error).__name__})"  # its text may hold a value
                raise Refused(place, "event_time", rule) from None
        raise


def spine_of(p: params.Params, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows as features.sql wants them: row_id, event_time, and spine.columns in the contract's types."""
    columns = p.contract[p.spine.table].columns
    spine = {"row_id": pa.array(range(1, len(rows) + 1), pa.int64())}
    spine["event_time"] = column_of([row["event_time"] for row in rows], "TIMESTAMP")
    for name in p.spine.columns:
        spine[name] = column_of([row.get(name) for row in rows], columns[name].type)
    return pa.table(spine)


def column_of(values: Sequence[Any], kind: str) -> pa.Array:
    """Plain values in one of the contract's types."""
    return pa.array(values, ARROW_TYPES[kind])


def pii_key_of(p: params.Params) -> bytes:
    """The key of the pseudonyms; empty where the spine's rows have no personal data."""
    has_pii = any(column.pii for column in p.contract[p.spine.table].columns.values())
    return contract.load_pii_key() if has_pii else b""


def hide_personal_data(p: params.Params, rows: Sequence[Mapping[str, Any]], key: bytes) -> list[dict[str, Any]]:
    """The rows with a pseudonym for each value of personal data, as ingest makes them."""
    secret = {name for name, column in p.contract[p.spine.table].columns.items() if column.pii}
    return [
        {k: contract.make_pseudonym(v, key) if k in secret and v is not None else v for k, v in row.items()}
        for row in rows
    ]


def subjects_of(p: params.Params, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rows are about, named as tasks.serving.score names them: a row scored in both ways is one."""
    names = p.contract[p.spine.table].key
    return [schema.make_entry(*(row[name] for name in names)) for row in rows]
