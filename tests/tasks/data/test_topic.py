"""The messages of a topic become rows once each, whatever is killed, and those that are lost are missed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from tasks.data import loading
from tasks.data.sources import download, fetch, topic
from tasks.data.sources.scheme import DeliveryError
from tasks.params import Column, Source
from tests.tasks.serving.test_stream import PARTITIONS, ROWS, Cluster
from tests.waiting import wait_until

QUICK = {"fetch.wait.max.ms": 50, "reconnect.backoff.max.ms": 200}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "WAIT_S", 0.01)
    return tmp_path / "home"


class Topic:
    """A topic with two partitions, and what comes of it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.address = cluster, f"kafka://{cluster.bootstrap}/{ROWS}"

    def put(self, *rows: Any) -> None:
        self.cluster.put(*[row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows])

    def fetch(self, **settings: Any) -> fetch.Fetched:
        source = Source(address=self.address, client=QUICK, **settings)
        return fetch.fetch_files(source.address, source)

    def numbers(self, **settings: Any) -> list[int]:
        """The rows' own numbers, in their order."""
        return [int(row[0]) for row in read(self.fetch(**settings), "n")]

    def committed(self) -> list[int]:
        consumer = Consumer({"bootstrap.servers": self.cluster.bootstrap, "group.id": "evergreen-sources"})
        places = consumer.committed([TopicPartition(ROWS, number) for number in range(PARTITIONS)], timeout=10)
        consumer.close()
        return [place.offset for place in places]


def read(fetched: fetch.Fetched, *columns: str) -> list[Any]:
    with duckdb.connect() as con:
        wanted = {name: Column(type="VARCHAR") for name in columns}
        loading.load_table(con, fetched, Source(address="x"), wanted, "arrived")
        return con.execute("SELECT * EXCLUDE (blank, file, start) FROM arrived ORDER BY rowid").fetchall()


@pytest.fixture
def rows() -> Iterator[Topic]:
    cluster = Cluster()
    yield Topic(cluster)
    cluster.close()


def numbered(*numbers: int) -> list[dict[str, int]]:
    return [{"n": number} for number in numbers]


def test_messages_come_once_in_the_order_of_their_partitions_and_are_committed(rows: Topic) -> None:
    rows.put(*numbered(0, 1, 2, 3))
    assert rows.numbers() == [0, 2, 1, 3]
    assert rows.committed() == [2, 2]
    first = rows.fetch()
    rows.put(*numbered(4, 5, 6))
    assert rows.numbers() == [0, 2, 1, 3, 4, 6, 5]
    assert rows.committed() == [4, 3]
    assert rows.fetch().files[0] == first.files[0]  # what was read before is not read again
    assert rows.fetch().fingerprint == rows.fetch().fingerprint != first.fingerprint


def test_a_row_has_its_place_and_its_time_and_values_as_they_were_sent(rows: Topic) -> None:
    rows.put(b'{\n "n": 1.10,\r\n "text": "a\\nb"}', b"{}", b'{"n": 2, "kafka_offset": "mine"}')
    columns = ("kafka_partition", "kafka_offset", "n", "text", "kafka_time")
    (one, last, other) = read(rows.fetch(), *columns)
    assert one[:4] == ("0", "0", "1.10", "a\nb")
    assert last[:4] == ("0", "mine", "2", None)
    assert other[:4] == ("1", "0", None, None)
    assert duckdb.sql(f"SELECT age(now(), TIMESTAMPTZ '{one[4]}') < INTERVAL 1 DAY").fetchall() == [(True,)]


def test_messages_that_are_no_objects_are_counted_and_left_out(rows: Topic, caplog: pytest.LogCaptureFixture) -> None:
    rows.put({"n": 1}, None, b"ada@example.org", b"[1]", b"\xff", {"n": 2}, b"")
    assert sorted(rows.numbers()) == [1, 2]
    assert "5 new messages are no JSON objects, and are no rows" in caplog.text
    assert "ada" not in caplog.text
    caplog.clear()
    assert sorted(rows.numbers()) == [1, 2]
    assert "no JSON objects" not in caplog.text


def test_many_small_files_become_one_with_the_same_rows(rows: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic, "FILES", 3)
    for number in range(0, 10, 2):
        rows.put(*numbered(number, number + 1))
        came = rows.numbers()
    assert came == list(range(10))
    assert len(rows.fetch().files) == 2


def test_messages_that_are_lost_before_they_are_read_are_missed(rows: Topic, home: Path) -> None:
    rows.put(*numbered(0, 1))
    rows.fetch()
    producer = Producer({"bootstrap.servers": rows.cluster.bootstrap, "log_level": 2, "message.max.bytes": 3_000_000})
    for number in range(12):  # more than the broker keeps
        producer.produce(ROWS, json.dumps({"n": number, "filler": "x" * 900_000}).encode(), partition=0)
        assert producer.flush(30) == 0
    with pytest.raises(
        DeliveryError, match=r"partition 0 has the messages .* but the next to read is 1: messages are lost"
    ):
        rows.fetch()
    (folder,) = (path for path in (home / "sources").iterdir() if path.is_dir())
    with pytest.raises(DeliveryError, match=str(folder)):
        rows.fetch()


def test_what_is_kept_of_a_topic_is_not_begun_anew_in_silence(rows: Topic) -> None:
    rows.put(*numbered(0, 1))
    (file,) = rows.fetch().files
    file.chmod(0o600)
    file.write_bytes(b"")
    with pytest.raises(DeliveryError, match=r"what was kept of it in .* is damaged"):
        rows.fetch()


def test_a_topic_without_messages_and_one_that_is_not_there_are_named(rows: Topic) -> None:
    with pytest.raises(DeliveryError, match="has no messages yet"):
        rows.fetch()
    with pytest.raises(ValueError, match=r"client is not as librdkafka has it: No such configuration property"):
        fetch.fetch_files(rows.address, Source(address=rows.address, client={"nonesuch": 1}))
    with pytest.raises(ValueError, match="read from the environment variable NO_SUCH_PASSWORD, which is not set"):
        rows.fetch(password="NO_SUCH_PASSWORD")


def test_a_broker_that_is_away_is_asked_again_then_the_last_copy_is_used(
    rows: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic, "ANSWER_TIMEOUT_S", 0.5)
    rows.put(*numbered(0, 1))
    before = rows.fetch()
    rows.cluster.down()
    with pytest.raises(DeliveryError, match=r"does not answer .* after 5 tries"):
        rows.fetch()
    assert rows.fetch(fallback="last", max_age="1d").files == before.files
    rows.cluster.up()
    monkeypatch.undo()


FETCH = """
import sys, time
from tasks.data.sources import copies, fetch, topic
from tasks.params import Source
place = sys.argv[2]
def stop(*_, **__):
    open(sys.argv[3], "w").close()
    time.sleep(600)
if place == "commit":
    topic._commit = stop
else:
    setattr(copies.Copies, place, stop)
source = Source(address=sys.argv[1])
fetch.fetch_files(source.address, source)
"""


@pytest.mark.faults
@pytest.mark.parametrize("place", ["keep", "publish", "commit"])
def test_a_fetch_that_is_killed_before_or_after_its_write_leaves_each_message_once(
    rows: Topic, tmp_path: Path, place: str
) -> None:
    rows.put(*numbered(0, 1))
    rows.fetch()
    rows.put(*numbered(2, 3))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    program = subprocess.Popen([sys.executable, "-c", FETCH, rows.address, place, str(tmp_path / "there")], env=env)
    try:
        wait_until((tmp_path / "there").exists)
    finally:
        program.kill()
        program.communicate()
    assert rows.committed() == [1, 1]
    assert sorted(rows.numbers()) == [0, 1, 2, 3]
    assert rows.committed() == [2, 2]
