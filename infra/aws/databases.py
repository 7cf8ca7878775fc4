"""databases: the users and the databases of one PostgreSQL, each user the owner of its own. The servers start with it.

    python -m infra.aws.databases

The connection is libpq's: PGHOST, PGUSER, PGPASSWORD and their like, of a user that may make roles and databases. Each
user's password is in the variable of its name. As often as you like: a password that has changed is set.
"""

import os
import sys
from collections.abc import Mapping
from typing import LiteralString

import psycopg
from psycopg import sql

PASSWORDS = {"prefect": "PREFECT_PASSWORD", "mlflow": "MLFLOW_PASSWORD", "locks": "LOCKS_PASSWORD"}
ADVISORY_KEY = 7_426_318  # any number that nobody else takes: two servers start at the same time
CONNECT_TIMEOUT_S = 20


def make_databases(passwords: Mapping[str, str]) -> None:
    """Make a user and a database of its own for each name, and set its password."""
    with psycopg.connect("", autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [ADVISORY_KEY])
        for name, password in passwords.items():
            _make_user(connection, name, password)
            if not _exists(connection, "SELECT 1 FROM pg_database WHERE datname = %s", name):
                make = sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(name))
                connection.execute(make)
            close = sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name))
            connection.execute(close)


def _make_user(connection: psycopg.Connection, name: str, password: str) -> None:
    user = sql.Identifier(name)
    verb = "ALTER" if _exists(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", name) else "CREATE"
    connection.execute(sql.SQL(verb + " ROLE {} LOGIN PASSWORD {}").format(user, sql.Literal(password)))
    # RDS's master is no superuser: it may give away only what it is a member of.
    connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(user))


def _exists(connection: psycopg.Connection, query: LiteralString, name: str) -> bool:
    return connection.execute(query, [name]).fetchone() is not None


def main() -> int:
    if lacking := [name for name in PASSWORDS.values() if not os.environ.get(name)]:
        print(f"set {', '.join(lacking)}: the passwords of the databases' users", file=sys.stderr)
        return 1
    make_databases({name: os.environ[variable] for name, variable in PASSWORDS.items()})
    print(f"databases: {', '.join(PASSWORDS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
