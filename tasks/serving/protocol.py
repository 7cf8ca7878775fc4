"""protocol: uvicorn's HTTP, with a limit for headers: their length, and how long they may take.

uvicorn's parser (httptools) takes headers of any length, and waits for their end for ever. What is too long in one
piece is refused in the front door, before the key in it is looked at; what never ends, here.
"""

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEADER_BYTES = 65_536  # that may have come without the end of the headers: more than the front door lets in
HEADERS_S = 10.0  # from the connection, or from their first byte


class BoundedHeaders(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._in_headers = True  # of a request that has begun, or of the first
        self._has_begun = False  # with the piece that is being read
        self._header_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEADERS_S, self._end, HTTPStatus.REQUEST_TIMEOUT)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._has_begun = False
        super().data_received(data)
        if not self._in_headers or self.transport.is_closing():
            return
        self._header_bytes += 0 if self._has_begun else len(data)
        self._timer = self._timer or self.loop.call_later(HEADERS_S, self._end, HTTPStatus.REQUEST_TIMEOUT)
        if self._header_bytes > HEADER_BYTES:
            self._end(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        self._in_headers, self._has_begun, self._header_bytes = True, True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_timer()
        super().on_headers_complete()

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _end(self, status: HTTPStatus) -> None:
        """The connection ends, also where an answer to an earlier request is under way."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            text = f"headers must have {HEADER_BYTES:,} bytes at most and be whole within {HEADERS_S:g} s".encode()
            head = b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(text)
            self.transport.write(STATUS_LINE[status] + head + text)
        self.transport.close()
