"""The API as a process: killed under load it has journalled what it answered, and without a registry it serves on.

Over load, behind keys, with an old state, and as two processes on one port it is asked as anybody would ask it.
"""

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from httpx import Client, HTTPError, Response

from infra import servers
from tasks.promotion import changes, registry
from tasks.serving import registry_mirror, versions
from tests.conftest import BEGIN, KEY, write_params
from tests.tasks.serving.test_app import Shop, crowned, kept, shop
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
__all__ = ["shop"]  # the fixture


@contextmanager
def process(
    shop: Shop, *, folder: Path | None = None, page: str = "ready", **env: str
) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """It answers when this yields. `folder` has other params than the shop's, `page` is what must be well."""
    port = servers.free_port()
    variables = {"EVERGREEN_HOME": str(shop.home), "EVERGREEN_PII_KEY": KEY, "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-m", "tasks.serving", "--port", str(port)]
    with log_of(shop).open("wb") as log:
        one = subprocess.Popen(
            command, cwd=folder or shop.folder, env={**os.environ, **variables}, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        with Client() as client:
            wait_until(lambda: one.poll() is not None or _well(client, f"{address}/{page}"), log=log_of(shop))
        assert one.poll() is None, log_of(shop).read_text()
        yield one, address
    finally:
        one.terminate()  # its workers too, if it has some
        with suppress(subprocess.TimeoutExpired):
            one.wait(15)
        one.kill()
        one.wait()


def log_of(shop: Shop) -> Path:
    """What the process that was begun last says."""
    return shop.home / "api.log"


def _well(client: Client, address: str) -> bool:
    with suppress(HTTPError):
        return client.get(address).status_code == 200
    return False


def settled(shop: Shop, folder: Path, **serving: object) -> Path:
    """A checkout with other settings of the API."""
    raw = yaml.safe_load((shop.folder / "params.yaml").read_text())
    write_params({**raw, "serving": serving}, folder)
    return folder


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
                acknowledged.extend(one["id"] for one in answer.json()["predictions"])

    for _ in range(3):
        before = len(acknowledged)
        with process(shop) as (one, address):
            threads = [threading.Thread(target=ask, args=[address, place]) for place in range(4)]
            for thread in threads:
                thread.start()
            wait_until(lambda many=before + 100: len(acknowledged) > many)
            one.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()
    journal = kept(shop)
    assert set(acknowledged) <= set(journal.read("predictions")["entry"].to_pylist())
    journal.compact()
    made = journal.read("predictions")["entry"].to_pylist()
    assert set(acknowledged) <= set(made)
    assert len(made) == len(set(made))


def test_without_its_registry_it_serves_on_also_after_a_restart(shop: Shop) -> None:
    gone = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{servers.free_port()}"}
    with process(shop, **gone) as (_, address), Client(timeout=30) as client:
        wait_until(lambda: b"the registry's versions cannot be copied" in log_of(shop).read_bytes())
        answer = client.post(f"{address}/v1/predict", json={"rows": shop.asked[:3]})
        assert answer.status_code == 200
        assert answer.json()["version"] == versions.served_number(shop.home)


def test_a_promotion_goes_live_and_no_request_fails(shop: Shop) -> None:
    """How soon is measured by the bench."""
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
                made = crowned(shop.known, shop.folder, shop.p, name)
                wait_until(lambda made=made: answers and answers[-1][1] == made)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert {status for status, _ in answers} == {200}
    versions = [version for _, version in answers]
    assert len(set(versions)) == 3
    known = registry.open_registry(shop.p.registry)
    assert registry_mirror.copy_versions(known, shop.home) == max(versions)


# --- with keys, a state that is old, and room for one request at a time

KEYS = {"asks": "predict", "tells": "outcomes", "all": "admin"}


@pytest.fixture(scope="module")
def narrow(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = settled(shop, tmp_path_factory.mktemp("narrow"), stale="0.01s", busy=1)
    known = [f"{name}:{scope}:{hashlib.sha256(f'ev_{name}'.encode()).hexdigest()}" for name, scope in KEYS.items()]
    with process(shop, folder=folder, page="health", EVERGREEN_API_KEYS="\n".join(known)) as (_, address):
        yield address


def by(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer ev_{name}"}


def test_a_state_that_is_old_is_said_at_ready(narrow: str) -> None:
    with Client(base_url=narrow, timeout=30) as client:
        answer = client.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["why"] == ["the state is older than serving.stale"]
        assert client.get("/health").status_code == 200


def test_a_wrong_key_and_a_wrong_scope_get_no_further(shop: Shop, narrow: str) -> None:
    rows, outcomes = {"rows": [{"store": "south"}]}, {"outcomes": [{"id": "of nobody", "label": True}]}
    before = kept(shop).read("predictions").num_rows
    with Client(base_url=narrow, timeout=30) as client:

        def status(path: str, name: str, body: object) -> int:
            return client.post(path, json=body, headers=by(name)).status_code

        assert [status("/v1/predict/features", name, rows) for name in ("nobody", "tells")] == [401, 403]
        assert [status("/v1/outcomes", name, outcomes) for name in ("nobody", "asks")] == [401, 403]
        assert kept(shop).read("predictions").num_rows == before
        assert [client.get("/metrics", headers=by(name)).status_code for name in KEYS] == [403, 403, 200]
        assert [status("/v1/predict/features", name, rows) for name in ("asks", "all")] == [200, 200]


def test_over_load_it_says_when_to_ask_again_and_keeps_what_it_acknowledged(shop: Shop, narrow: str) -> None:
    answers: list[Response] = []

    def ask(place: int) -> None:
        with Client(base_url=narrow, timeout=30, headers=by("asks")) as client:
            for i in range(40):
                row = {"store": "west", "amount": float(1000 * place + i)}
                answers.append(client.post("/v1/predict/features", json={"rows": [row]}))

    threads = [threading.Thread(target=ask, args=[place]) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status_code == 503]
    taken = [answer for answer in answers if answer.status_code == 200]
    assert len(answers) == len(refused) + len(taken) == 320
    assert refused
    assert taken
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    acknowledged = {one["id"] for item in taken for one in item.json()["predictions"]}
    assert len(acknowledged) == len(taken)
    assert acknowledged <= set(kept(shop).read("predictions")["entry"].to_pylist())


# --- two processes on one port


@pytest.fixture(scope="module")
def two(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    with process(shop, folder=settled(shop, tmp_path_factory.mktemp("two"), workers=2)) as two:
        wait_until(lambda: len(workers_of(two[0])) == 2)
        yield two


def workers_of(one: "subprocess.Popen[bytes]") -> list[int]:
    """Those of its children that listen for the port, not multiprocessing's own."""
    children = map(int, Path(f"/proc/{one.pid}/task/{one.pid}/children").read_text().split())
    return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def asked_apart(address: str, count: int = 24) -> set[int]:
    """The versions that answer, each time on a connection of its own: whichever process takes it."""
    versions = set()
    for _ in range(count):
        with Client(base_url=address, timeout=30) as client:
            answer = client.post("/v1/predict/features", json={"rows": [{"store": "south"}]})
            assert answer.status_code == 200, answer.text
            versions.add(answer.json()["version"])
    return versions


def test_a_promotion_and_its_rollback_go_live_in_each_process(
    shop: Shop, two: tuple["subprocess.Popen[bytes]", str]
) -> None:
    _, address = two
    wait_until(lambda: len(asked_apart(address)) == 1)
    (before,) = asked_apart(address)
    made = crowned(shop.known, shop.folder, shop.p, "live in two")
    wait_until(lambda: asked_apart(address) == {made})
    assert asked_apart(address) == {made}
    changes.rollback(shop.known, decision="back in two", as_of=BEGIN, reasons=["it is only a test"])
    wait_until(lambda: asked_apart(address) == {before})
    assert asked_apart(address) == {before}


def test_two_processes_are_one_to_prometheus_also_when_one_has_died(
    two: tuple["subprocess.Popen[bytes]", str],
) -> None:
    one, address = two
    begun = counted(address)
    assert len(begun) == 1  # whichever is asked says the same
    asked_apart(address, 20)
    assert counted(address) == {begun.pop() + 20}
    victim = workers_of(one)[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(now := workers_of(one)) == 2 and victim not in now)
    wait_until(lambda: _well_all(address))
    before = counted(address)
    assert len(before) == 1
    asked_apart(address, 20)
    assert counted(address) == {before.pop() + 20}


def _well_all(address: str) -> bool:
    with Client() as client:
        return all(_well(client, f"{address}/ready") for _ in range(5))


def counted(address: str) -> set[float]:
    """The requests that /metrics counts, as it says several times."""
    sums = set()
    for _ in range(8):
        with Client(base_url=address, timeout=30) as client:
            text = client.get("/metrics").text
        counts = re.findall(r'^evergreen_requests_total\{path="/v1/predict/features",status="200"\} (\S+)$', text, re.M)
        assert text.count("# TYPE evergreen_requests_total") == 1
        sums.add(sum(map(float, counts)))
    return sums
