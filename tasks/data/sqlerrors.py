"""What is wrong with SQL that a person wrote: the place, the name, and the way out.

DuckDB's own sentence may show a value of a row. So of an error that comes from a row, only its kind and its place are
used. Errors must come as JSON, which `stage.connect` sets.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache

import duckdb

BEFORE_ROWS = ("ParserException", "BinderException", "CatalogException", "SyntaxException", "NotImplementedException")
MOST_NAMES = 30  # columns that a message lists
LONGEST_TOKEN = 40  # characters of the SQL that are shown
UNKNOWN_COLUMN = re.compile(
    r'does not have a column named "(.+?)"|Column "(.+?)" in \w+ list not found|Referenced column "(.+?)"'
)
UNKNOWN_TABLE = re.compile(r'Referenced table "(.+?)" not found')
SENTENCES = {
    r"No function matches the given name and argument types '(.+?)'\. ": (
        "no function takes {0}. Cast what is of another type, by CAST or TRY_CAST."
    ),
    r'column "(.+?)" must appear in the GROUP BY': (
        "the column `{0}` is neither grouped nor aggregated. Add it to GROUP BY, or use any_value()."
    ),
    r'Ambiguous reference to column name "(.+?)"': (
        "several tables have the column `{0}`. Write the table before it, such as spine.{0}."
    ),
}
RUN_TIME = {
    "ConversionException": "a value cannot be converted: write TRY_CAST, or TRY(...) around it",
    "OutOfRangeException": "a number is too large for its type: cast to a larger one, or write TRY(...) around it",
    "InvalidInputException": "a function does not take a value: write TRY(...) around it, or exclude such rows",
}


@dataclass(frozen=True)
class Fault:
    """DuckDB's error as data. `position` is the byte in the whole statement."""

    kind: str
    message: str
    subtype: str = ""
    thing: str = ""  # of a missing entry: what it would be
    name: str = ""
    position: int | None = None


def explain(
    error: duckdb.Error, sql: str, *, setting: str, before: str = "", columns: Collection[str] = (), tables: str = ""
) -> str:
    """The sentence that refuses `sql`, which `setting` holds and which ran behind the text `before`.

    Args:
        columns: Names that the SQL may use, to suggest one of them.
        tables: Which tables it may use, in words.
    """
    fault = _read(error)
    place = None if fault.position is None else fault.position - len(before.encode())
    where, token = _place(sql, place)
    ends = bool(token) and sql.rstrip().endswith(token)
    return f"{setting}{where} {_sentence(fault, token, columns, tables, ends=ends)}"


def raise_machine_error(error: duckdb.Error) -> None:
    """Raises an error that is no row's fault, such as a full memory or disk, as what it is. Returns for any other."""
    if isinstance(error, duckdb.OutOfMemoryException):
        raise MemoryError("DuckDB needs more than stage.memory. Raise it in params.yaml") from None
    if isinstance(error, duckdb.IOException):
        raise OSError(f"DuckDB cannot read or write a file, as where a disk is full: {read_message(error)}") from None
    if isinstance(error, duckdb.InterruptException | duckdb.InternalException):
        raise error


def read_message(error: duckdb.Error) -> str:
    """DuckDB's own sentence, for errors that can show no value of a row."""
    return _read(error).message or str(error)


def _read(error: duckdb.Error) -> Fault:
    kind, text = type(error).__name__, str(error)
    try:
        content = json.loads(text[text.index("{") :])
    except ValueError:
        return Fault(kind, "")
    message, subtype, thing, name = (content.get(k, "") for k in ("exception_message", "error_subtype", "type", "name"))
    position = content.get("position")
    return Fault(kind, message, subtype, thing, name, None if position is None else int(position))


def _place(sql: str, place: int | None) -> tuple[str, str]:
    """Where a byte of the SQL is, in words, and what stands there."""
    content = sql.encode()
    if place is None or place < 0:
        return ":", ""
    if place >= len(content.rstrip()):
        return ", at its end:", ""
    before = content[:place].decode(errors="ignore")
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    rest = content[place:].decode(errors="ignore")
    match = re.match(r"'(?:[^']|'')*'|\"[^\"]*\"|[\w.]+|::|\S", rest)
    token = match[0] if match else ""
    shown = token if len(token) <= LONGEST_TOKEN else token[:LONGEST_TOKEN] + "..."
    lines = f", line {line}" if "\n" in sql.strip() else ""
    return f"{lines}, column {column}:", shown


def _sentence(fault: Fault, token: str, columns: Collection[str], tables: str, *, ends: bool) -> str:
    if fault.kind == "PermissionException":
        return "it reaches for a file, an address or a setting, which is disabled: it may read only its tables."
    if fault.kind not in BEFORE_ROWS:
        why = RUN_TIME.get(fault.kind, "a value does not fit: write TRY(...) around what fails")
        at = f" at `{token}`" if token else ""
        return f"it fails for a row{at} ({fault.kind}); {why}."
    if fault.subtype == "SYNTAX_ERROR" or fault.kind == "ParserException":
        return _unreadable(fault, token, ends=ends)
    if match := UNKNOWN_TABLE.search(fault.message):
        return f"there is no table `{match[1]}` in its FROM. Name the table as FROM names it."
    match = UNKNOWN_COLUMN.search(fault.message)
    if match or fault.subtype == "COLUMN_NOT_FOUND":
        name = fault.name or next(part for part in (match.groups() if match else ()) if part)
        if "FROM clause is missing" in fault.message:
            return f"the column `{name}` is read without a FROM. Add the table that has it."
        more = ", ..." if len(columns) > MOST_NAMES else ""
        listed = f" There are {', '.join(sorted(columns)[:MOST_NAMES])}{more}." if columns else ""
        return f"there is no column `{name}` here.{suggest(name, columns)}{listed}"
    if fault.subtype == "MISSING_ENTRY":
        if "Function" in fault.thing:
            return f"there is no function {fault.name}().{suggest(fault.name, _list_functions())}"
        if fault.thing in ("Table", "View"):
            return f"there is no table `{fault.name}`.{f' It may read {tables}.' if tables else ''}"
        return f"there is no {fault.thing.lower() or 'entry'} `{fault.name}`."
    for pattern, sentence in SENTENCES.items():
        if match := re.search(pattern, fault.message):
            return sentence.format(match[1])
    first = fault.message.splitlines()[0].rstrip(".!") if fault.message else fault.kind
    return f"DuckDB cannot plan it{f' at `{token}`' if token else ''}: {first}. Mend what it names."


def _unreadable(fault: Fault, token: str, *, ends: bool) -> str:
    if fault.message.startswith("unterminated"):
        return "a text, a name or a comment is opened here and never closed. Close it."
    if match := re.match(r'window "(.+?)" does not exist', fault.message):
        return f"there is no window `{match[1]}`. Define it in the clause WINDOW of the same SELECT."
    if not token:
        return "it is no SQL that can be read: it ends too early. Is a parenthesis left open, or a word missing?"
    missing = ", or something is missing after it" if ends else ""
    return f"it is no SQL that can be read: `{token}` is not expected{missing}. Check words, commas and parentheses."


def find_closest(name: str, names: Iterable[str]) -> str | None:
    """Of some names, the one that a misspelled name most likely means. Capital letters make no difference."""
    spelled = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), list(spelled), n=1)
    return spelled[near[0]] if near else None


def suggest(name: str, names: Iterable[str]) -> str:
    """The question " Did you mean ...?"; nothing where no other name is close."""
    other = find_closest(name, (other for other in names if other.lower() != name.lower()))
    return f" Did you mean `{other}`?" if other else ""


@cache
def _list_functions() -> frozenset[str]:
    with duckdb.connect() as con:
        rows = con.execute("SELECT DISTINCT function_name FROM duckdb_functions()").fetchall()
    return frozenset(name for (name,) in rows if name.isidentifier())
