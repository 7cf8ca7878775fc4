"""A time as text → UTC, as SQL. Taken are an offset, Z and Area/City; every other zone means several things.

Where clocks change, a local time with Area/City may be missing or come twice. The rule: a time that the clock skips is
read with the offset from before the change (02:30 becomes 03:30), one that comes twice is the later of the two. Both
are counted in the quality report.
"""

from tasks.runtime.sql import literal

DATE = r"\d{4}[-/]\d{1,2}[-/]\d{1,2}"
TIME = r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?"
PLAIN = rf"\s*{DATE}(?:[T ]{TIME}Z?)?\s*"
OFFSET = rf"\s*({DATE}[T ]{TIME})\s*(?:([zZ])|([+-](?:0\d|1[0-4])):?([0-5]\d)?)\s*"
NAMED = rf"\s*({DATE}[T ]{TIME})\s+([A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+)\s*"
ANY_ZONE = rf"^\s*{DATE}(?:[T ]{TIME})?\s*([A-Za-z+(\[-].*?)\s*$"


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
