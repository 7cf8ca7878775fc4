"""One PostgreSQL for several programs: a user each, which owns its database and gets into no other."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from infra import postgres
from infra.aws import databases

MASTER = "a_master"
FIRST = {"one": "first password", "two": 'it\'s "quoted"'}


@pytest.fixture
def connect(
    postgres_server: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., psycopg.Connection]]:
    """Connects as a user to a database; libpq's variables are those of a master that is no superuser, as RDS's is."""
    host = {"host": "127.0.0.1", "port": str(postgres_server.port)}
    with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as root:
        root.execute(f"CREATE ROLE {MASTER} LOGIN CREATEDB CREATEROLE PASSWORD 'master'")
        settings = {"PGHOST": host["host"], "PGPORT": host["port"], "PGUSER": MASTER, "PGPASSWORD": "master"}
        for name, value in {**settings, "PGDATABASE": "postgres"}.items():
            monkeypatch.setenv(name, value)
        yield lambda user, password, database: psycopg.connect(
            **host, user=user, password=password, dbname=database, autocommit=True
        )
        for name in FIRST:
            root.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            root.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))
        root.execute(f"DROP ROLE {MASTER}")


def test_each_user_owns_its_database_and_gets_into_no_other(connect: Callable[..., psycopg.Connection]) -> None:
    databases.make_databases(FIRST)
    for name, password in FIRST.items():
        with connect(name, password, name) as connection:
            connection.execute("CREATE TABLE here (x int)")
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")  # as Prefect's migrations do
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        connect("one", FIRST["one"], "two")


def test_a_second_time_keeps_what_is_there_and_sets_a_changed_password(
    connect: Callable[..., psycopg.Connection],
) -> None:
    databases.make_databases(FIRST)
    with connect("one", FIRST["one"], "one") as connection:
        connection.execute("CREATE TABLE here AS SELECT 7 AS x")
    databases.make_databases({**FIRST, "one": "another"})
    with connect("one", "another", "one") as connection:
        assert connection.execute("SELECT x FROM here").fetchone() == (7,)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect("one", FIRST["one"], "one")


def test_two_servers_that_start_at_once_do_not_meet(connect: Callable[..., psycopg.Connection]) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(databases.make_databases, FIRST) for _ in range(4)]:
            done.result()
    connect("two", FIRST["two"], "two").close()


def test_a_password_that_is_not_given_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_PASSWORD", "x")
    monkeypatch.setenv("LOCKS_PASSWORD", "")
    monkeypatch.delenv("MLFLOW_PASSWORD", raising=False)
    assert databases.main() == 1
    assert capsys.readouterr().err.startswith("set MLFLOW_PASSWORD, LOCKS_PASSWORD")
