"""A client that remembers what it was answered, on some connections at once, until it is told to stop.

wrk counts faster but remembers nothing: which version answered when, and which predictions were acknowledged.
"""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import urlsplit

LATE = 30.0  # seconds: an answer that takes longer is a failed one


@dataclass(frozen=True)
class Answer:
    """One answer: which request it was of, when that began and ended (monotonic), and what it told; None: none came."""

    of: int
    began: float
    ended: float
    status: int | None
    body: Any = None


@dataclass
class Client:
    """Asks these bodies in turn, each on whichever connection is free."""

    url: str
    bodies: Sequence[bytes]
    answers: list[Answer] = field(default_factory=list)
    stopped: bool = False
    _turn: Iterator[int] = field(default_factory=count)

    async def ask(self, connections: int) -> None:
        """Until `stopped`. A connection that breaks is made anew; whoever only listens for an end sets `stopped`."""
        await asyncio.gather(*(self._connection() for _ in range(connections)))

    async def _connection(self) -> None:
        place = urlsplit(self.url)
        while not self.stopped:
            try:
                reader, writer = await asyncio.open_connection(place.hostname, place.port)
            except OSError:
                self.answers.append(Answer(-1, time.monotonic(), time.monotonic(), None))
                await asyncio.sleep(0.05)
                continue
            with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                await self._asked(reader, writer, f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\n")
            writer.close()

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        while not self.stopped:
            of, began = next(self._turn) % len(self.bodies), time.monotonic()
            body = self.bodies[of]
            writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            status, text = None, b""
            try:
                async with asyncio.timeout(LATE):
                    status, text = await _answer(reader)
            finally:
                answer = json.loads(text) if status == 200 else None
                self.answers.append(Answer(of, began, time.monotonic(), status, answer))


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("\r\ncontent-length:")[2].partition("\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)
