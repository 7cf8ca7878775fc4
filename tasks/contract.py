"""The contract as SQL: typed columns, rules with their reasons, and the pseudonyms of personal data.

One schema serves ingest, clean, training, the API and drift. It is plain text in params.yaml; here it becomes DuckDB
expressions. Nothing here reads or writes a table.
"""

import difflib
import hashlib
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from tasks.params import TIMES, Column, Table, home

KEY = 16  # characters of a key at least; fewer can be tried out against a list of names


@dataclass(frozen=True)
class Rule:
    """One thing that must hold. `broken` is true for a bad row; `reason` is what it then says of the row."""

    name: str
    broken: str
    reason: str
    counts: bool = True  # a bad row; False: reported, and the row is kept


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def typed(name: str, column: Column) -> str:
    """A column's value in the contract's type; NULL where it does not fit.

    DuckDB's own cast would round 12.7 to 13, forget a time's offset from UTC, and let infinity be a number.
    """
    value = quoted(name)
    cast = f"TRY_CAST({value} AS {column.type})"
    if column.type in ("INTEGER", "BIGINT"):
        return f"CASE WHEN {cast} = TRY_CAST({value} AS DOUBLE) THEN {cast} END"
    if column.type == "DOUBLE":
        return f"CASE WHEN isfinite({cast}) THEN {cast} END"
    if column.type == "TIMESTAMP":
        return f"CAST(TRY_CAST({value} AS TIMESTAMPTZ) AS TIMESTAMP)"  # the session's zone is UTC
    return cast


def columns_sql(table: Table) -> str:
    """The columns of a clean table with event times, as CREATE TABLE wants them."""
    columns = [f"{quoted(name)} {column.type}" for name, column in table.columns.items() if name not in TIMES]
    return ", ".join([*columns, *(f"{name} TIMESTAMP" for name in TIMES)])


def check_columns(table: str, present: Iterable[str], wanted: Iterable[str]) -> None:
    """Raises ValueError that names each missing column and the nearest one that is there."""
    names = list(present)
    missing = [name for name in wanted if name not in names]
    if not missing:
        return
    said = []
    for name in missing:
        near = difflib.get_close_matches(name, names, n=1)
        said.append(f"`{name}`" + (f" (did you mean `{near[0]}`?)" if near else ""))
    raise ValueError(
        f"{table} lacks the column {', '.join(said)}; it has {names}. Mend the source or contract.{table}.columns."
    )


def rules(table: Table) -> list[Rule]:
    """Every rule of a table over its raw columns (bare names) and its typed ones (`typed.` names)."""
    return [rule for name, column in table.columns.items() for rule in _column_rules(name, column)]


def _column_rules(name: str, column: Column) -> list[Rule]:
    raw, value = f"raw.{quoted(name)}", f"typed.{quoted(name)}"
    shown = f"CAST({value} AS VARCHAR)"
    found = [Rule(f"{name}: type", f"{raw} IS NOT NULL AND {value} IS NULL", _says(name, raw, f"is no {column.type}"))]
    if column.required:
        found.append(Rule(f"{name}: required", f"{raw} IS NULL", literal(f"{name} is missing")))
    if column.min is not None:
        found.append(Rule(f"{name}: min", f"{value} < {column.min}", _says(name, shown, f"is below {column.min:g}")))
    if column.max is not None:
        found.append(Rule(f"{name}: max", f"{value} > {column.max}", _says(name, shown, f"is above {column.max:g}")))
    if column.allowed is not None:
        allowed = ", ".join(literal(each) for each in column.allowed)
        found.append(Rule(f"{name}: allowed", f"{shown} NOT IN ({allowed})", _says(name, shown, "is not allowed")))
    if column.references:
        other, _, field = column.references.partition(".")
        lonely = f"{value} IS NOT NULL AND NOT EXISTS (FROM {quoted(other)} o WHERE o.{quoted(field)} = {value})"
        reason = _says(name, shown, f"is not in {column.references}")
        found.append(Rule(f"{name}: references", lonely, reason, counts=column.unmatched == "quarantine"))
    return found


def _says(name: str, value: str, rule: str) -> str:
    return f"concat({literal(name + ' ')}, {value}, {literal(' ' + rule)})"


def referenced(table: Table) -> dict[str, str]:
    """The other tables that a table's columns point to, each with the column that is pointed to."""
    pairs = [column.references.partition(".") for column in table.columns.values() if column.references]
    return {other: field for other, _, field in pairs}


def in_order(tables: dict[str, Table]) -> list[str]:
    """The tables, each after those that it refers to."""
    try:
        return list(TopologicalSorter({name: referenced(table) for name, table in tables.items()}).static_order())
    except CycleError as error:
        raise ValueError(f"contract: these tables refer to each other in a ring: {error.args[1]}") from None


def pii_key() -> bytes:
    """The secret that pseudonyms are made with: EVERGREEN_PII_KEY, else the file that `make key` wrote."""
    file = home() / "pii.key"
    if text := os.environ.get("EVERGREEN_PII_KEY"):
        return _long_enough(text.encode(), "EVERGREEN_PII_KEY", "set it to such a key")
    if file.is_file():
        return _long_enough(file.read_bytes().strip(), str(file), "remove it and run `make key`")
    raise ValueError(
        f"the contract has columns with `pii: true`, which needs a key: set EVERGREEN_PII_KEY, or run `make key`, "
        f"which writes one to {file}"
    )


def _long_enough(key: bytes, where: str, way_out: str) -> bytes:
    """An empty key would hide nothing, a short one little: whoever has the pseudonyms can try all of them."""
    if len(key) < KEY:
        raise ValueError(
            f"a key for pseudonyms must have {KEY} characters or more, but {where} has {len(key)}. "
            f'`python -c "import secrets; print(secrets.token_hex(32))"` makes one; {way_out}.'
        )
    return key


def key_id(key: bytes) -> str:
    """Eight hex digits that tell keys apart and give nothing away."""
    return hashlib.sha256(b"evergreen pii key id:" + key).hexdigest()[:8]


def pseudonym(value: str, key: bytes) -> str:
    """HMAC-SHA256 (RFC 2104), cut to 64 bits: the same person, the same name, and no way back without the key."""
    return hmac.new(key, value.encode(), hashlib.sha256).hexdigest()[:16]
