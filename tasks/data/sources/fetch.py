"""fetch: a source's address → its files on this machine, in the order of their delivery, and their fingerprint.

A new kind of address is a class in a file of its own, and an entry of SCHEMES.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tasks.data import packing, periods
from tasks.data.sources.files import LocalFiles
from tasks.data.sources.package import PackageFiles
from tasks.data.sources.scheme import Scheme
from tasks.params import Source
from tasks.runtime import locks

SCHEMES: dict[str, Scheme] = {"": LocalFiles(), "file": LocalFiles(), "package": PackageFiles()}


@dataclass(frozen=True)
class Fetched:
    """Local files that hold a table, packed or not, and the SHA-256 of their bytes as they were fetched."""

    address: str
    files: tuple[Path, ...]
    fingerprint: str


def fetch_files(address: str, source: Source | None = None) -> Fetched:
    """Bring a source here.

    Args:
        source: the table's settings in params.yaml; None: the usual ones.

    Raises:
        ValueError: it is missing or empty.
    """
    for root in {path.with_suffix("") for path in packing.scratch_root().glob("*")}:  # of processes that were killed
        locks.remove_ownerless(root)
    scheme = address.partition("://")[0] if "://" in address else ""
    if scheme not in SCHEMES:
        raise ValueError(f"{address}: the scheme must be one of {sorted(filter(None, SCHEMES))}, but got {scheme!r}")
    files, hashes = SCHEMES[scheme].fetch(address, source or Source(address=address)), []
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"{address}: {file} is no file; name the files in a folder with *, such as {address}/*.csv"
            )
        if file.stat().st_size == 0:
            raise ValueError(f"{address}: {file.name} is empty")
        hashes.append(periods.hash_file(file))
    return Fetched(address, tuple(files), hashlib.sha256("".join(hashes).encode()).hexdigest())
