"""How a column spells a time: as ISO 8601 does, by a format of strptime's, in quarters, in seconds since 1970."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from duckdb import DuckDBPyConnection

from tasks.data import contract
from tasks.runtime.sql import literal, quote

DATES = (
    *(f"%{a}{mark}%{b}{mark}%{year}" for mark in "/.-" for year in "Yy" for a, b in ("dm", "md")),
    "%d %b %Y",
    "%b %d %Y",
    "%d-%b-%Y",
    "%b-%d-%Y",
    "%d-%b-%y",
    "%d/%b/%Y",
    "%d %B %Y",
    "%B %d %Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%a %b %d %Y",
    "%b %Y",
    "%B %Y",
    "%b-%y",
    "%Y-%m",
    "%m/%Y",
    "%YM%m",
    "%Y.%m.%d",
    "%Y%m%d",
)
CLOCKS = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p", "%H.%M.%S", "%H.%M")
MOST_TEXTS = 5000  # distinct ones that a format is tried on
SHARE = 0.99  # of the texts, that a format must fit
YEARS = "BETWEEN TIMESTAMP '1700-01-01' AND TIMESTAMP '2200-01-01'"
YEAR_NAME = re.compile(r"(?i)(^|[^a-z])(year|yr|jahr|annee|ano)([^a-z]|$)")
EPOCH_NAME = re.compile(r"(?i)time|date|stamp|epoch|created|updated|(^|_)(ts|at)$")
EPOCHS = {"epoch_ms({} * 1000)": (10**8, 5 * 10**9), "epoch_ms({})": (10**11, 5 * 10**12)}
QUARTERS = (r"\d{4}[- ]?[Qq][1-4]", "make_date(CAST(left({}, 4) AS INTEGER), 3 * CAST(right({}, 1) AS INTEGER) - 2, 1)")


@dataclass(frozen=True)
class Spelling:
    """How a column's texts are read as times.

    Attributes:
        format: None for ISO 8601.
        other: a second format that fits as well, where day and month cannot be told apart.
        made: SQL that makes the time of the typed column, whose name takes the place of {}; None for a column of times.
    """

    type: Literal["DATE", "TIMESTAMP", "BIGINT", "VARCHAR"]
    format: str | None = None
    other: str | None = None
    made: str | None = None

    def sql(self, column: str) -> str:
        """The time, over the typed column of this name."""
        return self.made.replace("{}", column) if self.made else column


def find_spelling(con: DuckDBPyConnection, column: str, *, whole: bool, without: Sequence[str] = ()) -> Spelling | None:
    """How the column of `raw` spells times; None where it holds none.

    Args:
        whole: all its texts are whole numbers.
        without: texts that stand for a missing value.
    """
    name = quote(column)
    blanks = "".join(f" AND {name} <> {literal(text)}" for text in without)
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE _texts AS SELECT v, row_number() OVER (ORDER BY first) AS place FROM "
        f"(SELECT {name} AS v, min(rowid) AS first FROM raw WHERE {name} IS NOT NULL{blanks} GROUP BY 1) "
        f"ORDER BY first LIMIT {MOST_TEXTS}"
    )
    texts = int(con.execute("SELECT count(*) FROM _texts").fetchall()[0][0])
    if not texts:
        return None
    if whole:
        return _find_number(con, column, texts)
    if _fits(con, contract.timestamp_sql("v"), texts):
        has_clock = con.execute("SELECT count(*) FROM _texts WHERE contains(v, ':')").fetchall()[0][0]
        return Spelling("TIMESTAMP" if has_clock else "DATE")
    form, made = QUARTERS
    if _fits(con, f"CASE WHEN regexp_full_match(v, {literal(form)}) THEN {made.replace('{}', 'v')} END", texts):
        return Spelling("VARCHAR", made=made)
    formats = [form for form in list_formats(_sample(con)) if _fits(con, _parsed(form), texts)]
    if not formats:
        return None
    best = min(formats, key=lambda form: _disorder(con, form))
    others = [form for form in formats if form != best and _disorder(con, form) == _disorder(con, best)]
    return Spelling("TIMESTAMP" if "%H" in best or "%I" in best else "DATE", best, others[0] if others else None)


def list_formats(sample: Sequence[str]) -> Iterator[str]:
    """The formats that such texts may have, day before month first."""
    has_clock = any(":" in text or re.search(r"\d\.\d\d\.\d\d$", text) for text in sample)
    for date in DATES:
        if not has_clock:
            yield date
        for clock in CLOCKS if has_clock else ():
            for between in (" ", "T", ", "):
                yield f"{date}{between}{clock}"


def _find_number(con: DuckDBPyConnection, column: str, texts: int) -> Spelling | None:
    """Whole numbers are times where they look like 20130131, or their column's name says so."""
    if _fits(con, f"CASE WHEN regexp_full_match(v, '(1[7-9]|2[01])\\d{{6}}') THEN {_parsed('%Y%m%d')} END", texts):
        return Spelling("DATE", "%Y%m%d")
    year = f"CASE WHEN regexp_full_match(v, '(1[7-9]|20)\\d\\d') THEN {_parsed('%Y')} END"
    if YEAR_NAME.search(column) and _fits(con, year, texts):
        return Spelling("DATE", "%Y")
    for made, (low, high) in EPOCHS.items():
        within = f"CASE WHEN TRY_CAST(v AS BIGINT) BETWEEN {low} AND {high} THEN TIMESTAMP '2000-01-01' END"
        if EPOCH_NAME.search(column) and _fits(con, within, texts):
            return Spelling("BIGINT", made=made)
    return None


def _parsed(form: str) -> str:
    return f"TRY_STRPTIME(v, {literal(form)})"


def _fits(con: DuckDBPyConnection, sql: str, texts: int) -> bool:
    count = con.execute(f"SELECT count(*) FROM (SELECT {sql} AS t FROM _texts) WHERE t {YEARS}").fetchall()[0][0]
    return int(count) >= max(SHARE * texts, 1)


def _sample(con: DuckDBPyConnection) -> list[str]:
    return [row[0] for row in con.execute("SELECT v FROM _texts LIMIT 100").fetchall()]


def _disorder(con: DuckDBPyConnection, form: str) -> tuple[int, float]:
    """How often the times turn back, and their longest gap by the usual one: what is read rightly is mostly in order,
    and even."""
    back, on, longest, usual = con.execute(
        "SELECT count(*) FILTER (t < before), count(*) FILTER (t > before), "
        "max(epoch(t - lower)) FILTER (t > lower), median(epoch(t - lower)) FILTER (t > lower) FROM "
        "(SELECT t, lag(t) OVER (ORDER BY place) AS before, lag(t) OVER (ORDER BY t) AS lower FROM "
        f"(SELECT place, {_parsed(form)} AS t FROM _texts))"
    ).fetchall()[0]
    return min(int(back), int(on)), round(float(longest or 0) / float(usual or 1), 3)
