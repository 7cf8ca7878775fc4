"""people: in which tables and periods a person's rows are, found by the pseudonym of a personal value.

    evergreen person ann@example.org

No index is kept beside the data: a period's file is read by column, so all periods are asked at the speed of a disk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table as Grid

from tasks import params
from tasks.data import contract
from tasks.params import Column, Params
from tasks.runtime.sql import parquet, quote


@dataclass(frozen=True)
class Place:
    """Where a person's rows are: a file of a stage, and how many of its rows have the pseudonym in a column."""

    path: Path
    column: str
    rows: int


def find_places(p: Params, folder: Path, value: str, key: bytes) -> list[Place]:
    """The files of data/raw, data/clean and data/quarantine that hold rows with a personal value.

    Args:
        folder: the checkout.
        value: as a source spells it. It is spelled anew as each column's contract says.
        key: of the pseudonyms.
    """
    with duckdb.connect() as con:
        return [
            place
            for stage in (p.paths.raw, p.paths.clean, p.paths.quarantine)
            for table, rules in p.contract.items()
            for name, rule in rules.columns.items()
            if rule.pii
            for place in _scan_column(con, folder / stage, table, name, _make_pseudonym(con, value, rule, key))
        ]


def _make_pseudonym(con: duckdb.DuckDBPyConnection, value: str, rule: Column, key: bytes) -> str | None:
    """None where nothing is left of the value once it is spelled anew."""
    query = f"SELECT {contract.mend_sql('CAST($1 AS VARCHAR)', rule)}"
    ((mended,),) = con.execute(query, [value]).fetchall()
    return None if mended is None else contract.make_pseudonym(mended, key)


def _scan_column(
    con: duckdb.DuckDBPyConnection, stage: Path, table: str, column: str, pseudonym: str | None
) -> Iterator[Place]:
    paths = [path for path in sorted((stage / table).glob("*.parquet")) if column in pq.read_schema(path).names]
    if pseudonym is None or not paths:
        return
    table_sql = parquet(paths, filename="TRUE")
    query = f"SELECT filename, count(*) FROM {table_sql} WHERE {quote(column)} = $1 GROUP BY 1 ORDER BY 1"
    names = {str(path.absolute()): path for path in paths}
    for name, rows in con.execute(query, [pseudonym]).fetchall():
        yield Place(names[name], column, rows)


def main(value: str | None = None) -> None:
    """In which tables and periods a person's rows are.

    Args:
        value: A value of a column with `pii: true`, as a source spells it. Without it, it is asked for, so that it
            stands in no history of a shell.
    """
    p, key = params.load(), contract.load_pii_key()
    places = find_places(p, Path(), value if value is not None else input("personal value: "), key)
    console = Console(highlight=False)
    if not places:
        console.print("No row of data/raw, data/clean or data/quarantine has this value in a personal column.")
        return
    grid = Grid("file", "column", "rows")
    grid.columns[-1].justify = "right"
    for place in places:
        grid.add_row(str(place.path), place.column, f"{place.rows:,}")
    console.print(grid)
