"""A file that a web server has comes whole or not at all, is asked for again only where that may help, and is not
fetched twice."""

import gzip
import hashlib
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.data.sources import copies, download, fetch
from tasks.data.sources.scheme import DeliveryError
from tasks.data.sources.web import READ_TIMEOUT_S
from tasks.params import Source
from tests.tasks.data.faulty import Fault, File, Web, serve
from tests.waiting import wait_until

ROWS = b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(20_000))
OTHER = ROWS.replace(b"7", b"8")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "WAIT_S", 0.01)
    return tmp_path / "home"


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as web:
        web.files["/t.csv"] = File(ROWS)
        yield web


def bring(web: Web, path: str = "/t.csv", **settings: Any) -> bytes:
    """What a source's one file holds."""
    (file,) = fetch_one(web, path, **settings).files
    return file.read_bytes()


def fetch_one(web: Web, path: str = "/t.csv", **settings: Any) -> fetch.Fetched:
    source = Source(address=web.address + path, **settings)
    return fetch.fetch_files(source.address, source)


def leftovers(home: Path) -> list[str]:
    """What lies in the home besides locks, deliveries and their files."""
    paths = (home / "sources").rglob("*")
    names = [str(path.relative_to(home / "sources")) for path in paths if path.is_file()]
    return [name for name in names if "/parts/" in name or name.endswith(".new")]


def test_a_file_comes_once_and_is_asked_for_by_its_etag_from_then_on(web: Web, home: Path) -> None:
    first = fetch_one(web)
    assert first.files[0].name == "t.csv"
    assert first.files[0].read_bytes() == ROWS
    assert fetch_one(web) == first
    mark = web.files["/t.csv"].mark
    assert web.asked("if-none-match") == [None, mark]
    web.files["/t.csv"].content = OTHER
    assert bring(web) == OTHER
    assert fetch_one(web).fingerprint != first.fingerprint
    assert first.files[0].read_bytes() == ROWS  # another process may be reading it
    assert leftovers(home) == []


def test_without_an_etag_the_time_of_the_last_change_is_compared(web: Web) -> None:
    web.files["/t.csv"] = File(ROWS, etag=None, modified=1_700_000_000)
    assert bring(web) == bring(web) == ROWS
    assert web.asked("if-modified-since") == [None, "Tue, 14 Nov 2023 22:13:20 GMT"]


def test_the_same_bytes_have_the_same_fingerprint_where_the_server_says_nothing(web: Web) -> None:
    web.files["/t.csv"] = File(ROWS, etag=None)
    assert fetch_one(web) == fetch_one(web)
    assert web.asked("if-none-match") == web.asked("if-modified-since") == [None, None]


def test_a_copy_that_no_longer_holds_what_came_is_fetched_anew(web: Web) -> None:
    (file,) = fetch_one(web).files
    file.chmod(0o600)
    file.write_bytes(ROWS[:100])
    assert bring(web) == ROWS
    assert web.asked("if-none-match") == [None, None]


def test_a_torn_download_goes_on_where_it_ended(web: Web) -> None:
    web.faults = [Fault(torn=100_000), Fault(torn=50_000)]
    assert bring(web) == ROWS
    places = [int(place.removeprefix("bytes=").rstrip("-")) for place in web.asked("range") if place]
    assert len(places) == 2
    assert 0 < places[0] <= 100_000
    assert places[0] < places[1] <= places[0] + 50_000


def test_many_tears_are_no_reason_to_give_up_while_each_brings_something(web: Web) -> None:
    web.faults = [Fault(torn=20_000) for _ in range(2 * download.ATTEMPTS)]
    assert bring(web) == ROWS


def test_a_file_that_changed_between_two_parts_is_fetched_whole(web: Web) -> None:
    web.faults = [Fault(torn=100_000, swap=OTHER)]
    assert bring(web) == OTHER
    assert web.asked("if-range")[1] is not None


def test_a_server_that_sends_the_rest_of_another_file_is_not_believed(web: Web) -> None:
    """One that knows Range and not If-Range."""
    rest = {"ETag": '"other"', "Content-Range": f"bytes 100000-{len(ROWS) - 1}/{len(ROWS)}"}
    web.faults = [Fault(torn=100_000), Fault(status=206, headers=rest, body=OTHER[100_000:])]
    assert bring(web) == ROWS


def test_a_file_without_a_mark_begins_anew_after_a_tear(web: Web) -> None:
    web.files["/t.csv"] = File(ROWS, etag='W/"weak"')
    web.faults = [Fault(torn=100_000)]
    assert bring(web) == ROWS
    assert web.asked("range") == [None, None]


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_server_that_is_busy_is_asked_again(web: Web, status: int) -> None:
    web.faults = [Fault(status=status), Fault(status=status)]
    assert bring(web) == ROWS
    assert len(web.requests) == 3


def test_a_server_is_asked_again_no_sooner_than_it_says(web: Web) -> None:
    web.faults = [Fault(status=503, headers={"Retry-After": "1"})]
    begun = time.monotonic()
    assert bring(web) == ROWS
    assert time.monotonic() - begun >= 1


def test_a_server_that_wants_more_time_than_there_is_fails_at_once(web: Web) -> None:
    web.faults = [Fault(status=503, headers={"Retry-After": "3600"})]
    with pytest.raises(DeliveryError, match=r"/t\.csv answers with 503 .*, after 1 tries in"):
        bring(web)
    assert len(web.requests) == 1


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "Correct the address"),
        (410, "Correct the address"),
        (403, "Give the source the `headers`"),
        (401, "secrets"),
    ],
)
def test_an_answer_that_will_stay_the_same_is_not_asked_for_again(web: Web, status: int, said: str) -> None:
    web.faults = [Fault(status=status)]
    with pytest.raises(DeliveryError, match=rf"answers with {status} .*{said}"):
        bring(web)
    assert len(web.requests) == 1


def test_tries_end(web: Web) -> None:
    web.faults = [Fault(status=503)] * 20
    with pytest.raises(DeliveryError, match=r"503 Service Unavailable, after 5 tries in \d+ s\. .*`fallback`"):
        bring(web)
    assert len(web.requests) == download.ATTEMPTS


def test_nobody_there_is_named(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "address", "http://127.0.0.1:9")
    with pytest.raises(
        DeliveryError, match=r"http://127\.0\.0\.1:9/t\.csv does not answer \(ConnectError.*after 5 tries"
    ):
        bring(web)


def test_a_slow_server_is_left_at_the_timeout_and_the_next_run_goes_on(web: Web) -> None:
    web.faults = [Fault(pause=0.5, chunk=8192)]
    with pytest.raises(DeliveryError, match=r"did not arrive within its timeout of 2s\. Raise the source's `timeout`"):
        bring(web, timeout="2s")
    assert bring(web) == ROWS
    assert web.asked("range")[1] is not None


def test_a_silent_server_is_left_at_the_timeout(web: Web) -> None:
    web.faults = [Fault(hang=100_000)]
    begun = time.monotonic()
    with pytest.raises(DeliveryError, match=r"does not answer \(ReadTimeout: .*\), after 1 tries"):
        bring(web, timeout="1s")
    assert time.monotonic() - begun < READ_TIMEOUT_S
    assert bring(web) == ROWS
    assert web.asked("range")[1] == "bytes=100000-"


def test_a_file_of_another_length_than_was_said_is_refused(web: Web, home: Path) -> None:
    web.faults = [Fault(length=len(ROWS) + 10)] * 20
    with pytest.raises(DeliveryError, match=r"does not answer|ended after .* of .* bytes"):
        bring(web)
    assert not list((home / "sources").glob("*/delivery.json"))


def test_a_file_whose_end_cannot_be_told_is_refused(web: Web) -> None:
    web.faults = [Fault(length=-1)]
    with pytest.raises(
        DeliveryError, match="does not say how long the file is, so that a part could pass for the whole"
    ):
        bring(web)


def test_a_redirection_is_followed_and_another_host_gets_no_secret(
    web: Web, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOKEN_OF_MINE", "Bearer a-secret")
    with serve() as other:
        other.files["/u.csv"] = File(OTHER)
        web.faults = [Fault(status=302, headers={"Location": "/t.csv"})]
        assert bring(web, "/old.csv", headers={"X-Key": "TOKEN_OF_MINE"}) == ROWS
        assert web.asked("x-key") == ["Bearer a-secret"] * 2
        web.faults = [Fault(status=302, headers={"Location": f"{other.address}/u.csv"})]
        assert bring(web, "/moved.csv", headers={"X-Key": "TOKEN_OF_MINE"}) == OTHER
        assert other.asked("x-key") == [None]
    web.faults = [Fault(status=302, headers={"Location": "/t.csv"})] * 50
    with pytest.raises(DeliveryError, match="leads from address to address"):
        bring(web, "/round.csv")
    assert "a-secret" not in caplog.text


def test_a_secret_that_is_not_set_is_named(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKEN_OF_MINE", raising=False)
    with pytest.raises(
        ValueError, match="its header X-Key is read from the environment variable TOKEN_OF_MINE, which is"
    ):
        bring(web, headers={"X-Key": "TOKEN_OF_MINE"})
    assert web.requests == []


def test_the_values_of_a_query_are_in_no_message(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fetched = fetch_one(web, "/t.csv?kind=flights&key=a-secret")
    assert fetched.address == f"{web.address}/t.csv?kind=…&key=…"
    web.faults = [Fault(status=503), Fault(status=404)]
    with pytest.raises(DeliveryError) as caught:
        bring(web, "/t.csv?kind=flights&key=a-secret")
    assert "a-secret" not in caplog.text + str(caught.value)
    assert "Asking again" in caplog.text


def test_a_packed_answer_is_unpacked_and_a_packed_file_stays_as_it_is(web: Web) -> None:
    packed = gzip.compress(ROWS)
    web.files["/p.csv"] = File(packed, headers={"Content-Encoding": "gzip"})
    web.files["/p.csv.gz"] = File(packed, headers={"Content-Encoding": "gzip"})
    web.faults = [Fault(torn=1000)]
    assert bring(web, "/p.csv") == ROWS
    assert bring(web, "/p.csv.gz") == packed
    web.files["/p.csv"] = File(packed[:-100], headers={"Content-Encoding": "gzip"})
    with pytest.raises(DeliveryError, match="no whole gzip"):
        bring(web, "/p.csv")


def test_a_page_in_place_of_a_table_is_refused(web: Web) -> None:
    web.files["/t.csv"].headers["Content-Type"] = "text/html; charset=utf-8"
    with pytest.raises(DeliveryError, match=r"answers with a web page, not with a table\. Does it need a login"):
        bring(web)


def test_an_address_without_a_files_name_takes_that_of_the_answer(web: Web) -> None:
    web.files["/export"] = File(ROWS, headers={"Content-Disposition": 'attachment; filename="../../x/table.csv.gz"'})
    (file,) = fetch_one(web, "/export?id=3").files
    assert file.name == "table.csv.gz"
    assert "files" in file.parts[-6:]


def test_a_checksum_is_held_and_what_has_it_is_not_asked_for_again(web: Web) -> None:
    right, wrong = hashlib.sha256(ROWS).hexdigest(), hashlib.sha256(OTHER).hexdigest()
    assert bring(web, sha256=right) == bring(web, sha256=right) == ROWS
    assert len(web.requests) == 1
    with pytest.raises(DeliveryError, match=f"must have the sha256 {wrong}, but came with {right}"):
        bring(web, sha256=wrong)
    web.files["/t.csv"].content = OTHER
    with pytest.raises(DeliveryError, match=f"must have the sha256 {right}, but came with {wrong}"):
        bring(web, "/t.csv?again", sha256=right)


def test_an_empty_file_does_not_replace_the_last_good_one(web: Web) -> None:
    assert bring(web) == ROWS
    web.files["/t.csv"].content = b""
    with pytest.raises(DeliveryError, match=r"t\.csv is empty"):
        bring(web)
    assert bring(web, fallback="last", max_age="1d") == ROWS


def test_a_full_disk_is_no_fault_of_the_source_and_what_has_come_goes(web: Web, home: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # as a disk that is full after so many bytes
    try:
        with pytest.raises(OSError, match="File too large"):
            bring(web, fallback=f"{web.address}/none.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert leftovers(home) == []
    assert bring(web) == ROWS


def test_files_that_no_delivery_names_are_removed_after_a_day(
    web: Web, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    fetch_one(web)
    web.files["/t.csv"].content = OTHER
    fetch_one(web)
    assert len(list(home.glob("sources/*/files/*"))) == 2
    monkeypatch.setattr(copies, "UNREAD_S", -1.0)
    assert bring(web) == OTHER
    assert len(list(home.glob("sources/*/files/*"))) == 1


FETCH = """
import sys
from datetime import timedelta
from tasks.data.sources import download, fetch
download.SYNC_BYTES = 4096
print(fetch.fetch_files(sys.argv[1]).files[0])
"""


def begin_fetch(address: str) -> "subprocess.Popen[str]":
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen([sys.executable, "-c", FETCH, address], env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.faults
@pytest.mark.parametrize("after", [1, 50_000, len(ROWS) - 1])
def test_a_download_that_is_killed_is_seen_by_nobody_and_the_next_run_goes_on(web: Web, home: Path, after: int) -> None:
    web.faults = [Fault(hang=after, chunk=2048)]
    program = begin_fetch(web.address + "/t.csv")
    try:
        wait_until(lambda: size_of_parts(home) >= min(after, after // 8192 * 8192) and web.requests)
    finally:
        program.kill()
        program.communicate()
    assert not list(home.glob("sources/*/delivery.json"))
    with pytest.raises(DeliveryError, match="this machine has no good copy"):
        copies.read_last(Source(address=web.address + "/t.csv", fallback="last", max_age="1d"))
    assert bring(web) == ROWS
    assert (web.asked("range")[1] is not None) == (after > 8192)
    assert leftovers(home) == []


def size_of_parts(home: Path) -> int:
    """Of what has come; the notes beside it are named for it and have a suffix."""
    return sum(path.stat().st_size for path in home.glob("sources/*/parts/*") if not path.suffix)


@pytest.mark.faults
def test_two_processes_fetch_a_file_once(web: Web) -> None:
    web.faults = [Fault(pause=0.01, chunk=4096)]
    programs = [begin_fetch(web.address + "/t.csv") for _ in range(2)]
    places = {program.communicate()[0] for program in programs}
    assert len(places) == 1
    assert Path(places.pop().strip()).read_bytes() == ROWS
    assert len([path for path, headers in web.requests if "if-none-match" not in headers]) == 1


def test_the_wait_for_another_process_is_bounded(web: Web) -> None:
    source = Source(address=web.address + "/t.csv", timeout=timedelta(seconds=0.2))
    with copies.open_copies(source.address, source), pytest.raises(DeliveryError, match="another process"):
        fetch.fetch_files(source.address, source)
