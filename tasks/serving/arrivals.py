"""arrivals: bodies of requests that are still arriving: how many, how large, how long, and whose.

A body that is sent slowly, or never to its end, costs a connection and its bytes. When there is no room for another,
the one that has been arriving for longest ends, of the client that has most of them: so whoever sends a body at once
gets in, whatever others hold half-sent. No client may have more than its share.
"""

import asyncio
from dataclasses import dataclass, field

SHARES = 4  # a client may have this part of all that arrives


@dataclass(eq=False)
class Arrival:
    """A body that is arriving. It ends by `limit`, in time or when others need its room."""

    client: str
    limit: asyncio.Timeout
    size: int = 0  # bytes so far
    crowded_out: bool = False


@dataclass
class _Client:
    """What of one client is arriving, the longest first, and how many bytes of it have come."""

    arrivals: dict[Arrival, None] = field(default_factory=dict)
    size: int = 0


@dataclass
class Arrivals:
    """Of one process, for one event loop.

    Args:
        most: bodies that arrive at once.
        most_bytes: of all of them together, as far as they have come.
    """

    most: int
    most_bytes: int
    count: int = 0
    size: int = 0
    _clients: dict[str, _Client] = field(default_factory=dict)

    def begin(self, name: str, limit: asyncio.Timeout) -> Arrival:
        """A body of the client of this name, which may come from now on. Call `end` when it is whole or given up."""
        arrival, client = Arrival(name, limit), self._clients.setdefault(name, _Client())
        client.arrivals[arrival] = None
        self.count += 1
        if len(client.arrivals) > self.most / SHARES:
            self._crowd_out(client)
        elif self.count > self.most:
            self._crowd_out(max(self._clients.values(), key=lambda one: len(one.arrivals)))
        return arrival

    def grow(self, arrival: Arrival, count: int) -> None:
        """So many more bytes of it have come."""
        if arrival.crowded_out:
            return
        client = self._clients[arrival.client]
        arrival.size += count
        client.size += count
        self.size += count
        while client.size > self.most_bytes / SHARES:
            self._crowd_out(client)
        while self.size > self.most_bytes:
            self._crowd_out(max(self._clients.values(), key=lambda one: one.size))

    def _crowd_out(self, client: _Client) -> None:
        """End the body of this client that has been arriving for longest."""
        arrival = next(iter(client.arrivals))
        self.end(arrival)
        arrival.crowded_out = True
        arrival.limit.reschedule(asyncio.get_running_loop().time())

    def end(self, arrival: Arrival) -> None:
        """A second call does nothing."""
        client = self._clients.get(arrival.client)
        if client is None or arrival not in client.arrivals:
            return
        del client.arrivals[arrival]
        client.size -= arrival.size
        self.count -= 1
        self.size -= arrival.size
        if not client.arrivals:
            del self._clients[arrival.client]
