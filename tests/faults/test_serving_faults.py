"""The API as a process: killed under load it has journalled what it answered, and without a registry it serves on."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from httpx import Client, HTTPError

from flows import servers
from tasks import registry
from tasks.serving import keeper, live
from tests.conftest import KEY
from tests.tasks.serving.test_app import Shop, crowned, kept, shop

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
__all__ = ["shop"]  # the fixture


@contextmanager
def process(shop: Shop, **env: str) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """It answers when this yields."""
    port = servers.free_port()
    told = {"EVERGREEN_HOME": str(shop.home), "EVERGREEN_PII_KEY": KEY, "PYTHONPATH": str(ROOT), **env}
    one = subprocess.Popen(
        [sys.executable, "-m", "tasks.serving", "--port", str(port)],
        cwd=shop.folder,
        env={**os.environ, **told},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 60
        with Client() as client:
            while not _ready(client, address):
                assert one.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
        yield one, address
    finally:
        one.kill()
        one.wait()


def _ready(client: Client, address: str) -> bool:
    with suppress(HTTPError):
        return client.get(f"{address}/ready").status_code == 200
    return False


def test_what_was_acknowledged_is_in_the_journal_after_a_kill(shop: Shop) -> None:
    acknowledged: list[str] = []

    def ask(address: str, place: int) -> None:
        amount = float(place)
        with suppress(HTTPError), Client(timeout=10) as client:
            while True:
                amount += 4.0
                answer = client.post(
                    f"{address}/v1/predict/features", json={"rows": [{"store": "south", "amount": amount}]}
                )
                acknowledged.extend(each["id"] for each in answer.json()["predictions"])

    for _ in range(3):
        with process(shop) as (one, address):
            threads = [threading.Thread(target=ask, args=[address, place]) for place in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(1.5)
            one.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()
    assert len(acknowledged) > 100
    journal = kept(shop)
    assert set(acknowledged) <= set(journal.read("predictions")["entry"].to_pylist())
    journal.compact()
    made = journal.read("predictions")["entry"].to_pylist()
    assert set(acknowledged) <= set(made)
    assert len(made) == len(set(made))


def test_without_its_registry_it_serves_on_also_after_a_restart(shop: Shop) -> None:
    gone = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{servers.free_port()}"}
    with process(shop, **gone) as (_, address), Client(timeout=30) as client:
        time.sleep(3)  # the keeper has asked in vain
        answer = client.post(f"{address}/v1/predict", json={"rows": shop.asked[:3]})
        assert answer.status_code == 200
        assert answer.json()["version"] == live.served(shop.home)


def test_a_promotion_is_live_within_five_seconds_and_no_request_fails(shop: Shop) -> None:
    answers: list[tuple[int, int]] = []
    stop = threading.Event()

    def ask(address: str) -> None:
        with Client(timeout=30) as client:
            while not stop.is_set():
                answer = client.post(f"{address}/v1/predict/features", json={"rows": [{"store": "south"}]})
                answers.append((answer.status_code, answer.json().get("version", 0)))

    with process(shop) as (_, address):
        threads = [threading.Thread(target=ask, args=[address]) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for name in ("live one", "live two"):
                made, end = crowned(shop.known, shop.folder, shop.p, name), time.monotonic() + 5
                while answers[-1][1] != made:
                    assert time.monotonic() < end
                    time.sleep(0.05)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert {status for status, _ in answers} == {200}
    versions = [version for _, version in answers]
    assert len(set(versions)) == 3
    known = registry.open_registry(shop.p.registry)
    assert keeper.keep(known, shop.home) == max(versions)
