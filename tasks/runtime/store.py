"""store: named files that all machines of a team share. A file is whole or absent.

EVERGREEN_STORE says where: `s3://bucket/prefix`, or a folder that all machines mount. Without it there is no store, and
what runs share lies in the home of this machine. A name is a relative path such as `periods/ab/abcd/hashes.json`.
"""

import contextlib
import fnmatch
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from tasks import log
from tasks.runtime import files

VARIABLE = "EVERGREEN_STORE"
BUCKET = re.compile(r"s3://(?P<bucket>[^/]+)(?:/(?P<prefix>.*?))?/*")
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, ATTEMPTS = 5, 30, 4
AWAY_S = 60.0  # that nobody asks a store that did not answer for what only saves time
THREADS = 16  # that copy the files of a folder
ABSENT = ("404", "NoSuchKey", "NotFound")  # S3's codes for what is not there
PRESENT = ("412", "PreconditionFailed")  # ... for what is there
CONFLICT = ("409", "ConditionalRequestConflict")  # ... and for what another request is just writing, or fails to


class StoreError(OSError):
    """The store did not answer, or refused. It may answer later."""


class Store(Protocol):
    """Where the machines of a team keep what they share. All methods raise StoreError where it does not answer."""

    @property
    def address(self) -> str:
        """As people write it in EVERGREEN_STORE."""

    def add(self, name: str, content: bytes | Path) -> bool:
        """Write a file that is not there yet; on disk when this returns.

        Returns:
            False where a file of this name is there, which stays as it is. It may be this one: a write whose answer was
            lost is tried again.
        """

    def replace(self, name: str, content: bytes) -> None:
        """Write a file, whether or not one is there. A reader sees the old one or the new one."""

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""

    def list_names(self, folder: str) -> list[str]:
        """The names of all files below a folder, sorted."""

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""


def find_store() -> Store | None:
    """The store that EVERGREEN_STORE names; None without it. Raises ValueError for an address of another kind."""
    address = os.environ.get(VARIABLE)
    return open_store(address) if address else None


def open_shared(home: Path) -> Store:
    """The store of a team, else the home of this machine."""
    return find_store() or FolderStore(home)


def read_identity(shared: Store) -> str:
    """What tells a store from all others: its address, or the mark that a folder has, which may be mounted anywhere."""
    if isinstance(shared, S3Store):
        return shared.address
    shared.add("identity", secrets.token_hex(16).encode())
    return shared.read("identity").decode()


def open_store(address: str) -> Store:
    """The store at an address. Raises ValueError for one that is neither a bucket of S3 nor a folder."""
    if match := BUCKET.fullmatch(address):
        return S3Store(match["bucket"], match["prefix"] or "")
    if "://" in address or not Path(address).is_absolute():  # each stage has a working directory of its own
        raise ValueError(
            f"{VARIABLE} must be s3://bucket/prefix or a folder's whole path, but it is {address}. Correct it."
        )
    return FolderStore(Path(address))


# --- a folder --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderStore:
    """A folder of this machine, or one that all machines mount."""

    root: Path

    @property
    def address(self) -> str:
        return str(self.root)

    def add(self, name: str, content: bytes | Path) -> bool:
        target = self.root / name
        with self._explain("write", name):
            files.make_folder(target.parent)
            new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
            try:
                new.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
                files.sync(new)
                os.link(new, target)  # unlike a rename, this replaces nothing
            except FileExistsError:
                return False
            finally:
                new.unlink(missing_ok=True)
            files.sync(target.parent)
        return True

    def replace(self, name: str, content: bytes) -> None:
        with self._explain("write", name):
            files.publish(self.root / name, lambda path: path.write_bytes(content))

    def read(self, name: str) -> bytes:
        with self._explain("read", name):
            return (self.root / name).read_bytes()

    def list_names(self, folder: str) -> list[str]:
        with self._explain("list", folder):
            return sorted(str(path.relative_to(self.root)) for path in _list_whole(self.root / folder))

    def remove(self, name: str) -> None:
        with self._explain("remove", name):
            (self.root / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explain(self, act: str, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"cannot {act} {name} in the store {self.address}: {error}") from None


def _list_whole(folder: Path) -> Iterator[Path]:
    """The files below a folder under their own names: `files.publish` and `add` write under another first.

    No file is looked at but by its name: one that is removed meanwhile is listed, and missed by whoever reads it.
    """
    for base, _, names in os.walk(folder):
        yield from (Path(base, name) for name in names if not (name.startswith(".") and name.endswith(".new")))


# --- a bucket of S3 --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class S3Store:
    """A bucket, and a prefix of the keys in it. Credentials, region and endpoint are those that boto3 finds."""

    bucket: str
    prefix: str

    @property
    def address(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def add(self, name: str, content: bytes | Path) -> bool:
        with contextlib.ExitStack() as stack:
            body = content if isinstance(content, bytes) else stack.enter_context(content.open("rb"))
            stack.enter_context(self._explain("write", name))
            try:
                self._put_new(name, body)
            except self._client.exceptions.ClientError as error:
                if _code_of(error) in PRESENT:
                    return False
                raise
        return True

    def _put_new(self, name: str, body: Any) -> None:
        for attempt in range(ATTEMPTS):
            try:
                self._client.put_object(Bucket=self.bucket, Key=self._key(name), Body=body, IfNoneMatch="*")
                return
            except self._client.exceptions.ClientError as error:
                if _code_of(error) not in CONFLICT or attempt == ATTEMPTS - 1:
                    raise
            time.sleep(0.2 * 2**attempt)
            if not isinstance(body, bytes):
                body.seek(0)

    def replace(self, name: str, content: bytes) -> None:
        with self._explain("write", name):
            self._client.put_object(Bucket=self.bucket, Key=self._key(name), Body=content)

    def read(self, name: str) -> bytes:
        with self._explain("read", name):
            return bytes(self._client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read())

    def list_names(self, folder: str) -> list[str]:
        with self._explain("list", folder):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._key(folder.rstrip("/") + "/")
            )
            keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return sorted(key.removeprefix(self._key("")) for key in keys)

    def remove(self, name: str) -> None:
        with self._explain("remove", name):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @property
    def _client(self) -> Any:
        return connect_s3()

    @contextlib.contextmanager
    def _explain(self, act: str, name: str) -> Iterator[None]:
        """Raise botocore's errors as FileNotFoundError or StoreError."""
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        try:
            yield
        except ClientError as error:
            if _code_of(error) in ABSENT:
                raise FileNotFoundError(f"{name} is not in the store {self.address}") from None
            raise StoreError(
                f"cannot {act} {name} in the store {self.address} ({_code_of(error)}). Check {VARIABLE}, and "
                "that these credentials may read and write there."
            ) from None
        except (BotoCoreError, HTTPClientError) as error:
            raise StoreError(
                f"cannot {act} {name} in the store {self.address} ({type(error).__name__}: {error}). Check {VARIABLE}, "
                "AWS_ENDPOINT_URL and the credentials."
            ) from None


def _code_of(error: Any) -> str:
    """The code of S3's answer, such as NoSuchKey."""
    return str(error.response.get("Error", {}).get("Code", ""))


def connect_s3(*, attempts: int = ATTEMPTS) -> Any:
    """A client of S3: this process's, by the credentials, region and endpoint that boto3 finds.

    Args:
        attempts: how often it asks before it raises.
    """
    return _connect(os.getpid(), attempts)


@lru_cache(maxsize=2)
def _connect(_process: int, attempts: int) -> Any:
    """A forked child must not use its parent's connections."""
    import boto3
    from botocore.config import Config

    retries: Any = {"mode": "standard", "total_max_attempts": attempts}
    config = Config(connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S, retries=retries)
    # Of a session of its own: boto3's keeps the credentials that it found first.
    return boto3.Session().client("s3", config=config)


# --- folders whose files never change --------------------------------------------------------------------------------


def fetch_folder(folder: Path, name: str, *, pattern: str = "*") -> int:
    """Bring files below a store's folder that this one lacks. Without a store nothing is brought.

    Args:
        pattern: of the names below the folder; * stands for slashes too.

    Returns:
        How many were brought. A store that does not answer costs a warning: what lies there saves time and no more.
    """
    if (shared := _find_unless_away()) is None:
        return 0
    try:
        below = [one.removeprefix(f"{name}/") for one in shared.list_names(name)]
        missing = [one for one in below if fnmatch.fnmatch(one, pattern) and not (folder / one).exists()]
        with ThreadPoolExecutor(THREADS, "store") as threads:
            list(threads.map(lambda one: _fetch_file(shared, f"{name}/{one}", folder / one), missing))
    except StoreError as error:
        _note_away(error)
        return 0
    return len(missing)


def _fetch_file(shared: Store, name: str, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # it has been removed since it was listed
        content = shared.read(name)
        files.publish(path, lambda new: new.write_bytes(content))


def share_folder(folder: Path, name: str, *, replaces: Callable[[str], bool] = lambda _: False, last: str = "") -> int:
    """Bring this folder's files to a store's folder, as far as it lacks them.

    Args:
        replaces: whether a file there, by its name below the folder, goes: this folder has a newer one in its place.
        last: the file that goes last: where it is, the others are.

    Returns:
        How many were brought. A store that does not answer costs a warning.
    """
    if (shared := _find_unless_away()) is None:
        return 0
    try:
        there = set(shared.list_names(name))
        here = {f"{name}/{path.relative_to(folder)}": path for path in sorted(_list_whole(folder))}
        missing, gone = here.keys() - there, [one for one in there - here.keys() if replaces(one[len(name) + 1 :])]
        with ThreadPoolExecutor(THREADS, "store") as threads:
            list(threads.map(lambda one: shared.add(one, here[one]), missing - {f"{name}/{last}"}))
            list(threads.map(shared.remove, gone))
        if f"{name}/{last}" in missing:
            shared.add(f"{name}/{last}", here[f"{name}/{last}"])
    except StoreError as error:
        _note_away(error)
        return 0
    return len(missing)


def remove_folder(name: str) -> None:
    """Remove all files below a store's folder."""
    if (shared := _find_unless_away()) is None:
        return
    try:
        for one in shared.list_names(name):
            shared.remove(one)
    except StoreError as error:
        _note_away(error)


_away_until = -math.inf  # by the monotonic clock: so long nobody asks, where the store only saves time


def _find_unless_away() -> Store | None:
    return find_store() if time.monotonic() >= _away_until else None


def _note_away(error: StoreError) -> None:
    global _away_until
    _away_until = time.monotonic() + AWAY_S
    log.warning("the store is not asked for %.0f s, and what it has is made here: %s", AWAY_S, error)
