"""tasks.serving.stream: against librdkafka's own cluster, which speaks Kafka's protocol on real sockets."""

import ctypes
import ctypes.util
import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.request import urlopen

import confluent_kafka
import pytest
from confluent_kafka import Consumer, Producer
from pydantic import ValidationError

from infra import servers
from tasks import params
from tasks.params import Params
from tasks.promotion import changes
from tasks.serving import journal, journal_log, kafka, messages, registry_mirror, schema, stream, tables, versions
from tasks.serving.stream_messages import KafkaMessage, RowReader, StreamRow
from tests.conftest import BEGIN
from tests.tasks.serving.test_app import Shop, champion_scores, crowned, shop
from tests.waiting import PATIENCE_S, wait_until

__all__ = ["shop"]  # the fixture
ROWS, PREDICTIONS, DEAD = "evergreen.rows", "evergreen.predictions", "evergreen.dead"
PARTITIONS = 2
QUICK = {
    "session.timeout.ms": 1500,
    "heartbeat.interval.ms": 200,
    "reconnect.backoff.max.ms": 200,
    "fetch.wait.max.ms": 50,
}
SOON = 60.0


class Cluster:
    """A broker in this process, with the topics. The client's library has it; Python's part of it does not show it."""

    def __init__(self) -> None:
        self.c, self.put_so_far = ctypes.CDLL(_library()), 0
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_handle_mock_cluster"):
            getattr(self.c, name).restype = ctypes.c_void_p
        self.c.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        said = ctypes.create_string_buffer(512)
        conf = ctypes.c_void_p(self.c.rd_kafka_conf_new())
        for name, value in ((b"test.mock.num.brokers", b"1"), (b"log_level", b"2")):
            assert self.c.rd_kafka_conf_set(conf, name, value, said, ctypes.c_size_t(512)) == 0, said.value
        self.owner = ctypes.c_void_p(self.c.rd_kafka_new(0, conf, said, ctypes.c_size_t(512)))
        self.mock = ctypes.c_void_p(self.c.rd_kafka_handle_mock_cluster(self.owner))
        self.bootstrap = str(self.c.rd_kafka_mock_cluster_bootstraps(self.mock).decode())
        self.c.rd_kafka_mock_group_initial_rebalance_delay_ms(self.mock, 0)
        for topic, partitions in ((ROWS, PARTITIONS), (PREDICTIONS, 1), (DEAD, 1)):
            assert self.c.rd_kafka_mock_topic_create(self.mock, topic.encode(), partitions, 1) == 0

    def down(self) -> None:
        self.c.rd_kafka_mock_broker_set_down(self.mock, 1)

    def up(self) -> None:
        self.c.rd_kafka_mock_broker_set_up(self.mock, 1)

    def close(self) -> None:
        self.c.rd_kafka_destroy(self.owner)

    def put(self, *values: bytes | None, key: bytes = b"a key", headers: Any = None) -> None:
        """Rows in turn to each partition."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "log_level": 2})
        for i, value in enumerate(values):
            producer.produce(ROWS, value, key, partition=i % PARTITIONS, headers=headers)
        assert producer.flush(30) == 0
        self.put_so_far += len(values)

    def take(self, count: int, *, more: float = 0.0) -> list[KafkaMessage]:
        """What was sent to both topics, of so many messages at least, and what comes within `more` seconds after."""
        told = {"bootstrap.servers": self.bootstrap, "group.id": "tests", "log_level": 2, "fetch.wait.max.ms": 50}
        consumer = Consumer({**told, "enable.auto.commit": False, "auto.offset.reset": "earliest"})
        parts = [
            confluent_kafka.TopicPartition(topic, 0, confluent_kafka.OFFSET_BEGINNING) for topic in (PREDICTIONS, DEAD)
        ]
        consumer.assign(parts)
        found: list[KafkaMessage] = []
        end = time.monotonic() + SOON
        while (came := len({source(each) for each in found})) < count:
            assert time.monotonic() < end, f"only {came} of {count} came"
            found += [kafka.read_message(each) for each in consumer.consume(1000, 0.1) if not each.error()]
        if more:
            found += [kafka.read_message(each) for each in consumer.consume(1000, more) if not each.error()]
        consumer.close()
        return found


def _library() -> str:
    """The very one that the client has loaded."""
    here = Path(confluent_kafka.__file__).parent
    bundled = [*here.parent.glob("confluent_kafka.libs/librdkafka*"), *here.glob(".dylibs/librdkafka*")]
    return str(bundled[0]) if bundled else ctypes.util.find_library("rdkafka") or "librdkafka.so.1"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    one = Cluster()
    yield one
    one.close()


@pytest.fixture
def home(shop: Shop, tmp_path: Path) -> Path:
    """With the shop's champion and state, and a journal of its own."""
    for name in ("serving", "state"):
        shutil.copytree(shop.home / name, tmp_path / "home" / name)
    return tmp_path / "home"


def settings(shop: Shop, cluster: Cluster, **changes: Any) -> Params:
    client = {"bootstrap": cluster.bootstrap, "client": QUICK, "port": 0} | changes.pop("stream", {})
    told = {"stream": shop.p.serving.stream.model_copy(update=client), **changes}
    return shop.p.model_copy(update={"serving": shop.p.serving.model_copy(update=told)})


@contextmanager
def streaming(p: Params, home: Path) -> Iterator[threading.Thread]:
    stop = threading.Event()
    thread = threading.Thread(target=stream.run, args=[p, home, stop])
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def lines(rows: Sequence[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(row).encode() for row in rows]


def written(home: Path) -> list[dict[str, Any]]:
    """The journal's rows as they lie in its logs: what is there twice is seen twice."""
    paths = sorted((home / "journal" / "logs" / "predictions").glob("*.log"))
    return [row for path in paths for frame in journal_log.read_frames(path) for row in frame.to_pylist()]


def source(message: KafkaMessage) -> str:
    told = {name: (value or b"").decode() for name, value in message.headers}
    return f"{told['evergreen.topic']}/{told['evergreen.partition']}/{told['evergreen.offset']}"


def reasons(message: KafkaMessage) -> list[dict[str, Any]]:
    return list(json.loads(dict(message.headers)["evergreen.reason"] or b"[]"))


# --- answers


def test_a_row_of_the_topic_gets_the_very_score_that_the_batch_path_gives_it(
    shop: Shop, cluster: Cluster, home: Path
) -> None:
    cluster.put(*lines(shop.asked), key=b"order", headers=[("trace", b"7")])
    with streaming(settings(shop, cluster), home):
        found = cluster.take(len(shop.asked))
    batch = champion_scores(shop)
    told = {source(each): json.loads(each.value or b"") for each in found}
    assert len(told) == len(found) == len(shop.asked)
    for place, row in enumerate(shop.asked):
        answer = told[f"{ROWS}/{place % PARTITIONS}/{place // PARTITIONS}"]
        assert (answer["score"], answer["version"]) == (batch[row["number"]], 1)
        assert answer["decision"] in (True, False)
    assert {(each.topic, each.key, dict(each.headers)["trace"]) for each in found} == {(PREDICTIONS, b"order", b"7")}


def test_what_was_answered_is_journalled_once_with_its_source_and_no_name(
    shop: Shop, cluster: Cluster, home: Path
) -> None:
    cluster.put(*lines(shop.asked[:6]))
    with streaming(settings(shop, cluster), home):
        found = cluster.take(6)
    rows = {row["source"]: row for row in written(home)}
    assert len(rows) == len(written(home)) == 6
    for each in found:
        told, row = json.loads(each.value or b""), rows[source(each)]
        assert (row["entry"], row["score"], row["version"]) == (told["id"], told["score"], told["version"])
        assert (row["subject"], row["by"]) == (schema.make_entry(row["key_number"]), "stream")
    assert "example.org" not in str(rows)


def test_what_is_committed_is_not_answered_again(shop: Shop, cluster: Cluster, home: Path) -> None:
    p = settings(shop, cluster)
    cluster.put(*lines(shop.asked[:4]))
    with streaming(p, home):
        cluster.take(4)
    cluster.put(*lines(shop.asked[4:6]))
    with streaming(p, home):
        found = cluster.take(6, more=1)
    assert len({source(each) for each in found}) == len(found) == 6


def test_two_of_a_group_share_the_rows_and_none_is_journalled_twice(
    shop: Shop, cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BATCH_MESSAGES", 3)
    p = settings(shop, cluster)
    with streaming(p, home):
        cluster.put(*lines(shop.asked[:20]))
        cluster.take(1)
        with streaming(p, home):
            cluster.put(*lines(shop.asked[20:40]))
            cluster.take(40)
        cluster.put(*lines(shop.asked[40:44]))
        found = cluster.take(44)
    assert len({source(each) for each in found}) == 44
    entries = [row["source"] for row in written(home)]
    assert len(entries) == len(set(entries)) == 44


@pytest.mark.parametrize("mode", ["shadow", "share"])
def test_a_challenger_scores_beside_the_champion_or_answers_its_share(
    shop: Shop, cluster: Cluster, home: Path, mode: Literal["shadow", "share"]
) -> None:
    shutil.copytree(versions.folder(home) / "1", versions.folder(home) / "2")
    (versions.folder(home) / versions.CHALLENGER).write_text('{"number": 2}')
    cluster.put(*lines(shop.asked[:40]))
    challenger = shop.p.serving.challenger.model_copy(update={"mode": mode, "share": 0.5})
    with streaming(settings(shop, cluster, challenger=challenger), home):
        found = [json.loads(each.value or b"") for each in cluster.take(40)]
    rows = {row["entry"]: row for row in written(home)}
    answered = {name: row for name, row in rows.items() if row["arm"] != "shadow"}
    assert {each["id"]: each["version"] for each in found} == {name: row["version"] for name, row in answered.items()}
    assert {each["version"] for each in found} == ({1} if mode == "shadow" else {1, 2})
    assert {row["arm"] for row in answered.values()} == (
        {"champion"} if mode == "shadow" else {"champion", "challenger"}
    )
    beside = {row["subject"] for row in rows.values() if row["arm"] == "shadow"}
    assert beside == ({row["subject"] for row in answered.values()} if mode == "shadow" else set())


# --- poison

POISON: list[tuple[str, Any, str, str]] = [
    ("number", "far", "number", "valid integer"),
    ("store", "east", "store", "'north', 'south' or 'west'"),
    ("distance", 101, "distance", "less than or equal to 100"),
    ("colour", "red", "colour", "not permitted"),
    ("email", "nobody@example.net", "email", "is not in customers.email"),
    ("event_time", "2023-01-01T00:00:00", "event_time", "must not be before"),
    ("event_time", "9999-12-31T23:59:59.999999Z", "event_time", "must be before 2200"),
]
NOT_A_ROW = [b"", None, b"{", b"[]", b"7", b"\xff\xfe", b'{"rows": []}', b"null"]


def test_a_poison_row_goes_to_the_dead_with_its_reason_and_stops_no_other(
    shop: Shop, cluster: Cluster, home: Path
) -> None:
    good = shop.asked[: len(POISON)]
    bad = [json.dumps({**row, field: value}).encode() for row, (field, value, *_) in zip(good, POISON, strict=True)]
    mixed = [each for pair in zip(bad, lines(good), strict=True) for each in pair]
    cluster.put(*mixed, *NOT_A_ROW)
    with streaming(settings(shop, cluster), home):
        found = cluster.take(len(mixed) + len(NOT_A_ROW))
    dead = {each.value: each for each in found if each.topic == DEAD}
    assert len([each for each in found if each.topic == PREDICTIONS]) == len(good) == len(written(home))
    for value, (_, _, field, says) in zip(bad, POISON, strict=True):
        fault = reasons(dead[value])[0]
        assert (fault["loc"], says in fault["msg"]) == ([field], True), fault
        assert "nobody@example.net" not in json.dumps(reasons(dead[value]))
    assert {value for value in NOT_A_ROW if value} <= dead.keys()
    assert all(each.key == b"a key" and source(each).startswith(ROWS) for each in dead.values())


def test_a_row_that_is_too_long_for_the_topic_is_told_without_its_value(
    shop: Shop, cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = kafka.producer_settings(settings(shop, cluster)) | {"message.max.bytes": 3000}
    monkeypatch.setattr(kafka, "producer_settings", lambda _: small)
    cluster.put(b"x" * 5000, *lines(shop.asked[:1]))
    monkeypatch.setattr(messages, "MOST_BYTES", 2000)
    with streaming(settings(shop, cluster), home):
        found = cluster.take(2)
    (dead,) = [each for each in found if each.topic == DEAD]
    assert dead.value is None
    assert "2,000 bytes" in reasons(dead)[0]["msg"]
    assert source(dead) == f"{ROWS}/0/0"


def test_a_row_that_the_champion_cannot_answer_is_found_among_the_others(
    shop: Shop, cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, bad = tables.Tables.features, shop.asked[2]["number"]

    def breaks(self: Any, champion: Any, rows: Any) -> Any:
        if any(row["number"] == bad for row in rows):
            raise ArithmeticError("too much for somebody@example.org")
        return whole(self, champion, rows)

    monkeypatch.setattr(tables.Tables, "features", breaks)
    cluster.put(*lines(shop.asked[:5]))
    with streaming(settings(shop, cluster), home):
        found = cluster.take(5)
    (dead,) = [each for each in found if each.topic == DEAD]
    assert json.loads(dead.value or b"")["number"] == bad
    assert reasons(dead)[0]["msg"].endswith("cannot answer it: ArithmeticError")


def test_when_nothing_can_be_answered_no_row_is_given_up(
    shop: Shop, cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, left = tables.Tables.features, [10]

    def breaks(self: Any, champion: Any, rows: Any) -> Any:
        left[0] -= 1
        if left[0] > 0:
            raise ArithmeticError("the state does not fit this champion")
        return whole(self, champion, rows)

    monkeypatch.setattr(stream, "RETRY_S", 0.1)
    monkeypatch.setattr(tables.Tables, "features", breaks)
    cluster.put(*lines(shop.asked[:5]))
    with streaming(settings(shop, cluster), home):
        found = cluster.take(5)
    assert {each.topic for each in found} == {PREDICTIONS}
    assert len(written(home)) == 5


# --- what goes wrong


def test_what_was_journalled_and_not_sent_is_sent_as_it_was_after_a_promotion_too(
    shop: Shop, cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = settings(shop, cluster)
    cluster.put(*lines(shop.asked[:8]))
    with monkeypatch.context() as patch:
        patch.setattr(kafka.KafkaClient, "send", _end)
        thread = threading.Thread(target=_until_it_ends, args=[p, home])
        thread.start()
        thread.join(30)
    before = written(home)
    made = crowned(shop.known, shop.folder, shop.p, "in between")
    try:
        registry_mirror.copy_versions(shop.known, home)
        cluster.put(*lines(shop.asked[8:10]))
        with streaming(p, home):
            told = {source(each): json.loads(each.value or b"") for each in cluster.take(10)}
    finally:
        changes.rollback(shop.known, decision="back again", as_of=BEGIN, reasons=["for the other tests"])
    after = written(home)
    assert after[: len(before)] == before
    assert len({row["source"] for row in after}) == len(after) == 10
    for row in after:
        assert {name: told[row["source"]][name] for name in ("version", "score")} == {
            name: row[name] for name in ("version", "score")
        }
        assert told[row["source"]]["id"] == row["entry"]
        assert told[row["source"]]["decision"] in (True, False)
    assert {row["version"] for row in after} == {1, made}


class End(BaseException):
    """As if the process were no more."""


def _end(*_: Any) -> None:
    raise End


def _until_it_ends(p: Params, home: Path) -> None:
    with pytest.raises(End):
        stream.run(p, home, threading.Event())


@pytest.mark.parametrize("session", [1500, 10_000])  # milliseconds: the partitions are lost meanwhile, and are not
def test_a_broker_that_goes_away_is_waited_for_and_nothing_is_lost_or_journalled_twice(
    shop: Shop,
    cluster: Cluster,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    session: int,
) -> None:
    whole, gone = stream.Stream._write, threading.Event()

    def write(self: Any, *made: Any) -> None:
        """The broker goes when the rows are journalled."""
        whole(self, *made)
        if not gone.is_set():
            cluster.down()
            gone.set()

    monkeypatch.setattr(stream.Stream, "_write", write)
    cluster.put(*lines(shop.asked[:8]))
    client = {"client": QUICK | {"session.timeout.ms": session}}
    with streaming(settings(shop, cluster, within=timedelta(seconds=1), stream=client), home) as thread:
        assert gone.wait(PATIENCE_S)
        wait_until(lambda: "a batch is done again" in caplog.text)  # what was sent has been given up
        if session < 5000:
            time.sleep(2 * session / 1000)  # the broker's own clock, which nobody can ask
        assert thread.is_alive()
        cluster.up()
        cluster.put(*lines(shop.asked[8:12]))
        found = cluster.take(12, more=1)
    assert len({source(each) for each in found}) == 12
    assert sorted({row["source"] for row in written(home)}) == sorted(row["source"] for row in written(home))


def test_a_journal_that_cannot_be_written_holds_the_rows_up_and_loses_none(
    shop: Shop, cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, left = journal.Journal.append, [3]

    def full(self: Any, kind: Any, rows: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(28, "No space left on device")
        whole(self, kind, rows)

    monkeypatch.setattr(stream, "RETRY_S", 0.1)
    monkeypatch.setattr(journal.Journal, "append", full)
    cluster.put(*lines(shop.asked[:6]))
    with streaming(settings(shop, cluster), home):
        found = cluster.take(6, more=0.5)
    assert len(found) == len(written(home)) == 6


def test_a_prediction_is_named_for_its_message_also_where_the_rows_have_no_key(shop: Shop) -> None:
    """And for the message itself: a topic that is made anew begins at the same offsets."""
    table = shop.p.contract["orders"].model_copy(update={"key": []})
    keyless = shop.p.model_copy(update={"contract": {**shop.p.contract, "orders": table}})
    (value, other), at = lines(shop.asked[:2]), 1_700_000_000_000
    letters = [
        KafkaMessage(ROWS, 0, 7, moment, None, each) for moment, each in ((at, value), (at + 1, value), (at, other))
    ]
    for reader in map(RowReader, (shop.p, keyless)):
        read = [reader.read(each) for each in (*letters, letters[0])]
        entries = [each.entry for each in read if isinstance(each, StreamRow)]
        assert entries[0] == entries[3]
        assert len(set(entries)) == 3


# --- the process


def test_metrics_tell_rows_poison_and_what_waits(shop: Shop, cluster: Cluster, home: Path) -> None:
    port = servers.free_port()
    cluster.put(*lines(shop.asked[:4]), b"{")
    with streaming(settings(shop, cluster, stream={"port": port}), home):
        cluster.take(5)
        wait_until(lambda: f'evergreen_stream_lag{{partition="1",topic="{ROWS}"}} 0.0' in _metrics(port))
        text = _metrics(port)
    assert 'evergreen_stream_rows_total{version="1"} 4.0' in text
    assert 'evergreen_stream_dead_total{rule="json_invalid"} 1.0' in text
    assert "evergreen_stream_up 1.0" in text
    assert "evergreen_version 1.0" in text


def _metrics(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_before_anything_serves_the_rows_wait(
    shop: Shop, cluster: Cluster, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.put(*lines(shop.asked[:2]))
    empty = tmp_path / "empty"
    with streaming(settings(shop, cluster), empty):
        wait_until(lambda: "the rows wait for" in caplog.text)
        for name in ("serving", "state"):
            shutil.copytree(home / name, empty / f".{name}")
            (empty / f".{name}").rename(empty / name)
        assert len(cluster.take(2)) == 2


def test_without_a_broker_there_is_no_stream(shop: Shop, home: Path) -> None:
    with pytest.raises(ValueError, match=r"serving\.stream\.bootstrap is null"):
        stream.run(shop.p, home, threading.Event())


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"dead": "evergreen.rows"}, "must be three topics"),
        ({"client": {"sasl.password": "x"}}, "must hold no secrets"),
        ({"client": {"ssl.key.pem": "x"}}, "must hold no secrets"),
        ({"client": {"group.id": "x"}}, "to the stream"),
        ({"rows": "two words"}, "a topic.s name is letters, digits and"),
    ],
)
def test_settings_that_would_leak_or_loop_are_refused(told: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        params.Stream.model_validate(told)


def test_the_password_comes_from_the_environment_and_not_from_params(
    monkeypatch: pytest.MonkeyPatch, shop: Shop
) -> None:
    assert "sasl.password" not in kafka.client_settings(shop.p)
    monkeypatch.setenv("EVERGREEN_KAFKA_PASSWORD", "of the tests")
    assert kafka.client_settings(shop.p)["sasl.password"] == "of the tests"
