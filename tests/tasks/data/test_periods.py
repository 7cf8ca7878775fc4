"""Periods tile time, and an entry of their cache is whole or absent."""

import logging
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data import periods
from tasks.runtime.store import Store
from tests.conftest import tree

ROOT = Path(__file__).parents[3]
UNITS = st.sampled_from(["day", "week", "month"])
MOMENTS = st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1))


@given(MOMENTS, UNITS)
def test_every_moment_lies_in_one_period_and_its_name_leads_back_to_it(moment: datetime, unit: str) -> None:
    period = periods.period_at(moment, unit)
    assert period.start <= moment < period.end
    assert periods.parse_name(period.name) == period


@given(MOMENTS, UNITS)
def test_the_next_period_begins_where_this_one_ends(moment: datetime, unit: str) -> None:
    period = periods.period_at(moment, unit)
    assert periods.period_at(period.end, unit).start == period.end
    assert periods.period_at(period.end - timedelta(microseconds=1), unit) == period


@given(st.lists(MOMENTS, min_size=2, max_size=8), UNITS)
def test_names_sort_as_time_does(moments: list[datetime], unit: str) -> None:
    names = [periods.period_at(moment, unit).name for moment in sorted(moments)]
    assert names == sorted(names)


def test_the_files_of_a_table_come_oldest_first_and_only_those_with_a_time(tmp_path: Path) -> None:
    for name in ("2024-02", "2024-01", periods.WHOLE, periods.UNKNOWN):
        (tmp_path / f"{name}.parquet").touch()
    (tmp_path / ".2024-03.parquet.new").touch()
    assert [period.name for period, _ in periods.list_files(tmp_path)] == ["2024-01", "2024-02"]


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "periods"))
    return tmp_path / "periods"


def test_a_key_tells_inputs_apart_and_not_their_order_in_a_mapping() -> None:
    assert periods.hash_inputs("a", {"x": 1, "y": 2}) == periods.hash_inputs("a", {"y": 2, "x": 1})
    assert (
        len(
            {
                periods.hash_inputs("a"),
                periods.hash_inputs("b"),
                periods.hash_inputs("a", "b"),
                periods.hash_inputs(["a", "b"]),
            }
        )
        == 4
    )


def test_another_release_of_a_library_is_other_source(monkeypatch: pytest.MonkeyPatch) -> None:
    before = periods.hash_code(periods.__file__)
    assert periods.hash_code(periods.__file__) == before
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} 99")
    assert periods.hash_code(periods.__file__) != before


def write_whole(folder: Path) -> None:
    (folder / "rows").write_text("whole")


def entry_file(entries: Path) -> Path:
    return entries / "ab" / "ab12" / "rows"


def is_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode bits bind everybody but root, so only a user gets links."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_an_entry_is_made_once_and_linked_after_that(
    entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_user(monkeypatch)
    first = periods.provide("ab12", {tmp_path / "out" / "1": "rows"}, write_whole)
    second = periods.provide("ab12", {tmp_path / "out" / "1": "rows", tmp_path / "out" / "2": "rows"}, write_whole)
    assert (first, second) == (True, False)
    assert tree(tmp_path / "out") == {"1": b"whole", "2": b"whole"}
    assert os.path.samefile(tmp_path / "out" / "2", entry_file(entries))


@pytest.mark.parametrize("user", [0, 1000])
def test_the_files_of_an_entry_and_those_made_of_it_are_read_only(
    entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    periods.provide("ab12", {tmp_path / "out": "rows"}, write_whole)
    for path in (tmp_path / "out", *(file for file in entries.rglob("*") if file.is_file())):
        assert path.stat().st_mode & 0o777 == 0o444


def test_what_root_writes_into_an_output_never_reaches_the_cache(
    entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    periods.provide("ab12", {tmp_path / "out": "rows"}, write_whole)
    (tmp_path / "out").chmod(0o644)
    (tmp_path / "out").write_text("other")
    assert entry_file(entries).read_text() == "whole"
    assert not periods.provide("ab12", {tmp_path / "out": "rows"}, write_whole)
    assert (tmp_path / "out").read_text() == "whole"


def overwrite(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"other")


def overwrite_in_secret(path: Path) -> None:
    """As a disk does that loses bits, or `touch -r`: size and time stay."""
    before = path.stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def cut_short(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"")


def spoil_hashes(path: Path) -> None:
    overwrite(path.with_name(periods.HASHES))


def remove_hashes(path: Path) -> None:
    path.with_name(periods.HASHES).unlink()


@pytest.mark.parametrize("spoil", [overwrite, overwrite_in_secret, cut_short, Path.unlink, spoil_hashes, remove_hashes])
@pytest.mark.parametrize("user", [0, 1000])
def test_an_entry_with_other_bytes_is_made_again_and_that_is_logged(
    entries: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
    user: int,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    periods.provide("ab12", {tmp_path / "out" / "1": "rows"}, write_whole)
    spoil(entry_file(entries))
    with caplog.at_level(logging.WARNING):
        assert periods.provide("ab12", {tmp_path / "out" / "2": "rows"}, write_whole)
    assert "no longer holds what was made, and it is made again" in caplog.text
    assert (tmp_path / "out" / "2").read_text() == entry_file(entries).read_text() == "whole"
    assert not periods.provide("ab12", {tmp_path / "out" / "1": "rows"}, write_whole)
    assert tree(tmp_path / "out") == {"1": b"whole", "2": b"whole"}
    assert not list(entries.rglob(".*"))


def test_an_output_that_a_user_forces_open_does_not_spoil_what_is_linked_next(
    entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """chmod and a write go through the hard link to the cache: what is put in place next is made again."""
    is_user(monkeypatch)
    periods.provide("ab12", {tmp_path / "out": "rows"}, write_whole)
    overwrite(tmp_path / "out")
    assert entry_file(entries).read_bytes() == b"other"
    (tmp_path / "out").unlink()
    assert periods.provide("ab12", {tmp_path / "out": "rows"}, write_whole)
    assert (tmp_path / "out").read_text() == "whole"


def test_an_entry_that_cannot_be_kept_whole_is_told_of(
    entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = periods.seal_folder

    def spoiled(folder: Path) -> None:
        seal(folder)
        overwrite(folder / "rows")

    monkeypatch.setattr(periods, "seal_folder", spoiled)
    with pytest.raises(OSError, match="was damaged 3 times in a row"):
        periods.provide("ab12", {tmp_path / "out": "rows"}, write_whole)
    assert not (tmp_path / "out").exists()
    assert tree(entries) == {}


def test_a_file_that_nobody_made_is_named(entries: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold lines, but what made it wrote only \['rows'\]"):
        periods.provide("ab12", {tmp_path / "out": "lines"}, write_whole)
    assert entry_file(entries).exists()


def test_a_make_that_fails_leaves_nothing_behind(entries: Path, tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "rows").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        periods.provide("ab12", {tmp_path / "out": "rows"}, make)
    assert tree(entries) == {}
    assert not (tmp_path / "out").exists()


def test_of_two_who_make_the_same_entry_both_get_the_one_that_came_first(entries: Path, tmp_path: Path) -> None:
    def quick(folder: Path) -> None:
        (folder / "rows").write_text("first")

    def slow(folder: Path) -> None:
        periods.provide("ab12", {}, quick)
        (folder / "rows").write_text("second")

    periods.provide("ab12", {tmp_path / "out": "rows"}, slow)
    assert tree(entries).keys() == {"ab/ab12/rows", f"ab/ab12/{periods.HASHES}"}
    assert entry_file(entries).read_text() == "first"
    assert (tmp_path / "out").read_text() == "first"


def test_where_links_are_impossible_the_files_are_copied(
    entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    is_user(monkeypatch)
    monkeypatch.setattr(os, "link", refuse)
    periods.provide("ab12", {tmp_path / "out": "rows"}, lambda folder: (folder / "rows").touch())
    assert (tmp_path / "out").stat().st_nlink == 1
    assert (entries / "ab" / "ab12" / "rows").exists()


@pytest.mark.usefixtures("entries")
def test_linking_over_a_link_of_the_same_file_leaves_no_temporary_name(tmp_path: Path) -> None:
    for _ in range(2):
        periods.provide("ab12", {tmp_path / "out" / "1": "rows"}, lambda folder: (folder / "rows").touch())
    assert list(tree(tmp_path / "out")) == ["1"]


# --- of a team


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("EVERGREEN_PERIODS", str(tmp_path / "other"))
    return tmp_path / "other"


def make_once(folder: Path) -> None:
    (folder / "rows.parquet").write_bytes(b"rows")
    (folder / "counts.json").write_text("{}")


def refuse(_folder: Path) -> None:
    raise AssertionError("it is made again")


@pytest.mark.usefixtures("entries", "shared")
def test_what_one_machine_has_made_another_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target" / "2024-01.parquet"
    assert periods.provide("ab12", {target: "rows.parquet"}, make_once)
    other = another_machine(monkeypatch, tmp_path)
    target.unlink()
    assert not periods.provide("ab12", {target: "rows.parquet"}, refuse)
    assert target.read_bytes() == b"rows"
    assert not periods.find_damage(other / "ab" / "ab12")
    assert periods.read_json("ab12", "counts.json", refuse) == {}


@pytest.mark.usefixtures("entries")
def test_an_entry_that_is_damaged_in_the_store_is_made_again_and_shared_anew(
    shared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "target" / "2024-01.parquet"
    periods.provide("ab12", {target: "rows.parquet"}, make_once)
    shared.replace("periods/ab/ab12/rows.parquet", b"others")
    another_machine(monkeypatch, tmp_path)
    target.unlink()
    assert periods.provide("ab12", {target: "rows.parquet"}, make_once)
    assert "holds other bytes in rows.parquet" in caplog.text
    assert shared.read("periods/ab/ab12/rows.parquet") == b"rows"


@pytest.mark.usefixtures("entries")
def test_an_entry_that_a_kill_left_half_in_the_store_is_made_and_completed(
    shared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target" / "2024-01.parquet"
    periods.provide("ab12", {target: "rows.parquet"}, make_once)
    for name in (periods.HASHES, "counts.json"):
        shared.remove(f"periods/ab/ab12/{name}")
    another_machine(monkeypatch, tmp_path)
    target.unlink()
    assert periods.provide("ab12", {target: "rows.parquet"}, make_once)
    assert len(shared.list_names("periods/ab/ab12")) == 3
