"""PostgreSQL and S3 for tests: the servers of the team profile, on free ports, for as long as a block lasts."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from pathlib import Path

from infra import postgres, s3, servers

ROOT = Path(__file__).parents[1]
UNPACKED = ROOT / ".evergreen" / "programs"
BUCKET = "evergreen"


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, as pytest's own cannot be: root runs PostgreSQL as another user."""
    folder = Path(tempfile.mkdtemp(prefix="evergreen-servers-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def run_postgres(folder: Path) -> Iterator[postgres.Server]:
    """PostgreSQL with its three databases. Raises RuntimeError where this machine can have none."""
    server = postgres.Server(folder / "postgres", servers.free_port())
    with chdir(ROOT):  # a test may have changed it
        running = servers.start(server.part(dict(os.environ), unpacked=UNPACKED), folder / "logs")
    try:
        wait(running)
        server.create_databases()
        yield server
    finally:
        servers.stop(running)


@contextmanager
def run_s3(folder: Path) -> Iterator[s3.Server]:
    """S3 with the bucket `evergreen`."""
    server = s3.Server(folder / "s3", servers.free_port())
    with chdir(ROOT):
        running = servers.start(server.part(dict(os.environ)), folder / "logs")
    try:
        wait(running)
        server.create_bucket(BUCKET)
        yield server
    finally:
        servers.stop(running, seconds=0.1)  # by SIGKILL: what it has acknowledged is written
        for path in Path("/tmp").glob("seaweedfs-*.sock"):
            if any(f"-{port}.sock" in path.name for port in s3.read_ports(server.folder).values()):
                path.unlink(missing_ok=True)


def wait(running: servers.Running) -> None:
    """Until it is ready; what it has said is in the error."""
    try:
        servers.wait(running)
    except RuntimeError as error:
        log = ""
        with suppress(OSError):
            log = running.log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{error}\n{log}") from None
