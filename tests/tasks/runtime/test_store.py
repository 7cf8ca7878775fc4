"""tasks.runtime.store: both kinds keep the same promises."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tasks.runtime import store
from tasks.runtime.store import Store, StoreError


def test_what_is_added_is_read_and_listed(shared: Store) -> None:
    assert shared.add("periods/a/one.bin", b"1")
    assert shared.add("periods/b/two.bin", b"2")
    assert shared.add("other/three.bin", b"")
    assert shared.read("periods/b/two.bin") == b"2"
    assert shared.list_names("periods") == ["periods/a/one.bin", "periods/b/two.bin"]
    assert shared.list_names("period") == []  # a folder, not the beginning of a name
    assert shared.list_names("absent") == []


def test_a_file_that_is_there_is_not_written_over(shared: Store) -> None:
    assert shared.add("entry", b"first")
    assert not shared.add("entry", b"second")
    assert shared.read("entry") == b"first"


def test_a_file_of_this_machine_is_added_by_its_path(shared: Store, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 1_000_000)
    assert shared.add("entry", tmp_path / "large")
    assert not shared.add("entry", tmp_path / "large")
    assert shared.read("entry") == b"x" * 1_000_000


def test_of_many_who_add_one_name_one_succeeds(shared: Store) -> None:
    results: list[bool] = []
    barrier = threading.Barrier(8)

    def add(number: int) -> None:
        barrier.wait()
        results.append(shared.add("entry", b"%d" % number))

    threads = [threading.Thread(target=add, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]


def test_what_is_replaced_has_the_new_content(shared: Store) -> None:
    shared.replace("pointer", b"1")
    shared.replace("pointer", b"2")
    assert shared.read("pointer") == b"2"


def test_what_is_absent_is_an_error_to_read_and_none_to_remove(shared: Store) -> None:
    with pytest.raises(FileNotFoundError):
        shared.read("absent")
    shared.remove("absent")
    shared.add("entry", b"1")
    shared.remove("entry")
    with pytest.raises(FileNotFoundError):
        shared.read("entry")


@pytest.mark.usefixtures("s3")
def test_a_store_that_does_not_answer_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store._connect.cache_clear()
    with pytest.raises(StoreError, match=r"s3://evergreen/team .*AWS_ENDPOINT_URL"):
        store.open_store("s3://evergreen/team").read("entry")
    store._connect.cache_clear()


def test_a_bucket_that_is_not_there_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    store._connect.cache_clear()
    with pytest.raises(StoreError, match=r"s3://absent .*NoSuchBucket.*EVERGREEN_STORE"):
        store.open_store("s3://absent").add("entry", b"")


class Conflicts(BaseHTTPRequestHandler):
    """An S3 server on which another request is just writing each name, until it has been asked so often."""

    left = 0
    stored: ClassVar[list[bytes]] = []

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).left -= 1
        if self.left >= 0:
            text = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
            self.send_response(409)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        self.stored.append(body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(("conflicts", "arrives"), [(1, True), (99, False)])
def test_a_name_that_another_request_is_writing_is_not_taken_for_written(
    conflicts: int, arrives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ATTEMPTS", 2)
    monkeypatch.setattr(Conflicts, "left", conflicts)
    monkeypatch.setattr(Conflicts, "stored", [])
    with HTTPServer(("127.0.0.1", 0), Conflicts) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        store._connect.cache_clear()
        bucket = store.open_store("s3://evergreen/team")
        if arrives:
            assert bucket.add("entry", b"1")
        else:
            with pytest.raises(StoreError, match="ConditionalRequestConflict"):
                bucket.add("entry", b"1")
        server.shutdown()
    assert len(Conflicts.stored) == arrives
    store._connect.cache_clear()


def test_the_address_chooses_the_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store.open_store("s3://bucket/a/b/").address == "s3://bucket/a/b"
    assert store.open_store("s3://bucket").address == "s3://bucket"
    assert store.open_store(str(tmp_path)).address == str(tmp_path)
    with pytest.raises(ValueError, match="must be s3://bucket/prefix or a folder's whole path"):
        store.open_store("gs://bucket")
    with pytest.raises(ValueError, match="whole path"):
        store.open_store("folder")
    monkeypatch.delenv(store.VARIABLE, raising=False)
    assert store.find_store() is None


def test_a_folder_is_shared_and_fetched_as_far_as_it_is_missing(shared: Store, tmp_path: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    for name in ("grid.json", "a/model.ubj", "a/losses-1.parquet", "a/.hidden.new"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    assert store.share_folder(here, "evidence/one") == 3
    assert store.share_folder(here, "evidence/one") == 0
    assert store.fetch_folder(other, "evidence", pattern="*/grid.json") == 1
    assert (other / "one/grid.json").read_text() == "grid.json"
    assert store.fetch_folder(other / "one", "evidence/one") == 2
    assert (other / "one/a/model.ubj").read_text() == "a/model.ubj"
    (here / "a/losses-1.parquet").rename(here / "a/losses-2.parquet")
    (here / "grid.json").unlink()
    assert store.share_folder(here, "evidence/one", replaces=lambda file: "losses" in file) == 1
    names = ["a/losses-2.parquet", "a/model.ubj", "grid.json"]
    assert shared.list_names("evidence") == [f"evidence/one/{name}" for name in names]


def test_a_store_that_is_away_costs_a_warning_where_it_only_saves_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "file"))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").write_text("a")
    assert store.share_folder(tmp_path / "here", "evidence/one") == 0
    assert store.share_folder(tmp_path / "here", "evidence/one") == 0
    assert caplog.text.count("the store is not asked for 60 s") == 1
