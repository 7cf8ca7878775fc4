"""S3 on 127.0.0.1, its data in a folder: SeaweedFS, for the state of a team that runs on this machine, and for tests.

    python -m infra.s3 FOLDER PORT    # the server, in place of this process

Keys are made at random and lie in the folder. What it has acknowledged survives the death of its process; it does not
wait for the disk, so the power must not fail.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import programs, servers
from tasks.runtime import files

REGION = "us-east-1"
INNER_PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3.grpc")
OPTIONS = (
    "-filer",
    "-s3",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-filer.localSocket=filer.sock",
    "-s3.localSocket=s3.sock",
    "-master.telemetry=false",
    "-master.volumeSizeLimitMB=1024",
    "-volume.max=0",  # as many as the disk holds
    "-volume.preStopSeconds=0",
)
READY_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Server:
    """Where S3 keeps its data and on which port of 127.0.0.1 it listens."""

    folder: Path
    port: int

    @property
    def endpoint(self) -> str:
        return f"http://{servers.HOST}:{self.port}"

    def environment(self) -> dict[str, str]:
        """What boto3, DVC and MLflow need to find it."""
        key, secret = read_keys(self.folder)
        named = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": REGION}
        return {**named, "AWS_ENDPOINT_URL": self.endpoint}

    def part(self, env: Mapping[str, str]) -> servers.Part:
        programs.find_seaweed()
        read_keys(self.folder)
        arguments = ("-m", "infra.s3", str(self.folder), str(self.port))
        return servers.Part("s3", arguments, servers.answers(f"{self.endpoint}/healthz"), env)

    def client(self) -> Any:
        import boto3
        from botocore.config import Config

        key, secret = read_keys(self.folder)
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            region_name=REGION,
            config=Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 1}),
        )

    def create_bucket(self, name: str) -> None:
        """Create a bucket where it is missing, and wait until it takes objects.

        Raises RuntimeError when that takes too long: the server answers before it has its volumes.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        client, end = self.client(), time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
                    client.create_bucket(Bucket=name)
                client.put_object(Bucket=name, Key=".ready", Body=b"")
                client.delete_object(Bucket=name, Key=".ready")
                return
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > end:
                    raise RuntimeError(f"the S3 server at {self.endpoint} takes no objects: {error}") from None
                time.sleep(0.3)


def read_keys(folder: Path) -> tuple[str, str]:
    """The access key and the secret key; made at random where there are none."""
    path = folder / "identities.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        keys = {"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_hex(20)}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        new = path.with_name(f".{path.name}.new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"identities": [{"name": "evergreen", "credentials": [keys], "actions": actions}]}, file)
        new.replace(path)
    (keys,) = json.loads(path.read_text())["identities"][0]["credentials"]
    return keys["accessKey"], keys["secretKey"]


# --- the server's own process --------------------------------------------------------------------------------------


def become_seaweed(server: Server) -> None:
    """Replace this process by SeaweedFS."""
    program, data = str(programs.find_seaweed()), server.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    own = [f"-ip={servers.HOST}", f"-ip.bind={servers.HOST}", f"-s3.port={server.port}", "-dir=."]
    own += [f"-{_spell(name)}={port}" for name, port in _choose_ports(server.folder).items()]
    own.append(f"-s3.config={(server.folder / 'identities.json').resolve()}")
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}  # it takes keys from there
    os.chdir(data)  # for its sockets: a path of a socket is short
    os.execve(program, [program, "server", *own, *OPTIONS], env)


def _spell(name: str) -> str:
    program, _, kind = name.partition(".")
    return f"{program}.port{'.grpc' if kind else ''}"


def _choose_ports(folder: Path) -> dict[str, int]:
    """The ports of the last start where they are free, since it leaves files under /tmp that are named after them."""
    ports = read_ports(folder)
    with contextlib.suppress(OSError):
        if ports.keys() == set(INNER_PORTS) and _hold([ports[name] for name in INNER_PORTS]):
            return ports
    ports = dict(zip(INNER_PORTS, _hold([0] * len(INNER_PORTS)), strict=True))
    files.publish_json(folder / "ports.json", ports)
    return ports


def read_ports(folder: Path) -> dict[str, int]:
    """The ports on which the parts of the server speak to each other, by INNER_PORTS; empty before the first start."""
    path = folder / "ports.json"
    return {str(name): int(port) for name, port in json.loads(path.read_text()).items()} if path.exists() else {}


def _hold(ports: list[int]) -> list[int]:
    """These ports, all free at once; 0 is any. Raises OSError when one is taken."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in ports]
        for probe, port in zip(sockets, ports, strict=True):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((servers.HOST, port))
        return [int(probe.getsockname()[1]) for probe in sockets]


if __name__ == "__main__":
    try:
        become_seaweed(Server(Path(sys.argv[1]), int(sys.argv[2])))
    except (RuntimeError, OSError) as reason:
        sys.exit(f"S3 was not started: {reason}")
