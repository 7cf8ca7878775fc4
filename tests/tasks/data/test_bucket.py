"""Objects of a bucket come whole and once, in order, and as they were listed, or the stage says what is missing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tasks.data.sources import copies, download, fetch
from tasks.data.sources.scheme import DeliveryError
from tasks.params import Source
from tasks.runtime import objects, store
from tests.servers import BUCKET
from tests.tasks.data.faulty import Relay
from tests.waiting import wait_until

ROWS = b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(60_000))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "WAIT_S", 0.01)
    return tmp_path / "home"


class Place:
    """A prefix of a bucket that others write into."""

    def __init__(self, address: str) -> None:
        self.address, self.prefix = address, address.removeprefix(f"s3://{BUCKET}/")

    def put(self, name: str, content: bytes) -> None:
        store.connect_s3().put_object(Bucket=BUCKET, Key=f"{self.prefix}/{name}", Body=content)

    def delete(self, name: str) -> None:
        store.connect_s3().delete_object(Bucket=BUCKET, Key=f"{self.prefix}/{name}")

    def fetch(self, pattern: str, **settings: Any) -> fetch.Fetched:
        source = Source(address=f"{self.address}/{pattern}", **settings)
        return fetch.fetch_files(source.address, source)

    def bring(self, pattern: str, **settings: Any) -> list[tuple[str, bytes]]:
        return [(file.name, file.read_bytes()) for file in self.fetch(pattern, **settings).files]


@pytest.fixture
def place(s3_store: str) -> Place:
    return Place(s3_store)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The objects that were read, and from which byte on."""
    seen, inner = [], objects.read_object

    def watched(bucket: str, one: objects.Object, *, start: int = 0) -> Iterator[bytes]:
        seen.append((one.key.rpartition("/")[2], start))
        return inner(bucket, one, start=start)

    monkeypatch.setattr(objects, "read_object", watched)
    return seen


def test_an_object_comes_once_and_anew_when_it_has_changed(place: Place, read: list[Any]) -> None:
    place.put("t.csv", ROWS)
    first = place.fetch("t.csv")
    assert place.fetch("t.csv") == first
    assert first.files[0].read_bytes() == ROWS
    assert read == [("t.csv", 0)]
    place.put("t.csv", b"a\n1\n")
    assert place.bring("t.csv") == [("t.csv", b"a\n1\n")]
    assert first.files[0].read_bytes() == ROWS  # another process may be reading it


def test_only_new_and_changed_objects_of_many_are_fetched_and_they_come_in_order(place: Place, read: list[Any]) -> None:
    for number in (10, 9, 1):
        place.put(f"day={number}/part.csv", b"a\n%d\n" % number)
    place.put("day=1/_SUCCESS", b"")
    place.put("day=1/deep/part.csv", b"a\nwrong\n")
    place.put(".day=1/part.csv", b"a\nwrong\n")
    assert [content for _, content in place.bring("day=*/*.csv")] == [b"a\n1\n", b"a\n9\n", b"a\n10\n"]
    read.clear()
    place.put("day=11/part.csv", b"a\n11\n")
    place.put("day=9/part.csv", b"a\n99\n")
    assert [content for _, content in place.bring("day=*/*.csv")] == [b"a\n1\n", b"a\n99\n", b"a\n10\n", b"a\n11\n"]
    assert len(read) == 2
    place.delete("day=1/part.csv")
    assert len(place.bring("day=*/*.csv")) == 3
    assert len(read) == 2


def test_the_fingerprint_is_that_of_the_same_files_here(place: Place, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        place.put(name, name.encode())
        (tmp_path / name).write_bytes(name.encode())
    assert place.fetch("*.csv").fingerprint == fetch.fetch_files(str(tmp_path / "*.csv")).fingerprint


def test_a_key_is_read_by_its_name_whatever_its_letters(place: Place) -> None:
    for name in ("t*.csv", "t1.csv", "t[1].csv", "josé 'x'.csv", "a=1+2%20.csv"):
        place.put(name, name.encode())
    for name in ("t*.csv", "t[1].csv", "josé 'x'.csv", "a=1+2%20.csv"):
        assert place.bring(name) == [(name, name.encode())]
    assert [name for name, _ in place.bring("t[*.csv")] == ["t[1].csv"]


def test_what_is_not_there_is_named(place: Place, read: list[Any]) -> None:
    with pytest.raises(DeliveryError, match=r"none\.csv is not there \(404\)\. Correct"):
        place.bring("none.csv")
    place.put("x.csv", b"a\n")
    with pytest.raises(DeliveryError, match=r"no key fits, of 1 that begin with .*/x"):
        place.bring("x*.parquet")
    with pytest.raises(DeliveryError, match=r"is not there|refuses"):
        fetch.fetch_files("s3://nonesuch-bucket/x/*.csv")
    place.put("e.csv", b"")
    with pytest.raises(DeliveryError, match=r"e\.csv is empty"):
        place.bring("e.csv")
    assert ("x.csv", 0) not in read


def test_an_object_that_vanishes_after_it_was_listed_is_an_error(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.csv", "b.csv"):
        place.put(name, b"a\n1\n")
    place.bring("*.csv")
    for name in ("a.csv", "b.csv"):
        place.put(name, b"a\n2\n")
    inner = objects.list_objects

    def listed(bucket: str, prefix: str) -> list[objects.Object]:
        found = inner(bucket, prefix)
        place.delete("b.csv")
        return found

    monkeypatch.setattr(objects, "list_objects", listed)
    with pytest.raises(DeliveryError, match=r"b\.csv is not there"):
        place.bring("*.csv")
    fetched = place.fetch("*.csv", fallback="last", max_age="1d")
    assert fetched.fallback is None  # it is listed anew, and one object is all there is
    assert len(fetched.files) == 1


def test_an_object_that_changes_after_it_was_listed_is_listed_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.put("a.csv", b"a\n1\n")
    place.put("b.csv", b"a\n1\n")
    inner, changes = objects.list_objects, [b"a\n2\n", b"a\n3\n"]

    def listed(bucket: str, prefix: str) -> list[objects.Object]:
        found = inner(bucket, prefix)
        if changes:
            place.put("b.csv", changes.pop(0))
        return found

    monkeypatch.setattr(objects, "list_objects", listed)
    assert place.bring("*.csv") == [("a.csv", b"a\n1\n"), ("b.csv", b"a\n3\n")]


def test_a_torn_stream_goes_on_where_it_ended(
    place: Place, read: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.put("t.csv", ROWS)
    relay = Relay(urlsplit(os.environ["AWS_ENDPOINT_URL"]).port or 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
    monkeypatch.setattr(objects, "CHUNK", 1 << 14)
    store._connect.cache_clear()
    relay.cuts = [300_000, 200_000]
    assert place.bring("t.csv") == [("t.csv", ROWS)]
    assert relay.cuts == []
    assert [start > 0 for _, start in read] == [False, True, True]
    relay.close()


def test_a_server_that_is_not_there_is_asked_again_then_the_last_copy_is_used(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.put("t.csv", ROWS)
    before = place.fetch("t.csv")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store._connect.cache_clear()
    with pytest.raises(DeliveryError, match=r"does not answer \(EndpointConnectionError.*after 5 tries"):
        place.bring("t.csv")
    again = place.fetch("t.csv", fallback="last", max_age="1h")
    assert again.fingerprint == before.fingerprint
    assert again.fallback is not None
    store._connect.cache_clear()


def test_credentials_that_are_missing_or_wrong_are_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place.put("t.csv", ROWS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store._connect.cache_clear()
    with pytest.raises(DeliveryError, match=r"refuses to be read .* Let the stage's credentials"):
        place.bring("t.csv")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    store._connect.cache_clear()
    with pytest.raises(ValueError, match=r"NoCredentialsError.*Set AWS_ACCESS_KEY_ID"):
        place.bring("t.csv", fallback="last", max_age="1h")
    store._connect.cache_clear()


FETCH = """
import sys, time
from tasks.data.sources import download, fetch
from tasks.runtime import objects
download.SYNC_BYTES, objects.CHUNK = 1 << 16, 1 << 14
inner = objects.read_object
def slow(*args, **kwargs):
    for number, chunk in enumerate(inner(*args, **kwargs)):
        yield chunk
        if number == int(sys.argv[2]) and not args[1].key.endswith("0.csv"):
            time.sleep(600)
objects.read_object = slow
fetch.fetch_files(sys.argv[1])
"""


@pytest.mark.faults
def test_a_fetch_that_is_killed_is_seen_by_nobody_and_the_next_run_fetches_the_rest(
    place: Place, read: list[tuple[str, int]], home: Path
) -> None:
    for number in range(4):
        place.put(f"t{number}.csv", ROWS)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    program = subprocess.Popen([sys.executable, "-c", FETCH, f"{place.address}/t*.csv", "10"], env=env)
    try:
        wait_until(lambda: len(done(home)) == 4 and len([one for one in done(home) if one == len(ROWS)]) == 1)
    finally:
        program.kill()
        program.communicate()
    assert not list(home.glob("sources/*/delivery.json"))
    assert place.bring("t*.csv") == [(f"t{number}.csv", ROWS) for number in range(4)]
    assert len(read) == 3  # one had come whole
    assert all(0 < start < len(ROWS) for _, start in read)
    with copies.open_copies(f"{place.address}/t*.csv", Source(address=f"{place.address}/t*.csv")) as shelf:
        assert list((shelf.folder / "parts").iterdir()) == []


def done(home: Path) -> list[int]:
    """What the notes say has come of each object, as far as more than 100 kB has."""
    notes = [download._read_note(path.with_suffix(""))[0] for path in home.glob("sources/*/parts/*.json")]
    return [length for length in notes if length > 100_000]
