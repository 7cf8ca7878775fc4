"""sandbox: what features.sql may use: the spine, the clean tables and the lead, and nothing else.

Features must come out the same in training, in a tick of the score flow and in the API. So a file, an address, the
clock, chance, a setting or a second statement is refused, by name and with its line, before anything runs; and the
database in which the SQL runs cannot reach outside (`close`), whatever the check has missed.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterator
from functools import cache, lru_cache
from typing import Any, NoReturn

import duckdb

from tasks.data import sqlerrors

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
WAY_OUT = "The time that a row is asked at is event_time - getvariable('lead')."
Node = dict[str, Any]


def close_connection(con: duckdb.DuckDBPyConnection) -> None:
    """Cut a connection off from files, the network, Python's variables and its own settings, for good."""
    row = con.execute("SELECT current_setting('lock_configuration')").fetchone()
    if row is None or not row[0]:
        for name, value in SETTINGS.items():
            con.execute(f"SET {name} = {value}")


def check_sql(sql: str, tables: Collection[str], columns: Collection[str]) -> None:
    """Raises ValueError for SQL that is not one SELECT over `spine` and these tables, by functions of their values.

    `columns` are the names of the tables' columns.
    """
    _check(sql, frozenset(tables), frozenset(columns))


@lru_cache(maxsize=32)
def _check(sql: str, tables: frozenset[str], columns: frozenset[str]) -> None:
    tree = _parse(sql)
    readable = {name.lower() for name in (*tables, "spine", *_with_names(tree))}
    for node, place in _nodes(tree, 0):
        line = sql.encode()[:place].count(b"\n") + 1
        if node.get("sample"):
            _refuse(line, "draws a sample, and another one each time", "Choose rows by their values.")
        if node.get("type") == "SHOW_REF":
            _refuse(line, "describes a table", "Select from it.")
        if node.get("type") == "BASE_TABLE":
            _check_table(node["qualified_name"]["path"], line, readable, tables)
        if node.get("type") == "TABLE_FUNCTION":
            _check_table_function(node["function"]["function_name"].lower(), line)
        if node.get("class") in ("FUNCTION", "WINDOW"):
            _check_function(node, line)
        if node.get("class") == "COLUMN_REF":
            _check_column(node["column_names"], line, columns)


@lru_cache(maxsize=32)
def find_tables(sql: str) -> frozenset[str]:
    """The names, in small letters, of what the SQL reads from."""
    nodes = (node for node, _ in _nodes(_parse(sql), 0) if node.get("type") == "BASE_TABLE")
    return frozenset(node["qualified_name"]["path"][-1].lower() for node in nodes)


def _parse(sql: str) -> Any:
    """The SQL as a tree. Raises ValueError for what is no SQL, or not one SELECT."""
    with duckdb.connect(config={"errors_as_json": True}) as con:
        try:
            kinds = [statement.type.name for statement in con.extract_statements(sql)]
        except duckdb.Error as error:
            raise ValueError(sqlerrors.explain(error, sql, setting="features.sql")) from None
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
        row = con.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    tree = json.loads(row[0]) if row else {"error": True}
    if tree["error"]:
        raise ValueError(f"features.sql must be one SELECT, but {tree.get('error_message', 'it cannot be read')}.")
    return tree


def _nodes(value: Any, place: int) -> Iterator[tuple[Node, int]]:
    """Every object of the tree, with its place in the text in bytes, or that of the nearest around it."""
    if isinstance(value, dict):
        own = value.get("query_location", place)
        place = own if own < 2**63 else place  # DuckDB's number for nowhere
        yield value, place
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(part, place)


def _with_names(tree: Any) -> Iterator[str]:
    for node, _ in _nodes(tree, 0):
        if "cte_map" in node:
            yield from (entry["key"] for entry in node["cte_map"]["map"])
        if node.get("type") == "RECURSIVE_CTE_NODE":
            yield node["cte_name"]


def _check_table(path: list[str], line: int, readable: Collection[str], tables: Collection[str]) -> None:
    *schema, name = path
    if name.lower() in readable and not schema:
        return
    near = difflib.get_close_matches(name.lower(), readable, n=1)
    hint = f" Did you mean `{near[0]}`?" if near and near[0] != name.lower() else ""
    raise ValueError(
        f"features.sql, line {line}, reads `{'.'.join(path)}`, but it may read only spine and the clean tables "
        f"({', '.join(sorted(tables))}).{hint} A file or another database becomes a table by `sources` in params.yaml."
    )


def _check_table_function(name: str, line: int) -> None:
    if name not in TABLE_FUNCTIONS:
        _refuse(
            line,
            f"reads from {name}(), but it may read only spine and the clean tables",
            "A file or an address becomes a table by `sources` in params.yaml.",
        )


def _check_function(node: Node, line: int) -> None:
    name, arguments = node["function_name"].lower(), node["arguments"]
    if name == "getvariable" and _text(arguments) != "lead":
        _refuse(line, "reads a variable other than 'lead'", "getvariable('lead') is the only one that is always set.")
    if name in _refused_functions() or (name == "age" and len(arguments) < 2):
        _refuse(line, f"calls {name}(), whose value depends on more than the tables", WAY_OUT)


def _text(arguments: list[Node]) -> str | None:
    """The one argument, where it is a plain text."""
    literal = arguments[0]["expression"].get("literal") if len(arguments) == 1 else None
    return str(literal["text"]).lower() if literal and literal["kind"] == "STRING" else None


def _check_column(path: list[str], line: int, columns: Collection[str]) -> None:
    name = path[-1].lower()
    if len(path) == 1 and name in BARE_CLOCKS and name not in {column.lower() for column in columns}:
        _refuse(line, f"uses {name}, which is another one each time", WAY_OUT)


def _refuse(line: int, what: str, way_out: str) -> NoReturn:
    raise ValueError(f"features.sql, line {line}, {what}. {way_out}")


@cache
def _refused_functions() -> frozenset[str]:
    """By DuckDB's own catalog: functions whose value is not told by their arguments, and macros that use one."""
    with duckdb.connect() as con:
        unstable = "SELECT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
        macros = "SELECT function_name, macro_definition FROM duckdb_functions() WHERE function_type = 'macro'"
        names = {row[0] for row in con.execute(unstable).fetchall()} - HARMLESS | MORE_REFUSED
        definitions = con.execute(macros).fetchall()
    inside = re.compile(r"\b(duckdb_\w+|pragma_\w+|" + "|".join(sorted(names | BARE_CLOCKS)) + r")\b")
    return frozenset(names | {name for name, text in definitions if inside.search(text or "")})
