"""The stream as a process: killed between any two of its steps it answers every row, and journals none twice."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.conftest import KEY
from tests.tasks.serving.test_app import Shop, shop
from tests.tasks.serving.test_stream import QUICK, Cluster, cluster, home, lines, source, written
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
__all__ = ["cluster", "home", "shop"]  # the fixtures
ROOT = Path(__file__).parents[2]

DYING = """\
import os, signal, sys
from tasks.serving import kafka, stream

name, left = sys.argv.pop(1), int(sys.argv.pop(1))
stream.BATCH_MESSAGES = 5
owner = stream.Stream if hasattr(stream.Stream, name) else kafka.KafkaClient
whole = getattr(owner, name)

def dying(*args):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args)

setattr(owner, name, dying)
stream.main()
"""


@pytest.fixture
def checkout(shop: Shop, cluster: Cluster, home: Path) -> Path:
    """A folder whose params name the broker, and the home in it."""
    raw = yaml.safe_load((shop.folder / "params.yaml").read_text())
    stream = {"bootstrap": cluster.bootstrap, "port": 0, "client": QUICK}
    raw["serving"] = {"stream": stream, "within": "2s"}
    (home.parent / "params.yaml").write_text(yaml.safe_dump(raw))
    return home.parent


@contextmanager
def process(checkout: Path, *how: str) -> Iterator["subprocess.Popen[bytes]"]:
    variables = {"EVERGREEN_HOME": str(checkout / "home"), "EVERGREEN_PII_KEY": KEY, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *(how or ("-m", "tasks.serving.stream")), "--no-mirror"]
    with (checkout / "said.txt").open("ab") as output:
        one = subprocess.Popen(command, cwd=checkout, env={**os.environ, **variables}, stdout=output, stderr=output)
    try:
        yield one
    finally:
        one.kill()
        one.wait()


def entries(checkout: Path) -> list[str]:
    return [row["entry"] for row in written(checkout / "home")]


def test_killed_between_any_two_steps_it_answers_every_row_and_journals_none_twice(
    shop: Shop, cluster: Cluster, checkout: Path
) -> None:
    rows = lines(shop.asked[:40])
    cluster.put(*rows[:30])
    for step in ("_write", "send", "commit"):  # before the journal, between journal and sending, before the commit
        with process(checkout, "-c", DYING, step, "2") as one:
            assert one.wait(60) == -signal.SIGKILL, (checkout / "said.txt").read_text()
    before = entries(checkout)
    assert before
    with process(checkout) as one:
        cluster.put(*rows[30:])
        messages = cluster.take(40)
        one.terminate()
        assert one.wait(60) == 0
    made = entries(checkout)
    assert made[: len(before)] == before
    assert len(made) == len(set(made)) == 40
    answers = [json.loads(item.value or b"") for item in messages]
    assert {item["id"] for item in answers} == set(made)
    scores = {row["entry"]: row["score"] for row in written(checkout / "home")}
    assert all(item["score"] == scores[item["id"]] for item in answers)


CUT = """\
import os, signal, sys
from tasks.serving import stream

left = int(sys.argv.pop(1))
stream.BATCH_MESSAGES = 5
OWN = ("stream.py", "stream_messages.py", "kafka.py", "journal.py")

def count(frame, event, argument):
    global left
    left -= event == "call" and frame.f_code.co_filename.endswith(OWN)
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

answer = stream.Stream._answer

def counted(*args):
    sys.setprofile(count)
    return answer(*args)

stream.Stream._answer = counted
stream.main()
"""


def test_killed_at_any_moment_under_load_it_answers_every_row_and_journals_none_twice(
    shop: Shop, cluster: Cluster, checkout: Path
) -> None:
    """Killed after so many of its own calls since it had rows, with more rows waiting."""
    for calls in (70, 400, 1500):
        with process(checkout, "-c", CUT, str(calls)) as one:

            def dead(one: "subprocess.Popen[bytes]" = one) -> bool:
                cluster.put(*lines(shop.asked[:10]))
                return one.poll() is not None

            wait_until(dead, log=checkout / "said.txt", every=0.1)
            assert one.wait() == -signal.SIGKILL, (checkout / "said.txt").read_text()
    with process(checkout) as one:
        cluster.put(*lines(shop.asked[:10]))  # so that there is something left for it
        sent = cluster.put_so_far
        messages = cluster.take(sent)
        one.terminate()
        assert one.wait(60) == 0
    made = [row["source"] for row in written(checkout / "home")]
    assert len(made) == len(set(made)) == sent
    assert {source(item) for item in messages} == set(made)


def test_it_stops_when_told_to_also_when_the_broker_is_away(shop: Shop, cluster: Cluster, checkout: Path) -> None:
    cluster.put(*lines(shop.asked[:4]))
    with process(checkout) as one:
        cluster.take(4)
        cluster.down()
        wait_until(lambda: "Kafka: " in (checkout / "said.txt").read_text())
        assert one.poll() is None
        one.terminate()
        assert one.wait(60) == 0
    output = (checkout / "said.txt").read_text()
    assert "Traceback" not in output
    assert len(output.splitlines()) < 15
