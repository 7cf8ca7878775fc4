"""copies: the files of a remote source on this machine, below <home>/sources, a folder for each address.

A file is there whole or not at all: it comes under another name, is put on disk, and is renamed. `delivery.json` is
written last and says which files are the last good delivery. What it no longer names stays for a day, since another
process may be reading it. The folders are private: they hold the rows as the source has them, personal data in clear.
"""

import contextlib
import functools
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.data import periods
from tasks.data.sources import download
from tasks.data.sources.scheme import DeliveryError
from tasks.params import Source, home
from tasks.params.source import show_address
from tasks.runtime import files, locks

FORMAT = files.Format("source delivery", 1)
NAME = "delivery.json"
UNREAD_S = 86_400.0  # a file that is no longer named is read by nobody after so long
LONGEST_NAME = 200  # bytes in a part of a path; file systems take 255


@dataclass(frozen=True)
class Copy:
    """A file of a delivery.

    `name` is the source's name for it, `path` where it lies below the folder, and `marks` what the source said of it,
    such as its ETag, by which it tells whether it has changed.
    """

    name: str
    path: str
    sha256: str
    marks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Delivery:
    """The files of a source in the order of their delivery, and when the source last said that they are all."""

    copies: tuple[Copy, ...]
    checked: datetime
    state: Mapping[str, Any] = field(default_factory=dict)  # what the next fetch goes on from


class Copies:
    """The folder of one address, while its lock is held."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address

    def read(self) -> Delivery | None:
        """The last good delivery; None where there is none, or one of its files no longer holds what came."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            content = json.loads((self.folder / NAME).read_text(encoding="utf-8"))
            FORMAT.check(content["format"], self.folder / NAME)
            copies = tuple(Copy(**copy) for copy in content["copies"])
            if all(hash_file(self.folder / copy.path) == copy.sha256 for copy in copies):
                return Delivery(copies, datetime.fromisoformat(content["checked"]), content["state"])
        return None

    def part_of(self, name: str) -> Path:
        """Where a file lies while it comes."""
        return self.folder / "parts" / hashlib.sha256(name.encode()).hexdigest()[:16]

    def keep(self, part: Path, name: str, marks: Mapping[str, str], sha256: str | None = None) -> Copy:
        """Give a file that has come whole its place.

        Args:
            sha256: what it must be.

        Raises:
            DeliveryError: it is empty, or is not that.
        """
        digest = periods.hash_file(part)
        reason = ""
        if part.stat().st_size == 0:
            reason = f"{name} is empty"
        elif sha256 and digest != sha256:
            reason = f"{name} must have the sha256 {sha256}, but came with {digest}. Correct `sha256`, or the source"
        if reason:
            download.discard(part)
            raise DeliveryError(f"{self.address}: {reason}")
        path = Path("files", digest[:16], *map(_safe_name, name.split("/")))
        target = self.folder / path
        files.make_folder(target.parent)
        part.chmod(files.READ_ONLY)
        files.sync(part)
        part.replace(target)
        files.sync(target.parent)
        download.discard(part)
        return Copy(name, str(path), digest, marks)

    def publish(self, copies: tuple[Copy, ...], state: Mapping[str, Any] | None = None) -> list[Path]:
        """Make these the last good delivery. Returns their files."""
        content = {
            "address": self.address,
            "checked": datetime.now(UTC).isoformat(),
            "copies": [asdict(copy) for copy in copies],
            "format": FORMAT.mark,
            "state": state or {},
        }
        files.publish_json(self.folder / NAME, content)
        shutil.rmtree(self.folder / "parts", ignore_errors=True)
        self._sweep({Path(copy.path).parts[1] for copy in copies})
        return [self.folder / copy.path for copy in copies]

    def _sweep(self, needed: set[str]) -> None:
        """Remove files that no delivery has named for a day. A folder's time says when it was last named."""
        before = time.time() - UNREAD_S
        for folder in (self.folder / "files").glob("*"):
            if folder.name in needed:
                with contextlib.suppress(OSError):
                    (folder / ".named").touch()
            elif not (folder / ".named").exists() or (folder / ".named").stat().st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)


def hash_file(file: Path) -> str:
    """The hash of a file's bytes, looked at once by a process while the file stays as it is."""
    status = file.stat()
    return _hash_once(file, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=100_000)
def _hash_once(file: Path, *_: int) -> str:
    return periods.hash_file(file)


def _safe_name(part: str) -> str:
    """A part of a source's name for a file as a part of a path here."""
    part = re.sub(r"[\x00-\x1f/\\]", "_", part)
    if part in ("", ".", ".."):
        return f"_{part.count('.')}"
    if len(part.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(part.encode()).hexdigest()[:16]
        return digest + "".join(Path(part).suffixes[-2:])[-40:]
    return part


def folder_of(asked: str) -> Path:
    """The folder of an address, and of what is asked there."""
    return home() / "sources" / hashlib.sha256(asked.encode()).hexdigest()[:24]


@contextlib.contextmanager
def open_copies(address: str, source: Source) -> Iterator[Copies]:
    """The copies of an address, for this process alone: another that wants the same waits.

    Raises:
        DeliveryError: another process has had them for as long as the source's timeout.
    """
    shown, wait_s = show_address(address), source.timeout.total_seconds()
    folder = _folder_of_source(address, source)
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = locks.open_lock(folder.parent, folder.name, local=True)
    try:
        lock.acquire(timeout=wait_s)
    except TimeoutError:
        raise DeliveryError(
            f"{shown}: another process ({lock.read_holder()}) has been fetching it for {wait_s:.0f} s. Wait for it, or "
            "raise the source's `timeout`."
        ) from None
    try:
        (folder / "parts").mkdir(exist_ok=True)
        yield Copies(folder, shown)
    finally:
        lock.release()


def _folder_of_source(address: str, source: Source) -> Path:
    return folder_of(json.dumps([address, source.query, source.watermark]) if source.query else address)


def find_last(source: Source) -> list[Path]:
    """The files of the last good delivery, whatever its age, by reading alone. Raises DeliveryError without one."""
    folder = _folder_of_source(source.address, source)
    if (delivery := Copies(folder, source.shown).read()) is None:
        raise DeliveryError(f"{source.shown} has not been fetched on this machine yet")
    return [folder / copy.path for copy in delivery.copies]


def read_last(source: Source) -> tuple[list[Path], datetime]:
    """The files of the last good delivery, and when they were last known to be all that the source has.

    Raises:
        DeliveryError: there is none, or it is older than `max_age`.
    """
    with open_copies(source.address, source) as copies:
        delivery = copies.read()
    if delivery is None:
        raise DeliveryError("this machine has no good copy of it")
    age = datetime.now(UTC) - delivery.checked
    if source.max_age is None or age > source.max_age:
        raise DeliveryError(f"the last good copy is of {delivery.checked:%Y-%m-%d %H:%M} UTC, older than max_age")
    return [copies.folder / copy.path for copy in delivery.copies], delivery.checked
