"""The servers of the team profile: what they hold outlives them, and they ask for their keys."""

import os
import signal
import stat
from pathlib import Path

import boto3
import psycopg
import pytest
from botocore.exceptions import ClientError

from infra import postgres, programs, s3
from infra import servers as parts
from tests import servers
from tests.waiting import wait_until


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_postgres_asks_for_its_password_and_has_what_prefect_needs(postgres_server: postgres.Server) -> None:
    assert mode(postgres_server.folder / "password") == 0o600
    with psycopg.connect(postgres_server.url("prefect")) as connection:
        row = connection.execute("SELECT count(*) FROM pg_extension WHERE extname = 'pg_trgm'").fetchone()
    assert row == (1,)
    wrong = postgres_server.url("evergreen").replace("evergreen:", "evergreen:x", 1)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)


def test_what_postgres_has_committed_outlives_its_process() -> None:
    with servers.open_folder() as folder:
        server = postgres.Server(folder / "postgres", parts.free_port())
        part = server.part(dict(os.environ), unpacked=servers.UNPACKED)
        running = parts.start(part, folder / "logs")
        try:
            servers.wait(running)
            with psycopg.connect(server.url("postgres")) as connection:
                connection.execute("CREATE TABLE held AS SELECT 7 AS seven")
            os.kill(running.process.pid, signal.SIGKILL)
            running.process.wait()
            running = parts.start(part, folder / "logs")
            servers.wait(running)
            with psycopg.connect(server.url("postgres")) as connection:
                assert connection.execute("SELECT seven FROM held").fetchone() == (7,)
        finally:
            parts.stop(running)


def test_what_s3_has_acknowledged_outlives_its_process_on_other_ports_too() -> None:
    body = os.urandom(9 << 20)
    with servers.open_folder() as folder:
        with servers.run_s3(folder) as server:  # which is killed at the end
            server.client().put_object(Bucket=servers.BUCKET, Key="held", Body=body)
        (folder / "s3" / "ports.json").unlink()
        with servers.run_s3(folder) as server:
            assert wait_until(lambda: read(server, "held")) == body


def read(server: s3.Server, key: str) -> bytes | None:
    """None while the server, which has just been started, has not found its volumes yet."""
    try:
        return bytes(server.client().get_object(Bucket=servers.BUCKET, Key=key)["Body"].read())
    except ClientError as error:
        if error.response["Error"]["Code"] != "InternalError":
            raise
        return None


def test_s3_asks_for_its_keys_and_overwrites_nothing_that_is_to_be_new(s3_server: s3.Server, s3_store: str) -> None:
    assert mode(s3_server.folder / "identities.json") == 0o600
    client, (_, _, bucket, prefix) = boto3.Session().client("s3"), s3_store.split("/")
    client.put_object(Bucket=bucket, Key=f"{prefix}/entry", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key=f"{prefix}/entry", Body=b"second", IfNoneMatch="*")
    assert client.get_object(Bucket=bucket, Key=f"{prefix}/entry")["Body"].read() == b"first"
    stranger = boto3.Session().client("s3", aws_access_key_id="stranger", aws_secret_access_key="none")
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        stranger.list_objects_v2(Bucket=bucket)


def test_where_no_postgres_can_be_had_the_error_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "INSTALLED", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"no apt-get to take it from\. Install PostgreSQL 14 or newer"):
        programs.find_postgres(tmp_path / "programs")
    (tmp_path / "weed").touch()
    monkeypatch.setattr(programs.sys, "executable", str(tmp_path / "python"))
    assert programs.find_seaweed() == tmp_path / "weed"
    (tmp_path / "weed").unlink()
    with pytest.raises(RuntimeError, match="`make setup` installs it"):
        programs.find_seaweed()
