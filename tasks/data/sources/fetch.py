"""fetch: a source's address → its files on this machine, in the order of their delivery, and their hashes.

A new kind of address is a class in a file of its own, and an entry of SCHEMES.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from tasks import log
from tasks.data import packing
from tasks.data.sources import copies
from tasks.data.sources.bucket import BucketObjects
from tasks.data.sources.database import DatabaseQuery
from tasks.data.sources.files import LocalFiles
from tasks.data.sources.package import PackageFiles
from tasks.data.sources.scheme import DeliveryError, Scheme
from tasks.data.sources.topic import TopicRows
from tasks.data.sources.web import WebFile
from tasks.params import Source
from tasks.params.source import LAST, scheme_of, show_address
from tasks.runtime import locks

LAST_COPIES = "EVERGREEN_LAST_COPIES"  # set: what was fetched last stands for a source elsewhere, which is not asked
LOCAL = ("", "file", "package")
SCHEMES: dict[str, Scheme] = {
    "": LocalFiles(),
    "file": LocalFiles(),
    "package": PackageFiles(),
    "http": WebFile(),
    "https": WebFile(),
    "s3": BucketObjects(),
    "postgresql": DatabaseQuery(),
    "kafka": TopicRows(),
}


@dataclass(frozen=True)
class Fetched:
    """Local files that hold a table, packed or not, and the SHA-256 of the bytes of each as they were fetched.

    `address` is as messages show it. `fallback` says what was used in place of the source; None: the source itself.
    """

    address: str
    files: tuple[Path, ...]
    hashes: tuple[str, ...]
    fallback: str | None = None

    @property
    def fingerprint(self) -> str:
        """One hash of all files, in their order."""
        return hashlib.sha256("".join(self.hashes).encode()).hexdigest()


def fetch_files(address: str, source: Source | None = None) -> Fetched:
    """Bring a source here, or where it does not deliver, what its `fallback` names; a warning says so.

    Args:
        source: the table's settings in params.yaml; None: the usual ones.

    Raises:
        DeliveryError: it is missing, empty or did not come whole, and no fallback did.
        ValueError: a setting is wrong.
    """
    source = source or Source(address=address)
    for root in {path.with_suffix("") for path in packing.scratch_root().glob("*")}:  # of processes that were killed
        locks.remove_ownerless(root)
    try:
        return _fetch(address, source)
    except DeliveryError as error:
        if source.fallback is None:
            raise
        return _fetch_fallback(source.fallback, source, error)


def _fetch(address: str, source: Source) -> Fetched:
    scheme, shown = scheme_of(address), show_address(address)
    if scheme not in SCHEMES:
        raise ValueError(f"{shown}: the scheme must be one of {sorted(filter(None, SCHEMES))}, but got {scheme!r}")
    if os.environ.get(LAST_COPIES) and scheme not in LOCAL:
        return _describe(copies.find_last(source), shown, source)
    return _describe(SCHEMES[scheme].fetch(address, source), shown, source)


def _fetch_fallback(fallback: str, source: Source, error: DeliveryError) -> Fetched:
    try:
        if fallback == LAST:
            files, checked = copies.read_last(source)
            fetched, used = (
                _describe(files, source.shown, source),
                f"the last good copy, of {checked:%Y-%m-%d %H:%M} UTC",
            )
        else:
            fetched, used = _fetch(fallback, source), show_address(fallback)
    except DeliveryError as second:
        raise DeliveryError(f"{error}. Nor does its fallback deliver: {second}") from None
    log.warning("%s. Its fallback is used: %s", error, used)
    return replace(fetched, address=source.shown, fallback=used)


def _describe(files: list[Path], shown: str, source: Source) -> Fetched:
    hashes = []
    for file in files:
        if not file.is_file():
            raise DeliveryError(f"{shown}: {file} is no file; name the files in a folder with *, such as {shown}/*.csv")
        if file.stat().st_size == 0:
            raise DeliveryError(f"{shown}: {file.name} is empty")
        hashes.append(copies.hash_file(file))
    if source.sha256 and hashes != [source.sha256]:
        raise DeliveryError(
            f"{shown}: it must be one file with the sha256 {source.sha256}, but it is {len(files)} with {hashes[0]}. "
            "Correct `sha256`, or the source"
        )
    return Fetched(shown, tuple(files), tuple(hashes))
