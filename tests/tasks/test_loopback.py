"""A proxy in the environment is never asked for what is on this machine, whichever library asks."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks import exempt_loopback

ROOT = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9"  # a port that refuses: whatever asks this proxy fails
ASK = """
import sys
import flows
import httpx, requests, urllib.request
from infra import servers
url = sys.argv[1]
assert servers.answers(url)()
assert httpx.get(url).text == requests.get(url).text == urllib.request.urlopen(url).read().decode() == "here"
"""


@pytest.fixture
def page() -> Iterator[str]:
    class Here(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"here")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Here)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("told", [{}, {"NO_PROXY": "corp.example"}, {"no_proxy": "corp.example"}], ids=str)
def test_what_is_here_is_asked_directly_though_a_proxy_is_set(page: str, told: dict[str, str]) -> None:
    mine = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env = {**mine, "HTTP_PROXY": NOBODY, "http_proxy": NOBODY, "ALL_PROXY": NOBODY, **told}
    done = subprocess.run([sys.executable, "-c", ASK, page], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_exempts_this_machine_too() -> None:
    show = "include Makefile\nshow:\n\t@echo $$NO_PROXY $$no_proxy\n"
    env = {"PATH": os.environ["PATH"], "HTTPS_PROXY": NOBODY, "NO_PROXY": "corp.example"}
    command = ["make", "-s", "-f", "-", "show"]
    done = subprocess.run(command, cwd=ROOT, env=env, input=show, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["127.0.0.1,localhost,::1,corp.example"] * 2


def test_without_a_proxy_nothing_is_set() -> None:
    environment = {"NO_PROXY": "corp.example", "HTTP_PROXY": ""}
    exempt_loopback(environment)
    assert environment == {"NO_PROXY": "corp.example", "HTTP_PROXY": ""}


def test_both_spellings_get_what_either_exempts() -> None:
    environment = {"https_proxy": NOBODY, "NO_PROXY": "a.example, 127.0.0.1", "no_proxy": "b.example"}
    exempt_loopback(environment)
    assert environment["NO_PROXY"] == environment["no_proxy"] == "b.example,a.example,127.0.0.1,localhost,::1"


def test_no_proxy_at_all_stays_so() -> None:
    environment = {"ALL_PROXY": NOBODY, "no_proxy": "*"}
    exempt_loopback(environment)
    assert environment["NO_PROXY"] == environment["no_proxy"] == "*"
