"""SQL that a person wrote: what features.sql may use, and what is wrong with any such SQL, with the way out.

Features must come out the same in training, in a tick of the score flow and in the API. So a file, an address, the
clock, chance, a setting or a second statement is refused, by name and with its line, before anything runs. Should the
check miss one, the database in which the SQL runs cannot reach outside (`close_connection`).

DuckDB's own sentence may show a value of a row. So of an error that comes from a row, only its kind and its place are
used. Errors must come as JSON, which `stage.connect` sets.
"""

import contextlib
import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache, lru_cache
from typing import Any, NoReturn

import duckdb

SETTINGS = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",  # else a table may be any variable of this process
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "lock_configuration": "true",  # last: it locks the others
}
TABLE_FUNCTIONS = {"unnest", "range", "generate_series", "json_each", "json_tree"}  # of values, not of files
# DuckDB's catalog calls these consistent (one of them draws a sample), or has them only in its command line.
MORE_REFUSED = {"ago", "current_localtime", "current_localtimestamp", "getenv", "reservoir_quantile", "version"}
HARMLESS = {"error", "getvariable"}  # volatile by the catalog; of variables only the lead, see _check_function
BARE_CLOCKS = {"current_timestamp", "current_date", "current_time", "localtime", "localtimestamp"}  # no parentheses
BY_SOURCES = "becomes a table by `sources` in params.yaml."
WAY_OUT = "The time that a row is asked at is event_time - getvariable('lead')."
Node = dict[str, Any]

BEFORE_ROWS = ("ParserException", "BinderException", "CatalogException", "SyntaxException", "NotImplementedException")
MOST_NAMES = 30  # columns that a message lists
LONGEST_TOKEN = 40  # characters of the SQL that are shown
UNKNOWN_COLUMN = re.compile(
    r'does not have a column named "(.+?)"|Column "(.+?)" in \w+ list not found|Referenced column "(.+?)"'
)
SENTENCES = {
    "^unterminated": "a text, a name or a comment is opened here and never closed. Close it.",
    '^window "(.+?)" does not exist': ("there is no window `{0}`. Define it in the clause WINDOW of the same SELECT."),
    'Referenced table "(.+?)" not found': "there is no table `{0}` in its FROM. Name the table as FROM names it.",
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


# --- what features.sql may use ---------------------------------------------------------------------------------------


def close_connection(con: duckdb.DuckDBPyConnection) -> None:
    """Cut a connection off from files, the network, Python's variables and its own settings, for good."""
    if not con.execute("SELECT current_setting('lock_configuration')").fetchall()[0][0]:
        for name, value in SETTINGS.items():
            con.execute(f"SET {name} = {value}")


def check_sql(sql: str, tables: Collection[str], columns: Collection[str]) -> None:
    """Raises ValueError for SQL that is not one SELECT over `spine` and these tables, by functions of their values.

    `columns` are the names of the tables' columns.
    """
    nodes = _parse(sql)
    withs = [entry["key"] for node, _ in nodes if "cte_map" in node for entry in node["cte_map"]["map"]]
    withs += [node["cte_name"] for node, _ in nodes if node.get("type") == "RECURSIVE_CTE_NODE"]
    readable = {name.lower() for name in (*tables, "spine", *withs)}
    clocks = BARE_CLOCKS - {name.lower() for name in columns}
    for node, place in nodes:
        line = sql.encode()[:place].count(b"\n") + 1
        kind, category = node.get("type"), node.get("class")
        if node.get("sample"):
            _refuse(line, "draws a sample, and another one each time", "Choose rows by their values.")
        if kind == "SHOW_REF":
            _refuse(line, "describes a table", "Select from it.")
        if kind == "BASE_TABLE":
            *schema, name = node["qualified_name"]["path"]
            if schema or name.lower() not in readable:
                what = f"reads `{'.'.join([*schema, name])}`, but it may read only spine and the clean tables"
                way_out = f"{suggest(name, readable)} A file or another database {BY_SOURCES}".lstrip()
                _refuse(line, f"{what} ({', '.join(sorted(tables))})", way_out)
        if kind == "TABLE_FUNCTION" and (name := node["function"]["function_name"].lower()) not in TABLE_FUNCTIONS:
            what = f"reads from {name}(), but it may read only spine and the clean tables"
            _refuse(line, what, f"A file or an address {BY_SOURCES}")
        if category in ("FUNCTION", "WINDOW"):
            _check_function(node, line)
        if category == "COLUMN_REF" and len(node["column_names"]) == 1:
            name = node["column_names"][0].lower()
            if name in clocks:
                _refuse(line, f"uses {name}, which is another one each time", WAY_OUT)


def find_tables(sql: str) -> frozenset[str]:
    """The names, in small letters, of what the SQL reads from."""
    tables = (node for node, _ in _parse(sql) if node.get("type") == "BASE_TABLE")
    return frozenset(node["qualified_name"]["path"][-1].lower() for node in tables)


@lru_cache(maxsize=32)
def _parse(sql: str) -> list[tuple[Node, int]]:
    """The objects of the SQL's tree. Raises ValueError for what is no SQL, or not one SELECT."""
    with duckdb.connect(config={"errors_as_json": True}) as con:
        try:
            kinds = [statement.type.name for statement in con.extract_statements(sql)]
        except duckdb.Error as error:
            raise ValueError(explain(error, sql, setting="features.sql")) from None
        if kinds == ["MULTI"]:
            raise ValueError(
                "features.sql must be one SELECT, but it holds a PIVOT whose columns depend on the rows. Name the "
                "values in its IN (...)."
            )
        if kinds != ["SELECT"]:
            listed = ", ".join(kinds) or "nothing"
            raise ValueError(
                f"features.sql must be one SELECT, but it holds {len(kinds)} statements ({listed}). Keep one SELECT; "
                "what it needs beforehand goes into its WITH."
            )
        tree = json.loads(con.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0])
    if tree["error"]:
        raise ValueError(f"features.sql must be one SELECT, but {tree.get('error_message', 'it cannot be read')}.")
    return list(_nodes(tree, 0))


def _nodes(value: Any, place: int) -> Iterator[tuple[Node, int]]:
    """Every object of the tree, with its place in the text in bytes, or that of the nearest around it."""
    if isinstance(value, dict):
        own = value.get("query_location", place)
        place = own if own < 2**63 else place  # DuckDB's number for nowhere
        yield value, place
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(part, place)


def _check_function(node: Node, line: int) -> None:
    name, arguments = node["function_name"].lower(), node["arguments"]
    literal = arguments[0]["expression"].get("literal") if len(arguments) == 1 else None
    text = str(literal["text"]).lower() if literal and literal["kind"] == "STRING" else None
    if name == "getvariable" and text != "lead":
        _refuse(line, "reads a variable other than 'lead'", "getvariable('lead') is the only one that is always set.")
    if name in _refused_functions() or (name == "age" and len(arguments) < 2):
        _refuse(line, f"calls {name}(), whose value depends on more than the tables", WAY_OUT)


def _refuse(line: int, what: str, way_out: str) -> NoReturn:
    raise ValueError(f"features.sql, line {line}, {what}. {way_out}")


@cache
def _refused_functions() -> frozenset[str]:
    """By DuckDB's catalog: functions whose value depends on more than their arguments, and macros that use one."""
    unstable = {name for name, stability, _ in _list_functions() if stability not in ("CONSISTENT", None)}
    names = unstable - HARMLESS | MORE_REFUSED
    inside = re.compile(r"\b(duckdb_\w+|pragma_\w+|" + "|".join(sorted(names | BARE_CLOCKS)) + r")\b")
    return frozenset(names | {name for name, _, macro in _list_functions() if inside.search(macro or "")})


@cache
def _list_functions() -> list[tuple[str, str | None, str | None]]:
    """The name of each function of DuckDB's catalog, whether it is stable, and its text where it is a macro."""
    with duckdb.connect() as con:
        query = "SELECT function_name, stability, macro_definition FROM duckdb_functions()"
        return con.execute(query).fetchall()


# --- what is wrong ---------------------------------------------------------------------------------------------------


def explain(
    error: duckdb.Error, sql: str, *, setting: str, before: str = "", columns: Collection[str] = (), tables: str = ""
) -> str:
    """The sentence that refuses `sql`, which `setting` holds and which ran behind the text `before`.

    Args:
        columns: Names that the SQL may use, to suggest one of them.
        tables: Which tables it may use, in words.

    Raises:
        Exception: the error is no row's fault (`raise_machine_error`).
    """
    raise_machine_error(error)
    position = _read(error).get("position")  # the byte in the whole statement
    where, token = _place(sql, -1 if position is None else int(position) - len(before.encode()))
    return f"{setting}{where} {_sentence(error, sql, token, columns, tables)}"


def raise_machine_error(error: duckdb.Error) -> None:
    """Raises an error that is no row's fault, such as a full memory or disk, as what it is. Returns for any other."""
    if isinstance(error, duckdb.OutOfMemoryException):
        raise MemoryError("DuckDB needs more than stage.memory. Raise it in params.yaml") from None
    if isinstance(error, duckdb.IOException):
        reason = _read(error).get("exception_message") or error  # of a file: it can show no value of a row
        raise OSError(f"DuckDB cannot read or write a file, as where a disk is full: {reason}") from None
    if isinstance(error, duckdb.InterruptException | duckdb.InternalException):
        raise error


def _read(error: duckdb.Error) -> dict[str, Any]:
    """DuckDB's error as data; empty where it is no JSON."""
    text = str(error)
    with contextlib.suppress(ValueError):
        return dict(json.loads(text[text.index("{") :]))
    return {}


def _place(sql: str, place: int) -> tuple[str, str]:
    """Where a byte of the SQL is, in words, and what stands there. A negative place is nowhere."""
    content = sql.encode()
    if place < 0:
        return ":", ""
    if place >= len(content.rstrip()):
        return ", at its end:", ""
    before, rest = (part.decode(errors="ignore") for part in (content[:place], content[place:]))
    match = re.match(r"'(?:[^']|'')*'|\"[^\"]*\"|[\w.]+|::|\S", rest)
    token = match[0] if match else ""
    shown = token if len(token) <= LONGEST_TOKEN else token[:LONGEST_TOKEN] + "..."
    line = f", line {before.count(chr(10)) + 1}" if "\n" in sql.strip() else ""
    return f"{line}, column {len(before) - before.rfind(chr(10))}:", shown


def _sentence(error: duckdb.Error, sql: str, token: str, columns: Collection[str], tables: str) -> str:
    kind, details, at = type(error).__name__, _read(error), f" at `{token}`" if token else ""
    message, subtype, name = (details.get(key, "") for key in ("exception_message", "error_subtype", "name"))
    if kind == "PermissionException":
        return "it reaches for a file, an address or a setting, which is disabled: it may read only its tables."
    if kind not in BEFORE_ROWS:
        why = RUN_TIME.get(kind, "a value does not fit: write TRY(...) around what fails")
        return f"it fails for a row{at} ({kind}); {why}."
    for pattern, sentence in SENTENCES.items():
        if match := re.search(pattern, message):
            return sentence.format(*match.groups())
    if subtype == "SYNTAX_ERROR" or kind == "ParserException":
        if word := _find_own_word(sql, token, columns):
            return (
                f'`{word}` is a word of SQL\'s own. Where it names a column, put double quotes around it: "{word}" (in '
                f"YAML, where it stands alone: '\"{word}\"')."
            )
        if not token:
            return "it is no SQL that can be read: it ends too early. Is a parenthesis left open, or a word missing?"
        missing = ", or something is missing after it" if sql.rstrip().endswith(token) else ""
        return (
            f"it is no SQL that can be read: `{token}` is not expected{missing}. Check words, commas and parentheses."
        )
    match = UNKNOWN_COLUMN.search(message)
    if match or subtype == "COLUMN_NOT_FOUND":
        name = name or next(filter(None, match.groups() if match else ()))
        if "FROM clause is missing" in message:
            return f"the column `{name}` is read without a FROM. Add the table that has it."
        more = ", ..." if len(columns) > MOST_NAMES else ""
        listed = f" There are {', '.join(sorted(columns)[:MOST_NAMES])}{more}." if columns else ""
        return f"there is no column `{name}` here.{suggest(name, columns)}{listed}"
    if subtype == "MISSING_ENTRY":
        thing = details.get("type", "")
        if "Function" in thing:
            functions = {function for function, *_ in _list_functions() if function.isidentifier()}
            return f"there is no function {name}().{suggest(name, functions)}"
        if thing in ("Table", "View"):
            return f"there is no table `{name}`.{f' It may read {tables}.' if tables else ''}"
        return f"there is no {thing.lower() or 'entry'} `{name}`."
    first = message.splitlines()[0].rstrip(".!") if message else kind
    return f"DuckDB cannot plan it{at}: {first}. Mend what it names."


def _find_own_word(sql: str, token: str, columns: Collection[str]) -> str | None:
    """The word of SQL's own that was most likely meant as a column: all of the expression, or a column's name."""
    whole = sql.strip()
    names = {column.lower() for column in columns}
    meant = [whole] if re.fullmatch(r"\w+", whole) else [token] if token.lower() in names else []
    return next((word for word in meant if word.lower() in _list_own_words()), None)


@cache
def _list_own_words() -> frozenset[str]:
    """Words that name no column without double quotes."""
    with duckdb.connect() as con:
        rows = con.execute(
            "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved'"
        ).fetchall()
    return frozenset(word for (word,) in rows)


def find_closest(name: str, names: Iterable[str]) -> str | None:
    """Of some names, the one that a misspelled name most likely means. Capital letters make no difference."""
    spelled = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), list(spelled), n=1)
    return spelled[near[0]] if near else None


def suggest(name: str, names: Iterable[str]) -> str:
    """The question " Did you mean ...?"; nothing where no other name is close."""
    other = find_closest(name, (other for other in names if other.lower() != name.lower()))
    return f" Did you mean `{other}`?" if other else ""
