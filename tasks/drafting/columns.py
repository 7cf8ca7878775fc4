"""What each column of a sheet holds: its type, what stands for a missing value, whether it tells of a person.

A guess is made of all values, never of a column's name alone, but for personal data, years and epochs. A column whose
values fit no type whole becomes text.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks.data import contract
from tasks.drafting import times
from tasks.drafting.sheet import Sheet
from tasks.params import Column
from tasks.runtime.sql import literal, quote

NUMBER = {mark: rf"[-+]?(\d+({re.escape(mark)}\d*)?|{re.escape(mark)}\d+)([eE][-+]?\d+)?" for mark in ".,"}
WHOLE = r"[-+]?\d+"
PADDED = r"0\d+"  # 007 is a name, not a number
BLANKS = ("NA", "N/A", "n/a", "#N/A", "NULL", "Null", "null", "None", "none", "NaN", "nan", "-", "--", "?", ".", "..")
SURE_BLANKS = ("N/A", "n/a", "#N/A", "NULL", "null", "None", "NaN", "nan", "?")  # in a column of texts, too
NUMBERS = ("INTEGER", "BIGINT", "DOUBLE")
MISFITS = 0.01  # of a column's values that may fit its type and no mark: they go to quarantine
MARK_ROWS, MARK_SHARE = 3, 0.001  # so often at least stands a number for a missing value
ROUND = re.compile(r"-?(9{2,}|9+\.9+|[129]0{2,})")  # 999, -99.9, -200
MOST_LEVELS = 50
LARGEST_INTEGER = 2**31 - 1
PERSONAL = re.compile(
    r"(?i)(^|_)(e_?mail|mail|phone|mobile|cell|fax|telefon|ssn|passport|iban|birth_?(day|date)?|dob|geburtsdatum|"
    r"(first|last|middle|full|sur|given|family|maiden|customer|patient|user|contact)_?names?|vorname|nachname|"
    r"(street_?|home_?|postal_?|ip_?)?address(es)?|street|strasse|ip|licen[cs]e_?(no|number|plate)|card_?(no|number)|"
    r"account_?(no|number|holder)|tax_?(id|number)|social_?security(_?number)?|kennzeichen|adresse)(_\d+)?$"
)
LOOKS = {  # personal by their values
    "e-mail addresses": r"[^@\s]+@[^@\s]+\.[a-zA-Z]{2,}",
    "telephone numbers": r"(\+\d{1,3}[ -]?)(\(?\d+\)?[ /-]?){2,5}\d+|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4}",
    "IP addresses": r"(25[0-5]|2[0-4]\d|1?\d?\d)(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}",
    "bank accounts (IBAN)": r"[A-Z]{2}\d{2}( ?[A-Z0-9]{4}){3,7}( ?[A-Z0-9]{1,3})?",
    "social security numbers": r"\d{3}-\d{2}-\d{4}",
}
LOOKS_SHARE = 0.5
MOST_OTHERS = 30  # texts of no form that are looked at


@dataclass(frozen=True)
class Look:
    """What one column holds.

    Attributes:
        filled: rows with a value.
        distinct: different values.
        decimals: digits after the decimal mark, at most.
        levels: the most frequent values, at most MOST_LEVELS, as text.
        nulls: texts of this column that stand for a missing value.
        personal: why it seems to tell of a person; None where it does not.
        spelling: of a time.
    """

    name: str
    type: str
    filled: int
    distinct: int
    decimals: int = 0
    levels: tuple[str, ...] = ()
    nulls: tuple[str, ...] = ()
    personal: str | None = None
    spelling: times.Spelling | None = None
    misfits: int = 0

    @property
    def is_number(self) -> bool:
        return self.type in NUMBERS and not self.is_time

    @property
    def is_time(self) -> bool:
        return self.spelling is not None

    @property
    def is_text(self) -> bool:
        return self.type == "VARCHAR" and not self.is_time

    @property
    def column(self) -> Column:
        """As the contract has it, without what its place in the table decides."""
        form = self.spelling.format if self.spelling else None
        return Column(type=self.type, format=form, pii=bool(self.personal))


@dataclass(frozen=True)
class Looked:
    """All columns, and what holds for the whole source."""

    columns: dict[str, Look]
    decimal: str
    nulls: tuple[str, ...]


def look_at(sheet: Sheet) -> Looked:
    """Every column of the sheet."""
    texts = {name: _read_texts(sheet, name) for name in sheet.columns}
    decimal = _choose_decimal(list(texts.values()))
    looks = {name: _look(sheet, name, texts[name], decimal) for name in sheet.columns}
    marks = _find_marks(sheet, looks, decimal)
    nulls = tuple(dict.fromkeys([*(text for look in looks.values() for text in look.nulls), *marks]))
    return Looked({name: _count(sheet, look, nulls) for name, look in looks.items()}, decimal, nulls)


@dataclass(frozen=True)
class _Texts:
    """How many of a column's texts have which form, and the most frequent ones of no form."""

    filled: int
    dot: int
    comma: int
    whole: int
    padded: int
    truth: int
    others: dict[str, int]

    def numbers(self, decimal: str) -> int:
        return self.dot if decimal == "." else self.comma


def _read_texts(sheet: Sheet, name: str) -> _Texts:
    v = quote(name)
    patterns = (NUMBER["."], NUMBER[","], WHOLE, PADDED, "(?i)true|false")
    counts = ", ".join(f"count(*) FILTER (regexp_full_match({v}, {literal(form)}))" for form in patterns)
    row = sheet.con.execute(f"SELECT count({v}), {counts} FROM raw").fetchall()[0]
    either = f"regexp_full_match({v}, {literal(NUMBER['.'] + '|' + NUMBER[','])})"
    others = sheet.con.execute(
        f"SELECT {v}, count(*) AS n FROM raw WHERE {v} IS NOT NULL AND NOT {either} "
        f"GROUP BY 1 ORDER BY n DESC, 1 LIMIT {MOST_OTHERS}"
    ).fetchall()
    filled, dot, comma, whole, padded, truth = map(int, row)
    return _Texts(filled, dot, comma, whole, padded, truth, dict(others))


def _choose_decimal(columns: Sequence[_Texts]) -> str:
    """A comma where more columns are numbers only by it than only by a point."""
    comma = sum(1 for one in columns if one.comma > one.whole and one.comma >= one.dot)
    dot = sum(1 for one in columns if one.dot > one.whole and one.dot >= one.comma)
    return "," if comma > dot else "."


def _look(sheet: Sheet, name: str, texts: _Texts, decimal: str) -> Look:
    personal = _find_personal(sheet, name, texts)
    look = Look(name, "VARCHAR", texts.filled, 0, personal=personal)
    numbers = texts.numbers(decimal)
    blanks = {text: count for text, count in texts.others.items() if text in BLANKS}
    rest = texts.filled - numbers - sum(blanks.values())
    own = next(iter(texts.others), None)  # a mark of its own, such as n.d.
    if own and own not in blanks and rest and texts.others[own] >= max(MARK_ROWS, 0.9 * rest) and numbers > rest:
        blanks[own] = texts.others[own]
        rest -= texts.others[own]
    is_whole = numbers == texts.whole and name not in sheet.fractions
    if personal or not texts.filled:
        return replace(look, nulls=tuple(text for text in blanks if text in SURE_BLANKS))
    if numbers and rest <= MISFITS * texts.filled and not texts.padded:
        spelling = times.find_spelling(sheet.con, name, whole=True) if is_whole else None
        if spelling:
            return replace(look, type=spelling.type, spelling=spelling, nulls=tuple(blanks), misfits=rest)
        kind = _number_type(sheet, name) if is_whole else "DOUBLE"
        return replace(look, type=kind, nulls=tuple(blanks), misfits=rest)
    if texts.truth + sum(blanks.values()) == texts.filled:
        return replace(look, type="BOOLEAN", nulls=tuple(blanks))
    if not numbers and (spelling := times.find_spelling(sheet.con, name, whole=False, without=tuple(blanks))):
        return replace(look, type=spelling.type, spelling=spelling, nulls=tuple(blanks))
    return replace(look, nulls=tuple(text for text in blanks if text in SURE_BLANKS))


def _number_type(sheet: Sheet, name: str) -> str:
    largest = sheet.con.execute(f"SELECT max(abs(TRY_CAST({quote(name)} AS HUGEINT))) FROM raw").fetchall()[0][0]
    return "INTEGER" if (largest or 0) <= LARGEST_INTEGER else "BIGINT" if largest < 2**63 else "VARCHAR"


def _find_personal(sheet: Sheet, name: str, texts: _Texts) -> str | None:
    spelled = re.sub(r"(?<=[a-z])(?=[A-Z])|[^0-9A-Za-z]+", "_", name)
    if PERSONAL.search(spelled):
        return "its name says so"
    if not texts.filled:
        return None
    v = quote(name)
    counts = ", ".join(f"count(*) FILTER (regexp_full_match({v}, {literal(form)}))" for form in LOOKS.values())
    row = sheet.con.execute(f"SELECT {counts} FROM (FROM raw LIMIT 100000)").fetchall()[0]
    filled = min(texts.filled, 100_000)
    return next((f"it holds {what}" for what, n in zip(LOOKS, row, strict=True) if n > LOOKS_SHARE * filled), None)


def _find_marks(sheet: Sheet, looks: dict[str, Look], decimal: str) -> list[str]:
    """Numbers that stand for a missing value, as they are spelled. What is an ordinary value elsewhere is none."""
    counts = {name: _count_numbers(sheet, name, decimal) for name, look in looks.items() if look.is_number}
    marks: set[float] = set()
    for values in counts.values():
        marks |= {mark for mark in (_find_mark(values, low) for low in (True, False)) if mark is not None}
    ordinary = {mark for mark in marks for values in counts.values() if _is_ordinary(mark, values)}
    texts: dict[str, None] = {}
    for name in counts:
        for mark in sorted(marks - ordinary):
            value = _number_sql(name, decimal)
            rows = sheet.con.execute(f"SELECT DISTINCT {quote(name)} FROM raw WHERE {value} = {mark!r}").fetchall()
            texts |= dict.fromkeys(sorted(row[0] for row in rows))
    return list(texts)


def _number_sql(name: str, decimal: str) -> str:
    value = quote(name) if decimal == "." else f"replace({quote(name)}, ',', '.')"
    return f"TRY_CAST({value} AS DOUBLE)"


def _count_numbers(sheet: Sheet, name: str, decimal: str) -> Counter[float]:
    value = _number_sql(name, decimal)
    rows = sheet.con.execute(f"SELECT {value} AS x, count(*) FROM raw WHERE isfinite({value}) GROUP BY 1").fetchall()
    return Counter(dict(rows))


def _find_mark(values: Counter[float], low: bool) -> float | None:
    """The lowest or highest value, where it comes often, is round, and lies far from all others or beyond zero."""
    if len(values) < 3:
        return None
    ordered = sorted(values, reverse=not low)
    edge, near, far = ordered[0], ordered[1], ordered[-1]
    if values[edge] < max(MARK_ROWS, MARK_SHARE * sum(values.values())) or not ROUND.fullmatch(f"{edge:g}"):
        return None
    is_apart = abs(edge - near) > abs(near - far)
    is_only_negative = edge < 0 <= near
    return edge if is_apart or is_only_negative else None


def _is_ordinary(mark: float, values: Counter[float]) -> bool:
    others = [value for value in values if value != mark]
    return mark in values and bool(others) and min(others) <= mark <= max(others)


def _count(sheet: Sheet, look: Look, nulls: Sequence[str]) -> Look:
    """The counts, without what stands for a missing value."""
    v = quote(look.name)
    listed = ", ".join(map(literal, nulls))
    where = f"{v} IS NOT NULL" + (f" AND {v} NOT IN ({listed})" if nulls else "")
    filled, distinct = sheet.con.execute(f"SELECT count(*), count(DISTINCT {v}) FROM raw WHERE {where}").fetchall()[0]
    levels = sheet.con.execute(
        f"SELECT {v} FROM raw WHERE {where} GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT {MOST_LEVELS}"
    ).fetchall()
    decimals = 0
    if look.type == "DOUBLE":
        fraction = f"length(regexp_extract({v}, '[.,](\\d*)', 1))"
        decimals = sheet.con.execute(f"SELECT max({fraction}) FROM raw WHERE {where}").fetchall()[0][0] or 0
    return replace(
        look, filled=int(filled), distinct=int(distinct), levels=tuple(row[0] for row in levels), decimals=int(decimals)
    )


def type_table(sheet: Sheet, looked: Looked) -> None:
    """Make the table `typed`: the values as the contract's types."""
    listed = ", ".join(map(literal, looked.nulls))
    raw = ", ".join(
        f"CASE WHEN {quote(name)} NOT IN ({listed}) THEN {quote(name)} END AS {quote(name)}" if listed else quote(name)
        for name in looked.columns
    )
    typed = ", ".join(
        f"{contract.typed_sql(quote(name), look.column, decimal=looked.decimal)} AS {quote(name)}"
        for name, look in looked.columns.items()
    )
    sheet.con.execute(f"CREATE OR REPLACE TEMP TABLE typed AS SELECT {typed} FROM (SELECT {raw} FROM raw)")


def read_one(sheet: Sheet, sql: str) -> tuple[Any, ...]:
    """The one row of a query."""
    row: tuple[Any, ...] = sheet.con.execute(sql).fetchall()[0]
    return row
