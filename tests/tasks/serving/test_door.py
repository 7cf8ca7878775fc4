"""tasks.serving.door: no client starves another, and nobody comes in who may not; by sockets."""

import asyncio
import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from httpx import Client, ConnectError, RemoteProtocolError

from infra import servers
from tasks.params import Serving
from tasks.serving import app, door, keys, messages, protocol
from tasks.serving.__main__ import check_certificate
from tasks.serving.arrivals import Arrivals
from tasks.serving.handler import Handler
from tasks.serving.protocols import questions
from tests.conftest import write_params
from tests.tasks.serving.test_app import JSON, Shop, client, kept, serves, shop
from tests.waiting import PATIENCE_S, wait_until

__all__ = ["shop"]  # the fixture
FEATURES = "/v1/predict/features"
LONG = timedelta(seconds=PATIENCE_S)
ROW = json.dumps({"rows": [{"store": "south", "amount": 3.5}]}).encode()


@pytest.fixture(scope="module")
def api(shop: Shop) -> Iterator[Client]:
    with client(shop) as one:
        yield one


def head(path: str = FEATURES, length: int = len(ROW), **more: str) -> bytes:
    """A POST up to its body. A header's name has _ for -."""
    headers = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(length)}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@contextmanager
def connection(one: Client) -> Iterator[socket.socket]:
    with socket.create_connection((one.base_url.host, one.base_url.port or 80), timeout=PATIENCE_S) as open_socket:
        yield open_socket


def read_answer(one: socket.socket) -> tuple[int, str]:
    """The status and the text of what comes next; 0 where the connection ends."""
    with one.makefile("rb") as file:
        line = file.readline()
        length = 0
        while header := file.readline().strip():
            name, _, value = header.lower().partition(b":")
            length = int(value) if name == b"content-length" else length
        return (int(line.split()[1]), file.read(length).decode()) if line else (0, "")


def count_of(one: Client, status: int, path: str = FEATURES) -> float:
    name = f'evergreen_requests_total{{path="{path}",status="{status}"}} '
    lines = [line for line in one.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(lines[0].removeprefix(name)) if lines else 0.0


# --- bodies that arrive


@contextmanager
def counted(shop: Shop, **serving: Any) -> Iterator[tuple[Client, Handler, Arrivals]]:
    """A server, and what its front door counts."""
    p = shop.p.model_copy(update={"serving": shop.p.serving.model_copy(update=serving)})
    made = app.create(p, shop.home)
    (parts,) = (layer.kwargs for layer in made.user_middleware if layer.cls is door.FrontDoor)
    with serves(made) as one:
        yield one, parts["handler"], parts["arrivals"]


def test_bodies_that_never_end_keep_nobody_out(shop: Shop) -> None:
    """More of them than there are places, and than one client may have."""
    with counted(shop, busy=4, arriving=16, arrival=LONG) as (one, handler, arrivals), ExitStack() as stack:
        for _ in range(24):
            stack.enter_context(connection(one)).sendall(head() + ROW[:9])
        wait_until(lambda: arrivals.count == 4)
        assert handler.busy == 0
        for _ in range(8):
            assert one.post(FEATURES, content=ROW, headers=JSON).status_code == 200


def test_of_too_many_bodies_the_slowest_ends_with_408_and_the_newer_are_answered(shop: Shop) -> None:
    with counted(shop, arriving=8, arrival=LONG) as (one, _, arrivals), ExitStack() as stack:
        first, second, third = (stack.enter_context(connection(one)) for _ in range(3))
        for place, unended in enumerate((first, second)):
            unended.sendall(head() + ROW[:9])
            wait_until(lambda place=place: arrivals.count == place + 1)
        third.sendall(head() + ROW[:9])  # a quarter of 8 is one client's share
        status, text = read_answer(first)
        assert (status, "serving.arriving = 8" in text) == (408, True)
        for unended in (second, third):
            unended.sendall(ROW[9:])
            assert read_answer(unended)[0] == 200
        wait_until(lambda: arrivals.count == arrivals.size == 0)


def test_a_body_that_is_not_whole_in_time_is_408(shop: Shop) -> None:
    with counted(shop, arrival=timedelta(seconds=0.3)) as (one, handler, arrivals), connection(one) as slow:
        slow.sendall(head() + ROW[:9])
        status, text = read_answer(slow)
        assert (status, "serving.arrival = 0.3s" in text) == (408, True)
        assert slow.recv(1) == b""  # the connection ends
        assert (arrivals.count, handler.busy) == (0, 0)


@pytest.mark.parametrize(
    ("bodies", "stay"),
    [
        ([("a", 60), ("a", 60)], [("a", 60)]),  # a quarter of 400 bytes is one client's share: the longest ends
        ([("a", 90), ("b", 90), ("c", 90), ("d", 90)], [("a", 90), ("b", 90), ("c", 90), ("d", 90)]),
        ([("b", 90), ("a", 99), ("c", 90), ("d", 90), ("e", 40)], [("b", 90), ("c", 90), ("d", 90), ("e", 40)]),
        ([("a", 1)] * 3 + [("b", 1)] * 2, [("a", 1)] * 2 + [("b", 1)] * 2),  # and a quarter of 8 bodies
    ],
)  # fmt: skip
def test_no_client_may_have_more_than_a_share_of_the_bodies_or_bytes_that_arrive(
    bodies: list[tuple[str, int]], stay: list[tuple[str, int]]
) -> None:
    async def hold(arrivals: Arrivals, name: str, size: int) -> None:
        async with asyncio.timeout(None) as limit:
            arrivals.grow(arrivals.begin(name, limit), size)
            await asyncio.Event().wait()

    async def check() -> None:
        arrivals = Arrivals(most=8, most_bytes=400)
        tasks = []
        for body in bodies:
            tasks.append(asyncio.create_task(hold(arrivals, *body)))
            await asyncio.sleep(0)
        for _ in range(10):  # until whoever must end has
            await asyncio.sleep(0)
        lives = [body for body, task in zip(bodies, tasks, strict=True) if not task.done()]
        assert lives == stay
        assert (arrivals.count, arrivals.size) == (len(stay), sum(size for _, size in stay))
        for task in tasks:
            task.cancel()

    asyncio.run(check())


def test_a_body_in_pieces_is_one_body(api: Client) -> None:
    with connection(api) as one:
        one.sendall(head())
        for place in range(len(ROW)):
            one.sendall(ROW[place : place + 1])
        assert read_answer(one)[0] == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_long_is_413_before_it_is_whole(api: Client, declared: bool) -> None:
    with connection(api) as one:
        if declared:
            one.sendall(head(length=messages.MOST_BYTES + 1))
        else:
            one.sendall(head(transfer_encoding="chunked").replace(b"content-length: %d\r\n" % len(ROW), b""))
            for _ in range(messages.MOST_BYTES // 100_000 + 1):
                one.sendall(b"186a0\r\n" + b" " * 100_000 + b"\r\n")
        status, text = read_answer(one)
        assert (status, f"{messages.MOST_BYTES:,} bytes" in text) == (413, True)


# --- requests that are given up


def test_a_request_whose_client_has_gone_gives_its_place_back(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(Handler, "_raw_answers", lambda *_: goes_on.wait(PATIENCE_S))
    row = json.dumps({"rows": shop.asked[:1]}).encode()
    with counted(shop, within=LONG) as (one, handler, _):
        with connection(one) as gone:
            gone.sendall(head("/v1/predict", len(row)) + row)
            wait_until(lambda: handler.busy == 1)
        wait_until(lambda: handler.busy == 0)
        wait_until(lambda: count_of(one, door.CLIENT_GONE, "/v1/predict") == 1)
        goes_on.set()


@pytest.mark.parametrize("path", ["/v1/predict", FEATURES])
@pytest.mark.parametrize("ends", ["gone", "over"])
def test_what_is_given_up_while_it_is_worked_on_is_not_journalled(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, path: str, ends: str
) -> None:
    """Another, which comes after it in its turn, is."""
    begun, goes_on = threading.Event(), threading.Event()
    name = "_raw_answers" if path == "/v1/predict" else "_ready_job"
    real = getattr(Handler, name)

    def slowly(self: Handler, *asked: Any) -> Any:
        result = real(self, *asked)
        if name == "_ready_job":  # whose answers are found in the thread for what is large

            def answers() -> Any:
                begun.set()
                goes_on.wait(PATIENCE_S)
                return result.answers()

            return SimpleNamespace(answers=answers, parts=result.parts, champion=result.champion)
        begun.set()
        goes_on.wait(PATIENCE_S)
        return result

    many = 2 if path == "/v1/predict" else 40

    def ask(number: int) -> dict[str, Any]:
        raw, ready = shop.asked[0] | {"number": number}, {"store": "south", "amount": float(number)}
        return {"rows": [raw if path == "/v1/predict" else ready] * many}

    def entries() -> set[str]:
        return set(kept(shop).read("predictions")["entry"].to_pylist())

    lost = {"gone": 7_000_001, "over": 7_000_003}[ends]
    body, before = json.dumps(ask(lost)).encode(), entries()
    with counted(shop, within=LONG if ends == "gone" else timedelta(seconds=0.5)) as (one, handler, _):
        with monkeypatch.context() as patch:
            patch.setattr(Handler, name, slowly)
            with connection(one) as given_up:
                given_up.sendall(head(path, len(body)) + body)
                assert begun.wait(PATIENCE_S)
                if ends == "over":
                    assert read_answer(given_up)[0] == 503
            wait_until(lambda: handler.busy == 0)
            goes_on.set()
        wait_until(lambda: one.post(path, json=ask(7_000_002)).status_code == 200)
        last = one.post(path, json=ask(7_000_002)).json()["predictions"]
    assert {answer["id"] for answer in last} <= entries()
    new = [row for row in kept(shop).read("predictions").to_pylist() if row["entry"] not in before]
    assert not [row for row in new if lost in (row.get("key_number"), row.get("x_amount"))]


# --- work


NONSENSE = [
    b'{"rows": [' + b",".join(b'{"a%d": [1]}' % i for i in range(90_000)) + b"]}",
    b'{"rows": [{' + b",".join(b'"%d": 1' % i for i in range(90_000)) + b"}]}",
    b'{"rows": [' + b"[]," * 90_000 + b"[]]}",
    b"[" * 90_000,
    b'{"rows": "' + b"\\\\" * 3 + b'", "x": [' + b"1," * 90_000 + b"1]}",
]


@pytest.mark.parametrize("place", range(len(NONSENSE)))
@pytest.mark.parametrize("path", ["/v1/predict", FEATURES, "/v1/outcomes", "/invocations"])
def test_more_values_than_a_request_can_have_are_refused_before_they_are_parsed(
    api: Client, monkeypatch: pytest.MonkeyPatch, path: str, place: int
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(door, "_read_message", never)
    monkeypatch.setattr(questions, "parse_json", never)
    answer = api.post(path, content=NONSENSE[place], headers=JSON)
    assert (answer.status_code, "send it in parts" in answer.text) == (413, True)


def test_marks_in_texts_are_no_values(api: Client) -> None:
    text = ',[{\\"' * 160
    rows = [{"store": text, "amount": 1.0}] * 900
    body = json.dumps({"rows": rows}).encode()
    assert len(body) > door.LARGE_BYTES
    assert messages.count_values(body) == 900 * 3 + 1
    assert api.post(FEATURES, content=body, headers=JSON).status_code == 200


def test_the_reasons_of_many_rows_are_those_of_each_alone_and_too_many_are_refused(shop: Shop, api: Client) -> None:
    rows = [{"store": "south", "amount": float(i)} for i in range(shop.p.serving.reasons)]
    answers = api.post(FEATURES, json={"rows": rows, "reasons": 3}).json()["predictions"]
    for place in (0, 15, 16, 17, 99):
        (alone,) = api.post(FEATURES, json={"rows": [rows[place]], "reasons": 3}).json()["predictions"]
        assert alone["reasons"] == answers[place]["reasons"]
    raw = api.post("/v1/predict", json={"rows": shop.asked[:40], "reasons": 1}).json()["predictions"]
    assert all(len(answer["reasons"]) == 1 for answer in raw)
    for path in (FEATURES, "/invocations"):
        form = {"rows": [*rows, rows[0]], "reasons": 3}
        if path == "/invocations":
            form = {"instances": form["rows"], "params": {"reasons": 3}}
        answer = api.post(path, json=form)
        assert answer.status_code in (400, 422)
        assert "the reasons of 100 rows (serving.reasons), but this has 101: send it in parts" in answer.text


# --- headers


def test_long_headers_are_refused_before_the_key_in_them_is_looked_at(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the key was looked at")

    monkeypatch.setenv("EVERGREEN_API_KEYS", f"shop:predict:{'0' * 64}")
    with client(shop) as one, connection(one) as long:
        monkeypatch.setattr(keys.Keys, "owner", never)
        long.sendall(head(authorization="Bearer " + "x" * door.HEADER_BYTES) + ROW)
        status, text = read_answer(long)
        assert (status, f"{door.HEADER_BYTES:,} bytes" in text) == (431, True)


def test_headers_that_never_end_are_431_and_slow_ones_408(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with client(shop) as one:
        with connection(one) as long:
            long.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer ")
            with suppress(ConnectionError):  # it ends while we send
                for _ in range(20):
                    long.sendall(b"x" * protocol.HEADER_BYTES)
            with suppress(ConnectionError):
                assert read_answer(long)[0] in (431, 0)
        monkeypatch.setattr(protocol, "HEADERS_S", 0.3)
        for begin in (b"", b"GET /health HTTP/1.1\r\nhost: 1", b"GET /health HTTP/1.1\r\nhost: [::1]\r\n\r\nGET /hea"):
            with connection(one) as slow:
                slow.sendall(begin)
                answers = [read_answer(slow)[0]]
                if begin.endswith(b"GET /hea"):
                    answers.append(read_answer(slow)[0])
                assert answers[-1] == 408
                assert slow.recv(1) == b""


def test_many_requests_on_one_connection_may_have_long_headers_together(api: Client) -> None:
    asked = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-some: " + b"x" * 5000 + b"\r\n\r\n"
    with connection(api) as one:
        for _ in range(40):
            one.sendall(asked[:2600])
            one.sendall(asked[2600:])
            assert read_answer(one)[0] == 200


# --- loopback is no login

HERE = ["127.0.0.1", "localhost:8080", "LOCALHOST", "[::1]:9", "127.0.0.1:1"]
FOREIGN = ["evil.example", "127.0.0.1.evil.example:8080", "localhost.evil.example", "[::2]", "", "10.0.0.1"]


def status_of(one: Client, path: str = FEATURES, **headers: str) -> int:
    if path == FEATURES:
        return one.post(path, content=ROW, headers=JSON | headers).status_code
    return one.get(path, headers=headers).status_code


def test_without_keys_a_foreign_name_or_page_is_refused_everywhere(api: Client) -> None:
    for path in (FEATURES, "/v1/model", "/metrics", "/health", "/openapi.json"):
        assert [status_of(api, path, host=host) for host in HERE] == [200] * len(HERE)
        assert [status_of(api, path, host=host) for host in FOREIGN] == [403] * len(FOREIGN)
        pages = {"http://localhost:3000": 200, "https://evil.example": 403, "null": 403, "http://127.0.0.1": 200}
        assert {page: status_of(api, path, origin=page) for page in pages} == pages
    answer = api.get("/v1/model", headers={"host": "evil.example"})
    assert "'evil.example': serving.hosts allows more" in answer.json()["detail"]


def test_serving_hosts_allows_names_and_with_keys_only_where_it_is_set(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client(shop, hosts=["Model.example"]) as one:
        assert [status_of(one, host=host) for host in ("model.example:80", "evil.example")] == [200, 403]
    monkeypatch.setenv("EVERGREEN_API_KEYS", line_of("shop", "predict"))
    mine = {"authorization": "Bearer ev_shop"}
    with client(shop) as one:
        assert status_of(one, host="evil.example", origin="https://evil.example", **mine) == 200
    with client(shop, hosts=["model.example"]) as one:
        assert [status_of(one, host=host, **mine) for host in ("model.example", "evil.example")] == [200, 403]
        assert status_of(one, "/health", host="10.0.0.7") == 200  # a probe asks by address


@pytest.mark.parametrize("sent", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", None])
@pytest.mark.parametrize("path", [FEATURES, "/v1/predict", "/v1/outcomes", "/invocations", "/predict"])
def test_what_a_page_of_another_site_can_send_unasked_is_415(api: Client, path: str, sent: str | None) -> None:
    answer = api.post(path, content=ROW, headers={"content-type": sent} if sent else {})
    assert (answer.status_code, "content-type: application/json" in answer.text) == (415, True)


def test_tensors_may_come_without_a_content_type_but_from_no_page_of_another_site(api: Client) -> None:
    path = "/v2/models/made/infer"
    assert api.post(path, content=b"{}").status_code == 400
    assert api.post(path, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert api.post(path, content=b"{}", headers={"origin": "https://evil.example"}).status_code == 403


def test_json_may_name_its_charset(api: Client) -> None:
    answer = api.post(FEATURES, content=ROW, headers={"content-type": "Application/JSON; charset=utf-8"})
    assert answer.status_code == 200


# --- keys


def line_of(name: str, scopes: str) -> str:
    """Of the key ev_<name>."""
    return f"{name}:{scopes}:{hashlib.sha256(f'ev_{name}'.encode()).hexdigest()}"


def test_keys_are_read_again_when_their_file_changes_and_a_broken_file_keeps_the_old(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"

    def write(text: str) -> None:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(file)

    def statuses() -> list[int]:
        return [status_of(one, authorization=f"Bearer ev_{name}") for name in ("old", "new")]

    write(line_of("old", "predict"))
    with client(shop, key_file=str(file)) as one:
        assert statuses() == [200, 401]
        write(f"{line_of('new', 'predict')}\n")
        wait_until(lambda: statuses() == [401, 200])
        for broken in ("nonsense", "", "# all are gone\n"):
            caplog.clear()
            write(broken)
            wait_until(lambda: "the API keys stay as they were" in caplog.text)
            assert statuses() == [401, 200]
        file.unlink()
        write(line_of("old", "predict"))
        wait_until(lambda: statuses() == [200, 401])


def test_a_key_file_without_a_key_is_an_error_at_start(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none\n")
    with pytest.raises(ValueError, match="must hold one API key at least"), client(shop, key_file=f"{tmp_path}/keys"):
        pass


def test_a_scope_opens_its_own_pages_and_admin_all(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["predict", "outcomes", "metrics", "model", "admin"]
    monkeypatch.setenv("EVERGREEN_API_KEYS", "\n".join(line_of(name, name) for name in names))
    opened = {FEATURES: "predict", "/metrics": "metrics", "/v1/model": "model", "/openapi.json": "admin"}
    with client(shop) as one:
        for path, scope in opened.items():
            statuses = {name: status_of(one, path, authorization=f"Bearer ev_{name}") for name in names}
            assert statuses == {name: 200 if name in (scope, "admin") else 403 for name in names}


def test_bearer_is_a_word_in_any_case(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_API_KEYS", line_of("shop", "predict"))
    sent = {"bearer ev_shop": 200, "BEARER  ev_shop": 200, "Bearer ev_sho": 401, "Basic ev_shop": 401, "ev_shop": 401}
    with client(shop) as one:
        assert {given: status_of(one, authorization=given) for given in sent} == sent


def test_openapi_names_the_key_and_its_scope_where_there_are_keys(
    shop: Shop, api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "security" not in api.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]
    monkeypatch.setenv("EVERGREEN_API_KEYS", line_of("shop", "admin"))
    with client(shop) as one:
        document = one.get("/openapi.json", headers={"authorization": "Bearer ev_shop"}).json()
    scheme = document["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    paths = document["paths"]
    assert paths["/v1/predict"]["post"]["security"] == [{"key": ["predict"]}]
    assert paths["/v1/model"]["get"]["security"] == [{"key": ["model"]}]
    assert "security" not in paths["/health"]["get"]


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem, of localhost, and key.pem."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.mark.skipif(not shutil.which("openssl"), reason="it makes the certificate")
def test_with_a_certificate_it_answers_by_tls_alone(shop: Shop, certificate: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load((shop.folder / "params.yaml").read_text())
    raw["serving"] = {"certificate": f"{certificate}/cert.pem", "certificate_key": f"{certificate}/key.pem"}
    write_params(raw, tmp_path)
    port, log = servers.free_port(), tmp_path / "api.log"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "EVERGREEN_HOME": str(shop.home)}
    with log.open("wb") as out:
        command = [sys.executable, "-m", "tasks.serving", "--port", str(port)]
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=out, stderr=out)
    try:
        trust = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
        with Client(base_url=f"https://localhost:{port}", verify=trust, timeout=30) as one:

            def is_well() -> bool:
                with suppress(ConnectError):
                    return one.get("/health").status_code == 200
                return False

            wait_until(is_well, log=log)
            assert one.post(FEATURES, content=ROW, headers=JSON).status_code == 200
        with Client() as plain, pytest.raises(RemoteProtocolError):
            plain.get(f"http://127.0.0.1:{port}/health")
    finally:
        process.terminate()
        process.wait()


def test_a_certificate_that_cannot_be_used_is_named_before_anything_listens(certificate: Path) -> None:
    cert, key = str(certificate / "cert.pem"), str(certificate / "key.pem")
    check_certificate(Serving(certificate=cert, certificate_key=key))
    for bad in ({"certificate": "none.pem", "certificate_key": key}, {"certificate": cert, "certificate_key": cert}):
        with pytest.raises(ValueError, match=r"serving\.certificate and serving\.certificate_key must name"):
            check_certificate(Serving(**bad))
    with pytest.raises(ValueError, match="must be set together"):
        Serving(certificate=cert)


@pytest.mark.parametrize("bad", ["https://a.example", "a.example:80", "", "*"])
def test_a_host_is_a_name_without_scheme_and_port(bad: str) -> None:
    with pytest.raises(ValueError, match="without scheme and port"):
        Serving(hosts=[bad])
