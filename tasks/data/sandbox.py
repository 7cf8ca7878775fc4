"""What features.sql may use: the spine, the clean tables and the lead, and nothing else.

Features must come out the same in training, in a tick of the score flow and in the API. So a file, an address, the
clock, chance, a setting or a second statement is refused, by name and with its line, before anything runs. Should the
check miss one, the database in which the SQL runs cannot reach outside (`close_connection`).
"""

import json
import re
from collections.abc import Collection, Iterator
from functools import cache, lru_cache
from typing import Any, NoReturn

import duckdb

from tasks.data import sqlerrors
from tasks.data.sqlerrors import suggest

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


def close_connection(con: duckdb.DuckDBPyConnection) -> None:
    """Cut a connection off from files, the network, Python's variables and its own settings, for good."""
    if not con.execute("SELECT current_setting('lock_configuration')").fetchall()[0][0]:
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
    clocks = BARE_CLOCKS - {name.lower() for name in columns}
    for node, place in _nodes(tree, 0):
        line = sql.encode()[:place].count(b"\n") + 1
        kind, category = node.get("type"), node.get("class")
        if node.get("sample"):
            _refuse(line, "draws a sample, and another one each time", "Choose rows by their values.")
        if kind == "SHOW_REF":
            _refuse(line, "describes a table", "Select from it.")
        if kind == "BASE_TABLE":
            *schema, name = node["qualified_name"]["path"]
            if schema or name.lower() not in readable:
                what = f"reads `{'.'.join([*schema, name])}`, but it may read only spine and the clean tables "
                listed = f"({', '.join(sorted(tables))}).{suggest(name, readable)} A file or another database"
                raise ValueError(f"features.sql, line {line}, {what}{listed} {BY_SOURCES}")
        if kind == "TABLE_FUNCTION" and (name := node["function"]["function_name"].lower()) not in TABLE_FUNCTIONS:
            what = f"reads from {name}(), but it may read only spine and the clean tables"
            _refuse(line, what, f"A file or an address {BY_SOURCES}")
        if category in ("FUNCTION", "WINDOW"):
            _check_function(node, line)
        if category == "COLUMN_REF" and len(node["column_names"]) == 1:
            name = node["column_names"][0].lower()
            if name in clocks:
                _refuse(line, f"uses {name}, which is another one each time", WAY_OUT)


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
        tree = json.loads(con.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0])
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
    with duckdb.connect() as con:
        unstable = "SELECT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
        macros = "SELECT function_name, macro_definition FROM duckdb_functions() WHERE function_type = 'macro'"
        names = {row[0] for row in con.execute(unstable).fetchall()} - HARMLESS | MORE_REFUSED
        definitions = con.execute(macros).fetchall()
    inside = re.compile(r"\b(duckdb_\w+|pragma_\w+|" + "|".join(sorted(names | BARE_CLOCKS)) + r")\b")
    return frozenset(names | {name for name, text in definitions if inside.search(text or "")})
