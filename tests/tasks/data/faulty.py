"""A web server with faults: what it does of each request is said beforehand, and what was asked is seen afterwards."""

import contextlib
import hashlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class File:
    """A file of the server, and how it is sent."""

    content: bytes
    etag: str | None = "by content"  # None: the server says none
    modified: float | None = None  # seconds since 1970; None: the server does not say
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def mark(self) -> str | None:
        return f'"{hashlib.sha256(self.content).hexdigest()[:12]}"' if self.etag == "by content" else self.etag


@dataclass
class Fault:
    """What goes wrong with one request. `torn`: so many bytes are sent, then the connection is reset."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    torn: int | None = None
    hang: int | None = None  # so many bytes are sent, then nothing for a minute
    pause: float = 0.0  # seconds before each `chunk` bytes
    chunk: int = 1 << 16
    length: int | None = None  # what Content-Length says; -1: no such header
    swap: bytes | None = None  # the file's content from then on


class Web:
    """The server's files by path, the faults of the next requests in order, and the requests so far."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.address = ""

    def asked(self, header: str) -> list[str | None]:
        """A header of each request."""
        return [headers.get(header) for _, headers in self.requests]


@contextmanager
def serve() -> Iterator[Web]:
    web = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"web": web}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    web.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.web.requests.append((self.path, headers))
        fault = self.web.faults.pop(0) if self.web.faults else Fault()
        file = self.web.files.get(self.path.partition("?")[0])
        if fault.status != 200:
            return self._send(fault.status, fault.body or b"", {**fault.headers}, fault)
        if file is None:
            return self._send(404, b"nothing here", {}, fault)
        status, body, extra = self._choose(file, headers)
        self._send(status, body, {**file.headers, **extra, **fault.headers}, fault)
        if fault.swap is not None:
            file.content = fault.swap
        return None

    def _choose(self, file: File, asked: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        """As RFC 9110 has it."""
        extra = {"ETag": file.mark} if file.mark else {}
        if file.modified is not None:
            extra["Last-Modified"] = formatdate(file.modified, usegmt=True)
        if file.mark and asked.get("if-none-match") == file.mark:
            return 304, b"", extra
        if file.modified is not None and asked.get("if-modified-since") == extra["Last-Modified"]:
            return 304, b"", extra
        place = re.fullmatch(r"bytes=(\d+)-", asked.get("range", ""))
        if place and asked.get("if-range") in (None, file.mark, extra.get("Last-Modified")):
            start, size = int(place[1]), len(file.content)
            if start >= size:
                return 416, b"", {"Content-Range": f"bytes */{size}"}
            return 206, file.content[start:], {**extra, "Content-Range": f"bytes {start}-{size - 1}/{size}"}
        return 200, file.content, extra

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        length = len(body) if fault.length is None else fault.length
        if status != 304 and length >= 0:
            self.send_header("Content-Length", str(length))
        if length < 0 or fault.length is not None:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        ends = [end for end in (fault.torn, fault.hang) if end is not None]
        whole = body[: min(ends)] if ends else body
        try:
            for at in range(0, len(whole), fault.chunk):
                time.sleep(fault.pause)
                self.wfile.write(whole[at : at + fault.chunk])
                self.wfile.flush()
        except OSError:
            self.close_connection = True
            return
        if fault.hang is not None:
            self.connection.settimeout(60)
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # until the client goes
            self.close_connection = True
        if fault.torn is not None:
            time.sleep(0.05)  # so that what was sent arrives before the reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True


class Relay:
    """Connections to a server of this machine, each cut after so many bytes of its answers; then uncut ones."""

    def __init__(self, port: int) -> None:
        self.target, self.cuts = port, list[int]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket, is_answer: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 14):
                other.sendall(data)
                passed += len(data)
                if is_answer and self.cuts and passed >= self.cuts[0]:
                    self.cuts.pop(0)
                    break
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
