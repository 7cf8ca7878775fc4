"""tasks.serving.journal: what was acknowledged is there, once, whoever is killed and whenever it is read."""

import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.runtime.files import Format
from tasks.serving import journal, schema
from tasks.serving.journal import Journal
from tests.tasks import journalled

ROOT = Path(__file__).parents[3]
BEGIN = datetime(2013, 5, 1)


def rows(first: int, count: int = 3, *, hours: int = 12) -> pa.Table:
    """Rows number `first` and on, half a day apart."""
    numbers = range(first, first + count)
    times = [BEGIN + number * timedelta(hours=hours) for number in numbers]
    return journalled.predictions([f"{number:06}" for number in numbers], event_time=times)


def numbers(found: pa.Table) -> list[int]:
    return [int(entry) for entry in found["entry"].to_pylist()] if found.num_rows else []


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Journal]:
    one = Journal(tmp_path / "logs", str(tmp_path / "parquet"))
    yield one
    one.close()


def another(of: Journal) -> Journal:
    return Journal(of.logs, of.address)


def test_what_is_appended_is_read_in_the_order_of_time(kept: Journal) -> None:
    for first in (6, 0, 3):
        kept.append("predictions", rows(first))
    assert numbers(another(kept).read("predictions")) == list(range(9))
    assert kept.read("outcomes").num_rows == 0


def test_a_row_that_is_appended_twice_counts_once(kept: Journal) -> None:
    kept.append("predictions", rows(0))
    kept.append("predictions", rows(1))
    assert numbers(kept.read("predictions")) == [0, 1, 2, 3]


def test_rows_may_gain_columns(kept: Journal) -> None:
    kept.append("predictions", rows(0))
    kept.append("predictions", rows(3).append_column("x_wind", pa.array([1.0, 2.0, 3.0])))
    kept.close()
    assert kept.compact() == 1
    assert kept.read("predictions")["x_wind"].to_pylist() == [None, None, None, 1.0, 2.0, 3.0]


def test_a_row_without_a_name_is_refused(kept: Journal) -> None:
    with pytest.raises(ValueError, match=r"needs \['entry'\]"):
        kept.append("predictions", rows(0).drop_columns(["entry"]))


@pytest.mark.parametrize("compacted", [False, True])
def test_a_stretch_of_time_is_its_rows(compacted: bool, kept: Journal) -> None:
    kept.append("predictions", rows(0, 20))
    kept.close()
    if compacted:
        kept.compact()
    since, until = BEGIN + timedelta(days=2), BEGIN + timedelta(days=5)
    found = kept.read("predictions", since=since, until=until, columns=["entry", "event_time"])
    assert numbers(found) == [4, 5, 6, 7, 8, 9]
    assert found.column_names == ["entry", "event_time"]


# --- compaction


def test_compaction_changes_where_rows_are_and_not_which(kept: Journal) -> None:
    for first in range(0, 12, 3):
        kept.append("predictions", rows(first))
        kept.close()
    before = kept.read("predictions")
    assert kept.compact() == 4
    assert kept.read("predictions").equals(before)
    assert not list((kept.logs / "predictions").iterdir())
    assert len(list(Path(kept.address).glob("predictions/day=*"))) == 6
    assert kept.compact() == 0


def test_the_log_of_a_process_that_lives_stays(kept: Journal) -> None:
    kept.append("predictions", rows(0))
    assert another(kept).compact() == 0
    kept.append("predictions", rows(3))
    assert numbers(another(kept).read("predictions")) == list(range(6))


def test_compaction_that_is_killed_before_the_log_goes_can_be_run_again(
    kept: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.append("predictions", rows(0, 5))
    kept.close()

    def killed(_path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal, "remove_log", killed)
        with pytest.raises(KeyboardInterrupt):
            kept.compact()
    assert numbers(kept.read("predictions")) == list(range(5))
    assert kept.compact() == 1
    assert numbers(kept.read("predictions")) == list(range(5))
    assert len(list(Path(kept.address).rglob("*.parquet"))) == 3


def test_a_reader_never_sees_a_gap_while_logs_are_moved(kept: Journal) -> None:
    count, seen, done = 40, set(), threading.Event()
    for first in range(0, 3 * count, 3):
        kept.append("predictions", rows(first))
        kept.close()

    def look() -> None:
        while not done.is_set():
            seen.add(len(numbers(another(kept).read("predictions"))))

    reader = threading.Thread(target=look)
    reader.start()
    another(kept).compact()
    done.set()
    reader.join(60)
    assert seen == {3 * count}


# --- torn, killed, full


@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_torn_log_loses_no_frame_before_the_tear(cut: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("torn")
    one = Journal(folder / "logs", str(folder / "parquet"))
    ends = []
    for first in range(0, 9, 3):
        one.append("predictions", rows(first))
        (path,) = (folder / "logs/predictions").glob("*.log")
        ends.append(path.stat().st_size)
    one.close()
    kept = int(cut * ends[-1])
    path.write_bytes(path.read_bytes()[:kept])
    whole = list(range(3 * sum(end <= kept for end in ends)))
    assert numbers(one.read("predictions")) == whole
    one.compact()
    assert numbers(one.read("predictions")) == whole
    torn = list(path.parent.glob("*.torn"))
    assert bool(torn) == (kept not in (0, *ends))


def test_a_bit_that_turned_is_noticed(kept: Journal) -> None:
    kept.append("predictions", rows(0))
    kept.append("predictions", rows(3))
    kept.close()
    (path,) = (kept.logs / "predictions").glob("*.log")
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    assert numbers(kept.read("predictions")) == [0, 1, 2]


WRITER = """
import sys
from pathlib import Path
from tasks.serving.journal import Journal
from tests.tasks import journalled
from tests.tasks.serving.test_journal import rows
one = Journal(Path(sys.argv[1]) / "logs", sys.argv[1] + "/parquet")
for first in range(0, 100_000, 3):
    one.append("predictions", rows(first, hours=1))
    print(first, flush=True)
"""


@pytest.mark.faults
@pytest.mark.parametrize("after", [1, 20, 60])
def test_every_row_that_was_acknowledged_survives_a_kill(after: int, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=-1, text=True) as writer:
        assert writer.stdout
        for _ in range(after):
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
    one = Journal(tmp_path / "logs", str(tmp_path / "parquet"))
    found = numbers(one.read("predictions"))
    assert found[: acknowledged + 3] == list(range(acknowledged + 3))
    assert one.compact() == 1
    assert numbers(one.read("predictions")) == found


@pytest.mark.faults
def test_a_full_disk_is_an_error_and_the_next_rows_are_whole(kept: Journal) -> None:
    kept.append("predictions", rows(0))
    (path,) = (kept.logs / "predictions").glob("*.log")
    before, heard = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, before[1]))
        with pytest.raises(OSError, match="File too large"):
            kept.append("predictions", rows(3, 2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    kept.append("predictions", rows(3))
    assert numbers(another(kept).read("predictions")) == list(range(6))


def test_a_column_that_became_text_is_text_in_all_rows(kept: Journal) -> None:
    kept.append("predictions", rows(0))
    texts = rows(3).drop_columns(["score"]).append_column("score", pa.array(["low"] * 3))
    kept.append("predictions", texts)
    assert kept.read("predictions")["score"].to_pylist() == ["0.5"] * 3 + ["low"] * 3


# --- arms


def by(first: int, arm: str) -> pa.Table:
    return rows(first).drop_columns(["arm"]).append_column("arm", pa.array([arm] * 3, pa.string()))


@pytest.mark.parametrize("compacted", [False, True])
def test_what_was_said_in_the_shadow_is_nobodys_answer(compacted: bool, kept: Journal) -> None:
    for first, arm in ((0, "champion"), (3, "champion"), (6, "shadow"), (9, "challenger")):
        kept.append("predictions", by(first, arm))
        kept.close()
        if compacted:
            kept.compact()
    assert numbers(kept.read("predictions")) == [0, 1, 2, 3, 4, 5, 9, 10, 11]
    found = kept.read("predictions", columns=["entry", "event_time"])
    assert (numbers(found), found.column_names) == ([0, 1, 2, 3, 4, 5, 9, 10, 11], ["entry", "event_time"])
    told = kept.read("predictions", columns=["entry", "event_time", "arm"], shadows=True)["arm"].to_pylist()
    assert told == ["champion"] * 6 + ["shadow"] * 3 + ["challenger"] * 3


def test_a_column_that_nobody_wrote_is_refused(kept: Journal) -> None:
    kept.append("predictions", rows(0))
    with pytest.raises(KeyError, match="fever"):
        kept.read("predictions", columns=["entry", "event_time", "fever"])


def test_a_schema_is_told_once_in_a_log_and_again_when_it_changes(kept: Journal) -> None:
    path, sizes = kept.logs / "predictions", [0]
    parts = [rows(0), rows(3), rows(6), rows(9).append_column("more", pa.array(["a", "b", None])), rows(12), rows(15)]
    for part in parts:
        kept.append("predictions", part)
        sizes.append(sum(each.stat().st_size for each in path.glob("*.log")))
    first, second, third, wider, back, again = (after - before for before, after in pairwise(sizes))
    assert second == third == again < first / 1.3
    assert min(wider, back) > second
    assert kept.read("predictions").num_rows == 18
    assert kept.read("predictions")["more"].to_pylist().count("a") == 1


def test_append_returns_the_bytes_that_the_log_grows_by(kept: Journal) -> None:
    grown = [kept.append("predictions", rows(first, count)) for first, count in ((0, 3), (3, 3), (6, 0))]
    (log,) = (kept.logs / "predictions").glob("*.log")
    assert sum(grown) == log.stat().st_size
    assert grown[2] == 0


# --- merging, and the format


def fill_a_day(kept: Journal, count: int = journal.MERGE_FILES) -> None:
    for first in range(0, 3 * count, 3):
        kept.append("predictions", rows(first, hours=0))
        kept.close()


def test_the_many_files_of_a_day_become_one(kept: Journal) -> None:
    fill_a_day(kept)
    before = kept.read("predictions")
    kept.compact()
    (path,) = Path(kept.address).rglob("*.parquet")
    assert path.name.startswith("merged-")
    assert kept.read("predictions").equals(before)
    fill_a_day(kept, 2)  # few files stay as they are
    kept.compact()
    assert len(list(Path(kept.address).rglob("*.parquet"))) == 3
    assert kept.read("predictions").equals(before)


MERGER = """
import os, signal, sys
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from tasks.serving.journal import Journal
step, left = sys.argv[2], int(sys.argv[3])
whole = getattr(LocalFileSystem, step)
def dying(self, path, *args, **more):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, path, *args, **more)
setattr(LocalFileSystem, step, dying)
Journal(Path(sys.argv[1]) / "logs", sys.argv[1] + "/parquet").compact()
"""


@pytest.mark.parametrize(("step", "call"), [("pipe_file", 1), ("mv", 1), ("rm_file", 1), ("rm_file", 4)])
def test_a_merge_that_is_killed_loses_no_row_and_is_done_by_the_next(step: str, call: int, tmp_path: Path) -> None:
    kept = Journal(tmp_path / "logs", str(tmp_path / "parquet"))
    fill_a_day(kept)
    before = kept.read("predictions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "_merge_days", lambda *_: None)
        kept.compact()
    command = [sys.executable, "-c", MERGER, str(tmp_path), step, str(call)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert kept.read("predictions").equals(before)
    fill_a_day(kept)
    kept.compact()
    assert len(list(Path(kept.address).rglob("*.parquet"))) == 1
    assert kept.read("predictions").equals(before)


def test_a_journal_of_another_format_is_refused_with_the_way_out(
    kept: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    way_out = "Use the evergreen that wrote it, or begin a new home"
    kept.append("predictions", rows(0))
    kept.close()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "FORMAT", Format("journal", 99))
        with pytest.raises(ValueError, match=f"is in format journal/1, but this evergreen reads journal/99. {way_out}"):
            kept.read("predictions")
    kept.compact()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "FORMAT", Format("journal", 99))
        with pytest.raises(ValueError, match=f"is in format journal/1, but this evergreen reads journal/99. {way_out}"):
            kept.read("predictions")
    (kept.logs / "predictions" / "old.log").write_bytes(b"EVJ1" + bytes(40))  # of before there were versions
    with pytest.raises(ValueError, match=f"is in format unknown, but this evergreen reads journal/1. {way_out}"):
        kept.read("predictions")


def test_a_column_of_another_type_is_refused(kept: Journal) -> None:
    wrong = journalled.predictions(["a"]).drop_columns(["version"]).append_column("version", pa.array(["1"]))
    with pytest.raises(ValueError, match="`version` of the journal's predictions must be int64, but got string"):
        kept.append("predictions", wrong)
