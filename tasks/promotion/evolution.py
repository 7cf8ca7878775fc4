"""evolution: what changed between the data of two versions: tables, columns, rules, and what sources deliver. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.data.manifest import RawManifest, RawTable
from tasks.params import Column, Params

RULES = (
    "required",
    "min",
    "max",
    "outside",
    "scale",
    "coarsen",
    "allowed",
    "references",
    "text",
    "outcome",
    "pii",
    "format",
    "unmatched",
)


@dataclass(frozen=True)
class Change:
    """One thing that is another than before, as a row for people."""

    table: str
    column: str
    change: str


@dataclass(frozen=True)
class Side:
    """The contract and the sources of one version."""

    p: Params
    raw: RawManifest


def list_changes(before: Side, after: Side) -> list[Change]:
    """What is different in `after`, by table."""
    names = dict.fromkeys([*before.p.contract, *after.p.contract])
    return [change for name in names for change in _compare_tables(name, before, after)]


def _compare_tables(name: str, before: Side, after: Side) -> Iterator[Change]:
    old, new = before.p.contract.get(name), after.p.contract.get(name)
    if old is None or new is None:
        yield Change(name, "", "a new table" if old is None else "the table is gone")
        return
    if old.key != new.key:
        yield Change(name, "", f"its key was {_spell(old.key)}, and is {_spell(new.key)}")
    for column in dict.fromkeys([*old.columns, *new.columns]):
        yield from _compare_columns(name, column, old.columns.get(column), new.columns.get(column))
    yield from _compare_deliveries(name, before.raw.tables.get(name), after.raw.tables.get(name))


def _compare_columns(table: str, name: str, old: Column | None, new: Column | None) -> Iterator[Change]:
    if old is None or new is None:
        yield Change(table, name, "new in the contract" if old is None else "no longer in the contract")
        return
    if old.type != new.type:
        way = "widened" if is_wider(new.type, old.type) else "narrowed" if is_wider(old.type, new.type) else "changed"
        yield Change(table, name, f"{way} from {old.type} to {new.type}")
    if alias := sorted(set(new.alias) - set(old.alias)):
        yield Change(table, name, f"may be called {_spell(alias)} too")
    before, after = (
        {rule: value for rule, value in column.model_dump().items() if rule in RULES} for column in (old, new)
    )
    for rule in RULES:
        if before[rule] != after[rule]:
            yield Change(table, name, f"{rule} was {_spell(before[rule])}, and is {_spell(after[rule])}")


def is_wider(one: str, other: str) -> bool:
    """Whether a type holds every value of another."""
    orders = (("INTEGER", "BIGINT", "VARCHAR"), ("INTEGER", "DOUBLE", "VARCHAR"), ("DATE", "TIMESTAMP", "VARCHAR"))
    return any(one in order and other in order and order.index(one) > order.index(other) for order in orders)


def _compare_deliveries(table: str, old: RawTable | None, new: RawTable | None) -> Iterator[Change]:
    """Columns that the files have and the contract does not name, and columns that they lack."""
    if old is None or new is None:
        return
    if old.address != new.address:
        yield Change(table, "", f"its address was {old.address}, and is {new.address}")
    for column in sorted(set(new.unread) - set(old.unread)):
        yield Change(table, column, "new in the files, and not read")
    for column in sorted(set(old.unread) - set(new.unread)):
        yield Change(table, column, "no longer among what is not read")
    lacked = {column for columns in old.lacking.values() for column in columns}
    for column in sorted({column for columns in new.lacking.values() for column in columns} - lacked):
        yield Change(table, column, "files lack it now")


def _spell(value: Any) -> str:
    if value is None or value in ([], ()):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def to_rows(changes: list[Change]) -> list[Mapping[str, str]]:
    return [{"table": one.table, "column": one.column, "change": one.change} for one in changes]
