"""PostgreSQL on 127.0.0.1, its data in a folder: the databases of Prefect and MLflow, and a team's locks.

    python -m infra.postgres FOLDER PORT PROGRAMS    # the server, in place of this process

It listens on the port alone, without a socket file, and asks for a password, which is made at random and lies in the
folder. PostgreSQL refuses to run as root: root starts it as the user `postgres` or `nobody`.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from infra import programs, servers
from tasks.runtime import stage

USER = "evergreen"
DATABASES = ("prefect", "mlflow", "evergreen")
ACCOUNTS = ("postgres", "nobody")  # of the system, for a server that root starts
SETTINGS = {
    "listen_addresses": servers.HOST,
    "unix_socket_directories": "",
    "max_connections": "200",  # a lock keeps one, and Prefect and MLflow have pools of them
    "jit": "off",  # its library is no part of what is unpacked
}
KILLED_TIMEOUT_S = 20.0  # until the processes of a server that was killed have ended
CONNECT_TIMEOUT_S = 5


@dataclass(frozen=True)
class Server:
    """Where PostgreSQL keeps its data and on which port of 127.0.0.1 it listens."""

    folder: Path
    port: int

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str, *, driver: str = "") -> str:
        """The address of a database with its password, for SQLAlchemy by a driver's name, such as `asyncpg`."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        password = quote(read_secret(self.folder / "password"))
        return f"{scheme}://{USER}:{password}@{servers.HOST}:{self.port}/{database}"

    def part(self, env: Mapping[str, str], *, unpacked: Path) -> servers.Part:
        """The server to start.

        Args:
            unpacked: Where PostgreSQL's programs are unpacked, if this machine has none.

        Raises:
            RuntimeError: PostgreSQL cannot be had, or cannot run on this folder.
        """
        read_secret(self.folder / "password")
        check_reach(self.folder, programs.find_postgres(unpacked))
        arguments = ("-m", "infra.postgres", str(self.folder), str(self.port), str(unpacked))
        return servers.Part("postgres", arguments, self.is_ready, env, stop_signal=signal.SIGINT)  # without waiting

    def is_ready(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url("postgres"), connect_timeout=CONNECT_TIMEOUT_S).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise RuntimeError(
                    f"PostgreSQL does not take the password of {self.folder / 'password'}: put back the one that "
                    f"{self.data} was made with, or remove {self.folder} and all that it holds"
                ) from None
            return False
        return True

    def create_databases(self) -> None:
        """Create those that are missing. Raises RuntimeError where Prefect could not work."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            present = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for name in DATABASES:
                if name not in present:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        with psycopg.connect(self.url("prefect"), autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            try:
                connection.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
            except psycopg.Error as error:
                raise RuntimeError(
                    f"this PostgreSQL lacks pg_trgm, which Prefect needs ({error}). {programs.WAY_OUT}"
                ) from None


def read_secret(path: Path) -> str:
    """The secret of a file that its owner alone may read; made at random where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(24))
        new.replace(path)
    return path.read_text()


# --- the server's own process --------------------------------------------------------------------------------------


def become_postgres(server: Server, *, unpacked: Path) -> None:
    """Replace this process by PostgreSQL. The first time, make its data."""
    postgres, account = programs.find_postgres(unpacked), _find_account()
    if not (server.data / "PG_VERSION").exists():
        _make_data(server, postgres, account)
    _wait_for_killed(server.data)
    env = {**_own_environment(), **postgres.env}
    options = [f"-c{name}={value}" for name, value in SETTINGS.items()]
    if account:
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        stage.die_with_parent()  # Linux forgets it with the user
    program = str(postgres.folder / "postgres")
    os.execve(program, [program, "-D", str(server.data), "-p", str(server.port), *options], env)


def _own_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "AWS_", "EVERGREEN_"))}
    return {**kept, "LC_ALL": "C", "EVERGREEN_HOME": os.environ.get("EVERGREEN_HOME", "")}


def _find_account() -> pwd.struct_passwd | None:
    """Whom root runs PostgreSQL as; None for everybody else, who runs it."""
    if os.geteuid():
        return None
    for name in ACCOUNTS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError(f"PostgreSQL does not run as root, and there is no user {' or '.join(ACCOUNTS)} to run it as")


def check_reach(folder: Path, postgres: programs.Postgres) -> None:
    """Raises RuntimeError where root starts the server, and whom it runs as cannot reach its data or its programs."""
    if not (account := _find_account()):
        return
    for place in (folder.resolve(), postgres.folder.resolve()):
        for above in place.parents:
            status = above.stat()
            mine, group = status.st_uid == account.pw_uid, status.st_gid == account.pw_gid
            if not status.st_mode & (0o100 if mine else 0o010 if group else 0o001):
                raise RuntimeError(
                    f"PostgreSQL does not run as root, and the user {account.pw_name} cannot reach {place} by way of "
                    f"{above}: run this as an ordinary user, set EVERGREEN_HOME to a folder elsewhere, or chmod o+x "
                    f"{above}"
                )


def _make_data(server: Server, postgres: programs.Postgres, account: pwd.struct_passwd | None) -> None:
    """Under another name, which is changed when the data is whole."""
    new, word = server.folder / "new", server.folder / "new" / "password"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    word.touch(mode=0o600)
    word.write_text(read_secret(server.folder / "password"))
    if account:
        for path in (new, word):
            os.chown(path, account.pw_uid, account.pw_gid)
        server.folder.chmod(0o711)
    options = (f"--pwfile={word}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions")
    other = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    done = subprocess.run(
        [str(postgres.folder / "initdb"), "-D", str(new / "data"), "-U", USER, *options],
        env={**_own_environment(), **postgres.env},
        cwd=new,
        capture_output=True,
        text=True,
        **other,  # type: ignore[call-overload]
    )
    if done.returncode:
        raise RuntimeError(f"PostgreSQL's initdb made no data in {server.folder}: {done.stderr.strip()[-1000:]}")
    (new / "data").rename(server.data)
    shutil.rmtree(new)


def _wait_for_killed(data: Path) -> None:
    """Wait for the processes that a killed server has left: they end by themselves, and a new one refuses beside them.

    Raises RuntimeError when they do not, or when another server has this data.
    """
    end = time.monotonic() + KILLED_TIMEOUT_S
    while running := list(_find_processes(data)):
        if time.monotonic() > end:
            raise RuntimeError(f"another PostgreSQL runs on {data}: end the processes {running}")
        time.sleep(0.1)


def _find_processes(data: Path) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if path.readlink() == data.resolve():
                yield int(path.parent.name)


if __name__ == "__main__":
    try:
        become_postgres(Server(Path(sys.argv[1]), int(sys.argv[2])), unpacked=Path(sys.argv[3]))
    except (RuntimeError, OSError) as reason:
        sys.exit(f"PostgreSQL was not started: {reason}")
