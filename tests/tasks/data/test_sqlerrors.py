"""Faults of SQL are told in our words: the place, the name that does not exist, those that do; never a row's value."""

import re
from collections.abc import Iterator

import duckdb
import pytest

from tasks import params
from tasks.data import sandbox, sqlerrors
from tasks.runtime import stage
from tests.conftest import raw_params

BEFORE = "CREATE OR REPLACE TEMP TABLE _found AS "
LIBRARY = re.compile(r"(Binder|Parser|Catalog|Conversion|Invalid Input|Out of Range) Error|LINE \d|Candidate")


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with stage.connect(params.validate(raw_params("binary", 60))) as con:
        con.execute("CREATE TABLE t AS SELECT 1 AS amount, 'a secret' AS name, DATE '2024-01-01' AS day")
        yield con


def explain(con: duckdb.DuckDBPyConnection, sql: str) -> str:
    with pytest.raises(duckdb.Error) as caught:
        con.execute(BEFORE + sql)
    columns = ("amount", "name", "day")
    return sqlerrors.explain(caught.value, sql, setting="it", before=BEFORE, columns=columns, tables="t")


@pytest.mark.parametrize(
    ("sql", "rule"),
    [
        (
            "SELECT day,\n  amuont FROM t",
            "it, line 2, column 3: there is no column `amuont` here. Did you mean `amount`?",
        ),
        ("SELECT 'é', amuont FROM t", "it, column 13: there is no column `amuont` here."),
        ("SELECT t.zz FROM t", "no column `zz` here. There are amount, day, name."),
        ("SELECT * EXCLUDE (zz) FROM t", "it: there is no column `zz` here."),
        ("SELECT x.day FROM t", "there is no table `x` in its FROM"),
        ("SELECT flor(amount) FROM t", "column 8: there is no function flor(). Did you mean `floor`?"),
        ("SELECT day FROM tt", "column 17: there is no table `tt`. It may read t."),
        ("SELECT day::FOO FROM t", "there is no type `FOO`."),
        ("SELECT day FORM t", "column 17: it is no SQL that can be read: `t` is not expected"),
        ("SELECT (day", "or something is missing after it"),
        ("SELECT 'abc FROM t", "column 8: a text, a name or a comment is opened here and never closed."),
        ("SELECT sum(amount) OVER w FROM t", "there is no window `w`."),
        ("SELECT sum(name) FROM t", "no function takes sum(VARCHAR)."),
        ("SELECT day, max(name) FROM t", "the column `day` is neither grouped nor aggregated."),
        ("SELECT day FROM t a JOIN t b ON TRUE", "several tables have the column `day`."),
        ("SELECT amount < name FROM t", "DuckDB cannot plan it at `amount`: Cannot compare"),
        ("SELECT name::INTEGER FROM t", "column 12: it fails for a row at `::` (ConversionException)"),
        ("SELECT CASE WHEN name THEN 1 END FROM t", "it fails for a row at `name`"),
        ("SELECT strptime(name, '%Y') FROM t", "it fails for a row (InvalidInputException)"),
        ("SELECT error(name) FROM t", "it fails for a row (InvalidInputException)"),
        ("SELECT 5000000000 * 5000000000 * amount FROM t", "it fails for a row (OutOfRangeException)"),
    ],
)
def test_a_fault_names_its_place_and_no_value(con: duckdb.DuckDBPyConnection, sql: str, rule: str) -> None:
    sentence = explain(con, sql)
    assert rule in sentence
    assert "secret" not in sentence
    assert not LIBRARY.search(sentence)


def test_sql_that_cannot_be_parsed_is_told_before_anything_runs() -> None:
    with pytest.raises(ValueError, match=r"features.sql, line 2, column 8: it is no SQL .* `WHERE` is not expected"):
        sandbox.check_sql("SELECT row_id\n, FROM WHERE", ["orders"], ["amount"])


def test_what_the_machine_lacks_is_no_rows_fault() -> None:
    with pytest.raises(OSError, match="as where a disk is full: no space"):
        sqlerrors.raise_machine_error(duckdb.IOException("no space"))
    with pytest.raises(MemoryError, match=r"stage\.memory"):
        sqlerrors.raise_machine_error(duckdb.OutOfMemoryException("x"))
