"""Names, texts and paths as DuckDB takes them: nothing in a name or a path is ever read as SQL or as a pattern."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

PATTERN = "*?["


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def time_sql(moment: datetime) -> str:
    return f"TIMESTAMP {literal(str(moment))}"


def path_text(path: Path) -> str:
    """A path that DuckDB takes for this one file. It takes every path for a pattern, unless the marks are escaped.

    Raises ValueError for what it cannot be told: a backslash beside such a mark.
    """
    text = str(path.absolute())
    if not any(mark in text for mark in PATTERN):
        return text
    if "\\" in text:
        raise ValueError(
            f"a path with a backslash must have none of {PATTERN}, but got {text}: rename the file or folder"
        )
    return "".join(f"[{letter}]" if letter in PATTERN else letter for letter in text)


def parquet(paths: Iterable[Path], **options: str) -> str:
    """The table function that reads these files and nothing else.

    A folder called a=b adds no column. NaN is looked for although the files' statistics leave it out (duckdb#25521).
    """
    files = ", ".join(literal(path_text(path)) for path in paths)
    extra = {"hive_partitioning": "FALSE", "can_have_nan": "TRUE", **options}
    return f"read_parquet([{files}], {', '.join(f'{name} = {value}' for name, value in extra.items())})"
