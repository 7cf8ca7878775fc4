"""advisory: locks between the machines of a team, held by PostgreSQL (its session-level advisory locks).

A lock belongs to a connection: it is free as soon as its process has ended, and within half a minute of the end of its
machine. The connection's name says who holds it. A pooler must give each client a connection of its own (PgBouncer:
`pool_mode = session`).

If the database itself is restarted, all locks are free. A holder notices within seconds and takes its lock again,
unless another was faster: then both go on. What is decided is safe from that, since decisions take the registry's lock
anew and look again who serves.
"""

import contextlib
import hashlib
import os
import socket
import threading
import time
from datetime import UTC
from typing import Any
from urllib.parse import urlsplit

from tasks import log

POLL_S = 0.5  # between tries, while another holds the lock
WATCH_S = 5.0  # between looks whether the connection of a lock that is held still lives
AWAY_S = 300.0  # the longest wait for a database that does not answer
CONNECT_TIMEOUT_S = 10
OPTIONS = (  # the server's: it notices within half a minute that a client's machine is gone
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c statement_timeout=30000"
)
CLIENT = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
HOLDER = """
    SELECT activity.application_name, activity.backend_start
    FROM pg_locks AS locks JOIN pg_stat_activity AS activity USING (pid)
    WHERE locks.locktype = 'advisory' AND locks.granted AND locks.objsubid = 1
        AND (locks.classid::bigint << 32 | locks.objid::bigint) = %s
"""


class AdvisoryLock:
    """A lock that PostgreSQL holds for a thread of this process, which may take it more than once.

    Args:
        url: postgresql://user:password@host/database.
        name: what is locked.
        scope: whose; the locks of two scopes know nothing of each other.
        timeout: the longest wait in seconds; -1: without an end.
    """

    def __init__(self, url: str, name: str, *, scope: str, timeout: float = -1) -> None:
        self.url, self.name, self.timeout = url, name, timeout
        self.key = int.from_bytes(hashlib.sha256(f"{scope}\n{name}".encode()).digest()[:8], "big", signed=True)
        self._own = threading.RLock()  # of the fields below
        self._connection: Any = None
        self._count, self._owner = 0, 0  # how often it was taken, and the thread that did
        self._released = threading.Event()

    def acquire(self, *, timeout: float | None = None) -> "AdvisoryLock":
        """Raises TimeoutError while another holds it, ConnectionError while the database does not answer."""
        wait = self.timeout if timeout is None else timeout
        began = time.monotonic()
        until = began + wait if wait >= 0 else float("inf")
        while not self._try_or_explain(may_wait=time.monotonic() < min(until, began + AWAY_S)):
            if time.monotonic() >= until:
                raise TimeoutError(f"another process ({self.read_holder()}) has held the lock {self.name} for {wait} s")
            time.sleep(min(POLL_S, max(until - time.monotonic(), 0.01)))
        return self

    def release(self) -> None:
        with self._own:
            self._count -= 1
            if self._count == 0:
                self._released.set()
                with contextlib.suppress(Exception):  # a connection that is gone holds nothing
                    self._connection.execute("SELECT pg_advisory_unlock(%s)", [self.key])
                self._close()

    def __enter__(self) -> "AdvisoryLock":
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def read_holder(self) -> str:
        """Who holds the lock, and since when; says so where nobody does."""
        import psycopg

        try:
            with self._connect() as connection:
                row = connection.execute(HOLDER, [self.key]).fetchone()
        except psycopg.Error:
            return "which the database does not tell"
        return f"{row[0]}, since {row[1].astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if row else "which has just ended"

    def _try_or_explain(self, *, may_wait: bool) -> bool:
        import psycopg

        try:
            return self._try()
        except psycopg.OperationalError as error:
            self._close()
            if may_wait:
                return False
            raise ConnectionError(
                f"the database of the locks at {hide_password(self.url)} does not answer ({_first_line(error)}). Start "
                "it, or correct EVERGREEN_LOCKS."
            ) from None
        except psycopg.Error as error:
            self._close()
            raise ValueError(f"EVERGREEN_LOCKS: {_first_line(error)}") from None

    def _try(self) -> bool:
        """Take the lock if it is free."""
        with self._own:
            if self._count:
                self._count += self._owner == threading.get_ident()
                return self._owner == threading.get_ident()
            self._connection = self._connection or self._connect()
            if not self._connection.execute("SELECT pg_try_advisory_lock(%s)", [self.key]).fetchone()[0]:
                return False
            self._count, self._owner, self._released = 1, threading.get_ident(), threading.Event()
        threading.Thread(target=self._watch, name=f"lock {self.name}", daemon=True).start()
        return True

    def _connect(self) -> Any:
        import psycopg

        who = f"evergreen {self.name[:24]} {socket.gethostname()[:20]}:{os.getpid()}"
        return psycopg.connect(
            self.url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=who,
            options=OPTIONS,
            **CLIENT,  # type: ignore[arg-type]
        )

    def _close(self) -> None:
        with self._own:
            connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def _watch(self) -> None:
        """Take the lock again where its connection is lost while it is held."""
        import psycopg

        released, was_lost = self._released, False
        while not released.wait(WATCH_S):
            with self._own:
                if not self._count or self._released is not released:
                    return
                try:
                    if self._connection is not None:
                        self._connection.execute("SELECT 1")
                        continue
                    self._connection = self._connect()
                    if self._connection.execute("SELECT pg_try_advisory_lock(%s)", [self.key]).fetchone()[0]:
                        log.warning("the lock %s was lost with its connection, and is held again", self.name)
                        was_lost = False
                        continue
                    self._close()
                    if not was_lost:
                        log.warning("the lock %s was lost, and another process has it: both go on", self.name)
                    was_lost = True
                except psycopg.Error:
                    self._close()


def hide_password(url: str) -> str:
    """A database's address without user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
