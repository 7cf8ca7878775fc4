"""The contract as SQL: typed columns, rules with their reasons, times with zones, pseudonyms of personal data.

One schema in params.yaml serves ingest, clean, training, the API and drift. Here it becomes DuckDB expressions. Nothing
here reads or writes a table.

Of the zones of a time as text, taken are an offset, Z and Area/City; every other zone means several things. Where
clocks change, a local time with Area/City may be missing or come twice. The rule: a time that the clock skips is read
with the offset from before the change (02:30 becomes 03:30), one that comes twice is the later of the two. Both are
counted in the quality report.
"""

import hashlib
import hmac
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from tasks.params import TIMES, Column, Table, home
from tasks.runtime.sql import literal, quote

HIDDEN = "\x1f"  # begins the names of columns that no header can have
MAX_EXACT = 2**53  # up to here a DOUBLE holds every whole number
MIN_KEY_LENGTH = 16  # characters; shorter keys can be found by trying
DATE = r"\d{4}[-/]\d{1,2}[-/]\d{1,2}"
TIME = r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?"
PLAIN = rf"\s*{DATE}(?:[T ]{TIME}Z?)?\s*"
OFFSET = rf"\s*({DATE}[T ]{TIME})\s*(?:([zZ])|([+-](?:0\d|1[0-4])):?([0-5]\d)?)\s*"
NAMED = rf"\s*({DATE}[T ]{TIME})\s+([A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+)\s*"
ANY_ZONE = rf"^\s*{DATE}(?:[T ]{TIME})?\s*([A-Za-z+(\[-].*?)\s*$"
FATES = {"clip": ", clipped", "empty": ", emptied", "keep": ", kept"}  # of a number beyond a bound, in a rule's name
BLANK = r"[ \t\r\n\f\v]"
SPELLINGS = {  # in the order in which they are applied
    "trim": f"regexp_replace({{}}, '^{BLANK}+|{BLANK}+$', '', 'g')",
    "squeeze": f"regexp_replace({{}}, '{BLANK}+', ' ', 'g')",
    "lower": "lower({})",
    "upper": "upper({})",
}
ZONE_RULE = ", but only an offset such as +02:00, Z or a name such as Europe/Berlin is taken"


def raw_name(name: str) -> str:
    """The column beside a typed one that holds its value as it came, as SQL."""
    return quote(f"{HIDDEN}raw {name}")


@dataclass(frozen=True)
class Rule:
    """One thing that must hold, as SQL: `broken` is true for a bad row, and `reason` then says why."""

    name: str
    broken: str
    reason: str
    is_bad: bool = True  # False: the row is reported, and kept
    looks_up: bool = False  # it looks into another table: DuckDB makes a join of it, which mixes up the rows


def clean_sql(name: str, column: Column, *, kind: str = "VARCHAR", decimal: str = ".") -> str:
    """A column's value as everything after it sees it: in its type, spelled anew and clipped if the contract says so.

    For the arguments see `typed_sql`.
    """
    return mend_sql(typed_sql(quote(name), column, kind=kind, decimal=decimal), column)


def mend_sql(value: str, column: Column) -> str:
    """A typed value, spelled anew (`text`), clipped or emptied where it lies beyond a bound (`outside`), and coarse."""
    if column.text:
        for step in (step for step in SPELLINGS if step in column.text):
            value = SPELLINGS[step].format(value)
        value = f"nullif({value}, '')"
    low, high = column.min, column.max
    if column.type != "DOUBLE":  # the nearest whole numbers within
        low, high = (math.ceil(low) if low is not None else None), (math.floor(high) if high is not None else None)
    if column.outside == "empty":
        beyond = [f"{value} < {low}"] if low is not None else []
        beyond += [f"{value} > {high}"] if high is not None else []
        value = f"CASE WHEN NOT ({' OR '.join(beyond)}) THEN {value} END"
    if column.outside == "clip":
        bounded = f"greatest({value}, {low})" if low is not None else value
        bounded = f"least({bounded}, {high})" if high is not None else bounded
        value = f"CASE WHEN {value} IS NOT NULL THEN CAST({bounded} AS {column.type}) END"
    return coarse_sql(value, column)


def coarse_sql(value: str, column: Column) -> str:
    """A typed value with as much of it as `coarsen` lets through. What is coarse stays as it is."""
    if column.coarsen is None:
        return value
    if column.type == "VARCHAR":
        return f"left({value}, {column.coarsen})"
    if column.type in ("DATE", "TIMESTAMP"):
        return f"CAST(date_trunc({literal(str(column.coarsen))}, {value}) AS {column.type})"
    return f"CAST(floor({value} / {column.coarsen}) * {column.coarsen} AS {column.type})"


def typed_sql(value: str, column: Column, *, kind: str = "VARCHAR", decimal: str = ".") -> str:
    """The SQL value in the contract's type; NULL where it does not fit.

    DuckDB's own cast would round 12.7 to 13, forget a time's offset from UTC or guess its zone, and take infinity for a
    number.

    Args:
        kind: the type that the value has now.
        decimal: what stands before the fraction of a number.
    """
    if is_exact(column, kind):
        return value
    text = kind == "VARCHAR"
    if text and decimal == "," and column.type in ("INTEGER", "BIGINT", "DOUBLE"):
        value = f"CASE WHEN NOT contains({value}, '.') THEN replace({value}, ',', '.') END"
    cast = f"TRY_CAST({value} AS {column.type})"
    if column.type in ("INTEGER", "BIGINT"):
        exact = f"{cast} = TRY_CAST({value} AS DECIMAL(38, 9))"
        near = f"{cast} = TRY_CAST({value} AS DOUBLE)"
        fits = f"CASE WHEN {cast} BETWEEN -{MAX_EXACT} AND {MAX_EXACT} THEN {near} ELSE {exact} END"
        return f"CASE WHEN {fits} THEN {cast} END"
    if column.type == "DOUBLE":
        return f"CASE WHEN isfinite({cast}) THEN {cast} END"
    if text and column.format:
        return f"CAST(TRY_STRPTIME(trim({value}), {literal(column.format)}) AS {column.type})"
    if text and column.type == "TIMESTAMP":
        return timestamp_sql(value)
    if text and column.type == "DATE":
        return date_sql(value)
    if text and column.type == "BOOLEAN":  # a program that writes missing values as NaN writes the others as 1.0, 0.0
        number = f"CASE TRY_CAST({value} AS DOUBLE) WHEN 1 THEN TRUE WHEN 0 THEN FALSE END"
        return f"coalesce(TRY_CAST(trim({value}) AS BOOLEAN), {number})"
    return cast


def is_exact(column: Column, kind: str) -> bool:
    """Whether each value of a type fits a column as it is. A DOUBLE may be infinite."""
    return kind == column.type != "DOUBLE"


def hide_texts(table: Table) -> Table:
    """The table as data/raw holds it: ingest has spelled its personal texts anew, and they are pseudonyms now."""
    columns = {
        name: column.model_copy(update={"text": ()}) if column.pii else column for name, column in table.columns.items()
    }
    return table.model_copy(update={"columns": columns})


def columns_sql(table: Table, *, has_times: bool = True) -> str:
    """The columns of a clean table, as CREATE TABLE wants them."""
    return ", ".join(
        [
            *[f"{quote(name)} {column.type}" for name, column in table.columns.items() if name not in TIMES],
            *(f"{name} TIMESTAMP" for name in TIMES if has_times),
        ]
    )


def build_rules(table: Table, *, texts: Collection[str], decimal: str = ".") -> list[Rule]:
    """Every rule of a table over its raw columns (`raw_name`, `texts` of them as text) and its typed ones.

    Args:
        decimal: what stands before the fraction of a number in a text.
    """
    return [
        rule for name, column in table.columns.items() for rule in _column_rules(name, column, name in texts, decimal)
    ]


def _column_rules(name: str, column: Column, text: bool, decimal: str) -> Iterator[Rule]:
    raw, value, kind = raw_name(name), quote(name), "VARCHAR" if text else column.type
    shown, bare = f"CAST({value} AS VARCHAR)", value
    if column.text or column.outside != "quarantine":  # its clean value does not show what it was
        bare = typed_sql(raw, column, kind=kind, decimal=decimal)
    misfit = f"{raw} IS NOT NULL AND ({bare}) IS NULL"
    if text and column.type in ("TIMESTAMP", "DATE") and not column.format:
        yield from _zone_rules(name, raw, value, has_clock=column.type == "TIMESTAMP")
        misfit = f"CASE WHEN {misfit} THEN {zone_sql(raw)} = '' ELSE FALSE END"
    if not is_exact(column, kind):
        rule = f"is no {column.type}" + (f" of the form {column.format}" if column.format else "")
        yield Rule(f"{name}: type", misfit, _reason_sql(name, f"CAST({raw} AS VARCHAR)", rule))
    if column.required:
        missing = f"{raw} IS NULL" + (f" OR {value} IS NULL" if column.text else "")
        yield Rule(f"{name}: required", missing, literal(f"{name} is missing"))
    if column.text:
        yield Rule(f"{name}: spelled anew", f"{raw} IS DISTINCT FROM {value}", "''", is_bad=False)
    for bound, limit, sign, side in (("min", column.min, "<", "below"), ("max", column.max, ">", "above")):
        if limit is not None:
            fate, is_bad = FATES.get(column.outside, ""), column.outside == "quarantine"
            reason = _reason_sql(name, shown, f"is {side} {limit:g}")
            yield Rule(f"{name}: {bound}{fate}", f"({bare}) {sign} {limit}", reason, is_bad=is_bad)
    if column.allowed is not None:
        other = f"{shown} NOT IN ({', '.join(map(literal, column.allowed))})"
        yield Rule(f"{name}: allowed", other, _reason_sql(name, shown, "is not allowed"))
    if column.references:
        other, _, field = column.references.partition(".")
        known = f"SELECT {quote(field)} FROM {quote(other)} WHERE {quote(field)} IS NOT NULL"
        yield Rule(
            f"{name}: references",
            f"{value} IS NOT NULL AND {value} NOT IN ({known})",  # NOT EXISTS takes twice as long
            _reason_sql(name, shown, f"is not in {column.references}"),
            is_bad=column.unmatched == "quarantine",
            looks_up=True,
        )


def _zone_rules(name: str, raw: str, value: str, *, has_clock: bool) -> Iterator[Rule]:
    """A zone that is not taken is a fault. A time that a change of clocks makes unsure is counted, and kept."""
    zone = zone_sql(raw)
    yield Rule(
        f"{name}: zone",
        f"CASE WHEN {raw} IS NOT NULL AND {value} IS NULL THEN {zone} <> '' ELSE FALSE END",
        f"concat({literal(name + ' ')}, {raw}, ' has the zone ', {zone}, {literal(ZONE_RULE)})",
    )
    if has_clock:
        yield Rule(f"{name}: skipped by the clock", skipped_sql(raw, value), "''", is_bad=False)
        yield Rule(f"{name}: shown twice by the clock", doubled_sql(raw, value), "''", is_bad=False)


def _reason_sql(name: str, value: str, rule: str) -> str:
    return f"concat({literal(name + ' ')}, {value}, {literal(' ' + rule)})"


def find_references(table: Table) -> dict[str, str]:
    """The other tables that a table's columns point to, each with the column that is pointed to."""
    return dict(column.references.split(".", 1) for column in table.columns.values() if column.references)


def sort_tables(tables: dict[str, Table]) -> list[str]:
    """The tables, each after those that it refers to."""
    try:
        return list(TopologicalSorter({name: find_references(table) for name, table in tables.items()}).static_order())
    except CycleError as error:
        raise ValueError(f"contract: these tables refer to each other in a ring: {error.args[1]}") from None


def load_pii_key() -> bytes:
    """The secret that pseudonyms are made with: EVERGREEN_PII_KEY, else the file that `make key` wrote.

    Raises ValueError without one, and for one that is too short: who has the pseudonyms could try all such keys.
    """
    file = home() / "pii.key"
    if text := os.environ.get("EVERGREEN_PII_KEY"):
        key, where, way_out = text.encode(), "EVERGREEN_PII_KEY", "set it to such a key"
    elif file.is_file():
        key, where, way_out = file.read_bytes().strip(), str(file), "remove it and run `make key`"
    else:
        raise ValueError(
            f"the contract has columns with `pii: true`, which needs a key: set EVERGREEN_PII_KEY, or run `make key`, "
            f"which writes one to {file}"
        )
    if len(key) < MIN_KEY_LENGTH:
        raise ValueError(
            f"a key for pseudonyms must have {MIN_KEY_LENGTH} characters or more, but {where} has {len(key)}. "
            f'`python -c "import secrets; print(secrets.token_hex(32))"` makes one; {way_out}.'
        )
    return key


def identify_key(key: bytes) -> str:
    """Eight hex digits that tell keys apart and give nothing away."""
    return hashlib.sha256(b"evergreen pii key id:" + key).hexdigest()[:8]


def make_pseudonym(value: str, key: bytes) -> str:
    """HMAC-SHA256 (RFC 2104), cut to 64 bits: the same person, the same name, and no way back without the key."""
    return hmac.digest(key, value.encode(), "sha256").hex()[:16]


# --- times with zones ------------------------------------------------------------------------------------------------


def timestamp_sql(text: str) -> str:
    """The SQL text → a TIMESTAMP in UTC; NULL where it is none, or its zone is not taken. The session's zone is UTC."""
    zulu = f"regexp_replace({text}, {literal(f'^{OFFSET}$')}, '\\1Z')"
    offset = f"regexp_replace({text}, {literal(f'^{OFFSET}$')}, '\\1\\3:\\4')"
    spelled = f"CASE WHEN regexp_matches({text}, '[zZ]\\s*$') THEN {zulu} ELSE rtrim({offset}, ':') END"
    return (
        f"CAST(CASE WHEN regexp_full_match({text}, {literal(PLAIN)}) THEN TRY_CAST({text} AS TIMESTAMPTZ) "
        f"WHEN regexp_full_match({text}, {literal(OFFSET)}) THEN TRY_CAST({spelled} AS TIMESTAMPTZ) "
        f"WHEN regexp_full_match({text}, {literal(NAMED)}) THEN TRY_CAST(trim({text}) AS TIMESTAMPTZ) "
        "END AS TIMESTAMP)"
    )


def date_sql(text: str) -> str:
    """The SQL text → the DATE that it names, in whatever zone it is given; NULL where a zone is not taken."""
    forms = " OR ".join(f"regexp_full_match({text}, {literal(form)})" for form in (PLAIN, OFFSET, NAMED))
    return f"CASE WHEN {forms} THEN TRY_CAST(trim({text}) AS DATE) END"


def zone_sql(text: str) -> str:
    """The zone in a text that is no time; empty where there is none. Only to be asked of a text that was not taken."""
    return f"regexp_extract({text}, {literal(ANY_ZONE)}, 1)"


def skipped_sql(text: str, utc: str) -> str:
    """Whether the clock was put forward over this local time."""
    return _named(text, utc, f"{_local(text, utc)} <> {_written(text)}")


def doubled_sql(text: str, utc: str) -> str:
    """Whether the clock showed this local time twice, a day's change of offset around it."""
    around = (f"({utc} - INTERVAL 1 DAY)", f"({utc} + INTERVAL 1 DAY)")
    others = [f"{_written(text)} - ({_local(text, near)} - ({near}))" for near in around]
    same = " OR ".join(f"(({other}) <> {utc} AND {_local(text, f'({other})')} = {_written(text)})" for other in others)
    return _named(text, utc, f"{_local(text, utc)} = {_written(text)} AND ({same})")


def _named(text: str, utc: str, condition: str) -> str:
    """CASE, since its branches are computed for the rows of their conditions only: an unknown zone is an error."""
    named = f"{utc} IS NOT NULL AND contains({text}, '/')"
    inner = f"CASE WHEN regexp_full_match({text}, {literal(NAMED)}) THEN {condition} ELSE FALSE END"
    return f"CASE WHEN {named} THEN {inner} ELSE FALSE END"


def _local(text: str, utc: str) -> str:
    return f"timezone(regexp_extract({text}, {literal(NAMED)}, 2), timezone('UTC', {utc}))"


def _written(text: str) -> str:
    return f"CAST(regexp_extract({text}, {literal(NAMED)}, 1) AS TIMESTAMP)"
