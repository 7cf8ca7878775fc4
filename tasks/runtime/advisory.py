"""advisory: locks between the machines of a team, held by PostgreSQL (its session-level advisory locks).

A lock belongs to a connection: it is free as soon as its process has ended, and within half a minute of the end of its
machine. The connection's name says who holds it. A pooler must give each client a connection of its own (PgBouncer:
`pool_mode = session`).

Where a connection is cut, or the database is restarted, a holder notices within a second or two and takes its lock
again; who waits for a run's lock leaves it the time for that. If another was faster all the same, both go on. What is
decided is safe from that, since decisions take the registry's lock anew and look again who serves.
"""

import contextlib
import hashlib
import os
import socket
import threading
import time
from datetime import UTC
from typing import Any

from tasks import log

POLL_S = 0.5  # between tries, while another holds the lock
WATCH_S = 1.0  # between looks whether the connection of a lock that is held still lives
AWAY_S = 120.0  # the longest wait for a database that does not answer
CONNECT_TIMEOUT_S = 10
OPTIONS = (  # the server's: it notices within half a minute that a client's machine is gone
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c statement_timeout=30000"
)
CLIENT = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
REFUSALS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "not permitted", "permission denied")
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
        grace: seconds that pass before a lock that was held, or a database that was away, is taken: its holder may
            have lost its connection alone, and takes it again.

    Raises:
        ValueError: the address is of another kind.
    """

    def __init__(self, url: str, name: str, *, scope: str, timeout: float = -1, grace: float = 0.0) -> None:
        check_url(url)
        self.url, self.name, self.timeout, self.grace = url, name, timeout, grace
        self.key = int.from_bytes(hashlib.sha256(f"{scope}\n{name}".encode()).digest()[:8], "big", signed=True)
        self._own = threading.RLock()  # of the fields below
        self._connection: Any = None
        self._count, self._owner = 0, 0  # how often it was taken, and the thread that did
        self._released = threading.Event()

    def acquire(self, *, timeout: float | None = None) -> "AdvisoryLock":
        """Raises TimeoutError while another holds it, ConnectionError while the database does not answer for AWAY_S."""
        import psycopg

        wait = self.timeout if timeout is None else timeout
        until = time.monotonic() + wait if wait >= 0 else float("inf")
        away_since: float | None = None
        must_wait = False  # whoever had it may take it again
        while True:
            try:
                if self._try(tentatively=must_wait and self.grace > 0):
                    if not must_wait or not self.grace:
                        return self
                    time.sleep(self.grace)
                    must_wait, away_since = False, None
                    continue
                must_wait, away_since = True, None
            except psycopg.OperationalError as error:
                self._close()
                must_wait, away_since = True, away_since or time.monotonic()
                if _is_refusal(error):
                    raise ValueError(f"EVERGREEN_LOCKS: {_first_line(error)}. Correct it.") from None
                if time.monotonic() - away_since >= AWAY_S:
                    raise ConnectionError(
                        f"the database of the locks at {hide_password(self.url)} does not answer "
                        f"({_first_line(error)}). Start it, or correct EVERGREEN_LOCKS."
                    ) from None
            if away_since is None and time.monotonic() >= until:
                self._close_unless_held()
                raise TimeoutError(f"another process ({self.read_holder()}) has held the lock {self.name} for {wait} s")
            time.sleep(min(POLL_S, max(until - time.monotonic(), 0.01)))

    def release(self) -> None:
        with self._own:
            if not self._count:
                raise RuntimeError(f"the lock {self.name} is released more often than it was taken")
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

    def is_held(self) -> bool:
        """Raises ConnectionError where the database does not answer."""
        import psycopg

        try:
            return self._find_holder() is not None
        except psycopg.Error as error:
            raise ConnectionError(
                f"the database of the locks at {hide_password(self.url)} does not answer ({_first_line(error)}). Start "
                "it, or correct EVERGREEN_LOCKS."
            ) from None

    def read_holder(self) -> str:
        """Who holds the lock, and since when; says so where nobody does."""
        import psycopg

        try:
            row = self._find_holder()
        except psycopg.Error:
            return "which the database does not tell"
        return f"{row[0]}, since {row[1].astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if row else "which has just ended"

    def _find_holder(self) -> Any:
        with self._connect() as connection:
            return connection.execute(HOLDER, [self.key]).fetchone()

    def _try(self, *, tentatively: bool = False) -> bool:
        """Take the lock if it is free. Returns whether it was.

        Args:
            tentatively: leave it free.
        """
        with self._own:
            if self._count:
                self._count += self._owner == threading.get_ident()
                return self._owner == threading.get_ident()
            self._connection = self._connection or self._connect()
            if not self._connection.execute("SELECT pg_try_advisory_lock(%s)", [self.key]).fetchone()[0]:
                return False
            if tentatively:
                self._connection.execute("SELECT pg_advisory_unlock(%s)", [self.key])
                return True
            self._count, self._owner, self._released = 1, threading.get_ident(), threading.Event()
        threading.Thread(target=self._watch, name=f"lock {self.name}", daemon=True).start()
        return True

    def _close_unless_held(self) -> None:
        with self._own:
            if not self._count:
                self._close()

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

        released, was_taken = self._released, False
        while not released.wait(WATCH_S):
            with self._own:
                if not self._count or self._released is not released:
                    return
                try:
                    if self._connection is not None:
                        self._connection.execute("SELECT 1")
                        continue
                except psycopg.Error:
                    self._close()
                with contextlib.suppress(psycopg.Error):  # it is away: the next look tries again
                    was_taken = self._take_again(was_taken)

    def _take_again(self, was_taken: bool) -> bool:
        """Returns whether another process has the lock."""
        self._connection = self._connect()
        if self._connection.execute("SELECT pg_try_advisory_lock(%s)", [self.key]).fetchone()[0]:
            log.warning("the lock %s was lost with its connection, and is held again", self.name)
            return False
        self._close()
        if not was_taken:
            log.warning("the lock %s was lost, and another process has it: both go on", self.name)
        return True


def check_url(url: str) -> None:
    """Raises ValueError for an address of another kind. Nothing of it is quoted, since it holds a password."""
    from psycopg import ProgrammingError, conninfo

    rule = (
        "EVERGREEN_LOCKS must be postgresql://user:password@host/database, with the characters @, / and % of a "
        "password as %40, %2F and %25"
    )
    is_misread = "@" in url.partition("://")[2].partition("/")[2]  # a password that ends the host's name
    if not url.startswith(("postgresql://", "postgres://")) or url.count("@") > 1 or is_misread:
        raise ValueError(f"{rule}, but it is not. Correct it.")
    try:
        conninfo.conninfo_to_dict(url)
    except ProgrammingError:
        raise ValueError(f"{rule}, but it cannot be read. Correct it.") from None


def hide_password(url: str) -> str:
    """A database's address without user and password."""
    from psycopg import conninfo

    parts = conninfo.conninfo_to_dict(url)
    return f"postgresql://{parts.get('host', '')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


def _is_refusal(error: Exception) -> bool:
    """Whether the database will answer so again: no such user, password or database. All else may pass, such as what it
    says while it starts, ends or recovers."""
    text = str(error)
    return "FATAL:" in text and any(reason in text for reason in REFUSALS)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
