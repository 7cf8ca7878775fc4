"""tasks.runtime.locks: one run of a name at a time, on one machine and on several."""

import contextlib
import os
import signal
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.runtime import advisory, locks, store
from tests.waiting import wait_until

HOLD = """
import sys, time
from pathlib import Path
from tasks.runtime import locks
with locks.take_turn(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["file", "folder", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the locks are: in the home, in a folder that machines share, in a database."""
    if request.param != "file":
        monkeypatch.setenv(store.VARIABLE, str(tmp_path / "store"))
    if request.param == "postgres":
        monkeypatch.setenv(locks.VARIABLE, request.getfixturevalue("postgres_url"))
    return str(request.param)


def homes(place: str, tmp_path: Path) -> tuple[Path, Path]:
    """The homes of two runs: of one machine, or of two that share the locks' place."""
    return (tmp_path / "one", tmp_path / "one") if place == "file" else (tmp_path / "one", tmp_path / "two")


def test_a_second_run_waits_and_says_for_whom(place: str, tmp_path: Path) -> None:
    first, second = homes(place, tmp_path)
    messages: list[str] = []
    began = threading.Event()

    def run() -> None:
        with locks.take_turn(second, say=messages.append):
            began.set()

    with locks.take_turn(first):
        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: messages)
        assert not began.is_set()
        assert locks.is_run_under_way(second)
        assert not locks.is_run_under_way(second, name="another")
    thread.join()
    assert began.is_set()
    assert not locks.is_run_under_way(second)
    assert str(os.getpid()) in messages[0]
    assert ", since 20" in messages[0]


def test_waiting_for_a_run_has_an_end_that_names_it(place: str, tmp_path: Path) -> None:
    first, second = homes(place, tmp_path)
    with (
        locks.take_turn(first),
        pytest.raises(TimeoutError, match=f"{os.getpid()}, since .* did not end within 0 s"),
        locks.take_turn(second, timeout=0.1),
    ):
        pass


def test_a_killed_run_holds_nothing(place: str, tmp_path: Path) -> None:
    first, second = homes(place, tmp_path)
    command = [sys.executable, "-c", HOLD, str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        assert locks.is_run_under_way(second)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locks.take_turn(second, timeout=60):
            pass


def test_the_holder_may_take_its_lock_again_and_no_other_thread_may(place: str, tmp_path: Path) -> None:
    lock, results = locks.open_lock(tmp_path, "registry", by_thread=True), list[bool]()

    def take() -> None:
        try:
            lock.acquire(timeout=0)
        except TimeoutError:
            results.append(False)

    with lock, lock:
        pass
    with lock:
        with lock:
            pass
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        assert locks.is_run_under_way(tmp_path, name="registry")  # the inner block has not released it
    assert not locks.is_run_under_way(tmp_path, name="registry")
    assert results == [False]
    assert place


def test_two_scopes_know_nothing_of_each_other(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(locks.VARIABLE, postgres_url)
    monkeypatch.setenv(store.VARIABLE, "s3://evergreen/flights")
    with locks.take_turn(tmp_path):
        monkeypatch.setenv(store.VARIABLE, "s3://evergreen/hotels")
        with locks.take_turn(tmp_path, timeout=0):
            pass


def test_a_bucket_without_a_database_for_its_locks_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(locks.VARIABLE, raising=False)
    monkeypatch.setenv(store.VARIABLE, "s3://evergreen/flights")
    with pytest.raises(ValueError, match="EVERGREEN_LOCKS must name a PostgreSQL"), locks.take_turn(tmp_path):
        pass


def test_a_database_that_is_away_is_an_error_that_hides_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advisory, "AWAY_S", 1)
    monkeypatch.setenv(locks.VARIABLE, "postgresql://someone:secret@127.0.0.1:9/evergreen")
    with (
        pytest.raises(ConnectionError, match="Start it, or correct EVERGREEN_LOCKS") as caught,
        locks.take_turn(tmp_path),
    ):
        pass
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("state", ["starting up", "shutting down", "not yet accepting connections", "in recovery mode"])
def test_a_database_that_is_just_being_started_is_waited_for(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advisory, "AWAY_S", 1)
    with answer_all(f"the database system is {state}") as port:
        monkeypatch.setenv(locks.VARIABLE, f"postgresql://u:p@127.0.0.1:{port}/evergreen?sslmode=disable")
        with pytest.raises(ConnectionError, match="does not answer"), locks.take_turn(tmp_path):
            pass


@contextlib.contextmanager
def answer_all(message: str) -> Iterator[int]:
    """A port where each connection gets PostgreSQL's error."""
    fields = f"SFATAL\0C57P03\0M{message}\0\0".encode()

    class Postmaster(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1024)  # who asks for what
            self.request.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Postmaster) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


def test_a_lock_whose_connection_is_lost_is_taken_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(advisory, "WATCH_S", 0.05)
    monkeypatch.setenv(locks.VARIABLE, postgres_url)
    monkeypatch.setenv(store.VARIABLE, str(tmp_path))
    with locks.take_turn(tmp_path):
        cut_connections(postgres_url)
        wait_until(lambda: "is held again" in caplog.text)
        assert locks.is_run_under_way(tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "host=127.0.0.1 port=9 password=s3cret user=u dbname=evergreen",
        "postgresql://u:s3cr%zz@127.0.0.1:9/s3cret",
        "postgresql://u:s3c/ret@127.0.0.1:9/s3cret",
        "postgresql://u:s3c@s3cret@127.0.0.1:9/evergreen",
        "mysql://u:s3cret@127.0.0.1/evergreen",
    ],
)
def test_no_message_quotes_a_password(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advisory, "AWAY_S", 0)
    monkeypatch.setenv(locks.VARIABLE, url)
    with pytest.raises((ValueError, ConnectionError), match="EVERGREEN_LOCKS") as caught, locks.take_turn(tmp_path):
        pass
    assert not any(part in str(caught.value) for part in ("s3cret", "s3cr%", "s3c@", "s3c/"))


def test_a_password_that_is_wrong_is_told_at_once(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(locks.VARIABLE, postgres_url.rpartition("/")[0] + "/absent")
    with pytest.raises(ValueError, match=r'database "absent" does not exist. Correct it'), locks.take_turn(tmp_path):
        pass


def test_two_spellings_of_a_store_are_one(
    postgres_url: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(locks.VARIABLE, postgres_url)
    (tmp_path / "store").mkdir()
    (tmp_path / "mounted").symlink_to(tmp_path / "store")
    for one, other in ((bucket, f"{bucket}/"), (str(tmp_path / "store"), str(tmp_path / "mounted"))):
        monkeypatch.setenv(store.VARIABLE, one)
        with locks.take_turn(tmp_path):
            monkeypatch.setenv(store.VARIABLE, other)
            assert locks.is_run_under_way(tmp_path)


def test_whoever_waits_leaves_a_holder_without_its_connection_the_time_to_take_its_lock_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(locks.VARIABLE, postgres_url)
    waits, began, messages = [], threading.Event(), list[str]()

    def wait() -> None:
        with locks.take_turn(tmp_path, say=messages.append):
            waits.append(released.is_set())
            began.set()

    released = threading.Event()
    with locks.take_turn(tmp_path):
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: messages)
        cut_connections(postgres_url)
        wait_until(lambda: "is held again" in caplog.text)
        released.set()
    thread.join()
    assert waits == [True]


def cut_connections(url: str) -> None:
    """As a proxy or a short absence of the network does, of all that hold or wait for a run's lock."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'evergreen run%'"
        )


def test_a_lock_is_not_released_more_often_than_it_was_taken(postgres_url: str) -> None:
    lock = advisory.AdvisoryLock(postgres_url, "run", scope="more often")
    with lock:
        pass
    with pytest.raises(RuntimeError, match="more often than it was taken"):
        lock.release()


def test_asking_whether_a_run_is_under_way_leaves_no_trace(place: str, tmp_path: Path) -> None:
    assert not locks.is_run_under_way(tmp_path / "home")
    assert not (tmp_path / "home").exists()
    with locks.take_turn(tmp_path / "home"):
        assert locks.is_run_under_way(tmp_path / "home")
        assert str(os.getpid()) in locks.open_lock(tmp_path / "home", "run").read_holder()
    assert place


def test_a_holder_is_told_by_name(postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(locks.VARIABLE, postgres_url)
    before = time.time()
    with locks.take_turn(tmp_path, name="score"):
        assert f":{os.getpid()}, since" in locks.open_lock(tmp_path, "score").read_holder()
    assert time.time() - before < 60
