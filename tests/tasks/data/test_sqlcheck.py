"""features.sql uses the spine, the clean tables and the lead; all else is refused, and out of reach. Faults of SQL are
told in our words: the place, the name that does not exist, those that do; never a row's value."""

import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from tasks import params
from tasks.data import featuresql, sqlcheck
from tasks.runtime import stage
from tests.conftest import FEATURES_SQL, raw_params

ROOT = Path(__file__).parents[3]
TABLES = ("orders", "customers")
COLUMNS = ("number", "amount", "placed")
BEFORE = "CREATE OR REPLACE TEMP TABLE _found AS "
LIBRARY = re.compile(r"(Binder|Parser|Catalog|Conversion|Invalid Input|Out of Range) Error|LINE \d|Candidate")


def check(sql: str) -> None:
    sqlcheck.check_sql(sql, TABLES, COLUMNS)


def refusal(sql: str) -> str:
    with pytest.raises(ValueError) as caught:
        check(sql)
    return str(caught.value)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT row_id, amount FROM spine",
        "SELECT row_id, amount FROM SPINE;\n-- the end; really",
        "FROM spine SELECT row_id, amount",
        "WITH a AS (SELECT * FROM orders), B AS (SELECT * FROM a) SELECT row_id, (SELECT count(*) FROM b) n FROM spine",
        "SELECT row_id, (WITH inner_rows AS (FROM orders) SELECT count(*) FROM inner_rows) AS n FROM spine",
        "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r WHERE a < 3) SELECT row_id, a FROM spine, r",
        "SELECT row_id, age(event_time, placed) AS a FROM spine JOIN orders USING (number)",
        "SELECT row_id, event_time - getvariable('LEAD') > placed AS b FROM spine JOIN orders USING (number)",
        "SELECT row_id, i FROM spine, range(3) t(i)",
        "SELECT row_id, unnest([1, 2]) AS a FROM spine, unnest([1, 2]) t(i)",
        "SELECT row_id, list_transform([amount], lambda x: x + 1)[1] AS a FROM spine",
        "SELECT row_id, 'now(); random()' AS \"random()\" FROM spine",
        "SELECT row_id, CASE WHEN amount < 0 THEN error('negative') ELSE amount END AS a FROM spine",
        "SELECT row_id, o.now FROM spine JOIN (SELECT number, amount AS now FROM orders) o USING (number)",
        "SELECT * FROM (PIVOT spine ON store IN ('north', 'south') USING count(*))",
        "SELECT row_id, if(amount > 1, 1, 0) AS a, nullif(amount, 2) AS b, split_part(store, 'o', 1) AS c FROM spine",
        "SELECT row_id, a FROM spine JOIN (VALUES (1, 2)) t(number, a) USING (number)",
    ],
)
def test_what_depends_on_the_tables_only_is_taken(sql: str) -> None:
    check(sql)


def test_a_column_may_have_the_name_of_a_clock() -> None:
    sql = "SELECT row_id, current_date FROM spine"
    assert "uses current_date" in refusal(sql)
    sqlcheck.check_sql(sql, TABLES, [*COLUMNS, "Current_Date"])


def test_the_real_features_are_taken() -> None:
    p = params.load(ROOT / "params.yaml")
    featuresql.check_sql(p, (ROOT / "tasks/features.sql").read_text())
    sqlcheck.check_sql(FEATURES_SQL, ["orders", "traffic", "customers"], [])


@pytest.mark.parametrize(
    "source",
    [
        "'data/clean/orders/2024-01.parquet'",
        '"data/clean/orders/*.parquet"',
        "'/etc/passwd'",
        "'https://example.org/x.csv'",
        "read_csv('x.csv')",
        "read_parquet('x.parquet')",
        "parquet_scan(['x.parquet'])",
        "read_text('x')",
        "read_blob('x')",
        "read_json('x')",
        "sniff_csv('x')",
        "parquet_metadata('x')",
        "glob('*')",
        "query('SELECT now()')",
        "query_table('orders')",
        "duckdb_settings()",
        "duckdb_variables()",
        "pragma_version()",
        "duckdb_tables",
        "pg_class",
        "information_schema.tables",
        "temp.main.orders",
        "other.orders",
        "ordres",
        "_orders",
        "_rows",
        "python_variable",
        "repeat(1, 2)",
    ],
)
@pytest.mark.parametrize(
    "where", ["SELECT row_id, 1 AS a FROM spine, {}", "SELECT row_id, (SELECT 1 FROM {}) AS a FROM spine"]
)
def test_a_source_that_is_no_table_of_params_is_refused(source: str, where: str) -> None:
    assert re.search(r"features\.sql, line 1, reads .* but it may read only spine", refusal(where.format(source)))


@pytest.mark.parametrize(
    "value",
    [
        *("now()", "NOW()", "today()", "current_timestamp", "current_date", "current_time", "localtime"),
        *("localtimestamp", "transaction_timestamp()", "get_current_timestamp()", "current_localtimestamp()"),
        *("age(event_time)", "event_time.age()", "event_time.age().year()", "ago(INTERVAL 1 DAY)"),
        *("system.main.now()", "pg_postmaster_start_time()", "reservoir_quantile(amount, 0.5)"),
        *("random()", "uuid()", "gen_random_uuid()", "uuidv7()", "setseed(0.5)", "nextval('s')", "currval('s')"),
        *("getenv('HOME')", "current_setting('threads')", "getvariable('other')", "getvariable(store)", "version()"),
        *("current_query()", "txid_current()", "current_database()", "write_log('x')", "get_block_size('memory')"),
        *("list_transform([1], lambda x: x + random())[1]", "CASE WHEN amount > 1 THEN random() END"),
        *("sum(random()) OVER (ORDER BY event_time)", "count(*) FILTER (now() > event_time) OVER ()", "'a' || uuid()"),
        "reservoir_quantile(amount, 0.5) OVER ()",
    ],
)
def test_a_value_that_is_another_one_each_time_is_refused(value: str) -> None:
    assert re.match(
        r"features\.sql, line 3, (calls|uses|reads a variable)", refusal(f"SELECT row_id,\n\n{value} AS a FROM spine")
    )


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT row_id, amount FROM spine ORDER BY random()",
        "SELECT row_id, amount FROM spine WHERE random() < 2",
        "SELECT row_id, amount FROM spine QUALIFY random() < 2",
        "SELECT row_id, count(*) AS a FROM spine GROUP BY row_id HAVING random() < 2",
        "SELECT row_id, amount FROM spine JOIN orders ON random() < 2",
        "SELECT row_id, amount FROM spine LIMIT (SELECT random() * 9)",
        "WITH a AS (SELECT random() AS x) SELECT row_id, 1 AS one FROM spine",
        "SELECT row_id, a FROM spine, range(CAST(random() * 9 AS INT)) t(a)",
        "SELECT row_id, amount FROM spine UNION ALL SELECT row_id, random() FROM spine",
    ],
)
def test_a_volatile_function_is_refused_wherever_it_stands(sql: str) -> None:
    assert "calls random()" in refusal(sql)


@pytest.mark.parametrize(
    "sample", ["USING SAMPLE 3", "TABLESAMPLE 10%", "USING SAMPLE reservoir(3 ROWS) REPEATABLE (7)"]
)
def test_a_sample_is_refused(sample: str) -> None:
    assert "draws a sample" in refusal(f"SELECT row_id, amount FROM spine {sample}")


@pytest.mark.parametrize(
    ("sql", "kinds"),
    [
        ("", r"0 statements \(nothing\)"),
        ("-- nothing", r"0 statements \(nothing\)"),
        ("SELECT row_id FROM spine; SELECT 2", r"2 statements \(SELECT, SELECT\)"),
        ("SELECT row_id FROM spine; COPY orders TO 'x'", r"2 statements \(SELECT, COPY\)"),
        ("ATTACH 'x.db' AS o; SELECT row_id FROM spine", r"2 statements \(ATTACH, SELECT\)"),
        ("CREATE MACRO m() AS random(); SELECT row_id, m() FROM spine", r"2 statements"),
        ("CREATE VIEW v AS FROM 'x.csv'; SELECT row_id, 1 AS a FROM v", r"2 statements"),
        ("COPY (SELECT 1) TO 'x'", r"1 statements \(COPY\)"),
        ("PRAGMA database_list", r"1 statements \(PRAGMA\)"),
        ("SET threads = 1", r"1 statements \(SET\)"),
        ("INSTALL httpfs", r"1 statements \(LOAD\)"),
        ("EXPLAIN SELECT 1", r"1 statements \(EXPLAIN\)"),
        ("DROP TABLE orders", r"1 statements \(DROP\)"),
        ("PIVOT spine ON store USING count(*)", r"PIVOT whose columns depend on the rows"),
    ],
)
def test_anything_but_one_select_is_refused(sql: str, kinds: str) -> None:
    assert re.search(
        rf"must be one SELECT, but it holds .*{kinds}|must be one SELECT, but it holds a {kinds}", refusal(sql)
    )


def test_a_description_of_a_table_is_no_source() -> None:
    for sql in ("DESCRIBE spine", "SUMMARIZE spine", "SHOW TABLES", "SELECT * FROM (DESCRIBE spine)"):
        assert re.search("describes a table|must be one SELECT|may read only spine", refusal(sql))


def test_the_line_is_counted_where_letters_take_several_bytes() -> None:
    assert "line 3, calls now()" in refusal("-- größer, 長い\nSELECT row_id, 'ééééé' AS é,\nnow() AS a FROM spine")


# --- the second wall: what the check has missed does not work


@pytest.fixture
def closed(tmp_path: Path) -> duckdb.DuckDBPyConnection:
    (tmp_path / "x.csv").write_text("a\n1\n")
    con = duckdb.connect()
    con.execute("CREATE TEMP TABLE spine AS SELECT 1 AS row_id")
    con.register("fed", pa.table({"a": [1]}))
    sqlcheck.close_connection(con)
    sqlcheck.close_connection(con)
    return con


@pytest.mark.parametrize(
    "sql",
    [
        "FROM '{}/x.csv'",
        "FROM read_csv('{}/x.csv')",
        "FROM read_text('{}/x.csv')",
        "FROM glob('{}/*')",
        "COPY spine TO '{}/y.csv'",
        "ATTACH '{}/y.db' AS y",
        "EXPORT DATABASE '{}/out'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "RESET enable_external_access",
        "SET lock_configuration = false",
        "SET python_enable_replacements = true",
        "FROM variable_of_this_test",
    ],
)
def test_a_closed_connection_reaches_nothing_outside(
    closed: duckdb.DuckDBPyConnection, tmp_path: Path, sql: str
) -> None:
    variable_of_this_test = pa.table({"a": [1]})
    assert variable_of_this_test.num_rows == 1
    with pytest.raises(duckdb.Error):
        closed.execute(sql.format(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_a_closed_connection_spills_to_disk_as_before(tmp_path: Path) -> None:
    con = duckdb.connect(config={"threads": 1, "memory_limit": "60MB", "temp_directory": str(tmp_path)})
    sqlcheck.close_connection(con)
    con.execute("CREATE TEMP TABLE t AS SELECT hash(i) AS a, i AS b FROM range(6000000) r(i)")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 0
    assert con.execute("SELECT count(*) FROM t").fetchall() == [(6_000_000,)]


def test_the_functions_that_duckdb_calls_unstable_are_refused_by_its_own_list() -> None:
    """Another release of DuckDB may bring more of them."""
    refused = sqlcheck._refused_functions()
    assert {"now", "random", "uuid", "nextval", "today", "current_setting", "ago", "pg_conf_load_time"} <= refused
    assert not {"abs", "date_trunc", "if", "nullif", "getvariable", "epoch", "timezone", "age", "list_avg"} & refused


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with stage.connect(params.validate(raw_params("binary", 60))) as con:
        con.execute("CREATE TABLE t AS SELECT 1 AS amount, 'a secret' AS name, DATE '2024-01-01' AS day")
        yield con


def explain(con: duckdb.DuckDBPyConnection, sql: str) -> str:
    with pytest.raises(duckdb.Error) as caught:
        con.execute(BEFORE + sql)
    columns = ("amount", "name", "day")
    return sqlcheck.explain(caught.value, sql, setting="it", before=BEFORE, columns=columns, tables="t")


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
        sqlcheck.check_sql("SELECT row_id\n, FROM WHERE", ["orders"], ["amount"])


@pytest.mark.parametrize("sql", ["at", "order", "amount + order"])
def test_a_column_that_is_a_word_of_sql_is_told_to_be_quoted(sql: str, con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.Error) as error:
        con.execute(f"SELECT ({sql}\n) FROM (SELECT 1 AS amount)")
    sentence = sqlcheck.explain(error.value, sql, setting="event_time", before="SELECT (", columns=["amount", "order"])
    assert f'put double quotes around it: "{sql.split()[-1]}"' in sentence


def test_what_the_machine_lacks_is_no_rows_fault() -> None:
    with pytest.raises(OSError, match="as where a disk is full: no space"):
        sqlcheck.raise_machine_error(duckdb.IOException("no space"))
    with pytest.raises(MemoryError, match=r"stage\.memory"):
        sqlcheck.raise_machine_error(duckdb.OutOfMemoryException("x"))
