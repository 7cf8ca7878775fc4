"""What a column holds is told by its values: the type, the marks of missing values, how times are spelled, persons."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import params
from tasks.drafting.columns import Looked, look_at
from tasks.drafting.sheet import Sheet, guess_encoding, open_sheet
from tasks.params import Source
from tests.tasks.drafting.tables import ROOT

Read = Callable[[str | bytes], tuple[Sheet, Looked]]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """The text of a file → what it is taken for."""
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))

    def read(text: str | bytes, name: str = "table.csv") -> tuple[Sheet, Looked]:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with open_sheet(params.load(ROOT / "params.yaml"), Source(address=str(path))) as sheet:
            return sheet, look_at(sheet)

    return read


def column(values: list[str], name: str = "x") -> str:
    """A file with one column, and a second one to hold the delimiter."""
    return "\n".join([f"{name}|other", *(f"{value}|a" for value in values)]) + "\n"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "2", "-3"], "INTEGER"),
        (["1", "3000000000"], "BIGINT"),
        (["1", "2.5"], "DOUBLE"),
        (["1,5", "2"], "DOUBLE"),
        (["1e3", "2"], "DOUBLE"),
        (["007", "012"], "VARCHAR"),
        (["true", "False"], "BOOLEAN"),
        (["a", "1"], "VARCHAR"),
        (["yes", "no"], "VARCHAR"),
    ],
)
def test_a_type_holds_every_value(read: Read, values: list[str], kind: str) -> None:
    assert read(column(values))[1].columns["x"].type == kind


@pytest.mark.parametrize(
    ("values", "kind", "form"),
    [
        (["2020-01-31", "2020-02-01"], "DATE", None),
        (["2020-01-31 10:00", "2020-02-01 11:30"], "TIMESTAMP", None),
        (["31.01.2020", "01.02.2020"], "DATE", "%d.%m.%Y"),
        (["01/31/2020", "02/01/2020"], "DATE", "%m/%d/%Y"),
        (["1/2/2020", "2/2/2020", "3/2/2020", "4/2/2020"], "DATE", "%d/%m/%Y"),
        (["1/2/2020", "1/3/2020", "1/4/2020", "1/5/2020"], "DATE", "%m/%d/%Y"),
        (["Jan 1 2000", "Feb 1 2000"], "DATE", "%b %d %Y"),
        (["31-Jan-20", "01-Feb-20"], "DATE", "%d-%b-%y"),
        (["1/31/2020 4:05 PM", "2/1/2020 11:30 AM"], "TIMESTAMP", "%m/%d/%Y %I:%M %p"),
        (["20200131", "20200201"], "DATE", "%Y%m%d"),
        (["2020M01", "2020M02"], "DATE", "%YM%m"),
        (["2020Q1", "2020Q2"], "VARCHAR", None),
    ],
)
def test_a_time_is_read_as_it_is_spelled(read: Read, values: list[str], kind: str, form: str | None) -> None:
    look = read(column(values))[1].columns["x"]
    assert look.spelling is not None
    assert (look.type, look.spelling.format) == (kind, form)


def test_a_whole_number_is_a_time_only_where_its_name_says_so(read: Read) -> None:
    seconds = [str(1_600_000_000 + i) for i in range(5)]
    assert read(column(seconds, "created_at"))[1].columns["created_at"].spelling is not None
    assert read(column(seconds, "area"))[1].columns["area"].spelling is None
    assert read(column(["1999", "2000"], "Year"))[1].columns["Year"].type == "DATE"
    assert read(column(["1999", "2000"], "price"))[1].columns["price"].type == "INTEGER"


def test_what_stands_for_a_missing_value_is_none_of_the_values(read: Read) -> None:
    values = [str(i / 2) for i in range(40)] + ["NA"] * 3 + ["-999"] * 4
    looked = read(column(values))[1]
    assert set(looked.nulls) == {"NA", "-999"}
    assert (looked.columns["x"].type, looked.columns["x"].filled) == ("DOUBLE", 40)


def test_a_number_that_is_ordinary_in_another_column_stays(read: Read) -> None:
    rows = [f"{'-200' if i % 5 == 0 else i},{-300 + i * 10}" for i in range(40)]
    assert read("x,y\n" + "\n".join(rows))[1].nulls == ()


def test_a_lone_extreme_is_no_mark(read: Read) -> None:
    assert read(column([str(i) for i in range(40)] + ["999"]))[1].nulls == ()
    assert read(column([str(i % 7) for i in range(40)] + ["-1"] * 5))[1].nulls == ()


def test_a_mark_of_the_table_s_own_is_seen(read: Read) -> None:
    looked = read(column([str(i / 4) for i in range(40)] + ["n.d."] * 5))[1]
    assert looked.nulls == ("n.d.",)
    assert looked.columns["x"].type == "DOUBLE"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("contact", ["ann@example.org", "bob@example.com"]),
        ("host", ["10.0.0.1", "192.168.1.20"]),
        ("reach", ["+49 30 1234567", "+49 171 7654321"]),
        ("FirstName", ["Ann", "Bob"]),
        ("date_of_birth", ["1980-01-01", "1990-02-02"]),
        ("phone", ["5551234", "5559876"]),
    ],
)
def test_what_tells_of_a_person_is_marked(read: Read, name: str, values: list[str]) -> None:
    look = read(column(values, name))[1].columns[name]
    assert look.personal
    assert look.type == "VARCHAR", "a pseudonym is a text"


@pytest.mark.parametrize("name", ["temperature", "mailing_volume", "streetlights", "zip_rate"])
def test_a_name_that_only_sounds_personal_is_not(read: Read, name: str) -> None:
    assert read(column(["1.5", "2.5"], name))[1].columns[name].personal is None


@pytest.mark.parametrize(
    ("content", "encoding"),
    [("größe".encode(), "utf-8"), ("größe".encode("latin-1"), "latin-1"), ("“größe”".encode("cp1252"), "cp1252")],
)
def test_the_encoding_is_told_by_the_bytes(tmp_path: Path, content: bytes, encoding: str) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    assert guess_encoding(tmp_path / "x.csv") == encoding


def test_a_packed_file_is_read_like_any_other(read: Read) -> None:
    looked = read(gzip.compress(b"x;y\n1,5;a\n"), "table.csv.gz")[1]  # type: ignore[call-arg]
    assert (looked.decimal, looked.columns["x"].type) == (",", "DOUBLE")


def test_fractions_of_a_parquet_file_stay_fractions(read: Read, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0, 2.0], "n": [1, 2]}), tmp_path / "made.parquet")
    looked = read((tmp_path / "made.parquet").read_bytes(), "table.parquet")[1]  # type: ignore[call-arg]
    assert (looked.columns["x"].type, looked.columns["n"].type) == ("DOUBLE", "INTEGER")


def test_a_file_without_a_header_is_refused(read: Read) -> None:
    with pytest.raises(ValueError, match="the first line must name the columns"):
        read("2020-01-01,5.5\n2020-01-02,6.5\n")
