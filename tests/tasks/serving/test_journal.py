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

import fsspec.core
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import params
from tasks.runtime import store
from tasks.runtime.files import Format
from tasks.serving import adopt, journal, journal_log, journal_segments, schema
from tasks.serving.journal import Journal
from tasks.serving.journal_log import LocalLogs
from tests.tasks import journalled
from tests.waiting import wait_until

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
def local(tmp_path: Path) -> Iterator[Journal]:
    """A journal of one machine."""
    one = Journal(LocalLogs(tmp_path / "logs"), str(tmp_path / "parquet"))
    yield one
    one.close()


@pytest.fixture(params=["machine", "folder", "s3"])
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    """A journal of one machine, of a folder that machines share, and of a bucket."""
    if request.param != "machine":
        address = request.getfixturevalue("bucket") if request.param == "s3" else str(tmp_path / "store")
        monkeypatch.setenv(store.VARIABLE, address)
    one = journal.open_journal(params.Journal(), home=tmp_path / "home")
    yield one
    one.close()


def parquet_files(journal: Journal) -> list[str]:
    files, root = fsspec.core.url_to_fs(journal.address)
    files.invalidate_cache()
    return list(files.glob(f"{root}/**/*.parquet"))


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
    assert kept.compact()
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
    assert kept.logs.read("predictions") == []
    assert len({path.rpartition("/")[0] for path in parquet_files(kept)}) == 6
    assert kept.compact() == 0


def test_the_log_of_a_process_that_lives_stays(local: Journal) -> None:
    local.append("predictions", rows(0))
    assert another(local).compact() == 0
    local.append("predictions", rows(3))
    assert numbers(another(local).read("predictions")) == list(range(6))


def test_compaction_that_is_killed_before_the_log_goes_can_be_run_again(
    local: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.append("predictions", rows(0, 5))
    local.close()

    def killed(_path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal_log, "remove_log", killed)
        with pytest.raises(KeyboardInterrupt):
            local.compact()
    assert numbers(local.read("predictions")) == list(range(5))
    assert local.compact() == 1
    assert numbers(local.read("predictions")) == list(range(5))
    assert len(list(Path(local.address).rglob("*.parquet"))) == 3


def test_a_reader_never_sees_a_gap_while_logs_are_moved(kept: Journal) -> None:
    count, seen, done = 15, set(), threading.Event()
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
    one = Journal(LocalLogs(folder / "logs"), str(folder / "parquet"))
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


def test_a_bit_that_turned_is_noticed(local: Journal) -> None:
    local.append("predictions", rows(0))
    local.append("predictions", rows(3))
    local.close()
    (path,) = (local.logs.folder / "predictions").glob("*.log")
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    assert numbers(local.read("predictions")) == [0, 1, 2]


WRITER = """
import sys
from pathlib import Path
from tasks.serving.journal import Journal
from tasks.serving.journal_log import LocalLogs
from tests.tasks import journalled
from tests.tasks.serving.test_journal import rows
one = Journal(LocalLogs(Path(sys.argv[1]) / "logs"), sys.argv[1] + "/parquet")
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
    one = Journal(LocalLogs(tmp_path / "logs"), str(tmp_path / "parquet"))
    found = numbers(one.read("predictions"))
    assert found[: acknowledged + 3] == list(range(acknowledged + 3))
    assert one.compact() == 1
    assert numbers(one.read("predictions")) == found


@pytest.mark.faults
def test_a_full_disk_is_an_error_and_the_next_rows_are_whole(local: Journal) -> None:
    local.append("predictions", rows(0))
    (path,) = (local.logs.folder / "predictions").glob("*.log")
    before, heard = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, before[1]))
        with pytest.raises(OSError, match="File too large"):
            local.append("predictions", rows(3, 2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    local.append("predictions", rows(3))
    assert numbers(another(local).read("predictions")) == list(range(6))


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


def test_a_schema_is_told_once_in_a_log_and_again_when_it_changes(local: Journal) -> None:
    path, sizes = local.logs.folder / "predictions", [0]
    parts = [rows(0), rows(3), rows(6), rows(9).append_column("more", pa.array(["a", "b", None])), rows(12), rows(15)]
    for part in parts:
        local.append("predictions", part)
        sizes.append(sum(each.stat().st_size for each in path.glob("*.log")))
    first, second, third, wider, back, again = (after - before for before, after in pairwise(sizes))
    assert second == third == again < first / 1.3
    assert min(wider, back) > second
    assert local.read("predictions").num_rows == 18
    assert local.read("predictions")["more"].to_pylist().count("a") == 1


def test_append_returns_the_bytes_that_the_log_grows_by(local: Journal) -> None:
    grown = [local.append("predictions", rows(first, count)) for first, count in ((0, 3), (3, 3), (6, 0))]
    (log,) = (local.logs.folder / "predictions").glob("*.log")
    assert sum(grown) == log.stat().st_size
    assert grown[2] == 0


# --- merging, and the format


def fill_a_day(kept: Journal, count: int = journal.MERGE_FILES) -> None:
    for first in range(0, 3 * count, 3):
        kept.append("predictions", rows(first, hours=0))
        kept.close()


def test_the_many_files_of_a_day_become_one(local: Journal) -> None:
    fill_a_day(local)
    before = local.read("predictions")
    local.compact()
    (path,) = Path(local.address).rglob("*.parquet")
    assert path.name.startswith("merged-")
    assert local.read("predictions").equals(before)
    fill_a_day(local, 2)  # few files stay as they are
    local.compact()
    assert len(parquet_files(local)) == 3
    assert local.read("predictions").equals(before)


MERGER = """
import os, signal, sys
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from tasks.serving.journal import Journal
from tasks.serving.journal_log import LocalLogs
step, left = sys.argv[2], int(sys.argv[3])
whole = getattr(LocalFileSystem, step)
def dying(self, path, *args, **more):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, path, *args, **more)
setattr(LocalFileSystem, step, dying)
Journal(LocalLogs(Path(sys.argv[1]) / "logs"), sys.argv[1] + "/parquet").compact()
"""


@pytest.mark.parametrize(("step", "call"), [("pipe_file", 1), ("mv", 1), ("rm_file", 1), ("rm_file", 4)])
def test_a_merge_that_is_killed_loses_no_row_and_is_done_by_the_next(step: str, call: int, tmp_path: Path) -> None:
    kept = Journal(LocalLogs(tmp_path / "logs"), str(tmp_path / "parquet"))
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
    assert len(parquet_files(kept)) == 1
    assert kept.read("predictions").equals(before)


def test_a_journal_of_another_format_is_refused_with_the_way_out(
    local: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    way_out = "Use the evergreen that wrote it, or begin a new home"
    local.append("predictions", rows(0))
    local.close()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "FORMAT", Format("journal", 99))
        with pytest.raises(ValueError, match=f"is in format journal/1, but this evergreen reads journal/99. {way_out}"):
            local.read("predictions")
    local.compact()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "FORMAT", Format("journal", 99))
        with pytest.raises(ValueError, match=f"is in format journal/1, but this evergreen reads journal/99. {way_out}"):
            local.read("predictions")
    (local.logs.folder / "predictions" / "old.log").write_bytes(b"EVJ1" + bytes(40))  # of before there were versions
    with pytest.raises(ValueError, match=f"is in format unknown, but this evergreen reads journal/1. {way_out}"):
        local.read("predictions")


def test_a_column_of_another_type_is_refused(kept: Journal) -> None:
    wrong = journalled.predictions(["a"]).drop_columns(["version"]).append_column("version", pa.array(["1"]))
    with pytest.raises(ValueError, match="`version` of the journal's predictions must be int64, but got string"):
        kept.append("predictions", wrong)


# --- of a team


SEGMENT_WRITER = """
import sys
from tasks import params
from tasks.serving.journal import open_journal
from tests.tasks.serving.test_journal import rows
one = open_journal(params.Journal())
for first in range(0, 100_000, 3):
    one.append("predictions", rows(first, hours=1), sync=first % 2 == 0)
    if first % 2 == 0:
        print(first, flush=True)
"""


@pytest.mark.parametrize("after", [1, 40, 100])
def test_what_a_team_acknowledged_survives_the_machine(
    after: int, shared: store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed and its disk is gone."""
    home = tmp_path / "home"
    monkeypatch.setenv("EVERGREEN_HOME", str(home))
    with subprocess.Popen([sys.executable, "-c", SEGMENT_WRITER], cwd=ROOT, stdout=-1, text=True) as writer:
        assert writer.stdout
        for _ in range(after):
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
    assert not home.exists()
    one = journal.open_journal(params.Journal())
    found = numbers(one.read("predictions"))
    assert found[: acknowledged + 3] == list(range(acknowledged + 3))
    assert one.compact() == len(shared.list_names(journal_segments.FOLDER)) or not shared.list_names("journal/logs")
    assert numbers(one.read("predictions")) == found


def test_a_homes_own_journal_is_told_of_once_and_comes_to_the_team(
    shared: store.Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "home"
    own = journal.open_local(params.Journal(), home)
    own.append("predictions", rows(0, 4))
    own.close()
    own.compact()
    own.append("predictions", rows(4, 2))
    own.close()
    for _ in range(2):
        one = journal.open_journal(params.Journal(), home=home)
    warning = "python -m tasks.serving.adopt"
    assert [shared.address in line for line in caplog.messages if warning in line] == [True]
    assert numbers(one.read("predictions")) == []
    one.append("predictions", rows(5))  # of which one is in the home, too
    one.close()
    assert adopt.adopt(home, params.Journal()) == 6
    assert numbers(one.read("predictions")) == list(range(8))
    journal.warn_of_own.cache_clear()
    journal.open_journal(params.Journal(), home=home)
    assert sum(warning in line for line in caplog.messages) == 1
    with pytest.raises(ValueError, match="nothing to bring"):
        adopt.adopt(home, params.Journal())


def test_a_reader_sees_each_row_once_while_segments_are_joined_and_moved(
    shared: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_segments, "JOINED_SEGMENTS", 3)
    writer, reader, mover = (journal.open_journal(params.Journal()) for _ in range(3))
    written, faults, done = [0], list[str](), threading.Event()

    def look() -> None:
        while not done.is_set():
            least = written[0]
            found = numbers(reader.read("predictions"))
            if found[:least] != list(range(least)):
                faults.append(f"{least} rows were acknowledged, and {found} were read")

    def move() -> None:
        while not done.is_set():
            mover.compact()

    threads = [threading.Thread(target=act) for act in (look, move)]
    for thread in threads:
        thread.start()
    for first in range(0, 90, 3):
        writer.append("predictions", rows(first, hours=1))
        written[0] = first + 3
    done.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert numbers(reader.read("predictions")) == list(range(90))
    assert shared


def test_a_segment_that_is_damaged_gives_what_is_whole_and_stays(
    shared: store.Store, caplog: pytest.LogCaptureFixture
) -> None:
    one = journal.open_journal(params.Journal())
    one.append("predictions", rows(0), sync=False)
    one.append("predictions", rows(3))
    (name,) = shared.list_names("journal/logs")
    content = bytearray(shared.read(name))
    content[-20] ^= 1
    shared.replace(name, bytes(content))
    assert numbers(one.read("predictions")) == [0, 1, 2]
    assert "bytes are damaged" in caplog.text
    one.compact()
    assert numbers(one.read("predictions")) == [0, 1, 2]
    assert shared.list_names("journal/logs") == [f"{name}.torn"]
    assert shared.read(f"{name}.torn") == bytes(content)


def test_a_writer_joins_its_small_segments(shared: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_segments, "JOINED_SEGMENTS", 4)
    one = journal.open_journal(params.Journal())
    for first in range(0, 27, 3):
        one.append("predictions", rows(first))
    wait_until(lambda: len(shared.list_names("journal/logs")) == 3)
    assert numbers(one.read("predictions")) == list(range(27))


def test_rows_that_the_store_did_not_take_are_an_error_and_the_next_are_whole(
    shared: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise store.StoreError("away")

    one = journal.open_journal(params.Journal())
    one.append("predictions", rows(0))
    with monkeypatch.context() as patch:
        patch.setattr(type(shared), "add", fail)
        with pytest.raises(OSError, match="away"):
            one.append("predictions", rows(3))
    one.append("predictions", rows(6))
    assert numbers(one.read("predictions")) == [0, 1, 2, 6, 7, 8]
