"""The contract as SQL says of each value whether it keeps the rules, and hides personal data under one name each."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data import contract
from tasks.params import Column, Table
from tasks.runtime import sql

ZONES = contract.ZONE_RULE


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        yield con


@pytest.fixture
def judge(con: duckdb.DuckDBPyConnection) -> Callable[..., list[str]]:
    """A column and a raw value → what its broken rules say; of those that are only counted, the names."""

    def judge(value: Any, **column: Any) -> list[str]:
        found = Table(columns={"x": Column(**column)})
        typed = contract.clean_sql("x", found.columns["x"])
        con.execute("CREATE OR REPLACE TEMP TABLE given AS SELECT ? AS x", [value])
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE checked AS SELECT {typed} AS x, x AS {contract.raw_name('x')} FROM given"
        )
        reasons = [
            f"CASE WHEN {rule.broken} THEN {rule.reason if rule.is_bad else sql.literal(rule.name)} END"
            for rule in contract.build_rules(found, texts={"x"})
        ]
        said = con.execute(f"SELECT {', '.join(reasons)} FROM checked").fetchall()[0]
        return [each for each in said if each]

    return judge


@pytest.mark.parametrize(
    ("value", "column", "reasons"),
    [
        ("12", {"type": "INTEGER"}, []),
        ("12.0", {"type": "INTEGER"}, []),
        ("12.7", {"type": "INTEGER"}, ["x 12.7 is no INTEGER"]),
        ("12x", {"type": "INTEGER"}, ["x 12x is no INTEGER"]),
        ("3000000000", {"type": "INTEGER"}, ["x 3000000000 is no INTEGER"]),
        ("9007199254740993", {"type": "BIGINT"}, []),
        ("1.5", {"type": "DOUBLE"}, []),
        ("inf", {"type": "DOUBLE"}, ["x inf is no DOUBLE"]),
        ("nan", {"type": "DOUBLE"}, ["x nan is no DOUBLE"]),
        ("9007199254740993.4", {"type": "BIGINT"}, ["x 9007199254740993.4 is no BIGINT"]),
        ("31.12.2020", {"type": "DATE", "format": "%d.%m.%Y"}, []),
        ("1/2/2020 4:05 PM", {"type": "TIMESTAMP", "format": "%m/%d/%Y %I:%M %p"}, []),
        ("12/31/2020", {"type": "DATE", "format": "%d/%m/%Y"}, ["x 12/31/2020 is no DATE of the form %d/%m/%Y"]),
        ("2020-12-31", {"type": "DATE", "format": "%d/%m/%Y"}, ["x 2020-12-31 is no DATE of the form %d/%m/%Y"]),
        ("epoch", {"type": "TIMESTAMP"}, ["x epoch is no TIMESTAMP"]),
        ("2024-02-01 10:00 PST", {"type": "TIMESTAMP"}, [f"x 2024-02-01 10:00 PST has the zone PST{ZONES}"]),
        ("2024-02-01 10:00 UTC", {"type": "TIMESTAMP"}, [f"x 2024-02-01 10:00 UTC has the zone UTC{ZONES}"]),
        (
            "2024-02-01 10:00 Foo/Bar",
            {"type": "TIMESTAMP"},
            [f"x 2024-02-01 10:00 Foo/Bar has the zone Foo/Bar{ZONES}"],
        ),
        ("2024-02-01 10:00+99:00", {"type": "TIMESTAMP"}, [f"x 2024-02-01 10:00+99:00 has the zone +99:00{ZONES}"]),
        ("2024-02-01 10:00 PST", {"type": "DATE"}, [f"x 2024-02-01 10:00 PST has the zone PST{ZONES}"]),
        ("2024-02-30", {"type": "TIMESTAMP"}, ["x 2024-02-30 is no TIMESTAMP"]),
        ("2024-02-01", {"type": "DATE"}, []),
        ("perhaps", {"type": "BOOLEAN"}, ["x perhaps is no BOOLEAN"]),
        ("1.0", {"type": "BOOLEAN"}, []),
        (" true ", {"type": "BOOLEAN"}, []),
        ("0.5", {"type": "BOOLEAN"}, ["x 0.5 is no BOOLEAN"]),
        (None, {"type": "INTEGER"}, []),
        (None, {"type": "INTEGER", "required": True}, ["x is missing"]),
        ("5", {"type": "INTEGER", "min": 5, "max": 5}, []),
        ("4", {"type": "INTEGER", "min": 5}, ["x 4 is below 5"]),
        ("6.5", {"type": "DOUBLE", "max": 5}, ["x 6.5 is above 5"]),
        ("red", {"type": "VARCHAR", "allowed": ["red", "it's"]}, []),
        ("it's", {"type": "VARCHAR", "allowed": ["red", "it's"]}, []),
        ("blue", {"type": "VARCHAR", "allowed": ["red"]}, ["x blue is not allowed"]),
        (None, {"type": "VARCHAR", "allowed": ["red"]}, []),
    ],
)
def test_a_value_breaks_the_rules_that_it_breaks_and_no_other(
    judge: Callable[..., list[str]], value: Any, column: dict[str, Any], reasons: list[str]
) -> None:
    assert judge(value, **column) == reasons


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2024-02-01T06:00:00Z", 6),
        ("2024-02-01 06:00", 6),
        ("2024-02-01T06:00:00+02:00", 4),
        ("2024-02-01 06:00:00 +0200", 4),
        ("2024-02-01 06:00z", 6),
        ("2024-02-01 06:00:00 Europe/Berlin", 5),
        ("2024-03-10 02:30:00 America/New_York", 7),  # skipped by the clock: as if it had not been put forward yet
        ("2024-11-03 01:30:00 America/New_York", 6),  # shown twice: the later one
    ],
)
def test_a_time_with_an_offset_is_turned_to_utc(con: duckdb.DuckDBPyConnection, text: str, hour: int) -> None:
    typed = contract.typed_sql("x", Column(type="TIMESTAMP"))
    assert con.execute(f"SELECT hour({typed}) FROM (SELECT ? AS x)", [text]).fetchall() == [(hour,)]


def test_a_day_comes_before_its_month_where_the_format_says_so(con: duckdb.DuckDBPyConnection) -> None:
    typed = contract.typed_sql("x", Column(type="DATE", format="%d/%m/%y"))
    assert str(con.execute(f"SELECT {typed} FROM (SELECT ' 3/2/12 ' AS x)").fetchall()[0][0]) == "2012-02-03"


@pytest.mark.parametrize("form", ["dd.mm.yyyy", "%d.%m.%Y %Z", "%Q"])
def test_a_format_that_is_none_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match="strptime's marks"):
        Column(type="DATE", format=form)


@pytest.mark.parametrize(
    ("value", "column", "mended", "said"),
    [
        ("7", {"type": "INTEGER", "max": 5, "outside": "clip"}, 5, ["x: max, clipped"]),
        ("-7", {"type": "INTEGER", "min": -2.5, "outside": "clip"}, -2, ["x: min, clipped"]),
        ("7.25", {"type": "DOUBLE", "min": 0, "max": 5.5, "outside": "clip"}, 5.5, ["x: max, clipped"]),
        ("9007199254740993", {"type": "BIGINT", "min": 0, "outside": "clip"}, 9007199254740993, []),
        ("3", {"type": "INTEGER", "min": 0, "max": 5, "outside": "clip"}, 3, []),
        (None, {"type": "INTEGER", "min": 0, "outside": "clip"}, None, []),
        ("x", {"type": "INTEGER", "min": 0, "outside": "clip"}, None, ["x x is no INTEGER"]),
        ("7", {"type": "INTEGER", "max": 5, "outside": "empty"}, None, ["x: max, emptied"]),
        ("7", {"type": "INTEGER", "max": 5, "outside": "keep"}, 7, ["x: max, kept"]),
        (" Red\t ", {"type": "VARCHAR", "text": ["trim", "lower"]}, "red", ["x: spelled anew"]),
        ("a \n b", {"type": "VARCHAR", "text": ["squeeze"]}, "a b", ["x: spelled anew"]),
        ("straße", {"type": "VARCHAR", "text": ["upper"]}, "STRAẞE", ["x: spelled anew"]),
        (" red", {"type": "VARCHAR", "text": ["trim"], "allowed": ["red"]}, "red", ["x: spelled anew"]),
        ("red", {"type": "VARCHAR", "text": ["trim"]}, "red", []),
        ("  ", {"type": "VARCHAR", "text": ["trim"]}, None, ["x: spelled anew"]),
        ("  ", {"type": "VARCHAR", "text": ["trim"], "required": True}, None, ["x is missing", "x: spelled anew"]),
        (None, {"type": "VARCHAR", "text": ["trim"]}, None, []),
    ],
)
def test_a_value_is_mended_where_the_contract_says_so_and_each_mended_one_is_counted(
    con: duckdb.DuckDBPyConnection,
    judge: Callable[..., list[str]],
    value: Any,
    column: dict[str, Any],
    mended: Any,
    said: list[str],
) -> None:
    assert judge(value, **column) == said
    assert con.execute("SELECT x FROM checked").fetchall() == [(mended,)]


@pytest.mark.parametrize(
    ("column", "rule"),
    [
        ({"type": "INTEGER", "outside": "clip"}, "needs a min or a max"),
        ({"type": "INTEGER", "text": ["trim"]}, "the type is INTEGER"),
        ({"type": "VARCHAR", "text": ["upper", "lower"]}, "got both"),
        ({"type": "VARCHAR", "required": True, "absent": "empty"}, "may not be absent"),
    ],
)
def test_a_way_to_mend_that_cannot_be_is_refused(column: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Column(**column)


def test_a_name_stands_for_one_column() -> None:
    with pytest.raises(ValueError, match=r"\['x'\] stand for several"):
        Table(columns={"x": Column(type="VARCHAR"), "y": Column(type="VARCHAR", alias=("x",))})


def test_only_a_time_has_a_format() -> None:
    with pytest.raises(ValueError, match="the type is INTEGER"):
        Column(type="INTEGER", format="%Y")


@settings(max_examples=30)
@given(st.text(max_size=20))
def test_any_text_survives_quoting(text: str) -> None:
    text = text.replace("\0", "")
    with duckdb.connect() as con:
        assert con.execute(f"SELECT {sql.literal(text)}").fetchall() == [(text,)]
        if text:
            assert con.execute(f"SELECT 1 AS {sql.quote(text)}").description[0][0] == text


def points(**references: str) -> dict[str, Table]:
    return {
        name: Table(columns={"id": Column(type="VARCHAR"), "other": Column(type="VARCHAR", references=f"{other}.id")})
        for name, other in references.items()
    }


def test_a_table_comes_after_those_that_it_refers_to_wherever_it_stands() -> None:
    tables = {**points(orders="people"), "people": Table(columns={"id": Column(type="VARCHAR")})}
    assert contract.sort_tables(tables) == ["people", "orders"]


def test_tables_that_refer_to_each_other_in_a_ring_are_refused() -> None:
    with pytest.raises(ValueError, match="refer to each other in a ring"):
        contract.sort_tables(points(one="two", two="one"))


def test_the_key_comes_from_the_environment_then_from_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    monkeypatch.setenv("EVERGREEN_PII_KEY", "from the environment, of so many characters")
    assert contract.load_pii_key() == b"from the environment, of so many characters"
    monkeypatch.delenv("EVERGREEN_PII_KEY")
    (tmp_path / "pii.key").write_text("from the file, and long enough\n")
    assert contract.load_pii_key() == b"from the file, and long enough"


def test_without_a_key_the_way_to_one_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    monkeypatch.delenv("EVERGREEN_PII_KEY", raising=False)
    with pytest.raises(ValueError, match="set EVERGREEN_PII_KEY, or run `make key`"):
        contract.load_pii_key()


@pytest.mark.parametrize("key", ["", "\n", "fifteen letters\n"])
def test_a_key_that_can_be_guessed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    monkeypatch.delenv("EVERGREEN_PII_KEY", raising=False)
    (tmp_path / "pii.key").write_text(key)
    with pytest.raises(
        ValueError, match=r"16 characters .*pii\.key has \d+\. .*token_hex.* remove it and run `make key`"
    ):
        contract.load_pii_key()
    monkeypatch.setenv("EVERGREEN_PII_KEY", "fifteen letters")
    with pytest.raises(ValueError, match=r"16 characters .* EVERGREEN_PII_KEY has 15\. .*token_hex"):
        contract.load_pii_key()


def test_a_key_that_could_not_be_written_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty file would look made to the next `make key`."""
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EVERGREEN_PII_KEY", raising=False)
    file = tmp_path / "home" / "pii.key"
    assert make("key", python="false").returncode != 0
    assert not file.exists()
    assert make("key", python=sys.executable).returncode == 0
    assert len(contract.load_pii_key()) == 64
    assert file.stat().st_mode & 0o077 == 0


def make(target: str, *, python: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["make", target, f"PYTHON={python}"], cwd=Path(__file__).parents[3], capture_output=True)


def test_a_person_has_one_pseudonym_a_key_and_another_under_another_key() -> None:
    one = contract.make_pseudonym("ada@example.org", b"key")
    assert one == contract.make_pseudonym("ada@example.org", b"key")
    assert (
        len(
            {
                one,
                contract.make_pseudonym("ada@example.org", b"other"),
                contract.make_pseudonym("bob@example.org", b"key"),
            }
        )
        == 3
    )
    assert len(one) == 16


def test_a_keys_id_tells_keys_apart_and_is_no_part_of_them() -> None:
    assert contract.identify_key(b"one") != contract.identify_key(b"two")
    assert contract.identify_key(b"one") not in contract.make_pseudonym("one", b"one")
